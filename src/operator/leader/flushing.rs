//! The task that writes changes to the ledger, one flush at a time.

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

/// The result of a flush: the journal, and why it cannot be continued, if so.
pub type Flushed = Result<(Journal, Result<(), LedgerError>), JoinError>;

/// The loop's side of the ledger.
pub struct Flushing {
    store: Store,
    /// `None` while a flush is in flight.
    journal: Option<Journal>,
    under_way: JoinSet<(Journal, Result<(), LedgerError>)>,
    pace: FlushScheduler,
    /// When the last flush started.
    begun: Instant,
}

impl Flushing {
    /// Creates the state for a ledger that contains nothing new but the claim.
    pub fn new(store: Store, journal: Journal, now: Timestamp) -> Self {
        let pace = FlushScheduler::new(Intervals::default(), now);
        Self { store, journal: Some(journal), under_way: JoinSet::new(), pace, begun: Instant::now() }
    }

    /// Returns when the next flush starts; `None` if nothing changed or a flush is in flight.
    pub fn next(&mut self, engine: &Engine, now: Timestamp) -> Option<Timestamp> {
        self.pace.next(engine, self.journal.as_ref()?, now)
    }

    /// Adjusts to a step of the clock.
    pub fn shift(&mut self, step: SignedDuration) {
        self.pace.shift(step);
    }

    /// Starts a flush of the changes, unless one is in flight.
    pub fn begin(&mut self, engine: &mut Engine, now: Timestamp) {
        let Some(journal) = self.journal.take() else { return };
        let flush = self.pace.compose(engine, &journal, now);
        self.begun = Instant::now();
        self.under_way.spawn(self.store.clone().flush(journal, flush));
    }

    /// Waits for the flush in flight; `None` if there is none.
    pub async fn ended(&mut self) -> Option<Flushed> {
        self.under_way.join_next().await
    }

    /// Records a committed flush.
    pub fn flush_committed(&mut self, journal: Journal, engine: &mut Engine, metrics: &Metrics) {
        metrics.ledger_flush_duration.observe(self.begun.elapsed().as_secs_f64());
        metrics.ledger_bytes.set(journal.bytes() as i64);
        self.journal = Some(journal);
        engine.flush_committed();
    }

    /// Writes all remaining changes.
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

/// Logs how the ledger continues. A new epoch is also an Event.
pub fn log_start(began: Option<&NoLedger>, journal: &Journal, lease: &ObjectReference) -> Option<Notice> {
    let (epoch, term) = (journal.epoch(), journal.term());
    let Some(why) = began else {
        info!(epoch, term, "continuing from the ledger");
        return None;
    };
    let baseline = "existing objects become the baseline, and nothing is sent for their past";
    if matches!(why, NoLedger::Fresh) {
        info!(epoch, "there is no ledger yet, so a new epoch begins: {baseline}");
        return Some(Notice::new_epoch(lease.clone(), false, format!("{why}: {baseline}")));
    }
    let lost =
        "pending deliveries are lost; compare the state of receivers with the objects (docs/operations.md, The ledger)";
    warn!(epoch, %why, "a new epoch begins: {baseline}; {lost}");
    Some(Notice::new_epoch(lease.clone(), true, format!("{why}: {baseline}; {lost}")))
}
