//! A scope on its own: bounded, reaps itself, contains panics, and cancels what is left.

use std::sync::Arc;
use std::time::Duration;

use tidegate::{BoxError, Panicked, Scope};
use tokio::time::Instant;

use crate::support::{Gate, Inside, Leftovers, panics, until, yield_often};

type Child = Result<(), std::io::Error>;

async fn forever(inside: Inside) -> Child {
    let _stay = inside.enter();
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_children_run_than_the_limit_at_every_instant() {
    let left = Leftovers::before();
    let inside = Inside::default();
    let scope = Scope::new(4);
    for _ in 0..5_000 {
        let inside = inside.clone();
        let child = async move {
            let stay = inside.enter();
            tokio::task::yield_now().await;
            drop(stay);
            Child::Ok(())
        };
        scope.spawn(child).await.expect("no child fails");
        assert!(scope.len() <= 6, "at most four and what is just ending on the two threads");
    }
    scope.join().await.expect("no child failed");
    assert_eq!((inside.entered(), inside.now()), (5_000, 0));
    assert!(inside.most() <= 4, "{} ran at once", inside.most());
    left.none().await;
}

#[tokio::test(start_paused = true)]
async fn spawning_waits_for_room_and_no_longer() {
    let scope = Scope::new(2);
    let began = Instant::now();
    for _ in 0..6 {
        let child = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Child::Ok(())
        };
        scope.spawn(child).await.expect("no child fails");
    }
    assert_eq!(began.elapsed().as_secs(), 2, "the fifth and sixth began when the third and fourth had ended");
    scope.join().await.expect("no child failed");
    assert_eq!(began.elapsed().as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_first_error_cancels_the_siblings_and_is_told() {
    let (inside, gate) = (Inside::default(), Gate::shut());
    let scope = Scope::new(10);
    for _ in 0..5 {
        scope.spawn(forever(inside.clone())).await.expect("there is room");
    }
    let passing = gate.clone();
    let failing = async move {
        passing.pass().await;
        Err::<(), _>(std::io::Error::other("disk full"))
    };
    scope.spawn(failing).await.expect("there is room");
    yield_often().await;
    assert_eq!(inside.now(), 5);
    gate.open();
    let sibling = scope.clone();
    let error = scope.join().await.expect_err("a child failed");
    assert_eq!((inside.now(), error.failed()), (0, 1));
    let shown = format!("{error}: {}", std::error::Error::source(&error).expect("there is a cause"));
    assert_eq!(shown, "a child failed: disk full");
    assert_eq!(error.into_first().to_string(), "disk full");
    assert!(sibling.spawn(async { Child::Ok(()) }).await.is_err(), "nothing starts after a failure");
}

#[tokio::test(start_paused = true)]
async fn a_childs_panic_is_contained_and_cancels_the_siblings() {
    let inside = Inside::default();
    let scope = Scope::new(10);
    scope.spawn(forever(inside.clone())).await.expect("there is room");
    let panicking = async {
        panics("a child's");
        Child::Ok(())
    };
    scope.spawn(panicking).await.expect("there is room");
    let error = scope.join().await.expect_err("a child panicked");
    assert_eq!((inside.now(), error.failed()), (0, 1));
    let first = error.into_first();
    assert_eq!(first.downcast_ref::<Panicked>().expect("it is a panic").message(), "a child's");
}

/// A payload that panics when it is dropped.
struct Explosive;

impl Drop for Explosive {
    fn drop(&mut self) {
        panic!("the payload of a panic");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_whose_payload_panics_too_is_contained_and_told() {
    let inside = Inside::default();
    let scope = Scope::new(10);
    scope.spawn(forever(inside.clone())).await.expect("there is room");
    let panicking = async {
        if inside_a_test() {
            std::panic::panic_any(Explosive);
        }
        Child::Ok(())
    };
    scope.spawn(panicking).await.expect("there is room");
    let joined =
        tokio::time::timeout(Duration::from_secs(5), scope.join()).await.expect("the siblings are cancelled");
    assert_eq!(joined.expect_err("a child panicked").failed(), 1);
    assert_eq!(inside.now(), 0);
}

fn inside_a_test() -> bool {
    true
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_clone_cancels_the_children() {
    let left = Leftovers::before();
    let inside = Inside::default();
    let scope = Scope::new(3);
    for _ in 0..3 {
        scope.spawn(forever(inside.clone())).await.expect("there is room");
    }
    yield_often().await;
    let clone = scope.clone();
    drop(scope);
    yield_often().await;
    assert_eq!((inside.now(), clone.len(), clone.is_empty()), (3, 3, false), "a clone keeps them");
    drop(clone);
    until("they are gone", || inside.now() == 0).await;
    left.none().await;
}

#[tokio::test(start_paused = true)]
async fn cancelling_waits_until_the_children_have_ended() {
    let inside = Inside::default();
    let scope = Scope::new(3);
    for _ in 0..3 {
        scope.spawn(forever(inside.clone())).await.expect("there is room");
    }
    yield_often().await;
    scope.cancel().await;
    assert_eq!(inside.now(), 0);
}

#[tokio::test(start_paused = true)]
async fn spawning_into_a_full_scope_ends_when_a_child_fails() {
    let (inside, gate) = (Inside::default(), Gate::shut());
    let scope = Scope::new(2);
    scope.spawn(forever(inside.clone())).await.expect("there is room");
    let passing = gate.clone();
    let failing = async move {
        passing.pass().await;
        Err::<(), BoxError>("broken".into())
    };
    scope.spawn(failing).await.expect("there is room");
    let waiting = scope.spawn(forever(inside.clone()));
    let (waited, ()) = tokio::join!(waiting, async {
        yield_often().await;
        gate.open();
    });
    assert_eq!(waited.expect_err("a child failed").into_first().to_string(), "broken");
    assert!(scope.join().await.is_err());
    assert_eq!((inside.entered(), inside.now()), (1, 0), "the one that waited was not started");
}

#[tokio::test(start_paused = true)]
async fn a_spawn_that_is_given_up_while_it_waits_starts_nothing_and_takes_no_room() {
    let (inside, gate) = (Inside::default(), Gate::shut());
    let scope = Scope::new(1);
    let passing = gate.clone();
    let first = async move {
        passing.pass().await;
        Child::Ok(())
    };
    scope.spawn(first).await.expect("there is room");
    assert!(
        tokio::time::timeout(Duration::from_secs(1), scope.spawn(forever(inside.clone()))).await.is_err()
    );
    gate.open();
    scope.spawn(async { Child::Ok(()) }).await.expect("there is room again");
    scope.join().await.expect("no child failed");
    assert_eq!(inside.entered(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_child_may_start_siblings() {
    let inside = Inside::default();
    let scope = Scope::new(8);
    let (sibling, counted) = (scope.clone(), inside.clone());
    let parent = async move {
        for _ in 0..5 {
            let counted = counted.clone();
            let child = async move {
                drop(counted.enter());
                Child::Ok(())
            };
            sibling.spawn(child).await.map_err(BoxError::from)?;
        }
        Ok::<(), BoxError>(())
    };
    scope.spawn(parent).await.expect("there is room");
    scope.join().await.expect("no child failed");
    assert_eq!(inside.entered(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_zero_is_one() {
    let inside = Inside::default();
    let scope = Scope::new(0);
    for _ in 0..3 {
        let inside = inside.clone();
        let child = async move {
            let _stay = inside.enter();
            tokio::task::yield_now().await;
            Child::Ok(())
        };
        scope.spawn(child).await.expect("there is room at last");
    }
    scope.join().await.expect("no child failed");
    assert_eq!(inside.most(), 1);
}

fn resident_kib() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("this is Linux");
    let pages: usize =
        statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4
}

/// P2: it runs for ever without growing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_children_leave_nothing_behind() {
    const CHILDREN: usize = 1_000_000;
    let kept = Arc::new(());
    let scope = Scope::new(64);
    let mut before = 0;
    for number in 0..CHILDREN {
        if number == CHILDREN / 10 {
            before = resident_kib();
        }
        let kept = kept.clone();
        let child = async move {
            drop(kept);
            Child::Ok(())
        };
        scope.spawn(child).await.expect("no child fails");
    }
    until("they have ended", || scope.is_empty()).await;
    let grown = resident_kib().saturating_sub(before);
    // A leak of a task each would be 900,000 of at least 100 bytes. Other tests run at the same time.
    assert!(grown < 64 * 1024, "it has grown by {grown} KiB");
    assert_eq!(Arc::strong_count(&kept), 1);
    scope.join().await.expect("no child failed");
}
