//! Claims the ledger, starts to lead, and adds and ends watches.

use super::*;

impl Process {
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
                let is_of_ledger = |found: &Found| found.segment.spec.epoch == env.oracle.ledger;
                let deleted = env.store.ledger_harmed && !found.iter().any(is_of_ledger);
                env.oracle.recovered(journal.epoch(), &memory, deleted);
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

    pub(super) fn send(&mut self, env: &mut Env, segment: Segment) {
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

    /// Sends the PUT again if no response came.
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
                journal.committed(&segment, version);
                Resolution::Committed
            }
            Answer::Conflict => {
                let resolution = journal.resolve(&segment, env.store.found(&segment.name));
                env.met.unanswered |= resolution == Resolution::Committed;
                env.say(|| format!("#{} met a conflict at {}: {resolution:?}", self.number, segment.name));
                resolution
            }
        };
        match (resolution, self.phase) {
            (Resolution::Committed, Phase::Claiming) => self.lead(env),
            (Resolution::Committed, _) => self.next_segment(env),
            (Resolution::Overwrite, _) => self.send(env, segment),
            (Resolution::Lost, Phase::Claiming) => self.phase = Phase::Reading,
            (Resolution::Lost, _) => {
                env.say(|| format!("#{} has lost", self.number));
                self.phase = Phase::Dead;
            }
        }
    }

    /// The claim is committed: starts the engine with the recovered state.
    fn lead(&mut self, env: &mut Env) {
        env.say(|| format!("#{} leads", self.number));
        let (now, epoch) = (env.time(self.off), self.epoch);
        let shards = env.shape.shards;
        self.phase = Phase::Leading;
        self.pace = Some(FlushScheduler::new(intervals(), now));
        let Some(journal) = &self.journal else { return };
        env.oracle.leads(journal.epoch(), journal.term(), self.number, self.memory.as_deref());
        self.engine = Some(if let Some(memory) = self.memory.take() {
            let stands = |known: &RememberedWatch| {
                let WatchEntry { ref watch, epoch, position, absent, current, missing_since, .. } = known.entry;
                // Positions of a history that a restore ended cannot be resumed.
                let position = if known.restored { position.min(1) } else { position };
                Stood { watch: watch.clone(), epoch, position, absent, current, missing_since }
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

    /// Registers a watch with the engine, which recovers its state.
    fn add_watch(&mut self, env: &mut Env, kind: usize, name: &str) {
        let Some(engine) = &mut self.engine else { return };
        let id = WatchId(self.next_id);
        self.next_id += 1;
        if kind == USAGE {
            engine.add_measured_watch(id, KINDS[kind].source, name);
        } else {
            engine.add_watch(id, KINDS[kind].source, name, KINDS[kind].selective);
        }
        let at = self.remembered.iter().position(|known| known.watch == name);
        let remembered = at.map(|at| self.remembered.swap_remove(at));
        let position = remembered.as_ref().map_or(0, |known| known.position);
        if engine.position(id) != position {
            env.oracle.fail("engine 5", format!("{name} does not go on from {position}, where the ledger says"));
        }
        let known = Known {
            id,
            epoch: remembered.as_ref().map_or(0, |known| known.epoch),
            baseline: remembered.as_ref().map(|known| env.oracle.baseline(kind, known.epoch)),
            baselined: remembered.is_some(),
            absent: remembered.as_ref().is_some_and(|known| known.absent),
            missing_since: remembered.as_ref().and_then(|known| known.missing_since),
            current: remembered.as_ref().and_then(|known| known.current),
            restored_to: None,
            in_list: false,
        };
        self.watches[kind] = Some(known);
    }

    /// All WebhookSources are listed: starts the watches.
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
            let known = self.remembered.iter().find(|known| known.watch == name);
            if let (Some(kind), Some(known)) = (kind_of_watch(&name), known) {
                env.oracle.withdrawn(kind, known.epoch);
            }
        }
        self.remembered.clear();
        self.existence_checks = engine.open_checks();
        self.existence_checks.sort_by_key(|check| check.uid);
        for kind in 0..KINDS.len() {
            self.start_watch(kind);
        }
    }

    /// Starts the task of a watch at the engine's position.
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

    /// Lists all WebhookSources, or handles a change of one.
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

    /// Replaces the task of a watch while observations of the previous task are still queued.
    fn restart(&mut self, env: &mut Env, kind: usize) {
        let (Some(engine), Some(known)) = (&self.engine, &self.watches[kind]) else { return };
        env.met.restarted |= self.queue.iter().any(|item| item.watch == known.id);
        env.met.restarted_in_list |= known.in_list;
        let id = known.id;
        let existence_checks = engine.open_checks().into_iter().filter(|check| check.watch == id);
        self.existence_checks.retain(|check| check.watch != id);
        self.existence_checks.extend(existence_checks);
        self.existence_checks.sort_by_key(|check| check.uid);
        self.start_watch(kind);
    }

    /// Ends the watch of a WebhookSource.
    fn withdraw(&mut self, env: &mut Env, kind: usize) {
        let (Some(engine), Some(known)) = (&mut self.engine, self.watches[kind].take()) else { return };
        env.met.withdrawn_live = true;
        engine.remove_watch(known.id);
        env.oracle.withdrawn(kind, known.epoch);
        self.watchers.retain(|watcher| watcher.kind != kind);
        self.existence_checks.retain(|check| check.watch != known.id);
    }

    /// Passes all existing Webhooks to the engine.
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
}
