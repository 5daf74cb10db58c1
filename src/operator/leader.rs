//! The leader's loop, which owns the engine. All data flows through it, and it never waits for I/O.

mod attempts;
mod clock;
mod flushing;
mod namespaces;
mod orphans;
mod requests;
mod sources;
mod start;
mod usage;

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tracing::{debug, info, warn};

use super::{
    config::RunArgs,
    metrics::{DropReason, Metrics},
    server::{Health, Refresh},
};
use crate::{
    claim::Claim,
    delivery::send::Sender,
    ledger_store::{LedgerError, Store},
    owner::Owner,
    report::{
        Note,
        deliveries::{FromDeliveries, Order, Subject},
        status::gone_generation,
    },
    source::{
        catalog,
        usage::{UsageUpdate, prometheus::Prometheus},
    },
    subscription::{
        resolve::Resolved,
        watch::{Lost, Update, WebhookChange},
    },
    transport::clients::Clients,
};
use attempts::Ended;
use clock::Clock;
use flushing::Flushing;
use llmtune_core::{
    engine::{Engine, Unfiltered},
    event::{
        object::{Uid, WatchId},
        observation::{ExistenceCheck, Observation},
    },
    subscription::WebhookRef,
};
use orphans::Orphans;
use requests::Requests;
use sources::Sources;
use start::BackgroundTasks;

/// The number of observations processed before the loop looks at anything else.
const BATCH: usize = 64;
/// The time for attempts in flight after the operator is asked to stop.
const LAST_ATTEMPTS: Duration = Duration::from_secs(10);
/// The time for the last flush.
const LAST_FLUSH: Duration = Duration::from_secs(10);
/// Why the leader stopped.
#[derive(Debug)]
pub enum Stopped {
    /// The operator was asked to stop.
    Shutdown,
    /// Another process holds the Lease.
    Lost(String),
    /// The ledger cannot be continued.
    LostLedger(LedgerError),
    /// A required task has ended.
    Broken(&'static str),
}

/// A known Webhook.
struct Known {
    webhook: WebhookRef,
    resolved: Option<Arc<Resolved>>,
    /// The owner of its deliveries; `None` while its URL is unknown.
    owner: Option<Arc<str>>,
    since: Instant,
}

/// The dependencies of the leader.
pub struct Context {
    pub client: Client,
    /// For kube's watchers.
    pub watching: Client,
    pub args: RunArgs,
    /// The HTTP clients for deliveries.
    pub clients: Arc<Clients>,
    /// The Prometheus servers for usage queries.
    pub prometheus: Arc<Prometheus>,
    pub metrics: Metrics,
    pub health: Arc<Health>,
    /// A number that grows from leader to leader: the lowest epoch of a new ledger, or of a watch with new records.
    pub epoch: u64,
    /// The Lease of this leader.
    pub lease: ObjectReference,
    /// The owner of the ledger.
    pub owner: Option<Owner>,
}

/// The state of the loop.
pub struct Leader {
    context: Context,
    claim: Claim,
    clock: Clock,
    engine: Engine,
    flushing: Flushing,
    sender: Arc<Sender>,
    webhooks: HashMap<Uid, Known>,
    orphans: Orphans,
    attempts: JoinSet<Ended>,
    requests: Requests,
    orders: mpsc::UnboundedSender<Order>,
    existence_checks: HashMap<WatchId, mpsc::UnboundedSender<ExistenceCheck>>,
    notes: mpsc::UnboundedSender<Note>,
    /// For the status writer of UsageThresholds.
    usage_updates: mpsc::UnboundedSender<UsageUpdate>,
    lost_targets: mpsc::UnboundedSender<Lost>,
    sources: Sources,
    /// For the sources: a filter reads annotations.
    keep_annotations: Arc<AtomicBool>,
}

impl Leader {
    /// Runs until shutdown or until the Lease is lost.
    pub async fn run(
        context: Context,
        claim: Claim,
        lease_lost: &mut oneshot::Receiver<String>,
        shutdown: impl Future<Output = ()>,
    ) -> Stopped {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut store = {
            let (client, owner, claim) = (context.client.clone(), context.owner.clone(), claim.clone());
            Store::new(client, &context.args.namespace, owner, claim)
        };
        let number = RandomState::new().hash_one(context.epoch) >> 1;
        let ledger = tokio::select! {
            ledger = store.open(number, context.epoch) => ledger,
            () = &mut shutdown => return Stopped::Shutdown,
            holder = &mut *lease_lost => return Stopped::Lost(holder.unwrap_or_default()),
        };
        let (mut leader, mut beside) = Self::start(context, claim, store, ledger);
        let stopped = leader.work(&mut beside, lease_lost, shutdown).await;
        info!("stopping");
        leader.sources.tasks.abort_all();
        beside.stop();
        if matches!(stopped, Stopped::Shutdown) {
            leader.finish().await;
        }
        leader.context.metrics.leader.set(0);
        if !matches!(stopped, Stopped::Broken(_)) {
            // The background tasks end with the last sender of their channels.
            drop(leader);
            beside.finish().await;
        }
        stopped
    }

    /// Lets the work in flight end, and flushes the results.
    async fn finish(&mut self) {
        let last = async {
            while let Some(ended) = self.attempts.join_next().await {
                self.ended(ended);
            }
            while let Some(tested) = self.requests.tests.join_next().await {
                self.tested(tested);
            }
        };
        if timeout(LAST_ATTEMPTS, last).await.is_err() {
            warn!(attempts = self.attempts.len(), "attempts did not end in time and are cancelled");
        }
        let flush = self.flushing.finish(&mut self.engine, &self.context.metrics, self.clock);
        if timeout(LAST_FLUSH, flush).await.is_err() {
            warn!("the last flush did not finish in time; the next leader sends its events again");
        }
    }

    async fn work(
        &mut self,
        beside: &mut BackgroundTasks,
        lease_lost: &mut oneshot::Receiver<String>,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Stopped {
        let mut batch = Vec::with_capacity(BATCH);
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.follow_clock();
            let next_due = self.engine.next_due().filter(|_| self.claim.holds());
            let next_flush = self.flushing.next(&self.engine, self.clock.now());
            let next = next_due.into_iter().chain(next_flush).min().map(|at| self.clock.instant(at));
            tokio::select! {
                // Rare events come first, so that a flood of observations cannot delay them.
                biased;
                () = &mut shutdown => return Stopped::Shutdown,
                holder = &mut *lease_lost => return Stopped::Lost(holder.unwrap_or_default()),
                _ = tick.tick() => {
                    self.context.health.beat();
                    self.context.metrics.leader.set(i64::from(self.claim.holds()));
                    self.retry_waiting();
                    self.drop_expired_orphans();
                    self.drop_expired_watches();
                }
                Some(done) = beside.refreshes.recv() => self.refresh(done),
                change = beside.changes.recv() => match change {
                    Some(WebhookChange::Updated(update)) => self.updated(*update),
                    Some(WebhookChange::Removed(uid)) => self.removed(uid),
                    // No source is observed before all Webhooks are listed.
                    Some(WebhookChange::Listed) => self.webhooks_listed(),
                    Some(WebhookChange::Namespace(change)) => self.namespace(change),
                    None => return Stopped::Broken("the task that follows the Webhooks"),
                },
                change = beside.source_changes.recv(), if beside.catalog.is_some() => match change {
                    Some(catalog::SourceChange::Applied(applied)) => self.source_applied(*applied),
                    Some(catalog::SourceChange::Removed(uid)) => self.source_removed(uid),
                    Some(catalog::SourceChange::Listed) => self.sources_listed(),
                    None => return Stopped::Broken("the task that follows the WebhookSources"),
                },
                // A missing Webhook is reported only after all are listed.
                Some(message) = beside.from_deliveries.recv(), if self.sources.are_begun() => match message {
                    FromDeliveries::DeadLetterStored(kept) => self.dead_letter_stored(kept),
                    FromDeliveries::Request(request) => self.handle_request(request),
                },
                Some(tested) = self.requests.tests.join_next() => self.tested(tested),
                _ = &mut beside.deliveries => return Stopped::Broken("the task for WebhookDelivery objects"),
                _ = &mut beside.writer => return Stopped::Broken("the task that writes statuses"),
                _ = &mut beside.usage_writer => return Stopped::Broken("the task that writes the statuses of UsageThresholds"),
                _ = &mut beside.publisher => return Stopped::Broken("the task that publishes Events"),
                _ = &mut beside.source_writer => return Stopped::Broken("the task that writes WebhookSource statuses"),
                // The task of a withdrawn source is cancelled.
                Some(ended) = self.sources.tasks.join_next() => if !ended.is_err_and(|error| error.is_cancelled()) {
                    return Stopped::Broken("a task that watches a source");
                },
                Some(flushed) = self.flushing.ended() => match flushed {
                    Ok((journal, Ok(()))) => {
                        self.flushing.flush_committed(journal, &mut self.engine, &self.context.metrics);
                    }
                    Ok((_, Err(error))) => return Stopped::LostLedger(error),
                    Err(_) => return Stopped::Broken("the task that writes the ledger"),
                },
                Some(ended) = self.attempts.join_next() => self.ended(ended),
                _ = beside.observations.recv_many(&mut batch, BATCH), if self.sources.are_begun() => {
                    for observation in batch.drain(..) {
                        self.observe(observation);
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            self.follow_clock();
            self.begin_due();
            let now = self.clock.now();
            if self.flushing.next(&self.engine, now).is_some_and(|at| at <= now) {
                self.flushing.begin(&mut self.engine, now);
            }
        }
    }

    /// Follows a step of the wall clock: new events have the new time, and timers keep their remaining time.
    fn follow_clock(&mut self) {
        if let Some(step) = self.clock.follow() {
            warn!(seconds = step.as_secs_f64(), "the clock of this host was set; new events use the new time");
            self.engine.shift(step);
            self.flushing.shift(step);
        }
    }

    fn observe(&mut self, observation: Observation) {
        self.follow_clock();
        let observed = self.engine.observe(observation, self.clock.now());
        for event in &observed.events {
            self.context.metrics.events.with_label_values(&[event.event_type.name()]).inc();
            let object = &event.object;
            debug!(event = %event.event_type, id = %event.id, namespace = object.namespace, name = object.name, "event");
        }
        for webhook in observed.enqueued {
            self.note(Note::Enqueued { webhook, pending: self.engine.pending(webhook) });
        }
        for Unfiltered { webhook, event, error } in observed.unfiltered {
            if let Some(Known { webhook, .. }) = self.webhooks.get(&webhook) {
                let labels = [webhook.namespace(), &webhook.name];
                self.context.metrics.filter_errors.with_label_values(&labels).inc();
            }
            self.note(Note::FilterFailed { webhook, event, error: error.to_string() });
        }
        for webhook in observed.dropped {
            self.count_dropped(webhook, DropReason::Bound, 1);
            self.note(Note::Dropped { webhook, pending: self.engine.pending(webhook) });
        }
        let now = self.clock.now();
        for recorded in observed.given_up {
            self.report_outcome(recorded, now);
        }
        for check in observed.existence_checks {
            self.ask(check);
        }
        if let Some((uid, thresholds)) = observed.reached {
            // The receiver lives as long as this loop.
            let _ = self.usage_updates.send(UsageUpdate::Reached { uid, thresholds });
        }
    }

    fn ask(&self, check: ExistenceCheck) {
        if let Some(ask) = self.existence_checks.get(&check.watch) {
            // The receiver lives as long as the sources.
            let _ = ask.send(check);
        }
    }

    fn updated(&mut self, update: Update) {
        let Update { webhook, subscription, resolved, state, found, owner } = update;
        let gone = found.as_deref().and_then(gone_generation).filter(|gone| *gone == subscription.generation);
        self.engine.subscribe(subscription);
        if let Some(owner) = &owner {
            self.engine.own(webhook.uid, Arc::clone(owner));
        }
        self.keep_annotations.store(self.engine.reads_annotations(), Ordering::Relaxed);
        if let Some(generation) = gone {
            self.engine.mark_gone(webhook.uid, generation);
        }
        let (uid, first) = (webhook.uid, found.is_some());
        let since = self.webhooks.get(&webhook.uid).map_or_else(Instant::now, |known| known.since);
        self.webhooks.insert(uid, Known { webhook: webhook.clone(), resolved, owner: owner.clone(), since });
        // An unreadable status must not count as an empty one.
        if state.is_some() || found.is_some() {
            self.note(Note::State { webhook, state, found, at: self.clock.now() });
        }
        if let Some(owner) = owner {
            self.adopt(uid, &owner);
        }
        let pending = self.engine.pending(uid);
        if first && pending > 0 {
            // Recovered from the ledger.
            self.note(Note::Enqueued { webhook: uid, pending });
        }
        self.retry_waiting();
    }

    fn removed(&mut self, uid: Uid) {
        let known = self.webhooks.remove(&uid);
        let redeliveries = self.requests.of_webhook(uid);
        if let Some(known) = known {
            self.context.metrics.forget(&known.webhook);
            self.orphaned(known);
        } else {
            self.engine.unsubscribe(uid);
        }
        self.keep_annotations.store(self.engine.reads_annotations(), Ordering::Relaxed);
        self.note(Note::Removed(uid));
        for (object, event) in redeliveries {
            self.no_webhook(object, Subject::Event(event));
        }
    }

    fn order(&self, order: Order) {
        // The receiver lives as long as this loop.
        let _ = self.orders.send(order);
    }

    /// Sets the gauges that only the engine knows.
    fn refresh(&self, done: Refresh) {
        let now = self.clock.now();
        self.context.metrics.ledger_records.set(self.engine.records() as i64);
        for backlog in self.engine.backlogs() {
            let Some(Known { webhook, .. }) = self.webhooks.get(&backlog.webhook) else { continue };
            let labels = [webhook.namespace(), &webhook.name];
            self.context.metrics.pending.with_label_values(&labels).set(backlog.pending as i64);
            let age = backlog.oldest.map_or(0.0, |oldest| now.duration_since(oldest).as_secs_f64());
            self.context.metrics.oldest_pending_age.with_label_values(&labels).set(age);
            self.context.metrics.paused.with_label_values(&labels).set(i64::from(backlog.paused));
        }
        // The scrape has timed out.
        let _ = done.send(());
    }

    fn note(&self, note: Note) {
        // The writer lives until this sender is dropped.
        let _ = self.notes.send(note);
    }
}
