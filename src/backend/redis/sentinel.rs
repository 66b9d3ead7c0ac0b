//! Which server is the master: the sentinels are asked for it at each connection that is made, and it is asked itself.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, Value};

use super::exchange::{array, text};
use super::failure::nonsense;
use super::link::{Host, send, within};
use crate::error::{Error, ErrorKind};

/// Where sentinels listen if nothing else is said.
const PORT: u16 = 26379;

const SCHEMES: [(&str, &str); 2] = [("redis+sentinel", "redis"), ("rediss+sentinel", "rediss")];

/// Sentinels, and the master that they watch.
pub(super) struct Sentinels {
    /// How to reach each of them.
    sentinels: Vec<ConnectionInfo>,
    /// What they call the master.
    name: String,
    /// How to log in to it, wherever it is.
    master: ConnectionInfo,
    ca: Option<Vec<u8>>,
    /// The one that answered last.
    first: AtomicUsize,
}

impl Sentinels {
    /// Whether the URL is one of sentinels.
    pub(super) fn are_in(url: &str) -> bool {
        scheme_of(url).is_some()
    }

    /// Those of a URL, and what it says without credentials. Nothing if it makes no sense.
    pub(super) fn read(url: &str, ca: Option<Vec<u8>>) -> Option<(Self, String)> {
        let (scheme, server) = scheme_of(url)?;
        let rest = url.strip_prefix(scheme)?.strip_prefix("://")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, path) = rest.split_once('/')?;
        let (login, hosts) = hosts.rsplit_once('@').map_or(("", hosts), |(login, hosts)| (login, hosts));
        let (name, database) = path.trim_end_matches('/').split_once('/').unwrap_or((path, "0"));
        let name = name.trim_end_matches('/');
        let database: u32 = database.parse().ok()?;
        if name.is_empty() || hosts.is_empty() {
            return None;
        }
        let (mut user, mut password) = ("", "");
        for option in query.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=')? {
                ("sentinel_user", value) => user = value,
                ("sentinel_pass", value) => password = value,
                _ => return None,
            }
        }
        let info = |login: &str, host: &str, database: u32| {
            let at = if login.is_empty() { "" } else { "@" };
            format!("{server}://{login}{at}{host}/{database}").into_connection_info().ok()
        };
        let login_there = if password.is_empty() { String::new() } else { format!("{user}:{password}") };
        let sentinels = hosts.split(',').map(|host| {
            let with_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            let host = if with_port { host.to_owned() } else { format!("{host}:{PORT}") };
            info(&login_there, &host, 0)
        });
        let sentinels = sentinels.collect::<Option<Vec<_>>>()?;
        let master = info(login, "localhost", database)?;
        let target = format!("{scheme}://{hosts}/{name}/{database}");
        let name = name.to_owned();
        Some((Self { sentinels, name, master, ca, first: AtomicUsize::new(0) }, target))
    }

    /// A connection to the server that is the master now, by what the sentinels say and it does.
    pub(super) async fn connect(&self, timeout: Duration) -> Result<MultiplexedConnection, Error> {
        let first = self.first.load(Ordering::Relaxed);
        let mut last = None;
        for place in 0..self.sentinels.len() {
            let place = (first + place) % self.sentinels.len();
            match self.through(&self.sentinels[place], timeout).await {
                Ok(connection) => {
                    self.first.store(place, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(error) if error.is_transient() => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| unknown(&self.name)))
    }

    /// The same by what this one says.
    async fn through(
        &self,
        sentinel: &ConnectionInfo,
        timeout: Duration,
    ) -> Result<MultiplexedConnection, Error> {
        const DOING: &str = "asking a sentinel for the master";
        let share = timeout / u32::try_from(self.sentinels.len()).unwrap_or(u32::MAX);
        let ask = async {
            let mut asked = Host::new(sentinel.clone(), self.ca.as_deref())?.connect(DOING, share).await?;
            let mut ask = redis::cmd("SENTINEL");
            send(&mut asked, DOING, ask.arg("get-master-addr-by-name").arg(&self.name)).await
        };
        // One that hangs must not keep the others from being asked.
        let answer = within(share, DOING, ask).await?;
        if answer == Value::Nil {
            return Err(unknown(&self.name));
        }
        let (host, port) = address(answer).ok_or_else(|| nonsense(DOING))?;
        let addr = match self.master.addr() {
            ConnectionAddr::TcpTls { insecure, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: None }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        let master = Host::new(self.master.clone().set_addr(addr), self.ca.as_deref())?;
        let connection = master.connect("connecting to the master", timeout).await?;
        is_master(connection, timeout).await
    }
}

fn scheme_of(url: &str) -> Option<(&'static str, &'static str)> {
    let scheme = url.split_once(':')?.0;
    SCHEMES.into_iter().find(|(with_sentinels, _)| *with_sentinels == scheme)
}

fn address(answer: Value) -> Option<(String, u16)> {
    let [host, port] = <[Value; 2]>::try_from(array(answer)?).ok()?;
    Some((text(host)?, text(port)?.parse().ok()?))
}

/// The connection, if it leads to a master: for a moment, sentinels name one that is no more, or not yet.
async fn is_master(
    mut connection: MultiplexedConnection,
    timeout: Duration,
) -> Result<MultiplexedConnection, Error> {
    const DOING: &str = "asking the master for its role";
    let ask = redis::cmd("ROLE");
    let answer = within(timeout, DOING, send(&mut connection, DOING, &ask)).await?;
    let role = array(answer).and_then(|parts| text(parts.into_iter().next()?));
    match role.as_deref() {
        Some("master") => Ok(connection),
        Some(_) => Err(Error::new(
            ErrorKind::Unavailable,
            "the server that the sentinels name is no master: they have not yet agreed on one",
        )),
        None => Err(nonsense(DOING)),
    }
}

fn unknown(name: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the sentinels know no master that is called {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_the_sentinels_the_master_and_the_database() {
        let url = "redis+sentinel://ada:secret@one:7000,two,[::1]:7001/main/3?sentinel_user=eve&sentinel_pass=hidden";
        let (read, target) = Sentinels::read(url, None).expect("a good URL");
        assert_eq!(target, "redis+sentinel://one:7000,two,[::1]:7001/main/3");
        assert_eq!(read.name, "main");
        let addresses: Vec<String> = read.sentinels.iter().map(|info| info.addr().to_string()).collect();
        assert_eq!(addresses, ["one:7000", "two:26379", "::1:7001"]);
        let login = |info: &ConnectionInfo| {
            let settings = info.redis_settings();
            (settings.username().map(str::to_owned), settings.password().map(str::to_owned), settings.db())
        };
        assert_eq!(login(&read.master), (Some("ada".into()), Some("secret".into()), 3));
        assert_eq!(login(&read.sentinels[1]), (Some("eve".into()), Some("hidden".into()), 0));
        let (read, target) = Sentinels::read("rediss+sentinel://one/main", None).expect("a good URL");
        assert_eq!(target, "rediss+sentinel://one/main/0");
        assert!(matches!(read.master.addr(), ConnectionAddr::TcpTls { .. }));
    }

    #[test]
    fn a_url_that_makes_no_sense_is_refused() {
        for bad in [
            "redis+sentinel://one",
            "redis+sentinel://one/",
            "redis+sentinel:///main",
            "redis+sentinel://one/main/x",
            "redis+sentinel://one,/main",
            "redis+sentinel://one/main?other=1",
            "redis://one/0",
        ] {
            assert!(Sentinels::read(bad, None).is_none(), "{bad}");
        }
    }
}
