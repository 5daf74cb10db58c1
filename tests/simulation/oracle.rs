//! Checks the invariants of all runs. The oracle knows the model's whole history, and every event, attempt and flush.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Display,
};

use jiff::Timestamp;
use kube_core::SelectorExt;
use llmtune_core::ledger::SegmentKind;
use llmtune_core::{
    event::{
        Event, EventType,
        id::{EventId, OccurrenceName},
        lifecycle::{Gone, Lifecycle},
        object::{Facts, TrainingStage, Uid},
    },
    ledger::journal::{RecoveredState, Segment},
    subscription::index::Subscription,
};

use crate::{
    crossings::{Broken, Crossings},
    process::Hook,
    store::{KINDS, Life, State, Store},
};

/// Maximum number of lists for which all combinations are tried.
const MOST_GAPS: usize = 12;

/// The changes that a list hides: all between the position that it replaced and its own version.
#[derive(Debug)]
struct Gap {
    kind: usize,
    from: u64,
    to: u64,
    /// The kind was not served before: objects absent from the list are forgotten without an event.
    silent: bool,
}

/// The state of a watch in a flush.
#[derive(Clone, Debug)]
pub struct Flushed {
    pub kind: usize,
    pub name: String,
    pub epoch: u64,
    pub position: u64,
}

/// The contents of a flush.
#[derive(Debug, Default)]
pub struct Held {
    /// Whether it held all changes.
    pub complete: bool,
    /// Deliveries that have ended.
    pub ended: Vec<(Uid, EventId)>,
    /// Events since the previous flush.
    pub told: Vec<EventId>,
    /// Deliveries of these events.
    pub owed: Vec<(Uid, EventId)>,
    /// Deliveries with their number of failed attempts.
    pub failed: Vec<(Uid, EventId, u32)>,
    pub watches: Vec<Flushed>,
    /// The covered positions in the trails of measured figures.
    pub marks: Vec<(Uid, usize)>,
}

#[derive(Default)]
pub struct Oracle {
    pub violation: Option<String>,
    /// Deliveries that were acknowledged, stored as an object, or counted as dropped.
    pub reached: HashSet<(Uid, EventId)>,
    pub was_led: bool,
    /// The epoch of the ledger.
    pub ledger: u64,
    /// Events whose record has been flushed.
    pub recorded: HashSet<EventId>,
    gaps: Vec<Gap>,
    /// For events of serving objects: the occurrences of each id, and the ids of each occurrence.
    meanings: HashMap<EventId, BTreeSet<(Uid, EventType, u64)>>,
    names: HashMap<(Uid, EventType, u64), BTreeSet<EventId>>,
    /// Events that were attempted or stored as an object. The ids of all others are unknown outside, so a crash may
    /// void them.
    out: HashSet<EventId>,
    /// Deliveries whose end has been flushed.
    sealed: HashSet<(Uid, EventId)>,
    failed: HashMap<(Uid, EventId), u32>,
    /// The version of the list with which each epoch of a watch began.
    epochs: BTreeMap<(usize, u64), u64>,
    current: [Option<Flushed>; KINDS.len()],
    /// The leader of this flush.
    flushed_by: u64,
    /// Names of all watches that were ever flushed.
    names_of_watches: HashSet<String>,
    /// By kind: the newest epoch whose watch was withdrawn. The ledger may forget watches up to it.
    withdrawn: [u64; KINDS.len()],
    /// By kind: a watch of it was forgotten.
    was_forgotten: [bool; KINDS.len()],
    /// Deliveries in a flush. They must be made whatever happens to their watch.
    owed: HashSet<(Uid, EventId)>,
    pub crossings: Crossings,
    /// For each epoch of the ledger, its newest term and that term's leader.
    pub terms: BTreeMap<u64, (u64, u64)>,
    /// Leaders that outlived a restore. Their late writes are not part of the ledger.
    pub outlived: HashSet<u64>,
    /// Objects of timelines that a restore ended.
    lost: Vec<Life>,
    /// Objects that changed on a timeline whose leader outlived it.
    tainted: HashSet<Uid>,
    /// Objects whose records the engine may rebuild, so that their events may repeat. First, objects of a watch with a
    /// selector that lost and regained their label and were deleted before the existence check. Second, when a list is
    /// compared, objects without the label whose deletion would emit no event. Third, objects of a kind that is not
    /// served when its source returns under the same name.
    pub restarted: HashSet<Uid>,
    /// Objects that existed when a kind without a known watch was found missing.
    out_of_sight: HashSet<Uid>,
    /// By kind and by when the kind was found missing: the position of its watch at that time. A crash may undo a later
    /// time and continue from an earlier one.
    pub missing_from: HashMap<(usize, Timestamp), u64>,
    /// The versions at which objects lost their label. A position may not have passed them.
    unselected: HashSet<(Uid, u64)>,
    /// Versions of records that were committed before their watch's position.
    ahead: HashSet<(Uid, u64)>,
    /// The versions at which a watch with a baseline saw an object without knowing whether it existed before.
    seen_as_new: HashSet<(Uid, u64)>,
    /// Objects that an existence check found deleted, with the versions at which they had lost their label. They count
    /// as deleted at that version.
    pub found_gone: HashSet<(Uid, u64)>,
    pub required: usize,
    pub excused: usize,
}

/// An event that an observer with the full history of the object would emit.
struct ObjectEvents {
    event: EventType,
    id: EventId,
    /// The version that shows it.
    version: u64,
    /// The earliest time at which it can have happened.
    tick: u64,
}

impl Oracle {
    /// Records a violation. `rule` is the module and the number of the rule, as in the source code.
    pub fn fail(&mut self, rule: &str, what: impl Display) {
        self.violation.get_or_insert_with(|| format!("[{rule}] {what}"));
    }

    /// Records a violation of the rules for measured figures.
    pub fn heed<T: Default>(&mut self, judged: Result<T, Broken>) -> T {
        judged.unwrap_or_else(|(rule, what)| {
            self.fail(rule, what);
            T::default()
        })
    }

    /// The deliveries of an event that is observed now.
    pub fn audience(hooks: &BTreeMap<Uid, Hook>, event: &Event) -> Vec<(Uid, EventId)> {
        let fits = |hook: &Hook| {
            hook.subscription.events.contains(event.event_type)
                && hook.subscription.selector.matches(&event.object.labels)
        };
        hooks.iter().filter(|(_, hook)| fits(hook)).map(|(webhook, _)| (*webhook, event.id)).collect()
    }

    /// Whether a leader may emit an event of this object twice.
    pub fn may_repeat(&self, leader: u64, object: Uid) -> bool {
        self.outlived.contains(&leader) || self.restarted.contains(&object)
    }

    /// Whether the ledger ever contained a watch of this name.
    pub fn names_watch(&self, name: &str) -> bool {
        self.names_of_watches.contains(name)
    }

    /// The watch of a kind, with epochs up to this one, is no longer configured.
    pub fn withdrawn(&mut self, kind: usize, epoch: u64) {
        self.withdrawn[kind] = self.withdrawn[kind].max(epoch);
        self.was_forgotten[kind] = true;
    }

    /// A watch without recovered state finds its kind not served. Existing objects are a baseline when the kind is
    /// served. Their runs start later than that, so the runs of a previous watch are new to this one.
    pub fn absent(&mut self, store: &Store, kind: usize) {
        let there = store.lives.values().filter(|life| life.kind == kind).map(|life| life.uid);
        self.out_of_sight.extend(there.clone());
        self.restarted.extend(there.filter(|_| self.was_forgotten[kind]));
    }

    /// A list replaces a position.
    pub fn gap(&mut self, kind: usize, from: u64, to: u64, silent: bool) {
        self.gaps.push(Gap { kind, from: from.min(to), to, silent });
    }

    /// A partial flush holds this version of the object's record, which is newer than the flushed position.
    pub fn ahead(&mut self, uid: Uid, version: u64) {
        self.ahead.insert((uid, version));
    }

    pub fn unselected(&mut self, uid: Uid, version: u64) {
        self.unselected.insert((uid, version));
    }

    /// A list is compared with the records.
    pub fn forgotten(&mut self, store: &Store, kind: usize) {
        let unselected = |life: &&Life| life.kind == kind && life.states.iter().any(|state| !state.selected);
        self.restarted.extend(store.lives.values().filter(unselected).map(|life| life.uid));
    }

    fn is_in_gap(&self, kind: usize, first: u64, last: u64) -> bool {
        self.gaps.iter().any(|gap| gap.kind == kind && gap.from < first && last <= gap.to)
    }

    /// The version with which an epoch of a watch began.
    pub fn baseline(&self, kind: usize, epoch: u64) -> u64 {
        self.epochs.get(&(kind, epoch)).copied().unwrap_or_default()
    }

    /// A flush names this epoch.
    pub fn epoch(&mut self, kind: usize, epoch: u64, baseline: Option<u64>) {
        self.epochs.entry((kind, epoch)).or_insert(baseline.unwrap_or_default());
    }

    /// A new leader starts with its recovered state.
    pub fn leads(&mut self, epoch: u64, term: u64, leader: u64, memory: Option<&RecoveredState>) {
        self.was_led = true;
        self.terms.insert(epoch, (term, leader));
        let owed = self.crossings.leads(leader, memory);
        let owed = self.heed(owed);
        self.owed.extend(owed);
    }

    /// A segment is committed.
    pub fn put(&mut self, segment: &Segment, owner: u64) {
        if segment.spec.kind == SegmentKind::Journal
            && let Some((term, leader)) = self.terms.get(&segment.spec.epoch)
            && *leader != owner
            && !self.outlived.contains(&owner)
            && segment.spec.term <= *term
        {
            let what = format!(
                "#{owner} wrote {} in term {} although #{leader} leads in term {term}",
                segment.name, segment.spec.term
            );
            self.fail("ledger 1", what);
        }
    }

    /// A new ledger begins: all earlier state is void.
    pub fn begins(&mut self, epoch: u64) {
        self.ledger = epoch;
        self.sealed.clear();
        self.failed.clear();
        self.owed.clear();
        self.current = Default::default();
    }

    /// A recovered state must not be older than the last flush. `deleted` means that the whole previous ledger was
    /// deleted. A PUT of an earlier leader, in flight at that time, may have begun this ledger.
    pub fn recovered(&mut self, epoch: u64, memory: &RecoveredState, deleted: bool) {
        if epoch > self.ledger || (deleted && epoch < self.ledger) {
            self.begins(epoch);
        }
        let forgotten = self.current.iter().flatten().find(|flushed| {
            let known = memory.watches.iter().map(|known| &known.entry).find(|entry| entry.watch == flushed.name);
            let known = known.is_some_and(|entry| {
                // The next watch of a kind that is not served lists.
                let position = entry.missing_since.map_or(entry.position, |_| flushed.position);
                entry.epoch > flushed.epoch || (entry.epoch == flushed.epoch && position >= flushed.position)
            });
            !known && flushed.epoch > self.withdrawn[flushed.kind]
        });
        if let Some(forgotten) = forgotten.cloned() {
            self.fail("ledger 2", format!("the ledger forgot where a watch is: {forgotten:?}"));
        }
    }

    /// A flush of this leader is committed completely.
    pub fn flush_committed(&mut self, epoch: u64, leader: u64, held: Held) {
        self.recorded.extend(held.told);
        // A deposed leader that learns late of its commit wrote only what the new leader has read.
        let leads = self.terms.get(&epoch).is_none_or(|(_, newest)| *newest == leader);
        if epoch < self.ledger || !leads {
            return;
        }
        // If a flush was cut off and its record is rebuilt, its deliveries are repeated.
        self.sealed.extend(held.ended.into_iter().filter(|(_, event)| self.recorded.contains(event)));
        for (webhook, event, count) in held.failed {
            self.failed.insert((webhook, event), count);
        }
        if !held.complete {
            return;
        }
        if !self.outlived.contains(&leader) {
            self.owed.extend(held.owed);
            self.owed.extend(self.crossings.flush_committed(leader, held.marks));
        }
        let mut landed: [Option<Flushed>; KINDS.len()] = Default::default();
        for watch in held.watches {
            let kind = watch.kind;
            // A leader that learns of a restore discards its positions.
            let position = if self.outlived.contains(&leader) { 0 } else { watch.position };
            self.names_of_watches.insert(watch.name.clone());
            landed[kind] = Some(Flushed { position, ..watch });
        }
        let before = std::mem::replace(&mut self.current, landed);
        let before_by = std::mem::replace(&mut self.flushed_by, leader);
        let binding = !self.outlived.contains(&before_by);
        for before in before.into_iter().flatten().filter(|_| binding) {
            if self.current[before.kind].is_none() && before.epoch > self.withdrawn[before.kind] {
                self.fail("engine 8", format!("a flush forgot a watch: {before:?}"));
            }
        }
    }

    /// An attempt begins.
    pub fn attempted(&mut self, webhook: Uid, object: Uid, event: EventId, number: u32) {
        if self.restarted.contains(&object) {
            return;
        }
        if self.sealed.contains(&(webhook, event)) {
            self.fail("engine 8", format!("{event} goes to {webhook:?} again although its end was flushed"));
        }
        let failed = self.failed.get(&(webhook, event)).copied().unwrap_or_default();
        if number <= failed {
            self.fail(
                "engine 8",
                format!("attempt {number} of {event} to {webhook:?}, although {failed} failures were flushed"),
            );
        }
    }

    /// The store was restored to this version. `outlived` means that the leader kept running.
    pub fn restored(&mut self, now: &Store, before: &Store, outlived: bool) {
        let version = before.version;
        for life in now.lives.values() {
            let changed = life.now().version > version || life.deleted.is_some_and(|(at, _)| at > version);
            if changed {
                self.lost.push(life.clone());
                if outlived && !life.has_only_been_touched_since(version) {
                    self.tainted.insert(life.uid);
                }
            }
        }
        self.gaps.retain_mut(|gap| {
            gap.to = gap.to.min(version);
            gap.from < version
        });
        self.meanings.retain(|_, meanings| {
            meanings.retain(|(_, _, at)| *at <= version);
            !meanings.is_empty()
        });
        self.names.retain(|(_, _, at), _| *at <= version);
        self.epochs.values_mut().for_each(|baseline| *baseline = (*baseline).min(version));
        self.sealed.clear();
        self.recorded.clear();
        self.failed.clear();
        self.terms.clear();
        self.owed.clear();
        self.crossings.restored();
        self.current = Default::default();
    }

    /// The engine emits an event for an object of this version. `baseline` is the baseline version of the watch's
    /// epoch.
    pub fn occurred(&mut self, store: &Store, kind: usize, version: Option<u64>, baseline: Option<u64>, event: &Event) {
        // If the event is emitted again, its attempts start again.
        self.failed.retain(|(_, id), _| *id != event.id);
        let (uid, name) = (event.object.uid, &event.object.name);
        let lost = self.lost.iter().filter(|life| life.uid == uid);
        let lives: Vec<Life> = store.lives.get(&uid).into_iter().chain(lost).cloned().collect();
        let deleted = lives.iter().find_map(|life| life.deleted);
        let gone = deleted.is_some() || !store.lives.contains_key(&uid);
        let version = version.or(deleted.map(|(at, _)| at));
        if self.tainted.contains(&uid) {
            return;
        }
        let what = format!("{} of {name} ({uid:?}) at {version:?}", event.event_type);
        let Some(baseline) = baseline else {
            self.fail("engine 2", format!("{what} is told before its watch has a baseline"));
            return;
        };
        if version.is_some_and(|version| version <= baseline) && !self.out_of_sight.contains(&uid) {
            self.fail("engine 2", format!("{what} is told although it belongs to the baseline of {baseline}"));
        }
        if KINDS[kind].serving {
            if event.event_type == EventType::DeploymentDeleted && !gone {
                self.fail("engine 4", format!("{what} is told of a deployment that lives"));
            }
            let version = version.filter(|_| !happens_once(event.event_type)).unwrap_or_default();
            self.named(kind, (uid, event.event_type, version), event.id);
            return;
        }
        let true_of = |start, stage: Option<TrainingStage>, generation| {
            let name = match start {
                Some(start) => OccurrenceName::StartedAt(start),
                None => OccurrenceName::Generation(generation),
            };
            let fits = match event.event_type {
                EventType::TrainingStarted => {
                    stage.is_some_and(|stage| stage == TrainingStage::Running || stage.is_finished())
                }
                EventType::TrainingCompleted => stage == Some(TrainingStage::Completed),
                _ => gone || matches!(stage, Some(TrainingStage::Failed | TrainingStage::Cancelled)),
            };
            fits && EventId::new(KINDS[kind].source, uid, event.event_type, &name, 1, 0) == event.id
        };
        let states = lives.iter().flat_map(|life| &life.states);
        let holds = states.clone().any(|state| match &state.facts {
            Facts::Training(facts) => true_of(facts.started_at, facts.stage, state.generation),
            Facts::Serving(_) | Facts::Usage(_) => false,
        });
        if !holds {
            self.fail("engine 1", format!("{what} is told, and never was, or not under this id"));
        }
    }

    /// A watch that has a baseline sees an object at this version. `current` is the time up to which the watch had seen
    /// everything.
    pub fn sees(&mut self, store: &Store, (uid, version): (Uid, u64), current: Option<Timestamp>) {
        let Some(life) = store.lives.get(&uid) else { return };
        if current.is_none_or(|current| life.created >= current) {
            self.seen_as_new.insert((uid, version));
        }
    }

    /// Checks that an event of a training is news: it happened while the object was selected and after its creation, as
    /// far as the watch knows. `current` is the time up to which the watch had seen everything.
    pub fn is_news(
        &mut self,
        store: &Store,
        kind: usize,
        version: Option<u64>,
        current: Option<Timestamp>,
        event: &Event,
    ) {
        let uid = event.object.uid;
        let Some(life) = store.lives.get(&uid).filter(|_| !KINDS[kind].serving) else { return };
        if self.tainted.contains(&uid) || self.restarted.contains(&uid) || self.lost.iter().any(|lost| lost.uid == uid)
        {
            return;
        }
        let starts = event.event_type == EventType::TrainingStarted;
        let shows = |state: &&State| {
            let Facts::Training(facts) = &state.facts else { return false };
            let name = match facts.started_at {
                Some(start) => OccurrenceName::StartedAt(start),
                None => OccurrenceName::Generation(state.generation),
            };
            let stage = facts.stage.unwrap_or(TrainingStage::Pending);
            let fits = match event.event_type {
                EventType::TrainingStarted => stage == TrainingStage::Running || stage.is_finished(),
                EventType::TrainingCompleted => stage == TrainingStage::Completed,
                _ => matches!(stage, TrainingStage::Failed | TrainingStage::Cancelled),
            };
            fits && EventId::new(KINDS[kind].source, uid, event.event_type, &name, 1, 0) == event.id
        };
        // No state shows it: the object was deleted.
        let Some(state) = life.states.iter().find(shows) else { return };
        let Facts::Training(facts) = &state.facts else { return };
        let time = if starts { facts.started_at } else { facts.completed_at };
        let first = life.states.first().is_some_and(|first| first.version == state.version);
        // The first state may be hidden: the object was not selected, or a list passed the state over. If the watch
        // first saw the object in a later state that does not show the event, then it saw the change itself.
        let is_hidden = |state: &&State| !state.selected || self.is_in_gap(kind, state.version, state.version);
        let hidden = life.states.iter().take_while(is_hidden).count();
        let saw_change = life.states.iter().take(hidden + 1).any(|before| {
            let is_first_seen = self.seen_as_new.contains(&(uid, before.version));
            is_first_seen && version.is_some_and(|version| before.version < version) && !shows(&before)
        });
        if first && !saw_change && time.is_some_and(|time| time < life.created) {
            self.fail("engine 10", format!("{} of {} is told, from before its creation", event.event_type, life.name));
        }
        // A selected state that shows it is news by itself.
        let seen = life.states.iter().rposition(|state| Some(state.version) == version).unwrap_or_default();
        let comes_into_view = seen > 0 && !life.states[seen - 1].selected;
        if starts && comes_into_view && !state.selected && current.is_some_and(|current| life.created < current) {
            self.fail(
                "engine 10",
                format!("{} of {} is told, from before it was selected", event.event_type, life.name),
            );
        }
    }

    /// Each occurrence has one id and each id one occurrence, unless a list hides which occurrence it was.
    fn named(&mut self, kind: usize, occurrence: (Uid, EventType, u64), id: EventId) {
        let (uid, event, version) = occurrence;
        let meanings = self.meanings.entry(id).or_default();
        meanings.insert(occurrence);
        let versions: Vec<u64> = meanings.iter().map(|(_, _, version)| *version).collect();
        if meanings.iter().any(|(other, kind, _)| (*other, *kind) != (uid, event)) {
            self.fail("event/id", format!("{id} stands for events of two objects or types"));
        }
        self.names.entry(occurrence).or_default().insert(id);
        for other in versions {
            let (first, last) = (version.min(other), version.max(other));
            // If a count was never flushed and a list hides its occurrence, the count is used again.
            let hidden = !self.recorded.contains(&id) && self.is_in_gap(kind, first, first);
            if first != last && !hidden && !self.is_in_gap(kind, first, last) {
                self.fail("event/id", format!("{id} stands for {event} of {uid:?} at {other} and at {version}"));
            }
        }
        self.one_id(kind, occurrence, id);
    }

    /// An event is sent or stored.
    pub fn outgoing(&mut self, kind: usize, id: EventId) {
        self.out.insert(id);
        for occurrence in self.meanings.get(&id).cloned().unwrap_or_default() {
            self.one_id(kind, occurrence, id);
        }
    }

    /// Checks that no other id of this occurrence was sent.
    fn one_id(&mut self, kind: usize, occurrence: (Uid, EventType, u64), id: EventId) {
        let (uid, event, version) = occurrence;
        let mut names = self.names.get(&occurrence).into_iter().flatten();
        let another = names.any(|other| *other != id && self.out.contains(other));
        if another && version > 0 && !self.is_in_gap(kind, version, version) {
            self.fail("event/id", format!("{event} of {uid:?} at {version} has two ids"));
        }
    }

    /// Final check: the events of each object have reached all subscriptions of their time. The expected events are
    /// those of an observer who sees the whole history except for the changes that lists hid.
    pub fn judge(&mut self, store: &Store, hooks: &BTreeMap<Uid, Hook>) {
        let unpaid = |(webhook, _): &&(Uid, EventId)| hooks.contains_key(webhook);
        let unpaid = self.owed.difference(&self.reached).filter(unpaid).min().copied();
        if let Some((webhook, event)) = unpaid {
            self.fail("engine 8", format!("{event} was flushed, and {webhook:?} never got it"));
        }
        for life in store.lives.values() {
            let Some(Flushed { epoch, .. }) = self.current[life.kind] else { continue };
            if self.tainted.contains(&life.uid) || self.out_of_sight.contains(&life.uid) {
                continue;
            }
            let baseline = self.baseline(life.kind, epoch);
            let none_gone = HashSet::new();
            let (all, missing) = self.missing(life, baseline, &[], &none_gone, hooks);
            self.required += all;
            let Some(missing) = missing else { continue };
            let hidden = |gap: &&Gap| {
                let mut versions = life.states.iter().map(|state| state.version).chain(life.deleted.map(|(at, _)| at));
                gap.kind == life.kind && versions.any(|version| gap.from < version && version <= gap.to)
            };
            let whole = self.gaps.iter().filter(hidden);
            let later = whole.clone().flat_map(|gap| {
                let passed = self.unselected.iter().chain(&self.ahead);
                let passed = passed.filter(|(uid, at)| *uid == life.uid && gap.from < *at && *at < gap.to);
                passed.map(|(_, at)| Gap { from: *at, ..*gap })
            });
            let gaps: Vec<Gap> = whole.map(|gap| Gap { ..*gap }).chain(later).take(MOST_GAPS).collect();
            let excused = (0..1_usize << gaps.len()).any(|choice| {
                let chosen: Vec<&Gap> =
                    (0..gaps.len()).filter(|at| choice >> at & 1 == 1).map(|at| &gaps[at]).collect();
                [&none_gone, &self.found_gone]
                    .into_iter()
                    .any(|found_gone| self.missing(life, baseline, &chosen, found_gone, hooks).1.is_none())
            });
            if !excused {
                self.fail(
                    "engine 5 and 8",
                    format!("{missing} of {} ({:?}), although no list explains it", life.name, life.uid),
                );
            }
            self.excused += 1;
        }
    }

    /// The number of deliveries expected from an observer who lists at these gaps, and the first that never arrived.
    fn missing(
        &self,
        life: &Life,
        baseline: u64,
        gaps: &[&Gap],
        found_gone: &HashSet<(Uid, u64)>,
        hooks: &BTreeMap<Uid, Hook>,
    ) -> (usize, Option<String>) {
        let labels = BTreeMap::from([("team".into(), life.team.into())]);
        let mut all = 0;
        for expected in expected_events(life, baseline, gaps, &self.seen_as_new, found_gone) {
            for (webhook, hook) in hooks {
                let Subscription { events, selector, .. } = &hook.subscription;
                if !events.contains(expected.event) || !selector.matches(&labels) || hook.created >= expected.tick {
                    continue;
                }
                all += 1;
                let occurrence =
                    (life.uid, expected.event, if happens_once(expected.event) { 0 } else { expected.version });
                let reached = if KINDS[life.kind].serving {
                    let names = self.names.get(&occurrence).into_iter().flatten();
                    names.into_iter().any(|id| self.reached.contains(&(*webhook, *id)))
                } else {
                    self.reached.contains(&(*webhook, expected.id))
                };
                if !reached {
                    return (
                        all,
                        Some(format!("{webhook:?} never got the {} at {}", expected.event, expected.version)),
                    );
                }
            }
        }
        (all, None)
    }
}

const fn happens_once(event: EventType) -> bool {
    matches!(event, EventType::DeploymentCreated | EventType::DeploymentDeleted)
}

/// The context in which a state is seen.
#[derive(Clone, Copy)]
#[allow(clippy::struct_excessive_bools)]
struct Seen {
    /// There was no record of the object.
    first: bool,
    /// It was not selected before.
    returns: bool,
    /// A run begins with it.
    begins: bool,
    ends: bool,
    /// The object had an event before.
    announced: bool,
}

/// Whether the event of a training's state must be sent.
fn is_news(life: &Life, state: &State, event: EventType, seen: Seen) -> bool {
    let Seen { first, returns, begins, ends, announced } = seen;
    let Facts::Training(facts) = &state.facts else { return true };
    let starts = event == EventType::TrainingStarted;
    let time = if starts { facts.started_at } else { facts.completed_at };
    let past = time.is_some_and(|time| time < life.created) && (first || ends) && (starts || begins || !announced);
    !(past || (returns && begins))
}

/// How an observer sees a change of the object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Appearance {
    /// In the log, as of this state.
    State(usize),
    Deleted,
    /// In a list after a gap. The value is true if the kind was not served in the gap.
    Listed(bool),
}

fn expected_events(
    life: &Life,
    baseline: u64,
    gaps: &[&Gap],
    seen_as_new: &HashSet<(Uid, u64)>,
    found_gone: &HashSet<(Uid, u64)>,
) -> Vec<ObjectEvents> {
    let deleted = life.deleted.map_or(u64::MAX, |(at, _)| at);
    let changes = || {
        let states =
            life.states.iter().enumerate().map(|(at, state)| (state.version, Appearance::State(at), state.tick));
        states.chain(life.deleted.map(|(at, tick)| (at, Appearance::Deleted, tick)))
    };
    let is_hidden = |version| gaps.iter().any(|gap| gap.from < version && version <= gap.to);
    let visible = changes().filter(|(version, ..)| *version > baseline && !is_hidden(*version));
    let lists = gaps.iter().filter(|gap| gap.to > baseline).map(|gap| (gap.to, Appearance::Listed(gap.silent)));
    let mut sights: Vec<(u64, Appearance)> = visible.map(|(version, sight, _)| (version, sight)).chain(lists).collect();
    sights.sort_by_key(|(version, sight)| (*version, matches!(sight, Appearance::Listed(_))));
    sights.dedup();

    let source = KINDS[life.kind].source;
    let as_of = |version: u64| life.states.iter().rfind(|state| state.version <= version);
    let mut record = None;
    let (mut excluded, mut announced, mut newest, mut generation) = (false, false, 0, 0);
    if let Some(state) = as_of(baseline).filter(|state| state.selected && deleted > baseline) {
        record = Some(Lifecycle::baseline(&state.facts, state.generation));
        (newest, generation) = (state.version, state.generation);
    }
    let mut passed = baseline;
    let mut expected = Vec::new();
    // The object was first seen between two parts of a run that began while it was hidden. A watch that cannot know
    // whether the object existed before treats it as new: then no run was announced, and its deletion emits no event.
    let mut may_be_idle = false;
    for (version, sight) in sights {
        let tick = changes().filter(|(at, ..)| *at > passed).map(|(_, _, tick)| tick).min().unwrap_or(u64::MAX);
        passed = version;
        let (state, gone) = match sight {
            Appearance::State(at) => (Some(&life.states[at]), None),
            Appearance::Deleted => (as_of(version), Some(Gone::Deleted)),
            Appearance::Listed(true) if version >= deleted => {
                record = None;
                (None, None)
            }
            Appearance::Listed(false) if version >= deleted => (None, Some(Gone::Vanished)),
            Appearance::Listed(_) => (as_of(version), None),
        };
        let mut occurrences = Vec::new();
        match state {
            Some(state) if state.selected => {
                let returns = std::mem::take(&mut excluded);
                let first = record.is_none();
                if state.version > newest || first {
                    // The object existed before, unseen.
                    let was_hidden = life.states.iter().any(|past| past.version < state.version && !past.selected);
                    let before = record.unwrap_or_else(|| {
                        if was_hidden {
                            Lifecycle::baseline(&state.facts, state.generation)
                        } else {
                            Lifecycle::new(&state.facts)
                        }
                    });
                    let runs =
                        matches!(&state.facts, Facts::Training(facts) if facts.stage == Some(TrainingStage::Running));
                    let may_be_new = seen_as_new.contains(&(life.uid, state.version));
                    may_be_idle = (may_be_idle || (first && was_hidden && may_be_new)) && !runs;
                    let (mut emitted, after) = before.step(&state.facts, state.generation);
                    let begins = emitted.iter().any(|occurrence| occurrence.event == EventType::TrainingStarted);
                    let ends = emitted.iter().any(|occurrence| occurrence.event != EventType::TrainingStarted);
                    let seen = Seen { first, returns, begins, ends, announced };
                    // To a watch that treated the object as new, this run began unseen.
                    let may_begin_unseen = may_be_idle && returns;
                    emitted.retain(|occurrence| !may_begin_unseen && is_news(life, state, occurrence.event, seen));
                    announced |= !emitted.is_empty();
                    occurrences.extend(emitted.into_iter().map(|occurrence| (occurrence, state.version)));
                    record = Some(after);
                    (newest, generation) = (state.version, state.generation);
                }
            }
            // An object absent from the list is forgotten if its deletion emits no event or if the kind was not served,
            // whether it has the label or not.
            Some(_)
                if sight == Appearance::Listed(true)
                    || (sight == Appearance::Listed(false)
                        && record.as_ref().is_none_or(|record| !record.emits_on_delete())) =>
            {
                record = None;
            }
            Some(state) if matches!(sight, Appearance::State(_)) && found_gone.contains(&(life.uid, state.version)) => {
                let before = record.take().filter(|_| !excluded && !may_be_idle);
                let ends = before.map(|before| before.gone(Gone::Deleted, generation)).unwrap_or_default();
                occurrences.extend(ends.into_iter().map(|occurrence| (occurrence, version)));
            }
            Some(_) => excluded = true,
            None => {}
        }
        if let (Some(how), false, Some(before)) = (gone, excluded, record.clone()) {
            record = None;
            if !may_be_idle {
                occurrences.extend(before.gone(how, generation).into_iter().map(|occurrence| (occurrence, deleted)));
            }
        }
        expected.extend(occurrences.into_iter().map(|(occurrence, version)| {
            let id = EventId::new(source, life.uid, occurrence.event, &occurrence.name, 1, 0);
            ObjectEvents { event: occurrence.event, id, version, tick }
        }));
        if version >= deleted {
            break;
        }
    }
    expected
}
