//! The heartbeat's session: it renews leases, on a connection of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use super::Shared;
use super::exchange::{MOST, array, int, millis};
use super::failure::nonsense;
use super::link::RENEW;
use crate::error::Error;
use crate::job::Tag;
use crate::lease::{Renew, Renewal};

const DOING: &str = "renewing leases";

/// One session of a heartbeat.
pub(super) struct Renewer {
    shared: Arc<Shared>,
    connection: MultiplexedConnection,
}

impl Renewer {
    pub(super) async fn connect(shared: Arc<Shared>) -> Result<Self, Error> {
        shared.renewal_waits.store(true, Ordering::Relaxed);
        let connection = shared.dial.connect().await?;
        shared.renewal_waits.store(false, Ordering::Relaxed);
        Ok(Self { shared, connection })
    }

    async fn renew_part(&self, tags: &[Tag]) -> Result<Vec<Renewal>, Error> {
        let sent_at = Instant::now();
        self.shared.renewal_waits.store(true, Ordering::Relaxed);
        let keys = &self.shared.keys;
        let mut call = RENEW.call(&[&keys.leases, &keys.cancelled, &keys.seen, &keys.lenient]);
        let terms = &self.shared.terms;
        call.arg(millis(terms.lease_ttl)).arg(if terms.doubt.is_zero() { "" } else { "1" });
        for tag in tags {
            // A tag that is not in hand gets a token that nobody has.
            let known = self.shared.hands.get(*tag).is_some();
            call.arg(if known { tag.token } else { 0 });
        }
        let mut connection = self.connection.clone();
        let answer = RENEW.send(&mut connection, DOING, &call).await?;
        let answers = array(answer).filter(|answers| answers.len() == tags.len());
        let answers = answers.ok_or_else(|| nonsense(DOING))?;
        self.shared.renewal_waits.store(false, Ordering::Relaxed);
        tags.iter().zip(answers).map(|(tag, answer)| self.renewed(*tag, int(&answer), sent_at)).collect()
    }

    fn renewed(&self, tag: Tag, answer: Option<i64>, sent_at: Instant) -> Result<Renewal, Error> {
        let renewal = match answer {
            Some(0) => Renewal::Lost,
            Some(1) => Renewal::Kept,
            Some(2) => Renewal::CancelRequested,
            _ => return Err(nonsense(DOING)),
        };
        let (hands, terms) = (&self.shared.hands, &self.shared.terms);
        match renewal {
            // Nobody will settle it.
            Renewal::Lost => hands.remove([tag].into_iter()),
            _ => hands.renewed(tag, terms.overdue_at(sent_at), terms.held_until(sent_at)),
        }
        Ok(renewal)
    }
}

#[async_trait]
impl Renew for Renewer {
    async fn renew(&self, tags: &[Tag]) -> Result<Vec<Renewal>, Error> {
        let mut renewals = Vec::with_capacity(tags.len());
        for part in tags.chunks(MOST) {
            renewals.extend(self.renew_part(part).await?);
        }
        Ok(renewals)
    }
}
