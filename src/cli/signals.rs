//! Signals from outside, as what they ask for.

use std::io;
use std::task::Poll;

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To stop: a bit at first, sooner when asked again.
    Stop(Stop),
    /// To start nothing more for the time being.
    Quiet,
    /// To go on.
    Resume,
    /// To say what is going on.
    Report,
    /// To read the configuration again.
    Reload,
}

/// The signal that asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) number: u8,
    pub(crate) name: &'static str,
    /// Whether it asks to lose no time.
    pub(crate) at_once: bool,
}

impl Stop {
    const fn new(signal: Number, name: &'static str, at_once: bool) -> Self {
        Self { number: signal.as_raw() as u8, name, at_once }
    }
}

const HUP: Stop = Stop::new(Number::HUP, "HUP", false);

const ALL: [(Number, Asked); 6] = [
    (Number::INT, Asked::Stop(Stop::new(Number::INT, "INT", false))),
    (Number::TERM, Asked::Stop(Stop::new(Number::TERM, "TERM", false))),
    (Number::QUIT, Asked::Stop(Stop::new(Number::QUIT, "QUIT", true))),
    (Number::TSTP, Asked::Quiet),
    (Number::CONT, Asked::Resume),
    (Number::USR1, Asked::Report),
];

/// The signals that this process listens to, from when it is made.
#[derive(Debug)]
pub(crate) struct Signals {
    listening: Vec<(Signal, Asked)>,
}

impl Signals {
    /// Begins to listen to all. HUP asks to stop: the terminal has gone, and what was started there ends with it.
    ///
    /// A signal to stop that this process was started with ignoring stays ignored: that is how `nohup` and a
    /// shell's background jobs keep HUP and INT away.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn listen() -> io::Result<Self> {
        let mut signals = Self { listening: Vec::new() };
        signals.add(ALL.into_iter().chain([(Number::HUP, Asked::Stop(HUP))]))?;
        Ok(signals)
    }

    /// Begins to listen to HUP alone, which asks a daemon to read its configuration again: whoever sends it need not
    /// know how far the daemon is. The others do as ever meanwhile: nothing has been begun that they would break off.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn listen_to_hup() -> io::Result<Self> {
        let mut signals = Self { listening: Vec::new() };
        signals.add([(Number::HUP, Asked::Reload)])?;
        Ok(signals)
    }

    /// Listens to all others too.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn listen_to_all(&mut self) -> io::Result<()> {
        self.add(ALL)
    }

    fn add(&mut self, signals: impl IntoIterator<Item = (Number, Asked)>) -> io::Result<()> {
        let ignored = ignored();
        for (number, asked) in signals {
            if matches!(asked, Asked::Stop(_)) && ignored >> (number.as_raw() - 1) & 1 == 1 {
                continue;
            }
            self.listening.push((signal(SignalKind::from_raw(number.as_raw()))?, asked));
        }
        Ok(())
    }

    /// Waits for the next one.
    ///
    /// # Cancel safety
    /// Safe: a signal that comes meanwhile is there for the next call.
    pub(crate) async fn next(&mut self) -> Asked {
        std::future::poll_fn(|cx| {
            for (signal, asked) in &mut self.listening {
                if let Poll::Ready(Some(())) = signal.poll_recv(cx) {
                    return Poll::Ready(*asked);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Which signals are ignored, bit by bit from signal 1; none where the system does not tell.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
