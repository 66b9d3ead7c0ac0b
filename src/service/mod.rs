//! What runs beside a worker for the life of the process, each on its own: so far [`Presence`].
//!
//! A service is awaited: it ends with the worker, or when its future is dropped.

mod presence;

pub use presence::Presence;
