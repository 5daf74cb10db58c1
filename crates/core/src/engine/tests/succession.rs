//! A Webhook that is deleted and created again.

use super::*;
use crate::subscription::WebhookRef;
use llmtune_api::webhook_delivery::WebhookKind;

fn webhook(number: u128) -> WebhookRef {
    let uid = subscription(number, 1, 5).uid;
    WebhookRef { kind: WebhookKind::Webhook, uid, home: "ns".into(), name: "ci".into() }
}

/// Acknowledges all attempts that are due. Returns the object, the event type and the attempt number of each.
fn acknowledged(engine: &mut Engine, now: i64) -> Vec<(String, &'static str, u32)> {
    let mut sent = Vec::new();
    while let Some(due) = engine.due(at(now)) {
        let Due::Attempt(attempt) = due else { continue };
        sent.push((attempt.event.object.name.clone(), attempt.event.event_type.name(), attempt.number));
        engine.record_outcome(outcome(&attempt, AttemptResult::Acknowledged), at(now), 0.5).unwrap();
    }
    sent
}

#[test]
fn heir_gets_the_backlog_in_order_with_its_attempts() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 1, 5));
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    let retried = attempt(&mut engine, 0);
    engine.record_outcome(outcome(&retried, FAILED), at(0), 0.5);
    engine.observe(seen(job(2, 6, TrainingStage::Running)), at(0));
    engine.observe(seen(job(2, 7, TrainingStage::Completed)), at(0));
    engine.observe(seen(job(3, 8, TrainingStage::Running)), at(0));
    assert_eq!(engine.orphan(&webhook(1)), 4);
    assert!(engine.due(at(60_000)).is_none(), "nothing begins for a deleted Webhook");
    engine.observe(seen(job(4, 9, TrainingStage::Running)), at(0));
    assert_eq!(engine.pending(webhook(1).uid), 4, "it gets no further events");

    engine.subscribe(subscription(2, 1, 5));
    engine.observe(seen(job(3, 10, TrainingStage::Completed)), at(0));
    assert_eq!(engine.take_over(webhook(1).uid, webhook(2).uid), 4);
    assert_eq!((engine.pending(webhook(1).uid), engine.pending(webhook(2).uid)), (0, 5));
    let mut sent = acknowledged(&mut engine, 60_000);
    let of = |sent: &[(String, &'static str, u32)], name: &str| {
        let of = sent.iter().filter(|(of, ..)| of == name);
        of.map(|(_, event, attempt)| (*event, *attempt)).collect::<Vec<_>>()
    };
    assert_eq!(of(&sent, "job-1"), [("training.started", 2)]);
    assert_eq!(of(&sent, "job-2"), [("training.started", 1), ("training.completed", 1)]);
    assert_eq!(sent.len(), 5);
    sent.retain(|(name, ..)| name == "job-3");
    assert_eq!(sent.len(), 2);
    assert_eq!(engine.unsubscribe(webhook(1).uid), 0);
}

#[test]
fn attempt_under_way_at_the_deletion_counts_for_the_heir() {
    for result in [AttemptResult::Acknowledged, FAILED] {
        let mut engine = listed_engine(false);
        engine.subscribe(subscription(1, 1, 5));
        engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
        engine.observe(seen(job(1, 6, TrainingStage::Completed)), at(0));
        let under_way = attempt(&mut engine, 0);
        engine.orphan(&webhook(1));
        engine.subscribe(subscription(2, 2, 5));
        assert_eq!(engine.take_over(webhook(1).uid, webhook(2).uid), 2);
        assert!(engine.due(at(0)).is_none(), "the object's first attempt is under way");
        let recorded = engine.record_outcome(outcome(&under_way, result), at(0), 0.5).unwrap();
        assert_eq!((recorded.webhook, recorded.attempt), (webhook(2).uid, 1));
        let sent = acknowledged(&mut engine, 60_000);
        let numbers: Vec<u32> = sent.iter().map(|(.., number)| *number).collect();
        let again = if result == FAILED { vec![1, 2] } else { vec![1] };
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, again, "{sent:?}");
        assert_eq!(engine.pending(webhook(2).uid), 0);
    }
}

#[test]
fn attempt_that_ends_without_a_successor_is_not_repeated() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 2, 0));
    for number in 1..=2 {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    let (first, second) = (attempt(&mut engine, 0), attempt(&mut engine, 0));
    assert_eq!(engine.orphan(&webhook(1)), 2);
    engine.record_outcome(outcome(&first, AttemptResult::Acknowledged), at(0), 0.5);
    engine.record_outcome(outcome(&second, FAILED), at(0), 0.5);
    engine.subscribe(subscription(2, 2, 5));
    assert_eq!(engine.take_over(webhook(1).uid, webhook(2).uid), 1, "the failed one was not its last");
    assert_eq!(acknowledged(&mut engine, 60_000), [("job-2".to_owned(), "training.started", 2)]);
}

#[test]
fn given_up_deliveries_become_objects_of_the_heir() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 1, 0));
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    let last = attempt(&mut engine, 0);
    engine.record_outcome(outcome(&last, FAILED), at(0), 0.5);
    assert_eq!(engine.orphan(&webhook(1)), 1);
    assert!(engine.due(at(0)).is_none(), "no object could belong to a deleted Webhook");
    engine.subscribe(subscription(2, 1, 0));
    engine.take_over(webhook(1).uid, webhook(2).uid);
    let Some(Due::StoreDeadLetter(keep)) = engine.due(at(0)) else { panic!("it becomes an object") };
    assert_eq!((keep.webhook, keep.given_up.reason), (webhook(2).uid, Reason::Exhausted));
    engine.dead_letter_stored(keep.webhook, keep.delivery);
    assert_eq!(engine.unsubscribe(webhook(2).uid), 0);
}

#[test]
fn backlog_is_found_by_its_owner_after_a_crash() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 1, 5));
    engine.own(webhook(1).uid, "Webhook/ci/0123456789abcdef".into());
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    let failed = attempt(&mut engine, 0);
    engine.record_outcome(outcome(&failed, FAILED), at(0), 0.5);
    engine.observe(seen(job(1, 6, TrainingStage::Completed)), at(0));
    let mut next = Engine::recover(None, 2, 4, remembered(&mut engine), at(0));
    next.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", false);
    next.subscribe(subscription(2, 1, 5));
    assert_eq!(next.orphans(), [webhook(1).uid]);
    let (owner, namespace) = next.owner(webhook(1).uid);
    assert_eq!((owner.as_deref(), namespace.as_deref()), (Some("Webhook/ci/0123456789abcdef"), Some("ns")));
    assert_eq!(next.take_over(webhook(1).uid, webhook(2).uid), 2);
    next.own(webhook(2).uid, "Webhook/ci/0123456789abcdef".into());
    let contents = flushed(&mut next);
    let to: HashSet<Uid> = contents.events.iter().flat_map(|entry| &entry.deliveries).map(|to| to.webhook).collect();
    assert_eq!(to, HashSet::from([webhook(2).uid]));
    let sent = acknowledged(&mut next, 60_000);
    let mut sent: Vec<_> = sent.into_iter().map(|(_, event, number)| (event, number)).collect();
    sent.sort_unstable();
    assert_eq!(sent, [("training.completed", 1), ("training.started", 2)]);
    assert!(next.orphans().is_empty());
}

#[test]
fn backlog_waits_for_its_flush_after_the_takeover() {
    let mut engine = Engine::new(None, 1, 4);
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", false);
    engine.subscribe(subscription(1, 1, 5));
    engine.observe(change(WatchEvent::ListBegun), at(0));
    engine.observe(change(WatchEvent::ListEnded(1)), at(0));
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    engine.orphan(&webhook(1));
    engine.subscribe(subscription(2, 1, 5));
    assert_eq!(engine.take_over(webhook(1).uid, webhook(2).uid), 1);
    assert!(engine.due(at(0)).is_none(), "its baseline is not flushed");
    flushed(&mut engine);
    assert_eq!(acknowledged(&mut engine, 0).len(), 1);
}
