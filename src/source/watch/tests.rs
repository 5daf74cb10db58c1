use std::sync::atomic::AtomicUsize;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::{
    fake::{Answer, apiserver, line},
    source::{deployment::Deployments, training_job::TrainingJobs},
};

const UID: &str = "00000000-0000-0000-0000-000000000007";

fn watcher<S: Source + Default>(
    answer: impl Fn(&str) -> Answer + Send + Sync + 'static,
) -> (Arc<Watcher<S>>, mpsc::Receiver<Observation>) {
    let (observations, incoming) = mpsc::channel(64);
    let source = S::default();
    let watcher = Watcher {
        keep_annotations: Arc::default(),
        namespaces: NamespaceBarrier::new(mpsc::unbounded_channel().0),
        id: WatchId(0),
        namespace: None,
        client: apiserver(answer),
        observations,
        health: Arc::new(WatchHealth::new(source.kind(), None, None)),
        malformed: IntCounter::new("malformed", "objects").unwrap(),
        newest: AtomicU64::new(0),
        source,
    };
    (Arc::new(watcher), incoming)
}

fn list(version: u64, items: &[Value]) -> Answer {
    Answer::Object(json!({"metadata": {"resourceVersion": version.to_string()}, "items": items}))
}

/// The observations in this much time of the paused clock.
async fn observed(
    watcher: &Arc<Watcher<impl Source>>,
    incoming: &mut mpsc::Receiver<Observation>,
    version: Option<u64>,
    time: Duration,
) -> Vec<WatchEvent> {
    let watching: JoinHandle<()> = tokio::spawn(Arc::clone(watcher).run(version));
    let end = Instant::now() + time;
    let mut changes = Vec::new();
    while let Ok(Some(observation)) = tokio::time::timeout_at(end, incoming.recv()).await {
        changes.push(observation.change);
    }
    watching.abort();
    changes
}

/// An apiserver that answers 404 for this time, like one that does not serve its custom resources yet.
fn just_started(startup: Duration) -> impl Fn(&str) -> Answer + Send + Sync + 'static {
    let start = Instant::now();
    move |path| match path {
        _ if start.elapsed() < startup => Answer::Error(404),
        path if path.contains("watch=true") => Answer::Watch(vec![]),
        _ => list(100, &[]),
    }
}

#[tokio::test(start_paused = true)]
async fn known_kind_is_not_missing_while_the_apiserver_starts() {
    let (watcher, mut incoming) = watcher::<TrainingJobs>(just_started(Duration::from_secs(12)));
    let changes = observed(&watcher, &mut incoming, Some(90), Duration::from_secs(60)).await;
    assert!(changes.is_empty(), "{changes:?}");
    assert!(watcher.health.is_installed() && watcher.health.is_synced());
}

#[tokio::test(start_paused = true)]
async fn unknown_kind_counts_as_missing_sooner_than_a_known_one() {
    for (version, seconds) in [(None, 10), (Some(90), 30)] {
        let (watcher, mut incoming) = watcher::<TrainingJobs>(|_| Answer::Error(404));
        let changes = observed(&watcher, &mut incoming, version, Duration::from_secs(seconds)).await;
        assert!(matches!(changes[..], [WatchEvent::NotInstalled(_), ..]), "{changes:?}");
        assert!(!watcher.health.is_installed());
    }
}

#[tokio::test(start_paused = true)]
async fn lists_back_off_if_watches_expire_immediately() {
    let lists = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&lists);
    let (watcher, mut incoming) = watcher::<TrainingJobs>(move |path| match path {
        path if path.contains("watch=true") => Answer::Watch(vec![line("ERROR", &json!({"code": 410}))]),
        path if path.contains("limit=1&") || path.ends_with("limit=1") => list(100, &[]),
        _ => {
            asked.fetch_add(1, Ordering::Relaxed);
            list(100, &[])
        }
    });
    observed(&watcher, &mut incoming, None, Duration::from_secs(60)).await;
    let lists = lists.load(Ordering::Relaxed);
    assert!((12..40).contains(&lists), "{lists} lists in a minute");
}

/// An object of this version whose status cannot be read.
fn unreadable(version: u64) -> Value {
    json!({"metadata": {"name": "a", "namespace": "ns", "uid": UID, "resourceVersion": version.to_string()}, "status": 7})
}

#[tokio::test(start_paused = true)]
async fn deletion_of_an_unreadable_object_is_observed() {
    let (watcher, mut incoming) = watcher::<TrainingJobs>(|path| match path {
        path if path.contains("watch=true") => {
            Answer::Watch(vec![line("MODIFIED", &unreadable(101)), line("DELETED", &unreadable(102))])
        }
        _ => list(100, &[]),
    });
    let changes = observed(&watcher, &mut incoming, Some(100), Duration::from_secs(10)).await;
    assert!(matches!(changes[..], [WatchEvent::Vanished(uid)] if Some(uid) == Uid::parse(UID)), "{changes:?}");
    assert_eq!(watcher.malformed.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn unreadable_object_that_leaves_a_selection_is_checked() {
    let (watcher, mut incoming) = watcher::<Deployments>(|path| match path {
        path if path.contains("watch=true") => Answer::Watch(vec![line("DELETED", &unreadable(101))]),
        _ => list(100, &[]),
    });
    let changes = observed(&watcher, &mut incoming, Some(100), Duration::from_secs(10)).await;
    let [WatchEvent::LeftUnread(question)] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!(question, &ExistenceCheck { uid: Uid::parse(UID).unwrap(), ..existence_check("a", 7) });
}

/// An existence check of the object with this name and number.
fn existence_check(name: &str, number: u128) -> ExistenceCheck {
    let uid = Uid::from_u128(number);
    ExistenceCheck { watch: WatchId(0), uid, namespace: "ns".into(), name: name.into(), version: 101 }
}

fn object(name: &str, number: u128, version: u64) -> Value {
    let uid = Uid::from_u128(number).to_string();
    json!({"metadata": {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": version.to_string()}})
}

/// Starts the watcher. Existence checks go to the returned sender.
fn start<S: Source>(watcher: &Arc<Watcher<S>>) -> (JoinHandle<()>, mpsc::UnboundedSender<ExistenceCheck>) {
    let (ask, checks) = mpsc::unbounded_channel();
    (tokio::spawn(Arc::clone(watcher).follow(Some(100), checks)), ask)
}

async fn next(incoming: &mut mpsc::Receiver<Observation>) -> WatchEvent {
    timeout(Duration::from_secs(600), incoming.recv()).await.expect("an observation arrives").unwrap().change
}

#[tokio::test(start_paused = true)]
async fn failing_check_delays_neither_the_watch_nor_other_checks() {
    let (watcher, mut incoming) = watcher::<Deployments>(move |path| match path {
        path if path.contains("watch=true") => {
            Answer::Watch(vec![line("DELETED", &object("a", 7, 101)), line("ADDED", &object("b", 8, 102))])
        }
        path if path.ends_with("/deployments/a") => Answer::Error(503),
        path if path.ends_with("/deployments/c") => Answer::Object(object("c", 9, 50)),
        _ => list(103, &[]),
    });
    let (running, ask) = start(&watcher);
    assert!(matches!(next(&mut incoming).await, WatchEvent::Left(object) if object.name == "a"));
    assert!(matches!(next(&mut incoming).await, WatchEvent::Seen(object) if object.name == "b"));
    for check in [existence_check("a", 7), existence_check("a", 7), existence_check("c", 9)] {
        ask.send(check).unwrap();
    }
    assert!(
        matches!(next(&mut incoming).await, WatchEvent::ExistenceChecked { check, exists: true } if check == existence_check("c", 9))
    );
    for _ in 0..5 {
        sleep(Duration::from_secs(60)).await;
        assert!(watcher.health.idle_for() < Duration::from_secs(60));
    }
    running.abort();
    let more: Vec<WatchEvent> = std::iter::from_fn(|| incoming.try_recv().ok()).map(|seen| seen.change).collect();
    let again = |change: &WatchEvent| matches!(change, WatchEvent::Left(_) | WatchEvent::Seen(_));
    assert!(more.iter().all(again), "no answer without a successful check: {more:?}");
}

#[tokio::test(start_paused = true)]
async fn check_is_retried_while_the_kind_is_not_served() {
    let begun = Instant::now();
    let (watcher, mut incoming) = watcher::<Deployments>(move |path| match path {
        path if path.contains("watch=true") => Answer::Watch(vec![]),
        path if path.ends_with("/deployments/a") && begun.elapsed() < Duration::from_secs(50) => Answer::Error(404),
        path if path.ends_with("/deployments/a") => Answer::Object(object("a", 7, 102)),
        _ => list(100, &[]),
    });
    let (_running, ask) = start(&watcher);
    ask.send(existence_check("a", 7)).unwrap();
    assert!(matches!(next(&mut incoming).await, WatchEvent::ExistenceChecked { exists: true, .. }));
}

#[tokio::test(start_paused = true)]
async fn missing_right_to_get_is_reported_until_it_is_granted() {
    let begun = Instant::now();
    let forbidden =
        r#"deployments.apps "a" is forbidden: User "u" cannot get resource "deployments" in API group "apps""#;
    let (watcher, mut incoming) = watcher::<Deployments>(move |path| match path {
        path if path.contains("watch=true") => Answer::Watch(vec![]),
        path if path.contains("/deployments/") && begun.elapsed() < Duration::from_secs(300) => {
            Answer::Refused(403, forbidden)
        }
        path if path.contains("/deployments/") => Answer::Object(object("a", 8, 102)),
        _ => list(100, &[]),
    });
    let (_running, ask) = start(&watcher);
    sleep(Duration::from_secs(60)).await;
    let trouble = watcher.health.trouble().expect("the probe finds it before the first check");
    assert!(trouble.reason == "Forbidden" && trouble.message.contains("apply"), "{trouble:?}");
    assert!(watcher.health.is_synced(), "the watch goes on");
    ask.send(existence_check("a", 7)).unwrap();
    assert!(
        matches!(next(&mut incoming).await, WatchEvent::ExistenceChecked { exists: false, .. }),
        "another object has its name"
    );
    assert_eq!(watcher.health.trouble(), None);
}

#[tokio::test(start_paused = true)]
async fn watch_reports_the_time_up_to_which_it_is_complete() {
    let listed = || Answer::At("Tue, 01 Dec 2026 10:01:00 GMT", Box::new(list(102, &[])));
    let (watcher, mut incoming) = watcher::<TrainingJobs>(move |path| match path {
        path if path.contains("watch=true") => {
            let bookmark = |version: u64| json!({"metadata": {"resourceVersion": version.to_string()}});
            let lines = [101, 102, 103].map(|version| line("BOOKMARK", &bookmark(version)));
            Answer::At("Tue, 01 Dec 2026 11:00:00 GMT", Box::new(Answer::Watch(lines.into())))
        }
        _ => listed(),
    });
    let minute: Timestamp = "2026-12-01T10:00:00Z".parse().unwrap();
    let changes = observed(&watcher, &mut incoming, Some(100), Duration::from_secs(10)).await;
    let [WatchEvent::Bookmark(101), WatchEvent::Bookmark(102), WatchEvent::Current(at), WatchEvent::Bookmark(103)] =
        changes[..]
    else {
        panic!("Current follows the version that etcd had before the watch started: {changes:?}")
    };
    assert_eq!(at, minute, "by the apiserver's clock, minus one minute");
    let changes = observed(&watcher, &mut incoming, None, Duration::from_millis(1)).await;
    let [WatchEvent::ListBegun, WatchEvent::ListEnded(102), WatchEvent::Current(at), ..] = changes[..] else {
        panic!("{changes:?}")
    };
    assert_eq!(at, minute);
}

#[tokio::test(start_paused = true)]
async fn observations_of_unknown_namespaces_wait_for_a_lookup() {
    let (ask, mut asked) = mpsc::unbounded_channel();
    let namespaces = NamespaceBarrier::new(ask);
    let (watcher, mut incoming) = watcher::<TrainingJobs>(|path| {
        let object = |namespace: &str, number: u64| {
            let uid = Uid::from_u128(u128::from(number)).to_string();
            json!({"metadata": {"name": "a", "namespace": namespace, "uid": uid, "resourceVersion": number.to_string()}})
        };
        match path {
            path if path.contains("watch=true") => {
                let lines =
                    [("ADDED", "known", 102), ("ADDED", "new", 103), ("DELETED", "new", 103), ("ADDED", "known", 104)];
                Answer::Watch(lines.map(|(kind, namespace, number)| line(kind, &object(namespace, number))).into())
            }
            _ => list(101, &[]),
        }
    });
    let Some(watcher) = Arc::into_inner(watcher) else { panic!("the watcher has one owner") };
    let watcher = Arc::new(Watcher { namespaces: namespaces.clone(), ..watcher });
    namespaces.seen("known");
    namespaces.begin();
    let watching = tokio::spawn(Arc::clone(&watcher).run(Some(101)));
    let versions = |changes: &[WatchEvent]| {
        let version = |change: &WatchEvent| match change {
            WatchEvent::Seen(object) | WatchEvent::Deleted(object) => Some(object.version),
            _ => None,
        };
        changes.iter().filter_map(version).collect::<Vec<u64>>()
    };
    let drain = |incoming: &mut mpsc::Receiver<Observation>| {
        let changes: Vec<WatchEvent> =
            std::iter::from_fn(|| incoming.try_recv().ok()).map(|seen| seen.change).collect();
        versions(&changes)
    };
    let (name, confirm) = asked.recv().await.unwrap();
    // The watch does not count as stuck while the apiserver does not answer.
    sleep(Duration::from_secs(600)).await;
    assert!(watcher.health.idle_for() < Duration::from_secs(60));
    assert_eq!((name.as_str(), drain(&mut incoming)), ("new", vec![102]));
    confirm.send(()).unwrap();
    // The watch of Namespaces has not reported the Namespace yet, so it is looked up each time.
    let (name, confirm) = asked.recv().await.unwrap();
    assert_eq!((name.as_str(), drain(&mut incoming)), ("new", vec![103]));
    drop(confirm);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(drain(&mut incoming), [103, 104]);

    namespaces.end();
    assert!(namespaces.know("new"), "labels no longer matter");
    watching.abort();
}
