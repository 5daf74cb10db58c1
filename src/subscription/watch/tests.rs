use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::*;
use crate::fake::{Answer, apiserver, line};

const UID: &str = "00000000-0000-0000-0000-000000000007";

fn webhook(generation: i64, spec: &Value) -> Value {
    json!({
        "apiVersion": "llmtune.io/v1alpha1", "kind": "Webhook",
        "metadata": {"name": "ci", "namespace": "ns", "uid": UID, "resourceVersion": "5", "generation": generation},
        "spec": spec,
        "status": {"consecutiveFailures": 3}
    })
}

fn readable() -> Value {
    json!({"url": "https://ci.example.com/hooks", "events": ["*"]})
}

/// A list that shows this Webhook, and a watch that then tells these lines.
fn shows(webhook: &Value, lines: Vec<Value>) -> impl Fn(&str) -> Answer + Send + Sync + 'static {
    let list = json!({"metadata": {"resourceVersion": "9"}, "items": [webhook]});
    move |path| {
        if path.contains("watch=true") { Answer::Watch(lines.clone()) } else { Answer::Object(list.clone()) }
    }
}

struct Running {
    changes: mpsc::Receiver<Change>,
    _lost_keys: mpsc::UnboundedSender<Lost>,
}

fn run(client: Client) -> Running {
    let (sender, changes) = mpsc::channel(16);
    let (lost_keys, incoming) = mpsc::unbounded_channel();
    tokio::spawn(Controller::new(client, sender, false).run(Vec::new(), incoming));
    Running { changes, _lost_keys: lost_keys }
}

impl Running {
    async fn next(&mut self) -> Change {
        self.changes.recv().await.unwrap()
    }

    async fn updated(&mut self) -> Update {
        match self.next().await {
            Change::Updated(update) => *update,
            Change::Removed(_) | Change::Listed => panic!("an update was to come"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_webhook_that_cannot_be_read_holds_what_waits_for_it_until_it_can() {
    let corrected = webhook(2, &readable());
    let answers = shows(&webhook(1, &json!({"url": {"of": "a newer release"}})), vec![line("MODIFIED", &corrected)]);
    let mut running = run(apiserver(answers));
    let held = running.updated().await;
    assert_eq!(held.webhook.name, "ci");
    assert!(held.subscription.held && held.resolved.is_none());
    assert!(held.standing.is_none() && held.found.is_none(), "its status is not known");
    assert!(matches!(running.next().await, Change::Listed));
    let live = running.updated().await;
    assert!(!live.subscription.held && live.resolved.is_some());
    assert_eq!(live.found.unwrap().consecutive_failures, 3, "its status is gone on from");
}

#[tokio::test(start_paused = true)]
async fn a_webhook_that_cannot_be_read_any_more_is_held_where_its_spec_has_changed_and_goes_when_deleted() {
    let unchanged = webhook(1, &json!({}));
    let changed = webhook(2, &json!({}));
    let lines = vec![line("MODIFIED", &unchanged), line("MODIFIED", &changed), line("DELETED", &changed)];
    let mut running = run(apiserver(shows(&webhook(1, &readable()), lines)));
    assert!(!running.updated().await.subscription.held);
    assert!(matches!(running.next().await, Change::Listed));
    let held = running.updated().await;
    assert!(held.subscription.held);
    assert_eq!(held.subscription.generation, 2);
    assert!(matches!(running.next().await, Change::Removed(uid) if Some(uid) == Uid::parse(UID)));
}

#[tokio::test(start_paused = true)]
async fn a_reading_of_a_secret_that_panics_is_made_again() {
    let mut spec = readable();
    spec["secretRef"] = json!({"name": "ci"});
    let shown = shows(&webhook(1, &spec), Vec::new());
    let reads = AtomicUsize::new(0);
    let mut running = run(apiserver(move |path| {
        if !path.contains("/secrets/") {
            return shown(path);
        }
        match reads.fetch_add(1, Ordering::Relaxed) {
            0 => Answer::Panic,
            _ => Answer::Object(json!({"metadata": {"name": "ci"}, "data": {"secret": "czNjcmV0"}})),
        }
    }));
    let mut said = Vec::new();
    loop {
        match running.next().await {
            Change::Updated(update) => match update.standing.map(|standing| standing.readiness) {
                Some(Readiness::Live) => break,
                Some(Readiness::Waiting { reason, .. }) => said.push(reason),
                _ => {}
            },
            Change::Listed | Change::Removed(_) => {}
        }
    }
    assert_eq!(said, ["SecretUnavailable"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_ends_the_controller() {
    let mut running = run(apiserver(|_| Answer::Panic));
    assert!(running.changes.recv().await.is_none());
}
