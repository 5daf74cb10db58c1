//! The engine against arbitrary histories and endpoints: what must hold whatever happens.

use std::collections::{HashMap, HashSet};

use kube::core::Selector;
use proptest::prelude::*;

use super::*;
use crate::{
    delivery::schedule::Backoff,
    event::{
        EventSet,
        object::{Facts, TrainingFacts, TrainingStage},
    },
};

const WATCH: WatchId = WatchId(0);

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(1_700_000_000_000 + millis).unwrap()
}

fn subscription(number: u128, concurrency: usize, max_retries: u32) -> Subscription {
    let backoff = Backoff { initial: Duration::from_millis(100), factor: 2, max: Duration::from_secs(1) };
    Subscription {
        uid: Uid::from_u128(1000 + number),
        namespace: "ns".into(),
        generation: 1,
        events: EventSet::parse(&["*"]).unwrap(),
        selector: Selector::default(),
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
        labels: std::collections::BTreeMap::new(),
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
    Outcome { webhook, delivery, generation, result, status_code: None, error: None }
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
    engine.settle(&outcome(&first, AttemptResult::Acknowledged), at(0), 0.5);
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
    let settled = engine.settle(&outcome(&late, AttemptResult::Gone), at(0), 0.5).unwrap();
    assert!(matches!(settled.verdict, Verdict::Retry(_)) && !settled.gone);
    assert_eq!(attempt(&mut engine, 5000).number, 2);
}

#[test]
fn an_endpoint_that_is_gone_exhausts_what_waits_without_an_attempt_and_keeps_the_order_of_what_is_under_way() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 2, 5));
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    engine.observe(seen(job(1, 6, TrainingStage::Completed)), at(0));
    let first = attempt(&mut engine, 0);
    engine.settle(&outcome(&first, AttemptResult::Failed { retry_after: None }), at(0), 0.5);
    let second = attempt(&mut engine, 0);
    let retry = attempt(&mut engine, 5000);
    assert_eq!((second.number, retry.number), (1, 2));
    assert!(engine.settle(&outcome(&retry, AttemptResult::Gone), at(5000), 0.5).unwrap().gone);
    engine.settle(&outcome(&second, AttemptResult::Failed { retry_after: None }), at(5000), 0.5);
    let Some(Due::Keep(keep)) = engine.due(at(5000)) else { panic!("the first becomes an object") };
    assert_eq!((keep.delivery, keep.given_up.reason), (retry.delivery, Reason::EndpointGone));
    let Some(Due::Exhausted(settled)) = engine.due(at(9000)) else { panic!("the second is given up") };
    assert_eq!((settled.attempt, settled.gone, settled.pending), (1, true, 0));
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
                        let settled = engine.settle(&outcome, at(now), 0.5).unwrap();
                        let life = lives.get_mut(&(attempt.webhook, attempt.event.id)).unwrap();
                        life.under_way = false;
                        match settled.verdict {
                            Verdict::Delivered => life.ended = true,
                            Verdict::Exhausted => {
                                prop_assert_eq!(life.attempts, bounds[&attempt.webhook].1 + 1);
                                life.ended = true;
                            }
                            Verdict::Retry(due) => prop_assert!(due > at(now)),
                            Verdict::Withheld => life.attempts -= 1,
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
                    Due::Exhausted(_) => panic!("no endpoint is gone"),
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
