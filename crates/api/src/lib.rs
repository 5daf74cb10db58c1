#![doc = include_str!("../README.md")]
//!
//! The custom resources of group `llmtune.io` are in one file each. Validation and defaults are in the schemas
//! (structural, with CEL rules).

// Clippy takes the keys of several printcolumns for one attribute given twice.
#![allow(clippy::duplicated_attributes)]

pub mod cluster_webhook;
pub mod conditions;
pub mod duration;
pub mod event;
pub mod header;
#[cfg(feature = "ledger")]
pub mod ledger_segment;
pub mod payload;
pub mod reference;
pub mod secret;
pub mod selector;
pub mod signature;
pub mod training_job;
pub mod usage_threshold;
pub mod webhook;
pub mod webhook_delivery;
pub mod webhook_source;

use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

pub use cluster_webhook::ClusterWebhook;
#[cfg(feature = "ledger")]
pub use ledger_segment::LedgerSegment;
pub use training_job::TrainingJob;
pub use usage_threshold::UsageThreshold;
pub use webhook::Webhook;
pub use webhook_delivery::WebhookDelivery;
pub use webhook_source::WebhookSource;

/// Returns every custom resource definition, in the order in which `llmtune-webhooks crds` prints them; that of
/// `LedgerSegment` with the feature `ledger`.
pub fn definitions() -> Result<Vec<Value>, serde_json::Error> {
    let (webhook, mut cluster_webhook) = (Webhook::crd(), ClusterWebhook::crd());
    // Both kinds have the same columns.
    for (to, from) in cluster_webhook.spec.versions.iter_mut().zip(&webhook.spec.versions) {
        to.additional_printer_columns.clone_from(&from.additional_printer_columns);
    }
    let definitions = [
        webhook,
        cluster_webhook,
        WebhookDelivery::crd(),
        WebhookSource::crd(),
        TrainingJob::crd(),
        UsageThreshold::crd(),
        #[cfg(feature = "ledger")]
        LedgerSegment::crd(),
    ];
    let tidied = definitions.iter().map(|definition| {
        let mut definition = serde_json::to_value(definition)?;
        tidy(&mut definition);
        Ok(definition)
    });
    tidied.collect()
}

/// 1. Nothing is nullable: the apiserver then drops a null as if the field were absent, instead of storing it.
/// 2. Bounds of integers are written as integers.
/// 3. Descriptions contain no line breaks from the source.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, value| key != "nullable" || !value.is_boolean());
            for (key, value) in map {
                match value {
                    Value::String(text) if key == "description" => *text = text.replace('\n', " "),
                    _ => tidy(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Number(number) if number.is_f64() => {
            if let Some(whole) = number.as_f64().filter(|bound| bound.fract() == 0.0) {
                *value = json!(whole as i64);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Adds a rule to each item of a list, so that a refusal names the item.
fn each_item(rule: impl Into<String>, message: &'static str) -> impl FnMut(&mut Schema) {
    let rule = rule.into();
    move |list| {
        if let Some(Value::Object(item)) = list.get_mut("items") {
            item.insert("x-kubernetes-validations".into(), json!([{"rule": rule, "message": message}]));
        }
    }
}

/// Removes the CEL rules from a schema. A status repeats values that were admitted before; checking them again would cost CEL budget.
fn without_rules(schema: &mut Schema) {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.remove("x-kubernetes-validations");
                map.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    if let Some(members) = schema.as_object_mut() {
        members.remove("x-kubernetes-validations");
        members.values_mut().for_each(strip);
    }
}

const CONDITION_TYPE: &str =
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$";
const CONDITION_REASON: &str = "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$";

/// Default of a parent whose children have defaults: `{}`, so that the apiserver fills in each child.
fn empty_object() -> serde_json::Map<String, serde_json::Value> {
    serde_json::Map::new()
}

/// The initial status of an object. Without it, tools that wait for the object would consider it done where no operator runs: kstatus
/// treats an object without conditions as `Current`. The Gateway API's definitions do the same.
fn unobserved_conditions() -> Value {
    json!({"conditions": [{
        "type": "Ready", "status": "Unknown", "reason": "Pending",
        "message": "Waiting for the operator. Check that it is running and watches this namespace.",
        "lastTransitionTime": "1970-01-01T00:00:00Z"
    }]})
}

/// The schema of a list of `metav1.Condition`, with the bounds that apimachinery's own markers give.
fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "type": {"type": "string", "maxLength": 316, "pattern": CONDITION_TYPE, "description": "Type of the condition, in CamelCase."},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "True, False or Unknown."},
                "reason": {"type": "string", "minLength": 1, "maxLength": 1024, "pattern": CONDITION_REASON, "description": "Reason for the status, in CamelCase."},
                "message": {"type": "string", "maxLength": 32768, "description": "Human-readable details."},
                "lastTransitionTime": {"type": "string", "format": "date-time", "description": "When the status last changed."},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0, "description": "The metadata.generation that the condition was set for."}
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::{definitions, webhook, webhook_delivery};
    use crate::event::EventType;

    #[test]
    fn cluster_webhook_has_the_rules_and_columns_of_webhook() {
        let definitions = definitions().unwrap();
        let version = |kind: &str| {
            let of_kind = |definition: &&Value| definition["spec"]["names"]["kind"] == kind;
            definitions.iter().find(of_kind).unwrap()["spec"]["versions"][0].clone()
        };
        let (webhook, mut cluster_webhook) = (version("Webhook"), version("ClusterWebhook"));
        assert_eq!(cluster_webhook["additionalPrinterColumns"], webhook["additionalPrinterColumns"]);
        let schemas = [&webhook, &cluster_webhook].map(|version| &version["schema"]["openAPIV3Schema"]["properties"]);
        assert_eq!(schemas[0]["status"], schemas[1]["status"]);
        let spec = &mut cluster_webhook["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let selector = spec["properties"].as_object_mut().unwrap().remove("namespaceSelector").unwrap();
        let expected = &webhook["schema"]["openAPIV3Schema"]["properties"]["spec"];
        assert_eq!(selector["properties"], expected["properties"]["selector"]["properties"]);
        spec["description"] = expected["description"].clone();
        assert_eq!(spec, expected);
    }

    #[test]
    fn event_rules_and_messages_name_every_event() {
        let known: BTreeSet<&str> = EventType::ALL.into_iter().map(EventType::name).collect();
        for text in webhook::EVENT_RULE.iter().chain(&webhook_delivery::EVENT_RULE) {
            let words = text.split(|letter: char| !(letter.is_ascii_lowercase() || "._*".contains(letter)));
            let named: BTreeSet<&str> = words.filter(|word| word.contains('.') && !word.ends_with('*')).collect();
            assert_eq!(named, known, "{text}");
        }
    }
}
