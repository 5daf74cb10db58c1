//! Tests of endpoints: marked, signed, answered, never retried.

use llmtune_core::event::EventType;

use super::*;

#[test]
fn every_test_is_marked_signed_and_answered() {
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
fn an_acknowledged_test_makes_a_failing_webhook_healthy() {
    run(async {
        let scene = Scene::new("tests-heal").await;
        let receiver = refused(&scene, 0).await;
        let operator = scene.operator().await;
        let unhealthy = || {
            let labels = [("webhook", "ci"), ("type", "Healthy"), ("status", "False")];
            operator.metric("llmtune_webhooks_webhook_condition", &labels) as u64
        };
        scene.job("llama");
        scene.phase("llama", "Running");
        scene.wait_condition("ci", "Healthy", "False", "DeliveriesFailing", SOON).await;
        eventually("the alert has its series", SOON, || async { (unhealthy() == 1).then_some(()) }).await;
        receiver.answer(|_| Answer::status(204));
        test(&scene, "heals", "ci", "model.deployed").await;
        scene.wait_condition("ci", "Healthy", "True", "Acknowledged", SOON).await;
        eventually("the alert ends", SOON, || async { (unhealthy() == 0).then_some(()) }).await;
        assert_eq!(scene.get("webhook", "ci")["status"]["consecutiveFailures"].as_u64().unwrap_or_default(), 0);
        scene.wait_event("Webhook", "ci", "EndpointRecovered").await;
    });
}

#[test]
fn an_empty_redelivery_request_is_answered_by_an_event() {
    run(async {
        let scene = Scene::new("empty-request").await;
        let receiver = refused(&scene, 0).await;
        let _operator = scene.operator().await;
        scene.job("llama");
        scene.phase("llama", "Running");
        let name = kept(&scene, 1).await[0]["metadata"]["name"].as_str().unwrap().to_owned();
        receiver.answer(|_| Answer::status(200));
        scene.kubectl(&["annotate", "whd", &name, &format!("{REDELIVER_ANNOTATION}=")]);
        let note = scene.wait_event("WebhookDelivery", &name, "EmptyRedeliverRequest").await;
        println!("{note}");
        let command = note.split_once("such as the time: ").unwrap().1.replace("kubectl ", "");
        let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let command = command.replace("$(date -u +%Y-%m-%dT%H:%M:%SZ)", &time);
        assert_eq!(receiver.count(), 1, "nothing was sent");
        scene.kubectl(&command.split(' ').collect::<Vec<_>>());
        scene.wait(&format!("whd/{name}"), "condition=Delivered");
    });
}

#[test]
fn failed_tests_are_explained_and_not_retried() {
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
fn test_applied_with_its_webhook_and_secret_is_sent() {
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
