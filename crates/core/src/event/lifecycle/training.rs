//! The training lifecycle: Pending, Suspended, Running, then Completed, Failed or Cancelled.
//!
//! 1. A run has one `training.started` and one end: `training.completed` or `training.failed`.
//! 2. A run starts when the job enters Running, once per distinct `startedAt`. It also starts when a job is finished
//!    and its `startedAt` was never announced. A job that ends without having run emits only its end.
//! 3. Pending and Suspended do not end a run. If the facts say that the run [continues](TrainingFacts::continues), a
//!    new `startedAt` before its end does not either: a resumption or a retry is the same run, and the newest
//!    `startedAt` names its end.
//! 4. If a job is deleted during a run, the run ends with `training.failed`.
//! 5. A `startedAt` that appears after the start was announced names that run. A finished job that runs again starts a
//!    new run only with a new `startedAt`; without one it stays finished. Failed and Cancelled are final for their run.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Gone, Occurrence, Recalled, Stale, Tally};
use crate::event::{
    EventType,
    id::{Fingerprint, OccurrenceName},
    object::{TrainingFacts, TrainingStage},
    unknown::Unknown,
};

/// With more runs, IDs include the run's number, because a forgotten name could occur again.
const NAMED_RUNS: u32 = 32;
/// The number of distinct `startedAt` in a record: at most two name the events of one run.
const REMEMBERED_STARTS: usize = 2 * NAMED_RUNS as usize;

/// The state of one job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingRecord {
    /// The current stage.
    pub stage: TrainingStage,
    /// The number of runs that were announced or found at the baseline.
    pub run: u32,
    /// The distinct `startedAt` that name the events of those runs, newest last, at most [`REMEMBERED_STARTS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    starts: Vec<Timestamp>,
    /// The newest of `starts` belongs to the present run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    named: bool,
    /// Starts that had no `startedAt`.
    #[serde(default, skip_serializing_if = "Tally::is_empty")]
    unnamed: Tally,
    /// Data that the end of the present run needs. Removed with the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    opening: Option<Box<Opening>>,
    #[serde(flatten)]
    unknown: Unknown,
}

/// A run's state before its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Opening {
    /// The number of the run. A release that does not know this member may have started another run since.
    run: u32,
    /// The first `startedAt`, if another one names the run now.
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<Timestamp>,
    /// The start was announced without a `startedAt`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    observed: bool,
    /// The reason that the job reported while it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Fingerprint>,
    /// The message that the job reported while it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Fingerprint>,
}

impl TrainingRecord {
    /// Starts the record of a new job.
    #[must_use]
    pub const fn new() -> Self {
        let unnamed = Tally { generation: 0, count: 0 };
        Self {
            stage: TrainingStage::Pending,
            run: 0,
            starts: Vec::new(),
            named: false,
            unnamed,
            opening: None,
            unknown: Unknown::NONE,
        }
    }

    /// Starts the record of a job that existed before the operator started: its past counts as announced.
    #[must_use]
    pub fn baseline(facts: &TrainingFacts, generation: i64) -> Self {
        let stage = facts.stage.unwrap_or(TrainingStage::Pending);
        let ran = stage == TrainingStage::Running || stage.is_finished() || facts.started_at.is_some();
        Self {
            stage,
            run: u32::from(ran),
            starts: facts.started_at.into_iter().collect(),
            named: facts.started_at.is_some(),
            unnamed: if ran { Tally::met(generation) } else { Tally::default() },
            opening: None,
            unknown: Unknown::NONE,
        }
    }

    /// Reports whether deletion would be an event, so that the facts must be kept: a run has started and not ended.
    #[must_use]
    pub const fn emits_on_delete(&self) -> bool {
        self.run > 0 && !self.stage.is_finished()
    }

    fn knows(&self, start: Timestamp) -> bool {
        self.starts.contains(&start)
    }

    fn remember(&mut self, start: Timestamp) {
        if self.starts.len() >= REMEMBERED_STARTS {
            self.starts.remove(0);
        }
        // Nearly every job has exactly one start.
        self.starts.reserve_exact(1);
        self.starts.push(start);
        self.named = true;
    }

    /// Returns the opening of the present run, and creates it if there is none.
    fn opening(&mut self) -> &mut Opening {
        let run = self.run;
        let opening = self.opening.get_or_insert_default();
        if opening.run != run {
            **opening = Opening { run, ..Opening::default() };
        }
        opening
    }

    /// Continues the present run under another `startedAt`.
    fn resume(&mut self, start: Timestamp) {
        if let Some(last) = self.starts.last().copied().filter(|_| self.named) {
            // Of the `startedAt` in between, none names an event.
            if *self.opening().first.get_or_insert(last) != last {
                self.starts.pop();
            }
        }
        self.remember(start);
    }

    /// Records the reason and message that the job reports while it runs.
    fn record_texts(&mut self, facts: &TrainingFacts) {
        let of = |text: &Option<String>| text.as_deref().map(Fingerprint::of);
        let (reason, message) = (of(&facts.reason), of(&facts.message));
        let run = self.run;
        let said = self.opening.as_ref().filter(|opening| opening.run == run);
        if said.map_or((None, None), |opening| (opening.reason, opening.message)) != (reason, message) {
            let opening = self.opening();
            (opening.reason, opening.message) = (reason, message);
        }
    }

    /// Returns the count in the ID of an event named by a `startedAt`.
    const fn named_count(&self) -> u32 {
        if self.run > NAMED_RUNS { self.run } else { 1 }
    }

    fn begin(&mut self, start: Option<Timestamp>, generation: i64) -> Occurrence {
        self.run = self.run.saturating_add(1);
        self.stage = TrainingStage::Running;
        self.opening = None;
        let (name, count) = if let Some(start) = start {
            self.remember(start);
            (OccurrenceName::StartedAt(start), self.named_count())
        } else {
            self.named = false;
            self.opening().observed = true;
            (OccurrenceName::Generation(generation), self.unnamed.next(generation))
        };
        let (event, status) = (EventType::TrainingStarted, Some("running"));
        Occurrence { event, name, count, status, run: self.run, recalled: Recalled::default() }
    }

    fn finish(&mut self, stage: TrainingStage, status: &'static str, generation: i64) -> (Occurrence, Opening) {
        self.stage = stage;
        let event =
            if stage == TrainingStage::Completed { EventType::TrainingCompleted } else { EventType::TrainingFailed };
        let (name, count) = match self.starts.last() {
            Some(start) if self.named => (OccurrenceName::StartedAt(*start), self.named_count()),
            // A run ends once, and a job without `startedAt` has at most one finished run, so this name occurs once.
            _ => (OccurrenceName::Generation(generation), 1),
        };
        let run = self.run;
        let opening = self.opening.take().filter(|opening| opening.run == run).map_or_else(Opening::default, |it| *it);
        let named = self.starts.last().copied().filter(|_| self.named);
        let recalled = Recalled {
            started_at: opening.first.or(named),
            start_was_observed: opening.observed,
            ..Recalled::default()
        };
        (Occurrence { event, name, count, status: Some(status), run, recalled }, opening)
    }
}

impl Default for TrainingRecord {
    fn default() -> Self {
        Self::new()
    }
}

/// Processes an observed state of the job.
#[must_use]
pub fn step(mut record: TrainingRecord, facts: &TrainingFacts, generation: i64) -> (Vec<Occurrence>, TrainingRecord) {
    use TrainingStage::{Cancelled, Completed, Failed, Pending, Running, Suspended};

    let Some(stage) = facts.stage else { return (Vec::new(), record) };
    let new_start = facts.started_at.filter(|start| !record.knows(*start));
    let mut occurrences = Vec::new();

    // A start that appears while or after an unnamed run was announced names that run.
    let names_present_run = record.run > 0
        && !record.named
        && (record.stage == Running || (stage.is_finished() && record.stage.is_finished()));
    let new_start = match new_start {
        Some(start) if names_present_run && (stage == Running || stage.is_finished()) => {
            record.remember(start);
            None
        }
        other => other,
    };

    let continues = facts.continues && record.emits_on_delete();
    if let Some(start) = new_start.filter(|_| stage == Running || stage.is_finished()) {
        if continues {
            record.resume(start);
        } else {
            occurrences.push(record.begin(Some(start), generation));
        }
    }
    match stage {
        Pending | Suspended => {
            if !record.stage.is_finished() {
                record.stage = stage;
            }
        }
        Running => {
            if !record.stage.is_finished() && record.stage != Running {
                if facts.started_at.is_none() && !continues {
                    occurrences.push(record.begin(None, generation));
                }
                record.stage = Running;
            }
            if record.stage == Running {
                record.record_texts(facts);
            }
        }
        Completed | Failed | Cancelled => {
            let reconsidered = record.stage == Completed && stage != Completed && !facts.continues;
            if !record.stage.is_finished() || reconsidered {
                let status = match stage {
                    Completed => "completed",
                    Cancelled => "cancelled",
                    _ => "failed",
                };
                let (mut end, opening) = record.finish(stage, status, generation);
                if stage == Cancelled {
                    let is_old = |now: &Option<String>, then: Option<Fingerprint>| {
                        now.as_deref().map(Fingerprint::of).is_some_and(|now| then == Some(now))
                    };
                    end.recalled.stale = Stale {
                        reason: is_old(&facts.reason, opening.reason),
                        message: is_old(&facts.message, opening.message),
                    };
                }
                occurrences.push(end);
            }
        }
    }
    (occurrences, record)
}

/// Returns the occurrences of a deletion. The final state, if known, was processed before.
#[must_use]
pub fn gone(mut record: TrainingRecord, how: Gone, generation: i64) -> Vec<Occurrence> {
    if !record.emits_on_delete() {
        return Vec::new();
    }
    let status = match how {
        Gone::Deleted => "cancelled",
        Gone::Vanished => "unknown",
    };
    let (mut end, _) = record.finish(TrainingStage::Cancelled, status, generation);
    end.recalled.gone = true;
    vec![end]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use TrainingStage::{Cancelled, Completed, Failed, Pending, Running, Suspended};

    fn at(stage: TrainingStage, started_at: Option<i64>) -> TrainingFacts {
        TrainingFacts {
            stage: Some(stage),
            started_at: started_at.map(|second| Timestamp::from_second(second).unwrap()),
            ..TrainingFacts::default()
        }
    }

    /// Like `at`, for a kind whose runs continue until they end.
    fn of_run(stage: TrainingStage, started_at: Option<i64>) -> TrainingFacts {
        TrainingFacts { continues: true, ..at(stage, started_at) }
    }

    fn sent(record: TrainingRecord, history: &[TrainingFacts]) -> (Vec<String>, TrainingRecord) {
        let mut record = record;
        let mut sent = Vec::new();
        for facts in history {
            let (occurrences, next) = step(record, facts, 1);
            sent.extend(occurrences.iter().map(|o| format!("{} {} run {}", o.event, o.status.unwrap(), o.run)));
            record = next;
        }
        (sent, record)
    }

    fn tells(history: &[TrainingFacts], expected: &[&str]) {
        assert_eq!(sent(TrainingRecord::new(), history).0, expected);
    }

    #[test]
    fn repeated_observations_send_start_and_completion_once() {
        let running = at(Running, Some(5));
        let life = [at(Pending, None), running.clone(), running, at(Completed, Some(5)), at(Completed, Some(5))];
        tells(&life, &["training.started running run 1", "training.completed completed run 1"]);
    }

    #[test]
    fn unseen_start_is_sent_before_the_end() {
        let both = ["training.started running run 1", "training.failed failed run 1"];
        tells(&[at(Failed, Some(5))], &both);
        tells(&[at(Cancelled, None)], &["training.failed cancelled run 0"]);
    }

    #[test]
    fn late_started_at_belongs_to_the_announced_run() {
        tells(&[at(Running, None), at(Running, Some(5))], &["training.started running run 1"]);
        let late = [at(Running, None), at(Completed, Some(5)), at(Completed, Some(5))];
        tells(&late, &["training.started running run 1", "training.completed completed run 1"]);
        let after_the_end = [at(Running, None), at(Completed, None), at(Completed, Some(5))];
        tells(&after_the_end, &["training.started running run 1", "training.completed completed run 1"]);
    }

    #[test]
    fn finished_job_starts_a_new_run_by_started_at() {
        let same = [at(Running, Some(5)), at(Completed, Some(5)), at(Running, Some(5)), at(Completed, Some(5))];
        tells(&same, &["training.started running run 1", "training.completed completed run 1"]);
        let new = [at(Running, Some(5)), at(Completed, Some(5)), at(Pending, None), at(Running, Some(9))];
        let expected =
            ["training.started running run 1", "training.completed completed run 1", "training.started running run 2"];
        tells(&new, &expected);
    }

    #[test]
    fn resumed_job_starts_a_new_run_by_started_at() {
        let same = [at(Running, Some(5)), at(Suspended, Some(5)), at(Running, Some(5))];
        tells(&same, &["training.started running run 1"]);
        let new = [at(Running, Some(5)), at(Suspended, None), at(Running, Some(6))];
        tells(&new, &["training.started running run 1", "training.started running run 2"]);
        let none = [at(Running, None), at(Suspended, None), at(Running, None)];
        tells(&none, &["training.started running run 1", "training.started running run 2"]);
    }

    #[test]
    fn suspended_or_retried_run_continues() {
        let both = ["training.started running run 1", "training.completed completed run 1"];
        for starts in
            [[Some(5), Some(6), Some(7)], [None, None, None], [None, Some(6), Some(7)], [Some(5), None, Some(7)]]
        {
            for between in [Suspended, Pending, Running] {
                let [first, second, third] = starts;
                let life = [
                    of_run(Pending, None),
                    of_run(Running, first),
                    of_run(between, second),
                    of_run(Running, second),
                    of_run(between, third),
                    of_run(Running, third),
                    of_run(Completed, third),
                    of_run(Failed, third),
                    of_run(Running, third),
                ];
                tells(&life, &both);
            }
        }
        let again =
            [of_run(Running, Some(5)), of_run(Completed, Some(5)), of_run(Running, Some(9)), of_run(Failed, Some(9))];
        let second = ["training.started running run 2", "training.failed failed run 2"];
        tells(&again, &[both[0], both[1], second[0], second[1]]);
    }

    #[test]
    fn end_of_a_resumed_run_reports_its_first_start() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let life =
            [of_run(Running, Some(5)), of_run(Running, Some(6)), of_run(Suspended, None), of_run(Running, Some(7))];
        let (_, record) = sent(TrainingRecord::new(), &life);
        let (occurrences, record) = step(record, &of_run(Completed, Some(7)), 1);
        assert_eq!(occurrences[0].name, OccurrenceName::StartedAt(at(7)));
        assert_eq!(occurrences[0].recalled.started_at, Some(at(5)));
        assert_eq!(record.starts, [at(5), at(7)], "no event has the name of those in between");
        assert_eq!(record.opening, None, "a finished job's record is small");
        let (occurrences, _) = step(record, &of_run(Failed, Some(9)), 1);
        assert_eq!(occurrences.iter().map(|o| o.recalled.started_at).collect::<Vec<_>>(), [None, Some(at(9))]);
    }

    #[test]
    fn run_with_observed_start_has_observed_end() {
        let (_, record) = sent(TrainingRecord::new(), &[at(Running, None)]);
        let (occurrences, _) = step(record, &at(Completed, Some(5)), 1);
        assert!(occurrences[0].recalled.start_was_observed);
        let (occurrences, _) = step(TrainingRecord::new(), &at(Completed, Some(5)), 1);
        assert!(occurrences.iter().all(|occurrence| !occurrence.recalled.start_was_observed));
    }

    #[test]
    fn message_of_a_running_job_is_not_the_cancellation_error() {
        let says = |stage, reason: &str, message: &str| TrainingFacts {
            reason: Some(reason.into()),
            message: Some(message.into()),
            ..at(stage, Some(5))
        };
        let running = [says(Running, "Going", "step 1"), says(Running, "Going", "step 2"), at(Suspended, Some(5))];
        let (_, record) = sent(TrainingRecord::new(), &running);
        let is_old = |end: TrainingFacts| {
            let recalled = step(record.clone(), &end, 1).0.remove(0).recalled;
            (recalled.stale.reason, recalled.stale.message)
        };
        assert_eq!(is_old(says(Cancelled, "Going", "step 2")), (true, true));
        assert_eq!(is_old(says(Cancelled, "Stopped", "step 2")), (false, true));
        assert_eq!(is_old(says(Cancelled, "Stopped", "by a user")), (false, false));
        assert_eq!(is_old(at(Cancelled, Some(5))), (false, false));
        assert_eq!(is_old(says(Failed, "Going", "step 2")), (false, false), "a failure may be told before it is final");
        assert!(gone(record, Gone::Deleted, 1)[0].recalled.gone);
    }

    #[test]
    fn records_of_the_previous_release_continue() {
        // Suspended in its second run, without an opening.
        let old =
            r#"{"stage":"Suspended","run":2,"starts":["1970-01-01T00:00:05Z","1970-01-01T00:00:06Z"],"named":true}"#;
        let record: TrainingRecord = serde_json::from_str(old).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), old);
        let (events, record) = sent(record, &[of_run(Running, Some(7)), of_run(Completed, Some(7))]);
        assert_eq!(events, ["training.completed completed run 2"]);
        assert_eq!(record.opening, None);
        // The opening of another run is ignored.
        let stale = r#"{"stage":"Running","run":3,"opening":{"run":2,"first":"1970-01-01T00:00:05Z","observed":true}}"#;
        let (occurrences, _) = step(serde_json::from_str(stale).unwrap(), &at(Completed, None), 1);
        assert_eq!(occurrences[0].recalled, Recalled::default());
    }

    #[test]
    fn failed_is_final_for_its_run() {
        let life = [at(Running, Some(5)), at(Failed, Some(5)), at(Completed, Some(5)), at(Cancelled, Some(5))];
        tells(&life, &["training.started running run 1", "training.failed failed run 1"]);
    }

    #[test]
    fn deleting_a_started_job_fails_its_run() {
        for stage in [Running, Suspended, Pending] {
            let (_, record) = sent(TrainingRecord::new(), &[at(Running, Some(5)), at(stage, Some(5))]);
            assert!(record.emits_on_delete());
            let status = |how| gone(record.clone(), how, 1).iter().map(|o| o.status.unwrap()).collect::<Vec<_>>();
            assert_eq!(status(Gone::Deleted), ["cancelled"], "{stage:?}");
            assert_eq!(status(Gone::Vanished), ["unknown"], "{stage:?}");
        }
        for stage in [Pending, Suspended, Completed, Failed, Cancelled] {
            let (_, record) = sent(TrainingRecord::new(), &[at(stage, None)]);
            assert!(gone(record, Gone::Deleted, 1).is_empty());
        }
    }

    #[test]
    fn hundred_restarts_use_no_id_twice() {
        let mut record = TrainingRecord::new();
        let mut seen = HashSet::new();
        for start in (0..100).chain(0..100) {
            let (occurrences, next) = step(record, &at(Running, Some(start)), 1);
            for occurrence in occurrences {
                assert!(seen.insert((occurrence.event, occurrence.name, occurrence.count)));
            }
            record = next;
        }
        assert!(seen.len() >= 100);
        // Each run is resumed, so that two times name its events.
        let (mut record, mut seen) = (TrainingRecord::new(), HashSet::new());
        for start in (0..100).chain(0..100) {
            for facts in
                [of_run(Running, Some(2 * start)), of_run(Running, Some(2 * start + 1)), of_run(Completed, None)]
            {
                let (occurrences, next) = step(record, &facts, 1);
                for occurrence in occurrences {
                    assert!(seen.insert((occurrence.event, occurrence.name, occurrence.count)));
                }
                record = next;
            }
        }
        assert!(seen.len() >= 200);
    }

    fn facts() -> impl Strategy<Value = TrainingFacts> {
        let stage = prop_oneof![
            Just(None),
            prop_oneof![Just(Pending), Just(Suspended), Just(Running), Just(Completed), Just(Failed), Just(Cancelled)]
                .prop_map(Some),
        ];
        (stage, proptest::option::of(0..4_i64)).prop_map(|(stage, start)| TrainingFacts { stage, ..at(Pending, start) })
    }

    proptest! {
        #[test]
        fn every_run_has_one_start_and_one_end(
            history in proptest::collection::vec((facts(), 0..2_i64), 0..60), baseline in any::<bool>(),
        ) {
            let (mut record, mut generation) = (TrainingRecord::new(), 1);
            let (mut seen, mut open) = (HashSet::new(), None);
            for (index, (facts, growth)) in history.into_iter().enumerate() {
                generation += growth;
                let facts = TrainingFacts { continues: true, ..facts };
                if index == 0 && baseline {
                    record = TrainingRecord::baseline(&facts, generation);
                    open = record.emits_on_delete().then_some(record.run);
                }
                let (occurrences, next) = step(record, &facts, generation);
                for occurrence in occurrences {
                    prop_assert!(seen.insert((occurrence.event, occurrence.name, occurrence.count)));
                    if occurrence.event == EventType::TrainingStarted {
                        prop_assert_eq!(open.replace(occurrence.run), None, "the run before has ended");
                    } else {
                        // A job that never ran may fail.
                        prop_assert_eq!(open.take().unwrap_or_default(), occurrence.run);
                    }
                }
                prop_assert_eq!(open.is_some(), next.emits_on_delete());
                record = serde_json::from_value(serde_json::to_value(&next).unwrap()).unwrap();
                prop_assert_eq!(&record, &next);
            }
            let ends = gone(record, Gone::Deleted, generation);
            prop_assert_eq!(ends.first().map(|end| end.run), open, "and goes with the job");
        }

        #[test]
        fn every_occurrence_is_told_exactly_once_and_nothing_else_is(
            history in proptest::collection::vec((facts(), 0..2_i64), 0..60), baseline in any::<bool>(),
        ) {
            let mut record = TrainingRecord::new();
            let mut generation = 1;
            let mut seen = HashSet::new();
            let mut announced = HashSet::new();
            for (index, (facts, growth)) in history.into_iter().enumerate() {
                generation += growth;
                if index == 0 && baseline {
                    record = TrainingRecord::baseline(&facts, generation);
                }
                let before = record.clone();
                let (occurrences, next) = step(record, &facts, generation);
                if index == 0 && baseline {
                    prop_assert!(occurrences.is_empty(), "a baseline sends nothing");
                }
                if facts.stage.is_none() {
                    prop_assert!(occurrences.is_empty());
                    prop_assert_eq!(&next, &before);
                }
                for occurrence in &occurrences {
                    prop_assert!(seen.insert((occurrence.event, occurrence.name.clone(), occurrence.count)));
                    if let (EventType::TrainingStarted, OccurrenceName::StartedAt(start)) = (occurrence.event, &occurrence.name) {
                        prop_assert!(announced.insert(*start), "each startedAt is announced once");
                    }
                }
                let runs_or_ran = facts.stage.is_some_and(|stage| stage == Running || stage.is_finished());
                if let (true, Some(start)) = (runs_or_ran, facts.started_at) {
                    prop_assert!(next.knows(start), "a startedAt that was seen is announced, or names an announced run");
                }
                if let Some(stage) = facts.stage.filter(|stage| stage.is_finished()) {
                    prop_assert!(next.stage.is_finished());
                    prop_assert_eq!(
                        occurrences.iter().any(|o| o.event != EventType::TrainingStarted),
                        !before.stage.is_finished() || next.run > before.run || (before.stage == Completed && stage != Completed)
                    );
                }
                let (again, same) = step(next.clone(), &facts, generation);
                prop_assert!(again.is_empty(), "an observation that changes nothing sends nothing");
                prop_assert_eq!(&same, &next);
                record = next;
            }
        }
    }
}
