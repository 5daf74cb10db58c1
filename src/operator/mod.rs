//! Wiring: configuration, leader election, metrics, health and shutdown.

mod client;
pub mod config;
mod leader;
mod lease;
mod metrics;
mod server;

use std::{path::Path, sync::Arc};

use prometheus::Registry;
use rustls::pki_types::CertificateDer;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::{
    ledger_store::LedgerError,
    owner::Owner,
    source::usage::prometheus::Prometheus,
    transport::{
        address::Guard,
        clients::{Clients, Proxy},
        resolver::Dns,
        tls::{Bundle, certificates},
    },
};
use client::Cluster;
use config::RunArgs;
use leader::{Context, Leader, Stopped};
use lease::Elector;
use llmtune_client::error_chain::ErrorChain;
use metrics::Metrics;
use server::{Health, Role, Shown};

/// Each named namespace costs five watches, and one of quotas if a `UsageThreshold` refers to one.
const MAX_NAMESPACES: usize = 1000;

/// Why the operator stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is invalid.
    #[error("{0}")]
    Config(String),
    /// The operator cannot connect to a cluster.
    #[error("{0}")]
    Connect(#[from] client::ConnectError),
    /// The operator cannot listen.
    #[error("cannot listen on {0}; set another address with --listen")]
    Listen(std::io::Error),
    /// There are no trusted certificates.
    #[error("TLS cannot be set up: {0}; install the system's CA certificates, or set --ca-file")]
    Tls(#[from] rustls::Error),
    /// A metric is registered twice.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Signals cannot be received.
    #[error("signals cannot be received: {0}")]
    Signals(std::io::Error),
    /// Another replica leads. When this process is restarted, it becomes a standby.
    #[error("the lease was {0}: stopping, so that nothing is sent twice")]
    LostLease(String),
    /// Another process wrote to the ledger, or the store was restored. A restarted process continues from the stored
    /// state.
    #[error("the ledger: {0}; stopping, to restart from the stored state")]
    Ledger(#[from] LedgerError),
    /// A required task has ended.
    #[error("{0} ended unexpectedly: please report this with the log")]
    Broken(&'static str),
}

/// Runs the operator until SIGTERM or SIGINT, or until another process takes its Lease.
pub async fn run(mut args: RunArgs) -> Result<(), Error> {
    args.watch_namespaces.sort_unstable();
    args.watch_namespaces.dedup();
    let identity = args.identity().map_err(Error::Config)?;
    let namespaces = args.watch_namespaces.len();
    if namespaces > MAX_NAMESPACES {
        return Err(Error::Config(format!(
            "--watch-namespace names {namespaces} namespaces: name at most {MAX_NAMESPACES}, or omit it to serve all"
        )));
    }
    let roots = read_roots("--ca-file", args.ca_file.as_deref())?;
    let prometheus = prometheus(&args)?;
    let proxy = args.proxy.as_deref().map(|url| Proxy::new(url, &args.no_proxy)).transpose();
    let proxy = proxy.map_err(|problem| Error::Config(format!("--proxy: {problem}")))?;
    let registry = Registry::new();
    let metrics = Metrics::register(&registry)?;
    let health = Arc::new(Health::new());
    let listener = server::bind(args.listen).map_err(Error::Listen)?;
    if let Ok(address) = listener.local_addr() {
        info!(%address, version = env!("CARGO_PKG_VERSION"), "serving /metrics, /healthz and /readyz");
    }
    let shown = Shown { registry, metrics: metrics.clone(), health: Arc::clone(&health) };
    tokio::spawn(server::serve(listener, shown));
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let mut shutdown = std::pin::pin!(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    let Cluster { client, watching, apiserver } = client::connect(metrics.api_requests.clone()).await?;
    let owner = args.owner.as_deref().map(|name| Owner::new(client.clone(), &args.namespace, name));
    let elector = Elector::new(client.clone(), &args.namespace, identity.clone(), args.lease_duration, owner.clone());
    let standing_by = |holder: &str| {
        info!(holder, "standing by");
        health.set_role(Role::Standby { holder: holder.to_owned() });
    };
    let mut leadership = tokio::select! {
        leadership = elector.acquire(standing_by) => leadership,
        () = &mut shutdown => return Ok(()),
    };
    health.set_role(Role::Leader);
    let claim = leadership.claim.clone();
    let guard = Guard::new(&args.allow_cidr, &args.deny_cidr, apiserver.addresses().await);
    let clients = Arc::new(Clients::new(roots, guard, Arc::new(Dns::system()), proxy)?);
    let (epoch, lease) = (leadership.acquired, leadership.lease.clone());
    let context = Context { client, watching, args, clients, prometheus, metrics, health, epoch, lease, owner };
    match Leader::run(context, claim, &mut leadership.lost, shutdown).await {
        Stopped::Shutdown => {
            leadership.release().await;
            Ok(())
        }
        Stopped::Lost(holder) => Err(Error::LostLease(lost_to(&holder, &identity))),
        Stopped::LostLedger(error) => Err(Error::Ledger(error)),
        Stopped::Broken(task) => Err(Error::Broken(task)),
    }
}

fn lost_to(holder: &str, identity: &str) -> String {
    if holder.is_empty() {
        "deleted or released".to_owned()
    } else if holder == identity {
        format!(
            "lost to another process with the same identity {holder:?} (set a different --identity for each replica)"
        )
    } else {
        format!("lost to {holder:?}")
    }
}

fn read_roots(flag: &str, path: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, Error> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let refuse = |problem: String| Error::Config(format!("{flag} {}: {problem}", path.display()));
    let pem = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
    let Bundle { certificates, warning } = certificates(&pem).map_err(refuse)?;
    if let Some(warning) = warning {
        warn!("{flag} {}: {warning}", path.display());
    }
    Ok(certificates)
}

fn prometheus(args: &RunArgs) -> Result<Arc<Prometheus>, Error> {
    let roots = read_roots("--prometheus-ca-file", args.prometheus_ca_file.as_deref())?;
    if let Some(path) = &args.prometheus_token_file {
        let refuse = |problem| Error::Config(format!("--prometheus-token-file {}: {problem}", path.display()));
        let token = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
        if token.trim().is_empty() {
            return Err(refuse("the file is empty; write the bearer token to it".to_owned()));
        }
    }
    let servers = args.allow_prometheus.clone();
    let prometheus = Prometheus::new(servers, roots, args.prometheus_token_file.clone());
    let refuse = |error| Error::Config(format!("queries to Prometheus cannot be made: {}", ErrorChain(&error)));
    prometheus.map(Arc::new).map_err(refuse)
}
