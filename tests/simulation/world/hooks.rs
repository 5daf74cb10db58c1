//! Webhooks that are created, changed and deleted, and their endpoints.

use std::time::Duration;

use kube_core::{Expression, Selector};
use llmtune_core::{
    event::EventSet,
    schedule::Backoff,
    subscription::index::{Scope, Subscription},
};

use super::*;
use crate::process::{Hook, Mode};

impl World {
    pub(super) fn create_hook(&mut self) {
        if self.env.hooks.len() >= 4 {
            return;
        }
        self.serial += 1;
        let random = &mut self.env.random;
        let patterns: &[&str] = [&["*"][..], &["*"], &["training.*"], &["deployment.*", "training.failed", "usage.*"]]
            [if self.large { 0 } else { random.below(4) }];
        let team = TEAMS[random.below(2)].to_owned();
        let selector = if random.chance(20) && !self.large {
            Expression::In("team".into(), [team].into()).into()
        } else {
            Selector::default()
        };
        let uid = Uid::from_u128(1 << 64 | u128::from(self.serial));
        let (initial, max) = (Duration::from_millis(100), Duration::from_secs(1));
        let subscription = Subscription {
            uid,
            scope: Scope::Namespace("ns".into()),
            generation: 1,
            events: EventSet::parse(patterns).unwrap_or_default(),
            selector,
            filter: None,
            max_retries: random.below(4) as u32,
            backoff: Backoff { initial, factor: 2, max },
            concurrency: 1 + random.below(3),
            held: random.chance(15),
        };
        self.env.say(|| format!("{uid:?} is a Webhook for {patterns:?}"));
        self.env.hooks.insert(uid, Hook { subscription, mode: Mode::Well, created: self.env.tick, gone: None });
        self.tell(uid);
    }

    fn some_hook(&mut self) -> Option<Uid> {
        let uids: Vec<Uid> = self.env.hooks.keys().copied().collect();
        (!uids.is_empty()).then(|| uids[self.env.random.below(uids.len())])
    }

    pub(super) fn delete_hook(&mut self) {
        if let Some(uid) = self.some_hook() {
            self.env.hooks.remove(&uid);
            for process in self.processes.iter_mut().filter(|process| process.is_working()) {
                if let Some(engine) = &mut process.engine {
                    engine.unsubscribe(uid);
                }
            }
        }
    }

    pub(super) fn hold(&mut self) {
        if let Some(uid) = self.some_hook()
            && let Some(hook) = self.env.hooks.get_mut(&uid)
        {
            hook.subscription.held = !hook.subscription.held;
            self.tell(uid);
        }
    }

    pub(super) fn endpoint(&mut self) {
        let Some(uid) = self.some_hook() else { return };
        let mode = [Mode::Well, Mode::Well, Mode::Failing, Mode::Slow, Mode::Gone][self.env.random.below(5)];
        let edited = self.env.random.chance(50);
        let Some(hook) = self.env.hooks.get_mut(&uid) else { return };
        hook.mode = mode;
        if edited {
            hook.subscription.generation += 1;
            hook.gone = None;
            self.tell(uid);
        }
    }

    /// Passes a Webhook to all working processes immediately.
    pub(super) fn tell(&mut self, uid: Uid) {
        let Some(hook) = self.env.hooks.get(&uid) else { return };
        for process in self.processes.iter_mut().filter(|process| process.is_working()) {
            if let Some(engine) = &mut process.engine {
                engine.subscribe(hook.subscription.clone());
            }
        }
    }
}
