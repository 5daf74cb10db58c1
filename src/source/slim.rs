//! The parts of `metadata` that sources read.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;

use super::{Malformed, owners::WatchedKinds};
use crate::event::object::{Facts, Object, Uid};

/// `metadata`, without managedFields and most of the rest.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlimMeta {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    pub(super) generation: i64,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: Annotations,
    pub(super) creation_timestamp: Option<Timestamp>,
    pub(super) owner_references: Vec<SlimOwner>,
}

/// The annotations that concern us, of an object or of its pod template.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Annotations {
    #[serde(rename = "llmtune.io/deployment-id")]
    pub(super) deployment_id: Option<String>,
    #[serde(rename = "llmtune.io/environment")]
    pub(super) environment: Option<String>,
    #[serde(rename = "llmtune.io/endpoint-url")]
    pub(super) endpoint_url: Option<String>,
    #[serde(rename = "llmtune.io/scale-to-zero")]
    pub(super) scale_to_zero: Option<String>,
    #[serde(rename = "llmtune.io/model-id")]
    pub(super) model_id: Option<String>,
    #[serde(rename = "llmtune.io/model-version")]
    pub(super) model_version: Option<String>,
}

/// An owner, as far as it tells whether the owner is a controller of a watched kind.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlimOwner {
    api_version: String,
    kind: String,
    controller: bool,
}

/// Parses a `resourceVersion`; they are decimal numbers that compare (Kubernetes 1.35, KEP-5504).
pub(super) fn version(text: &str) -> Result<u64, Malformed> {
    text.parse().map_err(|_| Malformed::Version(text.to_owned()))
}

impl SlimMeta {
    /// The object with these facts; it is owned where its controller is of one of these kinds.
    pub(super) fn object(self, facts: Facts, kinds: &WatchedKinds) -> Result<Object, Malformed> {
        let uid = Uid::parse(&self.uid).ok_or(Malformed::Uid(self.uid))?;
        let mut owners = self.owner_references.iter();
        Ok(Object {
            uid,
            version: version(&self.resource_version)?,
            generation: self.generation,
            namespace: self.namespace,
            name: self.name,
            labels: self.labels,
            created_at: self.creation_timestamp,
            owned: owners.any(|owner| owner.controller && kinds.contain(&owner.api_version, &owner.kind)),
            facts,
        })
    }
}
