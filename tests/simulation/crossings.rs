//! Invariants of measured figures. The store has no history of them. This module therefore repeats each evaluation that
//! an engine processes. The state that a later engine recovers must be the result of one of these evaluations, and not
//! older than the last flush.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use llmtune_core::{
    event::{
        Event,
        amount::Level,
        id::{EventId, OccurrenceName},
        lifecycle::{Lifecycle, usage::UsageRecord},
        object::{Facts, Object, Uid},
    },
    ledger::{journal::RecoveredState, record::Record},
};
use serde_json::Value;

use crate::{
    Met,
    store::{KINDS, USAGE},
};

/// The rule that is broken, and how.
pub type Broken = (&'static str, String);

/// The state of a figure.
#[derive(Clone)]
struct Figure {
    lifecycle: Lifecycle,
    /// The number of its events so far.
    sequence: u32,
    /// Thresholds that it exceeded when a new ledger first looked at it, and ever since.
    found: BTreeSet<String>,
}

impl Figure {
    fn new(lifecycle: Lifecycle) -> Self {
        Self { lifecycle, sequence: 0, found: BTreeSet::new() }
    }

    fn is(&self, record: &Record) -> bool {
        self.lifecycle == record.lifecycle && self.sequence == record.sequence
    }
}

/// The result of an evaluation: the new state and its events.
#[derive(Default)]
struct Step {
    /// `None` if the ledger has no record of the figure.
    figure: Option<Figure>,
    events: Vec<EventId>,
    deliveries: Vec<(Uid, EventId)>,
}

#[derive(Default)]
pub struct Crossings {
    /// The number of the current leader.
    leader: u64,
    /// The engine has received the list of figures.
    known: bool,
    /// For each figure, the states from the last flush until now.
    trails: BTreeMap<Uid, Vec<Step>>,
    /// The store was restored: a recovered state may be older than the last flush.
    restored: bool,
    /// Events that were lost with their engine.
    void: HashSet<EventId>,
    /// Events that report a threshold of `found` again.
    repeats: HashSet<EventId>,
    /// Attempted events, each with its figure and threshold.
    sent: HashMap<EventId, (Uid, String)>,
    /// Recovered figures without an evaluation since the leader started.
    taken_up: HashSet<Uid>,
}

impl Crossings {
    /// A leader recovers its state. Returns the deliveries that it must make.
    pub fn leads(&mut self, leader: u64, memory: Option<&RecoveredState>) -> Result<Vec<(Uid, EventId)>, Broken> {
        self.leader = leader;
        let restored = std::mem::take(&mut self.restored);
        let watch =
            memory.and_then(|memory| memory.watches.iter().find(|watch| watch.entry.watch == KINDS[USAGE].name));
        self.known = watch.is_some();
        let records: HashMap<Uid, &Record> = watch
            .into_iter()
            .flat_map(|watch| watch.records.iter().flatten())
            .map(|(uid, record)| (*uid, record))
            .collect();
        self.taken_up = records.keys().copied().collect();
        let mut trails = std::mem::take(&mut self.trails);
        if watch.is_none() && !restored {
            self.void.extend(trails.values().flatten().flat_map(|step| &step.events));
        }
        if watch.is_none() || restored {
            trails.clear();
        }
        if restored {
            // These may come from a leader that outlived the restore.
            self.sent.clear();
        }
        let uids: BTreeSet<Uid> = trails.keys().chain(records.keys()).copied().collect();
        let mut owed = Vec::new();
        for uid in uids {
            let record = records.get(&uid).copied();
            let mut steps = trails.remove(&uid).unwrap_or_default();
            if restored {
                let figure =
                    record.map(|record| Figure { sequence: record.sequence, ..Figure::new(record.lifecycle.clone()) });
                steps.push(Step { figure, ..Step::default() });
            }
            let is = |step: &Step| match (&step.figure, record) {
                (Some(figure), Some(record)) => figure.is(record),
                (None, None) => true,
                _ => false,
            };
            let Some(at) = steps.iter().rposition(is) else {
                let record = record.map(|record| &record.lifecycle);
                return Err((
                    "engine 8",
                    format!("figure {uid:?} is remembered as {record:?}, which it was not since its last flush"),
                ));
            };
            self.void.extend(steps.drain(at + 1..).flat_map(|step| step.events));
            // A missing record is ambiguous: either the figure was not listed yet, or it is gone. Only deliveries up to
            // the earliest match are certain.
            let surely = steps.iter().position(is).unwrap_or(at);
            owed.extend(pass(&mut steps, surely));
            pass(&mut steps, at - surely);
            self.trails.insert(uid, steps);
        }
        Ok(owed)
    }

    /// The engine receives the list of figures.
    pub fn only(&mut self, there: &[Uid]) {
        if std::mem::replace(&mut self.known, true) {
            let gone: Vec<Uid> = self.trails.keys().filter(|uid| !there.contains(uid)).copied().collect();
            for uid in gone {
                self.gone(uid);
            }
            return;
        }
        for uid in there {
            let figure = Some(Figure::new(Lifecycle::Usage(UsageRecord::baseline())));
            self.trails.insert(*uid, vec![Step::default(), Step { figure, ..Step::default() }]);
        }
    }

    pub fn gone(&mut self, uid: Uid) {
        if let Some(steps) = self.trails.get_mut(&uid)
            && steps.last().is_some_and(|step| step.figure.is_some())
        {
            steps.push(Step::default());
        }
    }

    /// An engine processed an evaluation, emitted these events, and reported these thresholds as reached.
    pub fn evaluated(
        &mut self,
        object: &Object,
        events: &[Arc<Event>],
        deliveries: Vec<(Uid, EventId)>,
        reached: Option<&[String]>,
        met: &mut Met,
    ) -> Result<(), Broken> {
        let (uid, Facts::Usage(facts)) = (object.uid, &object.facts) else { return Ok(()) };
        if !self.known {
            let silent = events.is_empty() && reached.is_none();
            return if silent {
                Ok(())
            } else {
                Err(("engine 2", format!("{} is told before it is known what is there", object.name)))
            };
        }
        let steps = self.trails.entry(uid).or_insert_with(|| vec![Step::default()]);
        let before = steps.last().and_then(|step| step.figure.clone());
        let mut figure = before.clone().unwrap_or_else(|| Figure::new(Lifecycle::new(&object.facts)));
        let over =
            facts.thresholds.iter().filter(|level| level.of(facts.limit.as_ref()).is_some_and(|at| at <= facts.value));
        let over: BTreeSet<String> = over.map(Level::name).collect();
        if figure.lifecycle == Lifecycle::Usage(UsageRecord::baseline()) {
            met.rebuilt |= self.sent.values().any(|(of, _)| *of == uid);
            figure.found = over;
        } else {
            figure.found.retain(|name| over.contains(name));
        }
        let (occurrences, lifecycle) = figure.lifecycle.step(&object.facts, object.generation);
        figure.lifecycle = lifecycle;
        let names: Vec<String> = events.iter().map(|event| threshold(event)).collect();
        let expected = occurrences.iter().map(|occurrence| match &occurrence.name {
            OccurrenceName::Threshold { threshold, .. } => threshold.clone(),
            other => format!("{other:?}"),
        });
        let expected: Vec<String> = expected.collect();
        if names != expected {
            return Err(("engine 1", format!("{} at {facts:?} tells {names:?} instead of {expected:?}", object.name)));
        }
        if reached != Some(&figure.lifecycle.reached(&object.facts)) {
            return Err(("engine 1", format!("{} has reached {reached:?}, or so it is told", object.name)));
        }
        met.crossed |= events.len() > 1;
        let taken_up = self.taken_up.remove(&uid);
        met.held_on |= taken_up && !events.is_empty() && !facts.hold.is_zero();
        for (event, occurrence) in events.iter().zip(&occurrences) {
            figure.sequence += 1;
            let id = EventId::new(KINDS[USAGE].source, uid, event.event_type, &occurrence.name, 1, 0);
            if event.sequence != figure.sequence || (id == event.id) != (occurrence.count == 1) {
                let what =
                    format!("{} of {} is number {} and {}", event.event_type, object.name, event.sequence, event.id);
                return Err(("event/id", what));
            }
            let OccurrenceName::Threshold { threshold, .. } = &occurrence.name else { continue };
            if figure.found.remove(threshold) && occurrence.count == 1 {
                self.repeats.insert(id);
            }
            met.told_anew |= self.void.remove(&event.id);
        }
        if !events.is_empty() || before.is_none_or(|before| before.lifecycle != figure.lifecycle) {
            let events = events.iter().map(|event| event.id).collect();
            steps.push(Step { figure: Some(figure), events, deliveries });
        } else if let Some(step) = steps.last_mut() {
            step.figure = Some(figure);
        }
        Ok(())
    }

    /// The positions that a complete flush composed now covers.
    pub fn mark(&self) -> Vec<(Uid, usize)> {
        self.trails.iter().map(|(uid, steps)| (*uid, steps.len() - 1)).collect()
    }

    /// The flush is committed. Returns the deliveries that must be made from now on.
    pub fn flush_committed(&mut self, leader: u64, marks: Vec<(Uid, usize)>) -> Vec<(Uid, EventId)> {
        let mut owed = Vec::new();
        for (uid, at) in marks.into_iter().filter(|_| leader == self.leader && !self.restored) {
            if let Some(steps) = self.trails.get_mut(&uid) {
                owed.extend(pass(steps, at));
            }
        }
        owed
    }

    /// An event is attempted, or stored as an object.
    pub fn attempted(&mut self, event: &Event) -> Result<(), Broken> {
        if self.void.contains(&event.id) {
            return Err(("engine 7", format!("{} is attempted, although what told it was not flushed", event.id)));
        }
        let body = event.body.as_str().to_owned();
        if let Some((_, known)) = self.sent.get(&event.id)
            && *known != body
            && !self.repeats.contains(&event.id)
        {
            return Err(("event/id", format!("{} stands for two crossings: {known} and {body}", event.id)));
        }
        self.sent.insert(event.id, (event.object.uid, body));
        Ok(())
    }

    /// The store was restored to an earlier state.
    pub fn restored(&mut self) {
        self.restored = true;
        self.void.clear();
    }
}

/// Removes the steps before this one, which are flushed, and returns their deliveries.
fn pass(steps: &mut Vec<Step>, at: usize) -> Vec<(Uid, EventId)> {
    let passed: Vec<Step> = steps.drain(..at).collect();
    let mut owed: Vec<(Uid, EventId)> = passed.into_iter().flat_map(|step| step.deliveries).collect();
    if let Some(step) = steps.first_mut() {
        owed.append(&mut step.deliveries);
        step.events.clear();
    }
    owed
}

/// The threshold of an event, by the name that all its spellings share.
fn threshold(event: &Event) -> String {
    let body: Value = serde_json::from_str(&format!("{}\"}}", event.body.as_str())).unwrap_or_default();
    let text = body["data"]["threshold"].as_str().unwrap_or_default();
    Level::parse(text).map_or_else(|_| text.to_owned(), |level| level.name())
}
