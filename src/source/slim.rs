//! The fields of `metadata` that sources read.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;

use super::{Malformed, owners::WatchedKinds};
use llmtune_core::event::object::{Facts, Object, Uid};

/// `metadata`, without `managedFields` and other fields that are not used.
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

/// The annotations of `LLMTune`, on an object or on its pod template.
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

/// The maximum total bytes of the annotations of one object that are kept for filters.
const MAX_ANNOTATIONS: usize = 16 * 1024;
/// The annotation in which kubectl stores the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The annotations of the object in `json`, without [`LAST_APPLIED`]. `None` if they exceed [`MAX_ANNOTATIONS`].
pub(super) fn annotations(json: &str) -> Option<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Annotated {
        #[serde(default)]
        metadata: Metadata,
    }
    #[derive(Default, Deserialize)]
    struct Metadata {
        #[serde(default)]
        annotations: Option<BTreeMap<String, String>>,
    }
    let annotated: Annotated = serde_json::from_str(json).ok()?;
    kept_annotations(annotated.metadata.annotations.unwrap_or_default())
}

/// These annotations without [`LAST_APPLIED`]. `None` if they exceed [`MAX_ANNOTATIONS`].
pub(super) fn kept_annotations(mut annotations: BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    annotations.remove(LAST_APPLIED);
    let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    (bytes <= MAX_ANNOTATIONS).then_some(annotations)
}

/// An owner reference, to find out whether the controller is of a watched kind.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlimOwner {
    api_version: String,
    kind: String,
    controller: bool,
}

/// Parses a `resourceVersion`. Since Kubernetes 1.35 they are decimal numbers that can be compared (KEP-5504).
pub(super) fn version(text: &str) -> Result<u64, Malformed> {
    text.parse().map_err(|_| Malformed::Version(text.to_owned()))
}

impl SlimMeta {
    /// Whether the object's controller is of one of these kinds.
    pub(super) fn is_owned(&self, kinds: &WatchedKinds) -> bool {
        let mut owners = self.owner_references.iter();
        owners.any(|owner| owner.controller && kinds.contain(&owner.api_version, &owner.kind))
    }

    /// Creates the object with these facts. It counts as owned if its controller is of one of these kinds.
    pub(super) fn object(self, facts: Facts, kinds: &WatchedKinds) -> Result<Object, Malformed> {
        let owned = self.is_owned(kinds);
        let uid = Uid::parse(&self.uid).ok_or(Malformed::Uid(self.uid))?;
        Ok(Object {
            uid,
            version: version(&self.resource_version)?,
            generation: self.generation,
            namespace: self.namespace,
            name: self.name,
            kind: None,
            labels: self.labels,
            namespace_labels: None,
            annotations: None,
            created_at: self.creation_timestamp,
            owned,
            facts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_kept_up_to_a_bound_without_last_applied() {
        let object = |value: &str| {
            let annotations = serde_json::json!({"a": value, LAST_APPLIED: "x".repeat(2 * MAX_ANNOTATIONS)});
            serde_json::json!({"metadata": {"annotations": annotations}, "spec": {}}).to_string()
        };
        assert_eq!(annotations(&object("b")), Some([("a".to_owned(), "b".to_owned())].into()));
        assert_eq!(
            annotations(&object(&"b".repeat(MAX_ANNOTATIONS))),
            None,
            "too many annotations are unknown, not truncated"
        );
        for none in ["{}", r#"{"metadata": {}}"#, r#"{"metadata": {"annotations": null}}"#] {
            assert_eq!(annotations(none), Some(BTreeMap::new()), "{none}");
        }
    }
}
