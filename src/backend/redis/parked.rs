//! A job that waits for a time in a sorted set of ours, where its layout has nothing for that: with what its own bytes do
//! not say. Decoded without a panic, whatever stands there.

use std::sync::Arc;

use bytes::Bytes;

use crate::job::Queue;

/// Such a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parked {
    /// Tells it from another of the same bytes.
    pub(super) token: u64,
    /// How many of its attempts have failed, if that is not counted elsewhere.
    pub(super) attempts: u32,
    pub(super) queue: Queue,
    /// Why the last one did.
    pub(super) reason: Arc<str>,
    /// As it stood in its queue.
    pub(super) raw: Bytes,
}

impl Parked {
    /// `TOKEN:ATTEMPTS:LENGTH OF THE QUEUE:LENGTH OF THE REASON:`, then queue, reason and bytes.
    pub(super) fn write(&self) -> Vec<u8> {
        let Self { token, attempts, queue, reason, raw } = self;
        let (queue, reason) = (queue.as_str(), &**reason);
        let mut out =
            format!("{token}:{attempts}:{}:{}:{queue}{reason}", queue.len(), reason.len()).into_bytes();
        out.extend_from_slice(raw);
        out
    }

    pub(super) fn read(member: &Bytes) -> Option<Self> {
        let mut at = 0;
        let mut number = || {
            let length = member[at..].iter().position(|byte| *byte == b':')?;
            let digits = std::str::from_utf8(&member[at..at + length]).ok()?;
            at += length + 1;
            digits.parse::<u64>().ok()
        };
        let (token, attempts, queue, reason) = (number()?, number()?, number()?, number()?);
        let reason_at = at.checked_add(usize::try_from(queue).ok()?)?;
        let raw_at = reason_at.checked_add(usize::try_from(reason).ok()?)?;
        let queue = Queue::new(String::from_utf8_lossy(member.get(at..reason_at)?));
        let reason = Arc::from(String::from_utf8_lossy(member.get(reason_at..raw_at)?));
        let attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
        Some(Self { token, attempts, queue, reason, raw: member.slice(raw_at..) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_job_that_waits_is_read_as_it_was_written(
            token: u64, attempts: u32, queue in "\\PC{0,20}|1:2:", reason in "\\PC{0,20}|:3", raw: Vec<u8>,
        ) {
            let parked = Parked { token, attempts, queue: Queue::new(queue), reason: reason.into(), raw: raw.into() };
            proptest::prop_assert_eq!(Parked::read(&Bytes::from(parked.write())), Some(parked));
        }

        #[test]
        fn what_somebody_else_put_there_is_none_of_ours_and_harms_nothing(bytes: Vec<u8>, text in "[0-9:]{0,40}") {
            let _ = Parked::read(&Bytes::from(bytes));
            let _ = Parked::read(&Bytes::from(text));
            proptest::prop_assert_eq!(Parked::read(&Bytes::from_static(b"1:1:9:18446744073709551615:")), None);
        }
    }
}
