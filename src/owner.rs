//! What the operator's own objects belong to: Kubernetes deletes them with it.

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

    /// What the metadata of an object says that belongs to it. Neither does it control the object, nor need its deletion wait for the
    /// object's: that would take rights of its own.
    pub async fn reference(&self) -> Result<OwnerReference, kube::Error> {
        let found = self.api.get_metadata_opt(&self.name).await?;
        let Some(uid) = found.and_then(|owner| owner.metadata.uid) else {
            let name = &self.name;
            let text =
                format!("ConfigMap {name:?}, which --owner names, is not there: create it, or leave the flag out");
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
