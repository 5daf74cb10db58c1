//! Calls to the apiserver about `WebhookDelivery` objects, with bounded concurrency and under the claim.
//!
//! A response that the kind is not served is never final, unlike a response that the object does not exist: an
//! apiserver gives it for some seconds after its start, and while the custom resource definitions are reinstalled.

use std::{sync::Arc, time::Duration};

use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
    core::{PartialObjectMetaExt, Status},
};
use serde_json::json;
use tokio::{sync::Semaphore, time::sleep};
use tracing::{debug, warn};

use super::{
    Answer, DeliveryRef, Subject,
    object::{belonging, given_up, giving_up, holds_event, uid, version},
    state::DeliveryEntry,
};
use crate::{
    calls::{LogThrottle, pause, within},
    claim::Claim,
    report::status_writer::FIELD_MANAGER,
};
use llmtune_api::WebhookDelivery;
use llmtune_client::error_chain::{ErrorChain, is_unknown_kind, lacks_right};
use llmtune_core::{engine::StoreDeadLetter, event::object::Uid, subscription::WebhookRef};

/// Concurrent calls.
const CONCURRENT: usize = 8;
const REQUEST: Duration = Duration::from_secs(10);
/// The number of names that are tried for one object. Objects of others can have any of them.
const NAMES: u32 = 8;
/// How often an object is created again that others delete before its event is written.
const TRIES: u32 = 10;

/// The log message for a call that is repeated.
struct FailureLog {
    what: &'static str,
    throttle: LogThrottle,
}

static NOT_CREATED: FailureLog = FailureLog::new("a WebhookDelivery was not created");
static NOT_ANSWERED: FailureLog = FailureLog::new("the status of a WebhookDelivery was not written");
static NOT_READ: FailureLog = FailureLog::new("a WebhookDelivery was not read");
static NOT_DELETED: FailureLog = FailureLog::new("a WebhookDelivery was not deleted");

impl FailureLog {
    const fn new(what: &'static str) -> Self {
        Self { what, throttle: LogThrottle::new() }
    }
}

/// Why an object cannot be created.
enum Obstacle {
    /// The request is rejected, and would be again.
    Final(Box<Status>),
    /// An object of others has the name. Another name is tried.
    Taken,
    /// The object was deleted before its event was written. It is created again.
    Passing,
}

/// Calls to the apiserver. Each is repeated until its answer is final. A call that waits for its repetition delays no
/// other.
#[derive(Clone)]
pub(super) struct Call {
    client: Client,
    claim: Claim,
    permits: Arc<Semaphore>,
}

impl Call {
    /// `claim` is checked before each call.
    pub(super) fn new(client: Client, claim: Claim) -> Self {
        Self { client, claim, permits: Arc::new(Semaphore::new(CONCURRENT)) }
    }

    fn api(&self, namespace: &str) -> Api<WebhookDelivery> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Sends a request when a permit is free and the claim holds.
    async fn request<T>(&self, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
        let _permit = loop {
            // The semaphore is never closed.
            let permit = self.permits.acquire().await;
            if self.claim.holds() {
                break permit;
            }
            drop(permit);
            sleep(Duration::from_millis(100)).await;
        };
        within(REQUEST, request).await
    }

    /// Repeats a request until it succeeds or its rejection `is_final`.
    async fn insist<T, R: Future<Output = Result<T, kube::Error>>>(
        &self,
        (namespace, name): (&str, &str),
        log: &FailureLog,
        is_final: impl Fn(&Status) -> bool,
        request: impl Fn() -> R,
    ) -> Result<T, Box<Status>> {
        let mut failures = 0;
        loop {
            let error = match self.request(request()).await {
                Ok(answer) => return Ok(answer),
                Err(kube::Error::Api(status))
                    if is_final(&status) && !is_unknown_kind(status.code, &status.message) =>
                {
                    return Err(status);
                }
                Err(error) => error,
            };
            if let Some(more) = log.throttle.admit() {
                warn!(namespace, name, more, error = %ErrorChain(&error), "{}; trying again", log.what);
            }
            sleep(pause(failures)).await;
            failures += 1;
        }
    }

    /// Returns the current object, if it exists.
    pub(super) async fn read(&self, namespace: &str, name: &str) -> Option<Box<WebhookDelivery>> {
        let api = self.api(namespace);
        let read = self.insist((namespace, name), &NOT_READ, Status::is_not_found, || api.get(name));
        read.await.ok().map(Box::new)
    }

    /// Creates the object of a dead letter with its event. Returns `None` if that is impossible.
    pub(super) async fn store(
        &self,
        webhook: &WebhookRef,
        dead_letter: &StoreDeadLetter,
    ) -> Option<(Uid, DeliveryEntry)> {
        let (mut number, mut tries) = (1, 0);
        let refused = loop {
            match self.try_to_store(webhook, dead_letter, &given_up(webhook, dead_letter, number)).await {
                Ok(kept) => return Some(kept),
                Err(Obstacle::Final(status)) => break status.message,
                Err(Obstacle::Taken) if number == NAMES => {
                    break format!(
                        "objects that the operator did not create have its name {} and its alternatives; delete them",
                        dead_letter.delivery.object_name()
                    );
                }
                Err(Obstacle::Taken) => number += 1,
                Err(Obstacle::Passing) if tries == TRIES => {
                    break format!(
                        "it was deleted {TRIES} times before its event was written; check what deletes WebhookDeliveries"
                    );
                }
                Err(Obstacle::Passing) => {
                    sleep(pause(tries)).await;
                    tries += 1;
                }
            }
        };
        warn!(
            namespace = webhook.home, webhook = webhook.name, event = %dead_letter.event.id, error = refused,
            "a WebhookDelivery was rejected; the delivery is dropped"
        );
        None
    }

    async fn try_to_store(
        &self,
        webhook: &WebhookRef,
        dead_letter: &StoreDeadLetter,
        object: &WebhookDelivery,
    ) -> Result<(Uid, DeliveryEntry), Obstacle> {
        let namespace = &webhook.home;
        let created = self.create(namespace, object).await?;
        let uid = uid(&created).ok_or(Obstacle::Passing)?;
        let mut entry = DeliveryEntry {
            version: version(&created.metadata),
            namespace: namespace.clone(),
            name: object.name_any(),
            webhook: object.spec.webhook_ref.clone(),
            bytes: dead_letter.event.body.len(),
            spent: false,
            expires: None,
            empty_request: false,
        };
        if holds_event(&created, &object.spec) {
            return Ok((uid, entry));
        }
        let reference = DeliveryRef {
            uid,
            namespace: namespace.clone(),
            name: entry.name.clone(),
            webhook: object.spec.webhook_ref.clone(),
            generation: created.metadata.generation.unwrap_or_default(),
            conditions: Vec::new(),
            request: None,
            only: None,
        };
        match self.answer(&giving_up(reference, dead_letter)).await {
            Ok(version) => entry.version = version,
            Err(status) if status.is_not_found() || status.is_conflict() => return Err(Obstacle::Passing),
            Err(status) => {
                // An object without its event is useless and would have the name.
                self.delete(namespace, &entry.name, uid).await;
                return Err(Obstacle::Final(status));
            }
        }
        Ok((uid, entry))
    }

    /// Creates the object, or finds it under its name.
    async fn create(&self, namespace: &str, object: &WebhookDelivery) -> Result<WebhookDelivery, Obstacle> {
        let (api, name, params) = (self.api(namespace), object.name_any(), PostParams::default());
        let is_answer = |status: &Status| status.is_already_exists() || is_final(status);
        let create = self.insist((namespace, &name), &NOT_CREATED, is_answer, || api.create(&params, object));
        match create.await {
            Ok(created) => return Ok(created),
            Err(status) if !status.is_already_exists() => return Err(Obstacle::Final(status)),
            Err(_) => {}
        }
        let found = self.read(namespace, &name).await.ok_or(Obstacle::Passing)?;
        let stays = found.metadata.deletion_timestamp.is_none();
        if holds_event(&found, &object.spec) || (stays && found.spec == object.spec) {
            return Ok(*found);
        }
        // It belongs to another Webhook or another event, or is being deleted.
        Err(Obstacle::Taken)
    }

    /// Writes the outcome of a delivery, and returns the object's new version. Fails if the object is gone or replaced,
    /// or if its status is rejected.
    pub(super) async fn answer(&self, answer: &Answer) -> Result<u64, Box<Status>> {
        let DeliveryRef { namespace, name, uid, only, .. } = &answer.object;
        let (api, params) = (self.api(namespace), PatchParams::apply(FIELD_MANAGER).force());
        let metadata = ObjectMeta {
            name: Some(name.clone()),
            // The uid keeps the write from reaching another object that was created under this name.
            uid: Some(uid.to_string()),
            resource_version: only.map(|version| version.to_string()),
            ..ObjectMeta::default()
        };
        let status = json!({
            "apiVersion": WebhookDelivery::api_version(&()),
            "kind": WebhookDelivery::kind(&()),
            "metadata": metadata,
            "status": super::object::status(answer),
        });
        let status = Patch::Apply(status);
        // A user creates the object of a test. Its owner and labels are written with the outcome.
        let marks = match &answer.subject {
            Subject::Test { event, owner: Some(owner) } => {
                let ObjectMeta { labels, owner_references, .. } = belonging(owner, event.event_type);
                let marked = ObjectMeta { labels, owner_references, ..metadata };
                Some(Patch::Apply(marked.into_request_partial::<WebhookDelivery>()))
            }
            _ => None,
        };
        let is_answer = |status: &Status| status.is_not_found() || status.is_conflict() || status.is_invalid();
        let written = async {
            let write = || api.patch_status(name, &params, &status);
            let written = self.insist((namespace, name), &NOT_ANSWERED, is_answer, write).await?;
            let Some(marks) = &marks else { return Ok(version(&written.metadata)) };
            let mark = || api.patch_metadata(name, &params, marks);
            let marked = self.insist((namespace, name), &NOT_ANSWERED, is_answer, mark).await?;
            Ok(version(&marked.metadata))
        };
        let written: Result<u64, Box<Status>> = written.await;
        if let Err(status) = &written {
            debug!(namespace, name, error = status.message, "the status of a WebhookDelivery was rejected");
        }
        written
    }

    /// Deletes this object, and no other with its name.
    pub(super) async fn delete(&self, namespace: &str, name: &str, uid: Uid) {
        let preconditions = Preconditions { uid: Some(uid.to_string()), resource_version: None };
        let (api, params) = (self.api(namespace), DeleteParams::default().preconditions(preconditions));
        let is_answer = |status: &Status| status.is_not_found() || status.is_conflict();
        let delete = self.insist((namespace, name), &NOT_DELETED, is_answer, || api.delete(name, &params));
        if let Err(status) = delete.await {
            debug!(namespace, name, error = status.message, "a WebhookDelivery was already gone");
        }
    }
}

/// Reports whether a rejected creation would be rejected again: by a quota, by a policy, or because the namespace is
/// being deleted. Missing rights of the operator are not final.
fn is_final(status: &Status) -> bool {
    matches!(status.code, 403 | 404 | 422) && !lacks_right(status.code, &status.message)
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::Mutex};

    use jiff::Timestamp;

    use super::*;
    use crate::report::apiserver;
    use llmtune_api::webhook_delivery::WebhookKind;
    use llmtune_core::{
        event::{EventType, sample::sample},
        ledger::contents::{GivenUp, Reason},
    };

    const UNKNOWN_KIND: (u16, &str) = (404, "404 page not found");
    const NO_OBJECT: (u16, &str) =
        (404, r#"{"status": "Failure", "code": 404, "reason": "NotFound", "message": "\"dlv\" not found"}"#);
    const INVALID: (u16, &str) =
        (422, r#"{"status": "Failure", "code": 422, "reason": "Invalid", "message": "too long"}"#);
    const DONE: (u16, &str) = (
        200,
        r#"{"apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery",
            "metadata": {"name": "dlv", "uid": "00000000-0000-0000-0000-000000000007", "resourceVersion": "5"},
            "spec": {"webhookRef": {"name": "ci"}}}"#,
    );

    /// Creates the object of a dead letter through an apiserver that gives these answers. Returns whether it succeeded,
    /// and the requests.
    async fn kept(answers: &[(u16, &'static str)]) -> (bool, Vec<String>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answers = Mutex::new(VecDeque::from(answers.to_vec()));
        let client = {
            let asked = Arc::clone(&asked);
            apiserver(move |request| {
                asked.lock().unwrap().push(request.method().to_string());
                let (code, body) = answers.lock().unwrap().pop_front().unwrap();
                (code, body.to_owned())
            })
        };
        let (kind, uid) = (WebhookKind::Webhook, Uid::from_u128(1));
        let webhook = WebhookRef { kind, uid, home: "research".into(), name: "ci".into() };
        let event = Arc::new(sample(EventType::ModelDeployed, Uid::from_u128(2), "research", None, Timestamp::now()));
        let delivery = llmtune_core::event::id::DeliveryId::new(event.id, webhook.uid);
        let at = Timestamp::now();
        let given_up = GivenUp { reason: Reason::Exhausted, at, attempts: 1, status_code: None, error: None };
        let dead_letter = StoreDeadLetter { webhook: webhook.uid, delivery, event, given_up };
        let kept = Call::new(client, Claim::unbounded()).store(&webhook, &dead_letter).await;
        (kept.is_some(), std::mem::take(&mut asked.lock().unwrap()))
    }

    #[tokio::test]
    async fn missing_kind_is_retried_and_missing_object_is_final() {
        let answers = [UNKNOWN_KIND, UNKNOWN_KIND, DONE, UNKNOWN_KIND, DONE];
        assert_eq!(kept(&answers).await, (true, ["POST", "POST", "POST", "PATCH", "PATCH"].map(str::to_owned).into()));
        let (kept, asked) = kept(&[NO_OBJECT]).await;
        assert_eq!((kept, asked.len()), (false, 1), "its namespace is gone");
    }

    #[tokio::test]
    async fn object_deleted_before_its_event_is_created_again() {
        let answers = [DONE, NO_OBJECT, DONE, DONE];
        assert_eq!(kept(&answers).await, (true, ["POST", "PATCH", "POST", "PATCH"].map(str::to_owned).into()));
    }

    const TAKEN: (u16, &str) = (
        409,
        r#"{"status": "Failure", "code": 409, "reason": "AlreadyExists", "message": "webhookdeliveries.llmtune.io \"dlv\" already exists"}"#,
    );
    /// An object of others, which finalizers would keep.
    const FOREIGN: (u16, &str) = (
        200,
        r#"{"apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery",
            "metadata": {"name": "dlv", "uid": "00000000-0000-0000-0000-000000000009", "resourceVersion": "5", "finalizers": ["a.test/b"]},
            "spec": {"webhookRef": {"name": "other"}, "test": {"event": "model.deployed"}}}"#,
    );

    #[tokio::test(start_paused = true)]
    async fn another_name_is_used_if_a_foreign_object_has_it() {
        let (exists, asked) = kept(&[TAKEN, FOREIGN, DONE, DONE]).await;
        assert_eq!((exists, asked), (true, ["POST", "GET", "POST", "PATCH"].map(str::to_owned).into()));
        let every_name: Vec<_> = (0..NAMES).flat_map(|_| [TAKEN, FOREIGN]).collect();
        let (exists, asked) = kept(&every_name).await;
        assert_eq!((exists, asked.len()), (false, 16), "eight names are tried, and nothing is deleted");
        assert!(asked.iter().all(|method| method == "POST" || method == "GET"));
    }

    #[tokio::test(start_paused = true)]
    async fn object_that_is_always_deleted_is_dropped() {
        let answers: Vec<_> = (0..=TRIES).flat_map(|_| [DONE, NO_OBJECT]).collect();
        let (exists, asked) = kept(&answers).await;
        assert_eq!((exists, asked.len()), (false, 22));
    }

    #[tokio::test]
    async fn object_whose_event_is_rejected_is_deleted() {
        let answers = [DONE, INVALID, DONE];
        assert_eq!(kept(&answers).await, (false, ["POST", "PATCH", "DELETE"].map(str::to_owned).into()));
    }
}
