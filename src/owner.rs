//! The `ConfigMap` that owns the operator's objects. Kubernetes deletes them with it.

use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{Api, Client};

/// A `ConfigMap` in the operator's namespace, by name.
#[derive(Clone)]
pub struct Owner {
    api: Api<ConfigMap>,
    name: String,
}

impl Owner {
    /// The `ConfigMap` of this name in `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), name: name.to_owned() }
    }

    /// The owner reference for an object. It sets neither `controller` nor `blockOwnerDeletion`: the latter would need
    /// an additional right.
    pub async fn reference(&self) -> Result<OwnerReference, kube::Error> {
        let found = self.api.get_metadata_opt(&self.name).await?;
        let Some(uid) = found.and_then(|owner| owner.metadata.uid) else {
            let name = &self.name;
            let text = format!("ConfigMap {name:?} of --owner does not exist: create it, or remove the flag");
            return Err(kube::Error::Service(text.into()));
        };
        Ok(OwnerReference {
            api_version: "v1".to_owned(),
            kind: "ConfigMap".to_owned(),
            name: self.name.clone(),
            uid,
            ..OwnerReference::default()
        })
    }
}
