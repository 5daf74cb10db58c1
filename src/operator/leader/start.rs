//! Creates the loop and its background tasks.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tracing::{debug, info, warn};

use super::{
    Context, Leader,
    clock::Clock,
    flushing::{Flushing, log_start},
    orphans::Orphans,
    requests::Requests,
    sources::{LONG_PATIENCE, PATIENCE, Sources},
};
use crate::{
    claim::Claim,
    delivery::send::Sender,
    ledger_store::{Ledger, Store},
    operator::{config::RunArgs, server::Refresh},
    report::{
        deliveries::{Deliveries, FromDeliveries},
        events,
        sources::SourceStatusEntry,
        status::Statuses,
        status_writer::{StatusTable, write},
        usage::ThresholdStatusEntry,
        webhooks::WebhookReporter,
    },
    source::{catalog, namespaces::NamespaceBarrier},
    subscription::watch::{Controller, Settings, WebhookChange},
};
use llmtune_core::{
    engine::Engine,
    event::observation::Observation,
    ledger::journal::{LedgerLayout, RecoveredState},
};

/// The capacity of the channel of observations.
const OBSERVATIONS: usize = 1024;
/// The time for the last Events.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// The text for `/readyz` and the log if namespaces are named.
const NOT_SERVED: &str =
    "ClusterWebhook and WebhookSource are not served: they are cluster-scoped, and --watch-namespace is set";

/// The background tasks, and their channels to the loop.
pub(super) struct BackgroundTasks {
    pub(super) changes: mpsc::Receiver<WebhookChange>,
    pub(super) observations: mpsc::Receiver<Observation>,
    pub(super) refreshes: mpsc::Receiver<Refresh>,
    pub(super) source_changes: mpsc::Receiver<catalog::SourceChange>,
    /// The task that follows WebhookSources, if they are served.
    pub(super) catalog: Option<JoinHandle<()>>,
    pub(super) source_writer: JoinHandle<()>,
    pub(super) controller: JoinHandle<()>,
    pub(super) deliveries: JoinHandle<()>,
    pub(super) from_deliveries: mpsc::UnboundedReceiver<FromDeliveries>,
    pub(super) writer: JoinHandle<()>,
    pub(super) usage_writer: JoinHandle<()>,
    pub(super) publisher: JoinHandle<()>,
}

/// Returns the settings of the Webhook watch.
fn settings(args: &RunArgs, memory: &RecoveredState) -> Settings {
    Settings {
        require_https: args.require_https,
        home: args.namespace.clone(),
        // Recovered deliveries may belong to a ClusterWebhook, and would be dropped with it.
        patience: if memory.events.is_empty() { PATIENCE } else { LONG_PATIENCE },
    }
}

impl BackgroundTasks {
    /// Ends the tasks that only a leader needs.
    pub(super) fn stop(&self) {
        for task in [&self.controller, &self.usage_writer, &self.source_writer].into_iter().chain(&self.catalog) {
            task.abort();
        }
    }

    /// Lets the writers finish. To be called after their senders are dropped.
    pub(super) async fn finish(self) {
        if let Err(error) = self.deliveries.await {
            warn!(%error, "the last answers to requests were not written");
        }
        if let Err(error) = self.writer.await {
            warn!(%error, "the last statuses were not written");
        }
        // It ends with the writer.
        if timeout(LAST_EVENTS, self.publisher).await.is_err() {
            debug!("the last Events were not published");
        }
    }
}

impl Leader {
    pub(super) fn start(context: Context, claim: Claim, store: Store, ledger: Ledger) -> (Self, BackgroundTasks) {
        let Context { client, watching, args, metrics, .. } = &context;
        let sender = Arc::new(Sender::new(Arc::clone(&context.clients), claim.clone()));
        let clock = Clock::new();
        let (notes, incoming_notes) = mpsc::unbounded_channel();
        let (usage_updates, incoming_updates) = mpsc::unbounded_channel();
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
            client: watching.clone(),
            orders: incoming_orders,
            back,
            notices: notices.clone(),
            claim: claim.clone(),
            cluster_home: serves_cluster.then(|| args.namespace.clone()),
        };
        let Ledger { journal, memory, began } = ledger;
        if let Some(notice) = log_start(began.as_ref(), &journal, &context.lease) {
            // The channel is still empty.
            let _ = notices.try_send(notice);
        }
        let reporter = WebhookReporter { statuses: Statuses::default(), notices, conditions: metrics.conditions() };
        let writer = write(reporter, client.clone(), incoming_notes, claim.clone());
        let usage_writer =
            write(StatusTable::<ThresholdStatusEntry>::default(), client.clone(), incoming_updates, claim.clone());
        let publisher = events::publish(client.clone(), incoming_notices, claim.clone());
        let controller = Controller::new(watching.clone(), change, settings(args, &memory));
        let (ask, incoming_asked) = mpsc::unbounded_channel();
        let (source_notes, incoming_source_notes) = mpsc::unbounded_channel();
        let (source_change, source_changes) = mpsc::channel(64);
        if !serves_cluster {
            info!("{NOT_SERVED}");
            context.health.set_not_served(NOT_SERVED);
        }
        let source_writer =
            write(StatusTable::<SourceStatusEntry>::default(), client.clone(), incoming_source_notes, claim.clone());
        let mut beside = BackgroundTasks {
            changes,
            observations,
            refreshes,
            source_changes,
            catalog: None,
            source_writer: tokio::spawn(source_writer),
            usage_writer: tokio::spawn(usage_writer),
            controller: tokio::spawn(controller.run(args.watch_namespaces.clone(), incoming_lost, incoming_asked)),
            deliveries: tokio::spawn(deliveries.run(args.watch_namespaces.clone())),
            from_deliveries,
            writer: tokio::spawn(writer),
            publisher: tokio::spawn(publisher),
        };
        if memory.unknown_events > 0 {
            let events = memory.unknown_events;
            warn!(
                events,
                "the ledger contains events of a type that this release does not know; only a release that knows the type can send them, if it takes over before they are overwritten"
            );
        }
        let shards = LedgerLayout::default().shards;
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
            orphans: Orphans::default(),
            attempts: JoinSet::new(),
            requests: Requests::default(),
            orders,
            existence_checks: HashMap::new(),
            notes,
            usage_updates,
            lost_targets: lost,
            sources: Sources::new(observe, source_notes, NamespaceBarrier::new(ask), serves_cluster),
            keep_annotations: Arc::default(),
        };
        leader.add_usage_watches();
        let patience = leader.add_watches();
        if serves_cluster {
            let client = leader.context.watching.clone();
            beside.catalog = Some(tokio::spawn(catalog::follow(client, source_change, patience)));
        }
        (leader, beside)
    }
}
