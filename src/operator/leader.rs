//! The leader's work: the loop that owns the engine. Everything flows through here once, and nothing here waits for
//! anything but the next thing to do.

mod clock;
mod flushing;
mod namespaces;
mod requests;
mod sources;
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

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tracing::{debug, info, warn};

use super::{
    config::RunArgs,
    metrics::{DropReason, Metrics},
    server::{Health, Refresh},
};
use crate::{
    calls::random,
    claim::Claim,
    delivery::{
        attempt::Attempt,
        clients::Clients,
        send::{Attempted, Sender},
    },
    engine::{Due, Engine, Settled, Unfiltered, Verdict},
    event::{
        id::traceparent,
        object::{Uid, WatchId},
        observation::{Observation, Question},
    },
    ledger::{
        journal::{Memory, Shape},
        store::{Ledger, LedgerError, Store},
    },
    owner::Owner,
    report::{
        Note,
        deliveries::{Deliveries, FromDeliveries, Kept, Order, Subject},
        events, sources as source_statuses,
        status::gone_generation,
        usage::UsageWriter,
        writer::Writer,
    },
    source::{
        catalog,
        namespaces::ToldNamespaces,
        usage::{Told, prometheus::Prometheus},
    },
    subscription::{
        resolve::{Resolved, WebhookRef},
        watch::{Change, Controller, Lost, Settings, Update},
    },
};
use clock::Clock;
use flushing::{Flushing, tell};
use requests::Requests;
use sources::{LONG_PATIENCE, PATIENCE, Sources};

/// Observations that may wait for the engine.
const OBSERVATIONS: usize = 1024;
/// Observations that are taken in before the loop looks at anything else.
const BATCH: usize = 64;
/// How long attempts under way may still take once the operator is told to stop.
const LAST_ATTEMPTS: Duration = Duration::from_secs(10);
/// How long the last flush may take.
const LAST_FLUSH: Duration = Duration::from_secs(10);
/// How long the last Events may take.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// What `/readyz` and the log say where namespaces are named.
const NOT_SERVED: &str =
    "ClusterWebhook and WebhookSource are not served: they belong to no namespace, and --watch-namespace names some";

/// Why the leader stopped.
#[derive(Debug)]
pub enum Stopped {
    /// It was told to.
    Shutdown,
    /// Another holds the Lease.
    Lost(String),
    /// The ledger cannot be gone on with.
    LostLedger(LedgerError),
    /// A task that everything depends on has ended.
    Broken(&'static str),
}

/// A Webhook as the loop knows it.
struct Known {
    webhook: WebhookRef,
    resolved: Option<Arc<Resolved>>,
    since: Instant,
}

/// What the leader works with.
pub struct Context {
    pub client: Client,
    pub args: RunArgs,
    /// What deliveries are sent by.
    pub clients: Arc<Clients>,
    /// Where usage figures are asked for.
    pub prometheus: Arc<Prometheus>,
    pub metrics: Metrics,
    pub health: Arc<Health>,
    /// A number that grows from leader to leader.
    pub epoch: u64,
    /// The Lease that it holds.
    pub lease: ObjectReference,
    /// What its ledger belongs to.
    pub owner: Option<Owner>,
}

/// The loop's state.
pub struct Leader {
    context: Context,
    claim: Claim,
    clock: Clock,
    engine: Engine,
    flushing: Flushing,
    sender: Arc<Sender>,
    webhooks: HashMap<Uid, Known>,
    attempts: JoinSet<Attempted>,
    requests: Requests,
    orders: mpsc::UnboundedSender<Order>,
    questions: HashMap<WatchId, mpsc::UnboundedSender<Question>>,
    notes: mpsc::UnboundedSender<Note>,
    /// For the statuses of UsageThresholds.
    told: mpsc::UnboundedSender<Told>,
    lost: mpsc::UnboundedSender<Lost>,
    sources: Sources,
    /// For the sources: a filter reads annotations.
    keep_annotations: Arc<AtomicBool>,
}

/// The tasks beside the loop, and what comes in from them.
struct Beside {
    changes: mpsc::Receiver<Change>,
    observations: mpsc::Receiver<Observation>,
    refreshes: mpsc::Receiver<Refresh>,
    source_changes: mpsc::Receiver<catalog::Change>,
    /// Follows the WebhookSources, where they are served.
    catalog: Option<JoinHandle<()>>,
    source_writer: JoinHandle<()>,
    controller: JoinHandle<()>,
    deliveries: JoinHandle<()>,
    from_deliveries: mpsc::UnboundedReceiver<FromDeliveries>,
    writer: JoinHandle<()>,
    usage_writer: JoinHandle<()>,
    publisher: JoinHandle<()>,
}

/// How Webhooks are looked after.
fn settings(args: &RunArgs, memory: &Memory) -> Settings {
    Settings {
        require_https: args.require_https,
        home: args.namespace.clone(),
        // What is under way may be a ClusterWebhook's, and would go with it.
        patience: if memory.events.is_empty() { PATIENCE } else { LONG_PATIENCE },
    }
}

impl Leader {
    /// Works until told to stop or until the Lease is lost.
    pub async fn run(
        context: Context,
        claim: Claim,
        lost: &mut oneshot::Receiver<String>,
        shutdown: impl Future<Output = ()>,
    ) -> Stopped {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut store = {
            let (client, owner, claim) = (context.client.clone(), context.owner.clone(), claim.clone());
            Store::new(client, &context.args.namespace, owner, claim)
        };
        let leader = RandomState::new().hash_one(context.epoch) >> 1;
        let ledger = tokio::select! {
            ledger = store.open(leader, context.epoch) => ledger,
            () = &mut shutdown => return Stopped::Shutdown,
            holder = &mut *lost => return Stopped::Lost(holder.unwrap_or_default()),
        };
        let (mut leader, mut beside) = Self::start(context, claim, store, ledger);
        let stopped = leader.work(&mut beside, lost, shutdown).await;
        info!("stopping");
        leader.sources.tasks.abort_all();
        beside.controller.abort();
        beside.usage_writer.abort();
        if let Some(catalog) = &beside.catalog {
            catalog.abort();
        }
        beside.source_writer.abort();
        if matches!(stopped, Stopped::Shutdown) {
            let finish = async {
                while let Some(attempted) = leader.attempts.join_next().await {
                    leader.ended(attempted);
                }
                while let Some(tested) = leader.requests.tests.join_next().await {
                    leader.tested(tested);
                }
            };
            if timeout(LAST_ATTEMPTS, finish).await.is_err() {
                warn!(attempts = leader.attempts.len(), "attempts did not end in time; they are cut off");
            }
            if timeout(LAST_FLUSH, leader.flushing.finish(&mut leader.engine, &leader.context.metrics, leader.clock))
                .await
                .is_err()
            {
                warn!("the last flush did not land in time; what it held is told again by the next leader");
            }
        }
        let metrics = leader.context.metrics.clone();
        metrics.leader.set(0);
        if matches!(stopped, Stopped::Broken(_)) {
            return stopped;
        }
        // The writer ends with the last sender of notes, the publisher with the writer.
        drop(leader);
        if let Err(error) = beside.deliveries.await {
            warn!(%error, "the last answers to requests were not written");
        }
        if let Err(error) = beside.writer.await {
            warn!(%error, "the last statuses were not written");
        }
        if timeout(LAST_EVENTS, beside.publisher).await.is_err() {
            debug!("the last Events were not published");
        }
        stopped
    }

    fn start(context: Context, claim: Claim, store: Store, ledger: Ledger) -> (Self, Beside) {
        let Context { client, args, metrics, .. } = &context;
        let sender = Arc::new(Sender::new(Arc::clone(&context.clients), claim.clone()));
        let clock = Clock::new();
        let (notes, incoming_notes) = mpsc::unbounded_channel();
        let (told, incoming_told) = mpsc::unbounded_channel();
        let (lost, incoming_lost) = mpsc::unbounded_channel();
        let (orders, incoming_orders) = mpsc::unbounded_channel();
        let (back, from_deliveries) = mpsc::unbounded_channel();
        let (change, changes) = mpsc::channel(256);
        let (observe, observations) = mpsc::channel(OBSERVATIONS);
        let (notices, incoming_notices) = mpsc::channel(256);
        let (refresh, refreshes) = mpsc::channel::<Refresh>(4);
        context.health.set_refresh(refresh);

        let serves_cluster = args.watch_namespaces.is_empty();
        let deliveries = Deliveries {
            client: client.clone(),
            orders: incoming_orders,
            back,
            claim: claim.clone(),
            cluster_home: serves_cluster.then(|| args.namespace.clone()),
        };
        let Ledger { journal, memory, began } = ledger;
        if let Some(notice) = tell(began.as_ref(), &journal, &context.lease) {
            // The first into an empty channel.
            let _ = notices.try_send(notice);
        }
        let usage_writer = UsageWriter { client: client.clone(), told: incoming_told, claim: claim.clone() };
        let writer = Writer {
            client: client.clone(),
            notes: incoming_notes,
            notices,
            claim: claim.clone(),
            conditions: metrics.conditions(),
        };
        let publisher = events::publish(client.clone(), incoming_notices, claim.clone());
        let controller = Controller::new(client.clone(), change, settings(args, &memory));
        let (ask, incoming_asked) = mpsc::unbounded_channel();
        let (source_notes, incoming_source_notes) = mpsc::unbounded_channel();
        let (source_change, source_changes) = mpsc::channel(64);
        if !serves_cluster {
            info!("{NOT_SERVED}");
            context.health.set_not_served(NOT_SERVED);
        }
        let source_writer = source_statuses::write(client.clone(), incoming_source_notes, claim.clone());
        let mut beside = Beside {
            changes,
            observations,
            refreshes,
            source_changes,
            catalog: None,
            source_writer: tokio::spawn(source_writer),
            usage_writer: tokio::spawn(usage_writer.run()),
            controller: tokio::spawn(controller.run(args.watch_namespaces.clone(), incoming_lost, incoming_asked)),
            deliveries: tokio::spawn(deliveries.run(args.watch_namespaces.clone())),
            from_deliveries,
            writer: tokio::spawn(writer.run()),
            publisher: tokio::spawn(publisher),
        };
        if memory.unknown_events > 0 {
            let events = memory.unknown_events;
            warn!(
                events,
                "the ledger holds events of a type that this release does not know; they are sent only if a release that knows it takes over before they are written over"
            );
        }
        let shards = Shape::default().shards;
        let engine = Engine::recover(args.cluster_name.clone(), context.epoch, shards, memory, clock.now());
        let flushing = Flushing::new(store, journal, clock.now());
        let mut leader = Self {
            context,
            claim,
            clock,
            engine,
            flushing,
            sender,
            webhooks: HashMap::new(),
            attempts: JoinSet::new(),
            requests: Requests::default(),
            orders,
            questions: HashMap::new(),
            notes,
            told,
            lost,
            sources: Sources::new(observe, source_notes, ToldNamespaces::new(ask), serves_cluster),
            keep_annotations: Arc::default(),
        };
        leader.add_usage_watches();
        let patience = leader.add_watches();
        if serves_cluster {
            let client = leader.context.client.clone();
            beside.catalog = Some(tokio::spawn(catalog::follow(client, source_change, patience)));
        }
        (leader, beside)
    }

    async fn work(
        &mut self,
        beside: &mut Beside,
        lost: &mut oneshot::Receiver<String>,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Stopped {
        let mut batch = Vec::with_capacity(BATCH);
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next_due = self.engine.next_due().filter(|_| self.claim.holds());
            let next_flush = self.flushing.next(&self.engine, self.clock.now());
            let next = next_due.into_iter().chain(next_flush).min().map(|at| self.clock.instant(at));
            tokio::select! {
                // What is rare comes first, so that a flood of observations cannot hold it up.
                biased;
                () = &mut shutdown => return Stopped::Shutdown,
                holder = &mut *lost => return Stopped::Lost(holder.unwrap_or_default()),
                _ = tick.tick() => {
                    self.context.health.beat();
                    self.context.metrics.leader.set(i64::from(self.claim.holds()));
                    self.ask_again();
                }
                Some(done) = beside.refreshes.recv() => self.refresh(done),
                change = beside.changes.recv() => match change {
                    Some(Change::Updated(update)) => self.updated(*update),
                    Some(Change::Removed(uid)) => self.removed(uid),
                    // No source is observed before all Webhooks are listed.
                    Some(Change::Listed) => self.webhooks_listed(),
                    Some(Change::Namespace(change)) => self.namespace(change),
                    None => return Stopped::Broken("the task that looks after the Webhooks"),
                },
                change = beside.source_changes.recv(), if beside.catalog.is_some() => match change {
                    Some(catalog::Change::Applied(applied)) => self.source_applied(*applied),
                    Some(catalog::Change::Removed(uid)) => self.source_removed(uid),
                    Some(catalog::Change::Listed) => self.sources_listed(),
                    None => return Stopped::Broken("the task that follows the WebhookSources"),
                },
                // Nobody is told that there is no such Webhook before all are listed.
                Some(message) = beside.from_deliveries.recv(), if self.sources.are_begun() => match message {
                    FromDeliveries::Kept(kept) => self.kept(kept),
                    FromDeliveries::Asked(asked) => self.asked(asked),
                },
                Some(tested) = self.requests.tests.join_next() => self.tested(tested),
                _ = &mut beside.deliveries => return Stopped::Broken("the task that looks after WebhookDelivery objects"),
                _ = &mut beside.writer => return Stopped::Broken("the task that writes statuses"),
                _ = &mut beside.usage_writer => return Stopped::Broken("the task that writes the statuses of UsageThresholds"),
                _ = &mut beside.publisher => return Stopped::Broken("the task that publishes Events"),
                _ = &mut beside.source_writer => return Stopped::Broken("the task that writes WebhookSource statuses"),
                // One that was withdrawn is cancelled.
                Some(ended) = self.sources.tasks.join_next() => if !ended.is_err_and(|error| error.is_cancelled()) {
                    return Stopped::Broken("a task that watches a source");
                },
                Some(flushed) = self.flushing.ended() => match flushed {
                    Ok((journal, Ok(()))) => {
                        self.flushing.landed(journal, &mut self.engine, &self.context.metrics);
                    }
                    Ok((_, Err(error))) => return Stopped::LostLedger(error),
                    Err(_) => return Stopped::Broken("the task that writes the ledger"),
                },
                Some(attempted) = self.attempts.join_next() => self.ended(attempted),
                _ = beside.observations.recv_many(&mut batch, BATCH), if self.sources.are_begun() => {
                    for observation in batch.drain(..) {
                        self.observe(observation);
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            self.begin_due();
            let now = self.clock.now();
            if self.flushing.next(&self.engine, now).is_some_and(|at| at <= now) {
                self.flushing.begin(&mut self.engine, now);
            }
        }
    }

    /// Drops what was under way to Webhooks that were deleted while nobody led.
    fn drop_orphans(&mut self) {
        for uid in self.engine.orphans() {
            let dropped = self.engine.unsubscribe(uid);
            if dropped > 0 {
                info!(webhook = %uid, dropped, "a Webhook was deleted meanwhile; what was under way to it is dropped");
                self.context.metrics.dropped_with_webhook("", dropped);
            }
        }
    }

    fn observe(&mut self, observation: Observation) {
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
        for settled in observed.given_up {
            self.settled(settled, now);
        }
        for question in observed.questions {
            self.ask(question);
        }
        if let Some((uid, thresholds)) = observed.reached {
            // The writer of these statuses lives as long as this loop.
            let _ = self.told.send(Told::Reached { uid, thresholds });
        }
    }

    fn ask(&self, question: Question) {
        if let Some(ask) = self.questions.get(&question.watch) {
            // The other end lives as long as the sources do.
            let _ = ask.send(question);
        }
    }

    fn updated(&mut self, update: Update) {
        let Update { webhook, subscription, resolved, standing, found } = update;
        let gone = found.as_deref().and_then(gone_generation).filter(|gone| *gone == subscription.generation);
        self.engine.subscribe(subscription);
        self.keep_annotations.store(self.engine.reads_annotations(), Ordering::Relaxed);
        if let Some(generation) = gone {
            self.engine.mark_gone(webhook.uid, generation);
        }
        let (uid, first) = (webhook.uid, found.is_some());
        let since = self.webhooks.get(&webhook.uid).map_or_else(Instant::now, |known| known.since);
        self.webhooks.insert(webhook.uid, Known { webhook: webhook.clone(), resolved, since });
        // A status that cannot be read is not to be taken for an empty one.
        if standing.is_some() || found.is_some() {
            self.note(Note::Standing { webhook, standing, found });
        }
        let pending = self.engine.pending(uid);
        if first && pending > 0 {
            // Recovered from the ledger.
            self.note(Note::Enqueued { webhook: uid, pending });
        }
        self.ask_again();
    }

    fn removed(&mut self, uid: Uid) {
        let dropped = self.engine.unsubscribe(uid);
        self.keep_annotations.store(self.engine.reads_annotations(), Ordering::Relaxed);
        let asked = self.requests.of_webhook(uid);
        if let Some(known) = self.webhooks.remove(&uid) {
            let (namespace, name) = (known.webhook.namespace(), &known.webhook.name);
            info!(namespace, webhook = name, dropped, "the {} is deleted", known.webhook.kind);
            self.context.metrics.forget(&known.webhook);
            self.context.metrics.dropped_with_webhook(namespace, dropped);
        }
        self.note(Note::Removed(uid));
        for (object, event) in asked {
            self.no_webhook(object, Subject::Event(event));
        }
    }

    fn count_dropped(&self, uid: Uid, reason: DropReason, count: u64) {
        if let Some(Known { webhook, .. }) = self.webhooks.get(&uid) {
            let labels = [webhook.namespace(), &webhook.name, reason.label()];
            self.context.metrics.dropped.with_label_values(&labels).inc_by(count);
        }
    }

    /// Begins what is due; nothing while the claim has lapsed.
    fn begin_due(&mut self) {
        if !self.claim.holds() {
            return;
        }
        let now = self.clock.now();
        while let Some(due) = self.engine.due(now) {
            match due {
                Due::Attempt(attempt) => self.begin(attempt),
                Due::Exhausted(settled) => self.settled(settled, now),
                Due::Keep(keep) => match self.webhooks.get(&keep.webhook) {
                    Some(known) => self.order(Order::Keep(known.webhook.clone(), keep)),
                    None => self.engine.kept(keep.webhook, keep.delivery),
                },
            }
        }
    }

    fn begin(&mut self, attempt: Attempt) {
        let resolved = self.webhooks.get(&attempt.webhook).and_then(|known| known.resolved.clone());
        let Some(resolved) = resolved else {
            // Held Webhooks begin nothing, and no other lacks what it needs.
            warn!(delivery = %attempt.delivery, "an attempt was due for a Webhook that is not ready");
            self.settle(Attempted::withheld(&attempt));
            return;
        };
        let sender = Arc::clone(&self.sender);
        self.attempts.spawn(async move { sender.attempt(&attempt, &resolved).await });
    }

    fn ended(&mut self, attempted: Result<Attempted, tokio::task::JoinError>) {
        match attempted {
            Ok(attempted) => self.settle(attempted),
            Err(error) => warn!(%error, "an attempt broke off"),
        }
    }

    fn settle(&mut self, attempted: Attempted) {
        let Attempted { outcome, refused, lost } = attempted;
        if let Some((refused, known)) = refused.zip(self.webhooks.get(&outcome.webhook)) {
            self.context.metrics.sent(&known.webhook, &refused);
        }
        if let Some((target, error)) = lost {
            // The controller lives as long as this loop.
            let _ = self.lost.send((outcome.webhook, target, error));
        }
        let now = self.clock.now();
        if let Some(settled) = self.engine.settle(outcome, now, random()) {
            self.settled(settled, now);
        }
    }

    fn settled(&mut self, settled: Settled, now: Timestamp) {
        if settled.verdict == Verdict::Withheld {
            return;
        }
        self.answer_again(&settled, now);
        if settled.dropped {
            self.count_dropped(settled.webhook, DropReason::Bound, 1);
            self.note(Note::Dropped { webhook: settled.webhook, pending: settled.pending });
        }
        let Some(Known { webhook, .. }) = self.webhooks.get(&settled.webhook) else { return };
        let latency = now.duration_since(settled.event.observed_at).as_secs_f64();
        self.context.metrics.settled(webhook, &settled, latency);
        let error = settled.exchange.as_ref().and_then(|exchange| exchange.error.as_deref());
        let (namespace, name) = (webhook.namespace(), &webhook.name);
        let (event, id, attempt) = (settled.event.event_type, settled.event.id, settled.attempt);
        if settled.verdict == Verdict::Exhausted {
            warn!(namespace, webhook = name, %event, %id, attempt, error, "delivery exhausted");
        } else {
            debug!(
                namespace,
                webhook = name,
                %event,
                %id,
                attempt,
                traceparent = traceparent(id, settled.delivery, attempt),
                error,
                verdict = ?settled.verdict,
                "attempt"
            );
        }
        self.note(Note::Settled { settled: Box::new(settled), at: now });
    }

    fn order(&self, order: Order) {
        // The task that takes orders lives as long as this loop.
        let _ = self.orders.send(order);
    }

    /// A given-up delivery is an object now, or is dropped.
    fn kept(&mut self, kept: Kept) {
        self.engine.kept(kept.webhook, kept.delivery);
        if !kept.landed {
            self.count_dropped(kept.webhook, DropReason::NotKept, 1);
            self.note(Note::Dropped { webhook: kept.webhook, pending: self.engine.pending(kept.webhook) });
        }
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
        }
        // Nobody waits any more: the scrape has timed out.
        let _ = done.send(());
    }

    fn note(&self, note: Note) {
        // The writer lives until this sender goes.
        let _ = self.notes.send(note);
    }
}
