//! Builds the object: its labels, owner, status and event. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use super::{Answer, DeliveryRef, Subject};
use crate::report::references;
use llmtune_api::{
    WebhookDelivery,
    conditions::{self, whole_seconds},
    webhook_delivery::{
        DEFAULT_TTL, DeliveredEvent, DeliveryAttempt, EVENT_LABEL, EventObject, KIND_LABEL, REDELIVER_ANNOTATION,
        WEBHOOK_LABEL, WebhookDeliverySpec, WebhookDeliveryStatus, WebhookReference,
    },
};
use llmtune_core::{
    engine::StoreDeadLetter,
    event::{
        Event, EventType,
        body::OpenBody,
        format::Forms,
        id::EventId,
        object::{Object, Uid},
    },
    subscription::WebhookRef,
};

/// Returns the object's uid, if it is valid.
pub(super) fn uid(object: &WebhookDelivery) -> Option<Uid> {
    Uid::parse(object.metadata.uid.as_deref()?)
}

/// Returns the resourceVersion as a number, or 0 if it is not a number.
pub(super) fn version(metadata: &ObjectMeta) -> u64 {
    metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// Reports whether the object belongs to this delivery and has its event.
pub(super) fn holds_event(found: &WebhookDelivery, spec: &WebhookDeliverySpec) -> bool {
    let event = found.status.as_ref().and_then(|status| status.event.as_ref());
    found.spec.webhook_ref == spec.webhook_ref && event.is_some_and(|event| Some(&event.id) == spec.event_id.as_ref())
}

/// Builds the object of a dead letter under its first, second, … name. The status adds the event.
pub(super) fn given_up(webhook: &WebhookRef, dead_letter: &StoreDeadLetter, number: u32) -> WebhookDelivery {
    let name = match (dead_letter.delivery.object_name(), number) {
        (name, 0 | 1) => name,
        (name, number) => format!("{name}-{number}"),
    };
    WebhookDelivery {
        metadata: ObjectMeta { name: Some(name), ..belonging(webhook, dead_letter.event.event_type) },
        spec: WebhookDeliverySpec {
            webhook_ref: WebhookReference { kind: webhook.kind, name: webhook.name.clone() },
            test: None,
            event_id: Some(dead_letter.event.id.to_string()),
            ttl: DEFAULT_TTL.to_owned(),
        },
        status: None,
    }
}

/// Returns the command that sends a delivery again, for any POSIX shell and `date`.
pub(super) fn again(namespace: &str, name: &str) -> String {
    format!(
        "kubectl -n {namespace} annotate whd {name} {REDELIVER_ANNOTATION}=$(date -u +%Y-%m-%dT%H:%M:%SZ) --overwrite"
    )
}

/// Returns the outcome of a dead letter.
pub(super) fn giving_up(object: DeliveryRef, StoreDeadLetter { event, given_up, .. }: &StoreDeadLetter) -> Answer {
    let again = again(&object.namespace, &object.name);
    Answer {
        object,
        subject: Subject::Event(Arc::clone(event)),
        delivered: false,
        reason: given_up.reason.name(),
        message: format!("{}; {again} sends it again", given_up.reason.message()),
        attempts: given_up.attempts,
        status_code: given_up.status_code,
        error: given_up.error.clone(),
        at: given_up.at,
    }
}

/// Returns the metadata that makes an object a Webhook's: labels to select it, and an owner that deletes it.
pub(super) fn belonging(webhook: &WebhookRef, event: EventType) -> ObjectMeta {
    let labels = [
        (WEBHOOK_LABEL, webhook.name.clone()),
        (KIND_LABEL, webhook.kind.to_string()),
        (EVENT_LABEL, event.name().to_owned()),
    ];
    ObjectMeta {
        labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
        owner_references: references::owner(webhook).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// Returns the status for an outcome.
pub(super) fn status(answer: &Answer) -> WebhookDeliveryStatus {
    let made = i32::try_from(answer.attempts).unwrap_or(i32::MAX);
    let Answer { object, reason, message, at, .. } = answer;
    let condition = |kind, holds| {
        let status = conditions::status(holds);
        conditions::next(&object.conditions, kind, status, reason, message, object.generation, *at)
    };
    WebhookDeliveryStatus {
        observed_generation: Some(object.generation),
        conditions: vec![condition("Delivered", answer.delivered), condition("Finished", true)],
        event: match &answer.subject {
            Subject::Test { event, .. } => Some(delivered_event(event, true)),
            Subject::Event(event) => Some(delivered_event(event, false)),
            Subject::Found(event) => event.as_deref().cloned(),
        },
        attempts: Some(made),
        // Earlier attempts are unknown if the delivery was given up without another attempt.
        last_attempt: (answer.status_code.is_some() || answer.error.is_some()).then(|| DeliveryAttempt {
            time: whole_seconds(*at),
            attempt: made,
            status_code: answer.status_code.map(i32::from),
            error: answer.error.clone(),
        }),
        finished_at: Some(whole_seconds(*at)),
        last_handled_redeliver_at: object.request.clone(),
    }
}

fn delivered_event(event: &Event, test: bool) -> DeliveredEvent {
    let ObjectReference { kind, namespace, name, uid, .. } = references::object(&event.object);
    DeliveredEvent {
        id: event.id.to_string(),
        event_type: event.event_type.name().to_owned(),
        occurred_at: event.body.occurred_at().map(Time),
        sequence: i64::from(event.sequence),
        test,
        object: if test { EventObject::default() } else { EventObject { kind, namespace, name, uid } },
        body: event.body.as_str().to_owned(),
    }
}

/// Returns the event in a status. `namespace` is the delivery's own.
pub(super) fn event(namespace: &str, kept: &DeliveredEvent) -> Option<Event> {
    let id = EventId::parse(&kept.id)?;
    let event_type = EventType::parse(&kept.event_type)?;
    let EventObject { uid, namespace: of, name, .. } = &kept.object;
    let uid = Uid::parse(uid.as_deref()?)?;
    let namespace = of.as_deref().unwrap_or(namespace).to_owned();
    Some(Event {
        id,
        event_type,
        object: Arc::new(Object::of_event(event_type, uid, namespace, name.clone().unwrap_or_default())),
        observed_at: Timestamp::now(),
        sequence: u32::try_from(kept.sequence).unwrap_or_default(),
        body: OpenBody::stored(kept.body.clone()),
        forms: Forms::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use llmtune_api::webhook_delivery::WebhookKind;
    use llmtune_core::{
        event::{id::DeliveryId, sample::sample},
        ledger::contents::{GivenUp, Reason},
    };

    #[test]
    fn no_attempt_is_reported_if_none_was_made() {
        let at = Timestamp::UNIX_EPOCH;
        let event = Arc::new(sample(EventType::ModelDeployed, Uid::from_u128(2), "research", None, at));
        let told = |given_up| {
            let webhook = Uid::from_u128(1);
            let dead_letter = StoreDeadLetter {
                webhook,
                delivery: DeliveryId::new(event.id, webhook),
                event: Arc::clone(&event),
                given_up,
            };
            let webhook = WebhookReference { kind: WebhookKind::Webhook, name: "ci".into() };
            let object = DeliveryRef {
                uid: Uid::from_u128(3),
                namespace: "research".into(),
                name: dead_letter.delivery.object_name(),
                webhook,
                generation: 1,
                conditions: Vec::new(),
                request: None,
                only: None,
            };
            status(&giving_up(object, &dead_letter))
        };
        let gone = GivenUp { attempts: 2, ..GivenUp::unattempted(Reason::EndpointGone, at) };
        let of_gone = told(gone.clone());
        assert_eq!((of_gone.attempts, of_gone.last_attempt), (Some(2), None));
        let failed = told(GivenUp { status_code: Some(503), ..gone });
        assert_eq!(failed.last_attempt.map(|last| (last.attempt, last.status_code)), Some((2, Some(503))));
    }
}
