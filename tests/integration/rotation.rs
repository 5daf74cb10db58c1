//! Rotation of a Secret during deliveries, with receivers that know the old key, the new key, or both.

use std::{
    collections::HashSet,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use llmtune_webhooks_harness::{
    eventually,
    process::{Process, temporary_folder},
    receiver::{Answer, Received, Receiver},
    root,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    formats::whsec,
    support::{Jobs, SOON, Scene, run},
};

/// A cached Secret is used for half a minute.
const READ_AGAIN: Duration = Duration::from_secs(60);

/// A request as the receiver saw it.
#[derive(Deserialize)]
struct Seen {
    id: String,
    attempt: String,
    acknowledged: bool,
    connection: u16,
    /// It had a signature by the previous key.
    rotating: bool,
}

/// A receiver in Node.
struct Node {
    _process: Process,
    client: reqwest::Client,
    url: String,
}

impl Node {
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut command = Command::new("node");
        command.arg(root().join("tests/integration/rotation/receiver.mjs"));
        let process = Process::start("receiver.mjs", &mut command, &temporary_folder("rotation").join("log"));
        let port = eventually("the receiver listens", SOON, || async {
            process.log_text().lines().find_map(|line| line.strip_prefix("Listening on ").map(str::to_owned))
        })
        .await;
        Self { _process: process, client: reqwest::Client::new(), url: format!("http://127.0.0.1:{port}") }
    }

    async fn knows(&self, keys: &[&str]) {
        let request = self.client.put(format!("{}/keys", self.url)).body(json!(keys).to_string());
        assert_eq!(request.send().await.unwrap().status(), 200);
    }

    async fn seen(&self) -> Vec<Seen> {
        let answer = self.client.get(format!("{}/seen", self.url)).send().await.unwrap();
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
    }

    /// Waits for this many further requests that match.
    async fn more(&self, what: &str, count: usize, limit: Duration, like: impl Fn(&Seen) -> bool) {
        let before = self.seen().await.len();
        eventually(what, limit, || async {
            let seen = self.seen().await;
            (seen[before..].iter().filter(|seen| like(seen)).count() >= count).then_some(())
        })
        .await;
    }
}

/// Jobs that start run after run until the load is ended.
struct Load {
    stop: Arc<AtomicBool>,
    started: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    async fn begin(scene: &Scene, jobs: usize, every: Duration) -> Self {
        let api = Jobs::new(scene).await;
        let (stop, started) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let tasks = (0..jobs).map(|number| {
            let (api, stop, started) = (api.clone(), Arc::clone(&stop), Arc::clone(&started));
            tokio::spawn(async move {
                let name = format!("job-{number}");
                api.create(&name).await;
                let mut tick = tokio::time::interval(every);
                while !stop.load(Ordering::Relaxed) {
                    tick.tick().await;
                    api.start(&name).await;
                    started.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        Self { tasks: tasks.collect(), stop, started }
    }

    /// The number of started runs.
    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.started.load(Ordering::Relaxed)
    }
}

fn keys(scene: &Scene, data: &Value) {
    // Replaces the whole Secret: absent keys are removed.
    let text =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ci"}, "stringData": data}).to_string();
    let verb = if scene.plane.kubectl(&["-n", &scene.namespace, "get", "secret", "ci"]).status.success() {
        "replace"
    } else {
        "create"
    };
    let output = scene.plane.kubectl_with_input(&["-n", &scene.namespace, verb, "-f", "-"], &text);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn rotation_under_load_acknowledges_every_event() {
    run(async {
        let scene = Scene::new("rotation").await;
        let node = Node::start().await;
        node.knows(&["old"]).await;
        keys(&scene, &json!({"secret": "old"}));
        // Without retries, an event arrives only if the repeat within the same attempt works.
        let spec = json!({"secretRef": {"name": "ci"}, "delivery": {"maxRetries": 0}});
        scene.webhook("ci", &format!("{}/hook", node.url), &spec);
        let operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");
        let begun = Instant::now();
        let load = Load::begin(&scene, 8, Duration::from_millis(200)).await;
        let any = |_: &Seen| true;
        node.more("the old key signs", 50, SOON, any).await;

        keys(&scene, &json!({"secret": "new", "previous": "old"}));
        node.more("both keys sign", 50, READ_AGAIN, |seen| seen.rotating).await;
        node.knows(&["old", "new"]).await;
        node.more("a receiver with both acknowledges", 50, SOON, any).await;
        assert!(node.seen().await.iter().all(|seen| seen.acknowledged), "nothing had to be repeated so far");

        let mut extra = 0;
        // To the new key, back as in a rollback, and to the new key again.
        for key in ["new", "old", "new"] {
            let before = node.seen().await.len();
            node.knows(&[key]).await;
            node.more(&format!("a receiver with {key} alone acknowledges"), 50, SOON, |seen| seen.acknowledged).await;
            let seen = node.seen().await;
            let refused = seen[before..].iter().filter(|seen| !seen.acknowledged).count();
            let connections: HashSet<u16> = seen[before..].iter().map(|seen| seen.connection).collect();
            println!("switched to the {key} key: {refused} attempts repeated, over {} connections", connections.len());
            assert!(refused >= 1 && refused <= connections.len(), "{refused} over {connections:?}");
            extra += refused;
        }

        keys(&scene, &json!({"secret": "new"}));
        node.more("the new key alone signs", 50, READ_AGAIN, |seen| !seen.rotating).await;
        let started = load.end().await;
        let acknowledged = async || {
            let seen = node.seen().await;
            seen.into_iter().filter(|seen| seen.acknowledged).map(|seen| seen.id).collect::<HashSet<_>>().len()
        };
        eventually("every event is acknowledged", SOON, || async { (acknowledged().await == started).then_some(()) })
            .await;
        println!("{started} events in {:?}, {extra} attempts repeated with the other key", begun.elapsed());

        let seen = node.seen().await;
        assert_eq!(seen.len(), started + extra);
        assert!(seen.iter().all(|seen| seen.attempt == "1"), "a repeat is no further attempt");
        let metric =
            |name: &str, labels: &[(&str, &str)]| operator.metric(&format!("llmtune_webhooks_{name}"), labels) as usize;
        eventually("all deliveries are counted", SOON, || async {
            (metric("deliveries_total", &[("result", "delivered")]) == started).then_some(())
        })
        .await;
        assert_eq!(metric("deliveries_total", &[("result", "exhausted")]), 0);
        assert_eq!(metric("retries_total", &[]), 0, "nor is it a retry");
        assert_eq!(metric("attempts_total", &[("outcome", "4xx")]), extra, "but it was sent");
        assert_eq!(scene.get("webhook", "ci")["status"]["deliveries"]["failed"], 0);
        assert_eq!(scene.condition("ci", "Healthy").unwrap().0, "True");
    });
}

#[test]
fn rotating_standard_webhooks_have_both_signatures() {
    run(async {
        let scene = Scene::new("rotation-standard").await;
        let (old, new) = (whsec(7, 32), whsec(8, 32));
        let verifies = |key: &str, post: &Received| {
            let webhook = standardwebhooks::Webhook::new(key).unwrap();
            webhook.verify(post.body.as_bytes(), &post.headers).is_ok()
        };
        let known = old.clone();
        let receiver =
            Receiver::answering(move |post| Answer::status(if verifies(&known, post) { 200 } else { 401 })).await;
        keys(&scene, &json!({"secret": &new, "previous": &old}));
        let spec = json!({"format": "StandardWebhooks", "secretRef": {"name": "ci"}, "delivery": {"maxRetries": 0}});
        scene.webhook("ci", &receiver.url(), &spec);
        let _operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");
        scene.job("llama");
        scene.phase("llama", "Running");
        receiver.wait(1, SOON).await;
        let known = new.clone();
        receiver.answer(move |post| Answer::status(if verifies(&known, post) { 200 } else { 401 }));
        scene.phase("llama", "Completed");
        let posts = receiver.wait(2, SOON).await;
        for post in &posts {
            assert_eq!(post.header("webhook-signature").split(' ').count(), 2);
            assert!(verifies(&old, post) && verifies(&new, post));
        }
        scene.wait_condition("ci", "Healthy", "True", "Acknowledged", SOON).await;
        assert_eq!(receiver.count(), 2);
    });
}

#[test]
fn cloud_event_is_repeated_with_the_other_key() {
    run(async {
        let scene = Scene::new("rotation-cloud-events").await;
        let receiver =
            Receiver::answering(|post: &Received| Answer::status(if post.is_signed_with("new") { 200 } else { 403 }))
                .await;
        keys(&scene, &json!({"secret": "new", "previous": "old"}));
        let spec = json!({"format": "CloudEvents", "secretRef": {"name": "ci"}, "delivery": {"maxRetries": 0}});
        scene.webhook("ci", &receiver.url(), &spec);
        let _operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");
        scene.job("llama");
        scene.phase("llama", "Running");
        let posts = receiver.wait(2, SOON).await;
        assert!(posts[0].is_signed_with("old") && posts[1].is_signed_with("new"));
        assert_eq!(posts[0].body, posts[1].body);
        scene.wait_condition("ci", "Healthy", "True", "Acknowledged", SOON).await;
    });
}
