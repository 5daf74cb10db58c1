//! When what has changed is written to the ledger, and the task that writes it: one flush at a time.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};
use tracing::{info, warn};

use crate::{
    engine::{Engine, Unflushed},
    ledger::{
        journal::{Journal, NoLedger},
        store::{LedgerError, Store},
    },
    operator::metrics::Metrics,
    report::events::Notice,
};

/// A flush begins this long after the first change, so that it takes what follows at once along.
const FLUSH_AFTER: Duration = Duration::from_millis(100);
/// Flushes begin at least this far apart.
const FLUSH_EVERY: Duration = Duration::from_millis(500);
/// About how many bytes one flush takes before the next goes on; compressed they fit into a segment as a rule.
const FLUSH_BYTES: usize = 2 << 20;
/// Positions that moved alone are written this often.
const POSITIONS_EVERY: Duration = Duration::from_secs(60);

/// What a flush came to: the journal back, or why it cannot be gone on with.
pub type Flushed = Result<(Journal, Result<(), LedgerError>), JoinError>;

/// The ledger's side of the loop.
pub struct Flushing {
    store: Store,
    /// `None` while a flush is under way.
    journal: Option<Journal>,
    under_way: JoinSet<(Journal, Result<(), LedgerError>)>,
    /// When the last flush began.
    begun: Instant,
    /// Since when there has been something to write.
    changed: Option<Instant>,
    /// The last flush had no room for everything.
    more: bool,
}

impl Flushing {
    /// A ledger to which nothing has been written yet but the claim.
    pub fn new(store: Store, journal: Journal) -> Self {
        let under_way = JoinSet::new();
        Self { store, journal: Some(journal), under_way, begun: Instant::now(), changed: None, more: false }
    }

    /// When the next flush is to begin; `None` where there is nothing to write, or one is under way.
    pub fn next(&mut self, engine: &Engine) -> Option<Instant> {
        let journal = self.journal.as_ref().filter(|_| !engine.awaits_watches())?;
        if self.more || journal.is_pressed() {
            return Some(self.begun);
        }
        match engine.unflushed() {
            Unflushed::Nothing => None,
            Unflushed::Positions => Some(self.begun + POSITIONS_EVERY),
            Unflushed::Changes => {
                let changed = *self.changed.get_or_insert_with(Instant::now);
                Some((changed + FLUSH_AFTER).max(self.begun + FLUSH_EVERY))
            }
        }
    }

    /// Begins a flush of what has changed, unless one is under way.
    pub fn begin(&mut self, engine: &mut Engine) {
        let Some(journal) = self.journal.take() else { return };
        // Only a flush of everything lets snapshots go ahead of the ring.
        let budget = if journal.is_pressed() { usize::MAX } else { FLUSH_BYTES };
        let flush = engine.flush(&journal.wanted(), budget);
        self.more = flush.contents.watches.is_none();
        self.begun = Instant::now();
        self.changed = None;
        self.under_way.spawn(self.store.clone().flush(journal, flush));
    }

    /// Waits for the flush that is under way; `None` where none is.
    pub async fn ended(&mut self) -> Option<Flushed> {
        self.under_way.join_next().await
    }

    /// A flush has landed.
    pub fn landed(&mut self, journal: Journal, engine: &mut Engine, metrics: &Metrics) {
        metrics.ledger_flush_duration.observe(self.begun.elapsed().as_secs_f64());
        metrics.ledger_bytes.set(journal.bytes() as i64);
        self.journal = Some(journal);
        engine.landed();
    }

    /// Writes all that is left.
    pub async fn finish(&mut self, engine: &mut Engine, metrics: &Metrics) {
        if engine.awaits_watches() {
            return;
        }
        loop {
            if self.journal.is_some() {
                if !self.more && engine.unflushed() == Unflushed::Nothing {
                    return;
                }
                self.begin(engine);
            }
            match self.ended().await {
                Some(Ok((journal, Ok(())))) => self.landed(journal, engine, metrics),
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
