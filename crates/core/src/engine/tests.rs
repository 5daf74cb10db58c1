//! Property and unit tests of the engine against arbitrary histories and endpoints.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use kube_core::Selector;
use proptest::prelude::*;

use super::*;
use crate::{
    attempt::{Attempt, AttemptResult, Outcome},
    event::{
        EventSet, EventType,
        id::DeliveryId,
        object::{Facts, Object, TrainingFacts, TrainingStage},
        sample::sample,
    },
    ledger::{
        contents::{Contents, RecordEntry},
        journal::{self, Found, Journal, LedgerLayout, Recovered, RecoveredState},
    },
    schedule::Backoff,
    subscription::{filter::Filter, index::Scope},
};

mod attempts;
mod bounds;
mod flushes;
mod lives;
mod news;
mod subscribers;
mod succession;
mod usage;
mod watches;

const WATCH: WatchId = WatchId(0);
const KIB: usize = 1024;

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
    Observation { watch: WATCH, change: WatchEvent::Seen(Box::new(object)) }
}

fn change(change: WatchEvent) -> Observation {
    Observation { watch: WATCH, change }
}

fn listed_engine(selective: bool) -> Engine {
    let mut engine = Engine::new(None, 1, 4);
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", selective);
    engine.observe(change(WatchEvent::ListBegun), at(0));
    engine.observe(change(WatchEvent::ListEnded(1)), at(0));
    flushed(&mut engine);
    engine
}

fn flushed(engine: &mut Engine) -> Contents {
    let flush = engine.flush(&[], usize::MAX);
    engine.flush_committed();
    flush.contents
}

fn names(observed: &Observed) -> Vec<&'static str> {
    observed.events.iter().map(|event| event.event_type.name()).collect()
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

fn deleted(object: Object) -> Observation {
    change(WatchEvent::Deleted(Box::new(object)))
}

const FAILED: AttemptResult = AttemptResult::Failed { retry_after: None };

fn throttled(millis: u64) -> AttemptResult {
    AttemptResult::Throttled { retry_after: Duration::from_millis(millis) }
}

/// Returns the next attempt and skips dead letters.
fn attempt_past_stores(engine: &mut Engine, now: i64) -> Attempt {
    loop {
        match engine.due(at(now)) {
            Some(Due::StoreDeadLetter(_)) => {}
            Some(Due::Attempt(attempt)) => return attempt,
            other => panic!("an attempt is due, not {other:?}"),
        }
    }
}

/// Returns the recovered state after a complete flush.
fn remembered(engine: &mut Engine) -> RecoveredState {
    flush_committed_at(engine, u64::MAX)
}

/// Like `memory`, with the store version at which the flush was committed.
fn flush_committed_at(engine: &mut Engine, version: u64) -> RecoveredState {
    let (home, shape) = (Uid::from_u128(99), LedgerLayout { ring: 16, shards: 4, limit: 1 << 20 });
    let segments = Journal::begin(home, 1, shape, 7).lay_out(engine.flush(&[0, 1, 2, 3], usize::MAX)).unwrap();
    let found: Vec<Found> =
        segments.into_iter().map(|segment| Found { segment, version: version.to_string() }).collect();
    match journal::open(&found, home, shape, 8) {
        Recovered::Ledger(_, memory) => *memory,
        Recovered::NoLedger { why, .. } => panic!("{why}"),
    }
}
