//! Connects to the kube-apiserver as kubectl does: by the same configuration, and through the proxy of the kubeconfig
//! or the environment.

mod proxy;

use std::{
    fmt,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{
        Client as HttpClient,
        connect::{
            Connection, HttpConnector,
            proxy::{SocksV5, Tunnel},
        },
    },
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, ConfigExt, DynBody},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, util::BoxService};

use proxy::{Environment, Scheme};
pub use proxy::{Proxy, ProxyError};

/// A value of `proxy-url` that keeps kube from reading the environment.
const PLACEHOLDER: &str = "http://proxy.invalid";

/// A cluster, and the proxy to it.
#[derive(Clone)]
pub struct Way {
    pub config: Config,
    pub proxy: Option<Proxy>,
}

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WayError {
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
}

impl Way {
    /// Reads the cluster of a kubeconfig. kube handles `HTTPS_PROXY` and `NO_PROXY` differently from kubectl: it
    /// compares `NO_PROXY` with the proxy, and rejects values that kubectl accepts.
    pub async fn of_kubeconfig(mut kubeconfig: Kubeconfig, options: &KubeConfigOptions) -> Result<Self, WayError> {
        let own = own_proxy(&kubeconfig, options);
        let loaded = match Config::from_custom_kubeconfig(kubeconfig.clone(), options).await {
            // A variable that kube cannot parse is ignored. The kubeconfig's own proxy is read below.
            Err(KubeconfigError::ParseProxyUrl(_)) => {
                for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
                    cluster.proxy_url = Some(PLACEHOLDER.into());
                }
                Config::from_custom_kubeconfig(kubeconfig, options).await
            }
            loaded => loaded,
        };
        let mut config = loaded?;
        config.proxy_url = None;
        let proxy = Proxy::towards(&config.cluster_url, own.as_deref(), &Environment::of_process())?;
        Ok(Self { config, proxy })
    }

    /// Returns the cluster of the pod that this process runs in.
    pub fn in_cluster() -> Result<Self, kube::config::InClusterError> {
        let config = Config::incluster()?;
        // Without a proxy-url, this cannot fail.
        let proxy = Proxy::towards(&config.cluster_url, None, &Environment::of_process()).ok().flatten();
        Ok(Self { config, proxy })
    }

    /// Creates a client whose requests pass through the layer.
    pub fn client<L, B>(self, layer: &L) -> Result<Client, kube::Error>
    where
        L: Layer<Requests>,
        L::Service: Service<Request<Body>, Response = Response<B>, Error = BoxError> + Send + 'static,
        <L::Service as Service<Request<Body>>>::Future: Send + 'static,
        B: hyper::body::Body<Data = bytes::Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let Self { config, proxy } = self;
        let Some(proxy) = proxy else { return Ok(ClientBuilder::try_from(config)?.with_layer(layer).build()) };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        let requests = match proxy.scheme {
            Scheme::Http => through(&config, tunnel(&proxy, tcp), &proxy),
            Scheme::Https => {
                let tls = config.rustls_https_connector_with_connector(tcp)?;
                through(&config, tunnel(&proxy, tls), &proxy)
            }
            Scheme::Socks5 => {
                let socks = SocksV5::new(proxy.uri.clone(), tcp);
                let socks = match &proxy.user {
                    Some((name, password)) => socks.with_auth(name.clone(), password.clone()),
                    None => socks,
                };
                through(&config, socks, &proxy)
            }
        }?;
        Ok(ClientBuilder::new(requests, config.default_namespace).with_layer(layer).build())
    }
}

/// The service with which kube sends requests.
pub type Requests = BoxService<Request<Body>, Response<Box<DynBody>>, BoxError>;

/// Returns the `proxy-url` of the cluster that these options select, found as kube finds it.
fn own_proxy(kubeconfig: &Kubeconfig, options: &KubeConfigOptions) -> Option<String> {
    let context = options.context.as_ref().or(kubeconfig.current_context.as_ref());
    let context = kubeconfig.contexts.iter().find(|named| Some(&named.name) == context);
    let name = options.cluster.as_ref().or_else(|| Some(&context?.context.as_ref()?.cluster))?;
    let named = kubeconfig.clusters.iter().find(|named| named.name == *name)?;
    named.cluster.as_ref()?.proxy_url.clone().filter(|url| !url.is_empty())
}

fn tunnel<C>(proxy: &Proxy, connector: C) -> Tunnel<C> {
    let tunnel = Tunnel::new(proxy.uri.clone(), connector);
    match proxy.authorization() {
        Some(value) => tunnel.with_auth(value),
        None => tunnel,
    }
}

/// Adds the layers of kube's own client to this connector.
fn through<C>(config: &Config, connector: C, proxy: &Proxy) -> Result<Requests, kube::Error>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Connection + hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    let named = Named { connector, proxy: proxy.to_string() };
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(named)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let client = HttpClient::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(client);
    let boxed =
        service.map_response(|response| response.map(|body| Box::new(body.map_err(BoxError::from)) as Box<DynBody>));
    Ok(BoxService::new(boxed))
}

/// A connector whose errors name the proxy.
#[derive(Clone)]
struct Named<C> {
    connector: C,
    proxy: String,
}

/// A proxy failed to connect.
#[derive(Debug)]
struct ThroughProxy {
    proxy: String,
    error: BoxError,
}

impl fmt::Display for ThroughProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "through the proxy {}", self.proxy)
    }
}

impl std::error::Error for ThroughProxy {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.error)
    }
}

impl<C> Service<Uri> for Named<C>
where
    C: Service<Uri>,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<C::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        let (connecting, proxy) = (self.connector.call(destination), self.proxy.clone());
        Box::pin(async move { connecting.await.map_err(|error| ThroughProxy { proxy, error: error.into() }.into()) })
    }
}
