//! The worker as its user sees it: what it promises, one file a topic.

mod support;

mod worker {
    mod bound;
    mod full;
    mod handle;
    mod kinds;
    mod leases;
    mod outcomes;
    mod prefetch;
    mod settling;
    mod timeouts;
}
