//! Connects to the cluster of a command. The cluster is found as kubectl finds it.

use std::{path::Path, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
    core::{ApiResource, DynamicResourceScope, Resource},
};

use tower::layer::util::Identity;

use super::{
    cli::ClusterArgs,
    failure::Failure,
    nearest::{either, nearest},
};
use llmtune_client::{
    cluster::{Way, WayError},
    error_chain::ErrorChain,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Read timeout of a connection. Watches end sooner.
const READ_TIMEOUT: Duration = Duration::from_mins(5);
/// The Lease of the operator, which all its replicas share.
const LEASE: &str = "llmtune-webhooks";
/// The default namespace of the operator.
const OPERATOR_NAMESPACE: &str = "llmtune-system";

/// A cluster, and the namespace of the command line.
pub struct Cluster {
    pub client: Client,
    /// `-n`, or else the namespace of the context.
    pub namespace: String,
    /// `-n`.
    given: Option<String>,
    /// The apiserver's address, for messages.
    pub server: String,
}

impl Cluster {
    /// Connects to the cluster that these flags name.
    pub async fn connect(args: &ClusterArgs) -> Result<Self, Failure> {
        let mut way = way(args).await?;
        let config = &mut way.config;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        config.reset_reader_on_write = true;
        // Without retries an error is shown immediately: the user waits at a terminal.
        config.default_retry = false;
        if args.impersonate.is_some() {
            config.auth_info.impersonate.clone_from(&args.impersonate);
            config.auth_info.impersonate_groups = Some(args.groups.clone()).filter(|groups| !groups.is_empty());
        }
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = way.client(&Identity::new()).map_err(|error| {
            let what = format!("the configuration of the cluster at {server} cannot be used: {}", ErrorChain(&error));
            Failure::new(what).next("check it with kubectl config view")
        })?;
        Ok(Self { client, namespace, given: args.namespace.clone(), server })
    }

    /// Converts the error of a request.
    pub fn failed(&self, error: &kube::Error) -> Failure {
        Failure::of_request(error, &self.server)
    }

    /// The API of one kind. `None` selects all namespaces, or the cluster for a cluster-scoped kind.
    pub fn api<K>(&self, namespace: Option<&str>) -> Api<DynamicObject>
    where
        K: Resource<DynamicType = ()>,
        DynamicObject: Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>,
    {
        let resource = ApiResource::erase::<K>(&());
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// The operator's namespace, which holds the deliveries of `ClusterWebhooks`: `-n`, or else the namespace of its
    /// Lease, or else the default.
    pub async fn operator_namespace(&self) -> Result<String, Failure> {
        if let Some(given) = &self.given {
            return Ok(given.clone());
        }
        let named = ListParams::default().fields(&format!("metadata.name={LEASE}"));
        let leases = Api::<Lease>::all(self.client.clone()).list(&named).await;
        let mut namespaces: Vec<String> = match leases {
            Ok(leases) => leases.items.into_iter().filter_map(|lease| lease.metadata.namespace).collect(),
            // Most users may not list Leases in all namespaces.
            Err(kube::Error::Api(status)) if status.code == 403 => Vec::new(),
            Err(error) => return Err(self.failed(&error)),
        };
        namespaces.sort_unstable();
        match namespaces.as_slice() {
            [] => Ok(OPERATOR_NAMESPACE.to_owned()),
            [one] => Ok(one.clone()),
            several => {
                let names: Vec<&str> = several.iter().map(String::as_str).collect();
                let what = format!("several operators are installed, in the namespaces {}", names.join(", "));
                Err(Failure::new(what).next(format!("choose one with -n {}", either(&names))))
            }
        }
    }
}

async fn way(args: &ClusterArgs) -> Result<Way, Failure> {
    let options =
        KubeConfigOptions { context: args.context.clone(), cluster: args.cluster.clone(), user: args.user.clone() };
    let kubeconfig = match read(args.kubeconfig.as_deref()) {
        Ok(kubeconfig) => kubeconfig,
        Err(error) => {
            // A kubeconfig is optional inside a pod.
            let inside =
                args.kubeconfig.is_none() && args.context.is_none() && std::env::var_os("KUBECONFIG").is_none();
            return Way::in_cluster().ok().filter(|_| inside).ok_or_else(|| no_cluster(&error, args));
        }
    };
    let contexts: Vec<String> = kubeconfig.contexts.iter().map(|context| context.name.clone()).collect();
    Way::of_kubeconfig(kubeconfig, &options).await.map_err(|error| match error {
        WayError::Kubeconfig(error) => unusable(&error, &contexts),
        WayError::Proxy(error) => Failure::new(error.to_string()).next("check it with kubectl config view"),
    })
}

fn read(path: Option<&Path>) -> Result<Kubeconfig, KubeconfigError> {
    path.map_or_else(Kubeconfig::read, Kubeconfig::read_from)
}

/// The names of the kubeconfig's contexts, for completion.
pub fn contexts(args: &ClusterArgs) -> Vec<String> {
    let kubeconfig = read(args.kubeconfig.as_deref()).unwrap_or_default();
    kubeconfig.contexts.into_iter().map(|context| context.name).collect()
}

fn no_cluster(error: &KubeconfigError, args: &ClusterArgs) -> Failure {
    let place = match (&args.kubeconfig, std::env::var("KUBECONFIG").ok().filter(|path| !path.is_empty())) {
        (Some(path), _) => format!("the kubeconfig {} cannot be used", path.display()),
        (None, Some(path)) => format!("KUBECONFIG={path} cannot be used"),
        (None, None) => "no cluster is configured".into(),
    };
    Failure::new(format!("{place}: {}", ErrorChain(error)))
        .next("set --kubeconfig or KUBECONFIG to a kubeconfig that kubectl can use")
}

fn unusable(error: &KubeconfigError, contexts: &[String]) -> Failure {
    let known = || {
        let names: Vec<&str> = contexts.iter().map(String::as_str).collect();
        if names.is_empty() {
            "the kubeconfig has no contexts".into()
        } else {
            format!("the contexts are {}", names.join(", "))
        }
    };
    match error {
        KubeconfigError::LoadContext(name) => {
            let failure = Failure::new(format!("there is no context {name:?}"));
            match nearest(name, contexts.iter().map(String::as_str)).as_slice() {
                [] => failure.next(known()),
                alike => failure.next(format!("did you mean {}?", either(alike))),
            }
        }
        KubeconfigError::CurrentContextNotSet => Failure::new("the kubeconfig has no current context")
            .next(format!("choose one with --context or kubectl config use-context: {}", known())),
        error => Failure::new(format!("the kubeconfig cannot be used: {}", ErrorChain(error)))
            .next("check it with kubectl config view"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_context_suggests_existing_contexts() {
        let contexts = ["production", "staging"].map(str::to_owned);
        for (error, says) in [
            (KubeconfigError::LoadContext("stagin".into()), "did you mean staging?"),
            (KubeconfigError::LoadContext("kind".into()), "the contexts are production, staging"),
            (KubeconfigError::CurrentContextNotSet, "choose one with --context"),
        ] {
            let message = unusable(&error, &contexts).to_string();
            assert!(message.contains(says), "{message}");
        }
    }
}
