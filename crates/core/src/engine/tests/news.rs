//! Events that are not news: the past of objects that come into view.

use super::*;
use crate::event::object::{ServingFacts, ServingStage};

const DAY: i64 = 24 * 60 * 60 * 1000;
const MINUTE: i64 = 60 * 1000;

/// A job's stage, with its start and completion times.
type State = (TrainingStage, [Option<i64>; 2]);

/// Returns a job that reports these times, in milliseconds of the test's clock.
fn says(number: u128, version: u64, stage: TrainingStage, created: i64, times: [Option<i64>; 2]) -> Object {
    let mut object = job(number, version, stage);
    object.created_at = Some(at(created));
    if let Facts::Training(facts) = &mut object.facts {
        [facts.started_at, facts.completed_at] = times.map(|time| time.map(at));
    }
    object
}

/// Returns an engine whose watch has processed everything that existed at time 0.
fn current_engine() -> Engine {
    let mut engine = listed_engine(true);
    engine.observe(change(WatchEvent::Current(at(0))), at(0));
    flushed(&mut engine);
    engine
}

fn list(engine: &mut Engine, version: u64, now: i64, objects: &[Object]) -> Observed {
    engine.observe(change(WatchEvent::ListBegun), at(now));
    let mut all = Observed::default();
    let changes = objects.iter().map(|object| WatchEvent::Seen(Box::new(object.clone())));
    for next in changes.chain([WatchEvent::ListEnded(version)]) {
        let observed = engine.observe(change(next), at(now));
        all.events.extend(observed.events);
        all.existence_checks.extend(observed.existence_checks);
    }
    all
}

fn restarted(engine: &mut Engine) -> Engine {
    let mut engine = Engine::recover(None, 1, 4, remembered(engine), at(0));
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", true);
    engine
}

#[test]
fn a_finished_job_that_gains_the_label_sends_nothing() {
    use TrainingStage::{Completed, Running};
    let week = Some(-7 * DAY);
    for mut engine in [current_engine(), restarted(&mut current_engine())] {
        let finished = says(1, 5, Completed, -8 * DAY, [week, week]);
        assert!(names(&engine.observe(seen(finished), at(MINUTE))).is_empty());
        // A change from now on is news.
        let again = says(1, 6, Running, -8 * DAY, [Some(MINUTE), None]);
        assert_eq!(names(&engine.observe(seen(again), at(MINUTE))), ["training.started"]);
        // A running job sends its end.
        assert!(names(&engine.observe(seen(says(2, 7, Running, -8 * DAY, [week, None])), at(MINUTE))).is_empty());
        let ended = says(2, 8, Completed, -8 * DAY, [week, Some(2 * MINUTE)]);
        assert_eq!(names(&engine.observe(seen(ended), at(MINUTE))), ["training.completed"]);
    }
}

#[test]
fn an_object_that_may_be_new_is_announced() {
    use TrainingStage::Running;
    let mut engine = current_engine();
    assert_eq!(names(&engine.observe(seen(job(1, 5, Running)), at(0))), ["training.started"], "it says no time");
    assert_eq!(names(&engine.observe(seen(says(2, 6, Running, 0, [None; 2])), at(0))), ["training.started"]);
    assert_eq!(names(&engine.observe(seen(says(3, 7, Running, -1, [None; 2])), at(0))), [""; 0]);
}

/// Returns a deployment that was created a day ago and serves this version of its model.
fn serves(version: u64, model: &str) -> Object {
    let (stage, model_id, model) = (Some(ServingStage::Deployed), Some("m".into()), Some(model.into()));
    let facts = ServingFacts { stage, model_id, version: model, ..ServingFacts::default() };
    Object { facts: Facts::Serving(facts), ..says(1, version, TrainingStage::Pending, -DAY, [None; 2]) }
}

#[test]
fn a_deployment_that_gains_the_label_announces_what_it_serves() {
    let mut engine = current_engine();
    assert_eq!(names(&engine.observe(seen(serves(5, "1")), at(0))), ["deployment.created", "model.deployed"]);
}

#[test]
fn list_after_an_outage_sends_only_what_it_hid() {
    use TrainingStage::{Completed, Running};
    let mut engine = current_engine();
    let objects = [
        says(1, 5, Completed, -8 * DAY, [Some(-7 * DAY), Some(-7 * DAY)]),
        says(2, 5, Completed, -8 * DAY, [Some(-7 * DAY), Some(MINUTE)]),
        says(3, 5, Completed, -8 * DAY, [Some(MINUTE), Some(2 * MINUTE)]),
        says(4, 5, Completed, -8 * DAY, [None; 2]),
        says(5, 5, Running, MINUTE, [None; 2]),
    ];
    let sent = list(&mut engine, 9, 3 * MINUTE, &objects);
    let sent: Vec<_> = sent.events.iter().map(|event| (event.object.name.as_str(), event.event_type.name())).collect();
    let expected = [
        ("job-2", "training.completed"),
        ("job-3", "training.started"),
        ("job-3", "training.completed"),
        ("job-5", "training.started"),
    ];
    assert_eq!(sent, expected);
}

#[test]
fn changes_without_the_label_are_not_sent_later() {
    use TrainingStage::{Completed, Pending, Running};
    let mut engine = current_engine();
    engine.observe(seen(says(1, 5, Pending, 0, [None; 2])), at(0));
    engine.observe(seen(says(2, 6, Running, 0, [Some(0), None])), at(0));
    for (number, version, stage) in [(1, 7, Pending), (2, 8, Running)] {
        let gone = says(number, version, stage, 0, [None; 2]);
        for check in engine.observe(change(WatchEvent::Left(Box::new(gone))), at(0)).existence_checks {
            engine.observe(change(WatchEvent::ExistenceChecked { check, exists: true }), at(0));
        }
    }
    let past = says(1, 9, Completed, 0, [Some(1), Some(2)]);
    assert!(names(&engine.observe(seen(past), at(DAY))).is_empty());
    // The run that was announced ends once.
    let ended = says(2, 10, Completed, 0, [Some(0), Some(2)]);
    assert_eq!(names(&engine.observe(seen(ended), at(DAY))), ["training.completed"]);
}

#[test]
fn times_before_the_creation_are_not_sent() {
    use TrainingStage::{Completed, Failed, Pending, Running, Suspended};
    let old = Some(-DAY);
    let both: &[&str] = &["training.started", "training.completed"];
    let lives: [(&[State], &[&str]); 9] = [
        // Restored with its status, in one write or two.
        (&[(Completed, [old, old])], &[]),
        (&[(Pending, [None; 2]), (Completed, [old, old])], &[]),
        (&[(Running, [old, None]), (Failed, [old, old])], &[]),
        // It was running, and continues.
        (&[(Running, [old, None]), (Completed, [old, Some(DAY)])], &["training.completed"]),
        (&[(Running, [old, None]), (Running, [Some(5), None])], &["training.started"]),
        // Clocks differ by up to a minute.
        (&[(Completed, [Some(-MINUTE), Some(-MINUTE)])], both),
        // The end of an announced run, and changes that the operator saw happen, are news whatever their times.
        (&[(Running, [None; 2]), (Completed, [None, old])], both),
        (&[(Pending, [None; 2]), (Running, [old, None]), (Completed, [old, old])], both),
        (&[(Suspended, [old, None]), (Running, [old, None])], &["training.started"]),
    ];
    for (life, expected) in lives {
        let mut engine = current_engine();
        let mut sent = Vec::new();
        for (version, (stage, times)) in (5..).zip(life) {
            sent.extend(names(&engine.observe(seen(says(1, version, *stage, 0, *times)), at(1000))));
        }
        assert_eq!(sent, expected, "{life:?}");
    }
    // The object was known for a minute before the change.
    let mut engine = current_engine();
    engine.observe(seen(says(1, 5, Pending, 0, [None; 2])), at(0));
    assert_eq!(names(&engine.observe(seen(says(1, 6, Completed, 0, [old, old])), at(MINUTE))), both);
}

#[test]
fn kind_served_again_continues_with_its_records() {
    use TrainingStage::{Completed, Running};
    let mut engine = current_engine();
    let there = |number, version, stage| says(number, version, stage, 0, [Some(0), None]);
    for number in 1..=4 {
        engine.observe(seen(there(number, 5, Running)), at(0));
    }
    engine.observe(seen(there(2, 6, Completed)), at(0));
    // Its existence check is open.
    assert_eq!(
        engine.observe(change(WatchEvent::Left(Box::new(there(4, 7, Running)))), at(0)).existence_checks.len(),
        1
    );
    let missing = |days: i64| WatchEvent::NotInstalled(Some(at(days * DAY)));
    engine.observe(change(missing(0)), at(0));
    assert_eq!((engine.open_checks().len(), engine.records()), (1, 4));
    let mut engine = restarted(&mut engine);
    engine.observe(change(missing(6)), at(6 * DAY));
    assert_eq!(engine.position(WATCH), 1, "whoever goes on must list");
    let created_meanwhile = says(5, 8, Running, 5 * DAY, [Some(5 * DAY), None]);
    let objects = [there(1, 8, Completed), there(2, 6, Completed), created_meanwhile];
    let observed = list(&mut engine, 9, 6 * DAY, &objects);
    let sent = observed.events.iter().map(|event| (event.object.name.as_str(), event.event_type.name()));
    assert_eq!(sent.collect::<Vec<_>>(), [("job-1", "training.completed"), ("job-5", "training.started")]);
    assert_eq!(engine.records(), 4, "what the list lacks is forgotten in silence");
    let [check] = &observed.existence_checks[..] else {
        panic!("what left before is asked after: {:?}", observed.existence_checks)
    };
    let answer = WatchEvent::ExistenceChecked { check: check.clone(), exists: false };
    assert_eq!(names(&engine.observe(change(answer), at(6 * DAY))), ["training.failed"]);
    // From then on, absence is news again.
    assert_eq!(list(&mut engine, 12, 6 * DAY, &objects[..2]).existence_checks.len(), 1);
}

#[test]
fn records_of_an_unserved_kind_are_kept_seven_days() {
    use TrainingStage::{Completed, Running};
    let forgotten = |served_at: i64, looks: &[i64]| {
        let mut engine = current_engine();
        engine.observe(seen(says(1, 5, Running, 0, [Some(0), None])), at(0));
        engine.observe(change(WatchEvent::NotInstalled(None)), at(0));
        let mut engine = restarted(&mut engine);
        for look in looks {
            engine.observe(change(WatchEvent::NotInstalled(None)), at(*look));
        }
        let objects = [
            says(1, 6, Completed, 0, [Some(0), Some(1)]),
            // Not selected before, and new to the watch.
            says(2, 6, Completed, -DAY, [Some(-DAY), Some(-DAY)]),
            says(3, 6, Running, DAY, [Some(DAY), None]),
        ];
        names(&list(&mut engine, 9, served_at, &objects))
    };
    assert_eq!(forgotten(7 * DAY - 1, &[DAY, 7 * DAY - 1]), ["training.completed", "training.started"]);
    let all = ["training.started", "training.completed", "training.started"];
    assert_eq!(forgotten(7 * DAY, &[DAY, 7 * DAY]), all, "by what was looked at");
    assert_eq!(forgotten(7 * DAY, &[]), all, "or at its return");
}

#[test]
fn newly_served_kind_has_no_past() {
    use TrainingStage::{Completed, Running};
    let mut engine = Engine::new(None, 1, 4);
    engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", false);
    for minute in 0..3 {
        engine.observe(change(WatchEvent::NotInstalled(Some(at(minute * MINUTE)))), at(0));
    }
    let objects = [says(1, 5, Completed, -DAY, [Some(-DAY), Some(-DAY)]), says(2, 6, Running, 0, [None; 2])];
    let sent = list(&mut engine, 9, DAY, &objects);
    assert_eq!(sent.events.iter().map(|event| event.object.name.as_str()).collect::<Vec<_>>(), ["job-2"]);
}

#[test]
fn ids_are_not_used_again_once_records_are_gone() {
    let replaced = |engine: &mut Engine| {
        engine.remove_watch(WATCH);
        engine.add_watch(WATCH, "trainingjobs.llmtune.io", "trainingjobs.llmtune.io", true);
        engine.observe(change(WatchEvent::NotInstalled(Some(at(0)))), at(0));
    };
    let expired = |engine: &mut Engine| {
        for day in [0, 7] {
            engine.observe(change(WatchEvent::NotInstalled(None)), at(day * DAY));
        }
    };
    let ways: [&dyn Fn(&mut Engine); 2] = [&replaced, &expired];
    for forget in ways {
        let mut engine = current_engine();
        let before = engine.observe(seen(serves(5, "1")), at(0)).events;
        forget(&mut engine);
        // A crash in between does not change IDs.
        let mut later = restarted(&mut engine);
        let [after, repeated] = [&mut engine, &mut later].map(|engine| list(engine, 9, 7 * DAY, &[serves(6, "2")]));
        assert_eq!(names(&after), ["deployment.created", "model.deployed"]);
        let ids = |events: &[Arc<Event>]| events.iter().map(|event| event.id).collect::<Vec<_>>();
        assert_eq!(before[0].id, after.events[0].id, "it was created once");
        assert_ne!(before[1].id, after.events[1].id, "another model");
        assert_eq!(ids(&after.events), ids(&repeated.events));
    }
}
