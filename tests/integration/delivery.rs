//! From a transition on the apiserver to an acknowledged POST, with endpoints that fail in many ways.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use llmtune_webhooks_harness::{
    eventually,
    operator::Operator,
    receiver::{Answer, Received, Receiver},
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::{Jobs, SOON, Scene, in_order, misbehaving, read_request, run};

/// Retries that are fast enough for a test to wait for all of them.
fn quick(max_retries: u32) -> Value {
    json!({"delivery": {"maxRetries": max_retries, "backoff": {"initial": "50ms", "factor": 1, "max": "100ms"}}})
}

#[test]
fn running_and_completing_sends_two_signed_posts() {
    run(async {
        let scene = Scene::new("basic").await;
        let receiver = Receiver::start().await;
        scene.secret("ci-hook", "s3cret");
        scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci-hook"}}));
        let options = scene.options().argument("--cluster-name=prod-eu");
        let _operator = Operator::start_ready(&scene.plane, &options).await;
        scene.wait("webhook/ci", "condition=Ready");
        scene.job("llama");
        scene.phase("llama", "Pending");
        scene.phase("llama", "Running");
        scene.phase("llama", "Completed");
        receiver.wait_for("training.completed", "llama", SOON).await;
        let received = receiver.received();
        assert_eq!(received.len(), 2);
        assert_eq!(received[0].event(), "training.started");
        assert!(received.iter().all(|post| post.is_signed_with("s3cret")));
        assert!(received.iter().all(|post| post.json()["cluster"] == "prod-eu"));
    });
}

#[test]
fn existing_objects_are_a_baseline() {
    run(async {
        let scene = Scene::new("baseline").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        for (name, phase) in [("running", "Running"), ("done", "Completed"), ("failed", "Failed")] {
            scene.job(name);
            scene.phase(name, phase);
        }
        let _operator = scene.operator().await;
        scene.phase("running", "Completed");
        let received = receiver.wait_for("training.completed", "running", SOON).await;
        assert_eq!(received.json()["data"]["run"], 1);
        assert_eq!(receiver.count(), 1, "{:?}", receiver.events());
    });
}

#[test]
fn retries_keep_the_ids_until_acknowledged() {
    run(async {
        let scene = Scene::new("retry").await;
        let receiver = Receiver::answering(|post| Answer::status(if post.attempt() < 3 { 500 } else { 204 })).await;
        scene.webhook("ci", &receiver.url(), &quick(5));
        let operator = scene.operator().await;
        scene.job("llama");
        scene.phase("llama", "Running");
        let received = receiver.wait(3, SOON).await;
        let header = |name: &str| received.iter().map(|post| post.header(name).to_owned()).collect::<HashSet<_>>();
        assert_eq!(received.iter().map(Received::attempt).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(header("x-llmtune-event-id").len(), 1);
        assert_eq!(header("x-llmtune-delivery-id").len(), 1);
        let waits = received.windows(2).map(|pair| pair[1].at - pair[0].at);
        for wait in waits {
            assert!(wait >= Duration::from_millis(40), "the backoff of 50 ms, less a fifth, is kept: {wait:?}");
        }
        eventually("the status counts them", SOON, || async {
            let status = &scene.get("webhook", "ci")["status"];
            (status["deliveries"]["succeeded"] == 1 && status["deliveries"]["retries"] == 2).then_some(())
        })
        .await;
        assert_eq!(operator.metric("llmtune_webhooks_attempts_total", &[("outcome", "5xx")]) as u64, 2);
        assert_eq!(receiver.count(), 3, "acknowledged is done");
    });
}

#[test]
fn a_retry_after_is_honoured_up_to_the_longest_backoff() {
    run(async {
        let scene = Scene::new("retry-after").await;
        let polite = |wait: &'static str| {
            move |post: &Received| match post.attempt() {
                1 => Answer::status(503).header("retry-after", wait),
                _ => Answer::status(200),
            }
        };
        let (two, day) = (Receiver::answering(polite("2")).await, Receiver::answering(polite("86400")).await);
        let policy = json!({"delivery": {"backoff": {"initial": "50ms", "max": "3s"}}});
        scene.webhook("two", &two.url(), &policy);
        scene.webhook("day", &day.url(), &policy);
        let _operator = scene.operator().await;
        scene.job("llama");
        scene.phase("llama", "Running");
        let received = two.wait(2, SOON).await;
        assert!(received[1].at - received[0].at >= Duration::from_secs(2));
        let received = day.wait(2, SOON).await;
        let wait = received[1].at - received[0].at;
        assert!(wait >= Duration::from_secs(3) && wait < Duration::from_secs(20), "{wait:?}");
    });
}

#[test]
fn retry_after_of_429_pauses_the_webhook() {
    run(async {
        let scene = Scene::new("throttled").await;
        let asked = Arc::new(AtomicBool::new(false));
        let receiver = Receiver::answering({
            let asked = Arc::clone(&asked);
            move |_| {
                if asked.swap(true, Ordering::Relaxed) {
                    Answer::status(200)
                } else {
                    Answer::status(429).header("retry-after", "4")
                }
            }
        })
        .await;
        scene.webhook("ci", &receiver.url(), &json!({"delivery": {"backoff": {"initial": "50ms"}}}));
        let operator = scene.operator().await;
        scene.job("first");
        scene.phase("first", "Running");
        let refused = receiver.wait(1, SOON).await.remove(0);
        for name in ["second", "third"] {
            scene.job(name);
            scene.phase(name, "Running");
        }
        assert_eq!(operator.metric("llmtune_webhooks_paused", &[("webhook", "ci")]) as u64, 1);
        for name in ["first", "second", "third"] {
            let post = receiver.wait_for("training.started", name, SOON).await;
            if name != "first" {
                assert!(post.at - refused.at >= Duration::from_secs(4), "{name} came during the pause");
                assert_eq!(post.attempt(), 1, "{name} spent an attempt that was not made");
            }
        }
        receiver.wait(4, SOON).await;
        eventually("the status shows one retry and a healthy endpoint", SOON, || async {
            let status = &scene.get("webhook", "ci")["status"];
            let deliveries = &status["deliveries"];
            (deliveries["succeeded"] == 3 && deliveries["retries"] == 1 && status["lastFailure"]["statusCode"] == 429)
                .then_some(())
        })
        .await;
        let events = scene.kubectl(&["get", "events", "-o", "json"]);
        assert!(!events.contains("DeliveriesFailing"), "a pause does not change health: {events}");
    });
}

#[test]
fn delivery_is_given_up_and_reported_after_the_last_retry() {
    run(async {
        let scene = Scene::new("exhausted").await;
        let receiver = Receiver::answering(|_| Answer::status(500)).await;
        scene.webhook("ci", &receiver.url(), &quick(2));
        let operator = scene.operator().await;
        scene.job("llama");
        scene.phase("llama", "Running");
        let received = receiver.wait(3, SOON).await;
        assert_eq!(received.iter().map(Received::attempt).collect::<Vec<_>>(), [1, 2, 3]);
        let note = scene.wait_event("Webhook", "ci", "DeliveryExhausted").await;
        assert!(note.contains("training.started") && note.contains("HTTP 500"), "{note}");
        let note = scene.wait_event("TrainingJob", "llama", "WebhookDeliveryExhausted").await;
        assert!(note.contains("Webhook ci"), "{note}");
        scene.wait_condition("ci", "Healthy", "False", "DeliveriesFailing", SOON).await;
        scene.wait_condition("ci", "Ready", "True", "Subscribed", SOON).await;
        let labels = [("webhook", "ci"), ("result", "exhausted")];
        assert_eq!(operator.metric("llmtune_webhooks_deliveries_total", &labels) as u64, 1);
        assert_eq!(receiver.count(), 3, "given up is done");

        receiver.answer(|_| Answer::status(200));
        scene.phase("llama", "Completed");
        scene.wait_condition("ci", "Healthy", "True", "Acknowledged", SOON).await;
        scene.wait_event("Webhook", "ci", "EndpointRecovered").await;
    });
}

#[test]
fn gone_endpoint_gets_nothing_until_the_spec_changes() {
    run(async {
        let scene = Scene::new("gone").await;
        let receiver = Receiver::answering(|_| Answer::status(410)).await;
        scene.webhook("ci", &receiver.url(), &quick(5));
        let _operator = scene.operator().await;
        scene.job("llama");
        scene.phase("llama", "Running");
        scene.wait_condition("ci", "Healthy", "False", "EndpointGone", SOON).await;
        scene.phase("llama", "Completed");
        eventually("both events are given up", SOON, || async {
            (scene.get("webhook", "ci")["status"]["deliveries"]["failed"] == 2).then_some(())
        })
        .await;
        assert_eq!(receiver.count(), 1, "410 is not retried, and nothing follows it");
        scene.wait_event("Webhook", "ci", "EndpointGone").await;

        receiver.answer(|_| Answer::status(200));
        scene.webhook("ci", &receiver.url(), &quick(4));
        let generation = scene.get("webhook", "ci")["metadata"]["generation"].clone();
        eventually("the new spec is taken up", SOON, || async {
            (scene.get("webhook", "ci")["status"]["observedGeneration"] == generation).then_some(())
        })
        .await;
        scene.job("next");
        scene.phase("next", "Running");
        receiver.wait_for("training.started", "next", SOON).await;
        scene.wait_condition("ci", "Healthy", "True", "Acknowledged", SOON).await;
    });
}

#[test]
fn a_redirect_is_not_followed_and_its_host_is_named() {
    run(async {
        let scene = Scene::new("redirect").await;
        let target = Receiver::start().await;
        let location = target.url().replace("127.0.0.1", "localhost");
        let receiver = Receiver::answering(move |_| Answer::status(307).header("location", &location)).await;
        scene.webhook("ci", &receiver.url(), &quick(1));
        let _operator = scene.operator().await;
        scene.job("llama");
        scene.phase("llama", "Running");
        let error = eventually("the failure is in the status", SOON, || async {
            scene.get("webhook", "ci")["status"]["lastFailure"]["error"].as_str().map(str::to_owned)
        })
        .await;
        assert!(error.contains("307") && error.contains("host localhost") && !error.contains("/hook"), "{error}");
        assert_eq!(target.count(), 0);
    });
}

#[test]
fn misbehaving_endpoint_harms_no_other_webhook() {
    run(async {
        let scene = Scene::new("harm").await;
        let good = Receiver::start().await;
        let failing = Receiver::answering(|_| Answer::status(500)).await;
        let hangs = misbehaving(|mut stream| async move {
            read_request(&mut stream).await;
            std::future::pending::<()>().await;
        })
        .await;
        let drips = misbehaving(|mut stream| async move {
            read_request(&mut stream).await;
            for byte in b"HTTP/1.1 200 OK\r\nx-slow: ".iter().chain(std::iter::repeat(&b'a')) {
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
        .await;
        let breaks = misbehaving(|mut stream| async move {
            read_request(&mut stream).await;
            let _ = stream.write_all(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 1000\r\n\r\nabc").await;
        })
        .await;
        let nonsense = misbehaving(|mut stream| async move {
            read_request(&mut stream).await;
            let _ = stream.write_all(b"I am no HTTP server\r\n\r\n").await;
        })
        .await;
        let floods = misbehaving(|mut stream| async move {
            read_request(&mut stream).await;
            let _ = stream.write_all(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 9999999999\r\n\r\n").await;
            let chunk = vec![b'x'; 1 << 16];
            while stream.write_all(&chunk).await.is_ok() {}
        })
        .await;
        let policy = json!({"delivery": {"timeout": "1s", "maxRetries": 1, "concurrency": 2,
                                         "backoff": {"initial": "100ms", "max": "100ms"}}});
        let closed = format!("http://127.0.0.1:{}/hook", llmtune_webhooks_harness::process::free_port());
        let bad = [
            ("hangs", hangs.as_str()),
            ("drips", &drips),
            ("breaks", &breaks),
            ("nonsense", &nonsense),
            ("floods", &floods),
            ("fails", &failing.url()),
            ("closed", &closed),
        ];
        for (name, url) in bad {
            scene.webhook(name, url, &policy);
        }
        scene.webhook("good", &good.url(), &policy);
        let operator = scene.operator().await;
        let before = operator.process.resident_kib();
        let jobs = Jobs::new(&scene).await;
        let begun = Instant::now();
        for number in 0..30 {
            jobs.create(&format!("job-{number}")).await;
            jobs.phase(&format!("job-{number}"), "Running").await;
        }
        good.wait(30, SOON).await;
        println!("30 events at the good endpoint within {:?}", begun.elapsed());
        for (name, _) in bad {
            eventually(&format!("{name} exhausts its deliveries"), Duration::from_secs(90), || async {
                (scene.get("webhook", name)["status"]["deliveries"]["failed"] == 30).then_some(())
            })
            .await;
            let status = &scene.get("webhook", name)["status"];
            println!("{name}: {}", status["lastFailure"]["error"]);
        }
        let outcome = |webhook: &str, outcome: &str| {
            operator.metric("llmtune_webhooks_attempts_total", &[("webhook", webhook), ("outcome", outcome)]) as u64
        };
        assert_eq!(outcome("hangs", "timeout"), 60);
        assert_eq!(outcome("drips", "timeout"), 60);
        assert_eq!(outcome("breaks", "5xx"), 60);
        assert_eq!(outcome("nonsense", "protocol"), 60);
        assert_eq!(outcome("floods", "5xx"), 60);
        assert_eq!(outcome("fails", "5xx"), 60);
        assert_eq!(outcome("closed", "connect"), 60);
        let grown = operator.process.resident_kib().saturating_sub(before);
        println!("memory grew by {grown} KiB");
        assert!(grown < 64 * 1024, "answers are not kept: grew by {grown} KiB");
        let latest = good.received().iter().map(|post| post.at).max().unwrap();
        assert!(latest - begun < SOON);
    });
}

#[test]
fn two_thousand_transitions_arrive_once_in_order_and_signed() {
    run(async {
        let scene = Scene::new("load").await;
        let receiver = Receiver::start().await;
        scene.secret("ci-hook", "s3cret");
        scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci-hook"}}));
        let _operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");
        let jobs = Jobs::new(&scene).await;
        let took = jobs.drive(1000, 100).await;
        let received = receiver.wait(2000, Duration::from_secs(60)).await;
        println!("2,000 transitions driven in {took:?}, 2,000 POSTs received");
        assert!(received.iter().all(|post| post.is_signed_with("s3cret")));
        in_order(&received, 1000);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(receiver.count(), 2000, "none is sent twice");
    });
}

#[test]
fn every_event_arrives_despite_thirty_percent_errors() {
    run(async {
        let scene = Scene::new("lossy").await;
        // The ids decide which attempts fail, so that a run can be repeated.
        let receiver = Receiver::answering(|post| {
            let seed = post.header("x-llmtune-delivery-id").bytes().chain([post.attempt() as u8]);
            let hash = seed.fold(17_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
            Answer::status(if hash % 10 < 3 { 500 } else { 200 })
        })
        .await;
        scene.webhook(
            "ci",
            &receiver.url(),
            &json!({"delivery": {
                "maxRetries": 20, "backoff": {"initial": "20ms", "factor": 2, "max": "200ms"}
            }}),
        );
        let operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        jobs.drive(1000, 100).await;
        let delivered = || operator.metric("llmtune_webhooks_deliveries_total", &[("result", "delivered")]) as u64;
        eventually("2,000 deliveries are acknowledged", Duration::from_secs(60), || async {
            (delivered() == 2000).then_some(())
        })
        .await;
        let received = receiver.received();
        let ids: HashSet<&str> = received.iter().map(|post| post.header("x-llmtune-event-id")).collect();
        println!("{} requests for 2,000 events", received.len());
        assert_eq!(ids.len(), 2000);
        assert!(received.len() > 2500, "three in ten failed");
        let first: Vec<Received> = received.into_iter().filter(|post| post.attempt() == 1).collect();
        in_order(&first, 1000);
    });
}
