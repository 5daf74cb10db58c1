//! An observed object: its identity, its labels, and the facts that its lifecycle and its events need. Sources create
//! it from the apiserver's data and keep nothing else of the object.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{
    EventType,
    amount::{Amount, Level},
    json,
};

/// A watch: one source's kind in one scope. The operator assigns the numbers in the order of its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub u16);

/// An object's UID, in 16 bytes instead of 36 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(u128);

impl Uid {
    /// Parses the canonical form of a UUID, `8-4-4-4-12` lower-case hexadecimal digits, which the apiserver uses for
    /// every UID.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 36 {
            return None;
        }
        let mut value = 0_u128;
        for (index, byte) in bytes.iter().enumerate() {
            let digit = match (index, byte) {
                (8 | 13 | 18 | 23, b'-') => continue,
                (8 | 13 | 18 | 23, _) => return None,
                (_, b'0'..=b'9') => byte - b'0',
                (_, b'a'..=b'f') => byte - b'a' + 10,
                _ => return None,
            };
            value = value << 4 | u128::from(digit);
        }
        Some(Self(value))
    }

    /// Returns the shard of the ledger's snapshot that holds the object's record.
    #[must_use]
    pub const fn shard(self, shards: usize) -> usize {
        (self.0 % shards as u128) as usize
    }

    /// Creates a UID from a number, for tests and for objects without one.
    #[must_use]
    pub const fn from_u128(value: u128) -> Self {
        Self(value)
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            v >> 96,
            v >> 80 & 0xffff,
            v >> 64 & 0xffff,
            v >> 48 & 0xffff,
            v & 0xffff_ffff_ffff
        )
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Uid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Uid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is no UUID")))
    }
}

pub type Labels = BTreeMap<String, String>;

/// An object as its source read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Object {
    /// `metadata.uid`.
    pub uid: Uid,
    /// `metadata.resourceVersion`. Versions of one resource are comparable since Kubernetes 1.35.
    pub version: u64,
    /// `metadata.generation`, or 0 if there is none.
    pub generation: i64,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The kind, for an object of a `WebhookSource`. Otherwise the lifecycle implies it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "super::shared")]
    pub kind: Option<Arc<ObjectKind>>,
    /// `metadata.labels`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// The labels of the Namespace when the object was observed; `None` if they were unknown or no `ClusterWebhook`
    /// needed them.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "super::shared")]
    pub namespace_labels: Option<Arc<Labels>>,
    /// `metadata.annotations` without kubectl's copy of the object; `None` if they were not kept, because no filter
    /// needed them when the object was observed or because they exceed 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// `metadata.creationTimestamp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// Its controller is itself of a watched kind, and sends the events instead.
    #[serde(skip)]
    pub owned: bool,
    /// The facts that the lifecycle and the events use.
    pub facts: Facts,
}

/// A kind, as objects name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectKind {
    /// Group and version, or the version alone for the core group.
    pub api_version: String,
    /// The kind's name in CamelCase.
    pub kind: String,
}

impl Object {
    /// Creates an object of the kind that this event type is about, with nothing but its identity.
    #[must_use]
    pub fn of_event(event_type: EventType, uid: Uid, namespace: String, name: String) -> Self {
        let facts = match event_type {
            EventType::TrainingStarted | EventType::TrainingCompleted | EventType::TrainingFailed => {
                Facts::Training(TrainingFacts::default())
            }
            EventType::UsageThresholdReached => Facts::Usage(UsageFacts::default()),
            _ => Facts::Serving(ServingFacts::default()),
        };
        Self {
            uid,
            version: 0,
            generation: 0,
            namespace,
            name,
            kind: None,
            labels: BTreeMap::new(),
            namespace_labels: None,
            annotations: None,
            created_at: None,
            owned: false,
            facts,
        }
    }

    /// Reports whether the objects are equal except for their version.
    #[must_use]
    pub fn differs_in_version_alone(&self, other: &Self) -> bool {
        let Self {
            uid,
            version: _,
            generation,
            namespace,
            name,
            kind,
            labels,
            namespace_labels,
            annotations,
            created_at,
            owned,
            facts,
        } = self;
        (uid, generation, namespace, name, kind, labels, namespace_labels, annotations, created_at, owned, facts)
            == (
                &other.uid,
                &other.generation,
                &other.namespace,
                &other.name,
                &other.kind,
                &other.labels,
                &other.namespace_labels,
                &other.annotations,
                &other.created_at,
                &other.owned,
                &other.facts,
            )
    }

    /// Returns the object without its facts, annotations and Namespace labels. This is what reporting needs.
    #[must_use]
    pub fn outline(&self) -> Self {
        let facts = match self.facts {
            Facts::Training(_) => Facts::Training(TrainingFacts::default()),
            Facts::Serving(_) => Facts::Serving(ServingFacts::default()),
            Facts::Usage(_) => Facts::Usage(UsageFacts::default()),
        };
        Self {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            kind: self.kind.clone(),
            labels: self.labels.clone(),
            namespace_labels: None,
            annotations: None,
            facts,
            ..*self
        }
    }
}

/// The facts of an object, by lifecycle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Facts {
    Training(TrainingFacts),
    Serving(ServingFacts),
    Usage(UsageFacts),
}

/// The stages of the training lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TrainingStage {
    Pending,
    Suspended,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl TrainingStage {
    /// Parses `status.phase`. Returns `None` for an unknown phase, which changes no stage.
    #[must_use]
    pub fn parse(phase: &str) -> Option<Self> {
        Some(match phase {
            "Pending" => Self::Pending,
            "Suspended" => Self::Suspended,
            "Running" => Self::Running,
            "Completed" => Self::Completed,
            "Failed" => Self::Failed,
            "Cancelled" => Self::Cancelled,
            _ => return None,
        })
    }

    /// Reports whether a run has ended in this stage.
    #[must_use]
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// The facts of a training job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrainingFacts {
    /// `None` for an unknown stage, which changes nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<TrainingStage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training_method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact: Option<String>,
    /// At most 64 numbers and strings, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, Metric>,
    /// The metrics were dropped because they are larger than the maximum body.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub metrics_too_long: bool,
    /// Progress in percent, from 0 to 100. A `TrainingJob` reports it among its metrics, if at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// A new `startedAt` before the end of the run is a resumption or a retry, not a new run.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
}

/// A metric of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Metric {
    Number(f64),
    Text(String),
}

impl Metric {
    /// Converts an integer: to a number if receivers read all its digits, otherwise to text.
    #[must_use]
    pub fn integer(integer: i128) -> Self {
        json::exact_double(integer).map_or_else(|| Self::Text(integer.to_string()), Self::Number)
    }
}

/// The stages of the serving lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServingStage {
    /// Not observed available yet.
    Pending,
    /// At least one replica serves; a rollout may be in progress.
    Available,
    /// A rollout is complete, with at least one replica.
    Deployed,
    /// Scaled to zero, and no replica remains.
    Paused,
}

impl ServingStage {
    /// Parses a stage's name. Returns `None` for an unknown name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "Pending" => Self::Pending,
            "Available" => Self::Available,
            "Deployed" => Self::Deployed,
            "Paused" => Self::Paused,
            _ => return None,
        })
    }
}

/// The facts of a model deployment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServingFacts {
    /// `None` if the status describes an older generation, which changes nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<ServingStage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deployment_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The revision of the completed rollout, if the object names one: the model may be named before its rollout
    /// begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The newest rollout was complete once, whatever the availability is now.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rolled_out: bool,
    /// An autoscaler scales it to zero while idle, so zero replicas are not a pause.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub autoscaled: bool,
}

/// One evaluation of a usage figure against its thresholds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UsageFacts {
    /// The measured metric: the query, or a quota's `NAME/RESOURCE`.
    pub metric: String,
    pub value: Amount,
    /// The limit that percentages refer to; greater than zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Amount>,
    /// In the order of the spec; at most 32.
    pub thresholds: Vec<Level>,
    /// The distance below a threshold at which the threshold is armed again. A percentage refers to the limit, or to
    /// the threshold if there is no limit.
    pub hysteresis: Level,
    /// The time for which the figure must stay at or above a threshold.
    pub hold: Duration,
    /// The unit of the figure, such as `tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The time of the measurement.
    pub observed_at: Timestamp,
}

impl UsageFacts {
    /// Returns the value in percent of the limit, rounded down to three decimals; `None` without a limit.
    #[must_use]
    pub fn percent(&self) -> Option<Amount> {
        self.limit.as_ref().and_then(|limit| self.value.percent_of(limit))
    }
}
