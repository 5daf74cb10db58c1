//! URLs and headers from Secrets: sent if the label of the Secret allows it, updated as the Secret changes, and never
//! shown.

use std::time::Duration;

use llmtune_webhooks_harness::{
    eventually,
    operator::Operator,
    receiver::{Answer, Closed, Received, Receiver},
};
use serde_json::{Value, json};

use crate::support::{SOON, Scene, run, webhook};

/// A Secret. `sendable` adds the label that allows sending it in clear.
pub fn secret(name: &str, sendable: bool, data: &Value) -> Value {
    let mut secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data});
    if sendable {
        secret["metadata"]["labels"] = json!({"llmtune.io/send-in-clear": "true"});
    }
    secret
}

/// A reference to a value.
pub fn from(name: &str, key: &str) -> Value {
    json!({"secretKeyRef": {"name": name, "key": key}})
}

/// A Webhook's manifest with the URL from this Secret and these additional fields.
pub fn url_from(name: &str, secret: &str, fields: &Value) -> Value {
    let mut manifest = webhook(name, "", fields);
    let spec = manifest["spec"].as_object_mut().unwrap();
    spec.remove("url");
    spec.insert("urlFrom".into(), from(secret, "url"));
    manifest
}

fn bearer(name: &str, key: &str) -> Value {
    json!({"headers": [{"name": "Authorization", "valueFrom": from(name, key)}, {"name": "X-Env", "value": "prod"}]})
}

#[test]
fn urls_and_headers_from_secrets_are_not_shown() {
    run(async {
        let scene = Scene::new("from-secrets").await;
        let receiver = Receiver::start().await;
        let url = format!("http://127.0.0.1:{}/hooks/t0ken?to=a%20b", receiver.port);
        // With the line breaks that `echo` adds.
        scene.apply(&secret("chat", true, &json!({"url": format!("{url}\n"), "token": "Bearer a.b-c\r\n"})));
        scene.apply(&url_from("chat", "chat", &bearer("chat", "token")));
        let operator = scene.operator().await;
        scene.wait("webhook/chat", "condition=Ready");
        assert_eq!(scene.get("webhook", "chat")["status"]["endpoint"], "(Secret chat)");
        let reads = operator.metric("llmtune_webhooks_api_requests_total", &[("resource", "secrets")]) as u64;
        assert_eq!(reads, 1, "one Secret is read once, for all that it holds");

        scene.job("llama");
        scene.phase("llama", "Running");
        scene.apply(&json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery", "metadata": {"name": "try"},
            "spec": {"webhookRef": {"name": "chat"}, "test": {"event": "training.completed"}}
        }));
        scene.wait("whd/try", "condition=Delivered");
        for post in receiver.wait(2, SOON).await {
            assert_eq!(post.path, "/hooks/t0ken");
            assert_eq!((post.header("authorization"), post.header("x-env")), ("Bearer a.b-c", "prod"));
            assert_eq!(post.header("content-type"), "application/json");
        }
    });
}

#[test]
fn secret_is_sent_in_clear_only_with_its_label() {
    run(async {
        let scene = Scene::new("send-in-clear").await;
        let receiver = Receiver::start().await;
        let data = json!({"url": receiver.url(), "token": "Bearer a"});
        for name in ["url", "header"] {
            scene.apply(&secret(name, false, &data));
        }
        let once =
            json!({"delivery": {"maxRetries": 20, "backoff": {"initial": "100ms", "factor": 1, "max": "100ms"}}});
        scene.apply(&url_from("url", "url", &once));
        let mut with_header = bearer("header", "token");
        with_header["delivery"] = once["delivery"].clone();
        scene.webhook("header", &receiver.url(), &with_header);
        let operator = scene.operator().await;
        scene.job("llama");
        scene.phase("llama", "Running");
        for name in ["url", "header"] {
            scene.wait_condition(name, "Ready", "False", "SendInClearNotAllowed", SOON).await;
            assert_eq!(scene.condition(name, "Stalled").unwrap().0, "False", "the label may be on its way");
        }
        // The message does not even name the keys of a Secret that may not be sent.
        let mut missing = url_from("keys", "url", &json!({}));
        missing["spec"]["urlFrom"] = from("url", "missing");
        scene.apply(&missing);
        scene.wait_condition("keys", "Ready", "False", "SendInClearNotAllowed", SOON).await;
        scene.kubectl(&["delete", "webhook", "keys"]);
        assert_eq!(receiver.count(), 0);

        scene.kubectl(&["label", "secret", "url", "llmtune.io/send-in-clear=false"]);
        for name in ["url", "header"] {
            let (_, _, message) = scene.condition(name, "Ready").unwrap();
            let (_, command) = message.split_once("to allow it, run: kubectl ").unwrap();
            let arguments: Vec<&str> = command.split(' ').collect();
            let output = scene.plane.kubectl(&arguments);
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        }
        receiver.wait(2, SOON).await;
        for name in ["url", "header"] {
            scene.wait_condition(name, "Ready", "True", "Subscribed", SOON).await;
        }

        // After the label is removed, deliveries are held as soon as the Secret is read again.
        for name in ["url", "header"] {
            scene.kubectl(&["label", "secret", name, "llmtune.io/send-in-clear-"]);
        }
        receiver.answer(|_| Answer::status(401));
        scene.job("mistral");
        scene.phase("mistral", "Running");
        for name in ["url", "header"] {
            scene.wait_condition(name, "Ready", "False", "SendInClearNotAllowed", SOON).await;
        }
        let exhausted = operator.metric("llmtune_webhooks_deliveries_total", &[("result", "exhausted")]) as u64;
        assert_eq!(exhausted, 0);
    });
}

#[test]
fn changed_secret_urls_and_headers_take_effect_live() {
    run(async {
        let scene = Scene::new("moved").await;
        let closed = Closed::reserve();
        let (closed_url, receiver) = (
            closed.url(),
            Receiver::answering(|post: &Received| {
                Answer::status(if post.header("authorization") == "Bearer new" { 200 } else { 401 })
            })
            .await,
        );
        let chat = |url: &str, token: &str| scene.apply(&secret("chat", true, &json!({"url": url, "token": token})));
        chat(&closed_url, "Bearer old");
        let mut spec = bearer("chat", "token");
        spec["delivery"] = json!({"maxRetries": 20, "backoff": {"initial": "1s", "factor": 1, "max": "1s"}});
        scene.apply(&url_from("chat", "chat", &spec));
        let _operator = scene.operator().await;
        scene.wait("webhook/chat", "condition=Ready");
        scene.job("llama");
        scene.phase("llama", "Running");
        eventually("the attempt fails", SOON, || async {
            let error = scene.get("webhook", "chat")["status"]["lastFailure"]["error"].as_str()?.to_owned();
            assert!(
                error.contains("cannot connect to the host and port of the URL that spec.urlFrom names"),
                "{error}"
            );
            Some(())
        })
        .await;
        chat(&receiver.url(), "Bearer old");
        receiver.wait(1, SOON).await;
        chat(&receiver.url(), "Bearer new");
        scene.wait_condition("chat", "Healthy", "True", "Acknowledged", SOON).await;
        assert_eq!(receiver.received().last().unwrap().header("authorization"), "Bearer new");
        drop(closed);
    });
}

#[test]
fn invalid_secret_url_or_header_is_reported_without_content() {
    run(async {
        let scene = Scene::new("unusable").await;
        let url = |url: &str| scene.apply(&secret("url", true, &json!({"url": url})));
        let token = |token: &str| scene.apply(&secret("token", true, &json!({"token": token})));
        url("http://hidden.example.com");
        token("hidden\nX-Forged: 1");
        scene.apply(&url_from("url", "url", &json!({})));
        scene.webhook("header", "https://ci.example.com", &bearer("token", "token"));
        let options = scene.options().argument("--require-https");
        let operator = Operator::start_ready(&scene.plane, &options).await;
        let reports = async |webhook: &str, reason: &str, says: &str| {
            scene.wait_condition(webhook, "Stalled", "True", reason, SOON).await;
            let text = eventually("the message is that of the Secret as it is", SOON, || async {
                let (status, _, message) = scene.condition(webhook, "Ready").unwrap();
                (status == "False" && message.contains(says)).then_some(message)
            })
            .await;
            assert!(!text.contains("hidden"), "{text}");
        };
        reports("url", "HTTPSRequired", "key \"url\" of Secret \"url\" in spec.urlFrom.secretKeyRef").await;
        for (value, says) in [
            ("hidden.example.com", "not an absolute, percent-encoded http:// or https:// URL"),
            ("https://hidden.example.com /", "not an absolute, percent-encoded http:// or https:// URL"),
            ("https://user:hidden@example.com/", "must not contain a user name or password"),
            ("https://example.com/#hidden", "must not have a fragment"),
            ("https://hidden.example.com:0/", "a port from 1 to 65535"),
        ] {
            url(value);
            reports("url", "InvalidURL", says).await;
        }
        reports("header", "InvalidHeader", "in spec.headers[Authorization].valueFrom.secretKeyRef").await;

        let (_, _, message) = scene.condition("header", "Ready").unwrap();
        assert!(message.contains("write one line of at most 8192 printable ASCII characters"), "{message}");
        url("https://hidden.example.com/hooks\n");
        token("Bearer hidden\n");
        for name in ["url", "header"] {
            scene.wait_condition(name, "Ready", "True", "Subscribed", SOON).await;
        }
        scene.apply(&secret("url", true, &json!({"url": ""})));
        scene.kubectl(&["delete", "secret", "token"]);
        scene.apply(&url_from("late", "url", &json!({})));
        scene.webhook("later", "https://ci.example.com", &bearer("token", "token"));
        scene.wait_condition("late", "Ready", "False", "URLSecretEmpty", SOON).await;
        scene.wait_condition("later", "Ready", "False", "HeaderSecretNotFound", SOON).await;
        assert!(!operator.log().contains("hidden"), "{}", operator.log());
    });
}

#[test]
fn http_url_in_a_secret_excludes_tls() {
    run(async {
        let scene = Scene::new("http-and-tls").await;
        let bundle = include_str!("../../examples/webhook-tls.yaml").split("\n---\n").next().unwrap();
        scene.apply_text(bundle);
        let tls = json!({"tls": {"caBundleRef": {"kind": "ConfigMap", "name": "internal-ca"}}});
        scene.apply(&secret("url", true, &json!({"url": "http://ci.example.com"})));
        scene.apply(&url_from("ci", "url", &tls));
        let _operator = scene.operator().await;
        scene.wait_condition("ci", "Ready", "False", "InvalidURL", SOON).await;
        let (_, _, message) = scene.condition("ci", "Ready").unwrap();
        assert!(message.contains("write https://, or remove spec.tls"), "{message}");
        scene.apply(&secret("url", true, &json!({"url": "https://ci.example.com"})));
        scene.wait_condition("ci", "Ready", "True", "Subscribed", Duration::from_secs(30)).await;
    });
}
