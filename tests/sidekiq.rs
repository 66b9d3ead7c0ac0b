//! Tidegate beside real Sidekiq on one Redis: each runs what the other enqueues, each retries what the other has seen
//! fail, and Sidekiq's own API and pages see and steer a Tidegate worker.
//!
//! The Sidekiq of these tests writes times in seconds. Where both styles can be read, both are tried.

#[path = "peers/mod.rs"]
mod peers;
#[path = "redis/mod.rs"]
mod redis;

#[path = "sidekiq/failures.rs"]
mod failures;
#[path = "sidekiq/jobs.rs"]
mod jobs;
#[path = "sidekiq/lapses.rs"]
mod lapses;
#[path = "sidekiq/law.rs"]
mod law;
#[path = "sidekiq/malformed.rs"]
mod malformed;
#[path = "sidekiq/pages.rs"]
mod pages;
#[path = "sidekiq/prefix.rs"]
mod prefix;
#[path = "sidekiq/presence.rs"]
mod presence;
#[cfg(feature = "cli")]
#[path = "sidekiq/program.rs"]
mod program;
#[path = "sidekiq/scene.rs"]
mod scene;
#[path = "sidekiq/unique.rs"]
mod unique;
