//! Recipients of an event: Webhooks that exist at its time, filters, and selected namespaces.

use super::*;

#[test]
fn webhook_gets_no_events_from_before_its_creation() {
    let mut engine = listed_engine(false);
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    let held = Subscription { held: true, ..subscription(1, 1, 0) };
    engine.subscribe(held.clone());
    engine.observe(seen(job(2, 6, TrainingStage::Running)), at(0));
    assert!(engine.due(at(0)).is_none());
    engine.subscribe(Subscription { held: false, ..held });
    let Some(Due::Attempt(attempt)) = engine.due(at(0)) else { panic!("an attempt is due") };
    assert_eq!(attempt.event.object.name, "job-2");
    assert!(engine.due(at(0)).is_none());
}

fn filtered(number: u128, filter: &str) -> Subscription {
    Subscription { filter: Some(Filter::read(filter).unwrap()), ..subscription(number, 1, 0) }
}

#[test]
fn failing_filter_lets_the_event_pass() {
    let mut engine = listed_engine(false);
    engine.subscribe(filtered(1, "object.metadata.name == 'job-1'"));
    engine.subscribe(filtered(2, "object.metadata.name == 'job-2'"));
    engine.subscribe(filtered(3, "object.metadata.name < 1"));
    engine.subscribe(subscription(4, 1, 0));
    let observed = engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    assert_eq!(observed.enqueued, [1, 3, 4].map(|number| Uid::from_u128(1000 + number)));
    let failed: Vec<(Uid, String)> =
        observed.unfiltered.into_iter().map(|failed| (failed.webhook, failed.error.to_string())).collect();
    let error = "line 1, column 22: `<` does not take a string and an int";
    assert_eq!(failed, [(Uid::from_u128(1003), error.to_owned())]);
}

#[test]
fn deletion_in_a_list_is_filtered_by_the_last_state() {
    let mut engine = listed_engine(false);
    let annotated = |number, owner: &str| Object {
        annotations: Some([("owner".to_owned(), owner.to_owned())].into()),
        ..job(number, 5, TrainingStage::Running)
    };
    for object in [annotated(1, "ada"), annotated(2, "bob"), job(3, 5, TrainingStage::Running)] {
        engine.observe(seen(object), at(0));
    }
    engine.subscribe(filtered(1, "object.metadata.annotations.owner == 'ada'"));
    assert!(engine.reads_annotations());
    engine.observe(change(WatchEvent::ListBegun), at(0));
    let observed = engine.observe(change(WatchEvent::ListEnded(9)), at(0));
    assert_eq!(names(&observed), ["training.failed"; 3]);
    assert_eq!(observed.enqueued.len(), 2, "ada's, and the one of which that is not known");
    assert_eq!(observed.unfiltered.len(), 1);
    assert_eq!(observed.unfiltered[0].event.object.name, "job-3");
    assert_eq!(observed.unfiltered[0].error, FilterError::NoAnnotations);
    engine.subscribe(subscription(1, 1, 0));
    assert!(!engine.reads_annotations());
}

/// Returns a `ClusterWebhook` that selects the namespaces with this label.
fn selecting(number: u128, team: &str) -> Subscription {
    let selector = kube_core::Expression::Equal("team".into(), team.into()).into();
    Subscription { scope: Scope::Cluster(selector), ..subscription(number, 1, 0) }
}

fn team(name: &str) -> std::collections::BTreeMap<String, String> {
    [("team".to_owned(), name.to_owned())].into()
}

#[test]
fn deletion_uses_the_last_labels_of_its_namespace() {
    let mut engine = listed_engine(false);
    engine.namespaces().seen("ns".into(), 1, team("a"), true);
    engine.subscribe(selecting(1, "a"));
    engine.subscribe(selecting(2, "b"));
    for number in [1, 2] {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    let mut engine = Engine::recover(None, 1, 4, remembered(&mut engine), at(0));
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", false);
    engine.subscribe(selecting(1, "a"));
    engine.subscribe(selecting(2, "b"));
    // The Namespace is no longer known. One deletion comes from the log, the other from a list.
    let observed = [
        engine.observe(deleted(job(1, 6, TrainingStage::Running)), at(0)),
        engine.observe(change(WatchEvent::ListBegun), at(0)),
        engine.observe(change(WatchEvent::ListEnded(9)), at(0)),
    ];
    for observed in [&observed[0], &observed[2]] {
        assert_eq!(names(observed), ["training.failed"]);
        assert_eq!(observed.enqueued, [Uid::from_u128(1001)]);
        assert!(observed.given_up.is_empty());
        assert!(observed.events[0].object.namespace_labels.is_none(), "what waits keeps no labels");
    }
}

#[test]
fn event_of_an_unknown_namespace_becomes_a_dead_letter() {
    let mut engine = listed_engine(false);
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    engine.subscribe(selecting(1, "a"));
    engine.subscribe(Subscription { scope: Scope::Cluster(Selector::default()), ..subscription(2, 1, 0) });
    let observed = engine.observe(deleted(job(1, 6, TrainingStage::Running)), at(0));
    assert_eq!(observed.enqueued, [Uid::from_u128(1002)], "one that selects every namespace gets it");
    let [RecordedOutcome { webhook, attempt: 0, verdict, dropped: false, .. }] = &observed.given_up[..] else {
        panic!("one is given up: {observed:#?}")
    };
    assert_eq!((*webhook, *verdict), (Uid::from_u128(1001), Verdict::GivenUp(Reason::NamespaceUnknown)));
    let Some(Due::StoreDeadLetter(keep)) = engine.due(at(0)) else { panic!("it becomes an object") };
    assert_eq!((keep.webhook, keep.given_up.reason), (Uid::from_u128(1001), Reason::NamespaceUnknown));
    engine.dead_letter_stored(keep.webhook, keep.delivery);
    assert!(engine.redeliver(keep.webhook, &keep.event), "asked for again it is sent");
}
