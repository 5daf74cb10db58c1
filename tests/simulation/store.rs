//! A model of the apiserver's store, all under one resource version: the objects of each watch with their history, the
//! part of the log that is not compacted, the WebhookSources, the figures, and the ledger's segments.

use std::collections::BTreeMap;

use jiff::Timestamp;
use llmtune_core::{
    event::object::{Facts, Object, Uid},
    ledger::journal::{Found, Segment},
};

use crate::gauge::Gauge;

/// The objects of one watch.
pub struct StoredKind {
    /// Part of its events' ids.
    pub source: &'static str,
    /// Name of its watch. For a custom kind the hash of the rules follows.
    pub name: &'static str,
    pub selective: bool,
    pub serving: bool,
    /// A WebhookSource configures it.
    pub mapped: bool,
}

pub const KINDS: [StoredKind; 6] = [
    StoredKind::new("trainingjobs.llmtune.io", "jobs", [false; 3]),
    StoredKind::new("trainings.example.com", "labelled jobs", [true, false, false]),
    StoredKind::new("deployments.apps", "deployments", [false, true, false]),
    StoredKind::new("rollouts", "rollouts", [false, true, true]),
    StoredKind::new("trainjobs", "trainjobs", [true, false, true]),
    StoredKind::new("usagethresholds.llmtune.io", "usage", [false; 3]),
];
pub const DEPLOYMENTS: usize = 2;
/// Custom kinds, each of which a WebhookSource may watch.
pub const MAPPED: [usize; 2] = [3, 4];
/// Measured figures, which have no history in the store.
pub const USAGE: usize = 5;

impl StoredKind {
    const fn new(source: &'static str, name: &'static str, [selective, serving, mapped]: [bool; 3]) -> Self {
        Self { source, name, selective, serving, mapped }
    }
}

/// The kind whose watch has this name.
pub fn kind_of_watch(name: &str) -> Option<usize> {
    KINDS.iter().position(|kind| match name.strip_prefix(kind.name) {
        Some(rules) if kind.mapped => rules.starts_with('/'),
        rest => rest == Some(""),
    })
}

/// A WebhookSource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub uid: u64,
    /// The part of the spec that determines stages. It is part of the watch's name.
    pub rules: u64,
    /// The rest of its spec.
    pub edition: u64,
}

impl Mapping {
    pub fn watch(&self, kind: usize) -> String {
        format!("{}/{}", KINDS[kind].name, self.rules)
    }
}

/// The uid of the object with this number.
pub fn object_uid(kind: usize, number: u64) -> Uid {
    Uid::from_u128(u128::from(number) * 8 + kind as u128)
}

/// The kind of the object.
pub fn kind_of_uid(uid: Uid) -> usize {
    uid.shard(8)
}

/// An object between two changes.
#[derive(Clone, Debug)]
pub struct State {
    pub version: u64,
    pub tick: u64,
    pub generation: i64,
    pub selected: bool,
    pub facts: Facts,
}

/// An object with its history.
#[derive(Clone, Debug)]
pub struct Life {
    pub uid: Uid,
    pub kind: usize,
    pub name: String,
    pub team: &'static str,
    pub created: Timestamp,
    pub states: Vec<State>,
    /// The version and the tick of its deletion.
    pub deleted: Option<(u64, u64)>,
}

impl Life {
    pub fn now(&self) -> &State {
        &self.states[self.states.len() - 1]
    }

    /// Whether it is a job whose lifecycle has seen no relevant change since this version.
    pub fn has_only_been_touched_since(&self, version: u64) -> bool {
        let Some(then) = self.states.iter().rfind(|state| state.version <= version) else { return false };
        let same = |state: &State| {
            let facts = match (&then.facts, &state.facts) {
                (Facts::Training(then), Facts::Training(now)) => {
                    (then.stage, then.started_at) == (now.stage, now.started_at)
                }
                // Their events are identified by the version that shows them.
                _ => false,
            };
            facts && (then.generation, then.selected) == (state.generation, state.selected)
        };
        self.deleted.is_none() && self.states.iter().filter(|state| state.version > version).all(same)
    }

    fn object(&self, state: &State, version: u64) -> Object {
        Object {
            uid: self.uid,
            version,
            generation: state.generation,
            namespace: "ns".into(),
            name: self.name.clone(),
            kind: None,
            labels: BTreeMap::from([("team".into(), self.team.into())]),
            namespace_labels: None,
            annotations: None,
            created_at: Some(self.created),
            owned: false,
            facts: state.facts.clone(),
        }
    }
}

/// An entry of the watch log.
#[derive(Clone, Debug)]
pub struct LogEntry {
    pub object: Object,
    pub deleted: bool,
}

/// The response to a PUT.
pub enum Answer {
    Landed(String),
    Conflict,
}

#[derive(Clone, Default)]
pub struct Store {
    pub version: u64,
    pub lives: BTreeMap<Uid, Life>,
    pub logs: [Vec<LogEntry>; KINDS.len()],
    pub compacted: [u64; KINDS.len()],
    /// By kind.
    pub sources: [Option<Mapping>; KINDS.len()],
    pub gauges: BTreeMap<Uid, Gauge>,
    pub segments: BTreeMap<String, (Segment, u64)>,
    /// Part of the ledger was deleted or damaged from outside.
    pub ledger_harmed: bool,
}

impl Store {
    pub fn create(&mut self, mut life: Life) {
        self.version += 1;
        life.states[0].version = self.version;
        let state = life.now();
        if state.selected {
            let object = life.object(state, state.version);
            self.logs[life.kind].push(LogEntry { object, deleted: false });
        }
        self.lives.insert(life.uid, life);
    }

    pub fn update(&mut self, uid: Uid, mut state: State) {
        self.version += 1;
        state.version = self.version;
        let Some(life) = self.lives.get_mut(&uid) else { return };
        let was_selected = life.now().selected;
        let entry = match (was_selected, state.selected) {
            (_, true) => Some(LogEntry { object: life.object(&state, state.version), deleted: false }),
            // A watch sees the loss of the label as a deletion, with the previous object under the version of the
            // change.
            (true, false) => Some(LogEntry { object: life.object(life.now(), state.version), deleted: true }),
            (false, false) => None,
        };
        life.states.push(state);
        self.logs[life.kind].extend(entry);
    }

    pub fn delete(&mut self, uid: Uid, tick: u64) {
        self.version += 1;
        let Some(life) = self.lives.get_mut(&uid) else { return };
        life.deleted = Some((self.version, tick));
        if life.now().selected {
            let entry = LogEntry { object: life.object(life.now(), self.version), deleted: true };
            self.logs[life.kind].push(entry);
        }
    }

    pub fn lives(&self, uid: Uid) -> bool {
        self.lives.get(&uid).is_some_and(|life| life.deleted.is_none())
    }

    /// The result of a list now, in the order of its keys.
    pub fn list(&self, kind: usize) -> Vec<Object> {
        let lives =
            self.lives.values().filter(|life| life.kind == kind && life.deleted.is_none() && life.now().selected);
        let mut objects: Vec<Object> = lives.map(|life| life.object(life.now(), life.now().version)).collect();
        objects.sort_by(|one, other| one.name.cmp(&other.name));
        objects
    }

    /// The next log entry after this version.
    pub fn after(&self, kind: usize, version: u64) -> Option<&LogEntry> {
        let log = &self.logs[kind];
        log.get(log.partition_point(|entry| entry.object.version <= version))
    }

    /// Compacts the log up to this version.
    pub fn compact(&mut self, kind: usize, version: u64) {
        self.compacted[kind] = self.compacted[kind].max(version);
        let gone = self.compacted[kind];
        self.logs[kind].retain(|entry| entry.object.version > gone);
    }

    /// Writes a segment if the stored segment has the version `replaces`. `None` requires that no such segment exists.
    pub fn put(&mut self, segment: &Segment, replaces: Option<&str>) -> Answer {
        let there = self.segments.get(&segment.name).map(|(_, version)| version.to_string());
        if there.as_deref() != replaces {
            return Answer::Conflict;
        }
        self.version += 1;
        self.segments.insert(segment.name.clone(), (segment.clone(), self.version));
        Answer::Landed(self.version.to_string())
    }

    pub fn found(&self, name: &str) -> Option<Found> {
        let (segment, version) = self.segments.get(name)?;
        Some(Found { segment: segment.clone(), version: version.to_string() })
    }

    pub fn all_found(&self) -> Vec<Found> {
        self.segments.keys().filter_map(|name| self.found(name)).collect()
    }
}
