//! The statements by which others enqueue and complete jobs in transactions of their own.
//!
//! Only texts: what they do is in the file itself (`schema/doors.sql`), so that any program can say them, in any
//! language and with any driver.

/// Enqueues a job within a transaction of yours, on a connection of yours to the file. It is there if that commits.
///
/// It does what [`Enqueue`](crate::Enqueue) does, by the same rules. Any of the columns but `kind` may be left out or
/// null:
///
/// | | column | what it takes | left out |
/// |---|---|---|---|
/// | `?1` | `kind` | text | refused |
/// | `?2` | `payload` | blob or text (its bytes, in UTF-8) | empty |
/// | `?3` | `queue` | text | `default` |
/// | `?4` | `priority` | whole number, -32,768 to 32,767 | 0 |
/// | `?5` | `run_at` | number: seconds since 1970, with a fraction if you like; in the past means at once | at once |
/// | `?6` | `max_attempts` | whole number from 1 | as the worker's policy says |
/// | `?7` | `timeout_ms` | whole number of milliseconds | as the kind's or the worker's setting says |
/// | `?8` | `unique_key` | text | none |
/// | `?9` | `unique_window` | `'while_queued'`, `'until_done'`, or a whole number of milliseconds | `while_queued` |
/// | `?10` | `on_clash` | `'keep_first'`, `'replace_payload'` | `keep_first` |
///
/// What makes no sense fails with a message that begins with `tidegate:`, and adds nothing; your transaction goes on.
/// [`ENQUEUED_SQL`] says what became of it.
///
/// The times are those of the system's clock, to the millisecond.
pub const ENQUEUE_SQL: &str = "INSERT INTO tidegate_enqueue
    (kind, payload, queue, priority, run_at, max_attempts, timeout_ms, unique_key, unique_window, on_clash)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";

/// What became of the last [`ENQUEUE_SQL`], asked in the same transaction: one row of the job's id, a whole number
/// whose text is its [`JobId`](crate::JobId), and a text: `created`; `duplicate` if the job with this id had the unique
/// key, and nothing was added; `replaced` if that job has got the new payload.
///
/// A job that is created or replaced with `replace_payload` supersedes what is older, as it does with
/// [`Clash::ReplacePayload`](crate::Clash::ReplacePayload).
pub const ENQUEUED_SQL: &str = "SELECT job, answer FROM tidegate_enqueued";

/// Completes a job within a transaction of yours: what the job did there and that it is done become true together.
///
/// `?1` is the `key` and `?2` the `token` of [`Context::tag`](crate::Context::tag), as whole numbers. Once the
/// transaction has been committed, the job is done: it is never run again, whatever the handler then returns, and
/// though its worker dies before it can say so. Its unique key is free, unless that holds for a period, so that the
/// same transaction can enqueue its successor.
///
/// It fails, and **rolls the whole transaction back**, if the job is not with this worker any more (its lease ran out,
/// or it was settled) or has been completed before. So of two workers that both believe to have the job only one
/// commits. The handler should then fail, which changes nothing.
///
/// Until the worker has settled it the job is counted as leased.
pub const COMPLETE_SQL: &str = "INSERT INTO tidegate_complete (job, token) VALUES (?1, ?2)";
