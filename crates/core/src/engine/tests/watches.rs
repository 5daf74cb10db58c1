//! Watches: start, end and restart, and the events that follow from lists and log events.

use super::*;

const DAY: i64 = 24 * 60 * 60 * 1000;

#[test]
fn observations_older_than_the_record_are_dropped() {
    let mut engine = listed_engine(false);
    let running = || seen(job(1, 5, TrainingStage::Running));
    assert_eq!(names(&engine.observe(running(), at(0))), ["training.started"]);
    assert!(names(&engine.observe(running(), at(0))).is_empty());
    assert!(names(&engine.observe(seen(job(1, 4, TrainingStage::Completed)), at(0))).is_empty());
}

#[test]
fn only_a_complete_list_proves_a_deletion() {
    let mut engine = listed_engine(false);
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    engine.observe(seen(job(2, 6, TrainingStage::Running)), at(0));
    for _ in 0..2 {
        // The first list is abandoned.
        engine.observe(change(WatchEvent::ListBegun), at(0));
        assert!(engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0)).events.is_empty());
        engine.observe(seen(job(3, 8, TrainingStage::Pending)), at(0));
        assert_eq!(engine.position(WATCH), 6, "during a list the position stays");
    }
    let observed = engine.observe(change(WatchEvent::ListEnded(9)), at(0));
    assert_eq!(names(&observed), ["training.failed"]);
    assert_eq!(engine.position(WATCH), 9);
    assert_eq!(engine.records(), 2);
}

#[test]
fn on_a_watch_with_a_selector_absence_is_asked_after() {
    let mut engine = listed_engine(true);
    for number in 1..=3 {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    engine.observe(change(WatchEvent::ListBegun), at(0));
    let observed = engine.observe(change(WatchEvent::ListEnded(9)), at(0));
    assert!(observed.events.is_empty());
    assert_eq!(observed.existence_checks.len(), 3);
    // The third object is selected again before the answer arrives.
    engine.observe(seen(job(3, 12, TrainingStage::Running)), at(0));
    let mut sent = Vec::new();
    for check in observed.existence_checks {
        let exists = check.uid == Uid::from_u128(1);
        sent.extend(names(&engine.observe(change(WatchEvent::ExistenceChecked { check, exists }), at(0))));
    }
    assert_eq!(sent, ["training.failed"], "of the second alone");
    // The first object exists but is not selected. Its deletion emits no event.
    engine.observe(change(WatchEvent::ListBegun), at(0));
    engine.observe(seen(job(3, 12, TrainingStage::Running)), at(0));
    let observed = engine.observe(change(WatchEvent::ListEnded(20)), at(0));
    let [check] = &observed.existence_checks[..] else { panic!("{:?}", observed.existence_checks) };
    let answer = WatchEvent::ExistenceChecked { check: check.clone(), exists: false };
    assert!(engine.observe(change(answer), at(0)).events.is_empty());
    assert_eq!(engine.records(), 1);
}

#[test]
fn label_that_returns_suppresses_nothing() {
    let mut engine = listed_engine(true);
    let history = |engine: &mut Engine| {
        engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
        let existence_checks = engine.observe(left(job(1, 7, TrainingStage::Running)), at(0)).existence_checks;
        for check in existence_checks.clone() {
            engine.observe(change(WatchEvent::ExistenceChecked { check, exists: true }), at(0));
        }
        engine.observe(seen(job(1, 9, TrainingStage::Running)), at(0));
        existence_checks.len()
    };
    assert_eq!(history(&mut engine), 1);
    // The record was flushed but not the position after it, so the log is read again.
    assert_eq!(history(&mut engine), 0);
    engine.observe(change(WatchEvent::ListBegun), at(0));
    let observed = engine.observe(change(WatchEvent::ListEnded(12)), at(0));
    let [check] = &observed.existence_checks[..] else { panic!("{:?}", observed.existence_checks) };
    let answer = WatchEvent::ExistenceChecked { check: check.clone(), exists: false };
    let observed = engine.observe(change(answer), at(0));
    assert_eq!(names(&observed), ["training.failed"]);
    assert!(observed.events[0].body.as_str().contains("\"unknown\""), "nobody saw it go");
}

fn left(object: Object) -> Observation {
    change(WatchEvent::Left(Box::new(object)))
}

#[test]
fn deselected_object_is_deleted_after_an_existence_check() {
    let mut engine = listed_engine(true);
    for (number, stage) in [(1, TrainingStage::Running), (2, TrainingStage::Completed), (3, TrainingStage::Running)] {
        engine.observe(seen(job(number, 5, stage)), at(0));
    }
    let mut asked = Vec::new();
    for (number, stage) in [(1, TrainingStage::Running), (2, TrainingStage::Completed)] {
        let observed = engine.observe(left(job(number, 7, stage)), at(0));
        assert!(observed.events.is_empty(), "it may live");
        asked.extend(observed.existence_checks);
    }
    assert_eq!((asked.len(), engine.position(WATCH)), (2, 7));
    let unread = ExistenceCheck {
        watch: WATCH,
        uid: Uid::from_u128(3),
        namespace: "ns".into(),
        name: "job-3".into(),
        version: 8,
    };
    asked.extend(engine.observe(change(WatchEvent::LeftUnread(unread.clone())), at(0)).existence_checks);
    assert_eq!((asked.len(), engine.position(WATCH)), (3, 8));
    assert!(
        engine.observe(left(job(9, 9, TrainingStage::Running)), at(0)).existence_checks.is_empty(),
        "nobody knew it"
    );

    // The same holds after a crash.
    let mut engine = Engine::recover(None, 1, 4, remembered(&mut engine), at(0));
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", true);
    let mut open = engine.open_checks();
    open.sort_by_key(|check| check.uid);
    assert_eq!(open, asked);
    let mut sent = Vec::new();
    for check in open {
        let observed = engine.observe(change(WatchEvent::ExistenceChecked { check, exists: false }), at(0));
        let status = |event: &Arc<Event>| {
            ["cancelled", "unknown"].into_iter().find(|status| event.body.as_str().contains(&format!("\"{status}\"")))
        };
        sent.extend(observed.events.iter().map(|event| (event.object.name.clone(), status(event).unwrap())));
    }
    assert_eq!(sent, [("job-1".to_owned(), "cancelled"), ("job-3".to_owned(), "unknown")]);
    assert_eq!(engine.records(), 0);
}

#[test]
fn what_is_seen_again_before_the_answer_voids_the_question() {
    let mut engine = listed_engine(true);
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    let first = engine.observe(left(job(1, 7, TrainingStage::Running)), at(0)).existence_checks.remove(0);
    engine.observe(seen(job(1, 9, TrainingStage::Running)), at(0));
    let answer = |check: &ExistenceCheck, exists| change(WatchEvent::ExistenceChecked { check: check.clone(), exists });
    for living in [true, false] {
        assert!(engine.observe(answer(&first, living), at(0)).events.is_empty());
    }
    let second = engine.observe(left(job(1, 11, TrainingStage::Running)), at(0)).existence_checks.remove(0);
    assert!(engine.observe(answer(&first, false), at(0)).events.is_empty());
    assert_eq!(names(&engine.observe(answer(&second, false), at(0))), ["training.failed"]);
}

#[test]
fn a_kind_that_was_not_installed_has_no_baseline() {
    let mut engine = Engine::new(None, 1, 4);
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", false);
    engine.observe(change(WatchEvent::NotInstalled(None)), at(0));
    engine.observe(change(WatchEvent::ListBegun), at(0));
    assert_eq!(names(&engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0))), ["training.started"]);
}

#[test]
fn unreadable_object_in_a_list_exists() {
    let mut engine = listed_engine(false);
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    engine.observe(change(WatchEvent::ListBegun), at(0));
    engine.observe(change(WatchEvent::Unreadable(Uid::from_u128(1))), at(0));
    assert!(engine.observe(change(WatchEvent::ListEnded(9)), at(0)).events.is_empty());
    assert_eq!(engine.records(), 1);
}

#[test]
fn ended_watch_is_removed_with_its_position() {
    let mut engine = Engine::new(None, 1, 4);
    engine.subscribe(subscription(1, 1, 0));
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "a", false);
    engine.observe(change(WatchEvent::NotInstalled(None)), at(0));
    flushed(&mut engine);
    engine.add_watch(WatchId(1), "trainingjobs.llmtune.io", "b", false);
    flushed(&mut engine);
    assert_eq!(engine.unflushed(), Unflushed::Nothing);
    engine.remove_watch(WatchId(9));
    assert_eq!(engine.unflushed(), Unflushed::Nothing, "it was never there");
    engine.observe(Observation { watch: WatchId(1), change: WatchEvent::NotInstalled(None) }, at(0));
    let new = Observation { watch: WatchId(1), change: WatchEvent::Seen(Box::new(job(1, 5, TrainingStage::Running))) };
    assert_eq!(names(&engine.observe(new, at(0))), ["training.started"]);
    assert!(engine.due(at(0)).is_none(), "its baseline is not flushed");
    engine.remove_watch(WatchId(1));
    let entries = flushed(&mut engine).watches.unwrap();
    assert_eq!(attempt(&mut engine, 0).event.object.name, "job-1");
    assert_eq!(entries.iter().map(|entry| entry.watch.as_str()).collect::<Vec<_>>(), ["a"]);
    engine.remove_watch(WATCH);
    assert_eq!(engine.unflushed(), Unflushed::Changes);
    assert!(engine.observe(seen(job(2, 6, TrainingStage::Running)), at(0)).events.is_empty());
    assert_eq!(engine.records(), 0);
}

#[test]
fn every_watch_has_its_own_epoch() {
    let mut engine = Engine::new(None, 7, 4);
    for (id, name) in [(WATCH, "a"), (WatchId(1), "b")] {
        engine.add_watch(id, "trainingjobs.llmtune.io", name, false);
        engine.observe(Observation { watch: id, change: WatchEvent::ListBegun }, at(0));
        engine.observe(Observation { watch: id, change: WatchEvent::ListEnded(5) }, at(0));
    }
    let epochs =
        |engine: &mut Engine| flushed(engine).watches.unwrap().iter().map(|entry| entry.epoch).collect::<Vec<_>>();
    assert_eq!(epochs(&mut engine), [8, 9]);
    for days in [0, 6, 7, 8] {
        engine.observe(change(WatchEvent::NotInstalled(None)), at(days * DAY));
        let expected = if days < 7 { [8, 9] } else { [10, 9] };
        assert_eq!(epochs(&mut engine), expected, "records are kept for 7 days, {days} have passed");
    }
    engine.observe(change(WatchEvent::ListBegun), at(0));
    engine.observe(change(WatchEvent::ListEnded(9)), at(0));
    assert_eq!(engine.unflushed(), Unflushed::Changes, "it is installed now");
    let mut engine = Engine::recover(None, 1, 4, remembered(&mut engine), at(0));
    engine.add_watch(WatchId(2), "trainingjobs.llmtune.io", "c", false);
    engine.observe(Observation { watch: WatchId(2), change: WatchEvent::NotInstalled(None) }, at(0));
    assert!(epochs(&mut engine)[0] > 10);
}

#[test]
fn unconfigured_watch_is_removed_after_a_restart() {
    let mut engine = Engine::new(None, 1, 4);
    for (id, name) in [(WATCH, "a"), (WatchId(1), "b")] {
        engine.add_watch(id, "trainingjobs.llmtune.io", name, false);
        engine.observe(Observation { watch: id, change: WatchEvent::ListEnded(5) }, at(0));
    }
    let mut engine = Engine::recover(None, 1, 4, remembered(&mut engine), at(0));
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "a", false);
    assert_eq!((engine.position(WATCH), engine.unflushed()), (5, Unflushed::Nothing));
    assert_eq!(engine.forget_other_watches(), ["b"]);
    assert_eq!(engine.unflushed(), Unflushed::Changes);
    let entries = flushed(&mut engine).watches.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.watch.as_str()).collect::<Vec<_>>(), ["a"]);
    assert!(engine.forget_other_watches().is_empty());
    assert_eq!(engine.unflushed(), Unflushed::Nothing);
}

#[test]
fn replayed_watch_sends_a_short_life_once() {
    let mut engine = listed_engine(false);
    let history = || [seen(job(1, 5, TrainingStage::Running)), deleted(job(1, 7, TrainingStage::Running))];
    let sent = |engine: &mut Engine| history().map(|observation| engine.observe(observation, at(0)).events.len());
    assert_eq!(sent(&mut engine), [1, 1]);
    assert_eq!(sent(&mut engine), [0, 0]);
    assert_eq!(engine.records(), 0);
}

#[test]
fn watch_continues_after_an_interrupted_list() {
    let mut engine = listed_engine(false);
    let position = engine.position(WATCH);
    engine.observe(change(WatchEvent::ListBegun), at(0));
    engine.observe(change(WatchEvent::Bookmark(position + 7)), at(0));
    assert_eq!(engine.position(WATCH), position + 7);
}

#[test]
fn existence_check_survives_a_crash_and_counts_once() {
    let mut engine = listed_engine(true);
    for number in 1..=2 {
        engine.observe(seen(job(number, 5, TrainingStage::Running)), at(0));
    }
    // Its deletion would not be an event.
    engine.observe(seen(job(3, 5, TrainingStage::Pending)), at(0));
    engine.observe(change(WatchEvent::ListBegun), at(0));
    let asked = engine.observe(change(WatchEvent::ListEnded(9)), at(0)).existence_checks;
    assert_eq!((asked.len(), engine.records()), (2, 2));
    let mut engine = Engine::recover(None, 1, 4, remembered(&mut engine), at(0));
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", true);
    let mut open = engine.open_checks();
    open.sort_by_key(|check| check.uid);
    assert_eq!(open, asked);

    let answer = |check: &ExistenceCheck, exists| change(WatchEvent::ExistenceChecked { check: check.clone(), exists });
    // The first object exists but is not selected. The second answer to the same check is void.
    engine.observe(answer(&asked[0], true), at(0));
    engine.observe(answer(&asked[0], false), at(0));
    assert_eq!(engine.records(), 2);
    assert_eq!(engine.open_checks(), asked[1..]);
    // The second object is seen again, and then a list lacks it again.
    engine.observe(seen(job(2, 12, TrainingStage::Running)), at(0));
    assert!(engine.open_checks().is_empty());
    assert!(flushed(&mut engine).records.iter().all(|entry| !entry.record.as_ref().unwrap().unconfirmed));
    engine.observe(change(WatchEvent::ListBegun), at(0));
    let newer = engine.observe(change(WatchEvent::ListEnded(20)), at(0)).existence_checks;
    assert!(engine.observe(answer(&asked[1], false), at(0)).events.is_empty());
    assert_eq!(names(&engine.observe(answer(&newer[1], false), at(0))), ["training.failed"]);
}

#[test]
fn existence_answer_waits_for_the_replayed_log() {
    let mut engine = listed_engine(true);
    engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0));
    let asked = engine.observe(left(job(1, 7, TrainingStage::Running)), at(0)).existence_checks.remove(0);
    // The record was flushed but not the position after it.
    let mut memory = remembered(&mut engine);
    memory.watches[0].entry.position = 4;
    let mut engine = Engine::recover(None, 1, 4, memory, at(0));
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", true);
    let answer = || change(WatchEvent::ExistenceChecked { check: asked.clone(), exists: false });
    assert!(engine.observe(answer(), at(0)).events.is_empty());
    assert!(engine.observe(seen(job(1, 5, TrainingStage::Running)), at(0)).events.is_empty());
    assert_eq!(
        engine.observe(left(job(1, 7, TrainingStage::Running)), at(0)).existence_checks,
        std::slice::from_ref(&asked)
    );
    assert_eq!(names(&engine.observe(answer(), at(0))), ["training.failed"]);
}
