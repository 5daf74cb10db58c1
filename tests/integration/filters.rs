//! Filters select the events of a Webhook when they are observed. If a filter fails, the event is sent.

use llmtune_webhooks_harness::{eventually, receiver::Receiver};
use serde_json::json;

use crate::{
    recovery::served,
    support::{Jobs, SOON, Scene, run},
};

#[test]
fn filter_changes_take_effect_live() {
    run(async {
        let scene = Scene::new("filter").await;
        let (all, some) = (Receiver::start().await, Receiver::start().await);
        scene.webhook("all", &all.url(), &json!({}));
        let filter = "data.baseModel.startsWith('meta-llama/') && event == 'training.completed' && data.metrics.loss < 0.5 && \
                      object.metadata.labels.team == 'research' && object.metadata.name != 'none'";
        scene.webhook("some", &some.url(), &json!({"filter": filter}));
        let _operator = scene.operator().await;
        scene.wait("webhook/some", "condition=Ready");
        let jobs = Jobs::new(&scene).await;
        let finish = async |name: &str, team: &str, loss: f64| {
            jobs.create(name).await;
            scene.kubectl(&["label", "trainingjob", name, &format!("team={team}")]);
            jobs.start(name).await;
            jobs.status(name, &json!({"phase": "Completed", "metrics": {"loss": loss}})).await;
            all.wait_for("training.completed", name, SOON).await;
        };
        finish("poor", "research", 0.9).await;
        finish("foreign", "other", 0.1).await;
        finish("good", "research", 0.1).await;
        some.wait_for("training.completed", "good", SOON).await;
        assert_eq!(some.count(), 1, "{:?}", some.events());

        let generation = || scene.get("webhook", "some")["metadata"]["generation"].clone();
        let observed = || scene.get("webhook", "some")["status"]["observedGeneration"].clone();
        scene.webhook("some", &some.url(), &json!({"filter": "object.metadata.labels.team == 'other'"}));
        eventually("the new filter is in force", SOON, || async { (generation() == observed()).then_some(()) }).await;
        finish("better", "research", 0.1).await;
        finish("guest", "other", 0.9).await;
        some.wait_for("training.completed", "guest", SOON).await;
        assert!(!some.events().iter().any(|(_, name)| name == "better"), "{:?}", some.events());
    });
}

#[test]
fn a_test_passes_no_filter() {
    run(async {
        let scene = Scene::new("filter-test").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({"filter": "false"}));
        let _operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");
        scene.apply(&json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery", "metadata": {"name": "probe"},
            "spec": {"webhookRef": {"name": "ci"}, "test": {"event": "training.completed"}}
        }));
        receiver.wait(1, SOON).await;
    });
}

#[test]
fn malformed_filter_is_stalled_with_its_position() {
    run(async {
        let scene = Scene::new("filter-malformed").await;
        let receiver = Receiver::start().await;
        scene.webhook("sound", &receiver.url(), &json!({}));
        let nested = &format!("{}true{}", "(".repeat(41), ")".repeat(41));
        let malformed = [
            ("assigns", "data.status = 'completed'", "line 1, column 13: `=` is not valid in CEL; use `==` to compare"),
            ("unknown", "true &&\n  objekt.metadata.name == 'a'", "line 2, column 3: unknown name `objekt`"),
            ("open", "(event == 'training.completed'", "expected `)` to close the bracket at line 1, column 1"),
            ("nested", nested, "more than 40 deep"),
            ("mistyped", "event == 1", "line 1, column 7: `==` does not take a string and an int"),
            ("empty", "", "the expression is empty"),
        ];
        for (name, filter, _) in malformed {
            scene.webhook(name, &receiver.url(), &json!({"filter": filter}));
        }
        let _operator = scene.operator().await;
        for (name, _, message) in malformed {
            scene.wait_condition(name, "Stalled", "True", "InvalidFilter", SOON).await;
            for kind in ["Ready", "Stalled"] {
                let (_, _, reason) = scene.condition(name, kind).unwrap();
                assert!(reason.starts_with("spec.filter cannot be used: ") && reason.contains(message), "{reason}");
                assert!(reason.ends_with("never had a valid filter, so it gets no events until this one is corrected"));
            }
            assert!(scene.wait_event("Webhook", name, "InvalidFilter").await.contains(message));
        }
        scene.wait("webhook/sound", "condition=Ready");
        let jobs = Jobs::new(&scene).await;
        jobs.create("llama").await;
        jobs.start("llama").await;
        jobs.complete("llama").await;
        receiver.wait_for("training.completed", "llama", SOON).await;
        assert_eq!(receiver.count(), 2, "what cannot be read gets nothing: {:?}", receiver.events());

        scene.webhook("assigns", &receiver.url(), &json!({"filter": "data.status == 'completed'"}));
        scene.wait_condition("assigns", "Stalled", "False", "Progressing", SOON).await;
        scene.wait("webhook/assigns", "condition=Ready");

        let long = json!({"filter": "a".repeat(4097)});
        let error = scene.try_apply(&crate::support::webhook("long", &receiver.url(), &long)).unwrap_err();
        assert!(error.contains("spec.filter") && error.contains("4096"), "{error}");
    });
}

#[test]
fn invalid_filter_edit_loses_no_event_over_a_kill() {
    run(async {
        let scene = Scene::new("filter-in-force").await;
        let (some, all) = (Receiver::start().await, Receiver::start().await);
        let filter = |filter: &str| json!({"events": ["training.completed"], "filter": filter});
        scene.webhook("some", &some.url(), &filter("data.metrics.loss < 0.5"));
        scene.webhook("all", &all.url(), &json!({"events": ["training.completed"]}));
        let mut operator = scene.operator().await;
        for name in ["some", "all"] {
            scene.wait(&format!("webhook/{name}"), "condition=Ready");
        }
        let jobs = Jobs::new(&scene).await;
        let finish = async |name: &str, loss: f64| {
            jobs.create(name).await;
            jobs.start(name).await;
            jobs.status(name, &json!({"phase": "Completed", "metrics": {"loss": loss}})).await;
        };
        finish("before", 0.1).await;
        some.wait_for("training.completed", "before", SOON).await;

        scene.webhook("some", &some.url(), &filter("data.metrics.loss = 0.5"));
        scene.webhook("all", &all.url(), &filter("data.status = 'failed'"));
        for (name, says) in [
            ("some", "; until it is corrected, the filter of generation 1 stays in force"),
            ("all", "; until it is corrected, no filter is in force, as in generation 1"),
        ] {
            scene.wait_condition(name, "Stalled", "True", "InvalidFilter", SOON).await;
            let (ready, reason, _) = scene.condition(name, "Ready").unwrap();
            assert_eq!((ready.as_str(), reason.as_str()), ("True", "Subscribed"));
            let (.., message) = scene.condition(name, "Stalled").unwrap();
            println!("{name}: {message}");
            assert!(
                message.starts_with("spec.filter cannot be used: line 1, column") && message.ends_with(says),
                "{message}"
            );
            assert!(scene.wait_event("Webhook", name, "InvalidFilter").await.ends_with(says));
            let object = scene.get("webhook", name);
            assert_eq!(object["status"]["observedGeneration"], object["metadata"]["generation"]);
            assert_eq!(object["status"]["inForce"]["generation"], 1, "{object:#}");
        }
        finish("broken", 0.1).await;
        finish("broken-poor", 0.9).await;
        some.wait_for("training.completed", "broken", SOON).await;
        all.wait_for("training.completed", "broken-poor", SOON).await;

        operator.process.kill();
        finish("down", 0.1).await;
        finish("down-poor", 0.9).await;
        operator.restart();
        some.wait_for("training.completed", "down", SOON).await;
        all.wait_for("training.completed", "down-poor", SOON).await;

        scene.webhook("some", &some.url(), &filter("data.metrics.loss < 1.0"));
        scene.wait_condition("some", "Stalled", "False", "Progressing", SOON).await;
        finish("corrected", 0.9).await;
        some.wait_for("training.completed", "corrected", SOON).await;
        all.wait_for("training.completed", "corrected", SOON).await;
        let names = |receiver: &Receiver| {
            let mut names: Vec<String> = receiver.events().into_iter().map(|(_, name)| name).collect();
            names.sort_unstable();
            names.dedup();
            names
        };
        assert_eq!(names(&some), ["before", "broken", "corrected", "down"]);
        assert_eq!(names(&all), ["before", "broken", "broken-poor", "corrected", "down", "down-poor"]);
        assert_eq!(
            scene.get("webhook", "some")["status"]["inForce"],
            json!({"generation": 3, "filter": "data.metrics.loss < 1.0"})
        );
    });
}

#[test]
fn event_is_delivered_and_reported_if_its_filter_fails() {
    run(async {
        let scene = Scene::new("filter-fails").await;
        let receiver = Receiver::start().await;
        scene.webhook(
            "ci",
            &receiver.url(),
            &json!({"events": ["training.failed"], "filter": "data.metrics.loss < 1.0"}),
        );
        let operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");
        let jobs = Jobs::new(&scene).await;
        for name in ["diverged", "again"] {
            jobs.create(name).await;
            jobs.start(name).await;
            jobs.status(name, &json!({"phase": "Failed", "metrics": {"loss": "NaN"}})).await;
            receiver.wait_for("training.failed", name, SOON).await;
        }
        let labels = [("namespace", scene.namespace.as_str()), ("webhook", "ci")];
        let errors = || operator.metric("llmtune_webhooks_filter_errors_total", &labels) as u64;
        assert_eq!(errors(), 2);
        let note = scene.wait_event("Webhook", "ci", "FilterFailed").await;
        for part in [
            "training.failed of trainingjob/diverged (evt_",
            "delivered anyway",
            "`<` does not take a string and a double",
        ] {
            assert!(note.contains(part), "{note}");
        }
        assert!(!note.contains("NaN"), "{note}");
        let reported = scene.events("Webhook", "ci").into_iter().filter(|(reason, _)| reason == "FilterFailed").count();
        assert_eq!(reported, 1);

        scene.kubectl(&["delete", "webhook", "ci"]);
        let gone = || async { (!operator.metrics().contains("llmtune_webhooks_filter_errors_total{")).then_some(()) };
        eventually("its series go with the Webhook", SOON, gone).await;
    });
}

#[test]
fn deletion_after_an_outage_is_filtered_by_the_last_state() {
    run(async {
        let scene = Scene::alone("filter-outage").await;
        let (ours, theirs) = (Receiver::start().await, Receiver::start().await);
        let filter = |owner: &str| {
            let filter =
                format!("object.metadata.annotations['example.com/owner'] == '{owner}' && data.baseModel != ''");
            json!({"events": ["training.failed"], "filter": filter})
        };
        scene.webhook("ours", &ours.url(), &filter("ada"));
        scene.webhook("theirs", &theirs.url(), &filter("bob"));
        let all = Receiver::start().await;
        scene.webhook("all", &all.url(), &json!({}));
        let mut operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        for (name, owner) in [("of-ada", "ada"), ("of-bob", "bob")] {
            jobs.create(name).await;
            scene.kubectl(&["annotate", "trainingjob", name, &format!("example.com/owner={owner}")]);
            jobs.start(name).await;
            all.wait_for("training.started", name, SOON).await;
        }
        operator.stop();
        jobs.delete("of-ada").await;
        jobs.delete("of-bob").await;
        scene.plane.restart_apiserver().await;
        served(&scene).await;
        operator.restart();
        ours.wait_for("training.failed", "of-ada", SOON).await;
        theirs.wait_for("training.failed", "of-bob", SOON).await;
        all.wait_for("training.failed", "of-bob", SOON).await;
        assert_eq!((ours.count(), theirs.count()), (1, 1), "{:?} {:?}", ours.events(), theirs.events());
        assert_eq!(operator.metric("llmtune_webhooks_filter_errors_total", &[]) as u64, 0);
    });
}

#[test]
fn unknown_annotations_are_not_treated_as_absent() {
    run(async {
        let scene = Scene::new("filter-annotations").await;
        let (all, owned) = (Receiver::start().await, Receiver::start().await);
        scene.webhook("all", &all.url(), &json!({}));
        let operator = scene.operator().await;
        scene.wait("webhook/all", "condition=Ready");
        let jobs = Jobs::new(&scene).await;
        let run = async |name: &str, owner: &str| {
            jobs.create(name).await;
            scene.kubectl(&["annotate", "trainingjob", name, &format!("example.com/owner={owner}")]);
            jobs.start(name).await;
            all.wait_for("training.started", name, SOON).await;
        };
        run("before", "bob").await;
        let filter = "object.metadata.annotations['example.com/owner'] == 'ada'";
        scene.webhook("owned", &owned.url(), &json!({"filter": filter}));
        scene.wait("webhook/owned", "condition=Ready");
        run("of-bob", "bob").await;
        run("of-ada", "ada").await;
        owned.wait_for("training.started", "of-ada", SOON).await;
        assert_eq!(owned.count(), 1, "{:?}", owned.events());
        assert_eq!(operator.metric("llmtune_webhooks_filter_errors_total", &[("webhook", "owned")]) as u64, 0);
        // The DELETED event of the watch contains the last state, with annotations.
        jobs.delete("before").await;
        all.wait_for("training.failed", "before", SOON).await;
        assert_eq!(owned.count(), 1, "{:?}", owned.events());
    });
}
