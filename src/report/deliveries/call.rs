//! Calls to the apiserver about the objects, so many at once, each in its turn and under the claim.

use std::{sync::Arc, time::Duration};

use kube::{
    Api, Client,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;
use tokio::{sync::Semaphore, time::sleep};
use tracing::{debug, warn};

use super::{
    Answer, DeliveryRef, Done, Entry,
    object::{holds_event, labels, owner, status, version},
};
use crate::{
    api::{
        WebhookDelivery,
        webhook_delivery::{DEFAULT_TTL, REDELIVER_ANNOTATION, WebhookDeliverySpec, WebhookKind, WebhookReference},
    },
    calls::{Hush, pause, within},
    causes::{Causes, is_unknown_kind, lacks_right},
    engine::Keep,
    event::object::Uid,
    ledger::contents::Reason,
    report::writer::FIELD_MANAGER,
    subscription::resolve::WebhookRef,
};

const REQUEST: Duration = Duration::from_secs(10);
static NOT_CREATED: Hush = Hush::new();
static NOT_ANSWERED: Hush = Hush::new();

/// Calls to the apiserver, each tried until it is answered for good. One that is to be tried again holds up no other.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) client: Client,
    pub(super) may_write: Arc<dyn Fn() -> bool + Send + Sync>,
    pub(super) permits: Arc<Semaphore>,
}

impl Call {
    fn api(&self, namespace: &str) -> Api<WebhookDelivery> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Makes a request in its turn, and not before the claim holds.
    async fn request<T>(&self, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
        let _permit = loop {
            // The semaphore is never closed.
            let permit = self.permits.acquire().await;
            if (self.may_write)() {
                break permit;
            }
            drop(permit);
            sleep(Duration::from_millis(100)).await;
        };
        within(REQUEST, request).await
    }

    pub(super) async fn answered(self, answer: Answer) -> Done {
        let version = self.answer(&answer).await.unwrap_or_default();
        Done::Answered { object: answer.object.uid, version }
    }

    /// The object as it is now, if it is.
    pub(super) async fn read(&self, namespace: &str, name: &str) -> Option<Box<WebhookDelivery>> {
        let api = self.api(namespace);
        let mut failures = 0;
        loop {
            match self.request(api.get_opt(name)).await {
                Ok(object) => return object.map(Box::new),
                Err(error) => {
                    warn!(namespace, name, error = %Causes(&error), "a WebhookDelivery was not read; trying again");
                }
            }
            sleep(pause(failures)).await;
            failures += 1;
        }
    }

    /// Creates the object of a given-up delivery; `None` where it cannot be had, for good.
    pub(super) async fn keep(&self, webhook: &WebhookRef, keep: &Keep) -> Option<(Uid, Entry)> {
        let Keep { delivery, event, given_up, .. } = keep;
        let name = delivery.object_name();
        let object = WebhookDelivery {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels(webhook, event.event_type)),
                owner_references: Some(vec![owner(webhook)]),
                ..ObjectMeta::default()
            },
            spec: WebhookDeliverySpec {
                webhook_ref: WebhookReference { kind: WebhookKind::Webhook, name: webhook.name.clone() },
                test: None,
                event_id: Some(event.id.to_string()),
                ttl: DEFAULT_TTL.to_owned(),
            },
            status: None,
        };
        let api = self.api(&webhook.namespace);
        let mut failures = 0;
        let created = loop {
            let error = match self.request(api.create(&PostParams::default(), &object)).await {
                Ok(created) => break created,
                Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => {
                    match self.request(api.get(&name)).await {
                        Ok(found) if found.spec == object.spec || holds_event(&found, &object.spec) => break found,
                        // Somebody else's: it names another Webhook or another event, or does not last.
                        Ok(found) => {
                            let uid = found.metadata.uid.as_deref().and_then(Uid::parse)?;
                            self.delete(&webhook.namespace, &name, uid).await;
                            // It may be held by finalizers.
                            sleep(pause(failures)).await;
                            failures += 1;
                            continue;
                        }
                        Err(error) => error,
                    }
                }
                Err(kube::Error::Api(status)) if is_final(status.code, &status.message) => {
                    warn!(
                        namespace = webhook.namespace, webhook = webhook.name, event = %event.id, error = status.message,
                        "a WebhookDelivery was refused; the delivery is dropped"
                    );
                    return None;
                }
                Err(error) => error,
            };
            if let Some(more) = NOT_CREATED.admit() {
                warn!(namespace = webhook.namespace, name, more, error = %Causes(&error), "a WebhookDelivery was not created; trying again");
            }
            sleep(pause(failures)).await;
            failures += 1;
        };
        let uid = created.metadata.uid.as_deref().and_then(Uid::parse)?;
        let mut entry = Entry {
            version: version(&created),
            namespace: webhook.namespace.clone(),
            name: name.clone(),
            webhook: webhook.name.clone(),
            bytes: event.body.len(),
            spent: false,
            expires: None,
        };
        if holds_event(&created, &object.spec) {
            return Some((uid, entry));
        }
        let (reason, message) = match given_up.reason {
            Reason::Exhausted => ("Exhausted", "the endpoint did not acknowledge the delivery within its retries"),
            Reason::EndpointGone => ("EndpointGone", "the endpoint answered 410 Gone"),
            Reason::BoundReached => ("BoundReached", "too many deliveries were pending for another to wait"),
        };
        let object = DeliveryRef {
            uid,
            namespace: webhook.namespace.clone(),
            name,
            webhook: webhook.name.clone(),
            generation: created.metadata.generation.unwrap_or_default(),
            conditions: Vec::new(),
            request: None,
            only: None,
        };
        let answer = Answer {
            object,
            webhook: None,
            event: Some(Arc::clone(event)),
            test: false,
            delivered: false,
            reason,
            message: format!(
                "{message}; kubectl annotate whd {} {REDELIVER_ANNOTATION}=$(date -Is) --overwrite sends it again",
                delivery.object_name()
            ),
            attempts: given_up.attempts,
            status_code: given_up.status_code,
            error: given_up.error.clone(),
            at: given_up.at,
        };
        entry.version = self.answer(&answer).await?;
        Some((uid, entry))
    }

    /// Writes how a delivery ended, and tells the object's version then; `None` where the object is gone.
    async fn answer(&self, answer: &Answer) -> Option<u64> {
        let DeliveryRef { namespace, name, uid, only, .. } = &answer.object;
        let api = self.api(namespace);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let header = |mut rest: serde_json::Value| {
            rest["apiVersion"] = "llmtune.io/v1alpha1".into();
            rest["kind"] = "WebhookDelivery".into();
            rest["metadata"]["name"] = name.as_str().into();
            // With the uid an object that was deleted and created anew under this name is left alone.
            rest["metadata"]["uid"] = uid.to_string().into();
            if let Some(version) = only {
                rest["metadata"]["resourceVersion"] = version.to_string().into();
            }
            rest
        };
        let status = match serde_json::to_value(status(answer)) {
            Ok(status) => header(json!({"status": status})),
            Err(error) => {
                warn!(namespace, name, %error, "a WebhookDelivery's status cannot be written");
                return None;
            }
        };
        // A test is made by its user: its owner and its labels come with its answer.
        let marks = match (&answer.webhook, &answer.event) {
            (Some(webhook), Some(event)) if answer.test => {
                let owners = [owner(webhook)];
                Some(header(
                    json!({"metadata": {"labels": labels(webhook, event.event_type), "ownerReferences": owners}}),
                ))
            }
            _ => None,
        };
        let mut failures = 0;
        loop {
            let mut result = self.request(api.patch_status(name, &params, &Patch::Apply(&status))).await;
            if let (Ok(_), Some(marks)) = (&result, &marks) {
                result = self.request(api.patch(name, &params, &Patch::Apply(marks))).await;
            }
            let error = match result {
                Ok(object) => return Some(version(&object)),
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {
                    debug!(namespace, name, error = status.message, "a WebhookDelivery's status was refused");
                    return None;
                }
                Err(error) => error,
            };
            if let Some(more) = NOT_ANSWERED.admit() {
                warn!(namespace, name, more, error = %Causes(&error), "a WebhookDelivery's status was not written; trying again");
            }
            sleep(pause(failures)).await;
            failures += 1;
        }
    }

    pub(super) async fn delete(&self, namespace: &str, name: &str, uid: Uid) {
        let preconditions = Preconditions { uid: Some(uid.to_string()), resource_version: None };
        let params = DeleteParams::default().preconditions(preconditions);
        let mut failures = 0;
        loop {
            match self.request(self.api(namespace).delete(name, &params)).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                Err(error) => {
                    warn!(namespace, name, error = %Causes(&error), "a WebhookDelivery was not deleted; trying again");
                }
            }
            sleep(pause(failures)).await;
            failures += 1;
        }
    }
}

/// Whether a creation that was refused so will be refused again: a quota, a policy, a namespace that goes. The operator's
/// missing rights and a missing kind are mended by whoever installs it.
fn is_final(code: u16, message: &str) -> bool {
    matches!(code, 403 | 404 | 422) && !lacks_right(code, message) && !is_unknown_kind(code, message)
}
