//! The address guard: refused addresses are reported in the status, and nothing is sent to them.

use std::time::Duration;

use llmtune_webhooks_harness::{eventually, operator::Operator, receiver::Receiver};
use serde_json::json;

use crate::support::{Jobs, SOON, Scene, run};

/// Starts one job, and waits until the attempt to each of these Webhooks is refused. Returns the errors in their
/// statuses.
async fn refusals(scene: &Scene, operator: &Operator, webhooks: &[&str]) -> Vec<String> {
    for webhook in webhooks {
        scene.wait(&format!("webhook/{webhook}"), "condition=Ready");
    }
    let jobs = Jobs::new(scene).await;
    jobs.create("llama").await;
    jobs.start("llama").await;
    let mut errors = Vec::new();
    for webhook in webhooks {
        let error = eventually(&format!("the refusal is in the status of {webhook}"), SOON, || async {
            scene.get("webhook", webhook)["status"]["lastFailure"]["error"].as_str().map(str::to_owned)
        })
        .await;
        let outcome = [("webhook", *webhook), ("outcome", "address")];
        assert_eq!(operator.metric("llmtune_webhooks_attempts_total", &outcome) as u64, 1, "{webhook}: {error}");
        let note = scene.wait_event("Webhook", webhook, "DeliveriesFailing").await;
        assert!(note.contains(&error), "{note}");
        assert!(error.starts_with("address refused: "), "{error}");
        errors.push(error);
    }
    errors
}

#[test]
fn refused_address_is_reported_and_never_reached() {
    run(async {
        let scene = Scene::new("refused").await;
        let receiver = Receiver::start().await;
        let once = json!({"delivery": {"maxRetries": 0}});
        let webhooks = [
            ("metadata", "http://169.254.169.254/latest/meta-data".to_owned(), "169.254.169.254 is in 169.254.0.0/16"),
            ("name", format!("http://localhost:{}/hook", receiver.port), "localhost is in "),
            ("address", receiver.url(), "127.0.0.1 is in 127.0.0.0/8 (loopback)"),
            ("hexadecimal", format!("http://0x7f.1:{}/hook", receiver.port), "127.0.0.1 is in 127.0.0.0/8 (loopback)"),
            ("mapped", format!("http://[::ffff:127.0.0.1]:{}/", receiver.port), "[::ffff:7f00:1] is in 127.0.0.0/8"),
            (
                "apiserver",
                format!("https://127.0.0.1:{}/", scene.plane.port),
                "the address and port of the kube-apiserver",
            ),
        ];
        for (name, url, _) in &webhooks {
            scene.webhook(name, url, &once);
        }
        let options = scene.options().guarded();
        let operator = Operator::start_ready(&scene.plane, &options).await;
        let names = webhooks.each_ref().map(|(name, ..)| *name);
        let errors = refusals(&scene, &operator, &names).await;
        for (error, (name, _, says)) in errors.iter().zip(&webhooks) {
            assert!(error.contains(says), "{name}: {error}");
        }
        assert_eq!(receiver.count(), 0);
    });
}

#[test]
fn apiserver_is_not_reached_if_its_range_is_allowed() {
    run(async {
        let scene = Scene::new("apiserver").await;
        let once = json!({"delivery": {"maxRetries": 0}});
        let port = scene.plane.port;
        scene.webhook("address", &format!("https://127.0.0.1:{port}/api"), &once);
        scene.webhook("name", &format!("https://localhost:{port}/api"), &once);
        let operator = scene.operator().await;
        for error in refusals(&scene, &operator, &["address", "name"]).await {
            assert!(error.contains("is the address and port of the kube-apiserver, which is always denied"), "{error}");
        }
    });
}

#[test]
fn refused_address_is_retried_because_dns_can_change() {
    run(async {
        let scene = Scene::new("again").await;
        let policy = json!({"maxRetries": 2, "backoff": {"initial": "100ms", "max": "100ms"}});
        scene.webhook("ci", "http://169.254.169.254/", &json!({"delivery": policy}));
        let operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");
        let jobs = Jobs::new(&scene).await;
        jobs.create("llama").await;
        jobs.start("llama").await;
        let note = scene.wait_event("Webhook", "ci", "DeliveryExhausted").await;
        assert!(note.contains("after 3 attempts: address refused: 169.254.169.254"), "{note}");
        assert_eq!(operator.metric("llmtune_webhooks_attempts_total", &[("outcome", "address")]) as u64, 3);
    });
}

#[test]
fn require_https_stalls_http_webhooks() {
    run(async {
        let scene = Scene::new("https").await;
        let receiver = Receiver::start().await;
        scene.webhook("plain", &receiver.url(), &json!({}));
        scene.webhook("safe", "https://receiver.example.com/hooks", &json!({}));
        let options = scene.options().argument("--require-https");
        let _operator = Operator::start_ready(&scene.plane, &options).await;
        scene.wait("webhook/safe", "condition=Ready");
        scene.wait_condition("plain", "Stalled", "True", "HTTPSRequired", SOON).await;
        let (status, reason, message) = scene.condition("plain", "Ready").unwrap();
        assert_eq!((status.as_str(), reason.as_str()), ("False", "HTTPSRequired"));
        assert!(message.contains("--require-https") && message.contains("write https://"), "{message}");
        let jobs = Jobs::new(&scene).await;
        jobs.create("llama").await;
        jobs.start("llama").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(receiver.count(), 0);
    });
}

#[test]
fn proxy_reaches_hosts_that_do_not_resolve() {
    run(async {
        let scene = Scene::new("proxy").await;
        let (proxy, direct) = (Receiver::start().await, Receiver::start().await);
        scene.webhook("outside", "http://outside.example.invalid/hook", &json!({}));
        scene.webhook("inside", &direct.url(), &json!({}));
        let options = scene.options().argument("--no-proxy=127.0.0.1,inside.example.com");
        let options = options.argument(&format!("--proxy=http://user:hunter2@127.0.0.1:{}", proxy.port));
        let operator = Operator::start_ready(&scene.plane, &options).await;
        scene.wait("webhook/outside", "condition=Ready");
        scene.wait("webhook/inside", "condition=Ready");
        let jobs = Jobs::new(&scene).await;
        jobs.create("llama").await;
        jobs.start("llama").await;
        let by_proxy = proxy.wait(1, SOON).await;
        assert_eq!(by_proxy[0].header("host"), "outside.example.invalid");
        assert_eq!(by_proxy[0].header("proxy-authorization"), "Basic dXNlcjpodW50ZXIy");
        let past_it = direct.wait(1, SOON).await;
        assert_eq!(past_it[0].header("proxy-authorization"), "");
        assert_eq!((proxy.count(), direct.count()), (1, 1));
        assert!(!operator.log().contains("hunter2"));
    });
}
