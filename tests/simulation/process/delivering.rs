//! Runs attempts, and stores dead letters.

use super::*;

impl Process {
    /// Executes the engine's next action.
    pub fn due(&mut self, env: &mut Env) {
        let now = env.time(self.off);
        loop {
            let Some(engine) = &mut self.engine else { return };
            match engine.due(now) {
                None => return,
                Some(Due::StoreDeadLetter(keep)) => {
                    self.outgoing(env, &keep.event);
                    self.keeps.push(keep);
                }
                Some(Due::GivenUp(recorded)) => {
                    if recorded.dropped {
                        env.oracle.reached.insert((recorded.webhook, recorded.event.id));
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

    /// Checks that an event may be sent.
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

    /// Checks an attempt that begins.
    fn begun(&mut self, env: &mut Env, attempt: Attempt) {
        let Attempt { webhook, ref event, number, .. } = attempt;
        self.outgoing(env, event);
        let now = env.time(self.off);
        let oracle = &mut env.oracle;
        let Some(hook) = env.hooks.get(&webhook) else {
            oracle.fail("engine 3", "an attempt to a Webhook that is deleted");
            return;
        };
        let subscription = &hook.subscription;
        let paused = |(until, generation): &(Timestamp, i64)| *generation == subscription.generation && now < *until;
        if self.pauses.get(&webhook).is_some_and(paused) {
            oracle.fail("pending 3", "a paused Webhook begins an attempt");
        }
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
                && !oracle.restarted.contains(&object)
            {
                oracle.fail("pending 2", format!("first attempts out of order: {before:?} before {this:?}"));
            }
        }
        self.attempts.push(attempt);
    }

    /// Ends an attempt in flight.
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
            // The request arrives, and the response is lost.
            (Mode::Well, 3..8) => (true, failed),
            (Mode::Well, 8..14) | (Mode::Failing, _) => (false, failed),
            (Mode::Well, 14..18) => {
                let retry_after = Duration::from_millis(env.random.below(3000) as u64 + 1);
                (false, AttemptResult::Throttled { retry_after })
            }
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
        let Some(recorded) = engine.record_outcome(outcome, now, random) else { return };
        env.say(|| format!("#{} settles {} at {webhook:?}: {:?}", self.number, event.id, recorded.verdict));
        if let Some(wait) = result.retry_after().filter(|_| recorded.throttled)
            && let Some(hook) = env.hooks.get(&webhook).filter(|hook| hook.subscription.generation == generation)
        {
            env.met.paused = true;
            let until = now + wait.min(hook.subscription.backoff.max);
            let before = self.pauses.get(&webhook).filter(|(_, asked_under)| *asked_under == generation);
            let until = before.map_or(until, |(before, _)| until.max(*before));
            self.pauses.insert(webhook, (until, generation));
        }
        if recorded.verdict == Verdict::Delivered {
            self.ended.push((webhook, event.id));
        }
        if recorded.dropped {
            env.oracle.reached.insert((webhook, event.id));
        }
        if recorded.verdict == Verdict::GivenUp(Reason::EndpointGone)
            && let Some(hook) = env.hooks.get_mut(&webhook)
            && env.random.chance(50)
        {
            hook.gone = Some(generation);
        }
    }

    /// Stores a dead letter as an object.
    pub fn keep(&mut self, env: &mut Env) {
        if self.keeps.is_empty() {
            return;
        }
        let at = env.random.below(self.keeps.len());
        let luck = if env.calm { 50 } else { env.random.below(100) };
        let StoreDeadLetter { webhook, delivery, ref event, .. } = self.keeps[at];
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
            engine.dead_letter_stored(webhook, delivery);
        }
    }
}
