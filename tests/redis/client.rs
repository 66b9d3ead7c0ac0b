//! A small client of the tests' own: one connection, one command at a time, RESP2, blocking.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long a command may take, unless [`Client::patience`] says otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Reply>),
}

impl Reply {
    /// What it says, as text; an array line by line. Fails on an error: see [`error`](Self::error).
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Simple(text) => text.clone(),
            Self::Error(error) => panic!("the server refuses: {error}"),
            Self::Integer(number) => number.to_string(),
            Self::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Nil => String::new(),
            Self::Array(items) => items.iter().map(Self::text).collect::<Vec<_>>().join("\n"),
        }
    }

    /// The bytes that it is.
    pub(crate) fn bytes(self) -> Vec<u8> {
        match self {
            Self::Bulk(bytes) => bytes,
            other => panic!("no bytes: {other:?}"),
        }
    }

    /// The number that it is, or says.
    pub(crate) fn number(&self) -> i64 {
        self.text().parse().unwrap_or_else(|_| panic!("no number: {self:?}"))
    }

    /// What is in the array.
    pub(crate) fn items(self) -> Vec<Reply> {
        match self {
            Self::Array(items) => items,
            other => panic!("no array: {other:?}"),
        }
    }

    /// What is in the array, as texts.
    pub(crate) fn texts(self) -> Vec<String> {
        self.items().iter().map(Self::text).collect()
    }

    pub(crate) fn error(&self) -> Option<&str> {
        if let Self::Error(error) = self { Some(error) } else { None }
    }
}

/// One connection.
pub(crate) struct Client {
    stream: BufReader<Stream>,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Client {
    /// To a port of the loopback: of a server, or of a proxy.
    pub(crate) fn tcp(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        Self::on(Stream::Tcp(stream))
    }

    pub(crate) fn unix(path: &Path) -> io::Result<Self> {
        Self::on(Stream::Unix(UnixStream::connect(path)?))
    }

    fn on(stream: Stream) -> io::Result<Self> {
        let client = Self { stream: BufReader::new(stream) };
        client.set_timeout(PATIENCE)?;
        Ok(client)
    }

    /// Waits so long for each answer, and so long until it is rid of each command.
    pub(crate) fn patience(self, patience: Duration) -> Self {
        self.set_timeout(patience).expect("a time that is not zero");
        self
    }

    fn set_timeout(&self, patience: Duration) -> io::Result<()> {
        match self.stream.get_ref() {
            Stream::Tcp(stream) => {
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))
            }
            Stream::Unix(stream) => {
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))
            }
        }
    }

    /// Sends a command and waits for its answer. An error that the server answers with is a [`Reply`].
    pub(crate) fn call<A: AsRef<[u8]>>(&mut self, parts: &[A]) -> io::Result<Reply> {
        self.send(parts)?;
        self.receive()
    }

    /// Sends a command and does not wait.
    pub(crate) fn send<A: AsRef<[u8]>>(&mut self, parts: &[A]) -> io::Result<()> {
        let mut bytes = format!("*{}\r\n", parts.len()).into_bytes();
        for part in parts.iter().map(AsRef::as_ref) {
            bytes.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
            bytes.extend_from_slice(part);
            bytes.extend_from_slice(b"\r\n");
        }
        self.stream.get_mut().write_all(&bytes)
    }

    /// The next answer. After a timeout the connection is of no more use.
    pub(crate) fn receive(&mut self) -> io::Result<Reply> {
        let line = self.line()?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| nonsense(&line))?;
        Ok(match kind {
            "+" => Reply::Simple(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Integer(rest.parse().map_err(|_| nonsense(&line))?),
            "$" | "*" if rest == "-1" => Reply::Nil,
            "$" => {
                let length: usize = rest.parse().map_err(|_| nonsense(&line))?;
                let mut bytes = vec![0; length + 2];
                self.stream.read_exact(&mut bytes)?;
                bytes.truncate(length);
                Reply::Bulk(bytes)
            }
            "*" => {
                let length: usize = rest.parse().map_err(|_| nonsense(&line))?;
                Reply::Array((0..length).map(|_| self.receive()).collect::<io::Result<_>>()?)
            }
            _ => return Err(nonsense(&line)),
        })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\r\n") {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.len() - 2);
        Ok(String::from_utf8_lossy(&line).into_owned())
    }
}

fn nonsense(line: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("no RESP: {line:?}"))
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
