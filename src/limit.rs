//! How many may run now, and from which queue first: [`Queues`] and the caps of kinds.
//!
//! Pure: chance is a number that is passed in.

use std::collections::HashMap;

use crate::error::Error;
use crate::job::{Kind, Queue};
use crate::retry::splitmix;

/// Which queues a worker serves, and in which order it looks into them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Queues {
    /// All that the source has, as the source orders them.
    #[default]
    All,
    /// Only these; a later one only when the earlier ones are empty.
    Strict(Vec<Queue>),
    /// Only these; each comes first as often as its weight says against the sum of the weights.
    Weighted(Vec<(Queue, u32)>),
}

impl Queues {
    /// Strict order: the first that is not empty.
    pub fn strict<Q: Into<Queue>>(queues: impl IntoIterator<Item = Q>) -> Self {
        Self::Strict(queues.into_iter().map(Into::into).collect())
    }

    /// By weight: `[("mail", 3), ("reports", 1)]` looks into `mail` first three times out of four.
    pub fn weighted<Q: Into<Queue>>(queues: impl IntoIterator<Item = (Q, u32)>) -> Self {
        Self::Weighted(queues.into_iter().map(|(queue, weight)| (queue.into(), weight)).collect())
    }

    /// The order for one fetch. `draw` decides between weighted queues: the same draw, the same order.
    pub(crate) fn order(&self, draw: u64, order: &mut Vec<Queue>) {
        match self {
            Self::All => order.clear(),
            Self::Strict(queues) => order.clone_from(queues),
            Self::Weighted(queues) => {
                order.clear();
                let mut left: Vec<&(Queue, u32)> = queues.iter().collect();
                let mut draw = draw;
                while !left.is_empty() {
                    let sum: u64 = left.iter().map(|(_, weight)| u64::from(*weight)).sum();
                    draw = splitmix(draw);
                    let mut ticket = draw % sum;
                    let drawn = left.iter().position(|(_, weight)| {
                        let hit = ticket < u64::from(*weight);
                        ticket = ticket.saturating_sub(u64::from(*weight));
                        hit
                    });
                    // A ticket below the sum always hits; should it not, the first is as good as any.
                    order.push(left.remove(drawn.unwrap_or(0)).0.clone());
                }
            }
        }
    }

    /// Checks that there is a queue, that none is named twice, and that no weight is 0.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let names: Vec<&Queue> = match self {
            Self::All => return Ok(()),
            Self::Strict(queues) => queues.iter().collect(),
            Self::Weighted(queues) => {
                if let Some((queue, _)) = queues.iter().find(|(_, weight)| *weight == 0) {
                    return Err(Error::invalid(format!(
                        "queue {queue:?} has weight 0: leave it out, or give it 1 or more"
                    )));
                }
                queues.iter().map(|(queue, _)| queue).collect()
            }
        };
        if names.is_empty() {
            return Err(Error::invalid(
                "the list of queues is empty: name one, or leave it out for all of them (Queues::All)",
            ));
        }
        match names.iter().enumerate().find(|(at, queue)| names[..*at].contains(queue)) {
            Some((_, twice)) => Err(Error::invalid(format!("queue {twice:?} is named twice"))),
            None => Ok(()),
        }
    }
}

/// The caps of the kinds that have one, and how many of each are in hand.
#[derive(Debug, Default)]
pub(crate) struct KindCaps {
    caps: HashMap<Kind, Cap>,
}

#[derive(Debug)]
struct Cap {
    limit: usize,
    taken: usize,
}

impl KindCaps {
    pub(crate) fn new(limits: impl IntoIterator<Item = (Kind, usize)>) -> Self {
        let caps = limits.into_iter().map(|(kind, limit)| (kind, Cap { limit, taken: 0 })).collect();
        Self { caps }
    }

    /// Counts one that is there already, room or not.
    pub(crate) fn count(&mut self, kind: &Kind) {
        if let Some(cap) = self.caps.get_mut(kind) {
            cap.taken += 1;
        }
    }

    /// Counts one more of `kind`, unless that is at its cap.
    pub(crate) fn take(&mut self, kind: &Kind) -> bool {
        if self.caps.is_empty() {
            return true;
        }
        match self.caps.get_mut(kind) {
            None => true,
            Some(cap) if cap.taken < cap.limit => {
                cap.taken += 1;
                true
            }
            Some(_) => false,
        }
    }

    /// Counts one less. Returns whether the kind was at its cap, so that a waiting fetch may now ask for more.
    pub(crate) fn put_back(&mut self, kind: &Kind) -> bool {
        if self.caps.is_empty() {
            return false;
        }
        let Some(cap) = self.caps.get_mut(kind) else { return false };
        let was_full = cap.taken >= cap.limit;
        cap.taken = cap.taken.saturating_sub(1);
        was_full
    }

    /// How many more of each capped kind a fetch may bring.
    pub(crate) fn quotas(&self, quotas: &mut Vec<(Kind, usize)>) {
        quotas.clear();
        quotas
            .extend(self.caps.iter().map(|(kind, cap)| (kind.clone(), cap.limit.saturating_sub(cap.taken))));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weighted() -> impl Strategy<Value = Vec<(Queue, u32)>> {
        proptest::collection::vec(prop_oneof![1u32..10, 1u32.., Just(u32::MAX)], 1..8).prop_map(|weights| {
            weights.into_iter().enumerate().map(|(at, weight)| (Queue::new(at.to_string()), weight)).collect()
        })
    }

    proptest! {
        #[test]
        fn an_order_names_every_queue_once_and_is_the_same_for_the_same_draw(
            queues in weighted(), draw in any::<u64>(),
        ) {
            let weighted = Queues::Weighted(queues.clone());
            prop_assert!(weighted.validate().is_ok());
            let (mut order, mut again) = (vec![Queue::new("of the fetch before")], Vec::new());
            weighted.order(draw, &mut order);
            weighted.order(draw, &mut again);
            prop_assert_eq!(&order, &again);
            order.sort();
            let mut names: Vec<Queue> = queues.into_iter().map(|(queue, _)| queue).collect();
            names.sort();
            prop_assert_eq!(order, names);
        }

        #[test]
        fn caps_are_kept_and_given_back(
            limits in proptest::collection::vec(1usize..4, 1..4),
            steps in proptest::collection::vec((any::<bool>(), 0usize..5), 0..80),
        ) {
            let kind = |at: usize| Kind::new(at.to_string());
            let mut caps = KindCaps::new(limits.iter().enumerate().map(|(at, limit)| (kind(at), *limit)));
            let mut taken = [0usize; 5];
            for (take, at) in steps {
                let limit = limits.get(at).copied();
                if take {
                    let room = limit.is_none_or(|limit| taken[at] < limit);
                    prop_assert_eq!(caps.take(&kind(at)), room);
                    taken[at] += usize::from(room);
                } else if taken[at] > 0 {
                    let was_full = limit.is_some_and(|limit| taken[at] == limit);
                    prop_assert_eq!(caps.put_back(&kind(at)), was_full);
                    taken[at] -= 1;
                }
                let mut quotas = vec![(Kind::new("of the fetch before"), 9)];
                caps.quotas(&mut quotas);
                quotas.sort();
                let expected: Vec<(Kind, usize)> =
                    limits.iter().enumerate().map(|(at, limit)| (kind(at), limit - taken[at])).collect();
                prop_assert_eq!(quotas, expected);
            }
        }
    }

    #[test]
    fn each_queue_comes_first_as_often_as_its_weight_says() {
        let queues = Queues::weighted([("mail", 3), ("reports", 1)]);
        let (mut order, mut draw, mut mail) = (Vec::new(), 42, 0);
        for _ in 0..10_000 {
            draw = splitmix(draw);
            queues.order(draw, &mut order);
            mail += usize::from(order[0].as_str() == "mail");
        }
        assert!((7300..7700).contains(&mail), "mail came first {mail} times out of 10,000");
    }

    #[test]
    fn a_strict_order_is_always_the_same_and_all_means_none_is_named() {
        let mut order = Vec::new();
        for draw in 0..100 {
            Queues::strict(["high", "low"]).order(draw, &mut order);
            assert_eq!(order, [Queue::new("high"), Queue::new("low")]);
        }
        Queues::All.order(1, &mut order);
        assert!(order.is_empty());
    }

    #[test]
    fn without_caps_everything_is_taken_and_nothing_is_asked_for() {
        let mut caps = KindCaps::new([]);
        let mut quotas = Vec::new();
        assert!((0..100).all(|_| caps.take(&Kind::new("any"))));
        assert!(!caps.put_back(&Kind::new("any")));
        caps.quotas(&mut quotas);
        assert!(quotas.is_empty());
    }
}
