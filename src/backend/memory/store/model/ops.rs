//! Random operations, with few enough names that they meet.

use std::time::Duration;

use proptest::prelude::*;

use super::super::tests::secs;
use crate::enqueue::{Clash, NewJob, Unique, Window};
use crate::job::{Kind, Queue};
use crate::source::{FetchRequest, Settlement};

#[derive(Clone, Debug)]
pub(super) enum Op {
    Enqueue(Vec<NewJob>),
    Fetch(FetchRequest),
    /// Which of all hand-overs so far, counted from the last, and how; so old tags are settled too.
    Settle(Vec<(usize, Settlement)>),
    Renew(Vec<usize>),
    Reclaim(usize),
    Pass(u64),
    Cancel(usize),
    Requeue(usize),
    Delete(usize),
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec!["a", "b", "c"]).prop_map(Kind::new)
}

fn queue() -> impl Strategy<Value = Queue> {
    prop::sample::select(vec!["x", "y"]).prop_map(Queue::new)
}

fn unique() -> impl Strategy<Value = Unique> {
    let windows = prop_oneof![
        3 => Just(Window::WhileQueued),
        3 => Just(Window::UntilDone),
        2 => (0..8u64).prop_map(|time| Window::For(secs(time))),
    ];
    let clashes = prop_oneof![Just(Clash::KeepFirst), Just(Clash::ReplacePayload)];
    (prop::sample::select(vec!["k", "l"]), windows, clashes).prop_map(|(key, window, clash)| Unique {
        window,
        clash,
        ..Unique::while_queued(key)
    })
}

fn new_job() -> impl Strategy<Value = NewJob> {
    let start = prop_oneof![3 => Just(0u64), 1 => 1..6u64];
    let many = prop_oneof![3 => Just(None), 1 => (1..4u32).prop_map(Some)];
    (kind(), queue(), -1..2i16, start, many, prop::option::weighted(0.6, unique()), any::<u8>()).prop_map(
        |(kind, queue, priority, delay, max_attempts, unique, payload)| {
            let mut job = NewJob::new(kind, vec![payload]).queue(queue).priority(priority).delay(secs(delay));
            (job.max_attempts, job.unique) = (max_attempts, unique);
            job
        },
    )
}

fn request() -> impl Strategy<Value = FetchRequest> {
    let quotas = prop::collection::vec((kind(), 0..3usize), 0..3);
    (1..6usize, prop::collection::vec(queue(), 0..3), quotas).prop_map(|(max, queues, quotas)| {
        let mut wanted = FetchRequest::new(max.try_into().expect("not zero"), Duration::ZERO);
        (wanted.queues, wanted.quotas) = (queues, quotas);
        wanted
    })
}

fn settlement() -> impl Strategy<Value = Settlement> {
    let after = || prop_oneof![Just(0u64), 1..4u64].prop_map(secs);
    prop_oneof![
        2 => Just(Settlement::Ack),
        2 => after().prop_map(|after| Settlement::Retry { after }),
        1 => Just(Settlement::Reject),
        2 => after().prop_map(|after| Settlement::Release { after }),
    ]
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => prop::collection::vec(new_job(), 1..4).prop_map(Op::Enqueue),
        6 => request().prop_map(Op::Fetch),
        6 => prop::collection::vec((0..8usize, settlement()), 1..4).prop_map(Op::Settle),
        2 => prop::collection::vec(0..6usize, 1..4).prop_map(Op::Renew),
        1 => (0..3usize).prop_map(Op::Reclaim),
        4 => (0..4u64).prop_map(Op::Pass),
        1 => (0..10usize).prop_map(Op::Cancel),
        2 => (0..10usize).prop_map(Op::Requeue),
        1 => (0..10usize).prop_map(Op::Delete),
    ]
}
