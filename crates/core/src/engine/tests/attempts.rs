//! Attempts: their order, the effect of their results, and retries.

use super::*;

#[test]
fn late_410_of_the_old_endpoint_is_ignored() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 1, 5));
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    let late = attempt(&mut engine, 0);
    engine.subscribe(Subscription { generation: 2, ..subscription(1, 1, 5) });
    let recorded = engine.record_outcome(outcome(&late, AttemptResult::Gone), at(0), 0.5).unwrap();
    assert!(matches!(recorded.verdict, Verdict::Retry(_)) && !recorded.endpoint_gone);
    assert_eq!(attempt(&mut engine, 5000).number, 2);
}

#[test]
fn clock_step_does_not_change_the_wait_of_a_retry() {
    for hour in [3_600_000, -3_600_000] {
        let mut engine = listed_engine(false);
        engine.subscribe(subscription(1, 1, 5));
        engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
        let first = attempt(&mut engine, 0);
        let Verdict::Retry(due) = engine.record_outcome(outcome(&first, FAILED), at(0), 0.5).unwrap().verdict else {
            panic!("it is tried again")
        };
        let wait = due.as_millisecond() - at(0).as_millisecond();
        engine.shift(jiff::SignedDuration::from_millis(hour));
        assert_eq!(engine.next_due(), Some(at(hour + wait)));
        assert!(engine.due(at(hour + wait - 1)).is_none());
        assert_eq!(attempt(&mut engine, hour + wait).number, 2);
        assert!(engine.due(at(2 * hour.abs())).is_none(), "once");
    }
}

#[test]
fn events_keep_their_order_across_leaders_with_different_clocks() {
    let held = Subscription { held: true, ..subscription(1, 2, 5) };
    let next = |before: &mut Engine, now| {
        let mut engine = Engine::recover(None, 2, 4, remembered(before), at(now));
        engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", false);
        engine.subscribe(held.clone());
        engine
    };
    let mut ahead = listed_engine(false);
    ahead.subscribe(held.clone());
    ahead.observe(seen(job(1, 5, TrainingStage::Running)), at(60_000));
    let mut behind = next(&mut ahead, 0);
    behind.observe(seen(job(1, 6, TrainingStage::Completed)), at(1_000));
    let mut engine = next(&mut behind, 2_000);
    engine.subscribe(subscription(1, 2, 5));
    let first = attempt(&mut engine, 2_000);
    assert_eq!(first.event.event_type, EventType::TrainingStarted);
    assert!(engine.due(at(2_000)).is_none(), "the second waits for the first");
    engine.record_outcome(outcome(&first, AttemptResult::Acknowledged), at(2_000), 0.5);
    assert_eq!(attempt(&mut engine, 2_000).event.event_type, EventType::TrainingCompleted);
}

#[test]
fn gone_endpoint_exhausts_waiting_deliveries_without_an_attempt() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 2, 5));
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    engine.observe(seen(job(1, 6, TrainingStage::Completed)), at(0));
    let first = attempt(&mut engine, 0);
    engine.record_outcome(outcome(&first, AttemptResult::Failed { retry_after: None }), at(0), 0.5);
    let second = attempt(&mut engine, 0);
    let retry = attempt(&mut engine, 5000);
    assert_eq!((second.number, retry.number), (1, 2));
    let recorded = engine.record_outcome(outcome(&retry, AttemptResult::Gone), at(5000), 0.5).unwrap();
    assert_eq!(recorded.verdict, Verdict::GivenUp(Reason::EndpointGone));
    engine.record_outcome(outcome(&second, AttemptResult::Failed { retry_after: None }), at(5000), 0.5);
    let Some(Due::StoreDeadLetter(keep)) = engine.due(at(5000)) else { panic!("the first becomes an object") };
    assert_eq!((keep.delivery, keep.given_up.reason), (retry.delivery, Reason::EndpointGone));
    let Some(Due::GivenUp(recorded)) = engine.due(at(9000)) else { panic!("the second is given up") };
    assert_eq!((recorded.attempt, recorded.endpoint_gone, recorded.pending), (1, true, 0));
}

#[test]
fn late_acknowledgment_does_not_revive_the_new_endpoint() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 2, 5));
    for number in [1, 2] {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    let late = attempt(&mut engine, 0);
    engine.subscribe(Subscription { generation: 2, ..subscription(1, 2, 5) });
    let new = attempt(&mut engine, 0);
    let recorded = engine.record_outcome(outcome(&new, AttemptResult::Gone), at(0), 0.5).unwrap();
    assert_eq!((recorded.verdict, recorded.endpoint_gone), (Verdict::GivenUp(Reason::EndpointGone), true));
    let recorded = engine.record_outcome(outcome(&late, AttemptResult::Acknowledged), at(0), 0.5).unwrap();
    assert_eq!((recorded.verdict, recorded.endpoint_gone), (Verdict::Delivered, true));
}

#[test]
fn failed_redelivery_is_neither_stored_nor_counted_as_dropped() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 1, 1));
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    let sent = attempt(&mut engine, 0);
    let webhook = sent.webhook;
    assert!(!engine.redeliver(webhook, &sent.event), "it is pending");
    assert!(!engine.redeliver(Uid::from_u128(5), &sent.event), "nobody knows the Webhook");
    engine.record_outcome(outcome(&sent, FAILED), at(0), 0.5);
    let retry = attempt(&mut engine, 5000);
    let recorded = engine.record_outcome(outcome(&retry, FAILED), at(5000), 0.5).unwrap();
    assert_eq!(
        (recorded.verdict, recorded.again, recorded.dropped),
        (Verdict::GivenUp(Reason::Exhausted), false, false)
    );

    // The dead letter still exists: the ledger records it, and not the redelivery.
    assert!(engine.redeliver(webhook, &sent.event));
    assert!(flushed(&mut engine).events[0].deliveries[0].given_up.is_some());
    for number in 1..=2 {
        let again = attempt_past_stores(&mut engine, 10_000 * i64::from(number));
        assert_eq!(again.number, number);
        let recorded = engine.record_outcome(outcome(&again, FAILED), at(10_000 * i64::from(number)), 0.5).unwrap();
        assert_eq!(recorded.verdict == Verdict::GivenUp(Reason::Exhausted), number == 2);
        assert!(recorded.again && !recorded.dropped);
    }
    assert!(engine.due(at(90_000)).is_none(), "nothing more is kept");
    assert_eq!(engine.pending(webhook), 0);
}

#[test]
fn gone_endpoint_exhausts_events_until_acknowledgment_or_edit() {
    let mut engine = listed_engine(false);
    let webhook = subscription(1, 1, 5).uid;
    engine.subscribe(subscription(1, 1, 5));
    let mut number = 0;
    let mut exhausts = |engine: &mut Engine| {
        number += 1;
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
        loop {
            match engine.due(at(0)).expect("something is due") {
                Due::StoreDeadLetter(_) => {}
                Due::GivenUp(recorded) => {
                    assert!(recorded.attempt == 0 && recorded.endpoint_gone && !recorded.dropped);
                    return true;
                }
                Due::Attempt(attempt) => {
                    engine.record_outcome(outcome(&attempt, FAILED), at(0), 0.5);
                    return false;
                }
            }
        }
    };
    engine.mark_gone(webhook, 1);
    assert!(exhausts(&mut engine));
    engine.subscribe(Subscription { concurrency: 2, ..subscription(1, 1, 5) });
    assert!(exhausts(&mut engine), "the spec is the same");
    engine.forgive(webhook);
    assert!(!exhausts(&mut engine));
    engine.mark_gone(webhook, 1);
    assert!(exhausts(&mut engine));
    engine.subscribe(Subscription { generation: 2, ..subscription(1, 1, 5) });
    assert!(!exhausts(&mut engine));
}

#[test]
fn earliest_retry_starts_at_its_due_time() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 2, 5));
    assert_eq!(engine.next_due(), None);
    for number in 1..=2 {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    let (first, second) = (attempt(&mut engine, 0), attempt(&mut engine, 0));
    let late = AttemptResult::Failed { retry_after: Some(Duration::from_millis(900)) };
    engine.record_outcome(outcome(&first, late), at(0), 0.5);
    engine.record_outcome(outcome(&second, FAILED), at(0), 0.5);
    assert_eq!(engine.next_due(), Some(at(100)));
    assert!(engine.due(at(99)).is_none());
    let retry = attempt(&mut engine, 100);
    assert_eq!((retry.delivery, retry.number), (second.delivery, 2));
    assert_eq!(engine.next_due(), Some(at(900)));
    assert!(engine.due(at(899)).is_none());
    assert_eq!(attempt(&mut engine, 900).delivery, first.delivery);
}

#[test]
fn retry_after_of_429_pauses_and_spends_one_attempt() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 1, 5));
    engine.subscribe(subscription(2, 1, 5));
    for number in 1..=3 {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    let paused = subscription(1, 1, 5).uid;
    let (one, other) = (attempt(&mut engine, 0), attempt(&mut engine, 0));
    let (first, other) = if one.webhook == paused { (one, other) } else { (other, one) };
    let recorded = engine.record_outcome(outcome(&first, throttled(800)), at(0), 0.5).unwrap();
    assert_eq!((recorded.verdict, recorded.throttled), (Verdict::Retry(at(800)), true));
    assert!(engine.due(at(0)).is_none(), "the other Webhook is busy, this one is paused");
    engine.record_outcome(outcome(&other, AttemptResult::Acknowledged), at(0), 0.5);
    let next = attempt(&mut engine, 1);
    assert_ne!(next.webhook, paused, "another Webhook is not paused");
    engine.record_outcome(outcome(&next, AttemptResult::Gone), at(1), 0.5);
    while let Some(due) = engine.due(at(799)) {
        assert!(!matches!(due, Due::Attempt(_)), "{due:?}");
    }
    assert!(engine.backlogs().any(|backlog| backlog.webhook == paused && backlog.paused && backlog.pending == 3));
    assert_eq!(engine.next_due(), Some(at(800)));
    let mut numbers = Vec::new();
    for _ in 0..3 {
        let attempt = attempt(&mut engine, 800);
        numbers.push((attempt.event.object.name.clone(), attempt.number));
        engine.record_outcome(outcome(&attempt, AttemptResult::Acknowledged), at(800), 0.5);
    }
    numbers.sort();
    assert_eq!(numbers, [("job-1".into(), 2), ("job-2".into(), 1), ("job-3".into(), 1)]);
    assert!(engine.backlogs().all(|backlog| !backlog.paused));
}

#[test]
fn a_pause_lasts_no_longer_than_the_longest_backoff() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 1, 5));
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    let first = attempt(&mut engine, 0);
    engine.record_outcome(outcome(&first, throttled(86_400_000)), at(0), 0.5);
    assert_eq!(engine.next_due(), Some(at(1000)));
    assert!(engine.due(at(999)).is_none());
    assert_eq!(attempt(&mut engine, 1000).number, 2);
}

#[test]
fn the_last_attempt_also_pauses_the_queue() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 1, 0));
    for number in 1..=2 {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    let first = attempt(&mut engine, 0);
    let recorded = engine.record_outcome(outcome(&first, throttled(500)), at(0), 0.5).unwrap();
    assert_eq!((recorded.verdict, recorded.throttled), (Verdict::GivenUp(Reason::Exhausted), false));
    assert!(matches!(engine.due(at(0)), Some(Due::StoreDeadLetter(_))));
    assert!(engine.due(at(499)).is_none());
    assert_eq!(attempt(&mut engine, 500).event.object.name, "job-2");
}

#[test]
fn edit_ends_the_pause_and_old_endpoint_starts_none() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 2, 5));
    for number in 1..=3 {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    let (first, late) = (attempt(&mut engine, 0), attempt(&mut engine, 0));
    engine.record_outcome(outcome(&first, throttled(900)), at(0), 0.5);
    assert!(engine.due(at(1)).is_none());
    engine.subscribe(Subscription { generation: 2, ..subscription(1, 2, 5) });
    assert_eq!(attempt(&mut engine, 1).event.object.name, "job-3");
    let recorded = engine.record_outcome(outcome(&late, throttled(900)), at(1), 0.5).unwrap();
    assert!(!recorded.throttled && engine.backlogs().all(|backlog| !backlog.paused));
}

#[test]
fn a_shorter_retry_after_does_not_shorten_a_pause() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 2, 5));
    for number in 1..=3 {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    let (first, second) = (attempt(&mut engine, 0), attempt(&mut engine, 0));
    engine.record_outcome(outcome(&first, throttled(900)), at(0), 0.5);
    engine.record_outcome(outcome(&second, throttled(200)), at(0), 0.5);
    assert!(engine.due(at(899)).is_none());
    let webhook = first.webhook;
    assert_eq!(engine.unsubscribe(webhook), 3);
    assert_eq!(engine.next_due(), Some(at(900)), "a retry that is gone is passed over when it is due");
    assert!(engine.due(at(900)).is_none());
}

#[test]
fn an_attempt_that_was_withheld_keeps_its_place() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 1, 5));
    for number in 1..=3 {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    let first = attempt(&mut engine, 0);
    engine.record_outcome(outcome(&first, AttemptResult::Withheld { hold: false }), at(0), 0.5);
    let same = attempt(&mut engine, 0);
    assert_eq!((same.delivery, same.number), (first.delivery, 1));
    engine.record_outcome(outcome(&same, AttemptResult::Withheld { hold: true }), at(0), 0.5);
    assert!(engine.due(at(0)).is_none(), "nothing begins until the subscription is given anew");
    engine.subscribe(subscription(1, 1, 5));
    assert_eq!(attempt(&mut engine, 0).delivery, first.delivery);
}

#[test]
fn lowered_concurrency_starts_nothing_above_the_new_limit() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 2, 5));
    for number in 1..=2 {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    let first = attempt(&mut engine, 0);
    engine.subscribe(subscription(1, 1, 5));
    assert!(engine.due(at(0)).is_none());
    engine.record_outcome(outcome(&first, AttemptResult::Acknowledged), at(0), 0.5);
    assert_eq!(attempt(&mut engine, 0).event.object.name, "job-2");
}
