//! Passes the observations of the watches to the engine, and checks the resulting events.

use super::*;

impl Process {
    /// Runs the next step of a watch's task.
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

    /// Passes the next observation to the engine.
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
        if matches!(change, WatchEvent::ListEnded(_)) && KINDS[kind].selective {
            env.oracle.forgotten(&env.store, kind);
        }
        let mut bookmark = 0;
        match &change {
            WatchEvent::ListBegun => {
                if !begins {
                    let missing_from =
                        known.missing_since.and_then(|since| env.oracle.missing_from.get(&(kind, since)));
                    let position = missing_from.copied().unwrap_or_else(|| engine.position(watch));
                    let from = known.restored_to.map_or(position, |version| version.min(position));
                    env.oracle.gap(kind, from, as_of, known.missing_since.is_some());
                }
                known.in_list = true;
            }
            WatchEvent::ListEnded(_) => {
                known.baseline.get_or_insert(as_of);
                known.restored_to = known.restored_to.filter(|_| outdated);
                env.met.came |= std::mem::take(&mut known.absent);
                env.met.back |= known.missing_since.take().is_some();
                known.in_list = false;
            }
            WatchEvent::Seen(object) if !begins => {
                env.oracle.sees(&env.store, (object.uid, object.version), known.current);
            }
            WatchEvent::Left(object) => env.oracle.unselected(object.uid, object.version),
            WatchEvent::ExistenceChecked { check, exists: false } => {
                let selected_again =
                    |life: &Life| life.states.iter().any(|state| state.selected && state.version > check.version);
                if env.store.lives.get(&check.uid).is_none_or(selected_again) {
                    env.oracle.restarted.insert(check.uid);
                    env.oracle.found_gone.insert((check.uid, check.version));
                }
            }
            WatchEvent::NotInstalled(at) if begins => {
                env.oracle.absent(&env.store, kind);
                known.current = *at;
                known.baseline = Some(as_of);
                known.baselined = false;
                known.absent = true;
                known.in_list = false;
            }
            WatchEvent::NotInstalled(_) if !known.absent => {
                env.met.went = true;
                if known.missing_since.is_none() {
                    let now = env.time(self.off);
                    known.missing_since = Some(now);
                    env.oracle.missing_from.insert((kind, now), engine.position(watch));
                }
                known.in_list = false;
            }
            WatchEvent::Current(at) => known.current = Some(*at),
            WatchEvent::Bookmark(version) => bookmark = *version,
            _ => {}
        }
        let baseline = known.baseline.filter(|_| !begins);
        let current = known.current.filter(|_| !known.in_list);
        let observed = engine.observe(Observation { watch, change }, env.time(self.off));
        if engine.position(watch) < bookmark {
            env.oracle.fail("engine 5", format!("{bookmark} is passed, and the position stays"));
        }
        for event in &observed.events {
            let version = subject.filter(|(uid, _)| *uid == event.object.uid).map(|(_, version)| version);
            env.oracle.occurred(&env.store, kind, version, baseline, event);
            env.oracle.is_news(&env.store, kind, version, current, event);
        }
        let unwritten = Some(watch).filter(|_| !known.baselined);
        self.tell(env, unwritten, &observed);
        self.existence_checks.extend(observed.existence_checks);
    }

    /// Passes a measurement, or the list of figures, to the engine.
    fn measure(&mut self, env: &mut Env, item: Item) {
        let Some(engine) = &mut self.engine else { return };
        let Item { watch, change, .. } = item;
        let object = match &change {
            WatchEvent::Only(there) => {
                env.oracle.crossings.only(there);
                None
            }
            WatchEvent::Gone(uid) => {
                env.oracle.crossings.gone(*uid);
                None
            }
            WatchEvent::Measured(object) => Some(object.clone()),
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

    /// Records the events of an observation.
    fn tell(&mut self, env: &mut Env, unwritten: Option<WatchId>, observed: &Observed) {
        for event in &observed.events {
            env.say(|| format!("#{} tells {} of {} as {}", self.number, event.event_type, event.object.name, event.id));
            env.told.entry((event.id, event.observed_at)).or_insert(env.millis);
            let object = event.object.uid;
            if self.told.insert(event.id, unwritten).is_some() && !env.oracle.may_repeat(self.number, object) {
                env.oracle.fail("engine 1", format!("{} of {} is told twice", event.event_type, event.object.name));
            }
            self.reported_since.push(event.id);
            if kind_of_uid(event.object.uid) != USAGE {
                self.owed_since.extend(Oracle::audience(&env.hooks, event));
            }
            // An event that is emitted again is sent again. If its end was flushed before, the oracle reports it.
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

    /// Answers an existence check.
    pub fn answer(&mut self, env: &mut Env) {
        if self.existence_checks.is_empty() {
            return;
        }
        let check = self.existence_checks.swap_remove(env.random.below(self.existence_checks.len()));
        if !env.installed[kind_of_uid(check.uid)] {
            self.existence_checks.push(check);
            return;
        }
        let exists = env.store.lives(check.uid);
        let (watch, kind) = (check.watch, kind_of_uid(check.uid));
        let change = WatchEvent::ExistenceChecked { check, exists };
        self.queue.push_back(Item { watch, kind, change, as_of: 0, outdated: false });
    }
}
