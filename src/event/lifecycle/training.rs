//! The training lifecycle: Pending, Suspended, Running, then Completed, Failed or Cancelled.
//!
//! - `training.started`: the job enters Running, once per distinct `startedAt`, else per entry; also when a job becomes
//!   finished whose `startedAt` was never announced.
//! - `training.completed`: it enters Completed. `training.failed`: it enters Failed or Cancelled, or goes while Running.
//! - A `startedAt` that appears after the start was announced names that run. A finished job that runs again is a new run
//!   only with a new `startedAt`; without one it stays finished. Failed and Cancelled are final for their run.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Gone, Occurrence, Tally};
use crate::event::{
    EventType,
    id::OccurrenceName,
    object::{TrainingFacts, TrainingStage},
    unknown::Unknown,
};

/// How many distinct `startedAt` a record remembers. A job that restarts more often still announces each; from there on
/// its ids bear the run's number, since a forgotten name could come again.
const REMEMBERED_STARTS: usize = 32;

/// What the lifecycle remembers of one job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingRecord {
    /// The stage it is in.
    pub stage: TrainingStage,
    /// How many runs were announced, or taken over by a baseline.
    pub run: u32,
    /// The distinct `startedAt` of those runs, the newest last, at most [`REMEMBERED_STARTS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    starts: Vec<Timestamp>,
    /// Whether the newest of `starts` is the present run's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    named: bool,
    /// Starts that had no `startedAt`.
    #[serde(default, skip_serializing_if = "Tally::is_empty")]
    unnamed: Tally,
    #[serde(flatten)]
    unknown: Unknown,
}

impl TrainingRecord {
    /// A job that nothing is known of.
    #[must_use]
    pub const fn new() -> Self {
        let unnamed = Tally { generation: 0, count: 0 };
        Self {
            stage: TrainingStage::Pending,
            run: 0,
            starts: Vec::new(),
            named: false,
            unnamed,
            unknown: Unknown::NONE,
        }
    }

    /// A job that was there before the operator was: its past counts as announced.
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
            unknown: Unknown::NONE,
        }
    }

    /// Whether the job's going would be an event, so that its facts must be kept.
    #[must_use]
    pub fn would_mind_going(&self) -> bool {
        self.stage == TrainingStage::Running
    }

    fn knows(&self, start: Timestamp) -> bool {
        self.starts.contains(&start)
    }

    fn remember(&mut self, start: Timestamp) {
        if self.starts.len() >= REMEMBERED_STARTS {
            self.starts.remove(0);
        }
        // Nearly every job has one.
        self.starts.reserve_exact(1);
        self.starts.push(start);
        self.named = true;
    }

    /// The count in the id of an event named by a `startedAt`.
    fn named_count(&self) -> u32 {
        if self.run as usize > REMEMBERED_STARTS { self.run } else { 1 }
    }

    fn begin(&mut self, start: Option<Timestamp>, generation: i64) -> Occurrence {
        self.run = self.run.saturating_add(1);
        self.stage = TrainingStage::Running;
        let (name, count) = if let Some(start) = start {
            self.remember(start);
            (OccurrenceName::StartedAt(start), self.named_count())
        } else {
            self.named = false;
            (OccurrenceName::Generation(generation), self.unnamed.next(generation))
        };
        Occurrence { event: EventType::TrainingStarted, name, count, status: Some("running"), run: self.run }
    }

    fn finish(&mut self, stage: TrainingStage, status: &'static str, generation: i64) -> Occurrence {
        self.stage = stage;
        let event =
            if stage == TrainingStage::Completed { EventType::TrainingCompleted } else { EventType::TrainingFailed };
        let (name, count) = match self.starts.last() {
            Some(start) if self.named => (OccurrenceName::StartedAt(*start), self.named_count()),
            // A run ends once, and a job without `startedAt` has one finished run at most: no second event of this name.
            _ => (OccurrenceName::Generation(generation), 1),
        };
        Occurrence { event, name, count, status: Some(status), run: self.run }
    }
}

impl Default for TrainingRecord {
    fn default() -> Self {
        Self::new()
    }
}

/// What an observed state of the job means.
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

    match stage {
        Pending | Suspended => {
            if !record.stage.is_finished() {
                record.stage = stage;
            }
        }
        Running => {
            if let Some(start) = new_start {
                occurrences.push(record.begin(Some(start), generation));
            } else if !record.stage.is_finished() && record.stage != Running {
                if facts.started_at.is_none() {
                    occurrences.push(record.begin(None, generation));
                }
                record.stage = Running;
            }
        }
        Completed | Failed | Cancelled => {
            if let Some(start) = new_start {
                occurrences.push(record.begin(Some(start), generation));
            }
            let open = !record.stage.is_finished() || (record.stage == Completed && stage != Completed);
            if open {
                let status = match stage {
                    Completed => "completed",
                    Cancelled => "cancelled",
                    _ => "failed",
                };
                occurrences.push(record.finish(stage, status, generation));
            }
        }
    }
    (occurrences, record)
}

/// What it means that the job is gone. Its final state, where known, has been stepped before.
#[must_use]
pub fn gone(mut record: TrainingRecord, how: Gone, generation: i64) -> Vec<Occurrence> {
    if record.stage != TrainingStage::Running {
        return Vec::new();
    }
    let status = match how {
        Gone::Deleted => "cancelled",
        Gone::Vanished => "unknown",
    };
    vec![record.finish(TrainingStage::Cancelled, status, generation)]
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

    fn told(record: TrainingRecord, history: &[TrainingFacts]) -> (Vec<String>, TrainingRecord) {
        let mut record = record;
        let mut told = Vec::new();
        for facts in history {
            let (occurrences, next) = step(record, facts, 1);
            told.extend(occurrences.iter().map(|o| format!("{} {} run {}", o.event, o.status.unwrap(), o.run)));
            record = next;
        }
        (told, record)
    }

    fn tells(history: &[TrainingFacts], expected: &[&str]) {
        assert_eq!(told(TrainingRecord::new(), history).0, expected);
    }

    #[test]
    fn a_job_starts_once_and_completes_once_however_often_it_is_observed() {
        let running = at(Running, Some(5));
        let life = [at(Pending, None), running.clone(), running, at(Completed, Some(5)), at(Completed, Some(5))];
        tells(&life, &["training.started running run 1", "training.completed completed run 1"]);
    }

    #[test]
    fn a_start_that_was_never_seen_is_told_before_the_end() {
        let both = ["training.started running run 1", "training.failed failed run 1"];
        tells(&[at(Failed, Some(5))], &both);
        tells(&[at(Cancelled, None)], &["training.failed cancelled run 0"]);
    }

    #[test]
    fn a_started_at_that_appears_after_running_was_announced_names_that_run() {
        tells(&[at(Running, None), at(Running, Some(5))], &["training.started running run 1"]);
        let late = [at(Running, None), at(Completed, Some(5)), at(Completed, Some(5))];
        tells(&late, &["training.started running run 1", "training.completed completed run 1"]);
        let after_the_end = [at(Running, None), at(Completed, None), at(Completed, Some(5))];
        tells(&after_the_end, &["training.started running run 1", "training.completed completed run 1"]);
    }

    #[test]
    fn a_finished_job_that_runs_again_is_a_new_run_only_with_a_new_started_at() {
        let same = [at(Running, Some(5)), at(Completed, Some(5)), at(Running, Some(5)), at(Completed, Some(5))];
        tells(&same, &["training.started running run 1", "training.completed completed run 1"]);
        let new = [at(Running, Some(5)), at(Completed, Some(5)), at(Pending, None), at(Running, Some(9))];
        let expected =
            ["training.started running run 1", "training.completed completed run 1", "training.started running run 2"];
        tells(&new, &expected);
    }

    #[test]
    fn a_resumed_job_starts_again_only_under_a_new_started_at_or_without_any() {
        let same = [at(Running, Some(5)), at(Suspended, Some(5)), at(Running, Some(5))];
        tells(&same, &["training.started running run 1"]);
        let new = [at(Running, Some(5)), at(Suspended, None), at(Running, Some(6))];
        tells(&new, &["training.started running run 1", "training.started running run 2"]);
        let none = [at(Running, None), at(Suspended, None), at(Running, None)];
        tells(&none, &["training.started running run 1", "training.started running run 2"]);
    }

    #[test]
    fn failed_is_final_for_its_run() {
        let life = [at(Running, Some(5)), at(Failed, Some(5)), at(Completed, Some(5)), at(Cancelled, Some(5))];
        tells(&life, &["training.started running run 1", "training.failed failed run 1"]);
    }

    #[test]
    fn a_job_that_goes_while_running_has_failed_and_one_that_goes_otherwise_says_nothing() {
        let (_, running) = told(TrainingRecord::new(), &[at(Running, Some(5))]);
        let status = |how| gone(running.clone(), how, 1).iter().map(|o| o.status.unwrap()).collect::<Vec<_>>();
        assert_eq!(status(Gone::Deleted), ["cancelled"]);
        assert_eq!(status(Gone::Vanished), ["unknown"]);
        for stage in [Pending, Suspended, Completed, Failed, Cancelled] {
            let (_, record) = told(TrainingRecord::new(), &[at(stage, None)]);
            assert!(gone(record, Gone::Deleted, 1).is_empty());
        }
    }

    #[test]
    fn a_job_that_restarts_a_hundred_times_never_uses_an_id_twice() {
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
