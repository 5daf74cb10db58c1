//! The task that writes what has changed to the ledger: one flush at a time.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};
use tracing::{info, warn};

use super::clock::Clock;
use crate::{
    ledger_store::{LedgerError, Store},
    operator::metrics::Metrics,
    report::events::Notice,
};
use llmtune_core::{
    engine::{
        Engine,
        flush_scheduler::{FlushScheduler, Intervals},
    },
    ledger::journal::{Journal, NoLedger},
};

/// What a flush came to: the journal back, or why it cannot be gone on with.
pub type Flushed = Result<(Journal, Result<(), LedgerError>), JoinError>;

/// The ledger's side of the loop.
pub struct Flushing {
    store: Store,
    /// `None` while a flush is under way.
    journal: Option<Journal>,
    under_way: JoinSet<(Journal, Result<(), LedgerError>)>,
    pace: FlushScheduler,
    /// When the last flush began.
    begun: Instant,
}

impl Flushing {
    /// A ledger to which nothing has been written yet but the claim.
    pub fn new(store: Store, journal: Journal, now: Timestamp) -> Self {
        let pace = FlushScheduler::new(Intervals::default(), now);
        Self { store, journal: Some(journal), under_way: JoinSet::new(), pace, begun: Instant::now() }
    }

    /// When the next flush is to begin; `None` where there is nothing to write, or one is under way.
    pub fn next(&mut self, engine: &Engine, now: Timestamp) -> Option<Timestamp> {
        self.pace.next(engine, self.journal.as_ref()?, now)
    }

    /// The clock was set forward by so much, or back.
    pub fn shift(&mut self, step: SignedDuration) {
        self.pace.shift(step);
    }

    /// Begins a flush of what has changed, unless one is under way.
    pub fn begin(&mut self, engine: &mut Engine, now: Timestamp) {
        let Some(journal) = self.journal.take() else { return };
        let flush = self.pace.compose(engine, &journal, now);
        self.begun = Instant::now();
        self.under_way.spawn(self.store.clone().flush(journal, flush));
    }

    /// Waits for the flush that is under way; `None` where none is.
    pub async fn ended(&mut self) -> Option<Flushed> {
        self.under_way.join_next().await
    }

    /// A flush has landed.
    pub fn flush_committed(&mut self, journal: Journal, engine: &mut Engine, metrics: &Metrics) {
        metrics.ledger_flush_duration.observe(self.begun.elapsed().as_secs_f64());
        metrics.ledger_bytes.set(journal.bytes() as i64);
        self.journal = Some(journal);
        engine.flush_committed();
    }

    /// Writes all that is left.
    pub async fn finish(&mut self, engine: &mut Engine, metrics: &Metrics, clock: Clock) {
        if engine.awaits_watches() {
            return;
        }
        loop {
            if self.journal.is_some() {
                if self.pace.is_done(engine) {
                    return;
                }
                self.begin(engine, clock.now());
            }
            match self.ended().await {
                Some(Ok((journal, Ok(())))) => self.flush_committed(journal, engine, metrics),
                Some(Ok((_, Err(error)))) => return warn!(%error, "the last flush was not written"),
                Some(Err(error)) => return warn!(%error, "the last flush was not written"),
                None => return,
            }
        }
    }
}

/// Says how the ledger goes on; a new epoch is worth an Event.
pub fn tell(began: Option<&NoLedger>, journal: &Journal, lease: &ObjectReference) -> Option<Notice> {
    let (epoch, term) = (journal.epoch(), journal.term());
    let Some(why) = began else {
        info!(epoch, term, "going on from the ledger");
        return None;
    };
    let baseline = "all objects that are there now are a baseline, and nothing is sent for their past";
    if matches!(why, NoLedger::Fresh) {
        info!(epoch, "there is no ledger yet, so a new epoch begins: {baseline}");
        return Some(Notice::new_epoch(lease.clone(), false, format!("{why}: {baseline}")));
    }
    let lost = "what was still to be delivered is not: let receivers compare what they know with the objects (docs/operations.md, The ledger)";
    warn!(epoch, %why, "a new epoch begins: {baseline}; {lost}");
    Some(Notice::new_epoch(lease.clone(), true, format!("{why}: {baseline}; {lost}")))
}
