//! The log: failed deliveries and the health of endpoints under stable field names, and nothing about successful
//! deliveries.

use llmtune_webhooks_harness::{
    eventually,
    operator::Operator,
    receiver::{Answer, Receiver},
};
use serde_json::{Value, json};

use crate::support::{Jobs, SOON, Scene, run};

/// The lines of the log with this text.
fn lines(operator: &Operator, text: &str) -> Vec<Value> {
    // The last line may be incomplete.
    let log = operator.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"] == text).collect()
}

/// The values of these fields.
fn fields<'a>(line: &'a Value, names: &[&str]) -> Vec<&'a str> {
    names.iter().map(|name| line[name].as_str().unwrap_or_else(|| panic!("no {name} in {line}"))).collect()
}

#[test]
fn log_has_one_line_per_exhausted_delivery_and_health_change() {
    run(async {
        let scene = Scene::new("logs").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({"delivery": {"maxRetries": 0}}));
        let options = scene.options().argument("--log-format=json").log("llmtune_webhooks=info");
        let operator = Operator::start_ready(&scene.plane, &options).await;
        let jobs = Jobs::new(&scene).await;
        for name in ["a", "b", "c"] {
            jobs.create(name).await;
            jobs.phase(name, "Running").await;
        }
        receiver.wait(3, SOON).await;
        scene.wait("webhook/ci", "condition=Healthy");
        receiver.answer(|_| Answer::status(503));
        for name in ["a", "b"] {
            jobs.phase(name, "Completed").await;
        }
        scene.wait("webhook/ci", "condition=Healthy=False");
        eventually("both are given up", SOON, || async {
            (lines(&operator, "delivery exhausted").len() == 2).then_some(())
        })
        .await;
        receiver.answer(|_| Answer::status(200));
        jobs.phase("c", "Completed").await;
        scene.wait("webhook/ci", "condition=Healthy");
        let health = lines(&operator, "health changed");
        let entries: Vec<_> =
            health.iter().map(|line| fields(line, &["namespace", "webhook", "status", "reason"])).collect();
        let namespace = scene.namespace.as_str();
        assert_eq!(
            entries,
            [
                [namespace, "ci", "True", "Acknowledged"],
                [namespace, "ci", "False", "DeliveriesFailing"],
                [namespace, "ci", "True", "Acknowledged"],
            ]
        );
        assert_eq!(
            health.iter().map(|line| line["level"].as_str().unwrap()).collect::<Vec<_>>(),
            ["INFO", "WARN", "INFO"]
        );
        let exhausted = lines(&operator, "delivery exhausted");
        assert_eq!(exhausted.len(), 2, "{exhausted:?}");
        for line in &exhausted {
            let [event, error] = fields(line, &["event", "error"])[..] else { panic!("{line}") };
            assert_eq!(event, "training.completed");
            assert!(error.contains("503"), "{error}");
        }
        let ids: Vec<_> = receiver.received().iter().map(|post| post.event_id().to_owned()).collect();
        let acknowledged = ids.iter().filter(|id| !exhausted.iter().any(|line| line["id"] == **id));
        for id in acknowledged {
            assert!(!operator.log().contains(id.as_str()), "{id} was delivered, and the log tells of it");
        }
    });
}

#[test]
fn each_attempt_is_a_span_in_the_events_trace() {
    run(async {
        let scene = Scene::new("traces").await;
        let receiver = Receiver::answering(|post| Answer::status(if post.attempt() == 1 { 500 } else { 200 })).await;
        scene.webhook("ci", &receiver.url(), &json!({"delivery": {"backoff": {"initial": "1s"}}}));
        let options = scene.options().argument("--log-format=json").log("llmtune_webhooks=debug");
        let operator = Operator::start_ready(&scene.plane, &options).await;
        let jobs = Jobs::new(&scene).await;
        jobs.create("a").await;
        jobs.phase("a", "Running").await;
        let posts = receiver.wait(2, SOON).await;
        let parts = |at: usize| posts[at].header("traceparent").split('-').map(str::to_owned).collect::<Vec<_>>();
        let (first, second) = (parts(0), parts(1));
        assert_eq!([&first[0], &first[3]], ["00", "01"]);
        assert_eq!(format!("evt_{}", first[1]), posts[0].event_id(), "the event is the trace");
        assert_eq!(first[1], second[1]);
        assert_ne!(first[2], second[2]);
        assert!(first[2].len() == 16 && first[2].bytes().all(|byte| byte.is_ascii_hexdigit()));
        for post in &posts {
            operator.wait_log(post.header("traceparent"), SOON).await;
        }
        let attempts = lines(&operator, "attempt");
        let logged: Vec<_> = attempts.iter().map(|line| fields(line, &["traceparent"])[0]).collect();
        assert_eq!(logged, [posts[0].header("traceparent"), posts[1].header("traceparent")]);
    });
}
