//! What comes first: queues, priorities, order, quotas.

use std::time::Duration;

use tidegate::{FetchRequest, Kind, NewJob};

use crate::fixture::{Fixture, at_once, job, needs, of_queues, secs, text, texts};

fn with_quotas(mut wanted: FetchRequest, quotas: &[(&str, usize)]) -> FetchRequest {
    wanted.quotas = quotas.iter().map(|(kind, most)| (Kind::new(kind), *most)).collect();
    wanted
}

pub(crate) async fn jobs_come_in_the_order_in_which_they_were_enqueued(f: Fixture) {
    needs!(f, order);
    f.push_all(&["1", "2", "3"]).await;
    f.producer.enqueue(vec![job("4"), job("5")]).await.expect("enqueued");
    let mut got = texts(&f.take(2).await);
    got.extend(texts(&f.take(9).await));
    assert_eq!(got, ["1", "2", "3", "4", "5"]);
}

pub(crate) async fn a_greater_priority_comes_first_within_its_queue(f: Fixture) {
    needs!(f, priorities);
    needs!(f, order);
    for (payload, priority) in
        [("low", -5), ("a", 0), ("top", i16::MAX), ("b", 0), ("bottom", i16::MIN), ("high", 7)]
    {
        f.push(job(payload).priority(priority)).await;
    }
    assert_eq!(texts(&f.take(9).await), ["top", "high", "a", "b", "low", "bottom"]);
}

pub(crate) async fn queues_are_emptied_in_the_order_of_the_request(f: Fixture) {
    f.push(job("slow 1").queue("slow")).await;
    f.push(job("fast 1").queue("fast")).await;
    f.push(job("slow 2").queue("slow")).await;
    f.push(job("fast 2").queue("fast")).await;
    if f.has.priorities {
        f.push(job("slow 0").queue("slow").priority(100)).await;
    }
    let got = f.fetch(&of_queues(at_once(3), &["fast", "none such", "slow"])).await;
    let queues: Vec<&str> = got.iter().map(|delivery| delivery.job.queue.as_str()).collect();
    assert_eq!(queues, ["fast", "fast", "slow"]);
    if f.has.priorities {
        assert_eq!(text(&got[2]), "slow 0");
    }
}

pub(crate) async fn only_the_queues_asked_for_are_touched(f: Fixture) {
    f.push(job("mine").queue("mine")).await;
    f.push(job("other").queue("other")).await;
    f.push(job("default")).await;
    assert_eq!(texts(&f.fetch(&of_queues(at_once(9), &["mine"])).await), ["mine"]);
    assert!(f.fetch(&of_queues(at_once(9), &["mine"])).await.is_empty());
    assert_eq!(texts(&f.fetch(&of_queues(at_once(9), &["default", "default"])).await), ["default"]);
    assert_eq!(texts(&f.take(9).await), ["other"]);
}

pub(crate) async fn without_queues_the_best_job_of_all_comes_first(f: Fixture) {
    needs!(f, priorities);
    needs!(f, order);
    for (payload, queue, priority) in
        [("3", "x", 0), ("4", "y", 0), ("1", "z", 2), ("2", "y", 1), ("5", "x", 0)]
    {
        f.push(job(payload).queue(queue).priority(priority)).await;
    }
    assert_eq!(texts(&f.take(9).await), ["1", "2", "3", "4", "5"]);
}

pub(crate) async fn no_more_of_a_kind_come_than_its_quota(f: Fixture) {
    needs!(f, quotas);
    for kind in ["mail", "mail", "mail", "image", "none", "image"] {
        f.push(NewJob::new(kind, kind)).await;
    }
    let wanted = with_quotas(at_once(9), &[("mail", 2), ("none", 0), ("image", 5), ("unknown", 1)]);
    let mut got = texts(&f.fetch(&wanted).await);
    got.sort();
    assert_eq!(got, ["image", "image", "mail", "mail"]);
    got = texts(&f.take(9).await);
    got.sort();
    assert_eq!(got, ["mail", "none"]);
}

pub(crate) async fn a_kind_that_is_full_holds_up_no_other(f: Fixture) {
    needs!(f, quotas);
    for number in 0..50 {
        f.push(NewJob::new("slow", format!("slow {number}"))).await;
    }
    f.push(NewJob::new("fast", "fast")).await;
    let got = f.fetch(&with_quotas(at_once(3), &[("slow", 1)])).await;
    assert_eq!(texts(&got), ["slow 0", "fast"]);
}

pub(crate) async fn a_quota_goes_over_all_queues(f: Fixture) {
    needs!(f, quotas);
    for queue in ["a", "b", "c"] {
        f.push(NewJob::new("kind", queue).queue(queue)).await;
    }
    let wanted = with_quotas(of_queues(at_once(9), &["c", "a", "b"]), &[("kind", 2)]);
    assert_eq!(texts(&f.fetch(&wanted).await), ["c", "a"]);
}

pub(crate) async fn a_retried_job_goes_to_the_back(f: Fixture) {
    needs!(f, order);
    f.push_all(&["1", "2", "3"]).await;
    let first = f.take(1).await;
    f.retry(&first[0], Duration::ZERO).await;
    assert_eq!(texts(&f.take(9).await), ["2", "3", "1"]);
}

pub(crate) async fn a_released_job_goes_to_the_front(f: Fixture) {
    needs!(f, order);
    f.push_all(&["1", "2", "3", "4"]).await;
    let held = f.take(3).await;
    // Where each goes before all others, the last to come back is the first to go.
    for at in if f.has.places { [1, 0, 2] } else { [2, 1, 0] } {
        f.release(&held[at], Duration::ZERO).await;
    }
    assert_eq!(texts(&f.take(9).await), ["1", "2", "3", "4"]);
}

pub(crate) async fn delayed_jobs_come_in_the_order_of_their_times(f: Fixture) {
    needs!(f, delayed);
    needs!(f, places);
    for (payload, after) in [("3", 9), ("1", 3), ("2", 6)] {
        f.push(job(payload).delay(secs(after))).await;
    }
    f.pass(secs(7)).await;
    f.push(job("between")).await;
    f.pass(secs(7)).await;
    assert_eq!(texts(&f.take(9).await), ["1", "2", "between", "3"]);
}

pub(crate) async fn delayed_jobs_that_became_due_unseen_come_in_the_order_of_their_times(f: Fixture) {
    needs!(f, delayed);
    needs!(f, order);
    // Each in a whole second of its own, for those that know no parts of one.
    for (payload, after) in [("3", 13), ("1", 3), ("2", 8)] {
        f.push(job(payload).delay(secs(after))).await;
    }
    f.pass(secs(20)).await;
    assert_eq!(texts(&f.take(9).await), ["1", "2", "3"]);
}
