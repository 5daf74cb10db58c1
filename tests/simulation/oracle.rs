//! What must hold whatever happens. It sees the model's whole history, and every event, attempt and flush.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use llmtune_webhooks::{
    event::{
        Event, EventType,
        id::{EventId, OccurrenceName},
        lifecycle::Gone,
        object::{Facts, TrainingStage, Uid},
    },
    ledger::{
        journal::{Kind as SegmentKind, Memory, Segment},
        record::Lifecycle,
    },
};

use crate::{
    process::Hook,
    store::{DEPLOYMENTS, KINDS, Life, Store, kind_of_uid},
};

/// What a list passed over: all between the position that it replaced and its own version.
#[derive(Debug)]
struct Gap {
    kind: usize,
    from: u64,
    to: u64,
}

/// What a watch had been flushed with.
type Flushed = Option<(u64, u64)>;

#[derive(Default)]
pub struct Oracle {
    pub violation: Option<String>,
    /// Acknowledged, kept as an object, or counted as dropped.
    pub reached: HashSet<(Uid, EventId)>,
    pub was_led: bool,
    /// By watch: the ledger has known a baseline of it.
    pub had_baseline: [bool; 3],
    gaps: Vec<Gap>,
    /// Of serving events: which occurrences an id stood for, and the other way round.
    meanings: HashMap<EventId, BTreeSet<(Uid, EventType, u64)>>,
    names: HashMap<(Uid, EventType, u64), BTreeSet<EventId>>,
    /// Deliveries whose end has been flushed.
    sealed: HashSet<(Uid, EventId)>,
    failed: HashMap<(Uid, EventId), u32>,
    /// The version of the list that each epoch of a watch began with.
    epochs: BTreeMap<(usize, u64), u64>,
    current: [Flushed; 3],
    /// Per epoch of the ledger, who leads.
    terms: BTreeMap<u64, (u64, u64)>,
    /// Lives of timelines that a restore ended.
    lost: Vec<Life>,
    /// Objects that changed on a timeline whose leader outlived it.
    tainted: HashSet<Uid>,
    pub required: usize,
    pub excused: usize,
}

/// What a lifecycle makes of an object's history.
struct Implied {
    version: u64,
    tick: u64,
    event: EventType,
    id: EventId,
    /// The version from which on its evidence is hidden.
    until: u64,
    /// What going meant is told after a gap too, if the record from before the gap would mind it: since when it would.
    minding: u64,
}

impl Oracle {
    pub fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// A list replaces a position.
    pub fn gap(&mut self, kind: usize, from: u64, to: u64) {
        self.gaps.push(Gap { kind, from: from.min(to), to });
    }

    fn is_in_gap(&self, kind: usize, first: u64, last: u64) -> bool {
        self.gaps.iter().any(|gap| gap.kind == kind && gap.from < first && last <= gap.to)
    }

    /// The version that an epoch of a watch began with.
    pub fn baseline(&self, kind: usize, epoch: u64) -> u64 {
        self.epochs.get(&(kind, epoch)).copied().unwrap_or_default()
    }

    /// A flush names this epoch.
    pub fn epoch(&mut self, kind: usize, epoch: u64, baseline: Option<u64>) {
        self.epochs.entry((kind, epoch)).or_insert(baseline.unwrap_or_default());
    }

    /// A new leader begins its work.
    pub fn leads(&mut self, epoch: u64, term: u64, leader: u64) {
        self.was_led = true;
        self.terms.insert(epoch, (term, leader));
    }

    /// A segment has landed.
    pub fn put(&mut self, segment: &Segment, owner: u64) {
        if segment.kind == SegmentKind::Journal
            && let Some((term, leader)) = self.terms.get(&segment.epoch)
            && *leader != owner
            && segment.term <= *term
        {
            let what = format!("#{owner} wrote {} in term {} although #{leader} leads in term {term}", segment.name, segment.term);
            self.fail(what);
        }
    }

    /// The ledger was lost: what was remembered is forgotten.
    pub fn ledger_lost(&mut self) {
        self.sealed.clear();
        self.failed.clear();
        self.current = [None; 3];
        self.had_baseline = [false; 3];
    }

    /// What a ledger remembers must not be older than what was flushed.
    pub fn recovered(&mut self, memory: &Memory) {
        for (kind, watch) in KINDS.iter().enumerate() {
            let entry = memory.watches.iter().find(|known| known.entry.watch == watch.name).map(|known| &known.entry);
            self.had_baseline[kind] |= entry.is_some();
            if let Some((epoch, position)) = self.current[kind]
                && entry.is_none_or(|entry| entry.epoch < epoch || (entry.epoch == epoch && entry.position < position))
                && !(entry.is_none() && kind == DEPLOYMENTS)
            {
                self.fail(format!("the ledger forgot where {} is: {position} in epoch {epoch}", watch.name));
            }
        }
    }

    /// A flush has landed whole.
    pub fn landed(
        &mut self,
        complete: bool,
        ended: Vec<(Uid, EventId)>,
        failed: Vec<(Uid, EventId, u32)>,
        watches: Vec<(usize, u64, u64)>,
    ) {
        self.sealed.extend(ended);
        for (webhook, event, count) in failed {
            self.failed.insert((webhook, event), count);
        }
        if complete {
            self.current = [None; 3];
            for (kind, epoch, position) in watches {
                self.current[kind] = Some((epoch, position));
                self.had_baseline[kind] = true;
            }
        }
    }

    /// An attempt begins.
    pub fn attempted(&mut self, webhook: Uid, event: EventId, number: u32) {
        if self.sealed.contains(&(webhook, event)) {
            self.fail(format!("{event} goes to {webhook:?} again although its end was flushed"));
        }
        let failed = self.failed.get(&(webhook, event)).copied().unwrap_or_default();
        if number <= failed {
            self.fail(format!("attempt {number} of {event} to {webhook:?}, although {failed} failures were flushed"));
        }
    }

    /// The store went back to this version; `outlived`: by the leader.
    pub fn restored(&mut self, now: &Store, before: &Store, outlived: bool) {
        let version = before.version;
        for life in now.lives.values() {
            let changed = life.now().version > version || life.deleted.is_some_and(|(at, _)| at > version);
            if changed {
                self.lost.push(life.clone());
                if outlived {
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
        self.failed.clear();
        self.terms.clear();
        self.current = [None; 3];
    }

    /// The engine tells an event, seen in an object of this version; `baseline`: of the watch's epoch.
    pub fn occurred(&mut self, store: &Store, kind: usize, version: Option<u64>, baseline: Option<u64>, event: &Event) {
        let (uid, name) = (event.object.uid, &event.object.name);
        let lost = self.lost.iter().filter(|life| life.uid == uid);
        let lives: Vec<Life> = store.lives.get(&uid).into_iter().chain(lost).cloned().collect();
        let deleted = lives.iter().find_map(|life| life.deleted);
        let gone = deleted.is_some() || !store.lives.contains_key(&uid);
        let version = version.or(deleted.map(|(at, _)| at));
        let what = format!("{} of {name} ({uid:?}) at {version:?}", event.event_type);
        let Some(baseline) = baseline else {
            self.fail(format!("{what} is told before its watch has a baseline"));
            return;
        };
        if version.is_some_and(|version| version <= baseline) {
            self.fail(format!("{what} is told although it belongs to the baseline of {baseline}"));
        }
        if kind == DEPLOYMENTS {
            if event.event_type == EventType::DeploymentDeleted && !gone {
                self.fail(format!("{what} is told of a deployment that lives"));
            }
            let once = matches!(event.event_type, EventType::DeploymentCreated | EventType::DeploymentDeleted);
            self.named(kind, (uid, event.event_type, version.filter(|_| !once).unwrap_or_default()), event.id);
            return;
        }
        let true_of = |start, stage: Option<TrainingStage>, generation| {
            let name = match start {
                Some(start) => OccurrenceName::StartedAt(start),
                None => OccurrenceName::Generation(generation),
            };
            let fits = match event.event_type {
                EventType::TrainingStarted => stage.is_some_and(|stage| stage == TrainingStage::Running || stage.is_finished()),
                EventType::TrainingCompleted => stage == Some(TrainingStage::Completed),
                _ => gone || matches!(stage, Some(TrainingStage::Failed | TrainingStage::Cancelled)),
            };
            fits && EventId::new(KINDS[kind].source, uid, event.event_type, name, 1, 0) == event.id
        };
        let states = lives.iter().flat_map(|life| &life.states);
        let holds = states.clone().any(|state| match &state.facts {
            Facts::Training(facts) => true_of(facts.started_at, facts.stage, state.generation),
            Facts::Serving(_) => false,
        });
        if !holds {
            self.fail(format!("{what} is told, and never was, or not under this id"));
        }
    }

    /// One id per occurrence, and one occurrence per id, as far as no list hides which it was.
    fn named(&mut self, kind: usize, occurrence: (Uid, EventType, u64), id: EventId) {
        let (uid, event, version) = occurrence;
        if self.tainted.contains(&uid) {
            return;
        }
        let meanings = self.meanings.entry(id).or_default();
        meanings.insert(occurrence);
        let versions: Vec<u64> = meanings.iter().map(|(_, _, version)| *version).collect();
        if meanings.iter().any(|(other, kind, _)| (*other, *kind) != (uid, event)) {
            self.fail(format!("{id} stands for events of two objects or types"));
        }
        let names = self.names.entry(occurrence).or_default();
        names.insert(id);
        let many = names.len() > 1 && version > 0;
        for other in versions {
            if other != version && !self.is_in_gap(kind, version.min(other), version.max(other)) {
                self.fail(format!("{id} stands for {event} of {uid:?} at {other} and at {version}"));
            }
        }
        if many && !self.is_in_gap(kind, version, version) {
            self.fail(format!("{event} of {uid:?} at {version} has two ids"));
        }
    }

    /// At the end of all: what the history implies has reached every subscriber.
    pub fn judge(&mut self, store: &Store, hooks: &BTreeMap<Uid, Hook>) {
        for life in store.lives.values() {
            let Some((epoch, _)) = self.current[life.kind] else { continue };
            let baseline = self.baseline(life.kind, epoch);
            if self.tainted.contains(&life.uid) {
                continue;
            }
            for implied in history(life, baseline) {
                for (webhook, hook) in hooks {
                    let subscription = &hook.subscription;
                    let wants = subscription.events.contains(implied.event)
                        && subscription.selector.matches(&BTreeMap::from([("team".into(), life.team.into())]))
                        && hook.created < implied.tick;
                    if wants {
                        self.must_have_reached(life, &implied, *webhook);
                    }
                }
            }
        }
    }

    fn must_have_reached(&mut self, life: &Life, implied: &Implied, webhook: Uid) {
        self.required += 1;
        let Implied { version, event, id, until, minding, .. } = *implied;
        let once = matches!(event, EventType::DeploymentCreated | EventType::DeploymentDeleted);
        let occurrence = (life.uid, event, if once { 0 } else { version });
        let reached = if life.kind == DEPLOYMENTS {
            self.names.get(&occurrence).into_iter().flatten().any(|id| self.reached.contains(&(webhook, *id)))
        } else {
            self.reached.contains(&(webhook, id))
        };
        if reached {
            return;
        }
        let deleted = life.deleted.map_or(u64::MAX, |(at, _)| at);
        let excused = if version == deleted {
            self.is_in_gap(life.kind, minding, deleted)
        } else if life.kind == DEPLOYMENTS {
            self.is_in_gap(life.kind, version, version)
        } else {
            self.is_in_gap(life.kind, version, until)
        };
        if !excused {
            let what = format!("{event} of {} ({:?}) at {version}, hidden at {until}, never reached {webhook:?}", life.name, life.uid);
            self.fail(what);
        }
        self.excused += 1;
        // A run that ended unseen, of an object that went unseen, still ends once.
        if matches!(event, EventType::TrainingCompleted | EventType::TrainingFailed) && version != deleted && until == deleted {
            let start = life.states.iter().find(|state| state.version == version).and_then(|state| match &state.facts {
                Facts::Training(facts) => facts.started_at,
                Facts::Serving(_) => None,
            });
            let Some(start) = start else { return };
            let source = KINDS[life.kind].source;
            let failed = EventId::new(source, life.uid, EventType::TrainingFailed, OccurrenceName::StartedAt(start), 1, 0);
            let gaps = self.gaps.iter().filter(|gap| gap.kind == life.kind && gap.from < version && until <= gap.to);
            let unknown = gaps.clone().any(|gap| gap.from < minding);
            if !unknown && !self.reached.contains(&(webhook, failed)) {
                self.fail(format!("the run of {} that ended at {version} and went at {deleted} never ended for {webhook:?}", life.name));
            }
        }
    }
}

/// What an observer that sees everything after this version tells.
fn history(life: &Life, baseline: u64) -> Vec<Implied> {
    let mut implied = Vec::new();
    let deleted = life.deleted.map_or(u64::MAX, |(at, _)| at);
    if deleted <= baseline {
        return implied;
    }
    let source = KINDS[kind_of_uid(life.uid)].source;
    let mut record: Option<Lifecycle> = None;
    let mut minding = None;
    let mut selected = false;
    for (at, state) in life.states.iter().enumerate() {
        let next = life.states.get(at + 1).map_or(u64::MAX, |next| next.version);
        selected = state.selected;
        if next <= baseline {
            continue;
        }
        if state.version <= baseline {
            if selected {
                let lifecycle = Lifecycle::baseline(&state.facts, state.generation);
                minding = lifecycle.would_mind_going().then_some(baseline);
                record = Some(lifecycle);
            }
            continue;
        }
        if !selected {
            minding = None;
            continue;
        }
        let before = record.take().unwrap_or_else(|| Lifecycle::new(&state.facts));
        let (occurrences, after) = before.clone().step(&state.facts, state.generation);
        let since = minding.unwrap_or(state.version);
        let begins = occurrences.iter().any(|occurrence| occurrence.event == EventType::TrainingStarted);
        minding = after.would_mind_going().then_some(if begins { state.version } else { since });
        for occurrence in occurrences {
            let hides = |later: &&crate::store::State| {
                let (again, _) = before.clone().step(&later.facts, later.generation);
                !later.selected || !again.iter().any(|other| (other.event, other.name) == (occurrence.event, occurrence.name))
            };
            implied.push(Implied {
                version: state.version,
                tick: state.tick,
                event: occurrence.event,
                id: EventId::new(source, life.uid, occurrence.event, occurrence.name, 1, 0),
                until: life.states[at + 1..].iter().find(hides).map_or(deleted, |later| later.version),
                minding: since,
            });
        }
        record = Some(after);
    }
    let Some(last) = life.states.last() else { return implied };
    if let (Some((version, tick)), true, Some(record)) = (life.deleted, selected, record) {
        for occurrence in record.gone(Gone::Deleted, last.generation) {
            let id = EventId::new(source, life.uid, occurrence.event, occurrence.name, 1, 0);
            let minding = minding.unwrap_or(version);
            implied.push(Implied { version, tick, event: occurrence.event, id, until: version, minding });
        }
    }
    implied
}
