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
        Due, Engine, Observed, StoreDeadLetter, Unflushed, Verdict,
        flush_scheduler::{FlushScheduler, Intervals},
    },
    event::{
        Event,
        id::EventId,
        object::{Uid, WatchId},
        observation::{ExistenceCheck, Observation, WatchEvent},
    },
    ledger::{
        contents::{Reason, WatchEntry},
        journal::{
            self, Found, Journal, LedgerLayout, NoLedger, Recovered, RecoveredState, RememberedWatch, Resolution,
            Segment,
        },
    },
    subscription::index::Subscription,
};

use crate::{
    Met,
    gauge::Meter,
    oracle::{Flushed, Held, Oracle},
    random::Random,
    store::{Answer, DEPLOYMENTS, KINDS, Life, MAPPED, Mapping, Store, USAGE, kind_of_uid, kind_of_watch},
    watcher::{Watcher, subject},
};

mod delivering;
mod flushing;
mod leading;
mod observing;

const HOME: Uid = Uid::from_u128(7);
/// When a run begins.
pub const EPOCH_MILLIS: i64 = 1_800_000_000_000;

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
    pub shape: LedgerLayout,
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
    pub fn time(&self, off: i64) -> Timestamp {
        Timestamp::from_millisecond(EPOCH_MILLIS + self.millis + off).unwrap_or(Timestamp::MAX)
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
    pub change: WatchEvent,
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

/// Where the ledger says that a watch stood.
#[derive(Debug)]
struct Stood {
    watch: String,
    epoch: u64,
    position: u64,
    absent: bool,
    missing_since: Option<Timestamp>,
    current: Option<Timestamp>,
}

/// What a process knows of a watch that it has made known to its engine.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)]
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
    /// Since when its resource is not served, while its records are kept.
    missing_since: Option<Timestamp>,
    /// Everything that existed at this time has been passed.
    current: Option<Timestamp>,
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
    memory: Option<Box<RecoveredState>>,
    pub engine: Option<Engine>,
    pub watchers: Vec<Watcher>,
    pub queue: VecDeque<Item>,
    questions: Vec<ExistenceCheck>,
    pub attempts: Vec<Attempt>,
    keeps: Vec<StoreDeadLetter>,
    /// The PUT that it waits for.
    put: Option<Segment>,
    flushing: Option<Flushing>,
    pace: Option<FlushScheduler>,
    /// The last flush did not hold everything.
    has_more: bool,
    /// Ended deliveries that no flush has told of.
    ended: Vec<(Uid, EventId)>,
    /// By kind.
    watches: [Option<Known>; KINDS.len()],
    /// The number that the next watch gets.
    next_id: u16,
    /// What the ledger remembers of watches that are neither made known nor forgotten: name, epoch, position, absent.
    remembered: Vec<Stood>,
    /// All WebhookSources are listed, and the watches are begun.
    listed: bool,
    /// The WebhookSources as it knows them.
    sources: [Option<Mapping>; KINDS.len()],
    meter: Option<Meter>,
    first_attempts: HashMap<(Uid, Uid), (Option<i64>, u32, EventId)>,
    /// When the pause ends that an endpoint asked for, and the generation of the spec that it was asked under.
    pauses: HashMap<Uid, (Timestamp, i64)>,
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
            pauses: HashMap::new(),
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

fn brief(change: &WatchEvent) -> String {
    match change {
        WatchEvent::Seen(object) => format!("seen {} {:.200}", object.version, format!("{:?}", object.facts)),
        WatchEvent::Deleted(object) => format!("deleted {} {}", object.version, object.name),
        WatchEvent::Left(object) => format!("left {} {}", object.version, object.name),
        WatchEvent::Answer { question, living } => format!("answer {} living {living}", question.name),
        other => format!("{other:?}"),
    }
}
