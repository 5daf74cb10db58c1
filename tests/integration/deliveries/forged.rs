//! Users who may create and annotate deliveries cannot have their own content signed.

use llmtune_core::event::{EventType, id::OccurrenceName};

use super::*;

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

/// An object that occupies the name of a future dead letter, so that the event could be lost.
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

/// The name of the stored dead letter, as the operator creates it.
fn genuine(scene: &Scene, event: EventId) -> Option<String> {
    let kept = scene.list("whd", OF_CI).into_iter().find(|object| {
        object["spec"]["webhookRef"]["name"] == "ci"
            && object["spec"]["ttl"] == "168h"
            && object["status"]["event"]["id"] == event.to_string()
            && condition(object, "Delivered").1 == "Exhausted"
    })?;
    kept["metadata"]["name"].as_str().map(str::to_owned)
}

#[test]
fn users_cannot_have_their_own_content_signed() {
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

        // A forged body.
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

        // Objects with the names of future dead letters. They name another Webhook, request a test, expire, or cannot
        // be deleted.
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
        let genuine = |id: &EventId| genuine(&scene, *id);
        // The operator leaves each such object alone and stores the dead letter under the next name.
        for (how, id) in &expected {
            let name = DeliveryId::new(*id, webhook).object_name();
            let foreign = scene.get("whd", &name)["metadata"]["uid"].clone();
            let what = format!("the delivery is kept under another name ({how})");
            let kept = eventually(&what, SOON, || async { genuine(id) });
            assert_eq!(kept.await, format!("{name}-2"));
            if *how != "brief" {
                assert_eq!(scene.get("whd", &name)["metadata"]["uid"], foreign, "{how}");
            }
        }
        let before = calls();
        for target in ["ci", "other"] {
            let reason = eventually("what holds no event is given up", LATER, || async {
                let object = scene.get("whd", &format!("forged-{target}"));
                (condition(&object, "Finished").0 == "True").then(|| condition(&object, "Delivered"))
            });
            assert_eq!(reason.await, ("False".into(), "EventUnknown".into()));
        }
        println!("{} calls about deliveries while a name stays taken", calls() - before);
        assert!(calls() - before < 100.0, "nothing is tried again");

        receiver.answer(|_| Answer::status(200));
        let sent = receiver.count();
        for (_, id) in &expected {
            let name = genuine(id).unwrap();
            tester.run(&["annotate", "whd", &name, &format!("{REDELIVER_ANNOTATION}=3")], "").unwrap();
            scene.wait(&format!("whd/{name}"), "condition=Delivered");
        }
        let received = receiver.received();
        assert_eq!(received.len(), sent + 4);
        assert!(received.iter().all(|post| !post.body.contains("forged") && post.is_signed_with(SECRET)));
        assert_eq!(other.count(), 0, "{:?}", other.events());
    });
}
