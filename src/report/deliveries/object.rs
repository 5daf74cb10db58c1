//! The object itself: its name in labels, its owner, what its status says, and the event that it holds.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};

use super::Answer;
use crate::{
    api::{
        WebhookDelivery,
        webhook_delivery::{DeliveredEvent, DeliveryAttempt, EventObject, WebhookDeliverySpec, WebhookDeliveryStatus},
    },
    event::{
        Event, EventType,
        body::Opened,
        id::EventId,
        object::{Facts, Uid},
    },
    subscription::resolve::WebhookRef,
};

const WEBHOOK_LABEL: &str = "llmtune.io/webhook";
const EVENT_LABEL: &str = "llmtune.io/event";

pub(super) fn version(object: &WebhookDelivery) -> u64 {
    object.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// Whether it is the object of this delivery, and has its event.
pub(super) fn holds_event(found: &WebhookDelivery, spec: &WebhookDeliverySpec) -> bool {
    let event = found.status.as_ref().and_then(|status| status.event.as_ref());
    found.spec.webhook_ref == spec.webhook_ref && event.is_some_and(|event| Some(&event.id) == spec.event_id.as_ref())
}

pub(super) fn labels(webhook: &WebhookRef, event: EventType) -> BTreeMap<String, String> {
    [(WEBHOOK_LABEL.to_owned(), webhook.name.clone()), (EVENT_LABEL.to_owned(), event.name().to_owned())].into()
}

pub(super) fn owner(webhook: &WebhookRef) -> OwnerReference {
    OwnerReference {
        api_version: "llmtune.io/v1alpha1".into(),
        kind: "Webhook".into(),
        name: webhook.name.clone(),
        uid: webhook.uid.to_string(),
        ..OwnerReference::default()
    }
}

pub(super) fn status(answer: &Answer) -> WebhookDeliveryStatus {
    let whole = |at: Timestamp| Time(Timestamp::from_second(at.as_second()).unwrap_or(at));
    let made = i32::try_from(answer.attempts).unwrap_or(i32::MAX);
    let delivered = condition(answer, "Delivered", answer.delivered, answer.reason, &answer.message);
    let finished = condition(answer, "Finished", true, answer.reason, &answer.message);
    WebhookDeliveryStatus {
        observed_generation: Some(answer.object.generation),
        conditions: vec![delivered, finished],
        event: answer.event.as_deref().map(|event| kept_event(event, answer.test)),
        attempts: Some(made),
        last_attempt: (made > 0).then(|| DeliveryAttempt {
            time: whole(answer.at),
            attempt: made,
            status_code: answer.status_code.map(i32::from),
            error: answer.error.clone(),
        }),
        finished_at: Some(whole(answer.at)),
        last_handled_redeliver_at: answer.object.request.clone(),
    }
}

pub(super) fn condition(answer: &Answer, kind: &str, is: bool, reason: &str, message: &str) -> Condition {
    let status = if is { "True" } else { "False" };
    let before = answer.object.conditions.iter().find(|before| before.type_ == kind && before.status == status);
    let at = Timestamp::from_second(answer.at.as_second()).unwrap_or(answer.at);
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: Some(answer.object.generation),
        last_transition_time: before.map_or(Time(at), |before| before.last_transition_time.clone()),
    }
}

pub(super) fn holds(conditions: &[Condition], kind: &str) -> bool {
    conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

pub(super) fn kept_event(event: &Event, test: bool) -> DeliveredEvent {
    let kind = match event.object.facts {
        Facts::Training(_) => "TrainingJob",
        Facts::Serving(_) => "Deployment",
    };
    let object = EventObject {
        kind: Some(kind.into()),
        name: Some(event.object.name.clone()),
        uid: Some(event.object.uid.to_string()),
    };
    let body: Option<serde_json::Value> = serde_json::from_str(&event.body.close(event.observed_at)).ok();
    let occurred_at = body.and_then(|body| body["occurredAt"].as_str().and_then(|text| text.parse().ok()));
    DeliveredEvent {
        id: event.id.to_string(),
        event_type: event.event_type.name().to_owned(),
        occurred_at: occurred_at.map(Time),
        sequence: i64::from(event.sequence),
        test,
        object: if test { EventObject::default() } else { object },
        body: event.body.as_str().to_owned(),
    }
}

/// The event that a status keeps.
pub(super) fn event(namespace: &str, kept: &DeliveredEvent) -> Option<Event> {
    let id = EventId::parse(&kept.id)?;
    let event_type = EventType::parse(&kept.event_type)?;
    let uid = Uid::parse(kept.object.uid.as_deref()?)?;
    Some(Event {
        id,
        event_type,
        object: Arc::new(event_type.outline(uid, namespace.to_owned(), kept.object.name.clone().unwrap_or_default())),
        observed_at: Timestamp::now(),
        sequence: u32::try_from(kept.sequence).unwrap_or_default(),
        body: Opened::kept(kept.body.clone()),
    })
}
