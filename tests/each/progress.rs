//! How far it has got, as a person at a terminal sees it, and as a log has it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};

use rustix::process::{Pid, Signal, kill_process};

use crate::pty::terminal;
use crate::support::{Fifo, LIMIT, Place, thread_named};

/// A program that runs with its standard error on a terminal.
struct Shown {
    child: Child,
    chunks: Receiver<Vec<u8>>,
    raw: Vec<u8>,
}

impl Shown {
    /// Starts it. Standard output goes to the terminal too, unless it is to go to a pipe.
    fn start(mut command: Command, columns: u16, out_is_piped: bool) -> Self {
        let (mut near, far) = terminal(columns);
        let out = if out_is_piped { Stdio::piped() } else { end(&far) };
        // What the test itself was started with must not decide how the terminal is taken.
        if !command.get_envs().any(|(name, _)| name == "TERM") {
            command.env("TERM", "xterm");
        }
        let child = command.stdout(out).stderr(end(&far)).spawn().expect("the program is built");
        // Nobody but the program holds the other end any more, so that reading ends when it does.
        drop((command, far));
        let (send, chunks) = sync_channel(16);
        thread_named("reader", move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = near.read(&mut chunk) {
                if send.send(chunk[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, chunks, raw: Vec::new() }
    }

    /// Waits until the program has written `text` to the terminal.
    fn hear(&mut self, text: &str) {
        while !self.said().contains(text) {
            match self.chunks.recv_timeout(LIMIT) {
                Ok(chunk) => self.raw.extend(chunk),
                Err(_) => panic!("never {text:?}, but: {:?}", self.said()),
            }
        }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.raw).into_owned()
    }

    /// Waits for its end. Returns all that it has written to the terminal, and its exit code.
    fn end(mut self, place: &Place) -> (String, Option<i32>) {
        loop {
            match self.chunks.recv_timeout(LIMIT) {
                Ok(chunk) => self.raw.extend(chunk),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end, and said: {:?}", self.said()),
            }
        }
        let code = self.child.wait().expect("it ends").code();
        place.assert_nobody_is_left();
        (self.said(), code)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // After a failure only: what waits for a word of the test's would wait for ever.
        if let Ok(None) = self.child.try_wait() {
            let id = Pid::from_raw(self.child.id().cast_signed()).expect("a process");
            let _ = kill_process(id, Signal::QUIT);
        }
    }
}

fn end(of: &File) -> Stdio {
    Stdio::from(of.try_clone().expect("a descriptor"))
}

/// What a terminal makes of what is written to it, with all that has scrolled away.
struct Screen {
    columns: usize,
    lines: Vec<Vec<char>>,
    /// Where the cursor is; beside the last column when that was written last.
    row: usize,
    column: usize,
    /// What stood on lines that were cleared.
    cleared: Vec<String>,
}

impl Screen {
    fn of(text: &str, columns: u16) -> Self {
        let mut screen = Self {
            columns: usize::from(columns),
            lines: vec![Vec::new()],
            row: 0,
            column: 0,
            cleared: Vec::new(),
        };
        let mut chars = text.chars().peekable();
        while let Some(char) = chars.next() {
            match char {
                '\r' => screen.column = 0,
                '\n' => screen.go_to(screen.row + 1),
                '\u{1b}' => {
                    assert_eq!(chars.next(), Some('['), "it is taught no such sequence: {text:?}");
                    let mut number = 0;
                    while let Some(digit) = chars.peek().and_then(|char| char.to_digit(10)) {
                        number = number * 10 + digit as usize;
                        chars.next();
                    }
                    screen.obey(number, chars.next());
                }
                _ => screen.put(char),
            }
        }
        screen
    }

    fn go_to(&mut self, row: usize) {
        self.row = row;
        self.lines.resize(self.lines.len().max(row + 1), Vec::new());
    }

    fn put(&mut self, char: char) {
        assert!(!char.is_control(), "it is taught nothing of {char:?}");
        if self.column == self.columns {
            self.column = 0;
            self.go_to(self.row + 1);
        }
        let line = &mut self.lines[self.row];
        line.resize(line.len().max(self.column + 1), ' ');
        line[self.column] = char;
        self.column += 1;
    }

    /// What stands behind `ESC [`.
    fn obey(&mut self, number: usize, letter: Option<char>) {
        match (letter, number) {
            (Some('A'), up) => self.row = self.row.checked_sub(up).expect("there is a line above"),
            (Some('B'), down) => self.go_to(self.row + down),
            (Some('K'), 2) => {
                let line = std::mem::take(&mut self.lines[self.row]);
                self.cleared.push(text(&line));
            }
            other => panic!("it is taught nothing of {other:?}"),
        }
    }

    /// The lines above the cursor, which has to stand at the beginning of an empty last one.
    fn all(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.lines.iter().map(|line| text(line)).collect();
        assert_eq!((self.row, self.column), (lines.len() - 1, 0), "the cursor is left elsewhere: {lines:#?}");
        assert_eq!(lines.pop().as_deref(), Some(""), "something is left: {lines:#?}");
        lines
    }
}

fn text(line: &[char]) -> String {
    line.iter().collect::<String>().trim_end().to_owned()
}

/// The script of the tests: `hold` and `first` wait to be told, `bad` fails, and all but `hold` say something.
fn script(place: &Place) -> (Fifo, Fifo, String) {
    let (hold, first) = (place.fifo("hold.fifo"), place.fifo("first.fifo"));
    let script = format!(
        "case $1 in hold) read x < {}; exit;; first) read x < {};; esac; \
         echo out $1; printf 'more of %s' $1; echo err $1 >&2; [ $1 != bad ]",
        hold.path().display(),
        first.path().display()
    );
    (hold, first, script)
}

/// The records but for `hold`, in the order in which one place runs them.
fn speakers() -> Vec<String> {
    let numbers = (1..=30).map(|number| number.to_string());
    ["first".to_owned()].into_iter().chain(numbers).chain(["bad".to_owned()]).collect()
}

/// Runs them all on one place while `hold` has the other, with the bar shown from before the first says something
/// until after the last has. Returns what the terminal was told.
fn run_beside_a_bar(mut shown: Shown, place: &Place, hold: &Fifo, first: &Fifo) -> String {
    shown.hear("0 done, 2 running, ");
    first.tell();
    shown.hear("31 done, 1 failed, 1 running, ");
    hold.tell();
    let (said, code) = shown.end(place);
    assert_eq!(code, Some(1), "{said:?}");
    said
}

/// Takes the summary from the end.
fn take_summary(lines: &mut Vec<String>) {
    let summary = lines.split_off(lines.len().saturating_sub(2));
    let [figures, failure] = &summary[..] else { panic!("{summary:?}") };
    assert!(
        figures.starts_with("tidegate: 32 done, 1 failed in ") && figures.ends_with("/s)"),
        "{figures:?}"
    );
    assert_eq!(failure, "tidegate: record 33 failed: exited with status 1: bad");
}

/// Whether this is `12,3/s, 4.56 s`: a rate, and a time.
fn is_rate_and_time(text: &str) -> bool {
    let digits = |text: &str| text.chars().all(|char| char.is_ascii_digit() || ",.".contains(char));
    text.split_once("/s, ").is_some_and(|(rate, time)| {
        digits(rate) && time.strip_suffix(" s").map_or(time.contains(" min "), digits)
    })
}

/// Checks that this line is a bar, and returns the figures on it and the time that is left, if it says so.
fn figures(bar: &str) -> (u32, String, Option<String>) {
    let cells: String = bar.chars().take(24).collect();
    assert!(cells.chars().all(|cell| "█░".contains(cell)), "no bar: {bar:?}");
    let (percent, rest) = bar[cells.len()..].split_once("%  ").expect("a percentage");
    let (rest, left) = match rest.strip_suffix(" left").and_then(|rest| rest.rsplit_once(", ")) {
        Some((rest, left)) => (rest, Some(left.to_owned())),
        None => (rest, None),
    };
    let (counts, rate) = rest.split_once(" running, ").expect("what runs");
    assert!(is_rate_and_time(rate), "no rate and time: {bar:?}");
    (percent.trim().parse().expect("a number"), counts.to_owned(), left)
}

#[test]
fn a_bar_has_counts_a_rate_and_the_time_left_and_nothing_is_written_into_it() {
    // As wide as the bar and more; and so narrow that it takes three lines.
    for columns in [120, 32] {
        let place = Place::new();
        let (hold, first, script) = script(&place);
        let records = ["hold".to_owned()].into_iter().chain(speakers()).collect::<Vec<_>>();
        place.write("in", records.join("\n") + "\n");
        let command = place.command(["-i", "in", "-j2", "--shell", &script]);
        let said = run_beside_a_bar(Shown::start(command, columns, false), &place, &hold, &first);
        let screen = Screen::of(&said, columns);
        let mut lines = screen.all();
        if columns == 120 {
            take_summary(&mut lines);
            let bars: Vec<_> =
                screen.cleared.iter().filter(|line| !line.is_empty()).map(|line| figures(line)).collect();
            let early = bars.iter().find(|(_, counts, _)| counts == "0 done, 2").expect("it was heard");
            assert_eq!((early.0, &early.2), (0, &None), "nothing is known yet");
            let last = bars.iter().rfind(|(_, counts, _)| counts == "31 done, 1 failed, 1");
            let (percent, _, left) = last.expect("it was heard");
            // All but the record that is held, of 5 bytes.
            assert!((90..100).contains(percent) && left.is_some(), "{percent} %, {left:?}");
        } else {
            // The summary is wider than that, and longer than two lines.
            let (at, _) =
                lines.iter().enumerate().find(|(_, line)| line.starts_with("tidegate: ")).expect("a summary");
            let summary = lines.split_off(at).concat();
            assert!(summary.starts_with("tidegate: 32 done, 1 failed in "), "{summary:?}");
        }
        let whole = |record| [format!("out {record}"), format!("more of {record}"), format!("err {record}")];
        let expected: Vec<String> = speakers().iter().flat_map(whole).collect();
        assert_eq!(lines, expected, "{columns} columns");
    }
}

#[test]
fn a_bar_keeps_out_of_a_pipe_and_shows_no_time_left_where_the_end_is_unknown() {
    let place = Place::new();
    let (hold, first, script) = script(&place);
    let mut command = place.command(["-j2", "--shell", &script]);
    command.stdin(Stdio::piped());
    let mut shown = Shown::start(command, 120, true);
    let mut stdin = shown.child.stdin.take().expect("piped");
    let records = ["hold".to_owned()].into_iter().chain(speakers()).collect::<Vec<_>>();
    stdin.write_all((records.join("\n") + "\n").as_bytes()).expect("it reads");
    drop(stdin);
    let mut stdout = shown.child.stdout.take().expect("piped");
    let piped = thread_named("pipe", move || {
        let mut out = String::new();
        stdout.read_to_string(&mut out).map(|_| out).expect("text")
    });
    let said = run_beside_a_bar(shown, &place, &hold, &first);
    let whole = |record| format!("out {record}\nmore of {record}\n");
    assert_eq!(piped.join().expect("no panic"), speakers().iter().map(whole).collect::<String>());
    let screen = Screen::of(&said, 120);
    let mut lines = screen.all();
    take_summary(&mut lines);
    assert_eq!(lines, speakers().iter().map(|record| format!("err {record}")).collect::<Vec<_>>());
    for bar in screen.cleared.iter().filter(|line| !line.is_empty()) {
        let (spinner, figures) = bar.split_once("  ").expect("a spinner");
        assert!(spinner.chars().count() == 1 && !figures.contains("left"), "{bar:?}");
        let (_, rate) = figures.split_once(" running, ").expect("what runs");
        assert!(is_rate_and_time(rate), "no rate and time: {bar:?}");
    }
}

/// The line comes after half a minute, so that all who wait for it wait together.
#[test]
fn where_nothing_can_be_drawn_there_are_plain_lines() {
    let place = Place::new();
    let hold = place.fifo("hold.fifo");
    let script = format!("echo $1; read x < {}", hold.path().display());
    place.write("in", "hold\n");
    let command = |args: &[&str], terminal: Option<&str>| {
        let mut command = place.command(["-i", "in", "--shell"]);
        command.args(args).arg(&script).stdin(Stdio::null());
        match terminal {
            Some(name) => command.env("TERM", name),
            None => command.env_remove("TERM"),
        };
        command
    };
    let mut piped = place.start_command(command(&[], Some("xterm")));
    let on_terminals = [(&[][..], Some("dumb")), (&[], None), (&["--progress", "plain"], Some("xterm"))];
    let mut shown = on_terminals.map(|(args, name)| Shown::start(command(args, name), 120, false));
    let figures = "tidegate: 0 done, 1 running, 0.0/s, ";
    piped.hear(figures);
    shown.iter_mut().for_each(|shown| shown.hear(figures));
    // Readers of one FIFO share what comes: each takes one line.
    let mut tell = hold.both_ends();
    tell.write_all(b"go\n".repeat(4).as_slice()).expect("it is a pipe");
    let ran = piped.end(&place);
    assert_eq!((ran.code(), ran.stdout()), (0, "hold\n".to_owned()));
    assert!(
        !ran.stderr().contains(['\u{1b}', '\r']) && ran.stderr().lines().count() == 2,
        "{}",
        ran.stderr()
    );
    for (said, code) in shown.map(|shown| shown.end(&place)) {
        assert_eq!(code, Some(0), "{said:?}");
        let lines: Vec<&str> = said.split_terminator("\r\n").collect();
        let [plain, out, summary] = lines[..] else { panic!("{said:?}") };
        assert!(
            plain.strip_prefix("tidegate: 0 done, 1 running, ").is_some_and(is_rate_and_time),
            "{said:?}"
        );
        assert!(out == "hold" && summary.starts_with("tidegate: 1 done, 0 failed in "), "{said:?}");
        assert!(!said.contains('\u{1b}'), "{said:?}");
    }
}
