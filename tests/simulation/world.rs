//! One run. The seed determines what happens and in which order. At the end all faults are repaired, and the oracle
//! makes its final check.

mod faults;
mod hooks;

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use llmtune_core::{event::object::Uid, ledger::journal::LedgerLayout};

use crate::{
    Met,
    gauge::Gauge,
    life,
    oracle::Oracle,
    process::{EPOCH_MILLIS, Env, Phase, Process},
    random::Random,
    store::{DEPLOYMENTS, KINDS, Life, MAPPED, Mapping, State, Store, USAGE, object_uid},
};

/// Steps until all faults are repaired.
const STEPS: usize = 600;
/// One in this many worlds has large events.
const LARGE: u64 = 250;
const TEAMS: [&str; 2] = ["red", "blue"];

#[derive(Clone, Copy, Debug)]
enum Action {
    Create,
    Change,
    Delete,
    Select,
    HookCreate,
    HookDelete,
    HookHold,
    Endpoint,
    Compact,
    Backup,
    Restore,
    HarmLedger,
    Install,
    Uninstall,
    Unserve,
    Source,
    Edit,
    Catalog,
    Gauge,
    Reconfigure,
    Start,
    Kill,
    Pause,
    Resume,
    Stop,
    Watch,
    Consume,
    Answer,
    Flush,
    Network,
    Due,
    End,
    StoreDeadLetter,
}

pub struct World {
    env: Env,
    processes: Vec<Process>,
    backups: Vec<Store>,
    actions: Vec<Action>,
    serial: u64,
    /// The process that holds the Lease.
    holder: u64,
    large: bool,
    /// The kinds that exist in this world.
    cast: Vec<usize>,
    /// Nothing relevant happens until the next restore, so that its leader may outlive it.
    quiet: bool,
}

/// The result of a run.
pub struct Ended {
    pub violation: Option<String>,
    pub met: Met,
    pub required: usize,
    pub excused: usize,
    /// The same for every run with this seed.
    pub fingerprint: (u64, u64, usize),
}

pub fn run(seed: u64, trace: bool) -> Ended {
    let mut world = World::new(seed, trace);
    for _ in 0..if world.large { 4 * STEPS } else { STEPS } {
        world.step();
        if world.env.oracle.violation.is_some() {
            break;
        }
    }
    world.heal();
    world.env.judge();
    world.die();
    world.heal();
    world.env.judge();
    let World { mut env, .. } = world;
    Ended {
        fingerprint: (env.random.next(), env.store.version, env.oracle.reached.len()),
        required: env.oracle.required,
        excused: env.oracle.excused,
        violation: env.oracle.violation,
        met: env.met,
    }
}

impl World {
    fn new(seed: u64, trace: bool) -> Self {
        let mut random = Random::new(seed);
        let large = seed % LARGE == LARGE - 1;
        let shape = LedgerLayout {
            ring: 28 + random.below(17) as u64,
            shards: 4,
            limit: if random.chance(75) && !large { 900 + random.below(1300) } else { 1 << 20 },
        };
        let actions = if large { Self::large_actions() } else { Self::actions(&mut random) };
        let mut cast = vec![0, 1, DEPLOYMENTS];
        cast.extend(MAPPED.into_iter().filter(|_| random.chance(40) && !large));
        cast.extend((random.chance(50) && !large).then_some(USAGE));
        let mut installed = [true; KINDS.len()];
        installed[1] = !random.chance(10);
        for kind in MAPPED {
            installed[kind] = !random.chance(25);
        }
        let env = Env {
            random,
            store: Store { version: 1, ..Store::default() },
            installed,
            with_deployments: true,
            with_usage: cast.contains(&USAGE),
            hooks: BTreeMap::new(),
            network: Vec::new(),
            oracle: Oracle::default(),
            met: Met::default(),
            shape,
            millis: 0,
            acquired: 0,
            told: HashMap::new(),
            tick: 0,
            calm: false,
            trace,
        };
        let mut world = Self {
            env,
            processes: Vec::new(),
            backups: Vec::new(),
            actions,
            serial: 0,
            holder: 0,
            large,
            cast,
            quiet: false,
        };
        for _ in 0..world.env.random.below(3) {
            world.configure();
        }
        for _ in 0..world.env.random.below(6) {
            world.create();
        }
        for _ in 0..=world.env.random.below(3) {
            world.create_hook();
        }
        world
    }

    /// Each seed has its own mixture of actions.
    fn actions(random: &mut Random) -> Vec<Action> {
        use Action::{
            Answer, Backup, Catalog, Change, Compact, Consume, Create, Delete, Due, Edit, End, Endpoint, Flush, Gauge,
            HarmLedger, HookCreate, HookDelete, HookHold, Install, Kill, Network, Pause, Reconfigure, Restore, Resume,
            Select, Source, Start, Stop, StoreDeadLetter, Uninstall, Unserve, Watch,
        };
        let mut rare = |action, percent, most: usize| {
            let often = if random.chance(percent) { 1 + random.below(most) } else { 0 };
            (action, often)
        };
        let mixture = [
            rare(Kill, 80, 8),
            rare(Pause, 50, 5),
            rare(Stop, 30, 3),
            rare(Compact, 70, 10),
            rare(Restore, 22, 4),
            rare(HarmLedger, 14, 8),
            rare(Reconfigure, 12, 3),
            rare(Source, 80, 14),
            rare(Edit, 30, 30),
            rare(Uninstall, 30, 2),
            rare(Unserve, 30, 3),
            rare(Gauge, 100, 20),
            rare(HookCreate, 50, 3),
            rare(HookDelete, 30, 2),
            rare(HookHold, 50, 6),
            rare(Endpoint, 70, 10),
            rare(Delete, 90, 8),
            rare(Select, 70, 12),
            rare(Flush, 100, 40),
            rare(Network, 100, 60),
            rare(Watch, 100, 80),
            rare(Consume, 100, 80),
            (Create, 8),
            (Change, 40),
            (Backup, 2),
            (Install, 2),
            (Catalog, 12),
            (Start, 12),
            (Resume, 6),
            (Watch, 30),
            (Consume, 30),
            (Flush, 8),
            (Network, 20),
            (Answer, 8),
            (Due, 30),
            (End, 25),
            (StoreDeadLetter, 6),
        ];
        mixture.into_iter().flat_map(|(action, often)| std::iter::repeat_n(action, often)).collect()
    }

    fn large_actions() -> Vec<Action> {
        use Action::{Catalog, Change, Consume, Create, Due, End, Flush, Kill, Network, Start, Watch};
        let mixture = [
            (Create, 25),
            (Catalog, 10),
            (Change, 60),
            (Watch, 90),
            (Consume, 90),
            (Flush, 20),
            (Network, 30),
            (Start, 15),
            (Kill, 15),
            (Due, 2),
            (End, 2),
        ];
        mixture.into_iter().flat_map(|(action, often)| std::iter::repeat_n(action, often)).collect()
    }

    fn step(&mut self) {
        self.env.tick += 1;
        self.env.millis += 1 + self.env.random.below(120) as i64;
        if self.env.random.chance(20) {
            self.env.store.version += 1;
        }
        let action = self.actions[self.env.random.below(self.actions.len())];
        self.act(action);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Create | Action::Delete | Action::Select | Action::Kill | Action::Pause if self.quiet => {}
            Action::Create => self.create(),
            Action::Change => self.change(),
            Action::Delete => {
                if let Some(uid) = self.some_life(None) {
                    self.env.say(|| format!("{uid:?} is deleted"));
                    self.env.store.delete(uid, self.env.tick);
                }
            }
            Action::Select => self.select(),
            Action::HookCreate => self.create_hook(),
            Action::HookDelete => self.delete_hook(),
            Action::HookHold => self.hold(),
            Action::Endpoint => self.endpoint(),
            Action::Compact => {
                let kind = self.cast[self.env.random.below(self.cast.len())];
                let version = self.env.store.version.saturating_sub(self.env.random.below(12) as u64);
                self.env.say(|| format!("compaction of {kind} at {version}"));
                self.env.store.compact(kind, version);
            }
            Action::Backup => {
                self.backups.push(self.env.store.clone());
                let restores = self.actions.iter().any(|action| matches!(action, Action::Restore));
                self.quiet = restores && self.env.random.chance(60);
            }
            Action::Restore => self.restore(),
            Action::HarmLedger => self.harm(),
            Action::Install => self.env.installed = [true; KINDS.len()],
            Action::Uninstall => self.uninstall(),
            Action::Unserve => {
                let kind = self.cast[self.env.random.below(self.cast.len())];
                self.env.installed[kind] &= kind == USAGE;
                self.env.say(|| format!("{} is not served any more", KINDS[kind].name));
            }
            Action::Source => self.configure(),
            Action::Edit => self.edit(),
            Action::Gauge => self.turn(),
            Action::Reconfigure => {
                if !self.processes.iter().any(Process::is_alive) {
                    self.env.with_deployments = !self.env.with_deployments;
                }
            }
            Action::Start => self.start(),
            Action::Kill => {
                let large = self.large;
                if let Some(at) = self.some_process(|process| process.is_alive() && (!large || process.is_flushing())) {
                    self.processes[at].kill(&mut self.env);
                }
            }
            Action::Pause => {
                if let Some(at) = self.some_process(|process| process.is_alive() && !process.paused) {
                    self.env.say(|| "a pause".into());
                    self.processes[at].paused = true;
                }
            }
            Action::Resume => self.resume(),
            Action::Stop => {
                if let Some(at) = self.some_process(Process::is_working) {
                    self.env.say(|| "told to stop".into());
                    self.processes[at].stopping = true;
                }
            }
            Action::Network => self.network(),
            Action::Watch
            | Action::Catalog
            | Action::Consume
            | Action::Answer
            | Action::Flush
            | Action::Due
            | Action::End
            | Action::StoreDeadLetter => {
                if let Some(at) = self.some_process(|process| process.phase == Phase::Leading && !process.paused) {
                    self.work(at, action);
                }
            }
        }
        for process in &mut self.processes {
            if process.is_alive() && process.stopping && !process.paused && process.has_stopped() {
                process.phase = Phase::Dead;
                self.env.met.stopped = true;
            }
        }
        self.processes.retain(Process::is_alive);
    }

    fn work(&mut self, at: usize, action: Action) {
        let (process, env) = (&mut self.processes[at], &mut self.env);
        if !process.lapsed {
            process.renew(env);
        }
        match action {
            // Large worlds need enough events for a flush of several parts.
            Action::Flush if self.large && process.unflushed() < 60 && env.random.chance(98) => {}
            Action::Flush => process.flush(env),
            _ if process.lapsed => {}
            Action::End => process.end_attempt(env),
            _ if process.stopping => {}
            Action::Watch => {
                let kind = self.cast[env.random.below(self.cast.len())];
                process.watch(env, kind);
            }
            Action::Catalog => process.catalog(env),
            Action::Consume => {
                for _ in 0..=env.random.below(3) {
                    process.consume(env);
                }
            }
            Action::Answer => process.answer(env),
            Action::Due => process.due(env),
            Action::StoreDeadLetter => process.keep(env),
            _ => {}
        }
    }

    fn some_process(&mut self, fits: impl Fn(&Process) -> bool) -> Option<usize> {
        let fitting: Vec<usize> = (0..self.processes.len()).filter(|at| fits(&self.processes[*at])).collect();
        (!fitting.is_empty()).then(|| fitting[self.env.random.below(fitting.len())])
    }

    fn some_life(&mut self, kind: Option<usize>) -> Option<Uid> {
        let lives = self
            .env
            .store
            .lives
            .values()
            .filter(|life| life.deleted.is_none() && kind.is_none_or(|kind| life.kind == kind));
        let uids: Vec<Uid> = lives.map(|life| life.uid).collect();
        (!uids.is_empty()).then(|| uids[self.env.random.below(uids.len())])
    }

    fn create(&mut self) {
        let Env { random, store, installed, tick, millis, .. } = &mut self.env;
        let kind = if self.large { 0 } else { self.cast[random.below(self.cast.len())] };
        if kind == USAGE {
            return self.create_gauge();
        }
        let most = if self.large { 40 } else { 12 };
        if !installed[kind] || store.lives.values().filter(|life| life.deleted.is_none()).count() >= most {
            return;
        }
        self.serial += 1;
        let is_restored = !KINDS[kind].serving && !self.large && random.chance(8);
        let facts = if is_restored { life::restored(random, self.serial as i64) } else { life::first(random, kind) };
        let state = State {
            version: 0,
            tick: *tick,
            generation: 1,
            selected: !random.chance(10) || !KINDS[kind].selective,
            facts,
        };
        let created = Timestamp::from_millisecond(EPOCH_MILLIS + *millis).unwrap_or(Timestamp::MAX);
        store.create(Life {
            uid: object_uid(kind, self.serial),
            kind,
            name: format!("object-{:02}-{}", random.below(90), self.serial),
            team: TEAMS[random.below(2)],
            created,
            states: vec![state],
            deleted: None,
        });
        self.env.met.relived |= is_restored;
    }

    fn create_gauge(&mut self) {
        let Env { random, store, .. } = &mut self.env;
        if store.gauges.len() < 3 {
            self.serial += 1;
            let uid = object_uid(USAGE, self.serial);
            let name = format!("usage-{}", self.serial);
            let team = TEAMS[random.below(2)];
            store.gauges.insert(uid, Gauge::new(random, uid, name, team));
        }
    }

    /// A figure moves. Sometimes its spec changes, or it is deleted.
    fn turn(&mut self) {
        let Env { random, store, .. } = &mut self.env;
        if store.gauges.is_empty() {
            return;
        }
        let at = random.below(store.gauges.len());
        let Some(gauge) = store.gauges.values_mut().nth(at) else { return };
        let uid = gauge.uid;
        match random.below(100) {
            0..2 => {
                store.gauges.remove(&uid);
            }
            2..7 => gauge.edit(random),
            _ => gauge.turn(random),
        }
        self.env.say(|| format!("the figure {uid:?} is now {:?}", self.env.store.gauges.get(&uid)));
    }

    /// A WebhookSource is created, changed or deleted.
    fn configure(&mut self) {
        let kind = MAPPED[self.env.random.below(MAPPED.len())];
        if !self.cast.contains(&kind) {
            return;
        }
        self.serial += 1;
        let Env { random, store, .. } = &mut self.env;
        let source = &mut store.sources[kind];
        *source = match (*source, random.below(100)) {
            (None, _) => Some(Mapping { uid: self.serial, rules: random.below(2) as u64, edition: 0 }),
            (Some(_), 0..35) => None,
            (Some(known), 35..55) => Some(Mapping { rules: 1 - known.rules, ..known }),
            (Some(known), 55..65) => Some(Mapping { uid: self.serial, ..known }),
            (Some(known), _) => Some(Mapping { edition: self.serial, ..known }),
        };
        self.env.say(|| format!("the source of {} is now {:?}", KINDS[kind].name, self.env.store.sources[kind]));
    }

    /// A WebhookSource changes in a part that does not determine stages, and the leader sees the change immediately.
    fn edit(&mut self) {
        self.serial += 1;
        let kind = MAPPED[self.env.random.below(MAPPED.len())];
        if let Some(source) = &mut self.env.store.sources[kind] {
            source.edition = self.serial;
            if let Some(at) = self.some_process(Process::is_working) {
                self.work(at, Action::Catalog);
            }
        }
    }

    /// The definition of a kind is deleted with all its objects.
    fn uninstall(&mut self) {
        let kind = MAPPED[self.env.random.below(MAPPED.len())];
        // A restore would bring back the objects without their definition, which cannot happen in a real store.
        if self.quiet || self.actions.iter().any(|action| matches!(action, Action::Restore)) {
            return;
        }
        while let Some(uid) = self.some_life(Some(kind)) {
            self.env.store.delete(uid, self.env.tick);
        }
        self.env.installed[kind] = false;
        self.env.say(|| format!("the definition of {} is gone", KINDS[kind].name));
    }

    fn change(&mut self) {
        let Some(uid) = self.some_life(None) else { return };
        let Some(life) = self.env.store.lives.get(&uid) else { return };
        self.serial += 1;
        let now = life.now().clone();
        if self.quiet {
            self.env.store.update(uid, State { tick: self.env.tick, ..now });
            return;
        }
        let (mut facts, generation) = life::next(&mut self.env.random, &now.facts, now.generation, self.serial as i64);
        if self.large {
            life::inflate(&mut facts);
        }
        self.env.store.update(uid, State { tick: self.env.tick, generation, facts, ..now });
        if !self.large {
            self.env.say(|| format!("{uid:?} is now {:?}", self.env.store.lives[&uid].now()));
        }
    }

    /// The label is added or removed, possibly together with another change.
    fn select(&mut self) {
        let kind = if self.cast.contains(&4) && self.env.random.chance(50) { 4 } else { 1 };
        let Some(uid) = self.some_life(Some(kind)) else { return };
        let Some(life) = self.env.store.lives.get(&uid) else { return };
        self.serial += 1;
        let mut state = State { tick: self.env.tick, ..life.now().clone() };
        state.selected = !state.selected;
        if self.env.random.chance(30) {
            (state.facts, _) = life::next(&mut self.env.random, &state.facts, 1, self.serial as i64);
        }
        self.env.met.hidden |= state.selected;
        self.env.say(|| format!("{uid:?} is now {state:?}"));
        self.env.store.update(uid, state);
    }
}
