//! Faults of the store, the ledger, the network and processes, and their repair.

use llmtune_core::ledger::SegmentKind;

use super::*;
use crate::{process::Mode, store::Answer};

/// Upper bound of rounds for a world to come to rest.
const PATIENCE: usize = 3000;

impl World {
    /// Restores the store to an earlier state. Its log is empty afterwards.
    pub(super) fn restore(&mut self) {
        if self.backups.is_empty() {
            return;
        }
        let last = self.backups.len() - 1;
        let at = if self.env.random.chance(70) { last } else { self.env.random.below(last + 1) };
        self.backups.truncate(at + 1);
        self.quiet = false;
        let mut store = self.backups[at].clone();
        for kind in 0..KINDS.len() {
            store.compact(kind, store.version);
        }
        let outlives = self.env.random.chance(50);
        for process in &mut self.processes {
            if !process.is_working() || !outlives {
                process.kill(&mut self.env);
            }
        }
        self.processes.retain(Process::is_alive);
        self.env.met.restored = true;
        let outlived = !self.processes.is_empty();
        self.env.say(|| format!("the store is restored as of {}, outlived: {outlived}", store.version));
        self.env.oracle.restored(&self.env.store, &store, outlived);
        self.env.store = store;
        self.env.store.ledger_harmed |= outlived;
        self.env.network.clear();
        for process in &mut self.processes {
            self.env.oracle.outlived.insert(process.number);
            process.restored(&mut self.env);
        }
    }

    /// Deletes the whole ledger, or damages a part of it.
    pub(super) fn harm(&mut self) {
        let leads = self.processes.iter().any(Process::is_alive);
        if self.env.store.segments.is_empty() || (leads && self.env.random.chance(75)) {
            return;
        }
        self.die();
        self.env.store.ledger_harmed = true;
        self.env.say(|| "the ledger is harmed".into());
        if self.env.random.chance(40) {
            self.env.oracle.terms.clear();
            self.env.store.segments.clear();
            return;
        }
        let newest = self.env.store.segments.values().map(|(segment, _)| segment.spec.epoch).max();
        let mut segments: Vec<_> =
            self.env.store.segments.values_mut().filter(|(segment, _)| Some(segment.spec.epoch) == newest).collect();
        let at = self.env.random.below(segments.len());
        segments[at].0.spec.data.insert(0, '?');
    }

    /// Starts another process if none leads.
    pub(super) fn start(&mut self) {
        if let Some(at) = self.some_process(|process| process.phase == Phase::Reading && !process.paused) {
            self.processes[at].open(&mut self.env);
            return;
        }
        if self.processes.iter().all(|process| process.paused || process.lapsed) {
            self.serial += 1;
            self.holder = self.serial;
            let off = self.env.random.below(40_000) as i64 - 20_000;
            self.processes.push(Process::new(self.serial, off));
        }
    }

    pub(super) fn resume(&mut self) {
        let Some(at) = self.some_process(|process| process.paused) else { return };
        let process = &mut self.processes[at];
        process.paused = false;
        process.lapsed = process.number != self.holder;
        self.env.say(|| format!("#{} runs on, lapsed: {}", process.number, process.lapsed));
        if process.lapsed && process.phase != Phase::Leading {
            process.phase = Phase::Dead;
            return;
        }
        if !process.lapsed {
            process.sync_hooks(&self.env);
        }
        process.resend(&mut self.env);
        let leads = |process: &Process| process.phase == Phase::Leading;
        self.env.met.overlap |=
            self.processes[at].lapsed && self.processes.iter().filter(|process| leads(process)).count() > 1;
    }

    /// Applies a network fault to a PUT in flight.
    pub(super) fn network(&mut self) {
        if self.env.network.is_empty() {
            return;
        }
        let at = self.env.random.below(self.env.network.len());
        let luck = if self.env.calm { 0 } else { self.env.random.below(100) };
        let put = &self.env.network[at];
        let owner = self.processes.iter().position(|process| !process.paused && process.waits_for(put));
        match (owner, luck) {
            (Some(owner), 0..76) => {
                let answer = self.land(at);
                self.processes[owner].answered(&mut self.env, answer);
            }
            // The PUT is committed, and the response is lost.
            (Some(owner), 76..84) => {
                self.land(at);
                self.processes[owner].resend(&mut self.env);
            }
            (Some(owner), 84..90) => {
                self.env.network.swap_remove(at);
                self.processes[owner].resend(&mut self.env);
            }
            // The original PUT may still arrive.
            (Some(owner), 90..96) => self.processes[owner].resend(&mut self.env),
            (None, 0..50) => {
                self.land(at);
            }
            (None, 50..70) => {
                self.env.network.swap_remove(at);
            }
            _ => {}
        }
    }

    fn land(&mut self, at: usize) -> Answer {
        let put = self.env.network.swap_remove(at);
        let answer = self.env.store.put(&put.segment, put.replaces.as_deref());
        if let Answer::Landed(version) = &answer {
            self.env.say(|| format!("#{}'s {} lands at {version}", put.owner, put.segment.name));
            self.env.oracle.put(&put.segment, put.owner);
            self.env.store.ledger_harmed |= self.env.oracle.outlived.contains(&put.owner);
            self.env.met.wrapped |=
                put.segment.spec.kind == SegmentKind::Journal && put.segment.spec.sequence >= self.env.shape.ring;
            let newest =
                self.processes.iter().filter(|process| process.phase == Phase::Leading).map(Process::term).max();
            self.env.met.late_snapshot |= put.segment.spec.kind == SegmentKind::Snapshot
                && newest.is_some_and(|term| put.segment.spec.term < term);
        }
        answer
    }

    /// Kills all processes without warning.
    pub(super) fn die(&mut self) {
        for process in &mut self.processes {
            process.kill(&mut self.env);
        }
        self.processes.clear();
        self.env.calm = false;
    }

    /// Repairs all endpoints, and runs one process until it comes to rest.
    pub(super) fn heal(&mut self) {
        self.env.calm = true;
        self.env.installed = [true; KINDS.len()];
        let uids: Vec<Uid> = self.env.hooks.keys().copied().collect();
        for uid in uids {
            if let Some(hook) = self.env.hooks.get_mut(&uid) {
                hook.mode = Mode::Well;
                hook.subscription.held = false;
            }
            self.tell(uid);
        }
        for process in &mut self.processes {
            if process.paused || process.lapsed || process.stopping {
                process.kill(&mut self.env);
            }
        }
        for _ in 0..PATIENCE {
            self.processes.retain(Process::is_alive);
            if self.env.oracle.violation.is_some() {
                return;
            }
            self.env.tick += 1;
            self.env.millis += 50;
            self.start();
            self.network();
            let Some(at) = self.processes.iter().position(|process| process.phase == Phase::Leading) else { continue };
            let (process, env) = (&mut self.processes[at], &mut self.env);
            process.catalog(env);
            for kind in &self.cast {
                process.watch(env, *kind);
            }
            for _ in 0..3 {
                process.consume(env);
            }
            process.answer(env);
            process.due(env);
            process.due(env);
            process.end_attempt(env);
            process.keep(env);
            process.flush(env);
            if process.rests(env) && self.env.network.is_empty() {
                return;
            }
        }
        self.env.oracle.fail("engine", "it does not come to rest");
    }
}
