//! `WebhookDelivery` objects: dead letters are stored and sent again on request, endpoints are tested, and users cannot
//! have their own content signed. Deliveries beyond a bound are counted, without effect on other Webhooks.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use llmtune_api::{WebhookDelivery, webhook_delivery::REDELIVER_ANNOTATION};
use llmtune_core::event::{
    id::{DeliveryId, EventId},
    object::Uid,
};
use llmtune_webhooks_harness::{
    eventually,
    receiver::{Answer, Received, Receiver},
};
use serde_json::{Value, json};

use crate::support::{Jobs, SOON, Scene, run};

mod bounds;
mod forged;
mod tested;

const SECRET: &str = "s3cret";
const OF_CI: &str = "llmtune.io/webhook=ci";
/// Hundreds of objects on a loaded machine.
const LATER: Duration = Duration::from_secs(120);

/// This many retries in quick succession.
fn retries(count: u32) -> Value {
    json!({"maxRetries": count, "backoff": {"initial": "10ms", "factor": 1, "max": "10ms"}})
}

/// A receiver that refuses everything, and its Webhook `ci`, which has a secret and gives up after this many retries.
async fn refused(scene: &Scene, count: u32) -> Receiver {
    let receiver = Receiver::answering(|_| Answer::status(500)).await;
    scene.secret("ci", SECRET);
    scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci"}, "delivery": retries(count)}));
    receiver
}

/// Waits until there are this many dead letters of `ci`, all finished.
async fn kept(scene: &Scene, count: usize) -> Vec<Value> {
    eventually(&format!("{count} deliveries are kept"), LATER, || async {
        let objects = scene.list("whd", OF_CI);
        let finished = objects.iter().filter(|object| condition(object, "Finished").0 == "True").count();
        assert!(objects.len() <= count, "{} objects", objects.len());
        (finished == count).then_some(objects)
    })
    .await
}

/// Status and reason of a condition; empty if there is none.
fn condition(object: &Value, kind: &str) -> (String, String) {
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let condition = conditions.find(|condition| condition["type"] == kind).unwrap_or(&Value::Null);
    let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

/// A `WebhookDelivery`'s manifest.
fn manifest(name: &str, webhook: &str, spec: &Value) -> Value {
    let mut merged = json!({"webhookRef": {"name": webhook}});
    for (key, value) in spec.as_object().unwrap() {
        merged[key] = value.clone();
    }
    json!({"apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery", "metadata": {"name": name}, "spec": merged})
}

fn test_of(event: &str) -> Value {
    json!({"test": {"event": event}})
}

async fn deliveries(scene: &Scene) -> Api<WebhookDelivery> {
    Api::namespaced(scene.plane.admin().await, &scene.namespace)
}

/// Creates a test of this Webhook and waits for the result. Returns the object and the duration.
async fn test(scene: &Scene, name: &str, webhook: &str, event: &str) -> (Value, Duration) {
    let api = deliveries(scene).await;
    let output = scene.plane.kubectl_with_input(
        &["-n", &scene.namespace, "create", "-f", "-"],
        &manifest(name, webhook, &test_of(event)).to_string(),
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let begun = Instant::now();
    let object = eventually(&format!("test {name} is answered"), SOON, || async {
        let object = serde_json::to_value(api.get(name).await.unwrap()).unwrap();
        (condition(&object, "Finished").0 == "True").then_some(object)
    })
    .await;
    (object, begun.elapsed())
}

fn uid(object: &Value) -> Uid {
    Uid::parse(object["metadata"]["uid"].as_str().unwrap()).unwrap()
}

/// Creates this many jobs, and starts them.
async fn start_jobs(jobs: &Jobs, names: impl Iterator<Item = String>) {
    futures::stream::iter(names)
        .for_each_concurrent(16, |name| async move {
            jobs.create(&name).await;
            jobs.start(&name).await;
        })
        .await;
}

/// Requests all dead letters of `ci` again, with one command.
fn redeliver_all(scene: &Scene, time: &str) {
    scene.kubectl(&["annotate", "whd", "-l", OF_CI, &format!("{REDELIVER_ANNOTATION}={time}"), "--overwrite"]);
}

fn ids(posts: &[Received]) -> HashSet<(String, String)> {
    posts.iter().map(|post| (post.event_id().to_owned(), post.delivery_id().to_owned())).collect()
}

#[test]
fn one_command_redelivers_two_hundred_dead_letters() {
    run(async {
        let scene = Scene::new("kept").await;
        let receiver = refused(&scene, 1).await;
        let _operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        let begun = Instant::now();
        start_jobs(&jobs, (0..200).map(|number| format!("job-{number}"))).await;
        let objects = kept(&scene, 200).await;
        println!("200 objects {:?} after the first of 200 events", begun.elapsed());

        let webhook = uid(&scene.get("webhook", "ci"));
        let refused = receiver.received();
        assert_eq!(refused.len(), 400);
        let bodies: HashMap<&str, &str> = refused.iter().map(|post| (post.event_id(), post.lasting_body())).collect();
        for object in &objects {
            let event = &object["status"]["event"];
            let id = event["id"].as_str().unwrap();
            let name = DeliveryId::new(EventId::parse(id).unwrap(), webhook).object_name();
            assert_eq!(object["metadata"]["name"], name);
            let labels = json!({
                "llmtune.io/webhook": "ci", "llmtune.io/webhook-kind": "Webhook", "llmtune.io/event": "training.started"
            });
            assert_eq!(object["metadata"]["labels"], labels);
            let owners = &object["metadata"]["ownerReferences"];
            assert_eq!(owners[0]["kind"], "Webhook");
            assert_eq!(owners[0]["uid"], webhook.to_string());
            assert_eq!(object["spec"]["eventId"], id);
            assert_eq!(condition(object, "Delivered"), ("False".into(), "Exhausted".into()));
            assert_eq!(object["status"]["attempts"], 2);
            assert_eq!(object["status"]["lastAttempt"]["statusCode"], 500);
            assert_eq!(event["type"], "training.started");
            assert_eq!(event["object"]["kind"], "TrainingJob");
            assert!(event["object"]["name"].as_str().unwrap().starts_with("job-"));
            assert!(event["body"].as_str().unwrap().starts_with(bodies[id]));
        }
        let table = scene.kubectl(&["get", "whd", "-l", "llmtune.io/event=training.started"]);
        let header: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(header, ["NAME", "WEBHOOK", "EVENT", "OBJECT", "DELIVERED", "ATTEMPTS", "AGE"]);
        println!("{}", table.lines().take(3).collect::<Vec<_>>().join("\n"));

        receiver.answer(|_| Answer::status(200));
        for (round, time) in ["2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"].into_iter().enumerate() {
            let before = receiver.count();
            let begun = Instant::now();
            redeliver_all(&scene, time);
            let command = begun.elapsed();
            receiver.wait(before + 200, LATER).await;
            let sent = begun.elapsed();
            eventually("all are delivered", LATER, || async {
                let answered = |object: &Value| object["status"]["lastHandledRedeliverAt"] == time;
                scene.list("whd", OF_CI).iter().all(answered).then_some(())
            })
            .await;
            println!(
                "round {round}: 200 of 200 sent {sent:?} and answered {:?} after the command began, which took {command:?}",
                begun.elapsed()
            );
            let again = &receiver.received()[before..];
            assert_eq!(again.len(), 200);
            assert_eq!(ids(again), ids(&refused), "the same events under the same ids");
            for post in again {
                assert_eq!(post.attempt(), 1);
                assert_eq!(post.lasting_body(), bodies[post.event_id()]);
                assert!(post.is_signed_with(SECRET));
            }
        }
        // kubectl takes a tenth of a second for each object.
        scene.kubectl(&["wait", "--for=condition=Delivered", "whd", "-l", OF_CI, "--timeout=60s"]);
        for object in scene.list("whd", OF_CI) {
            assert_eq!(condition(&object, "Delivered"), ("True".into(), "Acknowledged".into()));
            assert_eq!(object["status"]["attempts"], 1);
        }
        eventually("the Webhook's status counts them", SOON, || async {
            let counts = &scene.get("webhook", "ci")["status"]["deliveries"];
            (counts["failed"] == 200 && counts["succeeded"] == 400 && counts["dropped"] == 0).then_some(())
        })
        .await;
    });
}

#[test]
fn overlapping_redelivery_requests_are_both_answered() {
    run(async {
        let scene = Scene::new("again").await;
        let receiver = refused(&scene, 0).await;
        let _operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        start_jobs(&jobs, std::iter::once("a".into())).await;
        kept(&scene, 1).await;
        receiver.answer(|_| Answer::status(200).after(Duration::from_secs(1)));
        for round in 0..5 {
            let before = receiver.count();
            redeliver_all(&scene, &format!("{round}-first"));
            receiver.wait(before + 1, SOON).await;
            let second = format!("{round}-second");
            redeliver_all(&scene, &second);
            eventually("the second request is answered", SOON, || async {
                (scene.list("whd", OF_CI)[0]["status"]["lastHandledRedeliverAt"] == second).then_some(())
            })
            .await;
            assert_eq!(receiver.count(), before + 2);
        }
    });
}

#[test]
fn killed_operator_stores_each_dead_letter_once() {
    run(async {
        let scene = Scene::new("kept-kills").await;
        // The endpoint refuses the events of every second job.
        let odd = |post: &Received| post.name().ends_with(['1', '3', '5', '7', '9']);
        let receiver = refused(&scene, 1).await;
        receiver.answer(move |post| Answer::status(if odd(post) { 500 } else { 200 }));
        let mut operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        let driving = tokio::spawn(async move { jobs.drive(200, 50).await });
        for kill in 1..=4 {
            receiver.wait(kill * 100, LATER).await;
            operator.restart();
        }
        driving.await.unwrap();
        let objects = kept(&scene, 200).await;
        let about = |object: &Value| {
            let event = &object["status"]["event"];
            (event["type"].as_str().unwrap().to_owned(), event["object"]["name"].as_str().unwrap().to_owned())
        };
        let given_up: HashSet<(String, String)> = objects.iter().map(about).collect();
        let acknowledged = || {
            let posts = receiver.received();
            posts.iter().filter(|post| !odd(post)).map(|post| (post.event(), post.name())).collect::<HashSet<_>>()
        };
        eventually("the others are acknowledged", SOON, || async { (acknowledged().len() == 200).then_some(()) }).await;
        assert_eq!(given_up.len(), 200, "each event has one object");
        assert!(given_up.is_disjoint(&acknowledged()));
        println!("400 events, 4 kills: 200 acknowledged, 200 kept, {} requests", receiver.count());

        receiver.answer(|_| Answer::status(200).after(Duration::from_millis(50)));
        let before = receiver.count();
        let (plane, namespace) = (Arc::clone(&scene.plane), scene.namespace.clone());
        let begun = Instant::now();
        let command = tokio::task::spawn_blocking(move || {
            let scene = Scene { plane, namespace };
            redeliver_all(&scene, "2026-01-01T00:00:00Z");
        });
        for kill in 1..=3 {
            receiver.wait(before + kill * 40, LATER).await;
            operator.restart();
        }
        command.await.unwrap();
        eventually("all are delivered", LATER, || async {
            let delivered = |object: &Value| condition(object, "Delivered").0 == "True";
            scene.list("whd", OF_CI).iter().all(delivered).then_some(())
        })
        .await;
        let again = &receiver.received()[before..];
        let delivered: HashSet<(String, String)> = again.iter().map(|post| (post.event(), post.name())).collect();
        assert_eq!(delivered, given_up);
        assert!(again.iter().all(|post| post.is_signed_with(SECRET)));
        println!(
            "200 of 200 delivered again within {:?} over 3 kills, {} repeats",
            begun.elapsed(),
            again.len() - delivered.len()
        );
    });
}

#[test]
fn unreadable_stored_event_is_reported_and_kept() {
    run(async {
        let scene = Scene::new("unreadable").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let _operator = scene.operator().await;
        let id = format!("evt_{:032x}", 7);
        let api = deliveries(&scene).await;
        let object = manifest("newer", "ci", &json!({"eventId": id}));
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
        let event = json!({
            "id": id, "type": "training.paused", "sequence": 1, "body": "{\"deliveredAt\":\"",
            "object": {"kind": "TrainingJob", "name": "old", "uid": Uid::from_u128(7).to_string()}
        });
        // A newer release may store an event in this form.
        let status = json!({"event": event, "attempts": 1, "finishedAt": jiff::Timestamp::now().to_string()});
        let apply = json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery", "metadata": {"name": "newer"}, "status": status
        });
        let params = PatchParams::apply("llmtune-webhooks").force();
        api.patch_status("newer", &params, &Patch::Apply(&apply)).await.unwrap();
        for time in ["1", "2"] {
            scene.kubectl(&["annotate", "whd", "newer", &format!("{REDELIVER_ANNOTATION}={time}"), "--overwrite"]);
            let answered = eventually("the request is answered", SOON, || async {
                let object = scene.get("whd", "newer");
                (object["status"]["lastHandledRedeliverAt"] == time).then_some(object)
            })
            .await;
            assert_eq!(condition(&answered, "Delivered"), ("False".into(), "EventUnreadable".into()));
            assert_eq!(condition(&answered, "Finished").0, "True");
            let message = answered["status"]["conditions"][0]["message"].as_str().unwrap();
            assert!(message.contains("upgrade the operator") && message.contains(REDELIVER_ANNOTATION), "{message}");
            assert_eq!(answered["status"]["event"], event, "a newer release can read it");
        }
        assert_eq!(receiver.count(), 0);
    });
}

#[test]
fn dead_letter_waits_for_its_kind_to_be_installed() {
    run(async {
        let scene = Scene::alone("kind-away").await;
        let receiver = refused(&scene, 0).await;
        let operator = scene.operator().await;
        scene.plane.kubectl(&["delete", "crd", "webhookdeliveries.llmtune.io", "--timeout=60s"]);
        let jobs = Jobs::new(&scene).await;
        start_jobs(&jobs, std::iter::once("a".into())).await;
        receiver.wait(1, SOON).await;
        operator.wait_log("404 page not found", SOON).await;
        scene.plane.install_crds();
        let objects = kept(&scene, 1).await;
        assert_eq!(condition(&objects[0], "Delivered"), ("False".into(), "Exhausted".into()));
        assert_eq!(operator.metric("llmtune_webhooks_dropped_total", &[("webhook", "ci")]) as u64, 0);
    });
}

/// A quota that prevents `WebhookDelivery` objects in the scene's namespace.
pub fn keep_nothing(scene: &Scene) {
    let hard = json!({"count/webhookdeliveries.llmtune.io": "0"});
    scene.apply(&json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": hard}
    }));
    // This control plane has no quota controller.
    let status = json!({"status": {"hard": hard, "used": hard}}).to_string();
    scene.kubectl(&["patch", "resourcequota", "none", "--subresource=status", "--type=merge", "-p", &status]);
}

#[test]
fn gone_endpoint_gets_dead_letters_until_a_test_succeeds() {
    run(async {
        let scene = Scene::new("gone").await;
        let receiver = refused(&scene, 3).await;
        receiver.answer(|_| Answer::status(410));
        let mut operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        let start = async |name: &str| start_jobs(&jobs, std::iter::once(name.to_owned())).await;
        let gone = || scene.wait_condition("ci", "Healthy", "False", "EndpointGone", SOON);
        start("a").await;
        kept(&scene, 1).await;
        gone().await;
        start("b").await;
        let objects = kept(&scene, 2).await;
        assert!(objects.iter().all(|object| condition(object, "Delivered") == ("False".into(), "EndpointGone".into())));
        let attempts: HashSet<u64> =
            objects.iter().map(|object| object["status"]["attempts"].as_u64().unwrap()).collect();
        assert_eq!(attempts, [0, 1].into());

        operator.restart();
        operator.wait_ready().await;
        start("c").await;
        kept(&scene, 3).await;
        assert_eq!(receiver.count(), 1, "nothing is sent to it: {:?}", receiver.events());
        gone().await;

        // No further events follow this one.
        operator.stop();
        operator.restart();
        operator.wait_ready().await;
        receiver.answer(|_| Answer::status(200));
        let (object, _) = test(&scene, "try", "ci", "training.started").await;
        assert_eq!(condition(&object, "Delivered").0, "True");
        scene.wait_condition("ci", "Healthy", "True", "Acknowledged", SOON).await;
        start("d").await;
        receiver.wait_for("training.started", "d", SOON).await;

        receiver.answer(|_| Answer::status(410));
        start("e").await;
        gone().await;
        receiver.answer(|_| Answer::status(200));
        let before = receiver.count();
        eventually("e is kept", SOON, || async { (scene.list("whd", OF_CI).len() == 5).then_some(()) }).await;
        redeliver_all(&scene, "1");
        scene.kubectl(&["wait", "--for=condition=Delivered", "whd", "-l", OF_CI, "--timeout=60s"]);
        let again: HashSet<String> = receiver.received()[before..].iter().map(Received::name).collect();
        assert!(["a", "b", "c", "e"].iter().all(|name| again.contains(*name)), "{again:?}");
        scene.wait_condition("ci", "Healthy", "True", "Acknowledged", SOON).await;
        start("f").await;
        receiver.wait_for("training.started", "f", SOON).await;
    });
}
