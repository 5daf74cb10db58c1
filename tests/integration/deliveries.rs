//! Deliveries as objects: what was given up is kept and sent again on request, endpoints are tested, and nobody can have
//! anything of their own signed. And what does not fit any more is counted, while nobody else notices.

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
use llmtune_webhooks::{
    api::{WebhookDelivery, webhook_delivery::REDELIVER_ANNOTATION},
    event::{
        EventType,
        id::{DeliveryId, EventId, OccurrenceName},
        object::Uid,
    },
};
use llmtune_webhooks_harness::{
    eventually,
    operator::Operator,
    receiver::{Answer, Received, Receiver},
};
use serde_json::{Value, json};

use crate::support::{Jobs, SOON, Scene, run};

const SECRET: &str = "s3cret";
const OF_CI: &str = "llmtune.io/webhook=ci";
/// Hundreds of objects on a loaded machine.
const LATER: Duration = Duration::from_secs(120);

/// So many retries, all at once.
fn retries(count: u32) -> Value {
    json!({"maxRetries": count, "backoff": {"initial": "10ms", "factor": 1, "max": "10ms"}})
}

/// A receiver that refuses everything, and its Webhook `ci`, which has a secret and gives up after so many retries.
async fn refused(scene: &Scene, count: u32) -> Receiver {
    let receiver = Receiver::answering(|_| Answer::status(500)).await;
    scene.secret("ci", SECRET);
    scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci"}, "delivery": retries(count)}));
    receiver
}

/// Waits until there are so many objects of `ci`, all finished.
async fn kept(scene: &Scene, count: usize) -> Vec<Value> {
    eventually(&format!("{count} deliveries are kept"), LATER, || async {
        let objects = scene.list("whd", OF_CI);
        let finished = objects.iter().filter(|object| condition(object, "Finished").0 == "True").count();
        assert!(objects.len() <= count, "{} objects", objects.len());
        (finished == count).then_some(objects)
    })
    .await
}

/// Status and reason of a condition; empty where there is none.
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

/// Creates a test of this Webhook and waits for its answer; tells how long that took.
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

/// Creates so many jobs, and starts them.
async fn start_jobs(jobs: &Jobs, names: impl Iterator<Item = String>) {
    futures::stream::iter(names)
        .for_each_concurrent(16, |name| async move {
            jobs.create(&name).await;
            jobs.start(&name).await;
        })
        .await;
}

/// Asks for all deliveries of `ci` again, with one command.
fn redeliver_all(scene: &Scene, time: &str) {
    scene.kubectl(&["annotate", "whd", "-l", OF_CI, &format!("{REDELIVER_ANNOTATION}={time}"), "--overwrite"]);
}

fn ids(posts: &[Received]) -> HashSet<(String, String)> {
    posts.iter().map(|post| (post.event_id().to_owned(), post.delivery_id().to_owned())).collect()
}

#[test]
fn two_hundred_deliveries_past_all_retries_are_kept_and_one_command_sends_them_all_again() {
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
        // kubectl itself takes a tenth of a second for each.
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
fn a_request_that_comes_while_the_one_before_is_under_way_is_met_too() {
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
fn an_operator_killed_while_deliveries_are_given_up_and_sent_again_keeps_each_once_and_loses_none() {
    run(async {
        let scene = Scene::new("kept-kills").await;
        // What is about every second job is refused.
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
fn a_test_of_every_event_is_marked_signed_and_answered_in_its_status() {
    run(async {
        let scene = Scene::new("tests").await;
        let receiver = Receiver::start().await;
        scene.secret("ci", SECRET);
        let spec = json!({"secretRef": {"name": "ci"}, "events": ["training.completed"], "delivery": retries(5)});
        scene.webhook("ci", &receiver.url(), &spec);
        let operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");
        let mut took = Vec::new();
        for event in EventType::ALL {
            let name = event.name().replace('_', "-");
            let (object, answered) = test(&scene, &name, "ci", event.name()).await;
            took.push(answered);
            assert_eq!(condition(&object, "Delivered"), ("True".into(), "Acknowledged".into()), "{object:#}");
            assert_eq!(object["status"]["attempts"], 1);
            assert_eq!(object["status"]["lastAttempt"]["statusCode"], 200);
            assert_eq!(object["status"]["event"]["type"], event.name());
            let received = receiver.received();
            let post = received.last().unwrap();
            assert_eq!(received.len(), took.len());
            assert_eq!(post.header("x-llmtune-test"), "true");
            assert_eq!(post.event(), event.name());
            assert_eq!(post.json()["test"], true);
            assert_eq!(post.json()["event"], event.name());
            assert_eq!(post.event_id(), object["status"]["event"]["id"].as_str().unwrap());
            assert!(post.is_signed_with(SECRET));
        }
        took.sort_unstable();
        println!("answered within {:?}, at most {:?}", took[took.len() / 2], took.last().unwrap());
        assert!(took[took.len() / 2] < Duration::from_secs(5));
        let webhook = scene.get("webhook", "ci");
        eventually("the tests are marked as the Webhook's", SOON, || async {
            (scene.list("whd", OF_CI).len() == took.len()).then_some(())
        })
        .await;
        for object in scene.list("whd", OF_CI) {
            assert_eq!(object["metadata"]["labels"]["llmtune.io/event"], object["spec"]["test"]["event"]);
            assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], webhook["metadata"]["uid"]);
        }
        scene.job("llama");
        scene.phase("llama", "Completed");
        receiver.wait_for("training.completed", "llama", SOON).await;
        eventually("the event is counted, and no test", SOON, || async {
            let status = &scene.get("webhook", "ci")["status"];
            (status["deliveries"]["succeeded"] == 1 && status["recent"].as_array()?.len() == 1).then_some(())
        })
        .await;
        assert_eq!(operator.metric("llmtune_webhooks_deliveries_total", &[]) as u64, 1);
    });
}

#[test]
fn a_test_that_is_refused_held_back_or_without_a_webhook_says_so_and_is_never_retried() {
    run(async {
        let scene = Scene::new("tests-fail").await;
        let (failing, suspended) = (Receiver::answering(|_| Answer::status(500)).await, Receiver::start().await);
        scene.webhook("failing", &failing.url(), &json!({"delivery": retries(5)}));
        scene.webhook("suspended", &suspended.url(), &json!({"suspend": true}));
        scene.webhook("keyless", &suspended.url(), &json!({"secretRef": {"name": "nowhere"}}));
        let _operator = scene.operator().await;
        scene.wait("webhook/suspended", "condition=Ready");

        let (object, _) = test(&scene, "failing", "failing", "training.completed").await;
        assert_eq!(condition(&object, "Delivered"), ("False".into(), "NotAcknowledged".into()));
        assert_eq!(object["status"]["lastAttempt"]["statusCode"], 500);
        let (object, _) = test(&scene, "suspended", "suspended", "training.completed").await;
        assert_eq!(condition(&object, "Delivered"), ("True".into(), "Acknowledged".into()));
        for (name, reason) in [("keyless", "WebhookNotReady"), ("missing", "WebhookNotFound")] {
            let (object, took) = test(&scene, name, name, "training.completed").await;
            println!("{reason} within {took:?}");
            assert_eq!(condition(&object, "Delivered"), ("False".into(), reason.into()));
            assert_eq!(object["status"]["attempts"], 0);
        }
        assert_eq!(suspended.count(), 1);
        assert_eq!(failing.count(), 1);

        failing.answer(|_| Answer::status(200));
        scene.kubectl(&["annotate", "whd", "failing", &format!("{REDELIVER_ANNOTATION}=1")]);
        scene.wait("whd/failing", "condition=Delivered");
        assert_eq!(failing.count(), 2, "it is sent once more where that is asked for");
        assert_eq!(failing.received()[1].header("x-llmtune-test"), "true");
    });
}

#[test]
fn a_test_applied_together_with_its_webhook_and_secret_is_sent() {
    run(async {
        let scene = Scene::new("together").await;
        let receiver = Receiver::start().await;
        let _operator = scene.operator().await;
        for round in 0..5 {
            let name = format!("ci-{round}");
            let spec = json!({"secretRef": {"name": name}});
            let list = json!({"apiVersion": "v1", "kind": "List", "items": [
                manifest(&name, &name, &test_of("model.deployed")),
                crate::support::webhook(&name, &receiver.url(), &spec),
                {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"secret": SECRET}},
            ]});
            scene.apply(&list);
            scene.wait(&format!("whd/{name}"), "condition=Delivered");
        }
        assert_eq!(receiver.count(), 5);
    });
}

/// A service account that may create and annotate deliveries, and nothing else.
struct Tester<'a> {
    scene: &'a Scene,
    account: String,
}

impl<'a> Tester<'a> {
    fn new(scene: &'a Scene) -> Self {
        scene.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "tester"},
            "rules": [{"apiGroups": ["llmtune.io"], "resources": ["webhookdeliveries"],
                       "verbs": ["create", "get", "list", "patch", "update"]}]
        }));
        scene.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "tester"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "tester"},
            "subjects": [{"kind": "ServiceAccount", "name": "tester"}]
        }));
        Self { scene, account: format!("--as=system:serviceaccount:{}:tester", scene.namespace) }
    }

    /// Runs kubectl as the account; the error is its message.
    fn run(&self, arguments: &[&str], input: &str) -> Result<(), String> {
        let mut all = vec!["-n", &self.scene.namespace, &self.account];
        all.extend(arguments);
        let output = self.scene.plane.kubectl_with_input(&all, input);
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    fn create(&self, object: &Value) {
        self.run(&["create", "-f", "-"], &object.to_string()).unwrap();
    }
}

/// An object under the name of a delivery to come, in which the event would be lost.
fn squatter(event: EventId, webhook: Uid, how: &str) -> Value {
    let name = DeliveryId::new(event, webhook).object_name();
    let event_id = json!({"eventId": event.to_string()});
    match how {
        "elsewhere" => manifest(&name, "other", &event_id),
        "test" => manifest(&name, "ci", &test_of("model.deployed")),
        "brief" => manifest(&name, "ci", &json!({"eventId": event.to_string(), "ttl": "1s"})),
        _ => {
            let mut object = manifest(&name, "other", &event_id);
            object["metadata"]["finalizers"] = json!(["example.com/held"]);
            object
        }
    }
}

/// Whether the delivery is kept, in an object as the operator makes it.
fn genuine(scene: &Scene, event: EventId, webhook: Uid) -> Option<()> {
    let name = DeliveryId::new(event, webhook).object_name();
    let object = scene.find("whd", &name).ok()?;
    let whole = object["spec"]["webhookRef"]["name"] == "ci"
        && object["spec"]["ttl"] == "168h"
        && object["status"]["event"]["id"] == event.to_string()
        && condition(&object, "Delivered").1 == "Exhausted";
    whole.then_some(())
}

#[test]
fn whoever_may_create_and_annotate_deliveries_can_have_nothing_of_their_own_signed() {
    run(async {
        let scene = Scene::new("own-words").await;
        let receiver = refused(&scene, 0).await;
        let other = Receiver::start().await;
        scene.webhook(
            "other",
            &other.url(),
            &json!({"secretRef": {"name": "ci"}, "events": ["usage.threshold_reached"]}),
        );
        let tester = Tester::new(&scene);
        let operator = scene.operator().await;

        // A body of its own.
        let made_up = format!("evt_{:032x}", 7);
        let event = json!({
            "id": made_up, "type": "training.completed", "sequence": 1, "body": "{\"forged\":true,\"deliveredAt\":\"",
            "object": {"kind": "TrainingJob", "name": "forged", "uid": Uid::from_u128(7).to_string()}
        });
        let status = json!({"event": event, "finishedAt": "2026-01-01T00:00:00Z", "conditions": []});
        for target in ["ci", "other"] {
            let name = format!("forged-{target}");
            let mut object = manifest(&name, target, &json!({"eventId": made_up}));
            object["metadata"]["annotations"] = json!({REDELIVER_ANNOTATION: "1"});
            object["status"] = status.clone();
            tester.create(&object);
            let patch = json!({"status": status}).to_string();
            tester.run(&["patch", "whd", &name, "--type=merge", "-p", &patch], "").unwrap();
            let refusal =
                tester.run(&["patch", "whd", &name, "--subresource=status", "--type=merge", "-p", &patch], "");
            assert!(refusal.unwrap_err().contains("Forbidden"));
            tester.run(&["annotate", "whd", &name, &format!("{REDELIVER_ANNOTATION}=2"), "--overwrite"], "").unwrap();
        }

        // The names of deliveries to come, in objects that name another Webhook, ask for a test, do not last, or do not go.
        let webhook = uid(&scene.get("webhook", "ci"));
        let started_at: jiff::Timestamp = "2026-02-03T04:05:06Z".parse().unwrap();
        let jobs = Jobs::new(&scene).await;
        let mut expected = Vec::new();
        for how in ["elsewhere", "test", "brief", "held"] {
            jobs.create(how).await;
            let job = uid(&scene.get("trainingjob", how));
            let named = OccurrenceName::StartedAt(started_at);
            let id = EventId::new("trainingjobs.llmtune.io", job, EventType::TrainingStarted, &named, 1, 0);
            tester.create(&squatter(id, webhook, how));
            expected.push((how, id));
        }
        for (how, _) in &expected {
            jobs.status(how, &json!({"phase": "Running", "startedAt": started_at.to_string()})).await;
            receiver.wait_for("training.started", how, SOON).await;
        }
        let calls = || operator.metric("llmtune_webhooks_api_requests_total", &[("resource", "webhookdeliveries")]);
        let genuine = |id: &EventId| genuine(&scene, *id, webhook);
        for (how, id) in &expected[..3] {
            eventually(&format!("the delivery displaces the object made beforehand ({how})"), SOON, || async {
                genuine(id)
            })
            .await;
        }
        let before = calls();
        for target in ["ci", "other"] {
            let reason = eventually("what holds no event is given up", LATER, || async {
                let object = scene.get("whd", &format!("forged-{target}"));
                (condition(&object, "Finished").0 == "True").then(|| condition(&object, "Delivered"))
            });
            assert_eq!(reason.await, ("False".into(), "EventUnknown".into()));
        }
        println!("{} calls about deliveries while one cannot be displaced", calls() - before);
        assert!(calls() - before < 200.0, "it is tried again with pauses");
        let (_, held) = &expected[3];
        assert!(genuine(held).is_none());
        let name = DeliveryId::new(*held, webhook).object_name();
        scene.kubectl(&[
            "patch",
            "whd",
            &name,
            "--type=json",
            "-p",
            r#"[{"op": "remove", "path": "/metadata/finalizers"}]"#,
        ]);
        eventually("the delivery is kept once its name is free", SOON, || async { genuine(held) }).await;

        receiver.answer(|_| Answer::status(200));
        let sent = receiver.count();
        for (_, id) in &expected {
            let name = DeliveryId::new(*id, webhook).object_name();
            tester.run(&["annotate", "whd", &name, &format!("{REDELIVER_ANNOTATION}=3")], "").unwrap();
            scene.wait(&format!("whd/{name}"), "condition=Delivered");
        }
        let received = receiver.received();
        assert_eq!(received.len(), sent + 4);
        assert!(received.iter().all(|post| !post.body.contains("forged") && post.is_signed_with(SECRET)));
        assert_eq!(other.count(), 0, "{:?}", other.events());
    });
}

#[test]
fn a_delivery_goes_its_ttl_after_it_finished_and_not_before() {
    run(async {
        let scene = Scene::new("ttl").await;
        let receiver = Receiver::answering(|post| {
            let slow = post.event() == "training.failed";
            Answer::status(200).after(Duration::from_secs(if slow { 6 } else { 0 }))
        })
        .await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let _operator = scene.operator().await;
        let brief = |event: &str| json!({"test": {"event": event}, "ttl": "1s"});
        scene.apply(&manifest("slow", "ci", &brief("training.failed")));
        receiver.wait(1, SOON).await;
        scene.apply(&manifest("quick", "ci", &brief("training.started")));
        scene.apply(&manifest("lasting", "ci", &test_of("training.completed")));
        receiver.wait(3, SOON).await;
        let begun = Instant::now();
        scene.kubectl(&["wait", "--for=delete", "whd/quick", "--timeout=30s"]);
        println!("gone {:?} after it was sent, with a ttl of 1 s", begun.elapsed());
        let slow = scene.get("whd", "slow");
        assert_eq!(condition(&slow, "Finished").0, "", "it is under way, and stays");
        scene.kubectl(&["wait", "--for=delete", "whd/slow", "--timeout=30s"]);
        assert_eq!(condition(&scene.get("whd", "lasting"), "Delivered").0, "True");
    });
}

#[test]
fn a_kept_event_that_this_release_cannot_read_is_said_and_stays() {
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
        // As a newer release keeps it.
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
fn a_delivery_given_up_while_its_kind_is_not_installed_is_kept_once_it_is() {
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

#[test]
fn of_a_thousand_kept_deliveries_the_oldest_delivered_makes_room_and_without_one_a_delivery_is_dropped_and_counted() {
    run(async {
        let scene = Scene::new("cap").await;
        let receiver = refused(&scene, 0).await;
        let webhook = scene.get("webhook", "ci");
        let owner = json!([{"apiVersion": "llmtune.io/v1alpha1", "kind": "Webhook", "name": "ci",
                            "uid": webhook["metadata"]["uid"]}]);
        let api = deliveries(&scene).await;
        let begun = Instant::now();
        let now = jiff::Timestamp::now();
        let create = |number: usize| {
            let id = format!("evt_{number:032x}");
            let name = format!("dlv-{number:032x}");
            let mut object = manifest(&name, "ci", &json!({"eventId": id}));
            object["metadata"]["labels"] = json!({"llmtune.io/webhook": "ci", "llmtune.io/event": "training.started"});
            object["metadata"]["ownerReferences"] = owner.clone();
            let delivered = if number < 2 { "True" } else { "False" };
            let at = now.checked_sub(jiff::SignedDuration::from_mins(2000 - number as i64)).unwrap();
            let at = jiff::Timestamp::from_second(at.as_second()).unwrap().to_string();
            let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "Exhausted", "message": "", "lastTransitionTime": at});
            let status = json!({
                "conditions": [condition("Delivered", delivered), condition("Finished", "True")],
                "event": {"id": id, "type": "training.started", "sequence": 1, "body": "{\"deliveredAt\":\"",
                          "object": {"kind": "TrainingJob", "name": "old", "uid": Uid::from_u128(7).to_string()}},
                "attempts": 1, "finishedAt": at
            });
            let object: WebhookDelivery = serde_json::from_value(object).unwrap();
            let api = api.clone();
            async move {
                api.create(&PostParams::default(), &object).await.unwrap();
                let patch = Patch::Merge(json!({"status": status}));
                api.patch_status(&name, &PatchParams::default(), &patch).await.unwrap();
            }
        };
        futures::stream::iter(0..1000).for_each_concurrent(32, create).await;
        println!("1,000 objects made within {:?}", begun.elapsed());
        let operator = scene.operator().await;
        operator.wait_log("all Webhooks are listed", SOON).await;
        let jobs = Jobs::new(&scene).await;
        let names = || -> HashSet<String> {
            let names = scene.kubectl(&["get", "whd", "-o", "name"]);
            names.lines().map(|name| name.rsplit('/').next().unwrap().to_owned()).collect()
        };
        for number in 0..2 {
            start_jobs(&jobs, std::iter::once(format!("job-{number}"))).await;
            receiver.wait(number + 1, SOON).await;
            eventually("the oldest delivered has made room", SOON, || async {
                let names = names();
                let gone = (0..=number).all(|old| !names.contains(&format!("dlv-{old:032x}")));
                (gone && names.len() == 1000).then_some(())
            })
            .await;
        }
        start_jobs(&jobs, std::iter::once("job-2".into())).await;
        let labels = [("webhook", "ci"), ("reason", "not_kept")];
        eventually("the third is dropped", SOON, || async {
            (operator.metric("llmtune_webhooks_dropped_total", &labels) as u64 == 1).then_some(())
        })
        .await;
        println!("{}", scene.wait_event("Webhook", "ci", "DeliveriesDropped").await);
        eventually("the status counts it", SOON, || async {
            (scene.get("webhook", "ci")["status"]["deliveries"]["dropped"] == 1).then_some(())
        })
        .await;
        let names = names();
        assert_eq!(names.len(), 1000);
        assert!((2..1000).all(|number| names.contains(&format!("dlv-{number:032x}"))), "what is not delivered stays");
    });
}

#[test]
fn a_deleted_webhook_takes_its_deliveries_with_it() {
    run(async {
        let scene = Scene::alone("owned").await;
        let _receiver = refused(&scene, 0).await;
        let _operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        start_jobs(&jobs, (0..3).map(|number| format!("job-{number}"))).await;
        kept(&scene, 3).await;
        test(&scene, "try", "ci", "model.deployed").await;
        test(&scene, "stays", "nobody", "model.deployed").await;
        eventually("the test is owned", SOON, || async { (scene.list("whd", OF_CI).len() == 4).then_some(()) }).await;
        scene.plane.start_controllers().await;
        scene.kubectl(&["delete", "webhook", "ci"]);
        let begun = Instant::now();
        eventually("its deliveries go", LATER, || async {
            (scene.kubectl(&["get", "whd", "-o", "name"]).trim() == "webhookdelivery.llmtune.io/stays").then_some(())
        })
        .await;
        println!("4 deliveries gone {:?} after their Webhook", begun.elapsed());
    });
}

/// A quota that lets the scene's namespace keep no delivery.
pub fn keep_nothing(scene: &Scene) {
    let hard = json!({"count/webhookdeliveries.llmtune.io": "0"});
    scene.apply(&json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": hard}
    }));
    // As the controller does it.
    let status = json!({"status": {"hard": hard, "used": hard}}).to_string();
    scene.kubectl(&["patch", "resourcequota", "none", "--subresource=status", "--type=merge", "-p", &status]);
}

#[test]
fn a_delivery_that_a_quota_refuses_to_keep_is_dropped_and_counted_and_the_others_go_on() {
    run(async {
        let scene = Scene::new("quota").await;
        let receiver = refused(&scene, 0).await;
        let good = Receiver::start().await;
        scene.webhook("good", &good.url(), &json!({}));
        keep_nothing(&scene);
        let operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        start_jobs(&jobs, (0..3).map(|number| format!("job-{number}"))).await;
        eventually("three are dropped", SOON, || async {
            let labels = [("webhook", "ci"), ("reason", "not_kept")];
            (operator.metric("llmtune_webhooks_dropped_total", &labels) as u64 == 3).then_some(())
        })
        .await;
        scene.wait_event("Webhook", "ci", "DeliveriesDropped").await;
        eventually("the status counts them", SOON, || async {
            (scene.get("webhook", "ci")["status"]["deliveries"]["dropped"] == 3).then_some(())
        })
        .await;
        assert_eq!(receiver.count(), 3);
        good.wait(3, SOON).await;
        let refusal = operator.log().lines().find(|line| line.contains("was refused")).unwrap().to_owned();
        println!("{refusal}");
        assert!(refusal.contains("exceeded quota"));

        scene.kubectl(&["delete", "resourcequota", "none"]);
        eventually("the next is kept", SOON, || async {
            let name = format!("job-{}", jiff::Timestamp::now().as_millisecond());
            start_jobs(&jobs, std::iter::once(name)).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            (!scene.list("whd", OF_CI).is_empty()).then_some(())
        })
        .await;
    });
}

#[test]
fn what_a_gone_endpoint_would_have_got_is_kept_until_a_test_or_a_redelivery_finds_it_again() {
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

        // Nothing is told again after this one.
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

/// Lets so many jobs begin one run after another, each of them `runs` times.
async fn rerun(jobs: &Jobs, count: usize, runs: std::ops::Range<i64>) {
    let run = |number: usize| {
        let runs = runs.clone();
        async move {
            let name = format!("job-{number}");
            if runs.start == 0 {
                jobs.create(&name).await;
            }
            for run in runs {
                let at = jiff::Timestamp::from_second(1_750_000_000 + run).unwrap().to_string();
                jobs.status(&name, &json!({"phase": "Running", "startedAt": at})).await;
            }
        }
    };
    futures::stream::iter(0..count).for_each_concurrent(48, run).await;
}

#[test]
fn events_without_end_to_a_webhook_that_takes_none_are_bounded_counted_and_cost_no_other_webhook_anything() {
    run(async {
        const EVENTS: usize = 11_300;
        let scene = Scene::new("overload").await;
        let (held, good) = (Receiver::start().await, Receiver::start().await);
        scene.webhook("ci", &held.url(), &json!({"suspend": true}));
        scene.webhook("good", &good.url(), &json!({"delivery": {"concurrency": 32}}));
        let operator = Operator::start_ready(&scene.plane, &scene.options().log("warn")).await;
        scene.wait("webhook/ci", "condition=Ready");
        let pending = || operator.metric("llmtune_webhooks_pending_deliveries", &[("webhook", "ci")]) as usize;
        let dropped = || operator.metric("llmtune_webhooks_dropped_total", &[("webhook", "ci")]) as usize;
        let before = operator.process.resident_kib();
        let jobs = Jobs::new(&scene).await;
        let begun = Instant::now();
        rerun(&jobs, 113, 0..100).await;
        println!("{EVENTS} events driven in {:?}", begun.elapsed());
        good.wait(EVENTS, LATER).await;
        println!("all of them at the other webhook {:?} after the first", begun.elapsed());
        eventually("what does not fit is dropped and counted", LATER, || async {
            (dropped() == EVENTS - 10_000 - 1_000).then_some(())
        })
        .await;
        assert_eq!(pending(), 10_000);
        let grown = operator.process.resident_kib().saturating_sub(before) / 1024;
        let ledger = operator.metric("llmtune_webhooks_ledger_bytes", &[]) as u64;
        println!("10,000 pending, 300 dropped; memory grew by {grown} MiB, the ledger has {} KiB", ledger / 1024);
        assert!(grown < 128, "grew by {grown} MiB");
        println!("{}", scene.wait_event("Webhook", "ci", "DeliveriesDropped").await);
        eventually("the status counts them", LATER, || async {
            let counts = &scene.get("webhook", "ci")["status"]["deliveries"];
            (counts["dropped"] == 300 && counts["pending"] == 10_000).then_some(())
        })
        .await;
        assert_ne!(scene.condition("ci", "Healthy").unwrap().0, "False", "nobody has asked the endpoint");
        let objects = kept(&scene, 1_000).await;
        let bound_reached = ("False".into(), "BoundReached".into());
        assert!(objects.iter().all(|object| condition(object, "Delivered") == bound_reached));

        assert_eq!(held.count(), 0);
        let begun = Instant::now();
        scene.webhook("ci", &held.url(), &json!({"suspend": false, "delivery": {"concurrency": 32}}));
        held.wait(10_000, LATER).await;
        println!("10,000 delivered {:?} after the webhook goes on", begun.elapsed());
        let ids: HashSet<String> = held.received().iter().map(|post| post.event_id().to_owned()).collect();
        assert_eq!(ids.len(), 10_000);
        assert_eq!(good.count(), EVENTS);
    });
}
