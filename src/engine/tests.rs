//! The engine against arbitrary histories and endpoints: what must hold whatever happens.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use kube::core::Selector;
use proptest::prelude::*;

use super::*;
use crate::{
    delivery::{
        attempt::{Attempt, AttemptResult, Outcome},
        schedule::Backoff,
    },
    event::{
        EventSet, EventType,
        id::DeliveryId,
        object::{Facts, Object, TrainingFacts, TrainingStage},
        sample::sample,
    },
    ledger::{
        contents::{Contents, RecordEntry},
        journal::{self, Found, Journal, Memory, Recovered, Shape},
    },
    subscription::{filter::Filter, index::Scope},
};

mod usage;

const WATCH: WatchId = WatchId(0);

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(1_700_000_000_000 + millis).unwrap()
}

fn subscription(number: u128, concurrency: usize, max_retries: u32) -> Subscription {
    let backoff = Backoff { initial: Duration::from_millis(100), factor: 2, max: Duration::from_secs(1) };
    Subscription {
        uid: Uid::from_u128(1000 + number),
        scope: Scope::Namespace("ns".into()),
        generation: 1,
        events: EventSet::parse(&["*"]).unwrap(),
        selector: Selector::default(),
        filter: None,
        max_retries,
        backoff,
        concurrency,
        held: false,
    }
}

fn job(number: u128, version: u64, stage: TrainingStage) -> Object {
    Object {
        uid: Uid::from_u128(number),
        version,
        generation: 1,
        namespace: "ns".into(),
        name: format!("job-{number}"),
        kind: None,
        labels: std::collections::BTreeMap::new(),
        namespace_labels: None,
        annotations: None,
        created_at: None,
        owned: false,
        facts: Facts::Training(TrainingFacts { stage: Some(stage), ..TrainingFacts::default() }),
    }
}

fn seen(object: Object) -> Observation {
    Observation { watch: WATCH, change: Change::Seen(Box::new(object)) }
}

fn change(change: Change) -> Observation {
    Observation { watch: WATCH, change }
}

fn listed_engine(selective: bool) -> Engine {
    let mut engine = Engine::new(None, 1, 4);
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", selective);
    engine.observe(change(Change::ListBegun), at(0));
    engine.observe(change(Change::ListEnded(1)), at(0));
    flushed(&mut engine);
    engine
}

fn flushed(engine: &mut Engine) -> Contents {
    let flush = engine.flush(&[], usize::MAX);
    engine.landed();
    flush.contents
}

fn names(observed: &Observed) -> Vec<&'static str> {
    observed.events.iter().map(|event| event.event_type.name()).collect()
}

#[test]
fn an_observation_that_is_not_newer_than_its_record_is_dropped() {
    let mut engine = listed_engine(false);
    let running = || seen(job(1, 5, TrainingStage::Running));
    assert_eq!(names(&engine.observe(running(), at(0))), ["training.started"]);
    assert!(names(&engine.observe(running(), at(0))).is_empty());
    assert!(names(&engine.observe(seen(job(1, 4, TrainingStage::Completed)), at(0))).is_empty());
}

#[test]
fn a_list_that_lacks_an_object_tells_its_deletion_only_once_it_is_complete() {
    let mut engine = listed_engine(false);
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    engine.observe(seen(job(2, 6, TrainingStage::Running)), at(0));
    for _ in 0..2 {
        // The first list breaks off.
        engine.observe(change(Change::ListBegun), at(0));
        assert!(engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0)).events.is_empty());
        engine.observe(seen(job(3, 8, TrainingStage::Pending)), at(0));
        assert_eq!(engine.position(WATCH), 6, "during a list the position stays");
    }
    let observed = engine.observe(change(Change::ListEnded(9)), at(0));
    assert_eq!(names(&observed), ["training.failed"]);
    assert_eq!(engine.position(WATCH), 9);
    assert_eq!(engine.records(), 2);
}

#[test]
fn on_a_watch_with_a_selector_absence_is_asked_after() {
    let mut engine = listed_engine(true);
    for number in 1..=3 {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    engine.observe(change(Change::ListBegun), at(0));
    let observed = engine.observe(change(Change::ListEnded(9)), at(0));
    assert!(observed.events.is_empty());
    assert_eq!(observed.questions.len(), 3);
    // The third is selected again before the answer comes.
    engine.observe(seen(job(3, 12, TrainingStage::Running)), at(0));
    let mut told = Vec::new();
    for question in observed.questions {
        let living = question.uid == Uid::from_u128(1);
        told.extend(names(&engine.observe(change(Change::Answer { question, living }), at(0))));
    }
    assert_eq!(told, ["training.failed"], "of the second alone");
    // The first lives on unselected, and goes in silence.
    engine.observe(change(Change::ListBegun), at(0));
    engine.observe(seen(job(3, 12, TrainingStage::Running)), at(0));
    let observed = engine.observe(change(Change::ListEnded(20)), at(0));
    let [question] = &observed.questions[..] else { panic!("{:?}", observed.questions) };
    let answer = Change::Answer { question: question.clone(), living: false };
    assert!(engine.observe(change(answer), at(0)).events.is_empty());
    assert_eq!(engine.records(), 1);
}

#[test]
fn a_label_that_went_and_came_back_before_the_newest_state_mutes_nothing_when_it_is_observed_again() {
    let mut engine = listed_engine(true);
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    // The record was flushed, the position behind it was not: the log is read again.
    engine.observe(change(Change::Unselected(Uid::from_u128(1))), at(0));
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    engine.observe(change(Change::ListBegun), at(0));
    let observed = engine.observe(change(Change::ListEnded(9)), at(0));
    let [question] = &observed.questions[..] else { panic!("{:?}", observed.questions) };
    let answer = Change::Answer { question: question.clone(), living: false };
    assert_eq!(names(&engine.observe(change(answer), at(0))), ["training.failed"]);
}

#[test]
fn a_kind_that_was_not_installed_has_no_baseline() {
    let mut engine = Engine::new(None, 1, 4);
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", false);
    engine.observe(change(Change::NotInstalled), at(0));
    engine.observe(change(Change::ListBegun), at(0));
    assert_eq!(names(&engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0))), ["training.started"]);
}

#[test]
fn a_webhook_gets_the_events_of_its_time_held_or_not_and_none_of_before() {
    let mut engine = listed_engine(false);
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    let held = Subscription { held: true, ..subscription(1, 1, 0) };
    engine.subscribe(held.clone());
    engine.observe(seen(job(2, 6, TrainingStage::Running)), at(0));
    assert!(engine.due(at(0)).is_none());
    engine.subscribe(Subscription { held: false, ..held });
    let Some(Due::Attempt(attempt)) = engine.due(at(0)) else { panic!("an attempt is due") };
    assert_eq!(attempt.event.object.name, "job-2");
    assert!(engine.due(at(0)).is_none());
}

#[test]
fn beyond_the_bound_events_become_objects_then_are_dropped_and_counted_and_others_do_not_notice() {
    let mut engine = listed_engine(false);
    engine.subscribe(Subscription { held: true, ..subscription(1, 1, 0) });
    let (mut given_up, mut dropped) = (0, 0);
    for number in 0..=(MAX_DELIVERIES + MAX_SHELVED) as u128 + 4 {
        let observed = engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
        given_up += observed.given_up.len();
        dropped += observed.dropped.len();
    }
    assert_eq!((given_up, dropped), (MAX_SHELVED, 5));
    assert_eq!(engine.pending(Uid::from_u128(1001)), MAX_DELIVERIES);
    let mut kept = 0;
    while let Some(due) = engine.due(at(0)) {
        let Due::Keep(keep) = due else { panic!("the Webhook is held") };
        assert_eq!(keep.given_up.reason, Reason::BoundReached);
        engine.kept(keep.webhook, keep.delivery);
        kept += 1;
    }
    assert_eq!(kept, MAX_SHELVED);
    engine.subscribe(subscription(2, 1, 0));
    let observed = engine.observe(seen(job(1, 6, TrainingStage::Completed)), at(0));
    assert_eq!(observed.enqueued, [Uid::from_u128(1002)]);
    assert_eq!(engine.unsubscribe(Uid::from_u128(1001)), MAX_DELIVERIES + 1, "with the one on the shelf");
}

fn outcome(attempt: &Attempt, result: AttemptResult) -> Outcome {
    let Attempt { webhook, delivery, generation, .. } = *attempt;
    Outcome { webhook, delivery, generation, result, exchange: None }
}

fn attempt(engine: &mut Engine, now: i64) -> Attempt {
    match engine.due(at(now)) {
        Some(Due::Attempt(attempt)) => attempt,
        other => panic!("an attempt is due, not {other:?}"),
    }
}

#[test]
fn what_is_delivered_is_told_gone_although_it_was_asked_for_again_before_the_flush() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 1, 0));
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    assert_eq!(flushed(&mut engine).events.len(), 1);
    let first = attempt(&mut engine, 0);
    engine.settle(outcome(&first, AttemptResult::Acknowledged), at(0), 0.5);
    assert!(engine.redeliver(first.webhook, &first.event));
    let [gone] = &flushed(&mut engine).events[..] else { panic!("the ledger must know") };
    assert!(gone.id == first.event.id && gone.deliveries.is_empty());
}

#[test]
fn a_late_410_of_the_endpoint_before_the_edit_says_nothing_of_the_new_one() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 1, 5));
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    let late = attempt(&mut engine, 0);
    engine.subscribe(Subscription { generation: 2, ..subscription(1, 1, 5) });
    let settled = engine.settle(outcome(&late, AttemptResult::Gone), at(0), 0.5).unwrap();
    assert!(matches!(settled.verdict, Verdict::Retry(_)) && !settled.endpoint_gone);
    assert_eq!(attempt(&mut engine, 5000).number, 2);
}

#[test]
fn events_that_leaders_with_different_clocks_left_go_in_the_order_in_which_they_were_told() {
    let held = Subscription { held: true, ..subscription(1, 2, 5) };
    let next = |before: &mut Engine, now| {
        let mut engine = Engine::recover(None, 2, 4, remembered(before), at(now));
        engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", false);
        engine.subscribe(held.clone());
        engine
    };
    let mut ahead = listed_engine(false);
    ahead.subscribe(held.clone());
    ahead.observe(seen(job(1, 5, TrainingStage::Running)), at(60_000));
    let mut behind = next(&mut ahead, 0);
    behind.observe(seen(job(1, 6, TrainingStage::Completed)), at(1_000));
    let mut engine = next(&mut behind, 2_000);
    engine.subscribe(subscription(1, 2, 5));
    let first = attempt(&mut engine, 2_000);
    assert_eq!(first.event.event_type, EventType::TrainingStarted);
    assert!(engine.due(at(2_000)).is_none(), "the second waits for the first");
    engine.settle(outcome(&first, AttemptResult::Acknowledged), at(2_000), 0.5);
    assert_eq!(attempt(&mut engine, 2_000).event.event_type, EventType::TrainingCompleted);
}

#[test]
fn an_endpoint_that_is_gone_exhausts_what_waits_without_an_attempt_and_keeps_the_order_of_what_is_under_way() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 2, 5));
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    engine.observe(seen(job(1, 6, TrainingStage::Completed)), at(0));
    let first = attempt(&mut engine, 0);
    engine.settle(outcome(&first, AttemptResult::Failed { retry_after: None }), at(0), 0.5);
    let second = attempt(&mut engine, 0);
    let retry = attempt(&mut engine, 5000);
    assert_eq!((second.number, retry.number), (1, 2));
    let settled = engine.settle(outcome(&retry, AttemptResult::Gone), at(5000), 0.5).unwrap();
    assert_eq!(settled.verdict, Verdict::GivenUp(Reason::EndpointGone));
    engine.settle(outcome(&second, AttemptResult::Failed { retry_after: None }), at(5000), 0.5);
    let Some(Due::Keep(keep)) = engine.due(at(5000)) else { panic!("the first becomes an object") };
    assert_eq!((keep.delivery, keep.given_up.reason), (retry.delivery, Reason::EndpointGone));
    let Some(Due::GivenUp(settled)) = engine.due(at(9000)) else { panic!("the second is given up") };
    assert_eq!((settled.attempt, settled.endpoint_gone, settled.pending), (1, true, 0));
}

#[test]
fn what_the_endpoint_before_the_edit_acknowledges_says_nothing_of_the_new_one_that_is_gone() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 2, 5));
    for number in [1, 2] {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    let late = attempt(&mut engine, 0);
    engine.subscribe(Subscription { generation: 2, ..subscription(1, 2, 5) });
    let new = attempt(&mut engine, 0);
    let settled = engine.settle(outcome(&new, AttemptResult::Gone), at(0), 0.5).unwrap();
    assert_eq!((settled.verdict, settled.endpoint_gone), (Verdict::GivenUp(Reason::EndpointGone), true));
    let settled = engine.settle(outcome(&late, AttemptResult::Acknowledged), at(0), 0.5).unwrap();
    assert_eq!((settled.verdict, settled.endpoint_gone), (Verdict::Delivered, true));
}

#[test]
fn an_event_that_is_observed_again_without_a_place_to_wait_is_on_the_shelf_once() {
    let mut pending = Pending::new(4);
    let event = Arc::new(sample(EventType::TrainingFailed, Uid::from_u128(1), "ns", None, at(0)));
    let webhook = Uid::from_u128(1001);
    pending.subscribed(webhook);
    let shelve = |pending: &mut Pending| {
        pending.shelve(webhook, &event, GivenUp::unattempted(Reason::NamespaceUnknown, at(0)), None)
    };
    assert_eq!([shelve(&mut pending), shelve(&mut pending)], [Shelving::Shelved, Shelving::Known]);
    assert_eq!(pending.queue(webhook).shelf_bytes, event.body.len());
    let keep = pending.next_to_keep().unwrap();
    assert!(pending.next_to_keep().is_none());
    pending.kept(webhook, keep.delivery);
    assert_eq!(shelve(&mut pending), Shelving::Shelved, "nothing is left of it");
}

#[test]
fn an_object_that_a_list_shows_in_unreadable_form_is_there() {
    let mut engine = listed_engine(false);
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    engine.observe(change(Change::ListBegun), at(0));
    engine.observe(change(Change::Unreadable(Uid::from_u128(1))), at(0));
    assert!(engine.observe(change(Change::ListEnded(9)), at(0)).events.is_empty());
    assert_eq!(engine.records(), 1);
}

fn deleted(object: Object) -> Observation {
    change(Change::Deleted(Box::new(object)))
}

const FAILED: AttemptResult = AttemptResult::Failed { retry_after: None };

/// The next attempt, past what is to become objects.
fn attempt_past_keeps(engine: &mut Engine, now: i64) -> Attempt {
    loop {
        match engine.due(at(now)) {
            Some(Due::Keep(_)) => {}
            Some(Due::Attempt(attempt)) => return attempt,
            other => panic!("an attempt is due, not {other:?}"),
        }
    }
}

/// What a ledger remembers that was told everything.
fn remembered(engine: &mut Engine) -> Memory {
    landed_at(engine, u64::MAX)
}

/// The same, where it landed at this version of the store.
fn landed_at(engine: &mut Engine, version: u64) -> Memory {
    let (home, shape) = (Uid::from_u128(99), Shape { ring: 16, shards: 4, limit: 1 << 20 });
    let segments = Journal::begin(home, 1, shape, 7).lay_out(engine.flush(&[0, 1, 2, 3], usize::MAX)).unwrap();
    let found: Vec<Found> =
        segments.into_iter().map(|segment| Found { segment, version: version.to_string() }).collect();
    match journal::open(&found, home, shape, 8) {
        Recovered::Ledger(_, memory) => *memory,
        Recovered::NoLedger { why, .. } => panic!("{why}"),
    }
}

#[test]
fn an_event_that_a_crash_cuts_off_from_the_baseline_of_its_watch_is_void() {
    let (home, shape) = (Uid::from_u128(99), Shape { ring: 16, shards: 4, limit: 1 << 20 });
    let mut journal = Journal::begin(home, 1, shape, 7);
    let mut engine = Engine::new(None, 1, 4);
    engine.subscribe(subscription(1, 1, 0));
    let mut segments = journal.lay_out(engine.flush(&[], usize::MAX)).unwrap();
    engine.landed();
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "a", false);
    engine.observe(change(Change::ListBegun), at(0));
    engine.observe(change(Change::ListEnded(1)), at(0));
    assert_eq!(names(&engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0))), ["training.started"]);
    let part = engine.flush(&[], 1);
    assert!(part.contents.events.len() == 1 && part.contents.watches.is_none());
    segments.extend(journal.lay_out(part).unwrap());
    engine.landed();
    assert!(engine.due(at(0)).is_none(), "its baseline is not flushed");
    let found: Vec<Found> =
        segments.into_iter().map(|segment| Found { segment, version: u64::MAX.to_string() }).collect();
    let Recovered::Ledger(_, memory) = journal::open(&found, home, shape, 8) else { panic!("a ledger") };
    let mut next = Engine::recover(None, 2, 4, *memory, at(0));
    next.subscribe(subscription(1, 1, 0));
    assert!(next.due(at(0)).is_none());
    let [void] = &flushed(&mut next).events[..] else { panic!("the ledger must know") };
    assert!(void.deliveries.is_empty());
}

const KIB: usize = 1024;
const HEAVY: usize = 128 * KIB;

/// A job starts in the namespace, with an event of so many bytes: what becomes of it at the one Webhook there.
fn starts(engine: &mut Engine, namespace: &str, bytes: usize) -> &'static str {
    let number = engine.records() as u128 + 1;
    let object = |model: String| {
        let stage = Some(TrainingStage::Running);
        let facts = Facts::Training(TrainingFacts { stage, base_model: Some(model), ..TrainingFacts::default() });
        let (namespace, name) = (namespace.to_owned(), format!("job-{number:04}"));
        Object { namespace, name, facts, ..job(number, 5, TrainingStage::Running) }
    };
    let bare = listed_engine(false).observe(seen(object(String::new())), at(0)).events[0].body.len();
    let observed = engine.observe(seen(object("x".repeat(bytes - bare))), at(0));
    assert_eq!(observed.events[0].body.len(), bytes);
    match (observed.enqueued.len(), observed.given_up.len(), observed.dropped.len()) {
        (1, 0, 0) => "pending",
        (0, 1, 0) => "shelved",
        (0, 0, 1) => "dropped",
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_webhook_holds_its_bytes_to_the_last_then_as_many_on_its_shelf_and_every_end_gives_them_back() {
    let mut engine = listed_engine(false);
    let held = Subscription { held: true, ..subscription(1, 1, 0) };
    let webhook = held.uid;
    engine.subscribe(held.clone());
    for _ in 0..MAX_BYTES / HEAVY {
        assert_eq!(starts(&mut engine, "ns", HEAVY), "pending");
    }
    assert_eq!(starts(&mut engine, "ns", KIB), "shelved");
    for _ in 1..MAX_BYTES / HEAVY {
        assert_eq!(starts(&mut engine, "ns", HEAVY), "shelved");
    }
    assert_eq!(starts(&mut engine, "ns", HEAVY - KIB), "shelved");
    assert_eq!(starts(&mut engine, "ns", KIB), "dropped");

    let mut keeps = Vec::new();
    while let Some(due) = engine.due(at(0)) {
        let Due::Keep(keep) = due else { panic!("the Webhook is held") };
        keeps.push(keep);
    }
    keeps.retain(|keep| keep.event.body.len() == HEAVY);
    engine.kept(webhook, keeps[0].delivery);
    assert_eq!(starts(&mut engine, "ns", HEAVY), "shelved", "in the place of what has become an object");
    assert_eq!(starts(&mut engine, "ns", KIB), "dropped");

    engine.subscribe(Subscription { held: false, ..held });
    let first = attempt_past_keeps(&mut engine, 0);
    engine.settle(outcome(&first, AttemptResult::Acknowledged), at(0), 0.5);
    assert_eq!(starts(&mut engine, "ns", HEAVY), "pending", "in the place of what was acknowledged");
    assert_eq!(starts(&mut engine, "ns", KIB), "dropped");

    let second = attempt_past_keeps(&mut engine, 0);
    let settled = engine.settle(outcome(&second, FAILED), at(0), 0.5).unwrap();
    assert!(settled.dropped && !settled.again, "its shelf is full");
    assert_eq!(starts(&mut engine, "ns", HEAVY), "pending", "in the place of what was given up");
    assert_eq!(starts(&mut engine, "ns", KIB), "dropped");

    engine.kept(webhook, keeps[1].delivery);
    let third = attempt_past_keeps(&mut engine, 0);
    assert!(!engine.settle(outcome(&third, FAILED), at(0), 0.5).unwrap().dropped, "it fits onto the shelf");
    assert_eq!(starts(&mut engine, "ns", HEAVY), "pending");
    assert_eq!(starts(&mut engine, "ns", KIB), "dropped");
}

#[test]
fn a_shelf_takes_a_thousand_deliveries_that_failed_and_the_next_is_dropped() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 1, 0));
    for number in 0..=MAX_SHELVED {
        engine.observe(seen(job(number as u128, 5, TrainingStage::Running)), at(0));
        let attempt = attempt_past_keeps(&mut engine, 0);
        let settled = engine.settle(outcome(&attempt, FAILED), at(0), 0.5).unwrap();
        assert_eq!(settled.dropped, number == MAX_SHELVED, "number {number}");
    }
}

#[test]
fn all_webhooks_together_hold_the_total_to_the_last_byte_and_a_deleted_one_gives_its_share_back() {
    let mut engine = listed_engine(false);
    for (number, namespace) in (1..).zip(["n1", "n2", "n3", "n4", "n5", "n6"]) {
        engine.subscribe(Subscription {
            scope: Scope::Namespace(namespace.into()),
            held: true,
            ..subscription(number, 1, 0)
        });
    }
    for namespace in ["n1", "n2", "n3", "n4"] {
        for _ in 0..MAX_BYTES / HEAVY {
            assert_eq!(starts(&mut engine, namespace, HEAVY), "pending");
        }
    }
    assert_eq!(starts(&mut engine, "n5", KIB), "shelved", "its own queue is empty");
    for namespace in ["n5", "n6"] {
        for _ in 1..MAX_BYTES / HEAVY / 2 {
            assert_eq!(starts(&mut engine, namespace, HEAVY), "shelved");
        }
    }
    assert_eq!(starts(&mut engine, "n6", HEAVY), "shelved");
    assert_eq!(starts(&mut engine, "n6", HEAVY - KIB), "shelved");
    for namespace in ["n5", "n6"] {
        assert_eq!(starts(&mut engine, namespace, KIB), "dropped", "its own shelf has room");
    }
    for number in [1, 5, 6] {
        engine.unsubscribe(Uid::from_u128(1000 + number));
    }
    for (number, namespace) in [(5, "n5"), (6, "n6"), (7, "n6")] {
        engine.subscribe(Subscription {
            scope: Scope::Namespace(namespace.into()),
            held: true,
            ..subscription(number, 1, 0)
        });
    }
    for _ in 1..MAX_BYTES / HEAVY {
        assert_eq!(starts(&mut engine, "n5", HEAVY), "pending");
    }
    // Two Webhooks share the last event that there is room for: it counts once.
    let last = Object { namespace: "n6".into(), ..job(0, 5, TrainingStage::Running) };
    let size = listed_engine(false).observe(seen(last.clone()), at(0)).events[0].body.len();
    assert_eq!(starts(&mut engine, "n5", HEAVY - size), "pending");
    let observed = engine.observe(seen(last), at(0));
    assert_eq!(observed.enqueued, [Uid::from_u128(1006), Uid::from_u128(1007)]);
    engine.unsubscribe(Uid::from_u128(1007));
    assert_eq!(starts(&mut engine, "n6", KIB), "shelved", "the other Webhook still waits for it");
}

#[test]
fn what_is_asked_for_again_goes_past_the_bounds_and_counts_until_the_last_of_it_has_ended() {
    let mut engine = listed_engine(false);
    for (number, namespace) in (1..).zip(["n1", "n2", "n3", "n4", "n5", "n6"]) {
        engine.subscribe(Subscription { scope: Scope::Namespace(namespace.into()), ..subscription(number, 1, 0) });
    }
    assert_eq!(starts(&mut engine, "n5", HEAVY), "pending");
    let told = attempt(&mut engine, 0);
    engine.settle(outcome(&told, AttemptResult::Acknowledged), at(0), 0.5);
    for namespace in ["n1", "n2", "n3", "n4"] {
        for _ in 0..MAX_BYTES / HEAVY {
            assert_eq!(starts(&mut engine, namespace, HEAVY), "pending");
        }
    }
    let both = [Uid::from_u128(1005), Uid::from_u128(1006)];
    assert!(both.iter().all(|webhook| engine.redeliver(*webhook, &told.event)));
    engine.unsubscribe(Uid::from_u128(1001));
    for _ in 1..MAX_BYTES / HEAVY {
        assert_eq!(starts(&mut engine, "n5", HEAVY), "pending");
    }
    assert_eq!(starts(&mut engine, "n6", KIB), "shelved");
    let end = |engine: &mut Engine, webhook| {
        let attempt = Attempt { webhook, delivery: DeliveryId::new(told.event.id, webhook), ..told.clone() };
        engine.settle(outcome(&attempt, AttemptResult::Acknowledged), at(0), 0.5).unwrap();
    };
    end(&mut engine, both[0]);
    assert_eq!(starts(&mut engine, "n6", KIB), "shelved");
    end(&mut engine, both[1]);
    assert_eq!(starts(&mut engine, "n6", HEAVY - 2 * KIB), "pending");
    assert_eq!(starts(&mut engine, "n6", KIB), "shelved");
}

#[test]
fn in_a_store_that_was_restored_stages_are_compared_and_not_versions() {
    let mut engine = listed_engine(false);
    engine.observe(seen(job(1, 50, TrainingStage::Running)), at(0));
    engine.observe(seen(job(2, 60, TrainingStage::Running)), at(0));
    flushed(&mut engine);
    engine.observe(seen(job(2, 61, TrainingStage::Suspended)), at(0));
    engine.observe(change(Change::Restored), at(0));
    let contents = flushed(&mut engine);
    assert_eq!(contents.records.len(), 2, "each once");
    assert_eq!(contents.watches.unwrap()[0].position, 1, "whoever goes on from here must list");
    engine.observe(change(Change::ListBegun), at(0));
    let told = names(&engine.observe(seen(job(1, 10, TrainingStage::Completed)), at(0)));
    assert_eq!(told, ["training.completed"]);
    assert!(engine.observe(seen(job(2, 11, TrainingStage::Suspended)), at(0)).events.is_empty());
    assert!(engine.observe(change(Change::ListEnded(20)), at(0)).events.is_empty());
    assert_eq!(engine.position(WATCH), 20);
}

#[test]
fn what_was_flushed_into_a_store_that_was_restored_meanwhile_is_compared_anew() {
    let mut engine = listed_engine(false);
    engine.observe(seen(job(1, 50, TrainingStage::Running)), at(0));
    let mut next = Engine::recover(None, 2, 4, landed_at(&mut engine, 20), at(0));
    next.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", false);
    assert_eq!(next.position(WATCH), 1, "it must list");
    let contents = flushed(&mut next);
    assert_eq!(contents.records.iter().map(|entry| entry.record.as_ref().unwrap().version).collect::<Vec<_>>(), [0]);
    assert_eq!(contents.watches.unwrap()[0].position, 1, "as must whoever goes on from here");
    next.observe(change(Change::ListBegun), at(0));
    assert_eq!(names(&next.observe(seen(job(1, 22, TrainingStage::Completed)), at(0))), ["training.completed"]);
}

#[test]
fn an_object_that_goes_and_comes_back_between_two_flushes_is_told_as_it_is_and_one_that_went_is_told_gone_once() {
    let mut engine = listed_engine(false);
    for (number, version) in [(1, 5), (2, 7)] {
        engine.observe(seen(job(number, version, TrainingStage::Pending)), at(0));
        engine.observe(deleted(job(number, version + 1, TrainingStage::Pending)), at(0));
    }
    engine.observe(seen(job(1, 9, TrainingStage::Pending)), at(0));
    let contents = flushed(&mut engine);
    let told = |entries: &[RecordEntry]| entries.iter().map(|entry| entry.uid).collect::<Vec<_>>();
    assert_eq!(told(&contents.records), [Uid::from_u128(1)]);
    assert_eq!(told(&contents.gone), [Uid::from_u128(2)]);
}

#[test]
fn a_watch_that_ends_is_forgotten_with_its_position_and_what_it_withheld_goes_with_the_flush_that_says_so() {
    let mut engine = Engine::new(None, 1, 4);
    engine.subscribe(subscription(1, 1, 0));
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "a", false);
    engine.observe(change(Change::NotInstalled), at(0));
    flushed(&mut engine);
    engine.add_watch(WatchId(1), "trainingjobs.llmtune.io", "b", false);
    flushed(&mut engine);
    assert_eq!(engine.unflushed(), Unflushed::Nothing);
    engine.remove_watch(WatchId(9));
    assert_eq!(engine.unflushed(), Unflushed::Nothing, "it was never there");
    engine.observe(Observation { watch: WatchId(1), change: Change::NotInstalled }, at(0));
    let new = Observation { watch: WatchId(1), change: Change::Seen(Box::new(job(1, 5, TrainingStage::Running))) };
    assert_eq!(names(&engine.observe(new, at(0))), ["training.started"]);
    assert!(engine.due(at(0)).is_none(), "its baseline is not flushed");
    engine.remove_watch(WatchId(1));
    let entries = flushed(&mut engine).watches.unwrap();
    assert_eq!(attempt(&mut engine, 0).event.object.name, "job-1");
    assert_eq!(entries.iter().map(|entry| entry.watch.as_str()).collect::<Vec<_>>(), ["a"]);
    engine.remove_watch(WATCH);
    assert_eq!(engine.unflushed(), Unflushed::Changes);
    assert!(engine.observe(seen(job(2, 6, TrainingStage::Running)), at(0)).events.is_empty());
    assert_eq!(engine.records(), 0);
}

#[test]
fn every_watch_begins_an_epoch_of_its_own_and_one_whose_kind_is_missing_begins_another_once() {
    let mut engine = Engine::new(None, 7, 4);
    for (id, name) in [(WATCH, "a"), (WatchId(1), "b")] {
        engine.add_watch(id, "trainingjobs.llmtune.io", name, false);
        engine.observe(Observation { watch: id, change: Change::ListBegun }, at(0));
        engine.observe(Observation { watch: id, change: Change::ListEnded(5) }, at(0));
    }
    let epochs =
        |engine: &mut Engine| flushed(engine).watches.unwrap().iter().map(|entry| entry.epoch).collect::<Vec<_>>();
    assert_eq!(epochs(&mut engine), [8, 9]);
    for _ in 0..2 {
        engine.observe(change(Change::NotInstalled), at(0));
        assert_eq!(epochs(&mut engine), [10, 9]);
    }
    engine.observe(change(Change::ListBegun), at(0));
    engine.observe(change(Change::ListEnded(9)), at(0));
    assert_eq!(engine.unflushed(), Unflushed::Changes, "it is installed now");
    let mut engine = Engine::recover(None, 1, 4, remembered(&mut engine), at(0));
    engine.add_watch(WatchId(2), "trainingjobs.llmtune.io", "c", false);
    engine.observe(Observation { watch: WatchId(2), change: Change::NotInstalled }, at(0));
    assert!(epochs(&mut engine)[0] > 10);
}

#[test]
fn a_watch_that_is_configured_no_more_is_named_and_forgotten_after_a_restart() {
    let mut engine = Engine::new(None, 1, 4);
    for (id, name) in [(WATCH, "a"), (WatchId(1), "b")] {
        engine.add_watch(id, "trainingjobs.llmtune.io", name, false);
        engine.observe(Observation { watch: id, change: Change::ListEnded(5) }, at(0));
    }
    let mut engine = Engine::recover(None, 1, 4, remembered(&mut engine), at(0));
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "a", false);
    assert_eq!((engine.position(WATCH), engine.unflushed()), (5, Unflushed::Nothing));
    assert_eq!(engine.forget_other_watches(), ["b"]);
    assert_eq!(engine.unflushed(), Unflushed::Changes);
    let entries = flushed(&mut engine).watches.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.watch.as_str()).collect::<Vec<_>>(), ["a"]);
    assert!(engine.forget_other_watches().is_empty());
    assert_eq!(engine.unflushed(), Unflushed::Nothing);
}

#[test]
fn an_object_that_came_and_went_is_not_told_again_when_the_watch_is_begun_anew_before_it() {
    let mut engine = listed_engine(false);
    let history = || [seen(job(1, 5, TrainingStage::Running)), deleted(job(1, 7, TrainingStage::Running))];
    let told = |engine: &mut Engine| history().map(|observation| engine.observe(observation, at(0)).events.len());
    assert_eq!(told(&mut engine), [1, 1]);
    assert_eq!(told(&mut engine), [0, 0]);
    assert_eq!(engine.records(), 0);
}

#[test]
fn a_watch_that_follows_the_log_again_passes_versions_although_a_list_broke_off() {
    let mut engine = listed_engine(false);
    let position = engine.position(WATCH);
    engine.observe(change(Change::ListBegun), at(0));
    engine.observe(change(Change::Bookmark(position + 7)), at(0));
    assert_eq!(engine.position(WATCH), position + 7);
}

#[test]
fn a_question_outlives_a_crash_and_only_the_answer_to_the_newest_counts_once() {
    let mut engine = listed_engine(true);
    for number in 1..=2 {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    // Its going would be no event.
    engine.observe(seen(job(3, 5, TrainingStage::Pending)), at(0));
    engine.observe(change(Change::ListBegun), at(0));
    let asked = engine.observe(change(Change::ListEnded(9)), at(0)).questions;
    assert_eq!((asked.len(), engine.records()), (2, 2));
    let mut engine = Engine::recover(None, 1, 4, remembered(&mut engine), at(0));
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", true);
    let mut open = engine.open_questions();
    open.sort_by_key(|question| question.uid);
    assert_eq!(open, asked);

    let answer = |question: &Question, living| change(Change::Answer { question: question.clone(), living });
    // The first lives, unselected; the second answer to the same question is void.
    engine.observe(answer(&asked[0], true), at(0));
    engine.observe(answer(&asked[0], false), at(0));
    assert_eq!(engine.records(), 2);
    assert_eq!(engine.open_questions(), asked[1..]);
    // The second is seen anew, and missed anew.
    engine.observe(seen(job(2, 12, TrainingStage::Running)), at(0));
    assert!(engine.open_questions().is_empty());
    assert!(flushed(&mut engine).records.iter().all(|entry| !entry.record.as_ref().unwrap().missed));
    engine.observe(change(Change::ListBegun), at(0));
    let newer = engine.observe(change(Change::ListEnded(20)), at(0)).questions;
    assert!(engine.observe(answer(&asked[1], false), at(0)).events.is_empty());
    assert_eq!(names(&engine.observe(answer(&newer[1], false), at(0))), ["training.failed"]);
}

#[test]
fn whatever_the_ledger_does_not_know_asks_for_a_flush_and_nothing_else_does() {
    use TrainingStage::{Pending, Running, Suspended};
    let mut engine = Engine::new(None, 1, 4);
    engine.subscribe(subscription(1, 1, 5));
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", true);
    let tells = |engine: &mut Engine, what: &str, expected| {
        assert_eq!(engine.unflushed(), expected, "{what}");
        let contents = flushed(engine);
        assert_eq!(engine.unflushed(), Unflushed::Nothing, "{what}, flushed");
        contents
    };
    tells(&mut engine, "a watch", Unflushed::Changes);
    engine.observe(change(Change::ListBegun), at(0));
    engine.observe(change(Change::ListEnded(1)), at(0));
    tells(&mut engine, "an empty baseline", Unflushed::Changes);
    engine.observe(change(Change::Bookmark(5)), at(0));
    tells(&mut engine, "a bookmark", Unflushed::Positions);
    engine.observe(change(Change::Bookmark(5)), at(0));
    tells(&mut engine, "the same bookmark", Unflushed::Nothing);
    engine.observe(change(Change::ListBegun), at(0));
    engine.observe(change(Change::ListEnded(6)), at(0));
    tells(&mut engine, "another list", Unflushed::Positions);
    engine.observe(deleted(job(9, 7, Pending)), at(0));
    tells(&mut engine, "the deletion of what nobody knew", Unflushed::Positions);
    engine.observe(seen(job(1, 8, Pending)), at(0));
    tells(&mut engine, "an object", Unflushed::Changes);
    engine.observe(seen(job(1, 9, Pending)), at(0));
    tells(&mut engine, "a newer version", Unflushed::Positions);
    engine.observe(seen(job(1, 10, Suspended)), at(0));
    tells(&mut engine, "a stage without an event", Unflushed::Changes);
    engine.observe(seen(job(1, 11, Running)), at(0));
    assert_eq!(tells(&mut engine, "an event", Unflushed::Changes).records.len(), 1);

    let labelled = |version| Object { labels: [("a".to_owned(), "b".to_owned())].into(), ..job(1, version, Running) };
    engine.observe(seen(job(1, 12, Running)), at(0));
    tells(&mut engine, "a newer version of what a deletion would tell", Unflushed::Positions);
    engine.observe(seen(labelled(13)), at(0));
    tells(&mut engine, "a label that a deletion would tell", Unflushed::Changes);
    engine.observe(seen(labelled(14)), at(0));
    tells(&mut engine, "the same label", Unflushed::Positions);

    engine.observe(change(Change::Unselected(Uid::from_u128(1))), at(0));
    tells(&mut engine, "that it is selected no more", Unflushed::Changes);
    engine.observe(change(Change::Unselected(Uid::from_u128(1))), at(0));
    tells(&mut engine, "that again", Unflushed::Nothing);
    engine.observe(seen(labelled(15)), at(0));
    tells(&mut engine, "that it is selected again", Unflushed::Changes);

    let first = attempt(&mut engine, 0);
    tells(&mut engine, "an attempt", Unflushed::Nothing);
    engine.settle(outcome(&first, FAILED), at(0), 0.5);
    let contents = tells(&mut engine, "a failure", Unflushed::Changes);
    assert!(contents.events[0].event.is_none(), "the event itself is told once");
    assert_eq!(contents.events[0].deliveries[0].failed, 1);
    let retry = attempt(&mut engine, 5000);
    engine.settle(outcome(&retry, AttemptResult::Acknowledged), at(0), 0.5);
    tells(&mut engine, "an acknowledgement", Unflushed::Changes);
    assert!(engine.due(at(5000)).is_none());
    assert!(engine.redeliver(first.webhook, &first.event));
    tells(&mut engine, "what is asked for again, which the object that asks knows", Unflushed::Nothing);
    let again = attempt(&mut engine, 5000);
    engine.settle(outcome(&again, FAILED), at(5000), 0.5);
    tells(&mut engine, "its failure", Unflushed::Nothing);
    let again = attempt(&mut engine, 9000);
    engine.settle(outcome(&again, AttemptResult::Acknowledged), at(9000), 0.5);
    tells(&mut engine, "its end", Unflushed::Nothing);
    engine.observe(change(Change::Vanished(Uid::from_u128(1))), at(0));
    assert_eq!(tells(&mut engine, "its going", Unflushed::Changes).gone.len(), 1);
}

#[test]
fn a_flush_stops_at_about_its_budget_and_only_the_last_part_tells_positions_and_what_is_gone() {
    let mut engine = listed_engine(false);
    for number in 0..20 {
        engine.subscribe(subscription(number, 1, 0));
    }
    for number in 3..=5 {
        engine.observe(seen(job(number, 5, TrainingStage::Pending)), at(0));
    }
    flushed(&mut engine);
    for number in 0..40 {
        engine.observe(seen(job(100 + number, 5, TrainingStage::Running)), at(0));
    }
    let mut told = 0;
    while told < 40 {
        let flush = engine.flush(&[0], 16 * KIB);
        let some = flush.contents.events.len();
        assert!((5..=15).contains(&some) || told + some == 40, "{some} events to twenty Webhooks");
        assert!(told + some == 40 || (flush.contents.watches.is_none() && flush.snapshots.is_empty()));
        assert_eq!(engine.unflushed(), Unflushed::Changes);
        engine.landed();
        told += some;
    }
    flushed(&mut engine);
    assert_eq!(engine.unflushed(), Unflushed::Nothing);
    engine.observe(seen(job(3, 7, TrainingStage::Suspended)), at(0));
    engine.observe(seen(job(4, 7, TrainingStage::Suspended)), at(0));
    engine.observe(deleted(job(5, 7, TrainingStage::Pending)), at(0));
    let part = engine.flush(&[0], 1).contents;
    assert_eq!((part.records.len(), part.gone.len(), part.watches.is_some()), (1, 0, false));
    let last = engine.flush(&[0], 1).contents;
    assert_eq!((last.records.len(), last.gone.len(), last.watches.is_some()), (1, 1, true));
}

#[test]
fn what_is_asked_for_again_is_retried_anew_and_neither_kept_nor_counted_as_dropped_when_it_fails_for_good() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 1, 1));
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    let told = attempt(&mut engine, 0);
    let webhook = told.webhook;
    assert!(!engine.redeliver(webhook, &told.event), "it is pending");
    assert!(!engine.redeliver(Uid::from_u128(5), &told.event), "nobody knows the Webhook");
    engine.settle(outcome(&told, FAILED), at(0), 0.5);
    let retry = attempt(&mut engine, 5000);
    let settled = engine.settle(outcome(&retry, FAILED), at(5000), 0.5).unwrap();
    assert_eq!((settled.verdict, settled.again, settled.dropped), (Verdict::GivenUp(Reason::Exhausted), false, false));

    // It is on the shelf still: the ledger is told of that, not of what was asked for.
    assert!(engine.redeliver(webhook, &told.event));
    assert!(flushed(&mut engine).events[0].deliveries[0].given_up.is_some());
    for number in 1..=2 {
        let again = attempt_past_keeps(&mut engine, 10_000 * i64::from(number));
        assert_eq!(again.number, number);
        let settled = engine.settle(outcome(&again, FAILED), at(10_000 * i64::from(number)), 0.5).unwrap();
        assert_eq!(settled.verdict == Verdict::GivenUp(Reason::Exhausted), number == 2);
        assert!(settled.again && !settled.dropped);
    }
    assert!(engine.due(at(90_000)).is_none(), "nothing more is kept");
    assert_eq!(engine.pending(webhook), 0);
}

#[test]
fn a_410_exhausts_what_comes_until_the_endpoint_acknowledges_something_or_the_spec_is_edited() {
    let mut engine = listed_engine(false);
    let webhook = subscription(1, 1, 5).uid;
    engine.subscribe(subscription(1, 1, 5));
    let mut number = 0;
    let mut exhausts = |engine: &mut Engine| {
        number += 1;
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
        loop {
            match engine.due(at(0)).expect("something is due") {
                Due::Keep(_) => {}
                Due::GivenUp(settled) => {
                    assert!(settled.attempt == 0 && settled.endpoint_gone && !settled.dropped);
                    return true;
                }
                Due::Attempt(attempt) => {
                    engine.settle(outcome(&attempt, FAILED), at(0), 0.5);
                    return false;
                }
            }
        }
    };
    engine.mark_gone(webhook, 1);
    assert!(exhausts(&mut engine));
    engine.subscribe(Subscription { concurrency: 2, ..subscription(1, 1, 5) });
    assert!(exhausts(&mut engine), "the spec is the same");
    engine.forgive(webhook);
    assert!(!exhausts(&mut engine));
    engine.mark_gone(webhook, 1);
    assert!(exhausts(&mut engine));
    engine.subscribe(Subscription { generation: 2, ..subscription(1, 1, 5) });
    assert!(!exhausts(&mut engine));
}

#[test]
fn the_earliest_retry_is_told_and_begins_at_its_time_and_not_before() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 2, 5));
    assert_eq!(engine.next_due(), None);
    for number in 1..=2 {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    let (first, second) = (attempt(&mut engine, 0), attempt(&mut engine, 0));
    let late = AttemptResult::Failed { retry_after: Some(Duration::from_millis(900)) };
    engine.settle(outcome(&first, late), at(0), 0.5);
    engine.settle(outcome(&second, FAILED), at(0), 0.5);
    assert_eq!(engine.next_due(), Some(at(100)));
    assert!(engine.due(at(99)).is_none());
    let retry = attempt(&mut engine, 100);
    assert_eq!((retry.delivery, retry.number), (second.delivery, 2));
    assert_eq!(engine.next_due(), Some(at(900)));
    assert!(engine.due(at(899)).is_none());
    assert_eq!(attempt(&mut engine, 900).delivery, first.delivery);
}

#[test]
fn an_attempt_that_was_withheld_keeps_its_place() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 1, 5));
    for number in 1..=3 {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    let first = attempt(&mut engine, 0);
    engine.settle(outcome(&first, AttemptResult::Withheld { hold: false }), at(0), 0.5);
    let same = attempt(&mut engine, 0);
    assert_eq!((same.delivery, same.number), (first.delivery, 1));
    engine.settle(outcome(&same, AttemptResult::Withheld { hold: true }), at(0), 0.5);
    assert!(engine.due(at(0)).is_none(), "nothing begins until the subscription is given anew");
    engine.subscribe(subscription(1, 1, 5));
    assert_eq!(attempt(&mut engine, 0).delivery, first.delivery);
}

#[test]
fn a_webhook_whose_concurrency_is_lowered_begins_nothing_while_as_many_are_under_way() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 2, 5));
    for number in 1..=2 {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    let first = attempt(&mut engine, 0);
    engine.subscribe(subscription(1, 1, 5));
    assert!(engine.due(at(0)).is_none());
    engine.settle(outcome(&first, AttemptResult::Acknowledged), at(0), 0.5);
    assert_eq!(attempt(&mut engine, 0).event.object.name, "job-2");
}

/// One step of a simulated life.
#[derive(Clone, Debug)]
enum Step {
    /// A job moves to a stage.
    Move(u8, u8),
    /// An attempt under way ends: acknowledged, failed, withheld.
    End(u8, u8),
    /// Time passes, in milliseconds.
    Pass(u16),
    /// A Webhook is held or released.
    Hold(u8, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_u8, 0..4_u8).prop_map(|(job, stage)| Step::Move(job, stage)),
        4 => (any::<u8>(), 0..10_u8).prop_map(|(which, how)| Step::End(which, how)),
        2 => (0..2000_u16).prop_map(Step::Pass),
        1 => (0..3_u8, any::<bool>()).prop_map(|(webhook, held)| Step::Hold(webhook, held)),
    ]
}

/// What the checker knows of one delivery.
#[derive(Debug, Default)]
struct Life {
    attempts: u32,
    under_way: bool,
    ended: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_event_reaches_every_webhook_in_order_within_its_bounds_or_is_given_up_after_its_retries(
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        let mut engine = listed_engine(false);
        let bounds: HashMap<Uid, (usize, u32)> =
            (0..3).map(|number| (Uid::from_u128(1000 + number), (1 + number as usize, number as u32))).collect();
        for number in 0..3 {
            engine.subscribe(subscription(number, 1 + number as usize, number as u32));
        }
        let mut held: HashSet<Uid> = HashSet::new();
        let (mut now, mut version) = (0_i64, 10_u64);
        let mut under_way: Vec<Attempt> = Vec::new();
        let mut lives: HashMap<(Uid, EventId), Life> = HashMap::new();
        let mut order: HashMap<(Uid, Uid), Vec<EventId>> = HashMap::new();
        let mut happened: Vec<EventId> = Vec::new();

        // After the steps everything is released, time passes, and every attempt is acknowledged.
        let closing = (0..3).map(|webhook| Step::Hold(webhook, false));
        let settling = (0..400).flat_map(|_| [Step::Pass(1500), Step::End(0, 0)]);
        for step in steps.into_iter().chain(closing).chain(settling) {
            match step {
                Step::Move(number, stage) => {
                    use TrainingStage::{Completed, Failed, Pending, Running};
                    version += 1;
                    let mut object = job(u128::from(number), version, [Pending, Running, Completed, Failed][usize::from(stage)]);
                    // Each entry into Running is a run of its own.
                    if let Facts::Training(facts) = &mut object.facts && stage == 1 {
                        facts.started_at = Some(at(version as i64 * 1000));
                    }
                    for event in engine.observe(seen(object), at(now)).events {
                        prop_assert!(!happened.contains(&event.id), "no id stands for two events");
                        happened.push(event.id);
                    }
                }
                Step::End(which, how) => {
                    if !under_way.is_empty() {
                        let attempt = under_way.remove(usize::from(which) % under_way.len());
                        let result = match how {
                            0..=4 => AttemptResult::Acknowledged,
                            5..=8 => AttemptResult::Failed { retry_after: None },
                            _ => AttemptResult::Withheld { hold: false },
                        };
                        let outcome = outcome(&attempt, result);
                        let settled = engine.settle(outcome, at(now), 0.5);
                        let life = lives.get_mut(&(attempt.webhook, attempt.event.id)).unwrap();
                        life.under_way = false;
                        match settled.map(|settled| settled.verdict) {
                            Some(Verdict::Delivered) => life.ended = true,
                            Some(Verdict::GivenUp(reason)) => {
                                prop_assert_eq!(reason, Reason::Exhausted);
                                prop_assert_eq!(life.attempts, bounds[&attempt.webhook].1 + 1);
                                life.ended = true;
                            }
                            Some(Verdict::Retry(due)) => prop_assert!(due > at(now)),
                            None => life.attempts -= 1,
                        }
                    }
                }
                Step::Pass(millis) => now += i64::from(millis),
                Step::Hold(number, hold) => {
                    let uid = Uid::from_u128(1000 + u128::from(number));
                    if hold { held.insert(uid); } else { held.remove(&uid); }
                    let (concurrency, retries) = bounds[&uid];
                    engine.subscribe(Subscription { held: hold, ..subscription(u128::from(number), concurrency, retries) });
                }
            }
            while let Some(due) = engine.due(at(now)) {
                let attempt = match due {
                    Due::Attempt(attempt) => attempt,
                    Due::Keep(keep) => {
                        engine.kept(keep.webhook, keep.delivery);
                        continue;
                    }
                    Due::GivenUp(_) => panic!("no endpoint is gone"),
                };
                prop_assert!(!held.contains(&attempt.webhook), "a held Webhook begins nothing");
                let life = lives.entry((attempt.webhook, attempt.event.id)).or_default();
                prop_assert!(!life.ended && !life.under_way);
                life.under_way = true;
                life.attempts += 1;
                prop_assert_eq!(life.attempts, attempt.number);
                if attempt.number == 1 {
                    let rival = under_way.iter().find(|other| {
                        other.webhook == attempt.webhook && other.number == 1 && other.event.object.uid == attempt.event.object.uid
                    });
                    prop_assert!(rival.is_none(), "first attempts of one object's events do not overlap");
                    let told = order.entry((attempt.webhook, attempt.event.object.uid)).or_default();
                    // A withheld first attempt is begun again.
                    if told.last() != Some(&attempt.event.id) {
                        told.push(attempt.event.id);
                    }
                }
                under_way.push(attempt);
                for (webhook, (concurrency, _)) in &bounds {
                    let busy = under_way.iter().filter(|attempt| attempt.webhook == *webhook).count();
                    prop_assert!(busy <= *concurrency);
                }
            }
        }
        prop_assert_eq!(lives.len(), happened.len() * 3, "every event went to every Webhook");
        prop_assert!(lives.values().all(|life| life.ended), "and ended");
        for told in order.values() {
            let positions: Vec<usize> = told.iter().map(|id| happened.iter().position(|other| other == id).unwrap()).collect();
            prop_assert!(positions.is_sorted(), "first attempts go in the order of the events");
        }
        prop_assert!(bounds.keys().all(|webhook| engine.pending(*webhook) == 0));
    }
}

fn filtered(number: u128, filter: &str) -> Subscription {
    Subscription { filter: Some(Filter::read(filter).unwrap()), ..subscription(number, 1, 0) }
}

#[test]
fn a_filter_decides_who_gets_an_event_and_one_that_fails_lets_it_pass() {
    let mut engine = listed_engine(false);
    engine.subscribe(filtered(1, "object.metadata.name == 'job-1'"));
    engine.subscribe(filtered(2, "object.metadata.name == 'job-2'"));
    engine.subscribe(filtered(3, "object.metadata.name < 1"));
    engine.subscribe(subscription(4, 1, 0));
    let observed = engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    assert_eq!(observed.enqueued, [1, 3, 4].map(|number| Uid::from_u128(1000 + number)));
    let failed: Vec<(Uid, String)> =
        observed.unfiltered.into_iter().map(|failed| (failed.webhook, failed.error.to_string())).collect();
    let error = "line 1, column 22: `<` does not take a string and an int";
    assert_eq!(failed, [(Uid::from_u128(1003), error.to_owned())]);
}

#[test]
fn a_deletion_that_a_list_tells_is_filtered_by_what_was_last_seen() {
    let mut engine = listed_engine(false);
    let annotated = |number, owner: &str| Object {
        annotations: Some([("owner".to_owned(), owner.to_owned())].into()),
        ..job(number, 5, TrainingStage::Running)
    };
    for object in [annotated(1, "ada"), annotated(2, "bob"), job(3, 5, TrainingStage::Running)] {
        engine.observe(seen(object), at(0));
    }
    engine.subscribe(filtered(1, "object.metadata.annotations.owner == 'ada'"));
    assert!(engine.reads_annotations());
    engine.observe(change(Change::ListBegun), at(0));
    let observed = engine.observe(change(Change::ListEnded(9)), at(0));
    assert_eq!(names(&observed), ["training.failed"; 3]);
    assert_eq!(observed.enqueued.len(), 2, "ada's, and the one of which that is not known");
    assert_eq!(observed.unfiltered.len(), 1);
    assert_eq!(observed.unfiltered[0].event.object.name, "job-3");
    assert_eq!(observed.unfiltered[0].error, FilterError::NoAnnotations);
    engine.subscribe(subscription(1, 1, 0));
    assert!(!engine.reads_annotations());
}

/// A `ClusterWebhook` for the namespaces with this label.
fn selecting(number: u128, team: &str) -> Subscription {
    let selector = kube::core::Expression::Equal("team".into(), team.into()).into();
    Subscription { scope: Scope::Cluster(selector), ..subscription(number, 1, 0) }
}

fn team(name: &str) -> std::collections::BTreeMap<String, String> {
    [("team".to_owned(), name.to_owned())].into()
}

#[test]
fn a_deletion_goes_by_what_its_namespace_was_also_where_that_went_while_nobody_led() {
    let mut engine = listed_engine(false);
    engine.namespaces().seen("ns".into(), 1, team("a"), true);
    engine.subscribe(selecting(1, "a"));
    engine.subscribe(selecting(2, "b"));
    for number in [1, 2] {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    let mut engine = Engine::recover(None, 1, 4, remembered(&mut engine), at(0));
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", false);
    engine.subscribe(selecting(1, "a"));
    engine.subscribe(selecting(2, "b"));
    // Nobody knows the Namespace any more; one deletion is seen, the other told by a list.
    let observed = [
        engine.observe(deleted(job(1, 6, TrainingStage::Running)), at(0)),
        engine.observe(change(Change::ListBegun), at(0)),
        engine.observe(change(Change::ListEnded(9)), at(0)),
    ];
    for observed in [&observed[0], &observed[2]] {
        assert_eq!(names(observed), ["training.failed"]);
        assert_eq!(observed.enqueued, [Uid::from_u128(1001)]);
        assert!(observed.given_up.is_empty());
        assert!(observed.events[0].object.namespace_labels.is_none(), "what waits keeps no labels");
    }
}

#[test]
fn what_cannot_be_told_of_its_namespace_is_kept_and_neither_sent_nor_lost() {
    let mut engine = listed_engine(false);
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    engine.subscribe(selecting(1, "a"));
    engine.subscribe(Subscription { scope: Scope::Cluster(Selector::default()), ..subscription(2, 1, 0) });
    let observed = engine.observe(deleted(job(1, 6, TrainingStage::Running)), at(0));
    assert_eq!(observed.enqueued, [Uid::from_u128(1002)], "one that selects every namespace gets it");
    let [Settled { webhook, attempt: 0, verdict, dropped: false, .. }] = &observed.given_up[..] else {
        panic!("one is given up: {observed:#?}")
    };
    assert_eq!((*webhook, *verdict), (Uid::from_u128(1001), Verdict::GivenUp(Reason::NamespaceUnknown)));
    let Some(Due::Keep(keep)) = engine.due(at(0)) else { panic!("it becomes an object") };
    assert_eq!((keep.webhook, keep.given_up.reason), (Uid::from_u128(1001), Reason::NamespaceUnknown));
    engine.kept(keep.webhook, keep.delivery);
    assert!(engine.redeliver(keep.webhook, &keep.event), "asked for again it is sent");
}
