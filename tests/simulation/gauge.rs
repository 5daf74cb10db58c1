//! Figures that are measured against thresholds, and the task that measures them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use jiff::Timestamp;
use llmtune_core::event::{
    amount::{Amount, Level},
    object::{Facts, Object, Uid, UsageFacts, WatchId},
    observation::WatchEvent,
};

use crate::{
    process::{Env, Item},
    random::Random,
    store::USAGE,
};

const LADDERS: [&[&str]; 4] = [&["50%", "80%", "950"], &["80%"], &["50%", "500", "80%"], &["20%", "300", "50%", "80%"]];

/// A UsageThreshold and its figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Gauge {
    pub uid: Uid,
    pub name: String,
    pub team: &'static str,
    generation: i64,
    ladder: usize,
    limit: i64,
    hysteresis: &'static str,
    hold: Duration,
    value: i64,
}

impl Gauge {
    pub fn new(random: &mut Random, uid: Uid, name: String, team: &'static str) -> Self {
        let mut gauge = Self {
            uid,
            name,
            team,
            generation: 0,
            ladder: 0,
            limit: 1000,
            hysteresis: "5%",
            hold: Duration::ZERO,
            value: random.below(1100) as i64,
        };
        gauge.edit(random);
        gauge
    }

    /// The figure rises, falls or jumps. A quota's limit may change at the same time.
    pub fn turn(&mut self, random: &mut Random) {
        self.value = match random.below(10) {
            0..5 => self.value + random.below(400) as i64 - 200,
            5..7 => 0,
            7 => 1000,
            _ => random.below(1100) as i64,
        };
        self.value = self.value.max(0);
        if random.chance(4) {
            self.limit = [500, 1000, 2000][random.below(3)];
        }
    }

    /// The spec changes.
    pub fn edit(&mut self, random: &mut Random) {
        self.generation += 1;
        self.ladder = random.below(LADDERS.len());
        self.hysteresis = ["0%", "5%", "40"][random.below(3)];
        self.hold = Duration::from_millis([0, 0, 400][random.below(3)]);
    }

    /// The result of an evaluation now.
    pub fn object(&self, now: Timestamp) -> Object {
        let amount = |value: i64| Amount::quantity(&value.to_string()).unwrap_or_default();
        let levels = LADDERS[self.ladder].iter().filter_map(|text| Level::parse(text).ok());
        let facts = UsageFacts {
            metric: "tokens".into(),
            value: amount(self.value),
            limit: Some(amount(self.limit)),
            thresholds: levels.collect(),
            hysteresis: Level::parse(self.hysteresis).unwrap_or_default(),
            hold: self.hold,
            observed_at: now,
            ..UsageFacts::default()
        };
        Object {
            uid: self.uid,
            version: 0,
            generation: self.generation,
            namespace: "ns".into(),
            name: self.name.clone(),
            kind: None,
            labels: BTreeMap::from([("team".into(), self.team.into())]),
            namespace_labels: None,
            annotations: None,
            created_at: None,
            owned: false,
            facts: Facts::Usage(facts),
        }
    }
}

/// The measuring task: reports the list of figures, then evaluates them one by one.
#[derive(Debug)]
pub struct Meter {
    pub id: WatchId,
    /// It has reported the list of figures.
    pub begun: bool,
    known: BTreeSet<Uid>,
    /// For each figure its last measured state, and the times of its first and last measurement.
    measured: BTreeMap<Uid, (Gauge, Timestamp, Timestamp)>,
}

impl Meter {
    pub fn new(id: WatchId) -> Self {
        Self { id, begun: false, known: BTreeSet::new(), measured: BTreeMap::new() }
    }

    pub fn step(&mut self, env: &mut Env, now: Timestamp, queue: &mut VecDeque<Item>) {
        if env.breaks(2) {
            self.begun = false;
        }
        let change = if !self.begun {
            self.begun = true;
            self.known = env.store.gauges.keys().copied().collect();
            WatchEvent::Only(self.known.iter().copied().collect())
        } else if let Some(gone) = self.known.iter().find(|uid| !env.store.gauges.contains_key(uid)).copied() {
            self.known.remove(&gone);
            WatchEvent::Gone(gone)
        } else if env.store.gauges.is_empty() {
            return;
        } else {
            let at = env.random.below(env.store.gauges.len());
            let Some(gauge) = env.store.gauges.values().nth(at) else { return };
            self.known.insert(gauge.uid);
            let since = self.measured.get(&gauge.uid).filter(|(known, ..)| known == gauge).map(|(_, since, _)| *since);
            self.measured.insert(gauge.uid, (gauge.clone(), since.unwrap_or(now), now));
            WatchEvent::Measured(Box::new(gauge.object(now)))
        };
        queue.push_back(Item { watch: self.id, kind: USAGE, change, as_of: 0, outdated: false });
    }

    /// Whether another evaluation would report nothing new.
    pub fn is_at_end(&self, env: &Env) -> bool {
        let is_done = |gauge: &Gauge| {
            self.measured.get(&gauge.uid).is_some_and(|(known, since, last)| {
                known == gauge && last.duration_since(*since).unsigned_abs() >= gauge.hold
            })
        };
        self.begun && self.known.iter().eq(env.store.gauges.keys()) && env.store.gauges.values().all(is_done)
    }
}
