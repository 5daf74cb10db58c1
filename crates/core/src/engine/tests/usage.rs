//! Measured watches: their events are in the ledger before they are attempted.

use super::*;
use crate::event::{
    amount::{Amount, Level},
    object::UsageFacts,
};

const USAGE: WatchId = WatchId(7);
const RESOURCE: &str = "usagethresholds.llmtune.io";

fn figure(number: u128, value: i64, millis: i64) -> Object {
    let facts = UsageFacts {
        metric: "tokens".into(),
        value: Amount::quantity(&value.to_string()).unwrap(),
        limit: Some(Amount::quantity("100").unwrap()),
        thresholds: ["50%", "80%"].iter().map(|text| Level::parse(text).unwrap()).collect(),
        observed_at: at(millis),
        ..UsageFacts::default()
    };
    Object { facts: Facts::Usage(facts), name: format!("usage-{number}"), ..job(number, 0, TrainingStage::Pending) }
}

fn measured(change: WatchEvent) -> Observation {
    Observation { watch: USAGE, change }
}

fn evaluate(engine: &mut Engine, number: u128, value: i64, millis: i64) -> Observed {
    engine.observe(measured(WatchEvent::Measured(Box::new(figure(number, value, millis)))), at(millis))
}

/// Returns an engine with an empty measured watch and a watch of jobs.
fn engine() -> Engine {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 8, 0));
    engine.add_measured_watch(USAGE, RESOURCE, RESOURCE);
    engine.observe(measured(WatchEvent::Only(Vec::new())), at(0));
    flushed(&mut engine);
    engine
}

fn delivered(engine: &mut Engine, now: i64) -> Vec<String> {
    let mut delivered = Vec::new();
    while let Some(due) = engine.due(at(now)) {
        let Due::Attempt(attempt) = due else { continue };
        let body: serde_json::Value = serde_json::from_str(&attempt.event.body.close(at(now))).unwrap();
        let threshold = body["data"]["threshold"].as_str().unwrap_or("a job");
        delivered.push(format!("{} {threshold}", attempt.event.object.name));
        engine.record_outcome(outcome(&attempt, AttemptResult::Acknowledged), at(now), 0.5);
    }
    delivered
}

#[test]
fn measured_event_waits_for_its_flush_alone() {
    let mut engine = engine();
    evaluate(&mut engine, 1, 10, 0);
    assert_eq!(names(&evaluate(&mut engine, 1, 90, 1)), ["usage.threshold_reached"; 2]);
    engine.observe(seen(job(9, 5, TrainingStage::Running)), at(2));
    assert_eq!(delivered(&mut engine, 2), ["job-9 a job"]);
    let _ = engine.flush(&[], usize::MAX);
    assert!(delivered(&mut engine, 3).is_empty(), "it is composed and has not landed");
    evaluate(&mut engine, 2, 60, 4);
    engine.flush_committed();
    assert_eq!(delivered(&mut engine, 5), ["usage-1 50%", "usage-1 80%"], "the second was not in this flush");
    flushed(&mut engine);
    assert_eq!(delivered(&mut engine, 6), ["usage-2 50%"]);
}

#[test]
fn measured_event_waits_for_the_flush_of_its_record() {
    let mut engine = engine();
    evaluate(&mut engine, 1, 90, 0);
    assert!(engine.flush(&[], 1).contents.watches.is_none());
    engine.flush_committed();
    assert!(delivered(&mut engine, 1).is_empty());
    flushed(&mut engine);
    assert_eq!(delivered(&mut engine, 2), ["usage-1 80%"]);
}

#[test]
fn flushed_crossing_survives_crash_and_deletion() {
    let mut found = Vec::new();
    let mut write = |engine: &mut Engine, journal: &mut Journal, budget| {
        let flush = engine.flush(&[], budget);
        let complete = flush.contents.watches.is_some();
        let segments = journal.lay_out(flush).unwrap();
        engine.flush_committed();
        // The place of a claim is overwritten.
        found.retain(|found: &Found| segments.iter().all(|segment| segment.name != found.segment.name));
        found.extend(segments.into_iter().map(|segment| Found { segment, version: u64::MAX.to_string() }));
        let Recovered::Ledger(journal, memory) = journal::open(&found, HOME, shape(), 7) else { panic!("a ledger") };
        let claim = journal.claim().unwrap();
        found.push(Found { segment: claim, version: u64::MAX.to_string() });
        let mut next = Engine::recover(None, 1, 4, *memory, at(1));
        next.subscribe(subscription(1, 8, 0));
        next.add_measured_watch(USAGE, RESOURCE, RESOURCE);
        (next, *journal, complete)
    };
    let mut engine = Engine::new(None, 1, 4);
    engine.subscribe(subscription(1, 8, 0));
    engine.add_measured_watch(USAGE, RESOURCE, RESOURCE);
    engine.observe(measured(WatchEvent::Only(Vec::new())), at(0));
    let (mut engine, mut journal, _) = write(&mut engine, &mut Journal::begin(HOME, 1, shape(), 7), usize::MAX);
    evaluate(&mut engine, 2, 10, 0);
    let events = evaluate(&mut engine, 1, 60, 1).events;
    let room_for_one_record = 193 + events[0].body.len();
    let (mut engine, mut journal, complete) = write(&mut engine, &mut journal, room_for_one_record);
    assert!(!complete, "the record of the other figure is left");
    assert_eq!(engine.pending(Uid::from_u128(1001)), 1);
    engine.observe(measured(WatchEvent::Gone(Uid::from_u128(1))), at(2));
    let (mut engine, ..) = write(&mut engine, &mut journal, usize::MAX);
    assert_eq!(delivered(&mut engine, 3), ["usage-1 50%"]);
}

#[test]
fn next_measured_event_waits_for_the_previous_one() {
    let mut engine = engine();
    engine.subscribe(subscription(1, 1, 0));
    evaluate(&mut engine, 1, 10, 0);
    evaluate(&mut engine, 1, 60, 1);
    flushed(&mut engine);
    let first = attempt(&mut engine, 1);
    evaluate(&mut engine, 1, 90, 2);
    engine.record_outcome(outcome(&first, AttemptResult::Acknowledged), at(3), 0.5);
    assert!(engine.due(at(3)).is_none(), "the second is not flushed");
    evaluate(&mut engine, 1, 10, 4);
    flushed(&mut engine);
    assert_eq!(delivered(&mut engine, 5), ["usage-1 80%"]);
}

#[test]
fn dead_letter_of_a_measured_event_waits_for_its_flush() {
    let mut engine = engine();
    engine.subscribe(Subscription { held: true, ..subscription(1, 1, 0) });
    for number in 0..MAX_DELIVERIES as u128 {
        evaluate(&mut engine, 1000 + number, 60, 0);
    }
    flushed(&mut engine);
    let observed = evaluate(&mut engine, 1, 60, 1);
    assert_eq!(observed.given_up.len(), 1);
    assert!(engine.due(at(1)).is_none());
    flushed(&mut engine);
    assert!(matches!(engine.due(at(2)), Some(Due::StoreDeadLetter(keep)) if keep.event.object.name == "usage-1"));
    assert!(engine.due(at(2)).is_none());
}

#[test]
fn evaluation_without_a_crossing_needs_no_flush() {
    let mut engine = engine();
    assert_eq!(evaluate(&mut engine, 1, 60, 0).reached, Some((Uid::from_u128(1), vec!["50%".to_owned()])));
    flushed(&mut engine);
    delivered(&mut engine, 0);
    flushed(&mut engine);
    assert_eq!(evaluate(&mut engine, 1, 70, 1).reached, Some((Uid::from_u128(1), vec!["50%".to_owned()])));
    assert_eq!(engine.unflushed(), Unflushed::Nothing);
    assert_eq!(evaluate(&mut engine, 1, 10, 2).reached, Some((Uid::from_u128(1), Vec::new())));
    assert_eq!(engine.unflushed(), Unflushed::Changes);
}

#[test]
fn measurements_before_the_first_list_are_ignored() {
    let mut engine = Engine::new(None, 1, 4);
    engine.add_measured_watch(USAGE, RESOURCE, RESOURCE);
    assert!(evaluate(&mut engine, 1, 90, 0).events.is_empty());
    assert_eq!(engine.records(), 0);
}

#[test]
fn deleted_thresholds_send_nothing() {
    let mut engine = engine();
    for number in 1..=3 {
        evaluate(&mut engine, number, 90, 0);
    }
    assert!(engine.observe(measured(WatchEvent::Gone(Uid::from_u128(1))), at(1)).events.is_empty());
    assert_eq!(engine.records(), 2);
    let mut engine = Engine::recover(None, 1, 4, remembered(&mut engine), at(2));
    engine.add_measured_watch(USAGE, RESOURCE, RESOURCE);
    assert_eq!(engine.records(), 2);
    assert!(engine.observe(measured(WatchEvent::Only(vec![Uid::from_u128(3)])), at(3)).events.is_empty());
    assert_eq!(engine.records(), 1);
    assert!(evaluate(&mut engine, 3, 90, 4).events.is_empty(), "it is remembered");
    assert_eq!(flushed(&mut engine).gone.len(), 1);
}

#[test]
fn lost_ledger_repeats_the_announcement_with_its_id() {
    let ids = |epoch, before: Vec<Uid>| {
        let mut engine = Engine::new(None, epoch, 4);
        engine.add_measured_watch(USAGE, RESOURCE, RESOURCE);
        engine.observe(measured(WatchEvent::Only(before)), at(0));
        let mut ids = Vec::new();
        for value in [60, 90, 10, 90] {
            ids.extend(evaluate(&mut engine, 1, value, 1).events.iter().map(|event| event.id));
        }
        ids
    };
    let (first, second) = (ids(1, Vec::new()), ids(2, vec![Uid::from_u128(1)]));
    assert_eq!((first.len(), second.len()), (4, 4));
    assert_eq!(first[0], second[0]);
    assert!(second[1..].iter().all(|id| !first.contains(id)), "{first:?} {second:?}");
}

/// One step of a history that may include crashes.
#[derive(Clone, Copy, Debug)]
enum Step {
    Evaluate(i64),
    Deliver,
    /// Composes a flush of about this many bytes unless one is in progress.
    Flush(usize),
    /// Commits the next segment of the flush.
    Land,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => proptest::sample::select(vec![10, 55, 85]).prop_map(Step::Evaluate),
        3 => Just(Step::Deliver),
        3 => proptest::sample::select(vec![1, usize::MAX]).prop_map(Step::Flush),
        4 => Just(Step::Land),
        1 => Just(Step::Crash),
    ]
}

struct World {
    engine: Engine,
    journal: Journal,
    /// The segments of the flush in progress that are not committed.
    landing: Vec<journal::Segment>,
    store: HashMap<String, Found>,
    /// The events that were attempted: ID and body.
    sent: HashMap<EventId, String>,
    now: i64,
}

const HOME: Uid = Uid::from_u128(99);

fn shape() -> LedgerLayout {
    LedgerLayout { ring: 64, shards: 4, limit: 1 << 20 }
}

impl World {
    fn begin(mut engine: Engine, journal: Journal) -> Self {
        engine.subscribe(subscription(1, 8, 0));
        engine.add_measured_watch(USAGE, RESOURCE, RESOURCE);
        engine.observe(measured(WatchEvent::Only(vec![Uid::from_u128(1)])), at(0));
        Self { engine, journal, landing: Vec::new(), store: HashMap::new(), sent: HashMap::new(), now: 0 }
    }

    fn step(&mut self, step: Step) {
        self.now += 1;
        match step {
            Step::Evaluate(value) => {
                evaluate(&mut self.engine, 1, value, self.now);
            }
            Step::Deliver => {
                while let Some(Due::Attempt(attempt)) = self.engine.due(at(self.now)) {
                    let body = attempt.event.body.as_str().to_owned();
                    let known = self.sent.entry(attempt.event.id).or_insert_with(|| body.clone());
                    assert_eq!(*known, body, "one id, two crossings");
                    self.engine.record_outcome(outcome(&attempt, AttemptResult::Acknowledged), at(self.now), 0.5);
                }
            }
            Step::Flush(budget) if self.landing.is_empty() => {
                let wanted = self.journal.wanted();
                let flush = self.engine.flush(&wanted, if self.journal.is_pressed() { usize::MAX } else { budget });
                self.landing = self.journal.lay_out(flush).unwrap();
                self.landing.reverse();
                if self.landing.is_empty() {
                    self.engine.flush_committed();
                }
            }
            Step::Flush(_) => {}
            Step::Land => {
                if let Some(segment) = self.landing.pop() {
                    self.write(segment);
                    if self.landing.is_empty() {
                        self.engine.flush_committed();
                    }
                }
            }
            Step::Crash => {
                let found: Vec<Found> = self.store.values().cloned().collect();
                let Recovered::Ledger(journal, memory) = journal::open(&found, HOME, shape(), 8) else {
                    return;
                };
                let next = Self::begin(Engine::recover(None, 1, 4, *memory, at(self.now)), *journal);
                let (store, sent, now) = (std::mem::take(&mut self.store), std::mem::take(&mut self.sent), self.now);
                *self = Self { store, sent, now, ..next };
                let claim = self.journal.claim().unwrap();
                self.write(claim);
            }
        }
    }

    fn write(&mut self, segment: journal::Segment) {
        self.journal.committed(&segment, "1".into());
        self.store.insert(segment.name.clone(), Found { segment, version: u64::MAX.to_string() });
    }
}

proptest! {
    #[test]
    fn each_crossing_has_one_id_across_crashes(
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        let mut world = World::begin(Engine::new(None, 1, 4), Journal::begin(HOME, 1, shape(), 7));
        for step in steps.into_iter().chain([Step::Flush(usize::MAX), Step::Land, Step::Land, Step::Land]) {
            world.step(step);
        }
        while !world.landing.is_empty() {
            world.step(Step::Land);
        }
        world.step(Step::Flush(usize::MAX));
        while !world.landing.is_empty() {
            world.step(Step::Land);
        }
        world.step(Step::Deliver);
        prop_assert_eq!(world.engine.pending(Uid::from_u128(1001)), 0, "nothing is withheld for ever");
        // Each evaluation sends a threshold at most once.
        let keys: HashSet<(String, String)> = world.sent.values().map(|body| {
            let body: serde_json::Value = serde_json::from_str(&format!("{body}\"}}")).unwrap();
            (body["data"]["threshold"].to_string(), body["data"]["observedAt"].to_string())
        }).collect();
        prop_assert_eq!(keys.len(), world.sent.len());
    }
}
