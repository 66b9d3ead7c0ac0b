//! What a person at a terminal sees: a terminal of the test's own, as wide as it says.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};

use tidegate::{Inspect, NewJob};

use crate::pty::terminal;
use crate::support::Place;

/// A terminal, on whose other end a program runs.
struct Terminal {
    near: File,
    child: Child,
}

impl Terminal {
    /// Runs the program with all three streams on a terminal as wide as this.
    fn run(place: &Place, columns: u16, args: &[&str]) -> Self {
        let (near, far) = terminal(columns);
        let end = || Stdio::from(far.try_clone().expect("a descriptor"));
        let mut command = place.command(args);
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("it is built");
        Self { near, child }
    }

    /// What is on the screen once it says `last`.
    fn until(&mut self, last: &str) -> String {
        let mut screen = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&screen).ends_with(last) {
            // Once the program has ended nobody holds the other end any more, and this fails.
            let read = self.near.read_exact(&mut byte);
            read.unwrap_or_else(|_| panic!("never {last:?}, but: {}", String::from_utf8_lossy(&screen)));
            screen.push(byte[0]);
        }
        String::from_utf8(screen).expect("UTF-8").replace("\r\n", "\n")
    }

    fn answer(&mut self, line: &str) {
        self.near.write_all(line.as_bytes()).expect("a terminal");
    }

    fn code(mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }
}

#[tokio::test]
async fn a_table_is_as_wide_as_the_terminal() {
    let place = Place::new();
    let job = || NewJob::new("a kind of some length", "a payload that is longer than what there is room for");
    place
        .with(vec![(
            job(),
            Some("an error that nobody could write on one line of a terminal of eighty columns"),
        )])
        .await;
    for columns in [80, 120, 60] {
        let mut terminal = Terminal::run(&place, columns, &["jobs"]);
        let screen = terminal.until("…\r\n");
        assert_eq!(terminal.code(), Some(0));
        let widths: Vec<usize> = screen.lines().map(|line| line.chars().count()).collect();
        assert_eq!((widths.len(), widths.iter().max()), (2, Some(&usize::from(columns))), "{screen}");
        assert!(screen.contains("a pay") && screen.contains("an er"), "{screen}");
        assert!(!screen.contains('\u{1b}'), "{screen}");
    }
    assert!(
        place.good(["jobs"]).stdout().ends_with("of eighty columns\n"),
        "nothing is cut in a file or pipe"
    );
}

#[tokio::test]
async fn a_person_is_asked_before_jobs_are_deleted() {
    let place = Place::new();
    let (queue, _) =
        place.with(vec![(NewJob::new("k", "a"), Some("no")), (NewJob::new("k", "b"), Some("no"))]).await;
    let question = "Delete 2 dead jobs of kind \"k\" for good? [y/N] ";
    for (answer, done, end) in [
        ("\n", Some(1), "tidegate: nothing is deleted\r\n"),
        ("no\n", Some(1), "tidegate: nothing is deleted\r\n"),
        ("yes\n", Some(0), "2 dead jobs of kind \"k\" deleted\r\n"),
    ] {
        assert_eq!(queue.counts().await.expect("counted").dead, 2);
        let mut terminal = Terminal::run(&place, 80, &["jobs", "delete-dead", "--kind", "k"]);
        assert_eq!(terminal.until("[y/N] "), question);
        terminal.answer(answer);
        terminal.until(end);
        assert_eq!(terminal.code(), done, "{answer:?}");
    }
    assert_eq!(queue.counts().await.expect("counted").dead, 0);
}

#[tokio::test]
async fn a_person_is_told_that_a_queue_was_made() {
    let place = Place::new();
    let mut terminal = Terminal::run(&place, 80, &["enqueue", "k"]);
    assert_eq!(terminal.until("\n1\r\n"), "tidegate: made the queue tidegate.sqlite\n1\n");
    assert_eq!(terminal.code(), Some(0));
    let mut terminal = Terminal::run(&place, 80, &["enqueue", "k"]);
    assert_eq!((terminal.until("2\r\n"), terminal.code()), ("2\n".into(), Some(0)), "it was there");
}

#[tokio::test]
async fn a_payload_that_would_drive_the_terminal_is_not_written_to_it() {
    let place = Place::new();
    place.with(vec![(NewJob::new("k", "\u{1b}[2J"), None), (NewJob::new("k", "two\n\tlines"), None)]).await;
    let mut terminal = Terminal::run(&place, 80, &["jobs", "show", "1", "--payload"]);
    let said =
        "tidegate: the payload is no plain text, and standard output is a terminal: write it to a file\n";
    assert_eq!((terminal.until("\r\n"), terminal.code()), (said.into(), Some(2)));
    let mut terminal = Terminal::run(&place, 80, &["jobs", "show", "2", "--payload"]);
    assert_eq!((terminal.until("lines"), terminal.code()), ("two\n\tlines".into(), Some(0)));
}
