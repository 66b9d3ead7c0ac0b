//! A disk that remembers: SQLite's own way to files, with all that changes one written down on the way.
//!
//! Two VFSs stand between SQLite and that of the system, to be named in a file's URI: [`RECORDED`] writes down what
//! is written, cut, synchronised and deleted, in order; [`UNSYNCED`] writes down nothing. Neither waits for the disk.
//! [`Recording::crash`] makes of a recording what may be there after a power failure at some moment of it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::mem::size_of;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::{Mutex, Once, OnceLock};

use rusqlite::ffi;

pub(crate) const RECORDED: &str = "tidegate-recorded";
pub(crate) const UNSYNCED: &str = "tidegate-unsynced";

/// The name of `file` for SQLite, with the VFS to go through.
pub(crate) fn uri(file: &Path, vfs: &str) -> String {
    static ONCE: Once = Once::new();
    ONCE.call_once(register);
    format!("file:{}?vfs={vfs}", file.display())
}

/// What happened to a file, or with it.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Write {
        file: String,
        at: usize,
        bytes: Vec<u8>,
    },
    Cut {
        file: String,
        size: usize,
    },
    Sync {
        file: String,
    },
    Delete {
        file: String,
    },
    /// The program was told that something is done.
    Acknowledged,
    /// The same, of something that a power failure may undo.
    Noted,
    /// The WAL was checkpointed: what was acknowledged before is in the database itself.
    Checkpointed,
}

static EVENTS: Mutex<Vec<Event>> = Mutex::new(Vec::new());

pub(crate) fn push(event: Event) {
    EVENTS.lock().expect("no panic under this lock").push(event);
}

/// All that was written down since the last call.
pub(crate) fn take() -> Recording {
    Recording(std::mem::take(&mut EVENTS.lock().expect("no panic under this lock")))
}

// ---- after a power failure ----

#[derive(Debug)]
pub(crate) struct Recording(pub(crate) Vec<Event>);

/// What a file holds.
type Image = Vec<u8>;

/// What of the changes that were not synchronised is there after a power failure.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Survives {
    Nothing,
    Everything,
    /// One or the other of them, and of some only a few sectors; as chance has it that begins with this number.
    Some(u64),
}

/// The least that a disk writes at once.
const SECTOR: usize = 512;

impl Recording {
    /// The files as they may be after a power failure right after the first `length` events, and a number that is
    /// the same for the same files.
    pub(crate) fn crash(&self, length: usize, survives: Survives) -> (BTreeMap<&str, Image>, u64) {
        let events = &self.0[..length];
        // Up to where each file was synchronised, and anything.
        let mut synced = HashMap::new();
        let mut any_synced = 0;
        for (at, event) in events.iter().enumerate() {
            if let Event::Sync { file } = event {
                synced.insert(file, at);
                any_synced = at;
            }
        }
        let is_safe = |at: usize| match &events[at] {
            // A deleted name is gone for good once anything is synchronised; so is the file by that name.
            Event::Delete { .. } => at < any_synced,
            Event::Write { file, .. } | Event::Cut { file, .. } => {
                synced.get(file).is_some_and(|sync| at < *sync)
            }
            Event::Sync { .. } | Event::Acknowledged | Event::Noted | Event::Checkpointed => true,
        };
        let mut chance = match survives {
            Survives::Some(seed) => Chance(seed.wrapping_mul(2_654_435_761) | 1),
            Survives::Nothing | Survives::Everything => Chance(1),
        };
        let (mut files, mut done) = (BTreeMap::<&str, Image>::new(), DefaultHasher::new());
        for (number, event) in events.iter().enumerate() {
            // All of its sectors, or which of them.
            let sectors = match survives {
                _ if is_safe(number) => u64::MAX,
                Survives::Nothing => 0,
                Survives::Everything => u64::MAX,
                Survives::Some(_) => match chance.next() % 8 {
                    0..3 => 0,
                    3 => chance.next(),
                    _ => u64::MAX,
                },
            };
            let (Event::Write { file, .. } | Event::Cut { file, .. } | Event::Delete { file }) = event else {
                continue;
            };
            if sectors == 0 {
                continue;
            }
            (number, sectors).hash(&mut done);
            let image = files.entry(file).or_default();
            match event {
                Event::Write { at, bytes, .. } if sectors == u64::MAX => write(image, *at, bytes),
                Event::Write { at, bytes, .. } => {
                    for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                        if sectors >> (number % 64) & 1 == 1 {
                            write(image, at + number * SECTOR, sector);
                        }
                    }
                }
                Event::Cut { size, .. } => image.truncate(*size),
                _ => _ = files.remove(file.as_str()),
            }
        }
        (files, done.finish())
    }
}

fn write(image: &mut Image, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if image.len() < end {
        image.extend_from_slice(&vec![0; end - image.len()]);
    }
    image[at..end].copy_from_slice(bytes);
}

/// The same row of numbers each time: xorshift64, by Marsaglia.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }
}

// ---- the way to the system's files ----

/// What SQLite takes for an open file. That of the system follows it in the same piece of memory.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    /// Its name, if what happens to it is to be written down.
    name: Option<String>,
}

/// The VFS that SQLite uses by itself.
struct Systems(*mut ffi::sqlite3_vfs);

// SAFETY: SQLite's VFSs are made to be used by any thread, and that of the system is never taken away.
unsafe impl Send for Systems {}
// SAFETY: as above.
unsafe impl Sync for Systems {}

fn systems() -> *mut ffi::sqlite3_vfs {
    static SYSTEMS: OnceLock<Systems> = OnceLock::new();
    // SAFETY: asking for the default is always allowed; we never take its place.
    SYSTEMS.get_or_init(|| Systems(unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) })).0
}

fn register() {
    for (name, data) in [(c"tidegate-recorded", std::ptr::dangling_mut()), (c"tidegate-unsynced", null_mut())]
    {
        // SAFETY: the system's VFS is a plain struct of numbers and functions; a copy of it with some of them changed
        // is one too. It stays for as long as the process, as SQLite wants it to.
        unsafe {
            let mut vfs = *systems();
            vfs.pNext = null_mut();
            vfs.zName = name.as_ptr();
            vfs.pAppData = data;
            vfs.szOsFile += c_int::try_from(size_of::<File>()).expect("a few bytes");
            vfs.xOpen = Some(open);
            vfs.xDelete = Some(delete);
            let registered = ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0);
            assert_eq!(registered, ffi::SQLITE_OK);
        }
    }
}

/// # Safety
/// `name` is null or ends with a zero.
unsafe fn text(name: *const c_char) -> String {
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite hands over as much memory as `szOsFile` says, which has room for our part and the system's.
    unsafe {
        let records = !(*vfs).pAppData.is_null() && !name.is_null();
        let name_of = records.then(|| text(name));
        let ours = File { base: ffi::sqlite3_file { pMethods: std::ptr::null() }, name: name_of };
        file.cast::<File>().write(ours);
        let code = ((*systems()).xOpen.expect("every VFS has it"))(systems(), name, real(file), flags, out);
        if code == ffi::SQLITE_OK {
            (*file).pMethods = &METHODS;
        } else {
            std::ptr::drop_in_place(&raw mut (*file.cast::<File>()).name);
        }
        code
    }
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    // SAFETY: the arguments are SQLite's own, passed on.
    unsafe {
        let code = ((*systems()).xDelete.expect("every VFS has it"))(systems(), name, sync);
        if code == ffi::SQLITE_OK && !(*vfs).pAppData.is_null() {
            push(Event::Delete { file: text(name) });
        }
        code
    }
}

/// The system's part of an open file.
///
/// # Safety
/// `file` is one that [`open`] was given.
unsafe fn real(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: the memory is large enough for both.
    unsafe { file.byte_add(size_of::<File>()) }
}

/// The name of a file if what happens to it is to be written down.
///
/// # Safety
/// `file` is open.
unsafe fn name(file: *mut ffi::sqlite3_file) -> Option<String> {
    // SAFETY: the caller's promise; `open` has written it, and nobody else does before it is closed.
    unsafe { (*file.cast::<File>()).name.clone() }
}

/// Methods that pass on what they are given.
macro_rules! passed_on {
    ($($method:ident => $name:ident($($arg:ident: $type:ty),*) $(-> $answer:ty)?;)*) => {
        $(unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file, $($arg: $type),*) $(-> $answer)? {
            // SAFETY: the arguments are SQLite's own, passed on to the system's part of an open file.
            unsafe {
                let real = real(file);
                ((*(*real).pMethods).$method.expect("files of the system have all methods"))(real, $($arg),*)
            }
        })*
    };
}

passed_on! {
    xRead => read(to: *mut c_void, count: c_int, at: i64) -> c_int;
    xWrite => pass_write(from: *const c_void, count: c_int, at: i64) -> c_int;
    xTruncate => pass_cut(size: i64) -> c_int;
    xClose => pass_close() -> c_int;
    xFileSize => file_size(size: *mut i64) -> c_int;
    xLock => lock(how: c_int) -> c_int;
    xUnlock => unlock(how: c_int) -> c_int;
    xCheckReservedLock => reserved(out: *mut c_int) -> c_int;
    xFileControl => control(what: c_int, arg: *mut c_void) -> c_int;
    xSectorSize => sector_size() -> c_int;
    xDeviceCharacteristics => characteristics() -> c_int;
    xShmMap => shm_map(page: c_int, size: c_int, extend: c_int, out: *mut *mut c_void) -> c_int;
    xShmLock => shm_lock(at: c_int, count: c_int, flags: c_int) -> c_int;
    xShmBarrier => shm_barrier();
    xShmUnmap => shm_unmap(delete: c_int) -> c_int;
}

unsafe extern "C" fn record_write(
    file: *mut ffi::sqlite3_file,
    from: *const c_void,
    count: c_int,
    at: i64,
) -> c_int {
    // SAFETY: `from` has `count` bytes; the rest is passed on.
    unsafe {
        if let Some(file) = name(file) {
            let count = usize::try_from(count).expect("not negative");
            let bytes = std::slice::from_raw_parts(from.cast::<u8>(), count).to_vec();
            push(Event::Write { file, at: usize::try_from(at).expect("not negative"), bytes });
        }
        pass_write(file, from, count, at)
    }
}

unsafe extern "C" fn record_cut(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: passed on.
    unsafe {
        if let Some(file) = name(file) {
            push(Event::Cut { file, size: usize::try_from(size).expect("not negative") });
        }
        pass_cut(file, size)
    }
}

unsafe extern "C" fn record_sync(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: the file is open.
    if let Some(file) = unsafe { name(file) } {
        push(Event::Sync { file });
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes a file once, and does nothing with it afterwards.
    unsafe {
        let code = pass_close(file);
        std::ptr::drop_in_place(&raw mut (*file.cast::<File>()).name);
        code
    }
}

/// Without `xFetch`: what is mapped into memory would not come by here.
static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(record_write),
    xTruncate: Some(record_cut),
    xSync: Some(record_sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(reserved),
    xFileControl: Some(control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};
