//! A process of the operator: it opens the ledger and claims it, recovers its engine, watches, flushes and delivers. It
//! may be killed or paused between any two steps.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use jiff::Timestamp;
use llmtune_webhooks::{
    api::ledger_segment::SegmentKind,
    delivery::attempt::{Attempt, AttemptResult, Outcome},
    engine::{
        Due, Engine, Keep, Observed, Unflushed, Verdict,
        pace::{Intervals, Pace},
    },
    event::{
        Event,
        id::EventId,
        object::{Uid, WatchId},
        observation::{Change, Observation, Question},
    },
    ledger::{
        contents::{Reason, WatchEntry},
        journal::{self, Journal, Memory, NoLedger, Recovered, RememberedWatch, Resolution, Segment, Shape},
    },
    subscription::index::Subscription,
};

use crate::{
    Met,
    gauge::Meter,
    oracle::{Flushed, Held, Oracle},
    random::Random,
    store::{Answer, DEPLOYMENTS, KINDS, MAPPED, Mapping, Store, USAGE, kind_of_uid, kind_of_watch},
    watcher::{Watcher, subject},
};

const HOME: Uid = Uid::from_u128(7);

/// How an endpoint answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Well,
    Failing,
    Gone,
    Slow,
}

/// A Webhook.
#[derive(Debug)]
pub struct Hook {
    pub subscription: Subscription,
    pub mode: Mode,
    pub created: u64,
    /// Its status tells that the endpoint answered 410 to the spec of this generation.
    pub gone: Option<i64>,
}

/// A PUT under way.
#[derive(Debug)]
pub struct Put {
    pub owner: u64,
    pub segment: Segment,
    pub replaces: Option<String>,
}

/// What all processes share.
#[allow(clippy::struct_excessive_bools)]
pub struct Env {
    pub random: Random,
    pub store: Store,
    pub installed: [bool; KINDS.len()],
    pub with_deployments: bool,
    pub with_usage: bool,
    pub hooks: BTreeMap<Uid, Hook>,
    pub network: Vec<Put>,
    pub oracle: Oracle,
    pub met: Met,
    pub shape: Shape,
    pub millis: i64,
    /// When the Lease was acquired or renewed last.
    pub acquired: u64,
    /// When each event was told, by no process's clock; also by when it says that it was.
    pub told: HashMap<(EventId, Timestamp), i64>,
    pub tick: u64,
    /// Everything goes well from here on.
    pub calm: bool,
    pub trace: bool,
}

impl Env {
    /// The time by a clock that is off by so many milliseconds.
    fn time(&self, off: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + self.millis + off).unwrap_or(Timestamp::MAX)
    }

    /// When the Lease is acquired, by a clock that is off: later than by whoever acquired it before.
    fn acquire(&mut self, off: i64) -> u64 {
        self.acquired = (self.time(off).as_millisecond() as u64).max(self.acquired + 1);
        self.acquired
    }

    pub fn judge(&mut self) {
        if self.oracle.violation.is_none() {
            self.oracle.judge(&self.store, &self.hooks);
        }
    }

    pub fn breaks(&mut self, percent: usize) -> bool {
        !self.calm && self.random.chance(percent)
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:4} v{:<4} {}", self.tick, self.store.version, what());
        }
    }
}

/// An observation on its way to the engine.
#[derive(Debug)]
pub struct Item {
    pub watch: WatchId,
    pub kind: usize,
    pub change: Change,
    /// The version of the list, or of the change that unselected an object; a restore lowers it to where its timeline ended.
    pub as_of: u64,
    /// It was seen before the store was restored.
    pub outdated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Reading,
    Claiming,
    Leading,
    Dead,
}

/// A flush under way.
#[derive(Debug, Default)]
struct Flushing {
    rest: VecDeque<Segment>,
    /// Events that were told since the flush before, where it holds everything.
    told: Vec<EventId>,
    held: Held,
    /// The watches whose baseline it holds.
    baselines: Vec<WatchId>,
}

/// What a process knows of a watch that it has made known to its engine.
#[derive(Debug)]
struct Known {
    id: WatchId,
    /// The newest epoch that is known of it.
    epoch: u64,
    /// The version of the list that was its baseline; `None`: not known yet.
    baseline: Option<u64>,
    /// The ledger knows its baseline.
    baselined: bool,
    /// Its resource is recorded absent.
    absent: bool,
    /// The store was restored to this version, and no list was complete since.
    restored_to: Option<u64>,
    /// A list has begun and has not ended.
    in_list: bool,
}

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)]
pub struct Process {
    pub number: u64,
    /// Milliseconds by which its clock is off.
    off: i64,
    /// When it acquired the Lease, by its clock or later, and by none.
    epoch: u64,
    acquired_at: i64,
    pub phase: Phase,
    pub paused: bool,
    /// Its claim of the Lease has lapsed, and another has led since.
    pub lapsed: bool,
    pub stopping: bool,
    journal: Option<Journal>,
    memory: Option<Box<Memory>>,
    pub engine: Option<Engine>,
    pub watchers: Vec<Watcher>,
    pub queue: VecDeque<Item>,
    questions: Vec<Question>,
    pub attempts: Vec<Attempt>,
    keeps: Vec<Keep>,
    /// The PUT that it waits for.
    put: Option<Segment>,
    flushing: Option<Flushing>,
    pace: Option<Pace>,
    /// The last flush did not hold everything.
    has_more: bool,
    /// Ended deliveries that no flush has told of.
    ended: Vec<(Uid, EventId)>,
    /// By kind.
    watches: [Option<Known>; KINDS.len()],
    /// The number that the next watch gets.
    next_id: u16,
    /// What the ledger remembers of watches that are neither made known nor forgotten: name, epoch, position, absent.
    remembered: Vec<(String, u64, u64, bool)>,
    /// All WebhookSources are listed, and the watches are begun.
    listed: bool,
    /// The WebhookSources as it knows them.
    sources: [Option<Mapping>; KINDS.len()],
    meter: Option<Meter>,
    first_attempts: HashMap<(Uid, Uid), (Option<i64>, u32, EventId)>,
    /// Events that this process told, and the watch whose baseline was not flushed then.
    told: BTreeMap<EventId, Option<WatchId>>,
    told_since: Vec<EventId>,
    owed_since: Vec<(Uid, EventId)>,
    /// Measured events that are not flushed.
    withheld: BTreeSet<EventId>,
}

/// As the operator has it, but for a run that lasts less than a minute, and so that many flushes take several turns.
fn intervals() -> Intervals {
    Intervals { positions: Duration::from_secs(2), bytes: 1_500, ..Intervals::default() }
}

impl Process {
    /// `off`: the milliseconds by which its clock is off.
    pub fn new(number: u64, off: i64) -> Self {
        Self {
            number,
            off,
            epoch: 0,
            acquired_at: 0,
            phase: Phase::Reading,
            paused: false,
            lapsed: false,
            stopping: false,
            journal: None,
            memory: None,
            engine: None,
            watchers: Vec::new(),
            queue: VecDeque::new(),
            questions: Vec::new(),
            attempts: Vec::new(),
            keeps: Vec::new(),
            put: None,
            flushing: None,
            pace: None,
            has_more: false,
            ended: Vec::new(),
            watches: Default::default(),
            next_id: 0,
            remembered: Vec::new(),
            listed: false,
            sources: Default::default(),
            meter: None,
            first_attempts: HashMap::new(),
            told: BTreeMap::new(),
            told_since: Vec::new(),
            owed_since: Vec::new(),
            withheld: BTreeSet::new(),
        }
    }

    /// Renews the Lease.
    pub fn renew(&self, env: &mut Env) {
        let since_acquired = self.epoch + (env.millis - self.acquired_at) as u64;
        env.acquired = env.acquired.max(env.time(self.off).as_millisecond() as u64).max(since_acquired);
    }

    pub fn is_alive(&self) -> bool {
        self.phase != Phase::Dead
    }

    /// It runs and may begin things.
    pub fn is_working(&self) -> bool {
        self.phase == Phase::Leading && !self.paused && !self.lapsed
    }

    /// Reads the ledger and claims it.
    pub fn open(&mut self, env: &mut Env) {
        let found = env.store.all_found();
        self.epoch = env.acquire(self.off);
        self.acquired_at = env.millis;
        match journal::open(&found, HOME, env.shape, self.number) {
            Recovered::Ledger(journal, memory) => {
                env.say(|| {
                    format!("#{} reads the ledger: epoch {} term {}", self.number, journal.epoch(), journal.term())
                });
                env.oracle.recovered(journal.epoch(), &memory);
                env.store.ledger_harmed = false;
                self.journal = Some(*journal);
                self.memory = Some(memory);
            }
            Recovered::NoLedger { why, newest } => {
                env.say(|| format!("#{} finds no ledger: {why}", self.number));
                let excused = env.store.ledger_harmed || (matches!(why, NoLedger::Fresh) && found.is_empty());
                if !excused {
                    env.oracle
                        .fail("ledger 1 to 3", format!("the ledger cannot be opened, and nobody harmed it: {why}"));
                }
                env.met.new_epoch |= !found.is_empty() || env.oracle.was_led;
                self.journal = Some(Journal::begin(HOME, self.epoch.max(newest + 1), env.shape, self.number));
                self.memory = None;
            }
        }
        let Some(journal) = &mut self.journal else { return };
        match journal.claim() {
            Ok(claim) => {
                self.phase = Phase::Claiming;
                self.send(env, claim);
            }
            Err(error) => env.oracle.fail("ledger 1", format!("no claim: {error}")),
        }
    }

    fn send(&mut self, env: &mut Env, segment: Segment) {
        let predecessor = self.journal.as_ref().and_then(|journal| journal.predecessor(&segment));
        let is_there =
            |(name, version): (String, &str)| env.store.found(&name).is_some_and(|found| found.version == version);
        if !predecessor.is_none_or(is_there) {
            env.say(|| format!("#{} finds the store restored under {}", self.number, segment.name));
            env.met.restored_under = true;
            self.phase = if self.phase == Phase::Claiming { Phase::Reading } else { Phase::Dead };
            return;
        }
        let replaces = self.journal.as_ref().and_then(|journal| journal.version(&segment)).map(str::to_owned);
        env.say(|| {
            format!(
                "#{} puts {} term {} sequence {} over {replaces:?}",
                self.number, segment.name, segment.spec.term, segment.spec.sequence
            )
        });
        env.network.push(Put { owner: self.number, segment: segment.clone(), replaces });
        self.put = Some(segment);
    }

    pub fn waits_for(&self, put: &Put) -> bool {
        put.owner == self.number && self.put.as_ref() == Some(&put.segment)
    }

    /// No answer came: once more.
    pub fn resend(&mut self, env: &mut Env) {
        if let Some(segment) = self.put.take() {
            self.send(env, segment);
        }
    }

    pub fn answered(&mut self, env: &mut Env, answer: Answer) {
        let Some(segment) = self.put.take() else { return };
        let Some(journal) = &mut self.journal else { return };
        let resolution = match answer {
            Answer::Landed(version) => {
                journal.landed(&segment, version);
                Resolution::Landed
            }
            Answer::Conflict => {
                let resolution = journal.resolve(&segment, env.store.found(&segment.name));
                env.met.unanswered |= resolution == Resolution::Landed;
                env.say(|| format!("#{} met a conflict at {}: {resolution:?}", self.number, segment.name));
                resolution
            }
        };
        match (resolution, self.phase) {
            (Resolution::Landed, Phase::Claiming) => self.lead(env),
            (Resolution::Landed, _) => self.next_segment(env),
            (Resolution::Overwrite, _) => self.send(env, segment),
            (Resolution::Lost, Phase::Claiming) => self.phase = Phase::Reading,
            (Resolution::Lost, _) => {
                env.say(|| format!("#{} has lost", self.number));
                self.phase = Phase::Dead;
            }
        }
    }

    /// The claim has landed: takes up what was remembered.
    fn lead(&mut self, env: &mut Env) {
        env.say(|| format!("#{} leads", self.number));
        let (now, epoch) = (env.time(self.off), self.epoch);
        let shards = env.shape.shards;
        self.phase = Phase::Leading;
        self.pace = Some(Pace::new(intervals(), now));
        let Some(journal) = &self.journal else { return };
        env.oracle.leads(journal.epoch(), journal.term(), self.number, self.memory.as_deref());
        self.engine = Some(if let Some(memory) = self.memory.take() {
            let stands = |known: &RememberedWatch| {
                let WatchEntry { ref watch, epoch, position, absent, .. } = known.entry;
                // Of a history that a restore ended no position is gone on from.
                let position = if known.restored { position.min(1) } else { position };
                (watch.clone(), epoch, position, absent)
            };
            self.remembered = memory.watches.iter().map(stands).collect();
            Engine::recover(None, epoch, shards, *memory, now)
        } else {
            env.oracle.begins(journal.epoch());
            env.store.ledger_harmed = false;
            Engine::new(None, epoch, shards)
        });
        let built_in = [(0, true), (1, true), (DEPLOYMENTS, env.with_deployments), (USAGE, env.with_usage)];
        for (kind, _) in built_in.into_iter().filter(|(_, configured)| *configured) {
            self.add_watch(env, kind, KINDS[kind].name);
        }
        self.sync_hooks(env);
        if let Some(engine) = &mut self.engine {
            let mut orphans = engine.orphans();
            orphans.sort_unstable();
            for orphan in orphans {
                engine.unsubscribe(orphan);
            }
        }
        if env.random.chance(50) {
            self.begin(env);
        }
    }

    /// Makes a watch known to the engine, which takes up what is remembered of it.
    fn add_watch(&mut self, env: &mut Env, kind: usize, name: &str) {
        let Some(engine) = &mut self.engine else { return };
        let id = WatchId(self.next_id);
        self.next_id += 1;
        if kind == USAGE {
            engine.add_measured_watch(id, KINDS[kind].source, name);
        } else {
            engine.add_watch(id, KINDS[kind].source, name, KINDS[kind].selective);
        }
        let at = self.remembered.iter().position(|(known, ..)| known == name);
        let remembered = at.map(|at| self.remembered.swap_remove(at));
        let position = remembered.as_ref().map_or(0, |(_, _, position, _)| *position);
        if engine.position(id) != position {
            env.oracle.fail("engine 5", format!("{name} does not go on from {position}, where the ledger says"));
        }
        let known = Known {
            id,
            epoch: remembered.as_ref().map_or(0, |(_, epoch, ..)| *epoch),
            baseline: remembered.as_ref().map(|(_, epoch, ..)| env.oracle.baseline(kind, *epoch)),
            baselined: remembered.is_some(),
            absent: remembered.is_some_and(|(.., absent)| absent),
            restored_to: None,
            in_list: false,
        };
        self.watches[kind] = Some(known);
    }

    /// All WebhookSources are listed: the watches begin.
    fn begin(&mut self, env: &mut Env) {
        self.listed = true;
        for kind in MAPPED {
            if let Some(mapping) = env.store.sources[kind] {
                self.sources[kind] = Some(mapping);
                self.add_watch(env, kind, &mapping.watch(kind));
            }
        }
        let Some(engine) = &mut self.engine else { return };
        for name in engine.forget_other_watches() {
            env.met.withdrawn = true;
            let known = self.remembered.iter().find(|(known, ..)| *known == name);
            if let (Some(kind), Some((_, epoch, ..))) = (kind_of_watch(&name), known) {
                env.oracle.withdrawn(kind, *epoch);
            }
        }
        self.remembered.clear();
        self.questions = engine.open_questions();
        self.questions.sort_by_key(|question| question.uid);
        for kind in 0..KINDS.len() {
            self.start_watch(kind);
        }
    }

    /// Starts the task of a watch where the engine stands.
    fn start_watch(&mut self, kind: usize) {
        let (Some(engine), Some(Known { id, .. })) = (&self.engine, &self.watches[kind]) else { return };
        if kind == USAGE {
            self.meter = Some(Meter::new(*id));
            return;
        }
        self.watchers.retain(|watcher| watcher.kind != kind);
        self.watchers.push(Watcher::new(*id, kind, engine.position(*id)));
        self.watchers.sort_by_key(|watcher| watcher.kind);
    }

    /// Lists all WebhookSources, or takes in what became of one.
    pub fn catalog(&mut self, env: &mut Env) {
        if !self.listed {
            return self.begin(env);
        }
        let Some(kind) = MAPPED.into_iter().find(|kind| self.sources[*kind] != env.store.sources[*kind]) else {
            return;
        };
        let (before, now) = (self.sources[kind], env.store.sources[kind]);
        env.say(|| format!("#{} learns of {} that {before:?} is {now:?}", self.number, KINDS[kind].name));
        self.sources[kind] = now;
        if let (Some(before), Some(now)) = (before, now)
            && (before.uid, before.rules) == (now.uid, now.rules)
        {
            self.restart(env, kind);
            return;
        }
        self.withdraw(env, kind);
        if let Some(mapping) = now {
            env.met.mapped = true;
            let name = mapping.watch(kind);
            env.met.returned |= env.oracle.names_watch(&name);
            self.add_watch(env, kind, &name);
            self.start_watch(kind);
        }
    }

    /// Another task goes on with a watch, while observations of the one before are under way.
    fn restart(&mut self, env: &mut Env, kind: usize) {
        let (Some(engine), Some(known)) = (&self.engine, &self.watches[kind]) else { return };
        env.met.restarted |= self.queue.iter().any(|item| item.watch == known.id);
        env.met.restarted_in_list |= known.in_list;
        let id = known.id;
        let questions = engine.open_questions().into_iter().filter(|question| question.watch == id);
        self.questions.retain(|question| question.watch != id);
        self.questions.extend(questions);
        self.questions.sort_by_key(|question| question.uid);
        self.start_watch(kind);
    }

    /// Ends the watch of a WebhookSource.
    fn withdraw(&mut self, env: &mut Env, kind: usize) {
        let (Some(engine), Some(known)) = (&mut self.engine, self.watches[kind].take()) else { return };
        env.met.withdrawn_live = true;
        engine.remove_watch(known.id);
        env.oracle.withdrawn(kind, known.epoch);
        self.watchers.retain(|watcher| watcher.kind != kind);
        self.questions.retain(|question| question.watch != known.id);
    }

    /// Tells the engine of every Webhook that there is.
    pub fn sync_hooks(&mut self, env: &Env) {
        let Some(engine) = &mut self.engine else { return };
        for (uid, hook) in &env.hooks {
            engine.subscribe(hook.subscription.clone());
            if let Some(generation) = hook.gone {
                engine.mark_gone(*uid, generation);
            }
        }
        let there: BTreeSet<Uid> = env.hooks.keys().copied().collect();
        let known: BTreeSet<Uid> = engine.backlogs().map(|backlog| backlog.webhook).collect();
        for webhook in known.difference(&there) {
            if engine.subscription(*webhook).is_some() {
                engine.unsubscribe(*webhook);
            }
        }
    }

    /// Lets the task of a kind's watch go on.
    pub fn watch(&mut self, env: &mut Env, kind: usize) {
        let watcher = self.watchers.iter_mut().find(|watcher| watcher.kind == kind);
        if let Some(watcher) = watcher {
            watcher.step(env, &mut self.queue);
        } else if kind == USAGE
            && let Some(meter) = &mut self.meter
        {
            let now = env.time(self.off);
            meter.step(env, now, &mut self.queue);
        }
    }

    /// Lets the engine take in the next observation.
    pub fn consume(&mut self, env: &mut Env) {
        let Some(item) = self.queue.pop_front() else { return };
        env.say(|| format!("#{} observes {} {}", self.number, KINDS[item.kind].name, brief(&item.change)));
        if item.kind == USAGE {
            self.measure(env, item);
        } else {
            self.observe(env, item);
        }
    }

    fn observe(&mut self, env: &mut Env, item: Item) {
        let Some(engine) = &mut self.engine else { return };
        let Item { watch, kind, change, as_of, outdated } = item;
        let Some(known) = self.watches[kind].as_mut().filter(|known| known.id == watch) else {
            if !engine.observe(Observation { watch, change }, env.time(self.off)).events.is_empty() {
                env.oracle.fail("engine 9", "an event is told of a watch that was withdrawn");
            }
            return;
        };
        let subject = subject(&change);
        let begins = known.baseline.is_none();
        if matches!(change, Change::ListEnded(_)) && KINDS[kind].selective {
            env.oracle.forgotten(&env.store, kind);
        }
        let mut bookmark = 0;
        match &change {
            Change::ListBegun => {
                if !begins {
                    let position = engine.position(watch);
                    env.oracle.gap(kind, known.restored_to.map_or(position, |version| version.min(position)), as_of);
                }
                known.in_list = true;
            }
            Change::ListEnded(_) => {
                known.baseline.get_or_insert(as_of);
                known.restored_to = known.restored_to.filter(|_| outdated);
                env.met.came |= std::mem::take(&mut known.absent);
                known.in_list = false;
            }
            Change::Deleted(object) if KINDS[kind].selective => {
                let deleted = env.store.lives.get(&object.uid).and_then(|life| life.deleted);
                if deleted.is_none_or(|(version, _)| version != object.version) {
                    env.oracle.begun_anew.insert(object.uid);
                }
            }
            Change::Unselected(uid) => env.oracle.unselected(*uid, as_of),
            Change::NotInstalled if !known.absent => {
                env.met.went |= !begins;
                known.baseline = Some(as_of);
                known.baselined = false;
                known.absent = true;
                known.in_list = false;
            }
            Change::Bookmark(version) => bookmark = *version,
            _ => {}
        }
        let baseline = known.baseline.filter(|_| !begins);
        let observed = engine.observe(Observation { watch, change }, env.time(self.off));
        if engine.position(watch) < bookmark {
            env.oracle.fail("engine 5", format!("{bookmark} is passed, and the position stays"));
        }
        for event in &observed.events {
            let version = subject.filter(|(uid, _)| *uid == event.object.uid).map(|(_, version)| version);
            env.oracle.occurred(&env.store, kind, version, baseline, event);
        }
        let unwritten = Some(watch).filter(|_| !known.baselined);
        self.tell(env, unwritten, &observed);
        self.questions.extend(observed.questions);
    }

    /// Lets the engine take in what was measured, or what there is to measure.
    fn measure(&mut self, env: &mut Env, item: Item) {
        let Some(engine) = &mut self.engine else { return };
        let Item { watch, change, .. } = item;
        let object = match &change {
            Change::Only(there) => {
                env.oracle.crossings.only(there);
                None
            }
            Change::Gone(uid) => {
                env.oracle.crossings.gone(*uid);
                None
            }
            Change::Measured(object) => Some(object.clone()),
            _ => None,
        };
        let observed = engine.observe(Observation { watch, change }, env.time(self.off));
        if let Some(object) = object {
            let reached = observed.reached.as_ref().map(|(_, reached)| &reached[..]);
            let deliveries = observed.events.iter().flat_map(|event| Oracle::audience(&env.hooks, event)).collect();
            let judged = env.oracle.crossings.evaluated(&object, &observed.events, deliveries, reached, &mut env.met);
            env.oracle.heed(judged);
            self.withheld.extend(observed.events.iter().map(|event| event.id));
        } else if !observed.events.is_empty() {
            env.oracle.fail("engine 1", "an event is told of nothing that was measured");
        }
        self.tell(env, None, &observed);
    }

    /// Takes note of the events that an observation led to.
    fn tell(&mut self, env: &mut Env, unwritten: Option<WatchId>, observed: &Observed) {
        for event in &observed.events {
            env.say(|| format!("#{} tells {} of {} as {}", self.number, event.event_type, event.object.name, event.id));
            env.told.entry((event.id, event.observed_at)).or_insert(env.millis);
            let object = event.object.uid;
            if self.told.insert(event.id, unwritten).is_some() && !env.oracle.may_repeat(self.number, object) {
                env.oracle.fail("engine 1", format!("{} of {} is told twice", event.event_type, event.object.name));
            }
            self.told_since.push(event.id);
            if kind_of_uid(event.object.uid) != USAGE {
                self.owed_since.extend(Oracle::audience(&env.hooks, event));
            }
            // Told anew, it goes anew; if it was flushed before, that is caught.
            let ended = self.flushing.iter_mut().map(|flushing| &mut flushing.held.ended).chain([&mut self.ended]);
            ended.for_each(|ended| ended.retain(|(_, known)| *known != event.id));
            if let Some(flushing) = &mut self.flushing {
                flushing.held.failed.retain(|(_, known, _)| *known != event.id);
            }
        }
        for webhook in &observed.dropped {
            env.oracle.reached.extend(observed.events.iter().map(|event| (*webhook, event.id)));
        }
    }

    /// Answers a question.
    pub fn answer(&mut self, env: &mut Env) {
        if self.questions.is_empty() {
            return;
        }
        let question = self.questions.swap_remove(env.random.below(self.questions.len()));
        let living = env.store.lives(question.uid);
        let (watch, kind) = (question.watch, kind_of_uid(question.uid));
        let change = Change::Answer { question, living };
        self.queue.push_back(Item { watch, kind, change, as_of: 0, outdated: false });
    }

    /// Begins a flush, where one is due.
    pub fn flush(&mut self, env: &mut Env) {
        let (Some(engine), Some(journal)) = (&mut self.engine, &mut self.journal) else { return };
        if self.flushing.is_some() || self.phase != Phase::Leading {
            return;
        }
        // What it does not name would be forgotten.
        env.met.awaited |= engine.awaits_watches() && engine.unflushed() == Unflushed::Changes;
        let (now, Some(pace)) = (env.time(self.off), &mut self.pace) else { return };
        if pace.next(engine, journal, now).is_none_or(|at| at > now) {
            return;
        }
        let mut flush = pace.compose(engine, journal, now);
        flush.contents.records.sort_by_key(|entry| entry.uid);
        for (_, snapshot) in &mut flush.snapshots {
            snapshot.events.sort_by_key(|entry| entry.id);
            snapshot.records.sort_by_key(|entry| entry.uid);
        }
        let complete = flush.contents.watches.is_some();
        env.met.incomplete |= !complete;
        if !complete {
            for entry in &flush.contents.records {
                if let Some(record) = &entry.record {
                    env.oracle.ahead(entry.uid, record.version);
                }
            }
        }
        let mut held = Held { complete, ..Held::default() };
        if complete {
            held.ended = std::mem::take(&mut self.ended);
            held.told = std::mem::take(&mut self.told_since);
            held.owed = std::mem::take(&mut self.owed_since);
            held.marks = env.oracle.crossings.mark();
        }
        for entry in &flush.contents.events {
            let deliveries = entry.deliveries.iter();
            held.failed.extend(deliveries.map(|delivery| (delivery.webhook, entry.id, delivery.failed)));
        }
        let mut baselines = Vec::new();
        for entry in flush.contents.watches.iter().flatten() {
            if let Some(kind) = kind_of_watch(&entry.watch)
                && let Some(known) = &mut self.watches[kind]
            {
                env.oracle.epoch(kind, entry.epoch, known.baseline);
                known.epoch = entry.epoch;
                baselines.push(known.id);
                let (name, epoch, position) = (entry.watch.clone(), entry.epoch, entry.position);
                held.watches.push(Flushed { kind, name, epoch, position });
            }
        }
        let mut flushing = Flushing { rest: VecDeque::new(), told: held.told.clone(), held, baselines };
        let entries = flush.contents.len();
        let segments = match journal.lay_out(flush) {
            Ok(segments) => segments,
            Err(error) => {
                env.oracle.fail("ledger 3", format!("no flush: {error}"));
                return;
            }
        };
        let parts = segments.iter().filter(|segment| segment.spec.kind == SegmentKind::Journal);
        env.met.split |= parts.clone().count() > 1;
        env.met.overflow |= parts.map(|segment| segment.spec.records as usize).sum::<usize>() > entries;
        flushing.rest = segments.into();
        env.say(|| {
            format!(
                "#{} flushes {entries} entries, complete: {complete}, {} segments",
                self.number,
                flushing.rest.len()
            )
        });
        self.flushing = Some(flushing);
        self.next_segment(env);
    }

    fn next_segment(&mut self, env: &mut Env) {
        let Some(flushing) = &mut self.flushing else { return };
        if let Some(segment) = flushing.rest.pop_front() {
            self.send(env, segment);
            return;
        }
        let Some(flushing) = self.flushing.take() else { return };
        if let Some(engine) = &mut self.engine {
            engine.landed();
        }
        let Flushing { told, held, baselines, .. } = flushing;
        for known in self.watches.iter_mut().flatten() {
            known.baselined |= baselines.contains(&known.id);
        }
        for event in &told {
            self.withheld.remove(event);
        }
        for unwritten in self.told.values_mut() {
            *unwritten = unwritten.filter(|watch| !baselines.contains(watch));
        }
        self.has_more = !held.complete;
        if let Some(journal) = &self.journal {
            env.oracle.landed(journal.epoch(), self.number, held);
        }
    }

    /// Does what the engine wants done.
    pub fn due(&mut self, env: &mut Env) {
        let now = env.time(self.off);
        loop {
            let Some(engine) = &mut self.engine else { return };
            match engine.due(now) {
                None => return,
                Some(Due::Keep(keep)) => {
                    self.outgoing(env, &keep.event);
                    self.keeps.push(keep);
                }
                Some(Due::GivenUp(settled)) => {
                    if settled.dropped {
                        env.oracle.reached.insert((settled.webhook, settled.event.id));
                    }
                    return;
                }
                Some(Due::Attempt(attempt)) => {
                    env.say(|| {
                        format!(
                            "#{} attempts {} to {:?}, number {}",
                            self.number, attempt.event.id, attempt.webhook, attempt.number
                        )
                    });
                    self.begun(env, attempt);
                    return;
                }
            }
        }
    }

    /// Judges that an event goes out.
    fn outgoing(&self, env: &mut Env, event: &Event) {
        let kind = kind_of_uid(event.object.uid);
        env.oracle.outgoing(kind, event.id);
        if kind == USAGE {
            if self.withheld.contains(&event.id) {
                env.oracle.fail("engine 7", "a measured event is attempted before a flush that holds it has landed");
            }
            env.met.outlasted |= !self.told.contains_key(&event.id);
            let judged = env.oracle.crossings.attempted(event);
            env.oracle.heed(judged);
        }
        let awaits = |known: &Known| !known.baselined && self.told.get(&event.id) == Some(&Some(known.id));
        if self.watches[kind].iter().any(awaits) {
            env.oracle.fail("engine 6", "an attempt before its watch's baseline is flushed");
        }
    }

    /// Judges an attempt that begins.
    fn begun(&mut self, env: &mut Env, attempt: Attempt) {
        let Attempt { webhook, ref event, number, .. } = attempt;
        self.outgoing(env, event);
        let oracle = &mut env.oracle;
        let Some(hook) = env.hooks.get(&webhook) else {
            oracle.fail("engine 3", "an attempt to a Webhook that is deleted");
            return;
        };
        let subscription = &hook.subscription;
        if subscription.held {
            oracle.fail("pending 3", "a held Webhook begins an attempt");
        }
        let busy = self.attempts.iter().filter(|other| other.webhook == webhook).count();
        if busy >= subscription.concurrency {
            oracle.fail("pending 1", "more attempts at once than the Webhook's concurrency");
        }
        if number > subscription.max_retries + 1 {
            oracle.fail("delivery/schedule", "more attempts than the Webhook's retries");
        }
        if self.attempts.iter().any(|other| other.webhook == webhook && other.event.id == event.id) {
            oracle.fail("pending 1", "two attempts of one delivery at once");
        }
        oracle.attempted(webhook, event.object.uid, event.id, number);
        if number == 1 {
            let object = event.object.uid;
            let same =
                |other: &&Attempt| other.webhook == webhook && other.number == 1 && other.event.object.uid == object;
            if self.attempts.iter().find(same).is_some() {
                oracle.fail("pending 2", "first attempts of one object's events overlap");
            }
            let told = env.told.get(&(event.id, event.observed_at)).copied();
            let this = (told, event.sequence, event.id);
            if let Some(before) = self.first_attempts.insert((webhook, object), this)
                && before.2 != this.2
                && before >= this
                && !oracle.begun_anew.contains(&object)
            {
                oracle.fail("pending 2", format!("first attempts out of order: {before:?} before {this:?}"));
            }
        }
        self.attempts.push(attempt);
    }

    /// Lets an attempt under way end.
    pub fn end_attempt(&mut self, env: &mut Env) {
        if self.attempts.is_empty() {
            return;
        }
        let at = env.random.below(self.attempts.len());
        let webhook = self.attempts[at].webhook;
        let mode = env.hooks.get(&webhook).map_or(Mode::Well, |hook| hook.mode);
        let luck = if env.calm { 50 } else { env.random.below(100) };
        let failed = AttemptResult::Failed { retry_after: None };
        let (reaches, result) = match (mode, luck) {
            (_, 0..3) => (false, AttemptResult::Withheld { hold: false }),
            (Mode::Slow, 3..70) => return,
            // It arrives, and the answer does not.
            (Mode::Well, 3..8) => (true, failed),
            (Mode::Well, 8..14) | (Mode::Failing, _) => (false, failed),
            (Mode::Gone, _) => (false, AttemptResult::Gone),
            (Mode::Well | Mode::Slow, _) => (true, AttemptResult::Acknowledged),
        };
        let Attempt { delivery, event, generation, .. } = self.attempts.swap_remove(at);
        if reaches {
            env.oracle.reached.insert((webhook, event.id));
        }
        let outcome = Outcome { webhook, delivery, generation, result, exchange: None };
        let (now, random) = (env.time(self.off), env.random.unit());
        let Some(engine) = &mut self.engine else { return };
        let Some(settled) = engine.settle(outcome, now, random) else { return };
        env.say(|| format!("#{} settles {} at {webhook:?}: {:?}", self.number, event.id, settled.verdict));
        if settled.verdict == Verdict::Delivered {
            self.ended.push((webhook, event.id));
        }
        if settled.dropped {
            env.oracle.reached.insert((webhook, event.id));
        }
        if settled.verdict == Verdict::GivenUp(Reason::EndpointGone)
            && let Some(hook) = env.hooks.get_mut(&webhook)
            && env.random.chance(50)
        {
            hook.gone = Some(generation);
        }
    }

    /// Makes an object of a delivery that was given up.
    pub fn keep(&mut self, env: &mut Env) {
        if self.keeps.is_empty() {
            return;
        }
        let at = env.random.below(self.keeps.len());
        let luck = if env.calm { 50 } else { env.random.below(100) };
        let Keep { webhook, delivery, ref event, .. } = self.keeps[at];
        let key = (webhook, event.id);
        if luck < 10 {
            return;
        }
        env.say(|| format!("#{} keeps {} of {webhook:?} as an object", self.number, event.id));
        env.oracle.reached.insert(key);
        if luck < 20 {
            return;
        }
        self.keeps.swap_remove(at);
        self.ended.push(key);
        if let Some(engine) = &mut self.engine {
            engine.kept(webhook, delivery);
        }
    }

    /// The store went back under it, and all connections broke.
    pub fn restored(&mut self, env: &mut Env) {
        // What it held may have landed on the timeline that is no more.
        if let Some(flushing) = &mut self.flushing {
            let watches = std::mem::take(&mut flushing.held.watches);
            flushing.held = Held { watches, ..Held::default() };
        }
        let version = env.store.version;
        for item in &mut self.queue {
            item.as_of = item.as_of.min(version);
            item.outdated = true;
        }
        for known in self.watches.iter_mut().flatten() {
            known.restored_to = Some(known.restored_to.map_or(version, |before| before.min(version)));
            known.baseline = known.baseline.map(|baseline| baseline.min(version));
        }
        if let Some(meter) = &mut self.meter {
            meter.begun = false;
        }
        for watcher in &mut self.watchers {
            watcher.interrupt();
            watcher.check(env, &mut self.queue);
        }
        self.resend(env);
    }

    /// What was under way may have arrived all the same.
    pub fn kill(&mut self, env: &mut Env) {
        env.say(|| format!("#{} is killed", self.number));
        for attempt in &self.attempts {
            let well = env.hooks.get(&attempt.webhook).is_some_and(|hook| hook.mode == Mode::Well);
            if well && env.random.chance(50) {
                env.oracle.reached.insert((attempt.webhook, attempt.event.id));
            }
        }
        self.phase = Phase::Dead;
    }

    /// How many events it told since the last flush of everything.
    pub fn unflushed(&self) -> usize {
        self.told_since.len()
    }

    /// Between two turns of a flush, or in one.
    pub fn is_flushing(&self) -> bool {
        self.flushing.is_some() || self.has_more
    }

    pub fn term(&self) -> u64 {
        self.journal.as_ref().map_or(0, Journal::term)
    }

    /// Told to stop: attempts end, and the last flush lands.
    pub fn has_stopped(&self) -> bool {
        self.attempts.is_empty()
            && self.flushing.is_none()
            && self.engine.as_ref().is_none_or(|engine| engine.unflushed() != Unflushed::Changes)
    }

    /// Nothing is left to do.
    pub fn rests(&mut self, env: &Env) -> bool {
        let Some(engine) = &self.engine else { return false };
        self.phase == Phase::Leading
            && self.listed
            && self.sources == env.store.sources
            && self.meter.as_ref().is_none_or(|meter| meter.is_at_end(env))
            && self.queue.is_empty()
            && self.questions.is_empty()
            && self.attempts.is_empty()
            && self.keeps.is_empty()
            && self.flushing.is_none()
            && engine.unflushed() != Unflushed::Changes
            && engine.backlogs().all(|backlog| backlog.pending == 0)
            && self.watchers.iter().all(|watcher| watcher.is_at_end(env))
    }
}

fn brief(change: &Change) -> String {
    match change {
        Change::Seen(object) => format!("seen {} {:.200}", object.version, format!("{:?}", object.facts)),
        Change::Deleted(object) => format!("deleted {} {}", object.version, object.name),
        Change::Answer { question, living } => format!("answer {} living {living}", question.name),
        other => format!("{other:?}"),
    }
}
