//! An observed object: its identity, its labels, and the facts that its lifecycle and its events need. Sources make it
//! from what the apiserver sends; nothing else of the object is kept.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{
    amount::{Amount, Level},
    json,
};

/// A watch: one source's kind in one scope. Numbered by the operator, in the order of its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub u16);

/// An object's uid, 16 bytes instead of 36 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(u128);

impl Uid {
    /// Parses the canonical form, `8-4-4-4-12` lower-case hexadecimal digits, in which the apiserver writes every uid.
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

    /// Which of `shards` parts of the ledger's snapshot the object's record belongs to.
    #[must_use]
    pub const fn shard(self, shards: usize) -> usize {
        (self.0 % shards as u128) as usize
    }

    /// A uid of the given value, for what has none and for tests.
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

/// Labels by key.
pub type Labels = BTreeMap<String, String>;

/// An object as its source read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Object {
    /// `metadata.uid`.
    pub uid: Uid,
    /// `metadata.resourceVersion`; versions of one resource compare from Kubernetes 1.35 on.
    pub version: u64,
    /// `metadata.generation`, 0 where there is none.
    pub generation: i64,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Its kind, where the lifecycle does not tell it: that of a `WebhookSource`.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "super::shared")]
    pub kind: Option<Arc<ObjectKind>>,
    /// `metadata.labels`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// The labels of its Namespace when it was observed; `None` where they were not known, or no `ClusterWebhook` asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "super::shared")]
    pub namespace_labels: Option<Arc<Labels>>,
    /// `metadata.annotations` without kubectl's copy of the object; `None` where they were not kept: no filter asked for them
    /// when it was seen, or there are more than 16 KiB of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// `metadata.creationTimestamp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// Its controller is itself of a watched kind, which speaks for it.
    #[serde(skip)]
    pub owned: bool,
    /// What its lifecycle looks at and its events tell.
    pub facts: Facts,
}

/// A kind, as objects name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectKind {
    /// Group and version; of the core group the version alone.
    pub api_version: String,
    /// The kind's name in CamelCase.
    pub kind: String,
}

impl Object {
    /// Whether the other tells the same in a newer version.
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

    /// The object without its facts, its annotations and its Namespace's labels: what reporting looks at.
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
    /// A training job's.
    Training(TrainingFacts),
    /// A model deployment's.
    Serving(ServingFacts),
    /// A usage figure's.
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
    /// The stage named by `status.phase`; `None` for a word that is not one, which moves nothing.
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

    /// Whether a run has ended in this stage.
    #[must_use]
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// What a training job says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrainingFacts {
    /// `None`: no stage that we know; moves nothing.
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
    /// They are longer than a body may be, so that none would have them: they are not kept.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub metrics_too_long: bool,
    /// How much of the training is done, in percent: from 0 to 100. A `TrainingJob` tells that among its metrics, where it does.
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
    /// A new `startedAt` before the run's end is a resumption or a retry, and no new run.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
}

/// One figure of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Metric {
    Number(f64),
    Text(String),
}

impl Metric {
    /// An integer of an object: a number where receivers read all its digits, else text.
    #[must_use]
    pub fn integer(integer: i128) -> Self {
        json::exact_double(integer).map_or_else(|| Self::Text(integer.to_string()), Self::Number)
    }
}

/// The stages of the serving lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServingStage {
    /// Nothing to announce: not observed available.
    Pending,
    /// At least one replica serves; a rollout may be under way.
    Available,
    /// A rollout is complete, with at least one replica.
    Deployed,
    /// Scaled to zero, and no replica remains.
    Paused,
}

impl ServingStage {
    /// The stage of this name; `None` for a word that is none.
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

/// What a model deployment says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServingFacts {
    /// `None`: its status speaks of an older generation; moves nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<ServingStage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deployment_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What names the rollout that is complete, where something does: a model may be named before its rollout begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The newest rollout has been complete once, whatever the availability is now.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rolled_out: bool,
    /// An autoscaler idles it: being at zero is no pause.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub autoscaled: bool,
}

/// One evaluation of a usage figure against its thresholds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UsageFacts {
    /// What is measured: the query, or a quota's `NAME/RESOURCE`.
    pub metric: String,
    pub value: Amount,
    /// What percentages are of; above zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Amount>,
    /// In the order of the spec; at most 32.
    pub thresholds: Vec<Level>,
    /// How far below a threshold the figure must be for that to be armed again. A percentage is of the limit, and of the threshold where
    /// there is none.
    pub hysteresis: Level,
    /// How long the figure must be at or above a threshold.
    pub hold: Duration,
    /// What the figure counts, such as `tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// When it was measured.
    pub observed_at: Timestamp,
}

impl UsageFacts {
    /// How many percent of the limit the value is, rounded down to three decimals; `None` without a limit.
    #[must_use]
    pub fn percent(&self) -> Option<Amount> {
        self.limit.as_ref().and_then(|limit| self.value.percent_of(limit))
    }
}
