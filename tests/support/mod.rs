//! What tests share: sources of a test's own, sources that wrap sources, and ways to see that nothing is
//! left behind.
//!
//! | to have | take |
//! |---|---|
//! | jobs, with or without leases | [`Feed`] |
//! | what passed, and how much was held at every instant | [`Recording`] |
//! | settlements that take their time | [`SlowToSettle`] |
//! | errors by script | [`Flaky`] |
//! | calls that are never answered | [`Hanging`] |
//! | settlements that come too late | [`Forgetful`] |
//! | renewals by script | [`Renewer`] |
//! | sessions that are made and lost | [`Maker`] |
//! | a door, a count of who is inside, a condition that comes true | [`Gate`], [`Inside`], [`until`] |
//! | a worker that runs while something else happens | [`during`] |
//! | nothing left | [`Leftovers`] |
//!
//! No wrapper sleeps; those that take a time wait on tokio's clock, which a test may pause.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part of it")]

mod feed;
mod leftovers;
mod maker;
mod recording;
mod rig;
mod signals;
mod wrappers;

pub(crate) use feed::{Dead, Feed};
pub(crate) use leftovers::{Leftovers, cpu_time_of_thread, threads_named};
pub(crate) use maker::Maker;
pub(crate) use recording::{Recording, Told};
pub(crate) use rig::{
    KIND, brief, during, gated, job, job_with, jobs, number, panics, patience, phase_of, registry_of,
    unique_name, until_phase, wall_clock,
};
pub(crate) use signals::{Dice, Gate, Inside, until, yield_often};
pub(crate) use wrappers::{Answer, Flaky, Forgetful, Fusing, Hanging, Renewer, SlowToSettle};

/// Runs each test under both dispatchers: `shared` on a paused clock, `own_thread` on real threads.
macro_rules! under_both {
    ($($tests:tt)*) => { $crate::support::each_under_both! { start_paused = true; $($tests)* } };
}
pub(crate) use under_both;

/// The same without pausing any clock, for handlers that block: the paused clock of one runtime jumps ahead
/// while another one's threads are busy.
macro_rules! under_both_in_real_time {
    ($($tests:tt)*) => { $crate::support::each_under_both! { start_paused = false; $($tests)* } };
}
pub(crate) use under_both_in_real_time;

macro_rules! each_under_both {
    (start_paused = $paused:literal; $($(#[$meta:meta])* async fn $name:ident($dispatcher:ident) $body:block)*) => {$(
        mod $name {
            #[allow(unused_imports, reason = "a test may need nothing of its module")]
            use super::*;

            async fn body($dispatcher: tidegate::Dispatcher) $body

            $(#[$meta])*
            #[tokio::test(start_paused = $paused)]
            async fn shared() {
                body(tidegate::Dispatcher::Shared).await;
            }

            $(#[$meta])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn own_thread() {
                body(tidegate::Dispatcher::OwnThread).await;
            }
        }
    )*};
}
pub(crate) use each_under_both;
