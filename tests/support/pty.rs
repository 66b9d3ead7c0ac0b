//! A terminal of the test's own.

use std::fs::File;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// The end that a person sits at, and the one that a program runs on, of a terminal as wide as this.
pub(crate) fn terminal(columns: u16) -> (File, File) {
    let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&near).and_then(|()| unlockpt(&near)).expect("it is ours");
    let name = ptsname(&near, Vec::new()).expect("it has a name");
    let path = name.to_str().expect("plain ASCII");
    let far = File::options().read(true).write(true).open(path).expect("its other end");
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&far, size).expect("a size");
    (File::from(near), far)
}
