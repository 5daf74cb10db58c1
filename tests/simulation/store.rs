//! A model of the apiserver's store: the objects of each watch with all that ever happened to them, its log as far as it is
//! not compacted, the WebhookSources, the figures, and the ledger's segments, all under one version.

use std::collections::BTreeMap;

use jiff::Timestamp;
use llmtune_webhooks::{
    event::object::{Facts, Object, Uid},
    ledger::journal::{Found, Segment},
};

use crate::gauge::Gauge;

/// What one watch is of.
pub struct StoredKind {
    /// Part of its events' ids.
    pub source: &'static str,
    /// Its watch's name; of a mapped kind the rules follow.
    pub name: &'static str,
    pub selective: bool,
    pub serving: bool,
    /// A WebhookSource asks for it.
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
/// The kinds of which a WebhookSource may ask for a watch.
pub const MAPPED: [usize; 2] = [3, 4];
/// What is measured: it has no history in the store.
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
    /// What decides stages: part of its watch's name.
    pub rules: u64,
    /// What else its spec says.
    pub edition: u64,
}

impl Mapping {
    pub fn watch(&self, kind: usize) -> String {
        format!("{}/{}", KINDS[kind].name, self.rules)
    }
}

/// The uid of the object of this number.
pub fn object_uid(kind: usize, number: u64) -> Uid {
    Uid::from_u128(u128::from(number) * 8 + kind as u128)
}

/// Which watch the object belongs to.
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

/// An object and all that happened to it.
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

    /// Whether it is a job, and nothing that its lifecycle looks at has changed since this version.
    pub fn has_only_been_touched_since(&self, version: u64) -> bool {
        let Some(then) = self.states.iter().rfind(|state| state.version <= version) else { return false };
        let same = |state: &State| {
            let facts = match (&then.facts, &state.facts) {
                (Facts::Training(then), Facts::Training(now)) => {
                    (then.stage, then.started_at) == (now.stage, now.started_at)
                }
                // An event of theirs is known by the version that it shows at.
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

/// What a watch is told.
#[derive(Clone, Debug)]
pub struct LogEntry {
    pub object: Object,
    pub deleted: bool,
}

/// What became of a PUT.
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
    /// Somebody took a part of the ledger away.
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
            // What is no longer selected is told as it was, under the version of the change.
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

    /// What a list of this watch holds now, in the order of its keys.
    pub fn list(&self, kind: usize) -> Vec<Object> {
        let lives =
            self.lives.values().filter(|life| life.kind == kind && life.deleted.is_none() && life.now().selected);
        let mut objects: Vec<Object> = lives.map(|life| life.object(life.now(), life.now().version)).collect();
        objects.sort_by(|one, other| one.name.cmp(&other.name));
        objects
    }

    /// What the log tells next after this version.
    pub fn after(&self, kind: usize, version: u64) -> Option<&LogEntry> {
        let log = &self.logs[kind];
        log.get(log.partition_point(|entry| entry.object.version <= version))
    }

    /// Forgets the log up to this version.
    pub fn compact(&mut self, kind: usize, version: u64) {
        self.compacted[kind] = self.compacted[kind].max(version);
        let gone = self.compacted[kind];
        self.logs[kind].retain(|entry| entry.object.version > gone);
    }

    /// Writes a segment, if what it replaces has this version; `None`: if there is none.
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
