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
            "data": {"type": "object", "description": "What is known of the object; what is not known is left out."},
            "occurredAt": time("When it happened, by the object's own word where it has one."),
            "sequence": {
                "type": "integer", "minimum": 0,
                "description": "The how-manieth event of its object it is, from 1: a retry may come after a later one."
            },
            "cluster": text("The cluster's name, where the operator is told it."),
            "test": {"const": true, "description": "A user asked for it as a test: nothing has happened."},
            "truncated": {"const": true, "description": "The body would have been longer than 256 KiB: metrics, then the largest members of data are left out."},
            "deliveredAt": time("When this attempt was made, in whole seconds.")
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
        "jobId": text("The platform's id of the job, else the object's uid."),
        "name": text("The object's name."),
        "namespace": text("The object's namespace."),
        "baseModel": text("The model that is trained."),
        "trainingMethod": text("How it is trained, such as sft."),
        "status": {"enum": status, "description": "How the job stands."},
        "metrics": {
            "type": "object",
            "additionalProperties": {"type": ["number", "string", "null"]},
            "description": "Figures by name; text where they are no numbers of JSON, such as NaN, and for integers beyond 2^53 whose digits JavaScript would change."
        },
        "progress": {"type": "number", "minimum": 0, "maximum": 100, "description": "How much of the training is done, in percent."},
        "run": {"type": "integer", "minimum": 0, "description": "Which run of the job it is, from 1."},
        "createdAt": time("When the object was created."),
        "startedAt": time("When the run started."),
    });
    if event != EventType::TrainingStarted {
        properties["artifact"] = text("Where the trained model lies.");
        properties["completedAt"] = time("When the run ended.");
    }
    if event == EventType::TrainingFailed {
        properties["error"] = json!({
            "type": "object",
            "properties": {"reason": text("A word for it."), "message": text("The same for people.")},
            "description": "Why it failed."
        });
    }
    object(&properties, &["name", "namespace", "status"])
}

fn serving() -> Value {
    let properties = json!({
        "deploymentId": text("The platform's id of the deployment, else the object's uid."),
        "name": text("The object's name."),
        "namespace": text("The object's namespace."),
        "modelId": text("The model that is served."),
        "version": text("Its version."),
        "environment": text("Where it serves, such as production."),
        "endpoint": text("The URL at which it serves."),
    });
    object(&properties, &["name", "namespace"])
}

fn usage() -> Value {
    let properties = json!({
        "name": text("The object's name."),
        "namespace": text("The object's namespace."),
        "metric": text("What is measured: the query, or the quota and its resource."),
        "value": number("The figure."),
        "limit": number("What percentages are of."),
        "percent": {
            "type": ["number", "string", "null"],
            "description": "The figure in percent of the limit, rounded down to three decimals; null where no double holds it, text beyond 2^53 where JavaScript would change its digits."
        },
        "threshold": text("The threshold that is reached, as the spec spells it."),
        "unit": text("What is counted."),
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
