//! Connections, each for one purpose, and what is sent over them.

use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, RedisConnectionInfo, Script,
    TlsCertificates, Value,
};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::failure::failed;
use super::keys::Keys;
use super::sentinel::Sentinels;
use crate::error::Error;

/// How to reach the server.
pub(super) struct Dial {
    way: Way,
    /// For logs: without credentials.
    pub(super) target: String,
    /// How long connecting may take, and an answer to what nobody else watches over.
    timeout: Duration,
    /// What is asked to see whether it is there: something that every user may ask.
    probe: Cmd,
}

/// Where the server is.
pub(super) enum Way {
    /// There, always.
    Straight(Box<Host>),
    /// Where the sentinels say.
    Sentinels(Box<Sentinels>),
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dial").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Dial {
    pub(super) fn new(way: Way, target: String, timeout: Duration, keys: &Keys) -> Self {
        // `PING` is not in apisonator's access list.
        let mut probe = redis::cmd("EXISTS");
        probe.arg(&keys.queues);
        Self { way, target, timeout, probe }
    }

    /// A new connection, which belongs to the runtime that awaits this. It is closed with its last clone. The server is
    /// ready to be asked: one that reads its data yet takes connections, but no questions.
    pub(super) async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        const DOING: &str = "connecting to the server";
        let mut connection = match &self.way {
            Way::Straight(host) => host.connect(DOING, self.timeout).await?,
            Way::Sentinels(sentinels) => sentinels.connect(self.timeout).await?,
        };
        within(self.timeout, DOING, send(&mut connection, DOING, &self.probe)).await?;
        Ok(connection)
    }
}

/// One server, and what it is told first.
pub(super) struct Host {
    client: Client,
    greeting: Vec<Cmd>,
}

impl Host {
    /// Under TLS, the server's certificate must be signed by an authority of which the certificate is in `ca` (PEM), or
    /// else by one that the system trusts.
    pub(super) fn new(info: ConnectionInfo, ca: Option<&[u8]>) -> Result<Self, Error> {
        let greeting = greeting(info.redis_settings());
        // The driver would take whatever is answered to a login for a refusal, as that there are too many clients now.
        let info = info.set_redis_settings(RedisConnectionInfo::default());
        let made = match (info.addr(), ca) {
            (ConnectionAddr::TcpTls { .. }, Some(ca)) => {
                let certificates = TlsCertificates { client_tls: None, root_cert: Some(ca.to_vec()) };
                Client::build_with_tls(info, certificates)
            }
            _ => Client::open(info),
        };
        let client = made.map_err(|error| failed("making sense of the server's address", error))?;
        Ok(Self { client, greeting })
    }

    /// A new connection, which belongs to the runtime that awaits this.
    pub(super) async fn connect(
        &self,
        doing: &'static str,
        limit: Duration,
    ) -> Result<MultiplexedConnection, Error> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(limit)).set_response_timeout(None);
        let connect = async {
            let made = self.client.get_multiplexed_async_connection_with_config(&config).await;
            let mut connection = made.map_err(|error| failed(doing, error))?;
            for command in &self.greeting {
                send(&mut connection, doing, command).await?;
            }
            Ok(connection)
        };
        within(limit, doing, connect).await
    }
}

/// The login and the choice of a database.
fn greeting(settings: &RedisConnectionInfo) -> Vec<Cmd> {
    let mut greeting = Vec::new();
    if let Some(password) = settings.password() {
        let mut login = redis::cmd("AUTH");
        login.arg(settings.username().filter(|user| !user.is_empty())).arg(password);
        greeting.push(login);
    }
    if settings.db() != 0 {
        let mut choice = redis::cmd("SELECT");
        choice.arg(settings.db());
        greeting.push(choice);
    }
    greeting
}

/// A script that the server keeps, with its name there.
pub(super) struct Lua {
    text: &'static str,
    sha: LazyLock<String>,
}

macro_rules! script {
    ($name:ident, $($file:literal)*) => {
        pub(super) static $name: Lua = {
            const TEXT: &str = concat!($(include_str!(concat!("scripts/", $file))),*);
            Lua { text: TEXT, sha: LazyLock::new(|| Script::new(TEXT).get_hash().to_owned()) }
        };
    };
}

script!(EXCHANGE, "unique.lua" "away.lua" "exchange.lua");
script!(RENEW, "away.lua" "renew.lua");
script!(ENQUEUE, "unique.lua" "enqueue.lua");
script!(DUE, "unique.lua" "due.lua");
script!(SEARCH, "unique.lua" "search.lua");
script!(COUNT, "count.lua");
script!(CHANGE, "unique.lua" "change.lua");
script!(PRUNE, "prune.lua");

impl Lua {
    /// The call of it with these keys; its arguments are yet to be added.
    pub(super) fn call(&self, keys: &[&str]) -> Cmd {
        let mut call = redis::cmd("EVALSHA");
        call.arg(self.sha.as_str()).arg(keys.len());
        for key in keys {
            call.arg(*key);
        }
        call
    }

    /// Sends a call of it. The server is given the script if it does not have it, as after a restart.
    pub(super) async fn send(
        &self,
        connection: &mut MultiplexedConnection,
        doing: &'static str,
        call: &Cmd,
    ) -> Result<Value, Error> {
        match connection.send_packed_command(call).await.and_then(Value::extract_error) {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                send(connection, doing, redis::cmd("SCRIPT").arg("LOAD").arg(self.text)).await?;
                send(connection, doing, call).await
            }
            answer => answer.map_err(|error| failed(doing, error)),
        }
    }
}

/// Sends a command.
pub(super) async fn send(
    connection: &mut MultiplexedConnection,
    doing: &'static str,
    command: &Cmd,
) -> Result<Value, Error> {
    let answer = connection.send_packed_command(command).await.and_then(Value::extract_error);
    answer.map_err(|error| failed(doing, error))
}

/// For how long a connection may rest before it is tried before use: what was lost meanwhile is then noticed while
/// nothing is lost with it.
const RESTED: Duration = Duration::from_secs(1);

/// One connection that is made when it is needed, and anew after it was lost: for producers and for people. Many may
/// use it at once; one makes it.
#[derive(Default)]
pub(super) struct Lane(Mutex<Option<(MultiplexedConnection, Instant)>>);

impl Lane {
    /// A connection that was alive a moment ago.
    async fn live(&self, dial: &Dial) -> Result<MultiplexedConnection, Error> {
        let mut kept = self.0.lock().await;
        let now = Instant::now();
        if let Some((connection, used)) = &mut *kept {
            let rested = now.duration_since(*used) >= RESTED;
            let mut tried = connection.clone();
            if !rested
                || within(
                    dial.timeout,
                    "asking the server whether it is there",
                    send(&mut tried, "", &dial.probe),
                )
                .await
                .is_ok()
            {
                *used = now;
                return Ok(tried);
            }
        }
        *kept = None;
        let connection = dial.connect().await?;
        *kept = Some((connection.clone(), now));
        Ok(connection)
    }

    /// Sends a command and waits for the answer.
    pub(super) async fn send(&self, dial: &Dial, doing: &'static str, command: &Cmd) -> Result<Value, Error> {
        let mut connection = self.live(dial).await?;
        let answer = within(dial.timeout, doing, send(&mut connection, doing, command)).await;
        self.forget_if_lost(answer).await
    }

    /// Sends the call of a script and waits for the answer.
    pub(super) async fn run(
        &self,
        dial: &Dial,
        doing: &'static str,
        script: &Lua,
        call: &Cmd,
    ) -> Result<Value, Error> {
        let mut connection = self.live(dial).await?;
        let answer = within(dial.timeout, doing, script.send(&mut connection, doing, call)).await;
        self.forget_if_lost(answer).await
    }

    /// Sends commands and waits for the answers. If one is refused, those before and after it may have been done.
    pub(super) async fn send_all(
        &self,
        dial: &Dial,
        doing: &'static str,
        all: &redis::Pipeline,
    ) -> Result<(), Error> {
        let mut connection = self.live(dial).await?;
        let sent = async {
            let answers = connection.send_packed_commands(all, 0, all.len()).await;
            let refused =
                |answers: Vec<Value>| answers.into_iter().try_for_each(|one| one.extract_error().map(drop));
            answers.and_then(refused).map(|()| Value::Nil).map_err(|error| failed(doing, error))
        };
        let answer = within(dial.timeout, doing, sent).await;
        self.forget_if_lost(answer).await.map(drop)
    }

    async fn forget_if_lost(&self, answer: Result<Value, Error>) -> Result<Value, Error> {
        if answer.as_ref().is_err_and(Error::is_disconnect) {
            *self.0.lock().await = None;
        }
        answer
    }
}

/// The answer, if it comes soon enough.
pub(super) async fn within<T>(
    limit: Duration,
    doing: &'static str,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::timeout(format!("{doing} failed: there was no answer within {limit:?}"))),
    }
}
