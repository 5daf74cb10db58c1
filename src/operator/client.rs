//! The client to the apiserver. Every request has a time limit and is counted. The client itself does not retry.

use std::{
    net::SocketAddr,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Method, Request, Response};
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use prometheus::IntCounterVec;
use tokio::{net::lookup_host, time::timeout};
use tower::{BoxError, Layer, Service};
use tracing::{info, warn};

use llmtune_client::{
    cluster::{Way, WayError},
    error_chain::ErrorChain,
};

/// A connection that receives nothing for this long is dead. Watches end sooner.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The connection to a cluster.
pub struct Cluster {
    /// For calls with a time limit of their own, and for watches that detect silence themselves. A time limit on each
    /// read would cost a timer and a wake-up per read.
    pub client: Client,
    /// For kube's watchers, which would wait forever on a dead connection.
    pub watching: Client,
    pub apiserver: Apiserver,
}

/// Connects to the cluster of KUBECONFIG or of the pod's service account.
pub async fn connect(requests: IntCounterVec) -> Result<Cluster, ConnectError> {
    let mut way = way().await?;
    way.config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Each loop has its own backoff. A hidden retry would hide an outage for minutes.
    way.config.default_retry = false;
    if let Some(proxy) = &way.proxy {
        info!(apiserver = %way.config.cluster_url, %proxy, "the apiserver is reached through a proxy");
    }
    let apiserver = Apiserver::of(&way.config);
    let count = Count { requests };
    let client = |limit: Option<Duration>| {
        let mut way = way.clone();
        way.config.read_timeout = limit;
        way.config.write_timeout = limit;
        way.client(&count)
    };
    Ok(Cluster { client: client(None)?, watching: client(Some(READ_TIMEOUT))?, apiserver })
}

/// Reads KUBECONFIG or `~/.kube/config`, otherwise the service account.
async fn way() -> Result<Way, ConnectError> {
    let problem = match Kubeconfig::read() {
        Ok(kubeconfig) => match Way::of_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await {
            Ok(way) => return Ok(way),
            Err(WayError::Kubeconfig(error)) => error,
            Err(error @ WayError::Proxy(_)) => return Err(ConnectError::Config(error.to_string())),
        },
        Err(error) => error,
    };
    Way::in_cluster().map_err(|_| ConnectError::Config(no_cluster(&problem)))
}

/// The names or addresses of the kube-apiserver, each with its port.
pub struct Apiserver(Vec<(String, u16)>);

impl Apiserver {
    fn of(config: &Config) -> Self {
        let url = &config.cluster_url;
        let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
        let host = url.host().map(|host| (host.trim_matches(['[', ']']).to_owned(), port));
        // The Service, for an operator in a pod that also has a KUBECONFIG.
        let port = std::env::var("KUBERNETES_SERVICE_PORT").ok().and_then(|port| port.parse().ok());
        let service = std::env::var("KUBERNETES_SERVICE_HOST").ok().zip(port);
        Self(host.into_iter().chain(service).collect())
    }

    /// Resolves the names. Names that do not resolve are logged.
    pub async fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        for (host, port) in &self.0 {
            match timeout(CONNECT_TIMEOUT, lookup_host((host.as_str(), *port))).await {
                Ok(Ok(found)) => addresses.extend(found),
                Ok(Err(error)) => warn!(host, %error, "{UNRESOLVED}"),
                Err(error) => warn!(host, %error, "{UNRESOLVED}"),
            }
        }
        addresses
    }
}

const UNRESOLVED: &str =
    "the host of the kube-apiserver does not resolve, so Webhooks could send to it; deny its address with --deny-cidr";

/// The operator cannot connect to a cluster.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is no configuration.
    #[error("{0}")]
    Config(String),
    /// The configuration is invalid.
    #[error("the cluster configuration cannot be used: {}", ErrorChain(.0))]
    Client(#[from] kube::Error),
}

/// Explains why there is no configuration, for the source that the user meant.
fn no_cluster(error: &KubeconfigError) -> String {
    const TO_DO: &str = "set KUBECONFIG to a file that kubectl can use, or run in a pod with a service account";
    // The error that this is not a pod does not help.
    let problem = ErrorChain(error);
    match std::env::var("KUBECONFIG").ok().filter(|path| !path.is_empty()) {
        Some(path) => format!("KUBECONFIG={path} cannot be used: {problem}; {TO_DO}"),
        None => format!("no cluster is configured: {problem}; {TO_DO}"),
    }
}

/// Counts requests by verb, resource and code.
struct Count {
    requests: IntCounterVec,
}

impl<S> Layer<S> for Count {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, requests: self.requests.clone() }
    }
}

struct Counted<S> {
    inner: S,
    requests: IntCounterVec,
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<B>, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (verb, resource) = describe(&request);
        let requests = self.requests.clone();
        let response = self.inner.call(request);
        Box::pin(async move {
            let result = response.await;
            let code = result.as_ref().map_or("error", |response| code(response.status().as_u16()));
            requests.with_label_values(&[verb, &resource, code]).inc();
            result
        })
    }
}

/// The codes that the apiserver is known to return. They bound the label.
fn code(status: u16) -> &'static str {
    match status {
        200 => "200",
        201 => "201",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        409 => "409",
        410 => "410",
        422 => "422",
        429 => "429",
        500 => "500",
        503 => "503",
        504 => "504",
        _ => "other",
    }
}

/// Returns verb and resource as in the apiserver's own metrics.
fn describe<T>(request: &Request<T>) -> (&'static str, String) {
    let segments: Vec<&str> = request.uri().path().split('/').filter(|segment| !segment.is_empty()).collect();
    let rest = match segments.first() {
        Some(&"api") => segments.get(2..),
        Some(&"apis") => segments.get(3..),
        _ => None,
    };
    let rest = match rest.unwrap_or_default() {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let (resource, named) = match rest {
        [] => ("none".to_owned(), false),
        [resource] => ((*resource).to_owned(), false),
        [resource, _] => ((*resource).to_owned(), true),
        [resource, _, sub, ..] => (format!("{resource}/{sub}"), true),
    };
    let watch = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
    let verb = match (request.method(), named) {
        (&Method::GET, _) if watch => "watch",
        (&Method::GET, true) => "get",
        (&Method::GET, false) => "list",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, _) => "delete",
        _ => "other",
    };
    (verb, resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_labeled_as_in_the_apiservers_metrics() {
        for (method, uri, verb, resource) in [
            (Method::GET, "/apis/llmtune.io/v1alpha1/webhooks?watch=true", "watch", "webhooks"),
            (Method::GET, "/apis/llmtune.io/v1alpha1/namespaces/a/trainingjobs?limit=500", "list", "trainingjobs"),
            (Method::PATCH, "/apis/llmtune.io/v1alpha1/namespaces/a/webhooks/b/status", "patch", "webhooks/status"),
            (Method::GET, "/api/v1/namespaces/a/secrets/b", "get", "secrets"),
            (Method::GET, "/api/v1/namespaces/a", "get", "namespaces"),
        ] {
            let request = Request::builder().method(method).uri(uri).body(()).unwrap();
            assert_eq!(describe(&request), (verb, resource.to_owned()), "{uri}");
        }
    }
}
