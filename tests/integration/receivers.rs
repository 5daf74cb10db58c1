//! The receivers in `examples/receivers`, as users would run them: in Node and in Python.

use std::process::Command;

use llmtune_api::signature::sign;
use llmtune_webhooks_harness::{
    eventually,
    process::{Process, temporary_folder},
    receiver::Receiver,
    root,
};
use serde_json::json;

use crate::support::{SOON, Scene, run};

const SECRET: &str = "s3cret";

/// A running example.
struct Example {
    process: Process,
    url: String,
}

impl Example {
    async fn start(interpreter: &str, file: &str, secret: &str) -> Self {
        let mut command = Command::new(interpreter);
        command.arg(root().join("examples/receivers").join(file));
        command.envs([("PORT", "0"), ("WEBHOOK_SECRET", secret), ("VERBOSE", "1")]).env_remove("HOST");
        let process = Process::start(file, &mut command, &temporary_folder("receiver").join("log"));
        let url = eventually(&format!("{file} listens"), SOON, || async {
            let log = process.log_text();
            log.lines().find_map(|line| line.strip_prefix("Listening on ")).map(str::to_owned)
        })
        .await;
        Self { process, url }
    }

    async fn both(secret: &str) -> [Self; 2] {
        [Self::start("node", "receiver.mjs", secret).await, Self::start("python3", "receiver.py", secret).await]
    }

    /// Waits for a line with all these words, and returns it.
    async fn line(&self, words: &[&str]) -> String {
        let what = format!("{} prints {words:?}", self.process.name);
        eventually(&what, SOON, || async {
            let log = self.process.log_text();
            log.lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        })
        .await
    }

    /// Posts a body with this signature. Returns the status of the response.
    async fn post(&self, body: &str, signature: &str) -> u16 {
        let request = client().post(&self.url).body(body.to_owned());
        let request = request.header("X-LLMTune-Signature", signature).header("X-LLMTune-Attempt", "1");
        request.send().await.unwrap().status().as_u16()
    }
}

fn client() -> reqwest::Client {
    // reqwest needs a crypto provider even for plain HTTP.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

fn signature(body: &str) -> String {
    sign(SECRET.as_bytes(), body.as_bytes())
}

#[test]
fn both_receivers_verify_events_and_recognize_repeats() {
    run(async {
        let scene = Scene::new("receivers").await;
        let examples = Example::both(SECRET).await;
        let witness = Receiver::start().await;
        scene.secret("ci-hook", SECRET);
        let spec = json!({"secretRef": {"name": "ci-hook"}});
        scene.webhook("node", &examples[0].url, &spec);
        scene.webhook("python", &examples[1].url, &spec);
        scene.webhook("witness", &witness.url(), &spec);
        let _operator = scene.operator().await;
        for webhook in ["node", "python", "witness"] {
            scene.wait(&format!("webhook/{webhook}"), "condition=Ready");
        }
        for (job, end) in [("llama", "Completed"), ("mistral", "Failed")] {
            scene.job(job);
            scene.phase(job, "Running");
            scene.phase(job, end);
        }
        let requests = witness.wait(4, SOON).await;
        for example in &examples {
            for request in &requests {
                let object = format!("{}/{}", scene.namespace, request.name());
                let id = request.header("x-llmtune-event-id");
                example.line(&[&request.event(), &object, "attempt 1", id, "verified"]).await;
                assert_eq!(example.post(&request.body, request.header("x-llmtune-signature")).await, 200);
                example.line(&[&request.event(), &object, id, "duplicate"]).await;
            }
            let log = example.process.log_text();
            assert_eq!(log.matches("verified").count(), requests.len(), "{log}");
            assert!(!log.contains("refused"), "{log}");
        }
    });
}

#[test]
fn unusual_metrics_verify_in_both_receivers() {
    run(async {
        let scene = Scene::new("awkward").await;
        let examples = Example::both(SECRET).await;
        scene.secret("ci-hook", SECRET);
        let spec = json!({"secretRef": {"name": "ci-hook"}, "events": ["training.completed"]});
        scene.webhook("node", &examples[0].url, &spec);
        scene.webhook("python", &examples[1].url, &spec);
        let _operator = scene.operator().await;
        scene.wait("webhook/node", "condition=Ready");
        scene.wait("webhook/python", "condition=Ready");
        scene.job("llama");
        let metrics = json!({
            "huge": 1e21, "tenth": 0.1, "one": 1.0, "beyond 2^53": 9_007_199_254_740_993_i64, "tiny": 5e-324,
            "17 digits": -2.318_879_303_809_192_7e64, "10": 10, "9": 9, "01": 1, "-1": -1, "4294967295": 4,
            "__proto__": 1, "emoji 😀": "😀", "line\u{2028}end": "\u{2028}\u{7f}", "loss": "NaN",
            "quoted": "\"\\\n\u{1}"
        });
        scene.job_status("llama", &json!({"phase": "Completed", "metrics": metrics}));
        for example in &examples {
            example.line(&["training.completed", "/llama", "verified"]).await;
        }
        examples[0].line(&["\"deliveredAt\""]).await;
        let printed = examples[0].process.log_text();
        let expected = [
            r#""metrics": {"#,
            r#"  "9": 9,"#,
            r#"  "10": 10,"#,
            r#"  "-1": -1,"#,
            r#"  "01": 1,"#,
            r#"  "17 digits": -2.3188793038091927e+64,"#,
            r#"  "4294967295": 4,"#,
            r#"  "beyond 2^53": "9007199254740993","#,
            r#"  "emoji 😀": "😀","#,
            r#"  "huge": 1e+21,"#,
            "  \"line\u{2028}end\": \"\u{2028}\u{7f}\",",
            r#"  "loss": "NaN","#,
            r#"  "one": 1,"#,
            r#"  "quoted": "\"\\\n\u0001","#,
            r#"  "tenth": 0.1,"#,
            r#"  "tiny": 5e-324"#,
            "}",
        ];
        assert!(printed.contains(&expected.join("\n    ")), "{printed}");
    });
}

#[test]
fn both_receivers_refuse_what_is_signed_with_another_secret() {
    run(async {
        let scene = Scene::new("wrong-secret").await;
        let examples = Example::both("another").await;
        scene.secret("ci-hook", SECRET);
        let spec = json!({"secretRef": {"name": "ci-hook"}, "delivery": {"maxRetries": 0}});
        scene.webhook("node", &examples[0].url, &spec);
        scene.webhook("python", &examples[1].url, &spec);
        let _operator = scene.operator().await;
        scene.wait("webhook/node", "condition=Ready");
        scene.wait("webhook/python", "condition=Ready");
        scene.job("llama");
        scene.phase("llama", "Running");
        for (example, webhook) in examples.iter().zip(["node", "python"]) {
            example.line(&["refused: wrong signature"]).await;
            assert!(!example.process.log_text().contains("verified"));
            eventually(&format!("{webhook} reports the 401"), SOON, || async {
                (scene.get("webhook", webhook)["status"]["lastFailure"]["statusCode"] == 401).then_some(())
            })
            .await;
        }
    });
}

#[test]
fn receivers_answer_401_to_forgeries_and_400_to_invalid_json() {
    run(async {
        let body = r#"{"id":"evt_1","event":"training.started","data":{"name":"llama","namespace":"research"}}"#;
        for example in Example::both(SECRET).await {
            let wrong = signature(&body.replace("llama", "mallory"));
            for forged in ["", "0", "é", &wrong, &signature(body)[1..], &format!("{}0", signature(body))] {
                assert_eq!(example.post(body, forged).await, 401, "{forged:?} in {}", example.process.name);
            }
            assert_eq!(example.post("{\"id\":", &signature("{\"id\":")).await, 400);
            assert_eq!(example.post(body, &signature(body)).await, 200);
            assert_eq!(example.post(body, &signature(body)).await, 200);
            example.line(&["evt_1", "duplicate"]).await;
        }
    });
}

#[test]
fn both_receivers_forget_the_oldest_of_ten_thousand_ids() {
    run(async {
        let client = client();
        for example in Example::both(SECRET).await {
            let post = async |number: u32| {
                let body = format!(r#"{{"id":"evt_{number}","event":"training.started","data":{{}}}}"#);
                let request = client.post(&example.url).header("X-LLMTune-Signature", signature(&body)).body(body);
                eventually("an answer other than 503", SOON, || async {
                    let answer = request.try_clone().unwrap().send().await.unwrap();
                    (answer.status() != 503).then(|| assert_eq!(answer.status(), 200))
                })
                .await;
            };
            for number in 0..=10_000 {
                post(number).await;
            }
            post(1).await;
            post(0).await;
            example.line(&["evt_1 ", "duplicate"]).await;
            eventually("evt_0 is new again", SOON, || async {
                let log = example.process.log_text();
                let verified = log.lines().filter(|line| line.contains("evt_0 ") && line.contains("verified"));
                (verified.count() == 2).then_some(())
            })
            .await;
        }
    });
}
