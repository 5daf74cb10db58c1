//! An observed object: its identity, its labels, and the facts that its lifecycle and its events need. Sources make it
//! from what the apiserver sends; nothing else of the object is kept.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;

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

    /// A uid of the given value, for tests and simulation.
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

/// Which object, within one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The watch that shows it.
    pub watch: WatchId,
    /// Its uid.
    pub uid: Uid,
}

/// An object as its source read it.
#[derive(Clone, Debug, PartialEq)]
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
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.creationTimestamp`.
    pub created_at: Option<Timestamp>,
    /// Its controller is itself of a watched kind, which speaks for it.
    pub owned: bool,
    /// What its lifecycle looks at and its events tell.
    pub facts: Facts,
}

impl Object {
    /// The object without its facts: what matching and reporting look at.
    #[must_use]
    pub fn outline(&self) -> Self {
        let facts = match self.facts {
            Facts::Training(_) => Facts::Training(TrainingFacts::default()),
            Facts::Serving(_) => Facts::Serving(ServingFacts::default()),
        };
        Self { namespace: self.namespace.clone(), name: self.name.clone(), labels: self.labels.clone(), facts, ..*self }
    }
}

/// The facts of an object, by lifecycle.
#[derive(Clone, Debug, PartialEq)]
pub enum Facts {
    /// A training job's.
    Training(TrainingFacts),
    /// A model deployment's.
    Serving(ServingFacts),
}

/// The stages of the training lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainingFacts {
    /// `None`: no stage that we know; moves nothing.
    pub stage: Option<TrainingStage>,
    pub job_id: Option<String>,
    pub base_model: Option<String>,
    pub training_method: Option<String>,
    pub artifact: Option<String>,
    /// At most 64 numbers and strings, by name.
    pub metrics: BTreeMap<String, Metric>,
    pub started_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    pub reason: Option<String>,
    pub message: Option<String>,
}

/// One figure of a training.
#[derive(Clone, Debug, PartialEq)]
pub enum Metric {
    Number(f64),
    Text(String),
}

/// The stages of the serving lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// What a model deployment says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServingFacts {
    /// `None`: its status speaks of an older generation; moves nothing.
    pub stage: Option<ServingStage>,
    pub deployment_id: Option<String>,
    pub model_id: Option<String>,
    pub version: Option<String>,
    pub environment: Option<String>,
    pub endpoint: Option<String>,
    /// The newest rollout has been complete once, whatever the availability is now.
    pub rolled_out: bool,
    /// An autoscaler idles it: being at zero is no pause.
    pub autoscaled: bool,
}
