use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::*;
use crate::fake::{Answer, apiserver, line};
use llmtune_core::{event::EventSet, subscription::index::Scope};

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

/// An apiserver that lists this Webhook, and whose watch then sends these lines.
fn shows(webhook: &Value, lines: Vec<Value>) -> impl Fn(&str) -> Answer + Send + Sync + 'static {
    let list = json!({"metadata": {"resourceVersion": "9"}, "items": [webhook]});
    move |path| {
        if path.contains("watch=true") { Answer::Watch(lines.clone()) } else { Answer::Object(list.clone()) }
    }
}

struct Running {
    changes: mpsc::Receiver<WebhookChange>,
    ask: mpsc::UnboundedSender<Asked>,
    _lost_keys: mpsc::UnboundedSender<Lost>,
}

fn run(client: Client) -> Running {
    run_in(client, &["ns"])
}

/// Runs a controller of these namespaces, or of the cluster if the slice is empty.
fn run_in(client: Client, namespaces: &[&str]) -> Running {
    let (sender, changes) = mpsc::channel(16);
    let (lost_keys, incoming) = mpsc::unbounded_channel();
    let (ask, asked) = mpsc::unbounded_channel();
    let settings = Settings { require_https: false, home: "llmtune-system".into(), patience: Duration::from_secs(3) };
    let namespaces = namespaces.iter().map(|&namespace| namespace.to_owned()).collect();
    tokio::spawn(Controller::new(client, sender, settings).run(namespaces, incoming, asked));
    Running { changes, ask, _lost_keys: lost_keys }
}

impl Running {
    async fn next(&mut self) -> WebhookChange {
        self.changes.recv().await.unwrap()
    }

    async fn updated(&mut self) -> Update {
        match self.next().await {
            WebhookChange::Updated(update) => *update,
            WebhookChange::Removed(_) | WebhookChange::Listed | WebhookChange::Namespace(_) => {
                panic!("expected an update")
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn unreadable_webhook_is_held_until_it_can_be_read() {
    let corrected = webhook(2, &readable());
    let answers = shows(&webhook(1, &json!({"url": {"of": "a newer release"}})), vec![line("MODIFIED", &corrected)]);
    let mut running = run(apiserver(answers));
    let held = running.updated().await;
    assert_eq!(held.webhook.name, "ci");
    assert!(held.subscription.held && held.resolved.is_none());
    assert!(held.state.is_none() && held.found.is_none(), "its status is unknown");
    assert!(matches!(running.next().await, WebhookChange::Listed));
    let live = running.updated().await;
    assert!(!live.subscription.held && live.resolved.is_some());
    assert_eq!(live.found.unwrap().consecutive_failures, 3, "its counters continue");
}

#[tokio::test(start_paused = true)]
async fn webhook_is_held_if_an_edit_makes_it_unreadable() {
    let unchanged = webhook(1, &json!({}));
    let changed = webhook(2, &json!({}));
    let lines = vec![line("MODIFIED", &unchanged), line("MODIFIED", &changed), line("DELETED", &changed)];
    let mut running = run(apiserver(shows(&webhook(1, &readable()), lines)));
    assert!(!running.updated().await.subscription.held);
    assert!(matches!(running.next().await, WebhookChange::Listed));
    let held = running.updated().await;
    assert!(held.subscription.held);
    assert_eq!(held.subscription.generation, 2);
    assert!(matches!(running.next().await, WebhookChange::Removed(uid) if Some(uid) == Uid::parse(UID)));
}

fn filtered(filter: &str) -> Value {
    let mut spec = readable();
    spec["filter"] = json!(filter);
    spec
}

/// The filter of an update. Its subscription must select events.
fn filter_of(update: &Update) -> Option<&str> {
    assert_ne!(update.subscription.events, EventSet::default(), "the subscription selects events");
    update.subscription.filter.as_ref().map(filter::Filter::text)
}

fn state(update: &Update) -> &SubscriptionState {
    update.state.as_ref().unwrap()
}

#[tokio::test(start_paused = true)]
async fn last_valid_filter_stays_in_force_until_corrected() {
    let edit = |generation, filter: &str| line("MODIFIED", &webhook(generation, &filtered(filter)));
    let edits = vec![edit(2, "event = 'a'"), edit(3, "data."), edit(4, "event == 'b'")];
    let mut running = run(apiserver(shows(&webhook(1, &filtered("event == 'a'")), edits)));
    let first = running.updated().await;
    assert_eq!((filter_of(&first), state(&first).fault.as_ref()), (Some("event == 'a'"), None));
    assert!(matches!(running.next().await, WebhookChange::Listed));
    for generation in [2, 3] {
        let update = running.updated().await;
        assert_eq!((filter_of(&update), update.subscription.held), (Some("event == 'a'"), false));
        let SubscriptionState { readiness, fault, in_force, generation: observed, .. } = state(&update);
        assert_eq!((readiness, *observed), (&Readiness::Live, generation));
        let fault = fault.as_ref().unwrap();
        assert_eq!(fault.reason, "InvalidFilter");
        assert!(fault.message.ends_with("the filter of generation 1 stays in force"), "{}", fault.message);
        assert_eq!(in_force.as_ref().unwrap().generation, 1);
    }
    let corrected = running.updated().await;
    assert_eq!((filter_of(&corrected), state(&corrected).fault.as_ref()), (Some("event == 'b'"), None));
    assert_eq!(state(&corrected).in_force.as_ref().unwrap().generation, 4);
}

#[tokio::test(start_paused = true)]
async fn restart_with_an_invalid_filter_uses_the_status() {
    for (recorded, expected) in
        [(json!({"generation": 3, "filter": "event == 'a'"}), Some("event == 'a'")), (json!({"generation": 3}), None)]
    {
        let mut broken = webhook(4, &filtered("event = 'b'"));
        broken["status"]["inForce"] = recorded;
        let mut running = run(apiserver(shows(&broken, Vec::new())));
        let update = running.updated().await;
        assert_eq!(filter_of(&update), expected);
        let fault = state(&update).fault.as_ref().unwrap();
        assert!(fault.message.contains("generation 3"), "{}", fault.message);
    }
}

#[tokio::test(start_paused = true)]
async fn webhook_without_any_valid_filter_gets_no_events() {
    // This release cannot compile the second record.
    for recorded in [Value::Null, json!({"generation": 1, "filter": "event = 'a'"})] {
        let mut broken = webhook(2, &filtered("event = 'b'"));
        broken["status"]["inForce"] = recorded;
        let mut running = run(apiserver(shows(&broken, Vec::new())));
        let update = running.updated().await;
        assert_eq!(update.subscription.events, EventSet::default());
        let Readiness::Broken { reason, message } = &state(&update).readiness else {
            panic!("the Webhook must not be ready")
        };
        assert_eq!(*reason, "InvalidFilter");
        assert!(message.contains("never had a valid filter, so it gets no events"), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_url_header_or_duration_holds_deliveries_but_events_match() {
    let with = |field: &str, value: Value| {
        let mut spec = filtered("event == 'a'");
        spec[field] = value;
        spec
    };
    let header = json!([{"name": "Host", "value": "x"}]);
    for (broken, reason) in [
        (with("url", json!("ftp://ci.example.com")), "InvalidURL"),
        (with("url", Value::Null), "InvalidURL"),
        (with("headers", header), "InvalidHeader"),
        (with("delivery", json!({"timeout": "soon"})), "InvalidDuration"),
        (with("delivery", json!({"backoff": {"initial": "1s", "max": "later"}})), "InvalidDuration"),
    ] {
        let mut running = run(apiserver(shows(&webhook(1, &readable()), vec![line("MODIFIED", &webhook(2, &broken))])));
        assert!(!running.updated().await.subscription.held);
        assert!(matches!(running.next().await, WebhookChange::Listed));
        let update = running.updated().await;
        assert_eq!(filter_of(&update), Some("event == 'a'"), "{broken}");
        assert!(update.subscription.held && update.resolved.is_none(), "nothing is sent to the old URL: {broken}");
        let Readiness::Broken { reason: reported, message } = &state(&update).readiness else { panic!("{broken}") };
        assert_eq!(*reported, reason);
        assert!(message.ends_with("; events wait until it is corrected"), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn edit_to_a_missing_key_holds_deliveries_but_events_match() {
    let mut broken = filtered("event == 'a'");
    broken["secretRef"] = json!({"name": "other"});
    let secret = json!({"metadata": {"name": "other"}, "data": {}});
    let shown = shows(&webhook(1, &readable()), vec![line("MODIFIED", &webhook(2, &broken))]);
    let answers =
        move |path: &str| if path.contains("/secrets/") { Answer::Object(secret.clone()) } else { shown(path) };
    let mut running = run(apiserver(answers));
    assert!(!running.updated().await.subscription.held);
    assert!(matches!(running.next().await, WebhookChange::Listed));
    loop {
        let update = running.updated().await;
        assert_eq!(filter_of(&update), Some("event == 'a'"));
        assert!(update.subscription.held && update.resolved.is_none(), "nothing is sent unsigned");
        if let Some(SubscriptionState { readiness: Readiness::Waiting { reason, stalled: true, .. }, .. }) =
            update.state
        {
            assert_eq!(reason, "SecretKeyNotFound");
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_event_leaves_the_known_ones_subscribed() {
    let events = |names: Value| webhook(1, &json!({"url": "https://ci.example.com/hooks", "events": names}));
    let mut running = run(apiserver(shows(&events(json!(["training.failed", "quota.changed"])), Vec::new())));
    let update = running.updated().await;
    assert_eq!(update.subscription.events, EventSet::parse(&["training.failed"]).unwrap());
    let SubscriptionState { readiness, fault, .. } = state(&update);
    assert_eq!((readiness, fault.as_ref().unwrap().reason), (&Readiness::Live, "UnknownEvent"));

    let mut running = run(apiserver(shows(&events(json!(["quota.changed"])), Vec::new())));
    let update = running.updated().await;
    assert!(matches!(&state(&update).readiness, Readiness::Broken { reason: "UnknownEvent", .. }));
}

#[tokio::test(start_paused = true)]
async fn webhook_that_becomes_unreadable_keeps_its_subscription() {
    let lines = vec![
        line("MODIFIED", &webhook(2, &json!({}))),
        line("MODIFIED", &webhook(3, &json!({"events": 1}))),
        line("MODIFIED", &webhook(4, &readable())),
    ];
    let mut running = run(apiserver(shows(&webhook(1, &filtered("event == 'a'")), lines)));
    assert!(!running.updated().await.subscription.held);
    assert!(matches!(running.next().await, WebhookChange::Listed));
    for generation in [2, 3] {
        let held = running.updated().await;
        assert_eq!(filter_of(&held), Some("event == 'a'"));
        assert_eq!((held.subscription.held, held.subscription.generation), (true, generation));
    }
    let readable = running.updated().await;
    assert_eq!((filter_of(&readable), readable.subscription.held), (None, false));
}

#[tokio::test(start_paused = true)]
async fn read_that_panics_is_retried() {
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
    let mut reasons = Vec::new();
    loop {
        match running.next().await {
            WebhookChange::Updated(update) => match update.state.map(|state| state.readiness) {
                Some(Readiness::Live) => break,
                Some(Readiness::Waiting { reason, .. }) => reasons.push(reason),
                _ => {}
            },
            WebhookChange::Listed | WebhookChange::Removed(_) | WebhookChange::Namespace(_) => {}
        }
    }
    assert_eq!(reasons, ["SecretUnavailable"]);
}

#[tokio::test(start_paused = true)]
async fn controller_ends_with_a_watch() {
    let mut running = run(apiserver(|_| Answer::Panic));
    assert!(running.changes.recv().await.is_none());
}

fn cluster_webhook(generation: i64, spec: &Value) -> Value {
    let metadata = json!({"name": "ci", "uid": UID, "resourceVersion": "5", "generation": generation});
    json!({"apiVersion": "llmtune.io/v1alpha1", "kind": "ClusterWebhook", "metadata": metadata, "spec": spec})
}

/// A spec that selects the namespaces of team a.
fn selecting() -> Value {
    let mut spec = readable();
    spec["namespaceSelector"] = json!({"matchLabels": {"team": "a"}});
    spec
}

fn namespace(name: &str, number: u128, version: u64) -> Value {
    json!({
        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
        "metadata": {
            "name": name, "uid": Uid::from_u128(number).to_string(), "resourceVersion": version.to_string(),
            "labels": {"team": "a"}
        }
    })
}

/// An apiserver without Webhooks that lists this `ClusterWebhook`, and whose watch then sends these lines. `namespaces`
/// answers requests for Namespaces.
fn shows_cluster(
    cluster_webhook: &Value,
    lines: Vec<Value>,
    namespaces: impl Fn(&str) -> Answer + Send + Sync + 'static,
) -> impl Fn(&str) -> Answer + Send + Sync + 'static {
    let shown = shows(cluster_webhook, lines);
    move |path| match path {
        _ if path.contains("/clusterwebhooks?") => shown(path),
        _ if path.contains("/namespaces?") => namespaces(path),
        _ if path.contains("watch=true") => Answer::Watch(Vec::new()),
        _ => Answer::Object(json!({"metadata": {"resourceVersion": "9"}, "items": []})),
    }
}

fn lists(items: &[Value]) -> Answer {
    Answer::Object(json!({"metadata": {"resourceVersion": "9"}, "items": items}))
}

/// A change in short form.
fn brief(change: WebhookChange) -> String {
    match change {
        WebhookChange::Updated(update) => {
            let Update { subscription, state, .. } = *update;
            let says = state.map(|state| match state.readiness {
                Readiness::Waiting { reason, .. } => reason,
                Readiness::Live => "live",
                _ => "other",
            });
            let selects = matches!(&subscription.scope, Scope::Cluster(selector) if !selector.selects_all());
            format!("{} of {} selects {selects}, {}", update.webhook, update.webhook.home, says.unwrap_or("unknown"))
        }
        WebhookChange::Removed(_) => "removed".into(),
        WebhookChange::Listed => "all listed".into(),
        WebhookChange::Namespace(change) => match change {
            namespaces::NamespaceChange::Seen(seen) => format!("{} seen, {} labels", seen.name, seen.labels.len()),
            namespaces::NamespaceChange::Gone(name) => format!("{name} gone"),
            namespaces::NamespaceChange::Listed => "namespaces listed".into(),
            namespaces::NamespaceChange::Ended => "namespaces ended".into(),
            namespaces::NamespaceChange::Answered(seen, _) => format!("answered {:?}", seen.map(|seen| seen.name)),
            namespaces::NamespaceChange::Refused => "namespaces refused".into(),
        },
    }
}

impl Running {
    async fn brief(&mut self, changes: usize) -> Vec<String> {
        let mut texts = Vec::new();
        for _ in 0..changes {
            texts.push(brief(self.next().await));
        }
        texts
    }
}

#[tokio::test(start_paused = true)]
async fn cluster_webhook_with_namespace_selector_waits_for_the_namespaces() {
    let answers = shows_cluster(&cluster_webhook(1, &selecting()), Vec::new(), |path| {
        let gone = line("DELETED", &namespace("a", 1, 12));
        if path.contains("watch=true") { Answer::Watch(vec![gone]) } else { lists(&[namespace("a", 1, 3)]) }
    });
    let mut running = run_in(apiserver(answers), &[]);
    let expected = [
        "a seen, 1 labels",
        "namespaces listed",
        "ClusterWebhook ci of llmtune-system selects true, live",
        "all listed",
        "a gone",
    ];
    assert_eq!(running.brief(5).await, expected);
}

#[tokio::test(start_paused = true)]
async fn namespaces_are_followed_only_while_a_selector_needs_them() {
    let edits = vec![
        line("MODIFIED", &cluster_webhook(2, &selecting())),
        line("MODIFIED", &cluster_webhook(3, &readable())),
        line("DELETED", &cluster_webhook(3, &readable())),
    ];
    let answers = shows_cluster(&cluster_webhook(1, &readable()), edits, |path| {
        if path.contains("watch=true") { Answer::Watch(Vec::new()) } else { lists(&[]) }
    });
    let mut running = run_in(apiserver(answers), &[]);
    let mut changes = Vec::new();
    while changes.last().is_none_or(|last| last != "removed") {
        changes.extend(running.brief(1).await);
    }
    let live = |selects: bool| format!("ClusterWebhook ci of llmtune-system selects {selects}, live");
    assert_eq!(changes[..2], [live(false), "all listed".into()]);
    // The list of Namespaces may complete before or after the second edit.
    let certain: Vec<String> =
        changes.drain(2..).filter(|change| *change != live(true) && *change != "namespaces listed").collect();
    assert_eq!(certain, [live(false), "namespaces ended".into(), "removed".into()]);
}

#[tokio::test(start_paused = true)]
async fn forbidden_namespace_list_is_a_condition() {
    let answers = shows_cluster(&cluster_webhook(1, &selecting()), Vec::new(), |_| Answer::Error(403));
    let mut running = run_in(apiserver(answers), &[]);
    let expected = ["namespaces refused", "ClusterWebhook ci of llmtune-system selects false, NamespacesForbidden"];
    assert_eq!(running.brief(2).await, expected);
    for change in running.brief(10).await {
        assert_eq!(change, "namespaces refused", "the condition is published once, the list is retried");
    }
}

#[tokio::test(start_paused = true)]
async fn namespace_lookup_retries_and_runs_only_if_labels_matter() {
    let failures = AtomicUsize::new(0);
    let answers = shows_cluster(&cluster_webhook(1, &selecting()), Vec::new(), move |path| match path {
        _ if path.contains("watch=true") => Answer::Watch(Vec::new()),
        _ if !path.contains("fieldSelector=") => lists(&[]),
        _ if path.contains("metadata.name%3Dnone") => lists(&[]),
        _ if failures.fetch_add(1, Ordering::Relaxed) < 3 => Answer::Error(500),
        _ => lists(&[namespace("new", 2, 20)]),
    });
    let mut running = run_in(apiserver(answers), &[]);
    assert_eq!(running.brief(3).await.last().unwrap(), "all listed");
    for (name, answer) in [("new", r#"answered Some("new")"#), ("none", "answered None")] {
        running.ask.send((name.into(), tokio::sync::oneshot::channel().0)).unwrap();
        assert_eq!(running.brief(1).await, [answer]);
    }

    let mut unselective =
        run_in(apiserver(shows_cluster(&cluster_webhook(1, &readable()), Vec::new(), |_| Answer::Panic)), &[]);
    assert_eq!(unselective.brief(2).await.last().unwrap(), "all listed");
    let (confirm, confirmed) = tokio::sync::oneshot::channel();
    unselective.ask.send(("new".into(), confirm)).unwrap();
    assert!(confirmed.await.is_err(), "the wait ends if labels do not matter");
}

#[tokio::test(start_paused = true)]
async fn unserved_cluster_webhooks_are_given_up_on_after_patience() {
    let begun = Instant::now();
    let mut running = run_in(
        apiserver(move |path| match path {
            _ if path.contains("/clusterwebhooks?") => Answer::Error(404),
            _ if begun.elapsed() < Duration::from_secs(60) => Answer::Error(500),
            _ if path.contains("watch=true") => Answer::Watch(Vec::new()),
            _ => lists(&[]),
        }),
        &[],
    );
    assert_eq!(running.brief(1).await, ["all listed"]);
    assert!(begun.elapsed() >= Duration::from_secs(63), "{:?}", begun.elapsed());
}
