//! `kubectl llmtune test`: sends a test event to a Webhook's endpoint.

use std::{process::ExitCode, time::Duration};

use kube::{
    Api,
    api::{DynamicObject, PostParams},
    core::{ApiResource, Resource},
    runtime::wait::await_condition,
};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    age::took,
    cli::{ClusterArgs, TestArgs},
    connection::Cluster,
    failure::{Failure, OPERATOR_AWAY, refusal},
    objects::{name, part},
    output::{self, Format, print},
    webhooks::{self, Hook},
};
use llmtune_api::{
    WebhookDelivery, conditions,
    webhook_delivery::{TestRequest, WebhookDeliverySpec, WebhookDeliveryStatus, WebhookReference},
};
use llmtune_core::event::{EventSet, EventType};

/// Time to live of the object.
const TTL: &str = "1h";
/// Pause before the watch is started again after an error.
const PAUSE: Duration = Duration::from_millis(500);

pub async fn run(args: &ClusterArgs, asked: &TestArgs) -> Result<ExitCode, Failure> {
    let cluster = Cluster::connect(args).await?;
    let hook = webhooks::find(&cluster, &asked.target).await?;
    let event = asked.event.or_else(|| subscribed(&hook).next()).unwrap_or(EventType::TrainingCompleted);
    let api = cluster.api::<WebhookDelivery>(Some(&hook.home));
    let began = Instant::now();
    let created = ask(&cluster, &hook, event).await?;
    let quiet = asked.output.is_some_and(|format| format != Format::Wide);
    if !quiet {
        print(&format!("webhookdelivery.llmtune.io/{} created: {event} to {}\n", name(&created), hook.target))?;
    }
    let tested = answered(&cluster, &api, &created, &hook, asked.timeout).await?;
    let status: WebhookDeliveryStatus = part(&tested, "status").unwrap_or_default();
    if let Some(format) = asked.output.filter(|_| quiet) {
        print(&output::object(&tested, format)?)?;
    } else if let Some(attempt) = &status.last_attempt {
        let answer = attempt.status_code.map_or_else(|| "no answer".to_owned(), |code| format!("HTTP {code}"));
        let endpoint = hook.status.endpoint.as_deref().unwrap_or("the endpoint");
        print(&format!("attempt {}: {answer} from {endpoint}\n", attempt.attempt))?;
    }
    if conditions::holds(&status.conditions, "Delivered") {
        if !quiet {
            print(&format!("{} acknowledged the test after {}\n", hook.target, took(began.elapsed())))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    Err(unacknowledged(&hook, &tested, &status))
}

/// The events that the Webhook subscribes to: its receiver can handle those.
pub fn subscribed(hook: &Hook) -> impl Iterator<Item = EventType> {
    let subscribed = hook.spec.as_ref().and_then(|spec| EventSet::parse(&spec.events).ok()).unwrap_or_default();
    EventType::ALL.into_iter().filter(move |event| subscribed.contains(*event))
}

/// Creates an object that requests a test of this event, and returns it.
pub async fn ask(cluster: &Cluster, hook: &Hook, event: EventType) -> Result<DynamicObject, Failure> {
    let api = cluster.api::<WebhookDelivery>(Some(&hook.home));
    api.create(&PostParams::default(), &manifest(hook, event)?).await.map_err(|error| cluster.failed(&error))
}

/// The object that requests a test, as `docs/operations.md` describes it.
fn manifest(hook: &Hook, event: EventType) -> Result<DynamicObject, Failure> {
    let spec = WebhookDeliverySpec {
        webhook_ref: WebhookReference { kind: hook.target.kind, name: hook.target.name.clone() },
        test: Some(TestRequest { event: event.name().to_owned() }),
        event_id: None,
        ttl: TTL.to_owned(),
    };
    let unwritable = |error| Failure::new(format!("cannot serialize the test: {error}"));
    let spec = serde_json::to_value(&spec).map_err(unwritable)?;
    let mut object = DynamicObject::new("", &ApiResource::erase::<WebhookDelivery>(&())).data(json!({"spec": spec}));
    object.meta_mut().name = None;
    object.meta_mut().generate_name = Some("test-".to_owned());
    Ok(object)
}

/// Waits until the object is finished, and returns it.
async fn answered(
    cluster: &Cluster,
    api: &Api<DynamicObject>,
    created: &DynamicObject,
    hook: &Hook,
    limit: Duration,
) -> Result<DynamicObject, Failure> {
    let name = name(created);
    let finished = |object: Option<&DynamicObject>| object.is_none_or(is_finished);
    let until = Instant::now() + limit;
    loop {
        match timeout_at(until, await_condition(api.clone(), name, finished)).await {
            Ok(Ok(Some(tested))) => return Ok(tested),
            Ok(Ok(None)) => {
                return Err(Failure::new(format!("webhookdelivery/{name} was deleted before the operator handled it")));
            }
            Ok(Err(kube::runtime::wait::Error::ProbeFailed(error))) => {
                if let Some(refused) = refusal(&error) {
                    return Err(cluster.failed(refused));
                }
                sleep(PAUSE).await;
            }
            Err(_) => return Err(unanswered(hook, name, limit)),
        }
    }
}

fn is_finished(object: &DynamicObject) -> bool {
    let status: WebhookDeliveryStatus = part(object, "status").unwrap_or_default();
    conditions::holds(&status.conditions, "Finished")
}

fn unanswered(hook: &Hook, name: &str, limit: Duration) -> Failure {
    let what = format!("the operator did not handle the test of {} within {}", hook.target, took(limit));
    let watch = format!("to wait longer, run kubectl -n {} get whd {name} -w", hook.home);
    Failure::new(what).next(format!("{OPERATOR_AWAY}\n{watch}"))
}

fn unacknowledged(hook: &Hook, tested: &DynamicObject, status: &WebhookDeliveryStatus) -> Failure {
    let why = conditions::get(&status.conditions, "Delivered").map_or("", |condition| condition.message.as_str());
    let next = match conditions::get(&status.conditions, "Delivered").map(|condition| condition.reason.as_str()) {
        Some("WebhookNotReady") => {
            format!("to see its conditions, run kubectl -n {} describe {}", hook.home, hook.target)
        }
        Some("NotInOperatorNamespace") => "set -n to the operator's namespace".to_owned(),
        _ => format!("for details, run kubectl -n {} get whd {} -o yaml", hook.home, name(tested)),
    };
    Failure::new(format!("{} did not acknowledge the test: {why}", hook.target)).next(next)
}
