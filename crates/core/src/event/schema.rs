//! The JSON Schema (2020-12) of bodies in the native format, for receivers. It allows members that later releases add.
//! A test validates the bodies of all events against a version without additional members.

use serde_json::{Map, Value, json};

use super::EventType;

/// Returns the schema of a body. The schema of an event's `data` is `#/$defs/EVENT`, such as
/// `#/$defs/training.completed`.
#[must_use]
pub fn schema() -> Value {
    let data = EventType::ALL.map(|event| (event.name().to_owned(), data(event)));
    let events = EventType::ALL.map(|event| {
        let name = event.name();
        json!({"title": name, "properties": {"event": {"const": name}, "data": {"$ref": format!("#/$defs/{name}")}}})
    });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A body of llmtune-webhooks in the format LLMTune",
        "type": "object",
        "required": ["id", "event", "data", "occurredAt", "sequence", "deliveredAt"],
        "properties": {
            "id": {
                "type": "string", "pattern": "^evt_[0-9a-f]{32}$",
                "description": "The event's id: the same for every subscriber, retry, redelivery and replay."
            },
            "event": {"type": "string", "description": "The event's name."},
            "data": {"type": "object", "description": "The known facts about the object. Unknown facts are omitted."},
            "occurredAt": time("When the event happened. If the object reports a time, it is that time."),
            "sequence": {
                "type": "integer", "minimum": 0,
                "description": "Sequence number of this event for its object, starting at 1. A retry may arrive after a later event."
            },
            "cluster": text("The cluster's name, if the operator is configured with one."),
            "test": {"const": true, "description": "A user requested this event as a test. Nothing has happened."},
            "truncated": {"const": true, "description": "The body would have exceeded 256 KiB. First metrics, then the largest members of data are omitted."},
            "deliveredAt": time("Time of this attempt, in whole seconds.")
        },
        "oneOf": events,
        "$defs": Map::from_iter(data)
    })
}

fn data(event: EventType) -> Value {
    let status: &[&str] = match event {
        EventType::TrainingStarted => &["running"],
        EventType::TrainingCompleted => &["completed"],
        EventType::TrainingFailed => &["failed", "cancelled", "unknown"],
        EventType::UsageThresholdReached => return usage(),
        EventType::ModelDeployed
        | EventType::DeploymentCreated
        | EventType::DeploymentPaused
        | EventType::DeploymentResumed
        | EventType::DeploymentDeleted => return serving(),
    };
    let mut properties = json!({
        "jobId": text("The platform's id of the job, or else the object's uid."),
        "name": text("The object's name."),
        "namespace": text("The object's namespace."),
        "baseModel": text("The model that is trained."),
        "trainingMethod": text("The training method, such as sft."),
        "status": {"enum": status, "description": "The status of the job."},
        "metrics": {
            "type": "object",
            "additionalProperties": {"type": ["number", "string", "null"]},
            "description": "Figures by name. Text for figures that JSON cannot represent as numbers, such as NaN, and for integers beyond 2^53, whose digits JavaScript would change."
        },
        "progress": {"type": "number", "minimum": 0, "maximum": 100, "description": "Progress of the training, in percent."},
        "run": {"type": "integer", "minimum": 0, "description": "Number of this run of the job, starting at 1."},
        "createdAt": time("When the object was created."),
        "startedAt": time("When the run started."),
    });
    if event != EventType::TrainingStarted {
        properties["artifact"] = text("Location of the trained model.");
        properties["completedAt"] = time("When the run ended.");
    }
    if event == EventType::TrainingFailed {
        properties["error"] = json!({
            "type": "object",
            "properties": {"reason": text("The reason in one word."), "message": text("The reason for people.")},
            "description": "Why the run failed."
        });
    }
    object(&properties, &["name", "namespace", "status"])
}

fn serving() -> Value {
    let properties = json!({
        "deploymentId": text("The platform's id of the deployment, or else the object's uid."),
        "name": text("The object's name."),
        "namespace": text("The object's namespace."),
        "modelId": text("The model that is served."),
        "version": text("The version of the model."),
        "environment": text("The environment of the deployment, such as production."),
        "endpoint": text("The URL of the deployment."),
    });
    object(&properties, &["name", "namespace"])
}

fn usage() -> Value {
    let properties = json!({
        "name": text("The object's name."),
        "namespace": text("The object's namespace."),
        "metric": text("The measured query, or the quota and its resource."),
        "value": number("The measured figure."),
        "limit": number("The limit that percentages refer to."),
        "percent": {
            "type": ["number", "string", "null"],
            "description": "The figure in percent of the limit, rounded down to three decimals. Null if a double cannot represent it. Text beyond 2^53, where JavaScript would change its digits."
        },
        "threshold": text("The threshold that was reached, as written in the spec."),
        "unit": text("The unit of the figure."),
        "observedAt": time("When the figure was measured."),
    });
    object(&properties, &["name", "namespace", "value", "threshold", "observedAt"])
}

fn object(properties: &Value, required: &[&str]) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn number(description: &str) -> Value {
    let description = format!("{description} Text beyond 2^53, where JavaScript would change its digits.");
    json!({"type": ["number", "string"], "description": description})
}

/// The schema of an RFC 3339 time in UTC.
fn time(description: &str) -> Value {
    json!({"type": "string", "format": "date-time", "description": description})
}
