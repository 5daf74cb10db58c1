//! Selects the deliveries of a command and formats them. Pure.

use std::{collections::HashSet, time::Duration};

use jiff::{SignedDuration, Timestamp};
use kube::api::DynamicObject;

use super::{
    age::age,
    objects::{name, part},
    table::{Cell, Table, Tone},
};
use llmtune_api::{
    conditions,
    webhook::DeliverySummary,
    webhook_delivery::{DeliveredEvent, REDELIVER_ANNOTATION, WebhookDeliveryStatus},
};

/// The state of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Delivered,
    Failed,
    /// It is requested and has no result yet.
    Pending,
}

#[derive(Clone, Debug)]
pub struct Delivery {
    /// Name of its object. `None` if only the Webhook's status lists the delivery.
    pub name: Option<String>,
    pub standing: Standing,
    /// `Delivered`, or the reason of the failure in one word.
    pub result: String,
    pub event: String,
    pub event_id: String,
    /// The object of the event.
    pub object: String,
    /// A test event.
    pub test: bool,
    /// The object holds an event that can be sent again.
    pub holds_event: bool,
    pub attempts: Option<i32>,
    pub status_code: Option<i32>,
    pub error: String,
    /// When it finished, or else when it began.
    pub at: Option<Timestamp>,
    /// The last request that the operator has handled.
    pub handled: Option<String>,
}

impl Delivery {
    /// A delivery that has an object. It counts as pending if this release cannot parse its status.
    pub fn of(object: &DynamicObject) -> Self {
        let status: WebhookDeliveryStatus = part(object, "status").unwrap_or_default();
        let asked = object.metadata.annotations.as_ref().and_then(|all| all.get(REDELIVER_ANNOTATION));
        let delivered = conditions::get(&status.conditions, "Delivered");
        let finished = conditions::holds(&status.conditions, "Finished");
        let open = asked.is_some() && asked != status.last_handled_redeliver_at.as_ref();
        let standing = match delivered {
            _ if !finished || open => Standing::Pending,
            Some(condition) if condition.status == "True" => Standing::Delivered,
            _ => Standing::Failed,
        };
        let result = match (standing, delivered) {
            (Standing::Pending, _) => "Pending".to_owned(),
            (Standing::Failed, Some(condition)) => condition.reason.clone(),
            (Standing::Failed, None) => "Failed".to_owned(),
            (Standing::Delivered, _) => "Delivered".to_owned(),
        };
        let spec_event = object.data.pointer("/spec/test/event").and_then(serde_json::Value::as_str);
        let attempt = status.last_attempt.as_ref();
        let why = || delivered.filter(|_| standing == Standing::Failed).map(|condition| condition.message.clone());
        Self {
            name: Some(name(object).to_owned()),
            standing,
            result,
            event: status
                .event
                .as_ref()
                .map(|event| event.event_type.clone())
                .or(spec_event.map(str::to_owned))
                .unwrap_or_default(),
            event_id: status.event.as_ref().map(|event| event.id.clone()).unwrap_or_default(),
            object: status
                .event
                .as_ref()
                .map(|event| about(event, object.metadata.namespace.as_deref()))
                .unwrap_or_default(),
            test: spec_event.is_some(),
            holds_event: status.event.is_some(),
            attempts: status.attempts,
            status_code: attempt.and_then(|attempt| attempt.status_code),
            error: attempt.and_then(|attempt| attempt.error.clone()).or_else(why).unwrap_or_default(),
            at: status.finished_at.as_ref().or(object.metadata.creation_timestamp.as_ref()).map(|time| time.0),
            handled: status.last_handled_redeliver_at,
        }
    }

    /// One of the ten newest deliveries, from the Webhook's status.
    fn recent(summary: &DeliverySummary) -> Self {
        let delivered = summary.result == "Delivered";
        Self {
            name: None,
            standing: if delivered { Standing::Delivered } else { Standing::Failed },
            result: summary.result.clone(),
            event: summary.event.clone(),
            event_id: summary.event_id.clone(),
            object: summary.object.clone(),
            test: false,
            holds_event: false,
            attempts: Some(summary.attempts),
            status_code: summary.status_code,
            error: String::new(),
            at: Some(summary.time.0),
            handled: None,
        }
    }
}

/// `trainingjob/llama-sft`, with the namespace if it differs from the delivery's.
fn about(event: &DeliveredEvent, home: Option<&str>) -> String {
    if event.test {
        return "(test)".into();
    }
    let object = &event.object;
    let kind = object.kind.as_deref().unwrap_or_default().to_lowercase();
    let namespace = object.namespace.clone().filter(|namespace| Some(namespace.as_str()) != home);
    let parts = [Some(kind), namespace, object.name.clone()];
    parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}

/// Criteria of a command.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection {
    /// Only deliveries that were not acknowledged.
    pub failed: bool,
    /// Only deliveries that finished within this time.
    pub since: Option<Duration>,
}

impl Selection {
    pub fn admits(self, delivery: &Delivery, now: Timestamp) -> bool {
        let recent_enough = |since: Duration| {
            let begin = SignedDuration::try_from(since).ok().and_then(|since| now.checked_sub(since).ok());
            begin.is_none_or(|begin| delivery.at.is_some_and(|at| at >= begin))
        };
        (!self.failed || delivery.standing == Standing::Failed) && self.since.is_none_or(recent_enough)
    }

    /// Whether to send it again. A test is repeated as a new test instead; without an event there is nothing to send.
    pub fn redelivers(self, delivery: &Delivery, now: Timestamp) -> bool {
        delivery.holds_event && !delivery.test && self.admits(delivery, now)
    }
}

/// A Webhook's deliveries, newest first: those with objects, and those that only its status lists.
pub fn all<'a>(kept: impl IntoIterator<Item = &'a DynamicObject>, recent: &[DeliverySummary]) -> Vec<Delivery> {
    let mut all: Vec<Delivery> = kept.into_iter().map(Delivery::of).collect();
    let known: HashSet<String> = all.iter().map(|delivery| delivery.event_id.clone()).collect();
    all.extend(recent.iter().filter(|summary| !known.contains(&summary.event_id)).map(Delivery::recent));
    all.sort_by_key(|delivery| std::cmp::Reverse(delivery.at));
    all
}

/// The deliveries as a table.
pub fn table<'a>(deliveries: impl IntoIterator<Item = &'a Delivery>, wide: bool, now: Timestamp) -> Table {
    let mut header = vec!["NAME", "EVENT", "OBJECT", "RESULT", "ATTEMPTS", "ANSWER", "AGE"];
    if wide {
        header.extend(["EVENT-ID", "ERROR"]);
    }
    let mut table = Table::new(&header);
    for delivery in deliveries {
        let tone = match delivery.standing {
            Standing::Delivered => Tone::Good,
            Standing::Failed => Tone::Bad,
            Standing::Pending => Tone::Faint,
        };
        let number = |number: Option<i32>| Cell::from(number.map(|number| number.to_string()));
        let mut row = vec![
            delivery.name.clone().into(),
            Cell::new(&delivery.event),
            Cell::new(&delivery.object),
            Cell::new(&delivery.result).toned(tone),
            number(delivery.attempts),
            number(delivery.status_code),
            delivery.at.map(|at| age(at, now)).into(),
        ];
        if wide {
            row.extend([Cell::new(&delivery.event_id), Cell::new(&delivery.error)]);
        }
        table.row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::table::Paint;

    const NOW: i64 = 1_700_000_000;

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).unwrap()
    }

    fn ago(seconds: i64) -> String {
        Timestamp::from_second(NOW - seconds).unwrap().to_string()
    }

    fn condition(kind: &str, status: &str, reason: &str) -> Value {
        json!({"type": kind, "status": status, "reason": reason, "message": "why", "lastTransitionTime": ago(0)})
    }

    fn object(name: &str, annotation: Option<&str>, status: &Value) -> DynamicObject {
        let annotations = annotation.map(|value| json!({REDELIVER_ANNOTATION: value}));
        serde_json::from_value(json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery",
            "metadata": {
                "name": name, "namespace": "research", "creationTimestamp": ago(9000), "annotations": annotations
            },
            "spec": {"webhookRef": {"kind": "Webhook", "name": "ci"}, "eventId": "evt_1", "ttl": "168h"},
            "status": status
        }))
        .unwrap()
    }

    fn given_up(name: &str, seconds_ago: i64) -> DynamicObject {
        object(
            name,
            None,
            &json!({
                "conditions": [condition("Delivered", "False", "Exhausted"), condition("Finished", "True", "Exhausted")],
                "event": {
                    "id": format!("evt_{name}"), "type": "training.failed", "sequence": 2, "body": "",
                    "object": {"kind": "TrainingJob", "namespace": "research", "name": "llama"}
                },
                "attempts": 6, "finishedAt": ago(seconds_ago),
                "lastAttempt": {"time": ago(seconds_ago), "attempt": 6, "statusCode": 503, "error": "HTTP 503"}
            }),
        )
    }

    fn delivered(mut object: DynamicObject) -> DynamicObject {
        object.data["status"]["conditions"][0] = condition("Delivered", "True", "Acknowledged");
        object
    }

    #[test]
    fn requested_redelivery_is_pending_until_handled() {
        let standing = |object: &DynamicObject| Delivery::of(object).standing;
        let mut asked = given_up("a", 60);
        assert_eq!(standing(&asked), Standing::Failed);
        asked.metadata.annotations = Some([(REDELIVER_ANNOTATION.to_owned(), "1".to_owned())].into());
        assert_eq!(standing(&asked), Standing::Pending);
        asked.data["status"]["lastHandledRedeliverAt"] = "1".into();
        assert_eq!(standing(&asked), Standing::Failed);
        assert_eq!(standing(&delivered(asked)), Standing::Delivered);
        assert_eq!(standing(&object("b", None, &json!({}))), Standing::Pending);
        // A status written by a later release.
        assert_eq!(standing(&object("c", None, &json!({"conditions": "none"}))), Standing::Pending);
    }

    #[test]
    fn selects_by_result_and_time() {
        let all = [given_up("new", 60), given_up("old", 7300), delivered(given_up("done", 60))]
            .map(|object| Delivery::of(&object));
        let selected = |failed, since: Option<u64>| {
            let selection = Selection { failed, since: since.map(Duration::from_secs) };
            let chosen = all.iter().filter(|delivery| selection.redelivers(delivery, now()));
            chosen.map(|delivery| delivery.name.clone().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(selected(false, None), ["new", "old", "done"]);
        assert_eq!(selected(true, None), ["new", "old"]);
        assert_eq!(selected(false, Some(7200)), ["new", "done"]);
        assert_eq!(selected(true, Some(7200)), ["new"]);
        assert_eq!(selected(true, Some(u64::MAX)), ["new", "old"]);
    }

    #[test]
    fn tests_and_objects_without_event_are_not_redelivered() {
        let mut test = given_up("test", 60);
        test.data["spec"] = json!({"webhookRef": {"name": "ci"}, "test": {"event": "training.failed"}});
        let mut empty = given_up("empty", 60);
        empty.data["status"].as_object_mut().unwrap().remove("event");
        for object in [test, empty] {
            let delivery = Delivery::of(&object);
            assert!(!Selection::default().redelivers(&delivery, now()), "{delivery:?}");
            assert!(Selection::default().admits(&delivery, now()), "{delivery:?}");
        }
    }

    #[test]
    fn merges_objects_and_status_newest_first() {
        let summary = |id: &str, seconds: i64| -> DeliverySummary {
            serde_json::from_value(json!({
                "time": ago(seconds), "event": "training.started", "eventId": id, "object": "trainingjob/llama",
                "result": "Delivered", "attempts": 1, "statusCode": 200
            }))
            .unwrap()
        };
        let recent = [summary("evt_1", 5), summary("evt_a", 70), summary("evt_2", 100)];
        let all = all(&[given_up("a", 60)], &recent);
        let expected = "\
NAME     EVENT              OBJECT              RESULT      ATTEMPTS   ANSWER   AGE
<none>   training.started   trainingjob/llama   Delivered   1          200      5s
a        training.failed    trainingjob/llama   Exhausted   6          503      60s
<none>   training.started   trainingjob/llama   Delivered   1          200      100s
";
        assert_eq!(table(&all, false, now()).text(Paint(false), None), expected);
        let wide = table(&all, true, now()).text(Paint(false), None);
        assert!(wide.lines().nth(2).unwrap().ends_with("60s    evt_a      HTTP 503"), "{wide}");
    }
}
