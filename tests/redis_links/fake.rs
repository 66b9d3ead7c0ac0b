//! A server that says what a test wants: for answers that a real one gives only in a cluster, or a sentinel's.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

type Says = dyn Fn(&str) -> String + Send + Sync;

/// Listens until it is dropped; its threads end with it.
pub(crate) struct Fake {
    port: u16,
    ended: Arc<AtomicBool>,
    lines: Arc<Mutex<Vec<TcpStream>>>,
    listener: Option<JoinHandle<()>>,
}

impl Fake {
    /// Answers each request, whose parts are given with a blank between, with a line.
    pub(crate) fn start(says: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = socket.local_addr().expect("it is bound").port();
        let (ended, lines) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (mine, theirs, says) = (ended.clone(), lines.clone(), Arc::new(says));
        let listen = move || {
            let mut threads = Vec::new();
            for stream in socket.incoming().map_while(Result::ok) {
                if mine.load(Ordering::SeqCst) {
                    break;
                }
                theirs
                    .lock()
                    .expect("nothing panics here")
                    .push(stream.try_clone().expect("a second handle"));
                let says = says.clone();
                threads.push(thread("fake-line", move || answer(stream, &*says)));
            }
            threads.into_iter().for_each(|thread| thread.join().expect("it does not panic"));
        };
        Self { port, ended, lines, listener: Some(thread("fake-server", listen)) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes who waits for somebody to come.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        for line in self.lines.lock().expect("nothing panics here").iter() {
            let _ = line.shutdown(Shutdown::Both);
        }
        let ended = self.listener.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()) || std::thread::panicking(), "the fake panicked");
    }
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).expect("a thread")
}

fn answer(stream: TcpStream, says: &Says) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut writer = stream;
    while let Some(request) = request(&mut reader) {
        let answer = says(&request);
        if writer.write_all(format!("{answer}\r\n").as_bytes()).is_err() {
            return;
        }
    }
}

/// The parts of the next request, with a blank between.
fn request(reader: &mut impl BufRead) -> Option<String> {
    let mut parts = Vec::new();
    for _ in 0..number(reader, '*')? {
        let mut bytes = vec![0; number(reader, '$')? + 2];
        reader.read_exact(&mut bytes).ok()?;
        bytes.truncate(bytes.len() - 2);
        parts.push(String::from_utf8_lossy(&bytes).into_owned());
    }
    Some(parts.join(" "))
}

fn number(reader: &mut impl BufRead, kind: char) -> Option<usize> {
    let mut line = String::new();
    reader.take(64).read_line(&mut line).ok()?;
    line.strip_prefix(kind)?.trim_end().parse().ok()
}
