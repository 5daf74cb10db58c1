//! A process of the operator: it opens the ledger and claims it, recovers its engine, watches, flushes and delivers. It
//! may be killed or paused between any two steps.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use jiff::Timestamp;
use llmtune_webhooks::{
    engine::{Attempt, AttemptResult, Change, Due, Engine, Keep, Observation, Outcome, Question, Unflushed, Verdict},
    event::{
        id::EventId,
        object::{Uid, WatchId},
    },
    ledger::journal::{self, Journal, Judgement, Kind as SegmentKind, Memory, Nothing, Opened, Segment, Shape},
    subscription::index::Subscription,
};

use crate::{
    Met,
    oracle::Oracle,
    random::Random,
    store::{Answer, DEPLOYMENTS, KINDS, Store, kind_of_uid},
    usage::{self, Figures, USAGE},
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
pub struct Env {
    pub random: Random,
    pub store: Store,
    pub figures: Figures,
    pub installed: [bool; 3],
    pub with_deployments: bool,
    pub hooks: BTreeMap<Uid, Hook>,
    pub network: Vec<Put>,
    pub oracle: Oracle,
    pub met: Met,
    pub shape: Shape,
    pub millis: i64,
    pub tick: u64,
    /// Everything goes well from here on.
    pub calm: bool,
    pub trace: bool,
}

impl Env {
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + self.millis).unwrap_or(Timestamp::MAX)
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
    /// Whether it holds all changes.
    complete: bool,
    ended: Vec<(Uid, EventId)>,
    told: Vec<EventId>,
    failed: Vec<(Uid, EventId, u32)>,
    watches: Vec<(usize, u64, u64)>,
    crossed: Vec<(Uid, EventId)>,
}

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)]
pub struct Process {
    pub number: u64,
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
    /// The last flush did not hold everything.
    has_more: bool,
    /// Ended deliveries that no flush has told of.
    ended: Vec<(Uid, EventId)>,
    /// By watch: the version of the list that was its baseline; `None`: not known yet.
    baseline: [Option<u64>; 3],
    /// By watch: the ledger knows its baseline.
    baselined: [bool; 3],
    /// By watch: the store was restored to this version, and no list was complete since.
    restored_to: [Option<u64>; 3],
    first_attempts: HashMap<(Uid, Uid), (Timestamp, u32, EventId)>,
    /// Events that this process told first.
    told: BTreeSet<EventId>,
    told_since: Vec<EventId>,
    /// Deliveries of what was measured since the last flush of everything.
    crossed: Vec<(Uid, EventId)>,
}

fn id(kind: usize) -> WatchId {
    WatchId(kind as u16)
}

fn kind_of(name: &str) -> Option<usize> {
    KINDS.iter().position(|kind| kind.name == name)
}

/// Bytes that one flush takes: little enough that many take several turns.
const BUDGET: usize = 1_500;

impl Process {
    pub fn new(number: u64) -> Self {
        Self {
            number,
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
            has_more: false,
            ended: Vec::new(),
            baseline: [None; 3],
            baselined: [false; 3],
            restored_to: [None; 3],
            first_attempts: HashMap::new(),
            told: BTreeSet::new(),
            told_since: Vec::new(),
            crossed: Vec::new(),
        }
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
        let fresh_epoch = env.now().as_millisecond() as u64;
        match journal::open(&found, HOME, env.shape, self.number) {
            Opened::Ours(journal, memory) => {
                env.say(|| {
                    format!("#{} reads the ledger: epoch {} term {}", self.number, journal.epoch(), journal.term())
                });
                env.oracle.recovered(journal.epoch(), &memory);
                env.store.ledger_harmed = false;
                self.journal = Some(*journal);
                self.memory = Some(memory);
            }
            Opened::Nothing { why, newest } => {
                env.say(|| format!("#{} finds no ledger: {why}", self.number));
                let excused = env.store.ledger_harmed || (matches!(why, Nothing::Fresh) && found.is_empty());
                if !excused {
                    env.oracle
                        .fail("ledger 1 to 3", format!("the ledger cannot be opened, and nobody harmed it: {why}"));
                }
                env.met.new_epoch |= !found.is_empty() || env.oracle.was_led;
                self.journal = Some(Journal::found(HOME, fresh_epoch.max(newest + 1), env.shape, self.number));
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
        let replaces = self.journal.as_ref().and_then(|journal| journal.version(&segment)).map(str::to_owned);
        env.say(|| {
            format!(
                "#{} puts {} term {} sequence {} over {replaces:?}",
                self.number, segment.name, segment.term, segment.sequence
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
        let judgement = match answer {
            Answer::Landed(version) => {
                journal.landed(&segment, version);
                Judgement::Landed
            }
            Answer::Conflict => {
                let judgement = journal.judge(&segment, env.store.found(&segment.name));
                env.met.unanswered |= judgement == Judgement::Landed;
                env.say(|| format!("#{} met a conflict at {}: {judgement:?}", self.number, segment.name));
                judgement
            }
        };
        match (judgement, self.phase) {
            (Judgement::Landed, Phase::Claiming) => self.lead(env),
            (Judgement::Landed, _) => self.next_segment(env),
            (Judgement::Again, _) => self.send(env, segment),
            (Judgement::Lost, Phase::Claiming) => self.phase = Phase::Reading,
            (Judgement::Lost, _) => {
                env.say(|| format!("#{} has lost", self.number));
                self.phase = Phase::Dead;
            }
        }
    }

    /// The claim has landed: takes up what was remembered.
    fn lead(&mut self, env: &mut Env) {
        env.say(|| format!("#{} leads", self.number));
        let now = env.now();
        let epoch = now.as_millisecond() as u64;
        let shards = env.shape.shards;
        self.phase = Phase::Leading;
        let Some(journal) = &self.journal else { return };
        env.oracle.leads(journal.epoch(), journal.term(), self.number);
        let mut positions = [0; 3];
        let mut engine = if let Some(memory) = self.memory.take() {
            for watch in &memory.watches {
                if let Some(kind) = kind_of(&watch.entry.watch) {
                    self.baseline[kind] = Some(env.oracle.baseline(kind, watch.entry.epoch));
                    self.baselined[kind] = true;
                    positions[kind] = watch.entry.position;
                }
            }
            Engine::recover(None, epoch, shards, *memory, now)
        } else {
            env.oracle.begins(journal.epoch());
            env.store.ledger_harmed = false;
            Engine::new(None, epoch, shards)
        };
        let kinds = if env.with_deployments { 0..=DEPLOYMENTS } else { 0..=DEPLOYMENTS - 1 };
        for kind in kinds.clone() {
            engine.add_watch(id(kind), KINDS[kind].source, KINDS[kind].name, KINDS[kind].selective);
        }
        engine.add_measured_watch(usage::WATCH, usage::NAME, usage::NAME);
        let there = Change::Only(Figures::uids());
        engine.observe(Observation { watch: usage::WATCH, change: there }, now);
        if kinds.clone().any(|kind| engine.position(id(kind)) != positions[kind]) {
            env.oracle.fail("engine 5", "a watch does not go on from where the ledger says");
        }
        let forgotten = engine.forget_other_watches();
        if !forgotten.is_empty() {
            env.met.withdrawn = true;
        }
        self.engine = Some(engine);
        self.sync_hooks(env);
        if let Some(engine) = &mut self.engine {
            let mut orphans = engine.orphans();
            orphans.sort_unstable();
            for orphan in orphans {
                engine.unsubscribe(orphan);
            }
            self.questions = engine.open_questions();
            self.questions.sort_by_key(|question| question.uid);
            self.watchers = kinds.map(|kind| Watcher::new(kind, engine.position(id(kind)))).collect();
        }
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

    pub fn watch(&mut self, env: &mut Env, which: usize) {
        if let Some(watcher) = self.watchers.get_mut(which) {
            watcher.step(env, &mut self.queue);
        }
    }

    /// Lets the engine take in the next observation.
    pub fn consume(&mut self, env: &mut Env) {
        let Some(engine) = &mut self.engine else { return };
        let Some(Item { kind, change, as_of, outdated }) = self.queue.pop_front() else { return };
        env.say(|| format!("#{} observes {} {}", self.number, KINDS[kind].name, brief(&change)));
        let subject = subject(&change);
        let begins = self.baseline[kind].is_none();
        if matches!(change, Change::ListEnded(_)) && KINDS[kind].selective {
            env.oracle.forgotten(&env.store, kind);
        }
        match &change {
            Change::ListBegun if self.baseline[kind].is_some() => {
                let position = engine.position(id(kind));
                env.oracle.gap(kind, self.restored_to[kind].map_or(position, |version| version.min(position)), as_of);
            }
            Change::ListEnded(_) if self.baseline[kind].is_none() => self.baseline[kind] = Some(as_of),
            Change::Deleted(object) if KINDS[kind].selective => {
                let deleted = env.store.lives.get(&object.uid).and_then(|life| life.deleted);
                if deleted.is_none_or(|(version, _)| version != object.version) {
                    env.oracle.begun_anew.insert(object.uid);
                }
            }
            Change::Unselected(uid) => env.oracle.unselected(*uid, as_of),
            Change::NotInstalled if self.baseline[kind].is_none() => self.baseline[kind] = Some(0),
            _ => {}
        }
        if matches!(change, Change::ListEnded(_)) && !outdated {
            self.restored_to[kind] = None;
        }
        let observed = engine.observe(Observation { watch: id(kind), change }, env.now());
        let baseline = self.baseline[kind].filter(|_| !begins);
        for event in &observed.events {
            env.say(|| format!("#{} tells {} of {} as {}", self.number, event.event_type, event.object.name, event.id));
            tells(&mut self.told, &mut self.told_since, &mut self.flushing, &mut self.ended, event.id);
            let version = subject.filter(|(uid, _)| *uid == event.object.uid).map(|(_, version)| version);
            env.oracle.occurred(&env.store, kind, version, baseline, event);
        }
        for webhook in observed.dropped {
            env.oracle.reached.extend(observed.events.iter().map(|event| (webhook, event.id)));
        }
        self.questions.extend(observed.questions);
    }

    /// Measures a figure.
    pub fn measure(&mut self, env: &mut Env) {
        let Some(engine) = &mut self.engine else { return };
        let now = env.now();
        let object = env.figures.measure(&mut env.random, now);
        env.say(|| format!("#{} measures {} {:?}", self.number, object.name, object.facts));
        let change = Change::Measured(Box::new(object));
        let observed = engine.observe(Observation { watch: usage::WATCH, change }, now);
        for event in &observed.events {
            env.say(|| format!("#{} tells {} of {} as {}", self.number, event.event_type, event.object.name, event.id));
            tells(&mut self.told, &mut self.told_since, &mut self.flushing, &mut self.ended, event.id);
            env.oracle.crossed(event.id);
            let to = observed.enqueued.iter().collect::<BTreeSet<_>>();
            self.crossed.extend(to.into_iter().map(|webhook| (*webhook, event.id)));
        }
    }

    /// Answers a question.
    pub fn answer(&mut self, env: &mut Env) {
        if self.questions.is_empty() {
            return;
        }
        let question = self.questions.swap_remove(env.random.below(self.questions.len()));
        let living = env.store.lives(question.uid);
        let kind = usize::from(question.watch.0);
        self.queue.push_back(Item { kind, change: Change::Answer { question, living }, as_of: 0, outdated: false });
    }

    /// Begins a flush, where one is due.
    pub fn flush(&mut self, env: &mut Env) {
        let (Some(engine), Some(journal)) = (&mut self.engine, &mut self.journal) else { return };
        if self.flushing.is_some() || self.phase != Phase::Leading {
            return;
        }
        let unflushed = engine.unflushed();
        let due = unflushed == Unflushed::Changes
            || journal.is_pressed()
            || (unflushed == Unflushed::Positions && env.random.chance(30));
        if !due {
            return;
        }
        let mut flush = engine.flush(&journal.wanted(), if journal.is_pressed() { usize::MAX } else { BUDGET });
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
        let mut flushing = Flushing { complete, ..Flushing::default() };
        if complete {
            flushing.ended = std::mem::take(&mut self.ended);
            flushing.told = std::mem::take(&mut self.told_since);
            flushing.crossed = std::mem::take(&mut self.crossed);
        }
        for entry in &flush.contents.events {
            let deliveries = entry.deliveries.iter();
            flushing.failed.extend(deliveries.map(|delivery| (delivery.webhook, entry.id, delivery.failed)));
        }
        for entry in flush.contents.watches.iter().flatten() {
            if let Some(kind) = kind_of(&entry.watch) {
                env.oracle.epoch(kind, entry.epoch, if entry.absent { Some(0) } else { self.baseline[kind] });
                flushing.watches.push((kind, entry.epoch, entry.position));
            }
        }
        let entries = flush.contents.len();
        let segments = match journal.lay_out(flush) {
            Ok(segments) => segments,
            Err(error) => {
                env.oracle.fail("ledger 3", format!("no flush: {error}"));
                return;
            }
        };
        let parts = segments.iter().filter(|segment| segment.kind == SegmentKind::Journal);
        env.met.split |= parts.clone().count() > 1;
        env.met.overflow |= parts.map(|segment| segment.records).sum::<usize>() > entries;
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
        for (kind, ..) in &flushing.watches {
            self.baselined[*kind] = true;
        }
        self.has_more = !flushing.complete;
        let Flushing { complete, told, ended, failed, watches, crossed, .. } = flushing;
        if let Some(journal) = &self.journal {
            if env.oracle.is_stray(journal.epoch(), self.number) {
                env.oracle.crossings.may_have_landed(&crossed);
                return;
            }
            env.oracle.recorded.extend(told);
            env.oracle.crossings.landed(crossed);
            env.oracle.landed(journal.epoch(), complete, ended, failed, watches);
        }
    }

    /// Does what the engine wants done.
    pub fn due(&mut self, env: &mut Env) {
        let now = env.now();
        loop {
            let Some(engine) = &mut self.engine else { return };
            match engine.due(now) {
                None => return,
                Some(Due::Keep(keep)) => self.keeps.push(keep),
                Some(Due::Exhausted(settled)) => {
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

    /// Judges an attempt that begins.
    fn begun(&mut self, env: &mut Env, attempt: Attempt) {
        let Attempt { webhook, ref event, number, .. } = attempt;
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
        let kind = kind_of_uid(event.object.uid);
        if kind == USAGE {
            if let Some((rule, what)) = oracle.crossings.attempted(event, self.told.contains(&event.id)) {
                oracle.fail(rule, what);
            }
        } else if self.told.contains(&event.id) && !self.baselined[kind] {
            oracle.fail("engine 6", "an attempt before its watch's baseline is flushed");
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
            let this = (event.observed_at, event.sequence, event.id);
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
        let outcome = Outcome { webhook, delivery, generation, result, status_code: None, error: None };
        let (now, random) = (env.now(), env.random.unit());
        let Some(engine) = &mut self.engine else { return };
        let Some(settled) = engine.settle(&outcome, now, random) else { return };
        env.say(|| format!("#{} settles {} at {webhook:?}: {:?}", self.number, event.id, settled.verdict));
        if settled.verdict == Verdict::Delivered {
            self.ended.push((webhook, event.id));
        }
        if settled.dropped {
            env.oracle.reached.insert((webhook, event.id));
        }
        if settled.gone
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
            let Flushing { rest, watches, crossed, .. } = std::mem::take(flushing);
            env.oracle.crossings.may_have_landed(&crossed);
            *flushing = Flushing { rest, watches, ..Flushing::default() };
        }
        let version = env.store.version;
        for item in &mut self.queue {
            item.as_of = item.as_of.min(version);
            item.outdated = true;
        }
        self.restored_to = self.restored_to.map(|before| Some(before.map_or(version, |before| before.min(version))));
        for baseline in self.baseline.iter_mut().flatten() {
            *baseline = (*baseline).min(version);
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

/// An event is told. Told anew, it goes anew; if it was flushed before, that is caught.
fn tells(
    told: &mut BTreeSet<EventId>,
    told_since: &mut Vec<EventId>,
    flushing: &mut Option<Flushing>,
    ended: &mut Vec<(Uid, EventId)>,
    event: EventId,
) {
    told.insert(event);
    told_since.push(event);
    ended.retain(|(_, known)| *known != event);
    if let Some(flushing) = flushing {
        flushing.ended.retain(|(_, known)| *known != event);
        flushing.failed.retain(|(_, known, _)| *known != event);
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
