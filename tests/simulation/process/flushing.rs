//! Flushes the engine's changes to the ledger.

use super::*;

impl Process {
    /// Begins a flush if one is due.
    pub fn flush(&mut self, env: &mut Env) {
        let (Some(engine), Some(journal)) = (&mut self.engine, &mut self.journal) else { return };
        if self.flushing.is_some() || self.phase != Phase::Leading {
            return;
        }
        // The ledger forgets watches that a flush does not name.
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
            held.told = std::mem::take(&mut self.reported_since);
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

    pub(super) fn next_segment(&mut self, env: &mut Env) {
        let Some(flushing) = &mut self.flushing else { return };
        if let Some(segment) = flushing.rest.pop_front() {
            self.send(env, segment);
            return;
        }
        let Some(flushing) = self.flushing.take() else { return };
        if let Some(engine) = &mut self.engine {
            engine.flush_committed();
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
            env.oracle.flush_committed(journal.epoch(), self.number, held);
        }
    }
}
