//! A process of the operator: it opens the ledger and claims it, recovers its engine, watches, flushes and delivers. It
//! may be killed or paused between any two steps.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use jiff::Timestamp;
use llmtune_core::ledger::SegmentKind;
use llmtune_core::{
    attempt::{Attempt, AttemptResult, Outcome},
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
/// The start time of each simulation run.
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
    /// Its status says that the endpoint answered 410 to the spec of this generation.
    pub gone: Option<i64>,
}

/// A PUT in flight.
#[derive(Debug)]
pub struct Put {
    pub owner: u64,
    pub segment: Segment,
    pub replaces: Option<String>,
}

/// The world that all processes share.
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
    /// When each event was emitted, by the world's clock. The key contains the time by the leader's clock.
    pub told: HashMap<(EventId, Timestamp), i64>,
    pub tick: u64,
    /// No more faults from here on.
    pub calm: bool,
    pub trace: bool,
}

impl Env {
    /// The time of a clock that is off by this many milliseconds.
    pub fn time(&self, off: i64) -> Timestamp {
        Timestamp::from_millisecond(EPOCH_MILLIS + self.millis + off).unwrap_or(Timestamp::MAX)
    }

    /// Acquires the Lease, by a clock that is off. The time is later than that of every earlier acquisition.
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

/// An observation in the queue of the engine.
#[derive(Debug)]
pub struct Item {
    pub watch: WatchId,
    pub kind: usize,
    pub change: WatchEvent,
    /// The version of the list, or of the change that unselected an object. A restore lowers it to the end of its
    /// timeline.
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

/// A flush in progress.
#[derive(Debug, Default)]
struct Flushing {
    rest: VecDeque<Segment>,
    /// If the flush is complete, the events since the previous flush.
    told: Vec<EventId>,
    held: Held,
    /// The watches whose baseline it holds.
    baselines: Vec<WatchId>,
}

/// The state of a watch in the ledger.
#[derive(Debug)]
struct Stood {
    watch: String,
    epoch: u64,
    position: u64,
    absent: bool,
    missing_since: Option<Timestamp>,
    current: Option<Timestamp>,
}

/// A watch that the process has registered with its engine.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)]
struct Known {
    id: WatchId,
    /// Its newest known epoch.
    epoch: u64,
    /// The version of its baseline list; `None` if not yet known.
    baseline: Option<u64>,
    /// The ledger contains its baseline.
    baselined: bool,
    /// Its resource is recorded as absent.
    absent: bool,
    /// Since when its resource is not served, while its records are kept.
    missing_since: Option<Timestamp>,
    /// It has seen everything that existed at this time.
    current: Option<Timestamp>,
    /// The store was restored to this version, and no list has been complete since.
    restored_to: Option<u64>,
    /// A list has begun and has not ended.
    in_list: bool,
}

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)]
pub struct Process {
    pub number: u64,
    /// Offset of its clock in milliseconds.
    off: i64,
    /// When it acquired the Lease, by its clock or later; `acquired_at` is the same by the world's clock.
    epoch: u64,
    acquired_at: i64,
    pub phase: Phase,
    pub paused: bool,
    /// Its Lease expired, and another process has led since.
    pub lapsed: bool,
    pub stopping: bool,
    journal: Option<Journal>,
    memory: Option<Box<RecoveredState>>,
    pub engine: Option<Engine>,
    pub watchers: Vec<Watcher>,
    pub queue: VecDeque<Item>,
    existence_checks: Vec<ExistenceCheck>,
    pub attempts: Vec<Attempt>,
    keeps: Vec<StoreDeadLetter>,
    /// The PUT whose response it waits for.
    put: Option<Segment>,
    flushing: Option<Flushing>,
    pace: Option<FlushScheduler>,
    /// The last flush did not hold everything.
    has_more: bool,
    /// Ended deliveries that are not in a flush yet.
    ended: Vec<(Uid, EventId)>,
    /// By kind.
    watches: [Option<Known>; KINDS.len()],
    /// The number of the next watch.
    next_id: u16,
    /// Watches in the ledger that are neither registered nor forgotten.
    remembered: Vec<Stood>,
    /// All WebhookSources are listed, and the watches are started.
    listed: bool,
    /// The WebhookSources as this process knows them.
    sources: [Option<Mapping>; KINDS.len()],
    meter: Option<Meter>,
    first_attempts: HashMap<(Uid, Uid), (Option<i64>, u32, EventId)>,
    /// For each Webhook, the end of the pause that its endpoint requested, and the generation of the spec at that time.
    pauses: HashMap<Uid, (Timestamp, i64)>,
    /// Events that this process emitted, each with its watch if that watch's baseline was not flushed at the time.
    told: BTreeMap<EventId, Option<WatchId>>,
    reported_since: Vec<EventId>,
    owed_since: Vec<(Uid, EventId)>,
    /// Measured events that are not flushed.
    withheld: BTreeSet<EventId>,
}

/// The operator's intervals, adjusted to a run of less than a minute, and to flushes that often take several writes.
fn intervals() -> Intervals {
    Intervals { positions: Duration::from_secs(2), bytes: 1_500, ..Intervals::default() }
}

impl Process {
    /// `off` is the offset of its clock in milliseconds.
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
            existence_checks: Vec::new(),
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
            reported_since: Vec::new(),
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

    /// It leads, and may begin attempts and writes.
    pub fn is_working(&self) -> bool {
        self.phase == Phase::Leading && !self.paused && !self.lapsed
    }

    /// The store was restored while the process runs, and all connections broke.
    pub fn restored(&mut self, env: &mut Env) {
        // Its contents may be committed on the timeline that ended.
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

    /// Kills the process. Requests in flight may still arrive.
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

    /// The number of events since the last complete flush.
    pub fn unflushed(&self) -> usize {
        self.reported_since.len()
    }

    /// A flush is in progress, or a further part of it is pending.
    pub fn is_flushing(&self) -> bool {
        self.flushing.is_some() || self.has_more
    }

    pub fn term(&self) -> u64 {
        self.journal.as_ref().map_or(0, Journal::term)
    }

    /// Graceful stop: attempts end, and the last flush is committed.
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
            && self.existence_checks.is_empty()
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
        WatchEvent::ExistenceChecked { check, exists } => format!("{} exists: {exists}", check.name),
        other => format!("{other:?}"),
    }
}
