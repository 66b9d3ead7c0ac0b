//! One suite over every backend: the same tests, under each backend's name.
//!
//! A row of [`rows`] makes a fresh store and says what it can do ([`Features`](fixture::Features)). A test
//! that is about what a row can't do says so on one line and ends; that the row refuses it clearly is a
//! test of its own, in `refusals`.
//!
//! A new test is a function in the file of its topic, and its name in the list below: one that is missing
//! here is an unused function, which `./check` does not let pass.

#[path = "backends/bytes.rs"]
mod bytes;
#[path = "backends/crippled.rs"]
mod crippled;
#[path = "backends/fetch.rs"]
mod fetch;
#[path = "backends/fixture.rs"]
mod fixture;
#[cfg(feature = "sqlite")]
#[path = "sqlite/folder.rs"]
mod folder;
#[path = "backends/history.rs"]
mod history;
#[path = "backends/inspect.rs"]
mod inspect;
#[path = "backends/lease.rs"]
mod lease;
#[path = "backends/memory_only.rs"]
mod memory_only;
#[path = "backends/order.rs"]
mod order;
#[cfg(feature = "redis")]
#[path = "redis/mod.rs"]
mod redis_server;
#[path = "backends/refusals.rs"]
mod refusals;
#[path = "backends/rows.rs"]
mod rows;
#[path = "backends/settle.rs"]
mod settle;
#[path = "backends/superseded.rs"]
mod superseded;
#[path = "backends/unique.rs"]
mod unique;

/// The tests of some topics for one row. `paused` is for stores whose clock is tokio's.
macro_rules! tests {
    ($row:path, paused = $paused:tt; $($topic:ident { $($name:ident,)* })*) => {
        $(mod $topic {
            $(#[tokio::test(start_paused = $paused)]
            async fn $name() {
                let Some(fixture) = $row().await else { return };
                crate::$topic::$name(fixture).await;
            })*
        })*
    };
}

/// All tests for one row, as a module.
macro_rules! suite {
    ($backend:ident, $row:path, paused = $paused:tt) => {
        mod $backend {
            tests! { $row, paused = $paused;
                fetch {
                    no_more_than_asked_for_is_handed_out,
                    an_empty_queue_answers_after_the_wait,
                    no_wait_means_at_once,
                    a_waiting_fetch_wakes_when_a_job_is_enqueued,
                    each_waiting_fetch_gets_a_job_of_its_own,
                    a_fetch_that_is_told_to_stop_returns_at_once_and_loses_nothing,
                    a_fetch_that_was_stopped_before_takes_nothing,
                    a_dropped_fetch_loses_nothing,
                    a_wake_up_passes_on_when_the_woken_fetch_goes,
                    a_delayed_job_comes_by_itself_when_its_time_has_come,
                    a_moment_in_the_past_means_at_once,
                    a_waiting_fetch_hears_of_what_is_due_sooner,
                    a_waiting_fetch_gets_what_is_released,
                    a_waiting_fetch_takes_only_what_it_asked_for,
                    nothing_is_handed_out_twice,
                    nothing_is_lost_and_nothing_is_made_up,
                }
                order {
                    jobs_come_in_the_order_in_which_they_were_enqueued,
                    a_greater_priority_comes_first_within_its_queue,
                    queues_are_emptied_in_the_order_of_the_request,
                    only_the_queues_asked_for_are_touched,
                    without_queues_the_best_job_of_all_comes_first,
                    no_more_of_a_kind_come_than_its_quota,
                    a_kind_that_is_full_holds_up_no_other,
                    a_quota_goes_over_all_queues,
                    a_retried_job_goes_to_the_back,
                    a_released_job_goes_to_the_front,
                    delayed_jobs_come_in_the_order_of_their_times,
                    delayed_jobs_that_became_due_unseen_come_in_the_order_of_their_times,
                }
                settle {
                    an_acked_job_is_gone,
                    a_retried_job_comes_again_as_the_next_attempt,
                    a_retry_waits_for_its_time,
                    a_released_job_does_not_count_the_attempt,
                    a_release_may_wait,
                    a_rejected_job_is_kept_with_its_payload_and_its_reason,
                    a_reason_is_cut_and_never_refused,
                    settling_twice_is_reported_and_changes_nothing,
                    a_batch_is_applied_though_some_of_it_is_stale,
                    a_tag_that_was_never_handed_out_is_stale,
                    the_same_tag_twice_in_a_batch_counts_once,
                    an_empty_batch_is_nothing,
                    an_exchange_settles_and_takes_what_is_there_without_waiting,
                    an_exchange_with_a_source_that_does_not_fuse_settles,
                }
                lease {
                    a_lease_says_since_when_and_for_how_long,
                    a_lease_that_is_renewed_is_kept,
                    a_job_whose_lease_runs_out_comes_again_and_counts_the_attempt,
                    a_waiting_fetch_gets_a_job_whose_lease_runs_out,
                    a_waiting_fetch_gets_a_job_whose_lease_began_while_it_waited,
                    a_settlement_after_the_lease_ran_out_changes_nothing,
                    an_old_tag_changes_nothing_when_the_job_is_with_another,
                    a_lost_lease_can_not_be_renewed,
                    of_many_leases_that_ran_out_none_counts,
                    answers_come_in_the_order_of_the_tags,
                    reclaiming_says_how_many_and_takes_no_more_than_asked,
                    a_job_that_kills_its_workers_ends_in_the_dead_letters,
                    a_reclaimed_job_keeps_its_place,
                }
                unique {
                    of_two_waiting_jobs_the_first_is_kept,
                    the_newest_payload_replaces_the_waiting_one,
                    while_queued_ends_with_the_hand_over,
                    while_queued_begins_again_with_a_retry,
                    while_queued_both_are_kept_if_nobody_asked_for_the_newest,
                    until_done_holds_while_it_runs_and_waits_again,
                    until_done_ends_with_the_job,
                    until_done_ends_in_the_dead_letters,
                    until_done_ends_with_deletion_and_cancellation,
                    until_done_keeps_the_payload_of_a_running_job,
                    for_a_period_holds_whatever_becomes_of_the_job,
                    for_a_period_is_not_begun_anew_by_a_retry,
                    a_delayed_job_holds_its_key,
                    a_lapsed_lease_takes_the_key_again,
                    two_kinds_never_clash,
                    a_batch_clashes_with_itself,
                    of_many_producers_at_once_one_wins,
                    no_newest_payload_is_lost_between_producers_and_workers,
                }
                superseded {
                    what_is_handed_back_ends_once_a_newer_one_was_enqueued,
                    a_lapsed_lease_ends_it_too,
                    whoever_takes_leases_back_finds_it_ended,
                    though_the_newer_one_is_done_already,
                    though_the_newer_one_was_cancelled_or_deleted_or_has_failed_for_good,
                    though_the_newer_one_waits_for_its_time,
                    of_a_chain_only_the_newest_comes_back,
                    a_new_payload_of_a_waiting_job_supersedes_what_runs,
                    a_new_payload_of_a_waiting_job_supersedes_what_waits_beside_it,
                    what_the_older_ones_asked_for_does_not_matter,
                    a_period_that_has_passed_protects_nothing_that_runs,
                    only_the_same_kind_and_key_is_superseded,
                    what_was_dropped_supersedes_nothing,
                    a_superseded_job_that_is_done_all_the_same_is_done,
                    a_superseded_job_that_fails_for_good_is_dead_and_can_begin_anew,
                    a_superseded_job_holds_no_key_and_no_room,
                    no_older_payload_is_handed_out_after_a_newer_one,
                }
                inspect {
                    counts_follow_a_job_through_its_states,
                    a_job_is_found_as_it_stands,
                    a_list_begins_with_what_has_been_there_longest_or_comes_next,
                    a_list_goes_on_behind_a_job_whatever_becomes_of_it,
                    a_list_shows_only_what_is_asked_for,
                    a_job_says_until_when_it_stays_where_it_is,
                    a_cancellation_is_seen_until_the_job_has_ended,
                    a_cancelled_waiting_job_is_dead,
                    a_running_job_is_told_of_its_cancellation,
                    a_cancelled_job_that_was_done_all_the_same_is_done,
                    a_cancelled_job_is_never_tried_again,
                    a_cancelled_job_whose_worker_died_is_dead,
                    a_dead_job_can_be_made_ready_and_begins_anew,
                    a_delayed_job_can_be_made_ready,
                    a_waiting_fetch_gets_what_is_requeued,
                    a_dead_job_whose_key_was_taken_stays_dead,
                    a_job_that_does_not_run_can_be_deleted,
                    what_is_not_there_can_not_be_changed,
                }
                history {
                    each_attempt_that_ended_is_in_the_history,
                    the_history_goes_with_the_job,
                    a_job_that_begins_anew_keeps_its_history,
                    the_oldest_attempts_make_room,
                    what_is_too_long_for_the_history_is_cut,
                    a_cancelled_attempt_ends_rejected,
                }
                bytes {
                    any_bytes_come_back_as_they_were,
                    no_bytes_come_back_as_none,
                    a_mebibyte_comes_back_whole,
                    names_of_any_text_come_back_as_they_were,
                    what_was_said_of_a_job_comes_back_with_it,
                    bytes_survive_a_retry_and_the_dead_letters,
                }
                refusals {
                    what_makes_no_sense_is_refused_and_nothing_is_added,
                    options_that_are_missing_are_refused_by_name,
                    verbs_that_are_missing_are_refused_by_name,
                    a_history_that_is_missing_is_refused_by_name,
                }
            }
        }
    };
}

suite!(memory, crate::rows::memory, paused = true);
#[cfg(feature = "sqlite")]
suite!(sqlite, crate::rows::sqlite, paused = true);
#[cfg(feature = "redis")]
suite!(redis, crate::rows::redis, paused = false);
#[cfg(feature = "redis")]
suite!(resque, crate::rows::resque, paused = false);
// A store with most verbs taken away, so that the ways around what a row can't do are walked too.
suite!(crippled_memory, crate::rows::crippled, paused = true);
