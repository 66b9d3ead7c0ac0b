//! Sidekiq's pages as a browser would fetch them, and the buttons on them: [`SidekiqWeb`].

use std::cell::RefCell;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use super::command;
use crate::redis::{Folder, Process, free_port, until};

/// A server of Sidekiq's pages on a port of its own, and the session of one visitor. Killed when it is dropped.
#[derive(Debug)]
pub(crate) struct SidekiqWeb {
    _process: Process,
    port: u16,
    cookie: RefCell<Option<String>>,
    _folder: Folder,
}

/// What it answers with.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: String,
}

impl SidekiqWeb {
    /// Starts it and waits until it answers.
    pub(crate) fn start(url: &str) -> Self {
        let (folder, mut started) = (Folder::new(), None);
        until("the pages are there", || {
            let port = free_port();
            let mut program = command("puma", "sidekiq", url);
            program.args([
                "-C",
                "-",
                "-e",
                "production",
                "-t",
                "1:4",
                "-b",
                &format!("tcp://127.0.0.1:{port}"),
            ]);
            let mut process = Process::start(program.arg("web.ru"), &folder.file("output"));
            let mut ended = false;
            until("it ends or answers", || {
                ended = process.ended().is_some();
                ended || request(port, "GET", "/stats", "", "").is_ok()
            });
            assert!(!ended || process.output().contains("in use"), "{}", process.output());
            started = Some((process, port));
            !ended
        });
        let (process, port) = started.expect("it has been waited for");
        Self { _process: process, port, cookie: RefCell::default(), _folder: folder }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The page at `path`: `/`, `/busy`, `/queues`, `/retries`, `/morgue`, and `/stats`, which is JSON.
    pub(crate) fn get(&self, path: &str) -> Page {
        self.ask("GET", path, "")
    }

    /// Presses a button of a form on the page at `path`, as a browser does: fetches the page, and sends its token
    /// and the session's cookie with the fields.
    ///
    /// Fails unless the answer sends the browser back.
    pub(crate) fn press(&self, path: &str, fields: &[(&str, &str)]) {
        self.press_on(path, path, fields);
    }

    /// The same for a form that is sent to `action`, which is not the page that it is on.
    pub(crate) fn press_on(&self, path: &str, action: &str, fields: &[(&str, &str)]) {
        let page = self.get(path);
        let token = page.token().unwrap_or_else(|| panic!("no form: {page:?}"));
        let mut form = format!("authenticity_token={}", encoded(&token));
        for (name, value) in fields {
            form += &format!("&{}={}", encoded(name), encoded(value));
        }
        let answer = self.post(action, &form);
        assert!((302..=303).contains(&answer.status), "{answer:?}");
    }

    /// The button "Quiet" beside a process on the page "Busy".
    pub(crate) fn quiet(&self, identity: &str) {
        self.press("/busy", &[("identity", identity), ("quiet", "Quiet")]);
    }

    /// The button "Stop" beside a process on the page "Busy".
    pub(crate) fn stop(&self, identity: &str) {
        self.press("/busy", &[("identity", identity), ("stop", "Stop")]);
    }

    /// Sends a form as it stands.
    pub(crate) fn post(&self, path: &str, form: &str) -> Page {
        self.ask("POST", path, form)
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Page {
        let cookie = self.cookie.borrow().clone().unwrap_or_default();
        let page = request(self.port, method, path, &cookie, body).expect("it answers");
        if let Some(cookie) = page.header("set-cookie") {
            // What follows says how long and where it holds.
            *self.cookie.borrow_mut() = cookie.split(';').next().map(str::to_owned);
        }
        page
    }
}

impl Page {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.lines().filter_map(|line| line.split_once(':'));
        headers.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// By what the jobs on it are chosen, in their order.
    pub(crate) fn boxes(&self) -> Vec<String> {
        let boxes = self.body.split("name='key[]' value='").skip(1);
        boxes.filter_map(|rest| rest.split('\'').next()).map(str::to_owned).collect()
    }

    /// What the first form on it wants to have back.
    fn token(&self) -> Option<String> {
        let after = self.body.split("name='authenticity_token' value='").nth(1)?;
        after.split('\'').next().map(str::to_owned)
    }
}

fn request(port: u16, method: &str, path: &str, cookie: &str, body: &str) -> io::Result<Page> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    // 1.0, so that the answer is one piece and ends with the connection.
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nCookie: {cookie}\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let nonsense = || io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(nonsense)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(nonsense)?;
    Ok(Page { status, headers: head.to_owned(), body: body.to_owned() })
}

/// As a form sends it.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
