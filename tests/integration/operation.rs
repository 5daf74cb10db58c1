//! The operator as a process: leader election, metrics and health, shutdown, and the number of its status writes.

use std::time::{Duration, Instant};

use llmtune_webhooks_harness::{
    eventually,
    operator::Operator,
    proxy::Proxy,
    receiver::{Answer, Receiver},
};
use serde_json::json;

use crate::support::{Jobs, SOON, Scene, replicas, run};

const LEASE: &str = "--lease-duration=6s";

fn holder(scene: &Scene) -> String {
    let lease = scene.get("lease", "llmtune-webhooks");
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn standby_takes_over_when_the_leader_stops() {
    run(async {
        let scene = Scene::new("handover").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let (mut first, mut second) = replicas(&scene, LEASE).await;
        let jobs = Jobs::new(&scene).await;
        jobs.create("a").await;
        jobs.phase("a", "Running").await;
        receiver.wait_for("training.started", "a", SOON).await;

        first.process.signal("TERM");
        assert!(first.process.wait(SOON).success());
        let released = Instant::now();
        second.wait_readyz("TrainingJob in", SOON).await;
        println!("the other replica leads and watches {:?} after the first had ended", released.elapsed());
        assert_eq!(holder(&scene), "two");
        jobs.phase("a", "Completed").await;
        receiver.wait_for("training.completed", "a", SOON).await;
        assert_eq!(receiver.count(), 2, "{:?}", receiver.events());
    });
}

#[test]
fn standby_takes_over_when_a_killed_leaders_lease_expires() {
    run(async {
        let scene = Scene::new("killed").await;
        let (mut first, mut second) = replicas(&scene, LEASE).await;
        first.process.kill();
        let killed = Instant::now();
        second.wait_readyz("leader", SOON).await;
        let took = killed.elapsed();
        println!("the other replica leads {took:?} after kill -9, with a lease of 6 s");
        // At the kill the last renewal may be one renewal period old.
        assert!(took > Duration::from_secs(4), "it waits for the expiry: {took:?}");
        assert_eq!(holder(&scene), "two");
    });
}

#[test]
fn a_restarted_process_takes_its_own_lease_back_at_once() {
    run(async {
        let scene = Scene::new("restart").await;
        let options = scene.options().argument("--lease-duration=5m");
        let mut first = Operator::start_ready(&scene.plane, &options).await;
        first.process.kill();
        let begun = Instant::now();
        let _second = Operator::start_ready(&scene.plane, &options).await;
        println!("leading again {:?} after the restart began, with a lease of 5 m", begun.elapsed());
    });
}

#[test]
fn disconnected_leader_pauses_and_continues() {
    run(async {
        let scene = Scene::new("cut-off").await;
        let receiver = Receiver::answering(|post| Answer::status(if post.attempt() < 4 { 500 } else { 200 })).await;
        scene.webhook(
            "ci",
            &receiver.url(),
            &json!({
                "delivery": {"maxRetries": 20, "backoff": {"initial": "3s", "factor": 1, "max": "3s"}}
            }),
        );
        let proxy = Proxy::start(scene.plane.port).await;
        let mut options = scene.options().argument("--lease-duration=3s");
        options.apiserver_port = Some(proxy.port);
        let operator = Operator::start_ready(&scene.plane, &options).await;
        let jobs = Jobs::new(&scene).await;
        jobs.create("a").await;
        jobs.phase("a", "Running").await;
        receiver.wait(1, SOON).await;
        proxy.cut();
        let cut = Instant::now();
        eventually("its claim lapses", SOON, || async {
            (operator.metric("llmtune_webhooks_leader", &[]) as u64 == 0).then_some(())
        })
        .await;
        let attempts = receiver.count();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(receiver.count(), attempts, "a retry was due, and is not begun");
        proxy.mend();
        let received = receiver.wait(4, SOON).await;
        println!("cut off for {:?}; the memory was kept", cut.elapsed());
        assert_eq!(received.last().unwrap().attempt(), 4);
        operator.wait_log("but nobody took it", SOON).await;
        jobs.phase("a", "Completed").await;
        receiver.wait_for("training.completed", "a", SOON).await;
    });
}

#[test]
fn a_leader_that_finds_another_in_its_place_stops() {
    run(async {
        let scene = Scene::new("deposed").await;
        let proxy = Proxy::start(scene.plane.port).await;
        let mut options = scene.options().argument(LEASE).identity("one");
        options.apiserver_port = Some(proxy.port);
        let mut first = Operator::start_ready(&scene.plane, &options).await;
        let mut second = Operator::start(&scene.plane, &scene.options().argument(LEASE).identity("two")).await;
        second.wait_readyz("standby: one leads", SOON).await;
        proxy.cut();
        second.wait_readyz("leader", SOON).await;
        proxy.mend();
        assert!(!first.process.wait(SOON).success());
        assert!(first.process.log_text().contains("lease was lost to \"two\""), "{}", first.process.log_tail());
    });
}

#[test]
fn shared_identity_is_reported() {
    run(async {
        let scene = Scene::new("twins").await;
        let options = scene.options().argument(LEASE);
        let mut first = Operator::start_ready(&scene.plane, &options).await;
        let _second = Operator::start_ready(&scene.plane, &options).await;
        assert_eq!(first.process.wait(SOON).code(), Some(1));
        let log = first.process.log_text();
        assert!(
            log.contains("the same identity") || log.contains("the same --identity"),
            "{}",
            first.process.log_tail()
        );
    });
}

#[test]
fn graceful_stop_finishes_attempts_and_releases_the_lease() {
    run(async {
        let scene = Scene::new("stop").await;
        let receiver = Receiver::answering(|_| Answer::status(200).after(Duration::from_secs(2))).await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let mut operator = scene.operator().await;
        scene.job("a");
        scene.phase("a", "Running");
        receiver.wait(1, SOON).await;
        operator.process.signal("TERM");
        assert!(operator.process.wait(SOON).success(), "{}", operator.process.log_tail());
        let status = &scene.get("webhook", "ci")["status"];
        assert_eq!(status["deliveries"]["succeeded"], 1, "{status:#}");
        assert_eq!(status["deliveries"]["pending"], 0);
        assert_eq!(holder(&scene), "");
    });
}

#[test]
fn metrics_and_health_tell_what_happens() {
    run(async {
        let scene = Scene::new("metrics").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        scene.webhook("held", &receiver.url(), &json!({"suspend": true}));
        let operator = scene.operator().await;
        scene.job("a");
        scene.phase("a", "Running");
        scene.phase("a", "Completed");
        receiver.wait(2, SOON).await;
        let value = |name: &str, labels: &[(&str, &str)]| operator.metric(&format!("llmtune_webhooks_{name}"), labels);
        eventually("both deliveries are counted", SOON, || async {
            (value("deliveries_total", &[("webhook", "ci"), ("result", "delivered")]) as u64 == 2).then_some(())
        })
        .await;
        let ci = [("namespace", scene.namespace.as_str()), ("webhook", "ci")];
        let count = |name: &str, labels: &[(&str, &str)]| value(name, labels) as u64;
        assert_eq!(count("events_total", &[("event", "training.started")]), 1);
        assert_eq!(count("events_total", &[("event", "training.completed")]), 1);
        assert_eq!(count("attempts_total", &[ci[0], ci[1], ("outcome", "2xx")]), 2);
        assert_eq!(count("attempt_duration_seconds_count", &[]), 2);
        assert_eq!(count("delivery_latency_seconds_count", &[("event", "training.started")]), 1);
        assert_eq!(count("pending_deliveries", &[("webhook", "held")]), 2);
        assert_eq!(count("pending_deliveries", &[("webhook", "ci")]), 0);
        assert!(value("oldest_pending_age_seconds", &[("webhook", "held")]) > 0.0);
        eventually("conditions are exported", SOON, || async {
            let healthy = [("webhook", "ci"), ("type", "Healthy"), ("status", "True")];
            (count("webhook_condition", &healthy) == 1).then_some(())
        })
        .await;
        assert_eq!(count("webhook_condition", &[("webhook", "ci"), ("type", "Ready"), ("status", "False")]), 0);
        assert!(value("watch_last_activity_timestamp_seconds", &[("kind", "TrainingJob")]) > 1.7e9);
        assert!(value("watch_last_activity_timestamp_seconds", &[("kind", "Deployment")]) > 1.7e9);
        assert_eq!(count("ledger_records", &[]), 1);
        assert!(count("api_requests_total", &[("verb", "watch"), ("resource", "trainingjobs"), ("code", "200")]) >= 1);
        assert_eq!(count("api_requests_total", &[("code", "403")]), 0, "the shipped roles suffice");
        assert_eq!(count("leader", &[]), 1);
        assert_eq!(count("build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1);
        parse_exposition(&operator.metrics());

        assert_eq!(operator.get("/healthz"), Some((200, "ok\n".into())));
        let (status, ready) = operator.get("/readyz").unwrap();
        assert_eq!(status, 200);
        assert!(ready.starts_with("leader\n") && ready.contains("TrainingJob in"), "{ready}");

        scene.kubectl(&["delete", "webhook", "ci"]);
        eventually("a deleted Webhook's series go", SOON, || async {
            (!operator.metrics().contains("webhook=\"ci\"")).then_some(())
        })
        .await;
        scene.kubectl(&["delete", "webhook", "held"]);
        // A Webhook of the same name and URL may take over the pending deliveries for a minute.
        eventually("what it held is counted, and its series go too", Duration::from_secs(120), || async {
            let dropped = count("dropped_total", &[("webhook", ""), ("reason", "webhook_deleted")]);
            (dropped == 2 && !operator.metrics().contains("webhook=\"held\"")).then_some(())
        })
        .await;
    });
}

/// Every line is a comment or `name{label="value",…} number`, and every series has a HELP and a TYPE.
fn parse_exposition(text: &str) {
    let mut typed = std::collections::HashSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            typed.insert(rest.split(' ').next().unwrap());
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = series.split('{').next().unwrap();
        assert!(name.starts_with("llmtune_webhooks_"), "{line}");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        assert!(typed.contains(name) || family.is_some_and(|family| typed.contains(family)), "{line}");
        if let Some(labels) = series.split_once('{') {
            assert!(labels.1.ends_with('}'), "{line}");
        }
    }
}

#[test]
fn status_writes_do_not_grow_with_deliveries() {
    run(async {
        let scene = Scene::new("writes").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");
        let writes = || {
            let labels = [("verb", "patch"), ("resource", "webhooks/status")];
            operator.metric("llmtune_webhooks_api_requests_total", &labels) as u64
        };
        let before = writes();
        let jobs = Jobs::new(&scene).await;
        let took = jobs.drive(500, 100).await;
        receiver.wait(1000, SOON).await;
        let made = writes() - before;
        println!("{made} status writes for 1,000 deliveries over {took:?}");
        // One write immediately, then one every five seconds, one for the conditions, and one that may be in flight.
        assert!(made <= took.as_secs() / 5 + 4, "{made} writes in {took:?}");
        eventually("the last count is written", SOON, || async {
            (scene.get("webhook", "ci")["status"]["deliveries"]["succeeded"] == 1000).then_some(())
        })
        .await;
    });
}

#[test]
fn a_wrong_configuration_is_refused_with_what_to_write_instead() {
    let refused = |arguments: &[&str]| {
        let output = std::process::Command::new(crate::support::BINARY)
            .args(arguments)
            .env("KUBECONFIG", "/nonexistent")
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let listen = "--listen=127.0.0.1:0";
    assert!(refused(&["run", listen]).contains("set KUBECONFIG"));
    assert!(refused(&["run", "--lease-duration=1s"]).contains("from 3s to 5m"));
    assert!(refused(&["run", listen, "--ca-file=/nonexistent"]).contains("--ca-file /nonexistent"));
    let nowhere = refused(&["run", "--listen=nowhere"]);
    assert!(nowhere.contains("--listen") && nowhere.contains("such as [::]:8080, 0.0.0.0:8080"), "{nowhere}");
    assert!(refused(&["run", "--namespace=Bad Name"]).contains("such as llmtune-system"));
    assert!(refused(&["run", "--watch-namespace="]).contains("omit the flag"));
    let one_address = refused(&["run", "--allow-cidr=127.0.0.0/8,10.1.2.3"]);
    assert!(one_address.contains("--allow-cidr") && one_address.contains("use 10.1.2.3/32"), "{one_address}");
    assert!(refused(&["run", "--deny-cidr=10.1.2.3/8"]).contains("use 10.0.0.0/8"));
    assert!(refused(&["run", "--no-proxy=a.example.com"]).contains("--proxy"));
    let proxy = refused(&["run", listen, "--proxy=user:hunter2@proxy:3128"]);
    assert!(proxy.contains("--proxy: write the proxy's URL") && !proxy.contains("hunter2"), "{proxy}");
    let unreadable = refused(&["run", listen]);
    assert!(unreadable.contains("KUBECONFIG=/nonexistent cannot be used"), "{unreadable}");
    assert!(unreadable.contains("No such file") && !unreadable.contains("in-cluster"), "{unreadable}");
}

#[test]
fn occupied_port_is_reported() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output =
        std::process::Command::new(crate::support::BINARY).args(["run", "--listen", &address]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains(&address) && error.contains("--listen"), "{error}");
}

#[test]
fn new_ledger_epoch_is_an_event_on_the_lease() {
    run(async {
        let scene = Scene::new("epoch").await;
        let _operator = scene.operator().await;
        scene.wait_event("Lease", "llmtune-webhooks", "NewLedgerEpoch").await;
        let described = scene.kubectl(&["describe", "lease", "llmtune-webhooks"]);
        assert!(described.contains("NewLedgerEpoch") && described.contains("baseline"), "{described}");
    });
}
