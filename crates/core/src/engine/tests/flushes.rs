//! Flushes: their contents, and the state after a crash between two of them.

use super::*;

#[test]
fn delivered_redelivery_is_removed_by_the_flush() {
    let mut engine = listed_engine(false);
    engine.subscribe(subscription(1, 1, 0));
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    assert_eq!(flushed(&mut engine).events.len(), 1);
    let first = attempt(&mut engine, 0);
    engine.record_outcome(outcome(&first, AttemptResult::Acknowledged), at(0), 0.5);
    assert!(engine.redeliver(first.webhook, &first.event));
    let [gone] = &flushed(&mut engine).events[..] else { panic!("the ledger must know") };
    assert!(gone.id == first.event.id && gone.deliveries.is_empty());
}

#[test]
fn event_is_void_if_a_crash_loses_its_baseline() {
    let (home, shape) = (Uid::from_u128(99), LedgerLayout { ring: 16, shards: 4, limit: 1 << 20 });
    let mut journal = Journal::begin(home, 1, shape, 7);
    let mut engine = Engine::new(None, 1, 4);
    engine.subscribe(subscription(1, 1, 0));
    let mut segments = journal.lay_out(engine.flush(&[], usize::MAX)).unwrap();
    engine.flush_committed();
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "a", false);
    engine.observe(change(WatchEvent::ListBegun), at(0));
    engine.observe(change(WatchEvent::ListEnded(1)), at(0));
    assert_eq!(names(&engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0))), ["training.started"]);
    let part = engine.flush(&[], 1);
    assert!(part.contents.events.len() == 1 && part.contents.watches.is_none());
    segments.extend(journal.lay_out(part).unwrap());
    engine.flush_committed();
    assert!(engine.due(at(0)).is_none(), "its baseline is not flushed");
    let found: Vec<Found> =
        segments.into_iter().map(|segment| Found { segment, version: u64::MAX.to_string() }).collect();
    let Recovered::Ledger(_, memory) = journal::open(&found, home, shape, 8) else { panic!("a ledger") };
    let mut next = Engine::recover(None, 2, 4, *memory, at(0));
    next.subscribe(subscription(1, 1, 0));
    assert!(next.due(at(0)).is_none());
    let [void] = &flushed(&mut next).events[..] else { panic!("the ledger must know") };
    assert!(void.deliveries.is_empty());
}

#[test]
fn restored_store_compares_stages_instead_of_versions() {
    let mut engine = listed_engine(false);
    engine.observe(seen(job(1, 50, TrainingStage::Running)), at(0));
    engine.observe(seen(job(2, 60, TrainingStage::Running)), at(0));
    flushed(&mut engine);
    engine.observe(seen(job(2, 61, TrainingStage::Suspended)), at(0));
    engine.observe(change(WatchEvent::Restored), at(0));
    let contents = flushed(&mut engine);
    assert_eq!(contents.records.len(), 2, "each once");
    assert_eq!(contents.watches.unwrap()[0].position, 1, "whoever goes on from here must list");
    engine.observe(change(WatchEvent::ListBegun), at(0));
    let sent = names(&engine.observe(seen(job(1, 10, TrainingStage::Completed)), at(0)));
    assert_eq!(sent, ["training.completed"]);
    assert!(engine.observe(seen(job(2, 11, TrainingStage::Suspended)), at(0)).events.is_empty());
    assert!(engine.observe(change(WatchEvent::ListEnded(20)), at(0)).events.is_empty());
    assert_eq!(engine.position(WATCH), 20);
}

#[test]
fn flush_into_a_restored_store_is_compared_again() {
    let mut engine = listed_engine(false);
    engine.observe(seen(job(1, 50, TrainingStage::Running)), at(0));
    let mut next = Engine::recover(None, 2, 4, flush_committed_at(&mut engine, 20), at(0));
    next.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", false);
    assert_eq!(next.position(WATCH), 1, "it must list");
    let contents = flushed(&mut next);
    assert_eq!(contents.records.iter().map(|entry| entry.record.as_ref().unwrap().version).collect::<Vec<_>>(), [0]);
    assert_eq!(contents.watches.unwrap()[0].position, 1, "as must whoever goes on from here");
    next.observe(change(WatchEvent::ListBegun), at(0));
    assert_eq!(names(&next.observe(seen(job(1, 22, TrainingStage::Completed)), at(0))), ["training.completed"]);
}

#[test]
fn flush_has_the_last_state_of_each_object_once() {
    let mut engine = listed_engine(false);
    for (number, version) in [(1, 5), (2, 7)] {
        engine.observe(seen(job(number, version, TrainingStage::Pending)), at(0));
        engine.observe(deleted(job(number, version + 1, TrainingStage::Pending)), at(0));
    }
    engine.observe(seen(job(1, 9, TrainingStage::Pending)), at(0));
    let contents = flushed(&mut engine);
    let uids = |entries: &[RecordEntry]| entries.iter().map(|entry| entry.uid).collect::<Vec<_>>();
    assert_eq!(uids(&contents.records), [Uid::from_u128(1)]);
    assert_eq!(uids(&contents.gone), [Uid::from_u128(2)]);
}

#[test]
fn only_unflushed_changes_request_a_flush() {
    use TrainingStage::{Pending, Running, Suspended};
    let mut engine = Engine::new(None, 1, 4);
    engine.subscribe(subscription(1, 1, 5));
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", true);
    let check = |engine: &mut Engine, what: &str, expected| {
        assert_eq!(engine.unflushed(), expected, "{what}");
        let contents = flushed(engine);
        assert_eq!(engine.unflushed(), Unflushed::Nothing, "{what}, flushed");
        contents
    };
    check(&mut engine, "a watch", Unflushed::Changes);
    engine.observe(change(WatchEvent::ListBegun), at(0));
    engine.observe(change(WatchEvent::ListEnded(1)), at(0));
    check(&mut engine, "an empty baseline", Unflushed::Changes);
    engine.observe(change(WatchEvent::Bookmark(5)), at(0));
    check(&mut engine, "a bookmark", Unflushed::Positions);
    engine.observe(change(WatchEvent::Bookmark(5)), at(0));
    check(&mut engine, "the same bookmark", Unflushed::Nothing);
    engine.observe(change(WatchEvent::ListBegun), at(0));
    engine.observe(change(WatchEvent::ListEnded(6)), at(0));
    check(&mut engine, "another list", Unflushed::Positions);
    engine.observe(deleted(job(9, 7, Pending)), at(0));
    check(&mut engine, "the deletion of what nobody knew", Unflushed::Positions);
    engine.observe(seen(job(1, 8, Pending)), at(0));
    check(&mut engine, "an object", Unflushed::Changes);
    engine.observe(seen(job(1, 9, Pending)), at(0));
    check(&mut engine, "a newer version", Unflushed::Positions);
    engine.observe(seen(job(1, 10, Suspended)), at(0));
    check(&mut engine, "a stage without an event", Unflushed::Changes);
    engine.observe(seen(job(1, 11, Running)), at(0));
    assert_eq!(check(&mut engine, "an event", Unflushed::Changes).records.len(), 1);

    let labelled = |version| Object { labels: [("a".to_owned(), "b".to_owned())].into(), ..job(1, version, Running) };
    engine.observe(seen(job(1, 12, Running)), at(0));
    check(&mut engine, "a newer version of what a deletion would tell", Unflushed::Positions);
    engine.observe(seen(labelled(13)), at(0));
    check(&mut engine, "a label that a deletion would tell", Unflushed::Changes);
    engine.observe(seen(labelled(14)), at(0));
    check(&mut engine, "the same label", Unflushed::Positions);

    let left = engine.observe(change(WatchEvent::Left(Box::new(labelled(15)))), at(0));
    check(&mut engine, "that it left the selection", Unflushed::Changes);
    let answer = || change(WatchEvent::ExistenceChecked { check: left.existence_checks[0].clone(), exists: true });
    engine.observe(answer(), at(0));
    check(&mut engine, "that it is selected no more", Unflushed::Changes);
    engine.observe(answer(), at(0));
    check(&mut engine, "that again", Unflushed::Nothing);
    engine.observe(seen(labelled(16)), at(0));
    check(&mut engine, "that it is selected again", Unflushed::Changes);

    let first = attempt(&mut engine, 0);
    check(&mut engine, "an attempt", Unflushed::Nothing);
    engine.record_outcome(outcome(&first, FAILED), at(0), 0.5);
    let contents = check(&mut engine, "a failure", Unflushed::Changes);
    assert!(contents.events[0].event.is_none(), "the event itself is told once");
    assert_eq!(contents.events[0].deliveries[0].failed, 1);
    let retry = attempt(&mut engine, 5000);
    engine.record_outcome(outcome(&retry, AttemptResult::Acknowledged), at(0), 0.5);
    check(&mut engine, "an acknowledgement", Unflushed::Changes);
    assert!(engine.due(at(5000)).is_none());
    assert!(engine.redeliver(first.webhook, &first.event));
    check(&mut engine, "what is asked for again, which the object that asks knows", Unflushed::Nothing);
    let again = attempt(&mut engine, 5000);
    engine.record_outcome(outcome(&again, FAILED), at(5000), 0.5);
    check(&mut engine, "its failure", Unflushed::Nothing);
    let again = attempt(&mut engine, 9000);
    engine.record_outcome(outcome(&again, AttemptResult::Acknowledged), at(9000), 0.5);
    check(&mut engine, "its end", Unflushed::Nothing);
    engine.observe(change(WatchEvent::Vanished(Uid::from_u128(1))), at(0));
    assert_eq!(check(&mut engine, "its going", Unflushed::Changes).gone.len(), 1);
}

#[test]
fn flush_stops_at_its_budget_and_positions_come_last() {
    let mut engine = listed_engine(false);
    for number in 0..20 {
        engine.subscribe(subscription(number, 1, 0));
    }
    for number in 3..=5 {
        engine.observe(seen(job(number, 5, TrainingStage::Pending)), at(0));
    }
    flushed(&mut engine);
    for number in 0..40 {
        engine.observe(seen(job(100 + number, 5, TrainingStage::Running)), at(0));
    }
    let mut done = 0;
    while done < 40 {
        let flush = engine.flush(&[0], 16 * KIB);
        let some = flush.contents.events.len();
        assert!((5..=15).contains(&some) || done + some == 40, "{some} events to twenty Webhooks");
        assert!(done + some == 40 || (flush.contents.watches.is_none() && flush.snapshots.is_empty()));
        assert_eq!(engine.unflushed(), Unflushed::Changes);
        engine.flush_committed();
        done += some;
    }
    flushed(&mut engine);
    assert_eq!(engine.unflushed(), Unflushed::Nothing);
    engine.observe(seen(job(3, 7, TrainingStage::Suspended)), at(0));
    engine.observe(seen(job(4, 7, TrainingStage::Suspended)), at(0));
    engine.observe(deleted(job(5, 7, TrainingStage::Pending)), at(0));
    let part = engine.flush(&[0], 1).contents;
    assert_eq!((part.records.len(), part.gone.len(), part.watches.is_some()), (1, 0, false));
    let last = engine.flush(&[0], 1).contents;
    assert_eq!((last.records.len(), last.gone.len(), last.watches.is_some()), (1, 1, true));
}

#[test]
fn an_event_outlives_the_only_watch_that_the_ledger_knows() {
    let (home, shape) = (Uid::from_u128(99), LedgerLayout { ring: 16, shards: 4, limit: 1 << 20 });
    let open = |found: &[Found]| match journal::open(found, home, shape, 8) {
        Recovered::Ledger(journal, memory) => (*journal, *memory),
        Recovered::NoLedger { why, .. } => panic!("{why}"),
    };
    let found = |segment| Found { segment, version: "1".into() };
    let mut engine = Engine::new(None, 1, 4);
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", false);
    engine.subscribe(subscription(0, 1, 0));
    engine.observe(change(WatchEvent::ListBegun), at(0));
    engine.observe(change(WatchEvent::ListEnded(1)), at(0));
    // The event waits for the baseline, which the same flush holds.
    assert_eq!(names(&engine.observe(seen(job(1, 2, TrainingStage::Running)), at(0))), ["training.started"]);
    let flush = engine.flush(&[], usize::MAX);
    let mut ledger: Vec<Found> =
        Journal::begin(home, 1, shape, 7).lay_out(flush).unwrap().into_iter().map(found).collect();
    // The next leader does not have this watch, and crashes after its first flush.
    let (mut journal, memory) = open(&ledger);
    let mut engine = Engine::recover(None, 2, 4, memory, at(0));
    engine.forget_other_watches();
    ledger.extend(journal.lay_out(engine.flush(&[], usize::MAX)).unwrap().into_iter().map(found));
    let mut engine = Engine::recover(None, 3, 4, open(&ledger).1, at(0));
    engine.subscribe(subscription(0, 1, 0));
    assert_eq!(engine.pending(Uid::from_u128(1000)), 1);
}
