//! Bounds of pending deliveries: an event beyond them becomes a dead letter, and beyond those is dropped and counted.

use super::*;

#[test]
fn events_beyond_the_bound_become_dead_letters_then_are_dropped() {
    let mut engine = listed_engine(false);
    engine.subscribe(Subscription { held: true, ..subscription(1, 1, 0) });
    let (mut given_up, mut dropped) = (0, 0);
    for number in 0..=(MAX_DELIVERIES + MAX_DEAD_LETTERS) as u128 + 4 {
        let observed = engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
        given_up += observed.given_up.len();
        dropped += observed.dropped.len();
    }
    assert_eq!((given_up, dropped), (MAX_DEAD_LETTERS, 5));
    assert_eq!(engine.pending(Uid::from_u128(1001)), MAX_DELIVERIES);
    let mut kept = 0;
    while let Some(due) = engine.due(at(0)) {
        let Due::StoreDeadLetter(keep) = due else { panic!("the Webhook is held") };
        assert_eq!(keep.given_up.reason, Reason::BoundReached);
        engine.dead_letter_stored(keep.webhook, keep.delivery);
        kept += 1;
    }
    assert_eq!(kept, MAX_DEAD_LETTERS);
    engine.subscribe(subscription(2, 1, 0));
    let observed = engine.observe(seen(job(1, 6, TrainingStage::Completed)), at(0));
    assert_eq!(observed.enqueued, [Uid::from_u128(1002)]);
    assert_eq!(engine.unsubscribe(Uid::from_u128(1001)), MAX_DELIVERIES + 1, "with the one on the dead_letters");
}

#[test]
fn event_observed_twice_becomes_one_dead_letter() {
    let mut pending = Pending::new(4);
    let event = Arc::new(sample(EventType::TrainingFailed, Uid::from_u128(1), "ns", None, at(0)));
    let webhook = Uid::from_u128(1001);
    pending.subscribed(webhook);
    let add_dead_letter = |pending: &mut Pending| {
        pending.add_dead_letter(webhook, &event, GivenUp::unattempted(Reason::NamespaceUnknown, at(0)), None)
    };
    assert_eq!(
        [add_dead_letter(&mut pending), add_dead_letter(&mut pending)],
        [AddedDeadLetter::DeadLetter, AddedDeadLetter::Known]
    );
    assert_eq!(pending.queue(webhook).dead_letters.bytes(), event.body.len());
    let keep = pending.next_to_store().unwrap();
    assert!(pending.next_to_store().is_none());
    pending.dead_letter_stored(webhook, keep.delivery);
    assert_eq!(add_dead_letter(&mut pending), AddedDeadLetter::DeadLetter, "nothing is left of it");
}

const HEAVY: usize = 128 * KIB;

/// Starts a job with an event of `bytes` bytes in the namespace. Returns the result at the only Webhook there.
fn starts(engine: &mut Engine, namespace: &str, bytes: usize) -> &'static str {
    let number = engine.records() as u128 + 1;
    let object = |model: String| {
        let stage = Some(TrainingStage::Running);
        let facts = Facts::Training(TrainingFacts { stage, base_model: Some(model), ..TrainingFacts::default() });
        let (namespace, name) = (namespace.to_owned(), format!("job-{number:04}"));
        Object { namespace, name, facts, ..job(number, 5, TrainingStage::Running) }
    };
    let bare = listed_engine(false).observe(seen(object(String::new())), at(0)).events[0].body.len();
    let observed = engine.observe(seen(object("x".repeat(bytes - bare))), at(0));
    assert_eq!(observed.events[0].body.len(), bytes);
    match (observed.enqueued.len(), observed.given_up.len(), observed.dropped.len()) {
        (1, 0, 0) => "pending",
        (0, 1, 0) => "dead letter",
        (0, 0, 1) => "dropped",
        other => panic!("{other:?}"),
    }
}

#[test]
fn byte_bounds_of_queue_and_dead_letters_are_exact() {
    let mut engine = listed_engine(false);
    let held = Subscription { held: true, ..subscription(1, 1, 0) };
    let webhook = held.uid;
    engine.subscribe(held.clone());
    for _ in 0..MAX_BYTES / HEAVY {
        assert_eq!(starts(&mut engine, "ns", HEAVY), "pending");
    }
    assert_eq!(starts(&mut engine, "ns", KIB), "dead letter");
    for _ in 1..MAX_BYTES / HEAVY {
        assert_eq!(starts(&mut engine, "ns", HEAVY), "dead letter");
    }
    assert_eq!(starts(&mut engine, "ns", HEAVY - KIB), "dead letter");
    assert_eq!(starts(&mut engine, "ns", KIB), "dropped");

    let mut keeps = Vec::new();
    while let Some(due) = engine.due(at(0)) {
        let Due::StoreDeadLetter(keep) = due else { panic!("the Webhook is held") };
        keeps.push(keep);
    }
    keeps.retain(|keep| keep.event.body.len() == HEAVY);
    engine.dead_letter_stored(webhook, keeps[0].delivery);
    assert_eq!(starts(&mut engine, "ns", HEAVY), "dead letter", "in the place of what has become an object");
    assert_eq!(starts(&mut engine, "ns", KIB), "dropped");

    engine.subscribe(Subscription { held: false, ..held });
    let first = attempt_past_stores(&mut engine, 0);
    engine.record_outcome(outcome(&first, AttemptResult::Acknowledged), at(0), 0.5);
    assert_eq!(starts(&mut engine, "ns", HEAVY), "pending", "in the place of what was acknowledged");
    assert_eq!(starts(&mut engine, "ns", KIB), "dropped");

    let second = attempt_past_stores(&mut engine, 0);
    let recorded = engine.record_outcome(outcome(&second, FAILED), at(0), 0.5).unwrap();
    assert!(recorded.dropped && !recorded.again, "its dead_letters is full");
    assert_eq!(starts(&mut engine, "ns", HEAVY), "pending", "in the place of what was given up");
    assert_eq!(starts(&mut engine, "ns", KIB), "dropped");

    engine.dead_letter_stored(webhook, keeps[1].delivery);
    let third = attempt_past_stores(&mut engine, 0);
    assert!(
        !engine.record_outcome(outcome(&third, FAILED), at(0), 0.5).unwrap().dropped,
        "it fits onto the dead_letters"
    );
    assert_eq!(starts(&mut engine, "ns", HEAVY), "pending");
    assert_eq!(starts(&mut engine, "ns", KIB), "dropped");
}

#[test]
fn dead_letters_are_bounded_at_a_thousand() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 1, 0));
    for number in 0..=MAX_DEAD_LETTERS {
        engine.observe(seen(job(number as u128, 5, TrainingStage::Running)), at(0));
        let attempt = attempt_past_stores(&mut engine, 0);
        let recorded = engine.record_outcome(outcome(&attempt, FAILED), at(0), 0.5).unwrap();
        assert_eq!(recorded.dropped, number == MAX_DEAD_LETTERS, "number {number}");
    }
}

#[test]
fn total_byte_bound_is_exact_and_deletion_frees_its_share() {
    let mut engine = listed_engine(false);
    for (number, namespace) in (1..).zip(["n1", "n2", "n3", "n4", "n5", "n6"]) {
        engine.subscribe(Subscription {
            scope: Scope::Namespace(namespace.into()),
            held: true,
            ..subscription(number, 1, 0)
        });
    }
    for namespace in ["n1", "n2", "n3", "n4"] {
        for _ in 0..MAX_BYTES / HEAVY {
            assert_eq!(starts(&mut engine, namespace, HEAVY), "pending");
        }
    }
    assert_eq!(starts(&mut engine, "n5", KIB), "dead letter", "its own queue is empty");
    for namespace in ["n5", "n6"] {
        for _ in 1..MAX_BYTES / HEAVY / 2 {
            assert_eq!(starts(&mut engine, namespace, HEAVY), "dead letter");
        }
    }
    assert_eq!(starts(&mut engine, "n6", HEAVY), "dead letter");
    assert_eq!(starts(&mut engine, "n6", HEAVY - KIB), "dead letter");
    for namespace in ["n5", "n6"] {
        assert_eq!(starts(&mut engine, namespace, KIB), "dropped", "its own dead_letters has room");
    }
    for number in [1, 5, 6] {
        engine.unsubscribe(Uid::from_u128(1000 + number));
    }
    for (number, namespace) in [(5, "n5"), (6, "n6"), (7, "n6")] {
        engine.subscribe(Subscription {
            scope: Scope::Namespace(namespace.into()),
            held: true,
            ..subscription(number, 1, 0)
        });
    }
    for _ in 1..MAX_BYTES / HEAVY {
        assert_eq!(starts(&mut engine, "n5", HEAVY), "pending");
    }
    // Two Webhooks share the last event that fits: it counts once.
    let last = Object { namespace: "n6".into(), ..job(0, 5, TrainingStage::Running) };
    let size = listed_engine(false).observe(seen(last.clone()), at(0)).events[0].body.len();
    assert_eq!(starts(&mut engine, "n5", HEAVY - size), "pending");
    let observed = engine.observe(seen(last), at(0));
    assert_eq!(observed.enqueued, [Uid::from_u128(1006), Uid::from_u128(1007)]);
    engine.unsubscribe(Uid::from_u128(1007));
    assert_eq!(starts(&mut engine, "n6", KIB), "dead letter", "the other Webhook still waits for it");
}

#[test]
fn redelivery_ignores_the_bounds_but_counts() {
    let mut engine = listed_engine(false);
    for (number, namespace) in (1..).zip(["n1", "n2", "n3", "n4", "n5", "n6"]) {
        engine.subscribe(Subscription { scope: Scope::Namespace(namespace.into()), ..subscription(number, 1, 0) });
    }
    assert_eq!(starts(&mut engine, "n5", HEAVY), "pending");
    let sent = attempt(&mut engine, 0);
    engine.record_outcome(outcome(&sent, AttemptResult::Acknowledged), at(0), 0.5);
    for namespace in ["n1", "n2", "n3", "n4"] {
        for _ in 0..MAX_BYTES / HEAVY {
            assert_eq!(starts(&mut engine, namespace, HEAVY), "pending");
        }
    }
    let both = [Uid::from_u128(1005), Uid::from_u128(1006)];
    assert!(both.iter().all(|webhook| engine.redeliver(*webhook, &sent.event)));
    engine.unsubscribe(Uid::from_u128(1001));
    for _ in 1..MAX_BYTES / HEAVY {
        assert_eq!(starts(&mut engine, "n5", HEAVY), "pending");
    }
    assert_eq!(starts(&mut engine, "n6", KIB), "dead letter");
    let end = |engine: &mut Engine, webhook| {
        let attempt = Attempt { webhook, delivery: DeliveryId::new(sent.event.id, webhook), ..sent.clone() };
        engine.record_outcome(outcome(&attempt, AttemptResult::Acknowledged), at(0), 0.5).unwrap();
    };
    end(&mut engine, both[0]);
    assert_eq!(starts(&mut engine, "n6", KIB), "dead letter");
    end(&mut engine, both[1]);
    assert_eq!(starts(&mut engine, "n6", HEAVY - 2 * KIB), "pending");
    assert_eq!(starts(&mut engine, "n6", KIB), "dead letter");
}
