//! What a backend can't do, and what makes no sense, is refused in words.

use tidegate::{Error, ErrorKind, JobQuery, JobState, NewJob, Unique};

use crate::fixture::{Fixture, job, secs};

/// Wants an error of that kind whose text has the word in it.
fn assert_refused<T>(answer: Result<T, Error>, kind: ErrorKind, word: &str) {
    let Err(error) = answer else { panic!("nothing was refused, though {word:?} should be") };
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(error.to_string().contains(word), "{error} does not name {word:?}");
}

pub(crate) async fn what_makes_no_sense_is_refused_and_nothing_is_added(f: Fixture) {
    for (bad, word) in [
        (NewJob::new("", "x"), "kind"),
        (job("x").queue(""), "queue"),
        (job("x").max_attempts(0), "max_attempts"),
    ] {
        let batch = vec![job("good"), bad, job("good")];
        assert_refused(f.producer.enqueue(batch).await, ErrorKind::InvalidInput, word);
    }
    f.finish().await;
}

pub(crate) async fn options_that_are_missing_are_refused_by_name(f: Fixture) {
    for (has, asks, word) in [
        (f.has.delayed, job("x").delay(secs(5)), "delay"),
        (f.has.priorities, job("x").priority(1), "priorit"),
        (f.has.attributes, job("x").max_attempts(3), "max_attempts"),
        (f.has.attributes, job("x").timeout(secs(5)), "timeout"),
        (f.has.unique, job("x").unique(Unique::until_done("key")), "unique"),
    ] {
        let answer = f.producer.enqueue(vec![job("good"), asks]).await;
        match has {
            true => assert_eq!(answer.expect("it has that").len(), 2),
            false => assert_refused(answer, ErrorKind::Unsupported, word),
        }
    }
}

pub(crate) async fn verbs_that_are_missing_are_refused_by_name(f: Fixture) {
    let backend = &f.backend;
    if backend.enqueue.is_none() {
        assert_refused(backend.enqueue(), ErrorKind::Unsupported, "enqueue");
    }
    if backend.reclaim.is_none() {
        assert_refused(backend.reclaim(), ErrorKind::Unsupported, "reclaim");
    }
    if backend.inspect.is_none() {
        assert_refused(backend.inspect(), ErrorKind::Unsupported, "inspect");
    }
    if backend.manage.is_none() {
        assert_refused(backend.manage(), ErrorKind::Unsupported, "manage");
        assert_refused(backend.manage(), ErrorKind::Unsupported, backend.name);
    }
    assert_eq!(f.has.leases, f.renewer.is_some(), "who has leases has a renewer, and who has none has not");
}

/// Nor is any finished job kept by who was not told to.
pub(crate) async fn a_history_that_is_missing_is_refused_by_name(f: Fixture) {
    let id = f.push(job("a")).await;
    f.ack(&f.one().await).await;
    if let Some(inspect) = &f.backend.inspect {
        assert!(inspect.list(&JobQuery::new(JobState::Done, 9)).await.expect("asked").is_empty());
        assert_eq!(inspect.counts().await.expect("counted").kept, 0);
        if !f.has.history {
            assert_refused(inspect.history(&id).await, ErrorKind::Unsupported, "attempts");
        }
    }
    f.finish().await;
}
