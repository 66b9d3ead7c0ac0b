//! What goes in comes out: payloads are bytes and names are text, whatever is in them.

use std::time::{Duration, SystemTime};

use tidegate::{JobState, Kind, NewJob, Queue};

use crate::fixture::{Fixture, needs, secs};

/// Wants the payload to come back byte for byte.
async fn assert_comes_back(f: &Fixture, payload: Vec<u8>) {
    f.push(NewJob::new("kind", payload.clone())).await;
    let delivery = f.one().await;
    assert!(delivery.job.payload == payload, "{} bytes came back as others", payload.len());
    f.ack(&delivery).await;
}

pub(crate) async fn any_bytes_come_back_as_they_were(f: Fixture) {
    let all: Vec<u8> = (0..=255).collect();
    assert_comes_back(&f, all.clone()).await;
    assert_comes_back(&f, all.into_iter().rev().collect()).await;
    for bytes in [
        &b"\0"[..],
        b"\r\n",
        b"\xff\xfe",
        b"{\"json\": true}",
        b"'; DROP TABLE jobs; --",
        "\u{1F980}".as_bytes(),
    ] {
        assert_comes_back(&f, bytes.to_vec()).await;
    }
    f.finish().await;
}

pub(crate) async fn no_bytes_come_back_as_none(f: Fixture) {
    assert_comes_back(&f, Vec::new()).await;
    f.finish().await;
}

pub(crate) async fn a_mebibyte_comes_back_whole(f: Fixture) {
    assert_comes_back(&f, (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect())
        .await;
    f.finish().await;
}

pub(crate) async fn names_of_any_text_come_back_as_they_were(f: Fixture) {
    let long = "n".repeat(200);
    for name in ["Mail::Deliver", "größe", "a b", "quote'\"", "per%cent_", "new\nline", "\u{1F980}", &long]
    {
        let (kind, queue) = (Kind::new(name), Queue::new(name));
        f.push(NewJob::new(&kind, "").queue(&queue)).await;
        let delivery = f.one().await;
        assert_eq!((&delivery.job.kind, &delivery.job.queue), (&kind, &queue));
        f.ack(&delivery).await;
    }
    f.finish().await;
}

pub(crate) async fn what_was_said_of_a_job_comes_back_with_it(f: Fixture) {
    needs!(f, attributes);
    let new =
        NewJob::new("kind", "payload").queue("queue").max_attempts(7).timeout(Duration::from_millis(1500));
    let new = if f.has.priorities { new.priority(-3) } else { new };
    let priority = new.priority;
    let id = f.push(new).await;
    let delivery = f.one().await;
    let job = &delivery.job;
    assert_eq!((&job.id, job.kind.as_str(), job.queue.as_str()), (&id, "kind", "queue"));
    assert_eq!(
        (job.priority, job.max_attempts, job.timeout),
        (priority, Some(7), Some(Duration::from_millis(1500)))
    );
    let off = SystemTime::UNIX_EPOCH
        .elapsed()
        .expect("after 1970")
        .abs_diff(job.enqueued_at.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970"));
    assert!(off < secs(60), "enqueued {off:?} off");
    f.ack(&delivery).await;
    f.finish().await;
}

pub(crate) async fn bytes_survive_a_retry_and_the_dead_letters(f: Fixture) {
    needs!(f, verb inspect);
    let payload: Vec<u8> = (0..=255).collect();
    let id = f.push(NewJob::new("kind", payload.clone())).await;
    f.retry(&f.one().await, Duration::ZERO).await;
    let again = f.one().await;
    assert!(again.job.payload == payload);
    f.reject(&again).await;
    assert!(f.find(&id).await.expect("kept").job.payload == payload);
    assert!(f.list(JobState::Dead, 1).await[0].job.payload == payload);
    f.finish().await;
}
