//! Sentinels put a replica in the master's place, in order and after the master was killed.

use crate::books::{Books, size};
use crate::crew::{crew, dismiss, drained, open, processed, settled_once, until, until_ran};
use crate::redis::Sentinels;

/// The URL of a group.
pub(crate) fn url(group: &Sentinels) -> String {
    let ports: Vec<String> = group.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("redis+sentinel://{}/{}/0", ports.join(","), group.name())
}

/// How many jobs may be run before a replica has heard of it, or the books have.
const LAG: usize = 1_000;

/// Redis acknowledges before its replicas have it: what the last moments before a failover brought is undone by it, so
/// that jobs of these run again. None is lost, since each was in the queue when the replicas were in step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_a_replica_takes_the_masters_place() {
    let (jobs, failovers) = size((10_000, 2), (34_000, 3));
    let Some(mut group) = tokio::task::block_in_place(|| Sentinels::start(2)) else { return };
    let (store, books) = (open(&url(&group)), Books::default());
    let crew = crew(&url(&group), &books);
    let mut undone = Vec::new();
    for number in 0..failovers {
        crew.iter().for_each(|worker| worker.handle.quiet());
        books.enqueue(&store, number * jobs..(number + 1) * jobs).await;
        let master = group.master().expect("there is one");
        let in_step = group.servers[master].command(&["WAIT", "2", "10000"]).number();
        assert_eq!(
            (in_step, books.balance().accepted),
            (2, ((number + 1) * jobs) as usize),
            "all have all jobs"
        );
        let before = books.runs();
        crew.iter().for_each(|worker| worker.handle.resume());
        until_ran(&books, before + jobs as usize / 4).await;
        assert!(books.balance().lost > 0, "all was done before the failover: this shows nothing");
        // How far a replica is behind on a machine that is busy with other things; it only comes nearer.
        let settled = |place: usize| processed(&group.servers[place]);
        let behind = (0..3).map(settled).min().expect("there are three");
        let lag = usize::try_from(settled(master) - behind).unwrap_or(0);
        let from = books.runs().saturating_sub(LAG + lag);
        tokio::task::block_in_place(|| {
            let before = group.master().expect("there is one");
            if number % 2 == 0 {
                group.failover();
            } else {
                group.servers[before].kill();
                group.new_master(before);
                group.servers[before].restart();
            }
            // Until it is told so, the old master takes what workers say, for nobody.
            crate::redis::until("the old master follows the new", || {
                group.servers[before].info("role").as_deref() == Some("slave")
                    && group.servers[before].info("master_link_status").as_deref() == Some("up")
            });
        });
        undone.push(from..books.runs() + LAG);
        drained(&store).await;
    }
    dismiss(crew).await;
    let master = group.master().expect("there is one");
    settled_once(&group.servers[master], &books, "failovers");
    println!("in failovers, these runs could be undone: {undone:?}");
    assert_eq!(books.unexplained_beyond(&undone), 0, "beside leases that ran out, and what a failover undid");
    until("the old masters have no workers left", async || {
        let others = (0..3).filter(|place| *place != master);
        others.into_iter().all(|place| {
            let clients = group.servers[place].clients();
            clients.iter().all(|client| !client.contains("cmd=evalsha") && !client.contains("cmd=blmove"))
        })
    })
    .await;
}
