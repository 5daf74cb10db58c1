//! Figures that whoever leads measures, and what must hold of their events. They have no history in the store.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use llmtune_webhooks::event::{
    Event, EventType,
    amount::{Amount, Level},
    id::EventId,
    object::{Facts, Object, Uid, UsageFacts, WatchId},
};

use crate::{random::Random, store::object_uid};

/// Their place among the kinds, and the number of their watch.
pub const USAGE: usize = 3;
pub const WATCH: WatchId = WatchId(USAGE as u16);
pub const NAME: &str = "usagethresholds.llmtune.io";
const FIGURES: usize = 2;

/// The figures as they are.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    values: [i64; FIGURES],
    limits: [i64; FIGURES],
}

impl Figures {
    pub fn uids() -> Vec<Uid> {
        (0..FIGURES as u64).map(|number| object_uid(USAGE, number)).collect()
    }

    /// One of them, perhaps moved, as an evaluation shows it.
    pub fn measure(&mut self, random: &mut Random, now: Timestamp) -> Object {
        let number = random.below(FIGURES);
        if random.chance(60) {
            self.values[number] = [10, 55, 85, 97][random.below(4)];
        }
        if random.chance(5) {
            self.limits[number] = 1 - self.limits[number];
        }
        let amount = |number: i64| Amount::quantity(&number.to_string()).unwrap_or_default();
        let facts = UsageFacts {
            metric: "tokens".into(),
            value: amount(self.values[number]),
            limit: Some(amount(100 - self.limits[number])),
            thresholds: ["50%", "80%", "95"].iter().filter_map(|text| Level::parse(text).ok()).collect(),
            observed_at: now,
            ..UsageFacts::default()
        };
        let (uid, name) = (object_uid(USAGE, number as u64), format!("usage-{number}"));
        let object = EventType::UsageThresholdReached.outline(uid, "ns".into(), name);
        Object { generation: 1, facts: Facts::Usage(facts), ..object }
    }
}

/// What must hold of their events.
#[derive(Debug, Default)]
pub struct Crossings {
    /// A flush with event and record has landed.
    landed: HashSet<EventId>,
    /// Who must get what has landed.
    owed: HashSet<(Uid, EventId)>,
    /// What an id stood for.
    bodies: HashMap<EventId, String>,
    /// The store was restored: ids may be used again.
    restored: bool,
}

impl Crossings {
    /// A flush has landed that holds these.
    pub fn landed(&mut self, told: Vec<(Uid, EventId)>) {
        self.landed.extend(told.iter().map(|(_, event)| *event));
        self.owed.extend(told);
    }

    /// These land on a timeline that they were not composed for.
    pub fn may_have_landed(&mut self, told: &[(Uid, EventId)]) {
        self.landed.extend(told.iter().map(|(_, event)| *event));
    }

    /// The first announcement of a new ledger repeats an id.
    pub fn ledger_lost(&mut self) {
        self.bodies.clear();
        self.owed.clear();
    }

    pub fn restored(&mut self) {
        self.owed.clear();
        self.restored = true;
    }

    /// What is wrong with an attempt; `told`: by the process that makes it.
    pub fn attempted(&mut self, event: &Event, told: bool) -> Option<(&'static str, String)> {
        let id = event.id;
        if told && !self.landed.contains(&id) {
            return Some(("engine 7", format!("{id} is attempted, and no flush has landed that holds it")));
        }
        let body = event.body.as_str();
        let known = self.bodies.entry(id).or_insert_with(|| body.to_owned());
        (known != body && !self.restored).then(|| ("event/id", format!("{id} stands for {known} and {body}")))
    }

    /// What is owed to these Webhooks.
    pub fn owed(&self) -> impl Iterator<Item = &(Uid, EventId)> {
        self.owed.iter()
    }
}
