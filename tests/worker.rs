//! The worker as its user sees it: what it promises, one file a topic.

mod support;

mod worker {
    mod blocking;
    mod bound;
    mod changes;
    mod containment;
    mod context;
    mod ending;
    mod full;
    mod fused;
    mod handle;
    mod kinds;
    mod layers;
    mod leases;
    mod metrics;
    mod model;
    mod outcomes;
    mod prefetch;
    mod presence;
    mod pulling;
    mod scope;
    mod settling;
    mod timeouts;
    mod unbegun;
}
