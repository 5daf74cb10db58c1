//! No event is lost: operators are killed, frozen and replaced, apiservers and stores break, the ledger is deleted, and
//! endpoints are unreachable.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

use base64::Engine as _;
use llmtune_webhooks_harness::{
    eventually,
    operator::Operator,
    receiver::{Closed, Received, Receiver},
};
use serde_json::{Value, json};
use tokio::time::{sleep, sleep_until};

use crate::{
    sources::{deployment, rolled_out},
    support::{Jobs, SOON, Scene, in_order, run},
};

mod leaders;
mod recorded;
mod replaced;
mod stores;

const SECRET: &str = "s3cret";
/// The log line of a watch that cannot be resumed.
const EXPIRED: &str = "resourceVersion has expired";
/// The log line of records that are rebuilt.
const NEW_EPOCH: &str = "new epoch";

/// A receiver whose Webhook `ci` has a secret.
async fn signed_receiver(scene: &Scene) -> Receiver {
    let receiver = Receiver::start().await;
    scene.secret("ci", SECRET);
    scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci"}}));
    receiver
}

/// Waits until the operator leads and watches. Restarts it if it ends by itself, as the kubelet would.
async fn leads(operator: &mut Operator, limit: Duration) {
    let begun = Instant::now();
    while !operator.get("/readyz").is_some_and(|(status, text)| status == 200 && text.starts_with("leader")) {
        assert!(begun.elapsed() < limit, "not leading within {limit:?}\n{}", operator.process.log_tail());
        if let Some(status) = operator.revive() {
            println!("the operator ended with {status} and is started again");
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until a new apiserver serves the custom resources.
pub async fn served(scene: &Scene) {
    eventually("the custom resources are served", SOON, || async {
        scene.plane.kubectl(&["get", "trainingjobs,webhooks", "--all-namespaces"]).status.success().then_some(())
    })
    .await;
}

/// Waits for this many further requests.
async fn flows(receiver: &Receiver, more: usize) {
    receiver.wait(receiver.count() + more, Duration::from_secs(90)).await;
}

/// Waits until no request has come for a second.
async fn quiet(receiver: &Receiver) {
    let (mut count, mut since) = (receiver.count(), Instant::now());
    while since.elapsed() < Duration::from_secs(1) {
        sleep(Duration::from_millis(50)).await;
        if receiver.count() != count {
            (count, since) = (receiver.count(), Instant::now());
        }
    }
}

/// Waits for this many different events, as long as requests still arrive. Returns the first request of each, and the
/// number of repeats. A repeat must have the same delivery id, event id and content.
async fn distinct(receiver: &Receiver, expected: usize) -> (Vec<Received>, usize) {
    let (mut count, mut since) = (0, Instant::now());
    loop {
        let received = receiver.received();
        let ids: HashSet<&str> = received.iter().map(Received::event_id).collect();
        if ids.len() >= expected {
            break;
        }
        if received.len() != count {
            (count, since) = (received.len(), Instant::now());
        }
        let missing = expected - ids.len();
        assert!(since.elapsed() < SOON, "{missing} of {expected} events are missing after {count} requests");
        sleep(Duration::from_millis(100)).await;
    }
    quiet(receiver).await;
    let mut first: Vec<Received> = Vec::new();
    let mut places = HashMap::new();
    let mut repeats = 0;
    for post in receiver.received() {
        let place = *places.entry(post.event_id().to_owned()).or_insert(first.len());
        if let Some(known) = first.get(place) {
            repeats += 1;
            assert_eq!(post.delivery_id(), known.delivery_id());
            assert_eq!(post.lasting_body(), known.lasting_body());
        } else {
            first.push(post);
        }
    }
    assert_eq!(first.len(), expected, "an event has one id");
    (first, repeats)
}

/// Waits until every transition of this many driven jobs has arrived, signed and in order, each under one id. Returns
/// the number of repeats.
async fn all_arrive(receiver: &Receiver, jobs: usize) -> usize {
    let (first, repeats) = distinct(receiver, 2 * jobs).await;
    assert!(first.iter().all(|post| post.is_signed_with(SECRET)));
    in_order(&first, jobs);
    println!("0 of {} transitions missing, {repeats} repeats", 2 * jobs);
    repeats
}

/// Random numbers (splitmix64); `LLMTUNE_TEST_SEED` reproduces them.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let given = std::env::var("LLMTUNE_TEST_SEED").ok().map(|seed| seed.parse().unwrap());
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0));
        println!("LLMTUNE_TEST_SEED={seed}");
        Self(seed)
    }

    /// A random duration below the limit.
    fn within(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        limit.mul_f64(((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

#[test]
fn ten_kills_under_load_lose_no_transition() {
    run(async {
        let scene = Scene::new("kills").await;
        let receiver = signed_receiver(&scene).await;
        let mut operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        let driving = tokio::spawn(async move { jobs.drive(1000, 100).await });
        flows(&receiver, 50).await;
        let mut random = Random::new();
        let mut moments: Vec<Duration> = (0..10).map(|_| random.within(Duration::from_secs(16))).collect();
        moments.sort_unstable();
        let begun = tokio::time::Instant::now();
        for moment in &moments {
            sleep_until(begun + *moment).await;
            operator.restart();
        }
        let took = driving.await.unwrap();
        println!("2,000 transitions driven in {took:?}, killed at {moments:?}");
        all_arrive(&receiver, 1000).await;
    });
}

#[test]
fn killing_operator_and_apiserver_together_loses_nothing() {
    run(async {
        let scene = Scene::alone("both").await;
        let receiver = signed_receiver(&scene).await;
        let mut operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        let driver = jobs.clone();
        let driving = tokio::spawn(async move { driver.drive(300, 20).await });
        for round in 0..3 {
            flows(&receiver, 5).await;
            operator.process.kill();
            // The ledger's position is now older than the whole watch cache of the next apiserver.
            jobs.create(&format!("between-{round}")).await;
            scene.plane.stop_apiserver();
            operator.restart();
            scene.plane.start_apiserver();
            let stopped = Instant::now();
            scene.plane.wait_ready().await;
            leads(&mut operator, Duration::from_secs(60)).await;
            println!("leading again {:?} after the apiserver was killed", stopped.elapsed());
        }
        driving.await.unwrap();
        all_arrive(&receiver, 300).await;
        let log = operator.process.log_text();
        let expired = log.lines().filter(|line| line.contains(EXPIRED) && line.contains("TrainingJob")).count();
        println!("the watch of the jobs found its position expired {expired} times");
        assert!(expired >= 3, "after each start");
    });
}

/// The transitions during a downtime of the operator are delivered once each after its restart. With `forgotten` the
/// apiserver's watch cache is lost too, so the operator must compare a list.
async fn while_it_was_down(scene: &Scene, forgotten: bool) {
    let receiver = signed_receiver(scene).await;
    let mut operator = scene.operator().await;
    let jobs = Jobs::new(scene).await;
    for name in ["deleted", "finishes", "runs", "done"] {
        jobs.create(name).await;
        jobs.start(name).await;
    }
    jobs.complete("done").await;
    for name in ["removed", "serves"] {
        scene.apply(&deployment(name, 1, "1"));
        rolled_out(scene, name);
    }
    receiver.wait(9, SOON).await;
    operator.stop();
    let before = receiver.count();

    jobs.complete("finishes").await;
    for name in ["new", "brief"] {
        jobs.create(name).await;
        jobs.start(name).await;
        jobs.complete(name).await;
    }
    jobs.delete("brief").await;
    jobs.delete("deleted").await;
    scene.kubectl(&["delete", "deployment", "removed"]);
    scene.kubectl(&["annotate", "trainingjob/runs", "trainingjob/done", "deployment/serves", "noise=1"]);
    if forgotten {
        scene.plane.restart_apiserver().await;
        served(scene).await;
    }
    operator.restart();

    let mut expected = vec![
        ("deployment.deleted", "removed"),
        ("training.completed", "finishes"),
        ("training.completed", "new"),
        ("training.failed", "deleted"),
        ("training.started", "new"),
    ];
    if !forgotten {
        // Only the watch shows an object that was created and deleted during the outage.
        expected.extend([("training.completed", "brief"), ("training.started", "brief")]);
    }
    let begun = Instant::now();
    receiver.wait(before + expected.len(), SOON).await;
    println!("{} events {:?} after the start", expected.len(), begun.elapsed());
    jobs.create("next").await;
    jobs.start("next").await;
    receiver.wait_for("training.started", "next", SOON).await;
    expected.push(("training.started", "next"));
    quiet(&receiver).await;
    let received = &receiver.received()[before..];
    let mut events: Vec<(String, String)> = received.iter().map(|post| (post.event(), post.name())).collect();
    events.sort_unstable();
    expected.sort_unstable();
    assert!(events.iter().map(|(event, name)| (event.as_str(), name.as_str())).eq(expected.clone()), "{events:?}");
    let failed = received.iter().find(|post| post.event() == "training.failed").unwrap().json();
    assert_eq!(failed["data"]["status"], if forgotten { "unknown" } else { "cancelled" });
    let log = operator.log();
    assert_eq!(log.contains(EXPIRED), forgotten);
    assert!(!log.contains(NEW_EPOCH), "its ledger is whole");
}

#[test]
fn transitions_during_downtime_are_read_from_the_watch() {
    run(async {
        while_it_was_down(&Scene::new("resumed").await, false).await;
    });
}

#[test]
fn transitions_beyond_the_watch_are_found_by_comparing() {
    run(async {
        while_it_was_down(&Scene::alone("compared").await, true).await;
    });
}

/// Retries every two seconds, for longer than a test runs.
fn patient() -> Value {
    json!({"delivery": {"maxRetries": 20, "backoff": {"initial": "2s", "factor": 1, "max": "2s"}}})
}

#[test]
fn lost_ledger_starts_a_new_epoch_without_past_events() {
    run(async {
        let scene = Scene::new("epoch").await;
        let receiver = signed_receiver(&scene).await;
        let mut operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        for name in ["runs", "done"] {
            jobs.create(name).await;
            jobs.start(name).await;
        }
        jobs.complete("done").await;
        scene.apply(&deployment("serves", 1, "1"));
        rolled_out(&scene, "serves");
        receiver.wait(5, SOON).await;
        operator.stop();
        let segments = scene.kubectl(&["get", "ledgersegments", "-o", "name"]);
        println!("{} segments deleted", segments.lines().count());
        assert!(!segments.is_empty());
        scene.kubectl(&["delete", "ledgersegments", "--all"]);
        operator.restart();
        operator.wait_log(NEW_EPOCH, SOON).await;
        leads(&mut operator, SOON).await;
        jobs.complete("runs").await;
        receiver.wait_for("training.completed", "runs", SOON).await;
        quiet(&receiver).await;
        assert_eq!(receiver.count(), 6, "{:?}", receiver.events());
    });
}

#[test]
fn pending_deliveries_survive_a_kill_with_their_attempts() {
    run(async {
        let scene = Scene::new("dead").await;
        let endpoint = Closed::reserve();
        scene.webhook("ci", &endpoint.url(), &json!({}));
        let mut operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        let five = async |prefix: &str| {
            for number in 0..5 {
                let name = format!("{prefix}-{number}");
                jobs.create(&name).await;
                jobs.start(&name).await;
                jobs.complete(&name).await;
            }
        };
        five("tried").await;
        // The second attempts come five seconds after the first, the third half a minute later.
        eventually("each event was tried twice", SOON, || async {
            let labels = [("webhook", "ci"), ("outcome", "connect")];
            (operator.metric("llmtune_webhooks_attempts_total", &labels) as u64 >= 20).then_some(())
        })
        .await;
        operator.process.kill();
        five("untried").await;
        let receiver = endpoint.open();
        operator.restart();
        let restarted = Instant::now();
        receiver.wait(20, Duration::from_secs(60)).await;
        println!("all delivered {:?} after the restart", restarted.elapsed());
        let (events, repeats) = distinct(&receiver, 20).await;
        assert_eq!(repeats, 0, "each was acknowledged the first time");
        let (tried, untried): (Vec<Received>, Vec<Received>) =
            events.into_iter().partition(|post| post.name().starts_with("tried"));
        println!("attempts: {:?}", tried.iter().map(Received::attempt).collect::<Vec<_>>());
        assert_eq!(tried.len(), 10);
        assert!(tried.iter().all(|post| post.attempt() > 1));
        assert!(untried.iter().all(|post| post.attempt() == 1));
        in_order(&untried, 5);
    });
}

#[test]
fn deliveries_of_a_webhook_deleted_during_downtime_are_dropped() {
    run(async {
        let scene = Scene::new("bereft").await;
        let (goes, stays) = (Closed::reserve(), Closed::reserve());
        scene.webhook("goes", &goes.url(), &patient());
        scene.webhook("stays", &stays.url(), &patient());
        let mut operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        for number in 0..5 {
            let name = format!("job-{number}");
            jobs.create(&name).await;
            jobs.start(&name).await;
            jobs.complete(&name).await;
        }
        for webhook in ["goes", "stays"] {
            eventually("each event was tried", SOON, || async {
                let labels = [("webhook", webhook), ("outcome", "connect")];
                (operator.metric("llmtune_webhooks_attempts_total", &labels) as u64 >= 10).then_some(())
            })
            .await;
        }
        operator.stop();
        scene.kubectl(&["delete", "webhook", "goes"]);
        let (goes, stays) = (goes.open(), stays.open());
        operator.restart();
        let (events, repeats) = distinct(&stays, 10).await;
        assert_eq!((events.len(), repeats), (10, 0));
        // A minute after the start: until then a Webhook of the same name and URL would take them over.
        operator.wait_log("dropped=10", Duration::from_secs(90)).await;
        assert_eq!(goes.count(), 0, "{:?}", goes.events());
    });
}

#[test]
fn largest_object_does_not_block_the_ledger() {
    run(async {
        let scene = Scene::new("large-job").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let mut operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        jobs.create("large").await;
        // Random data cannot be compressed. With the metrics it stays a little below etcd's limit of 1.5 MiB, since the
        // apiserver adds fields.
        let mut state = 1_u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b'0' + ((state >> 33) % 75) as u8)
        });
        let noise: String = noise.filter(|sign| !matches!(sign, '\\' | '<' | '>')).take(1_560_000).collect();
        jobs.status("large", &json!({"phase": "Running", "metrics": {"loss": 0.5, "noise": noise}})).await;
        let started = receiver.wait_for("training.started", "large", SOON).await.json();
        assert_eq!(started["truncated"], true);
        assert!(started["data"]["metrics"].is_null());
        jobs.create("small").await;
        jobs.start("small").await;
        receiver.wait_for("training.started", "small", SOON).await;
        eventually("what came after the large job is in the ledger", SOON, || async {
            let segments = scene.list("ledgersegment", "");
            let mut texts = segments.iter().map(|segment| {
                let data = segment["spec"]["data"].as_str().unwrap();
                let packed = base64::engine::general_purpose::STANDARD.decode(data).unwrap();
                String::from_utf8(zstd::decode_all(&packed[..]).unwrap()).unwrap()
            });
            texts.any(|text| text.contains("\"last\"") && text.contains("\"name\":\"small\"")).then_some(())
        })
        .await;
        operator.process.kill();
        for name in ["large", "small"] {
            jobs.delete(name).await;
        }
        operator.restart();
        operator.wait_ready().await;
        for name in ["large", "small"] {
            receiver.wait_for("training.failed", name, SOON).await;
        }
        assert!(!operator.process.log_text().contains("the ledger was not written"), "{}", operator.process.log_tail());
    });
}

#[test]
fn segment_has_readable_columns_and_backup_labels() {
    run(async {
        let scene = Scene::new("segments").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let operator = scene.operator().await;
        scene.job("llama");
        scene.phase("llama", "Running");
        receiver.wait_for("training.started", "llama", SOON).await;
        let shown = eventually("the job is in the ledger", SOON, || async {
            let names = scene.kubectl(&["get", "lseg", "-l", "velero.io/exclude-from-backup=true", "-o", "name"]);
            let mut shown = names.lines().map(|name| {
                // The command of docs/operations.md, except for the two filters.
                let data = scene.kubectl(&["get", name, "-o", "jsonpath={.spec.data}"]);
                let packed = base64::engine::general_purpose::STANDARD.decode(data).unwrap();
                let json: Value = serde_json::from_slice(&zstd::decode_all(&packed[..]).unwrap()).unwrap();
                json
            });
            shown.find(|json| json.to_string().contains("\"name\":\"llama\""))
        })
        .await;
        let group = &shown["records"][0];
        assert_eq!(group["watch"], format!("trainingjobs.llmtune.io in {}", scene.namespace));
        let record = group["objects"].as_object().unwrap().values().next().unwrap();
        assert_eq!(record["training"]["stage"], "Running");
        assert_eq!(record["last"]["name"], "llama");
        let table = scene.kubectl(&["get", "ledgersegments"]);
        let columns: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(columns, ["NAME", "KIND", "TERM", "SEQUENCE", "RECORDS", "BYTES", "AGE"]);
        assert!(operator.metric("llmtune_webhooks_ledger_bytes", &[]) > 0.0);
        assert!(operator.metric("llmtune_webhooks_ledger_flush_duration_seconds_count", &[]) > 0.0);
    });
}
