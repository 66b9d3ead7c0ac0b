//! What runs beside a worker for the life of the process, each on its own: so far [`Presence`] and
//! [`Rescheduler`].
//!
//! A service is awaited: it ends with the worker, or when its future is dropped.

mod presence;
mod rescheduler;

pub use presence::Presence;
pub use rescheduler::Rescheduler;
