//! Webhooks take effect when they are created, changed and deleted, and report missing references.

use std::time::{Duration, Instant};

use llmtune_webhooks_harness::{
    eventually,
    receiver::{Answer, Receiver},
};
use serde_json::{Value, json};

use crate::support::{Jobs, SOON, Scene, run};

#[test]
fn webhook_changes_take_effect_without_a_restart() {
    run(async {
        let scene = Scene::new("live").await;
        let (first, second) = (Receiver::start().await, Receiver::start().await);
        let _operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        let start = async |name: &str| {
            jobs.create(name).await;
            jobs.phase(name, "Running").await;
        };
        let observed = async |what: &str| {
            let object = scene.get("webhook", "ci");
            let begun = Instant::now();
            eventually(what, SOON, || async {
                let generation = &scene.get("webhook", "ci")["status"]["observedGeneration"];
                (*generation == object["metadata"]["generation"]).then_some(())
            })
            .await;
            println!("{what}: observed {:?} after kubectl returned, two kubectl calls included", begun.elapsed());
        };

        scene.webhook("ci", &first.url(), &json!({}));
        observed("created").await;
        start("a").await;
        first.wait_for("training.started", "a", SOON).await;

        scene.webhook("ci", &second.url(), &json!({"events": ["training.completed"]}));
        observed("edited").await;
        start("b").await;
        jobs.phase("b", "Completed").await;
        second.wait_for("training.completed", "b", SOON).await;
        assert_eq!(second.count(), 1, "training.started is no longer subscribed");

        let research = json!({"selector": {"matchLabels": {"team": "research"}}});
        scene.webhook("ci", &second.url(), &research);
        observed("given a selector").await;
        start("c").await;
        scene.kubectl(&["label", "trainingjob", "c", "team=research"]);
        jobs.phase("c", "Completed").await;
        second.wait_for("training.completed", "c", SOON).await;
        assert_eq!(second.count(), 2, "its start had no such label");

        scene.webhook("ci", &second.url(), &json!({"suspend": true}));
        scene.wait_condition("ci", "Ready", "True", "Suspended", SOON).await;
        start("d").await;
        eventually("the delivery is held", SOON, || async {
            (scene.get("webhook", "ci")["status"]["deliveries"]["pending"] == 1).then_some(())
        })
        .await;
        assert_eq!(second.count(), 2);
        scene.webhook("ci", &second.url(), &json!({"suspend": false}));
        let held = second.wait_for("training.started", "d", SOON).await;
        assert_eq!(held.attempt(), 1, "being held spends no attempts");

        scene.kubectl(&["delete", "webhook", "ci"]);
        start("e").await;
        scene.webhook("other", &first.url(), &json!({}));
        scene.wait("webhook/other", "condition=Ready");
        start("f").await;
        first.wait_for("training.started", "f", SOON).await;
        assert_eq!(second.count(), 3, "{:?}", second.events());
        assert_eq!(first.count(), 2, "{:?}", first.events());
    });
}

#[test]
fn edit_is_in_force_when_observed() {
    run(async {
        let scene = Scene::new("force").await;
        let (before, after) = (Receiver::start().await, Receiver::start().await);
        scene.webhook("ci", &before.url(), &json!({}));
        let _operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        jobs.create("probe").await;
        jobs.start("probe").await;
        before.wait_for("training.started", "probe", SOON).await;
        scene.webhook("ci", &after.url(), &json!({}));
        let edited = Instant::now();
        // Each start is a separate run. The first one at the new endpoint shows that the edit is in force.
        while after.count() == 0 {
            jobs.start("probe").await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(edited.elapsed() < SOON);
        }
        println!("an edit was in force {:?} after kubectl had returned", edited.elapsed());
        let old = before.count();
        jobs.start("probe").await;
        after.wait(2, SOON).await;
        assert_eq!(before.count(), old, "the old endpoint gets nothing more");
    });
}

#[test]
fn missing_secret_holds_events_until_it_exists() {
    run(async {
        let scene = Scene::new("secret").await;
        let receiver = Receiver::start().await;
        let operator = scene.operator().await;
        scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "late"}}));
        scene.wait_condition("ci", "Ready", "False", "SecretNotFound", SOON).await;
        let (_, _, message) = scene.condition("ci", "Ready").unwrap();
        assert!(message.contains("\"late\"") && message.contains("create it"), "{message}");
        scene.wait_event("Webhook", "ci", "SecretNotFound").await;
        let jobs = Jobs::new(&scene).await;
        jobs.create("llama").await;
        jobs.phase("llama", "Running").await;

        scene.apply(
            &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late"}, "stringData": {"other": "x"}}),
        );
        scene.wait_condition("ci", "Ready", "False", "SecretKeyNotFound", SOON).await;

        scene.wait_condition("ci", "Stalled", "True", "SecretKeyNotFound", Duration::from_secs(90)).await;
        assert_eq!(receiver.count(), 0);

        scene.secret("late", "s3cret");
        let healed = Instant::now();
        let held = receiver.wait_for("training.started", "llama", SOON).await;
        println!("delivered {:?} after the Secret had its key", healed.elapsed());
        assert!(held.is_signed_with("s3cret"));
        assert_eq!(held.attempt(), 1);
        scene.wait_condition("ci", "Ready", "True", "Subscribed", SOON).await;
        scene.wait_condition("ci", "Stalled", "False", "Progressing", SOON).await;

        let secrets = |verb: &str| {
            operator.metric("llmtune_webhooks_api_requests_total", &[("verb", verb), ("resource", "secrets")]) as u64
        };
        assert!(secrets("get") > 0);
        assert_eq!(secrets("list") + secrets("watch"), 0);
    });
}

#[test]
fn a_changed_secret_is_read_again_after_a_refusal() {
    run(async {
        let scene = Scene::new("changed").await;
        let receiver =
            Receiver::answering(|post| Answer::status(if post.is_signed_with("new") { 200 } else { 401 })).await;
        scene.secret("ci", "old");
        let policy = json!({"maxRetries": 1, "backoff": {"initial": "100ms", "max": "100ms"}});
        scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci"}, "delivery": policy}));
        let _operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");
        scene.secret("ci", "new");
        let jobs = Jobs::new(&scene).await;
        jobs.create("llama").await;
        jobs.phase("llama", "Running").await;
        let received = receiver.wait(2, SOON).await;
        assert!(received[0].is_signed_with("old") && received[1].is_signed_with("new"));
    });
}

#[test]
fn secret_older_than_thirty_seconds_is_read_again() {
    run(async {
        let scene = Scene::new("aged").await;
        let receiver = Receiver::start().await;
        scene.secret("ci", "old");
        scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci"}}));
        let operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");
        let jobs = Jobs::new(&scene).await;
        scene.secret("ci", "new");
        for number in 0..60 {
            let name = format!("job-{number}");
            jobs.create(&name).await;
            jobs.start(&name).await;
            let post = receiver.wait_for("training.started", &name, SOON).await;
            if post.is_signed_with("new") {
                let reads = operator.metric("llmtune_webhooks_api_requests_total", &[("resource", "secrets")]) as u64;
                println!("signed with the new Secret after {number} s and {reads} reads");
                assert!(number > 20 && reads == 2, "{number} s, {reads} reads");
                return;
            }
            assert!(post.is_signed_with("old"));
            // One event per second: the test is about the age of the cached Secret.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("the new Secret was never read");
    });
}

#[test]
fn deleted_secret_holds_deliveries() {
    run(async {
        let scene = Scene::new("lost").await;
        let receiver = Receiver::answering(|_| Answer::status(403)).await;
        scene.secret("ci", "s3cret\n");
        let policy = json!({"maxRetries": 20, "backoff": {"initial": "100ms", "factor": 1, "max": "100ms"}});
        scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci"}, "delivery": policy}));
        scene.webhook("unsigned", &receiver.url(), &json!({"events": ["usage.*"]}));
        let _operator = scene.operator().await;
        let note = scene.wait_event("Webhook", "ci", "SecretEndsInNewline").await;
        assert!(!note.contains("s3cret"), "{note}");
        scene.wait_event("Webhook", "unsigned", "Unsigned").await;
        scene.kubectl(&["delete", "secret", "ci"]);
        let jobs = Jobs::new(&scene).await;
        jobs.create("llama").await;
        jobs.phase("llama", "Running").await;
        // After the refusal the Secret is read again, and is missing.
        scene.wait_condition("ci", "Ready", "False", "SecretNotFound", SOON).await;
        let attempts = receiver.count();
        receiver.answer(|_| Answer::status(200));
        scene.secret("ci", "other");
        let accepted = eventually("it is delivered with the new Secret", SOON, || async {
            receiver.received().into_iter().find(|post| post.is_signed_with("other"))
        })
        .await;
        assert_eq!(accepted.attempt() as usize, attempts + 1, "being held spent no attempt");
    });
}

#[test]
fn deliveries_of_an_unreadable_webhook_wait() {
    run(async {
        let scene = Scene::alone("unreadable").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({"suspend": true}));
        let mut operator = scene.operator().await;
        scene.wait_condition("ci", "Ready", "True", "Suspended", SOON).await;
        scene.job("held");
        scene.phase("held", "Running");
        eventually("the event waits", SOON, || async {
            (scene.get("webhook", "ci")["status"]["deliveries"]["pending"] == 1).then_some(())
        })
        .await;
        operator.stop();

        // The definition of another release may allow a value that this one cannot read.
        let open = json!([{
            "op": "replace",
            "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec",
            "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
        }]);
        scene.kubectl(&["patch", "crd", "webhooks.llmtune.io", "--type=json", "-p", &open.to_string()]);
        let suspend = |value: serde_json::Value| json!({"spec": {"suspend": value}}).to_string();
        eventually("the open schema is in force", SOON, || async {
            let patch = suspend(json!("until further notice"));
            let arguments = ["-n", &scene.namespace, "patch", "webhook", "ci", "--type=merge", "-p", &patch];
            scene.plane.kubectl(&arguments).status.success().then_some(())
        })
        .await;
        operator.restart();
        operator.wait_ready().await;
        operator.wait_log("the Webhook cannot be read", SOON).await;
        scene.job("missed");
        scene.phase("missed", "Running");
        operator.wait_log("name=\"missed\"", SOON).await;

        scene.kubectl(&["patch", "webhook", "ci", "--type=merge", "-p", &suspend(json!(false))]);
        let held = receiver.wait_for("training.started", "held", SOON).await;
        assert_eq!(held.attempt(), 1);
        scene.wait_condition("ci", "Ready", "True", "Subscribed", SOON).await;
        assert_eq!(receiver.count(), 1, "{:?}", receiver.events());
    });
}

#[test]
fn shared_keys_are_reported_once_per_change() {
    run(async {
        let scene = Scene::new("shared").await;
        let receiver = Receiver::start().await;
        scene.secret("common", "s3cret");
        scene.secret("own", "other");
        let signed_with = |name: &str, secret: &str| {
            scene.webhook(name, &receiver.url(), &json!({"secretRef": {"name": secret}}));
        };
        signed_with("a", "common");
        signed_with("c", "own");
        let _operator = scene.operator().await;
        scene.wait("webhook/a", "condition=Ready");
        let reports = |name: &str| {
            let selector = format!("regarding.name={name},reason=SecretShared");
            let text = scene.kubectl(&["get", "events.events.k8s.io", "--field-selector", &selector, "-o", "json"]);
            let list: Value = serde_json::from_str(&text).unwrap();
            let events = list["items"].as_array().unwrap().iter();
            events.map(|event| event["series"]["count"].as_u64().unwrap_or(1)).sum::<u64>()
        };
        assert_eq!(reports("a"), 0);

        signed_with("b", "common");
        for (name, other) in [("a", "b"), ("b", "a")] {
            let note = scene.wait_event("Webhook", name, "SecretShared").await;
            let says = format!("key \"secret\" of Secret \"common\" also signs the deliveries of {other}: ");
            assert!(note.starts_with(&says) && note.contains("give each Webhook its own Secret"), "{note}");
        }
        scene.kubectl(&["label", "webhook", "a", "b", "team=research"]);
        let jobs = Jobs::new(&scene).await;
        for number in 0..5 {
            let name = format!("job-{number}");
            jobs.create(&name).await;
            jobs.start(&name).await;
        }
        receiver.wait(15, SOON).await;
        eventually("the statuses count them", SOON, || async {
            let succeeded = |name: &str| scene.get("webhook", name)["status"]["deliveries"]["succeeded"] == 5;
            (succeeded("a") && succeeded("b")).then_some(())
        })
        .await;
        assert_eq!([reports("a"), reports("b"), reports("c")], [1, 1, 0], "once for a change");

        let observed = async |name: &str| {
            let generation = scene.get("webhook", name)["metadata"]["generation"].clone();
            eventually("the edit is observed", SOON, || async {
                (scene.get("webhook", name)["status"]["observedGeneration"] == generation).then_some(())
            })
            .await;
        };
        signed_with("b", "own");
        scene.wait_event("Webhook", "c", "SecretShared").await;
        observed("b").await;
        signed_with("b", "common");
        observed("b").await;
        eventually("both are told again", SOON, || async { (reports("a") == 2).then_some(()) }).await;
        scene.kubectl(&["delete", "webhook", "b"]);
        signed_with("c", "common");
        eventually("the third time", SOON, || async { (reports("a") == 3 && reports("c") == 2).then_some(()) }).await;
    });
}
