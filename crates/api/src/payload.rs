//! The body of a delivery in the native format, as a receiver reads it. Members that a later release adds are ignored;
//! `llmtune-webhooks schema` prints the JSON Schema.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::{Map, Value};

use crate::event::EventType;

/// An event, as one delivery reports it.
///
/// ```
/// use llmtune_api::{event::EventType, payload::{Data, Event}};
///
/// let body = br#"{"id":"evt_0123456789abcdef0123456789abcdef","event":"training.completed",
///     "data":{"jobId":"job-7","name":"llama-sft","namespace":"default","status":"completed"},
///     "occurredAt":"2026-11-23T19:11:16Z","sequence":2,"deliveredAt":"2026-11-23T19:11:16Z"}"#;
/// let event: Event = serde_json::from_slice(body)?;
/// assert_eq!(event.event_type(), Some(EventType::TrainingCompleted));
/// let Data::Training(job) = event.data else { panic!("not about a training job") };
/// assert_eq!(job.name, "llama-sft");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// `evt_` and 32 hexadecimal digits: the same for every subscriber, retry and redelivery. Use it to recognize
    /// repeats.
    pub id: String,
    /// The event's name, such as `training.completed`.
    pub event: String,
    /// The facts about the object.
    pub data: Data,
    /// When the event occurred.
    pub occurred_at: Timestamp,
    /// Sequence number of this event for its object, starting at 1. Retries can arrive after later events.
    pub sequence: u32,
    /// The operator's `--cluster-name`, if set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// A user requested this event as a test. It did not occur.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub test: bool,
    /// Members of `data` are left out, because the body would exceed 256 KiB.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// When this attempt was made, in whole seconds. The signature covers it: compare it with your clock to reject
    /// replays.
    pub delivered_at: Timestamp,
}

impl Event {
    /// Returns the event type, or `None` if this release does not know the event.
    #[must_use]
    pub fn event_type(&self) -> Option<EventType> {
        EventType::parse(&self.event)
    }
}

/// The facts about the object of an event. Unknown facts are absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Data {
    /// Of `training.*`.
    Training(Box<Training>),
    /// Of `model.*` and `deployment.*`.
    Serving(Box<Serving>),
    /// Of `usage.*`.
    Usage(Box<Usage>),
    /// Of an event that this release does not know.
    Other(Map<String, Value>),
}

/// A training job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Training {
    /// The platform's id of the job; otherwise the object's uid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    pub name: String,
    pub namespace: String,
    /// The model that is trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// The training method, such as `sft`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training_method: Option<String>,
    /// `running`, `completed`, `failed`, `cancelled` or `unknown`.
    pub status: String,
    /// Why the job failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
    /// Where the trained model is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact: Option<String>,
    /// Metrics by name. `None` is a value that JSON cannot express.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, Option<Amount>>,
    /// Progress in percent, 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<serde_json::Number>,
    /// The number of this run of the job, starting at 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// One word, such as `OOMKilled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A model deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Serving {
    /// The platform's id of the deployment; otherwise the object's uid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deployment_id: Option<String>,
    pub name: String,
    pub namespace: String,
    /// The model that is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// The model's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The environment, such as `production`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The URL of the deployment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// A measured value that reached a threshold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    pub name: String,
    pub namespace: String,
    /// The query, or the quota and its resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// The measured value.
    pub value: Amount,
    /// The value that percentages refer to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Amount>,
    /// The value in percent of the limit, rounded down to three decimals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<Amount>,
    /// The threshold, as the spec writes it.
    pub threshold: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// When the value was measured.
    pub observed_at: Timestamp,
}

/// A number, as text where JavaScript would print an integer with other digits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Amount {
    Number(serde_json::Number),
    Text(String),
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Members {
            id: String,
            event: String,
            data: Map<String, Value>,
            occurred_at: Timestamp,
            sequence: u32,
            cluster: Option<String>,
            #[serde(default)]
            test: bool,
            #[serde(default)]
            truncated: bool,
            delivered_at: Timestamp,
        }
        let Members { id, event, data, occurred_at, sequence, cluster, test, truncated, delivered_at } =
            Members::deserialize(deserializer)?;
        let data = match EventType::parse(&event) {
            None => Ok(Data::Other(data)),
            Some(EventType::TrainingStarted | EventType::TrainingCompleted | EventType::TrainingFailed) => {
                serde_json::from_value(data.into()).map(Data::Training)
            }
            Some(
                EventType::ModelDeployed
                | EventType::DeploymentCreated
                | EventType::DeploymentPaused
                | EventType::DeploymentResumed
                | EventType::DeploymentDeleted,
            ) => serde_json::from_value(data.into()).map(Data::Serving),
            Some(EventType::UsageThresholdReached) => serde_json::from_value(data.into()).map(Data::Usage),
        };
        let data = data.map_err(|error| D::Error::custom(format_args!("data: {error}")))?;
        Ok(Self { id, event, data, occurred_at, sequence, cluster, test, truncated, delivered_at })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(event: &str, data: &Value) -> Value {
        json!({
            "id": "evt_0123456789abcdef0123456789abcdef", "event": event, "data": data,
            "occurredAt": "2026-11-23T19:11:16.25Z", "sequence": 2, "deliveredAt": "2026-11-23T19:11:17Z",
        })
    }

    #[test]
    fn an_unknown_event_and_unknown_members_are_accepted() {
        let mut later = body("model.archived", &json!({"modelId": "llama", "size": 7}));
        let event: Event = serde_json::from_value(later.clone()).unwrap();
        assert_eq!((event.event_type(), serde_json::to_value(&event).unwrap()), (None, later.clone()));
        later["region"] = "eu".into();
        assert_eq!(serde_json::from_value::<Event>(later).unwrap(), event);
    }

    #[test]
    fn wrong_data_is_refused_with_the_member_that_is_wrong() {
        let wrong = body("usage.threshold_reached", &json!({"name": "a", "namespace": "b", "threshold": "80%"}));
        let error = serde_json::from_value::<Event>(wrong).unwrap_err();
        assert_eq!(error.to_string(), "data: missing field `value`");
    }
}
