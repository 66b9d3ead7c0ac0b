//! Connections, each for one purpose, and what is sent over them.

use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, Script, Value};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::failure::failed;
use crate::error::{Error, ErrorKind};

/// How to reach the server.
pub(super) struct Dial {
    client: Client,
    /// For logs: without credentials.
    pub(super) target: String,
    /// How long connecting may take, and an answer to what nobody else watches over.
    timeout: Duration,
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dial").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Dial {
    pub(super) fn new(client: Client, target: String, timeout: Duration) -> Self {
        Self { client, target, timeout }
    }

    /// A new connection, which belongs to the runtime that awaits this. It is closed with its last clone.
    pub(super) async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(None);
        let made = self.client.get_multiplexed_async_connection_with_config(&config).await;
        made.map_err(|error| failed("connecting to the server", error))
    }
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

script!(EXCHANGE, "unique.lua" "exchange.lua");
script!(RENEW, "renew.lua");
script!(ENQUEUE, "unique.lua" "enqueue.lua");
script!(DUE, "unique.lua" "due.lua");
script!(SEARCH, "unique.lua" "search.lua");
script!(COUNT, "count.lua");
script!(CHANGE, "unique.lua" "change.lua");

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
            let ping = redis::cmd("PING");
            if !rested
                || within(dial, "asking the server whether it is there", send(&mut tried, "", &ping))
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
        let answer = within(dial, doing, send(&mut connection, doing, command)).await;
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
        let answer = within(dial, doing, script.send(&mut connection, doing, call)).await;
        self.forget_if_lost(answer).await
    }

    async fn forget_if_lost(&self, answer: Result<Value, Error>) -> Result<Value, Error> {
        if answer.as_ref().is_err_and(Error::is_disconnect) {
            *self.0.lock().await = None;
        }
        answer
    }
}

async fn within<T>(
    dial: &Dial,
    doing: &'static str,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(dial.timeout, answer).await {
        Ok(answer) => answer,
        Err(_) => {
            let context = format!("{doing} failed: the server did not answer within {:?}", dial.timeout);
            Err(Error::new(ErrorKind::Timeout, context))
        }
    }
}
