//! The status of every `UsageThreshold`. [`super::write_rate_limiter`] decides when it is written.

use std::time::Duration;

use jiff::Timestamp;
use llmtune_api::{
    UsageThreshold,
    conditions::{self, whole_seconds},
    usage_threshold::UsageThresholdStatus,
};

use super::{
    status_writer::{Reporter, StatusEntry, StatusTable, StatusTarget},
    write_rate_limiter::{Changed, Limits, WriteState},
};
use crate::source::usage::{UsageRef, UsageUpdate};

/// Users and pipelines wait for conditions and for reached thresholds.
const LIMITS: Limits = Limits {
    figures_every: Duration::from_secs(60),
    conditions_every: Duration::from_secs(1),
    figures_per_second: 10,
    conditions_per_second: 10,
};

/// The status of a `UsageThreshold`.
#[derive(Debug)]
pub struct ThresholdStatusEntry {
    target: StatusTarget,
    status: UsageThresholdStatus,
    writes: WriteState,
}

impl StatusEntry for ThresholdStatusEntry {
    type Status = UsageThresholdStatus;

    const LIMITS: Limits = LIMITS;

    fn parts(&mut self) -> (&mut WriteState, &StatusTarget, &UsageThresholdStatus) {
        (&mut self.writes, &self.target, &self.status)
    }
}

impl ThresholdStatusEntry {
    fn new(UsageRef { uid, namespace, name }: &UsageRef, status: UsageThresholdStatus) -> Self {
        let target = StatusTarget::of::<UsageThreshold>(*uid, Some(namespace), name);
        Self { target, status, writes: WriteState::default() }
    }

    /// Records the result of an evaluation.
    fn record(&mut self, generation: i64, at: Timestamp, failure: Option<(&str, &str, bool)>) {
        let (ready, reason, message, stalled) = match failure {
            None => (true, "Measured", "the value is measured, and its thresholds are watched", false),
            Some((reason, message, stalls)) => (false, reason, message, stalls),
        };
        let (stalled_reason, stalled_message) = match (stalled, ready) {
            (true, _) => (reason, message),
            (false, true) => ("Progressing", "the spec is valid"),
            (false, false) => ("Progressing", "the spec is valid; see the condition Ready"),
        };
        let mut changed = self.status.observed_generation != Some(generation);
        for (kind, holds, reason, message) in
            [("Ready", ready, reason, message), ("Stalled", stalled, stalled_reason, stalled_message)]
        {
            let known = &mut self.status.conditions;
            let next = conditions::next(known, kind, conditions::status(holds), reason, message, generation, at);
            changed |= conditions::set(known, next);
        }
        self.status.observed_generation = Some(generation);
        self.writes.touch(if changed { Changed::Conditions } else { Changed::Figures });
    }
}

impl Reporter for StatusTable<ThresholdStatusEntry> {
    type Note = UsageUpdate;
    type Entry = ThresholdStatusEntry;

    fn table(&mut self) -> &mut Self {
        self
    }

    fn record(&mut self, update: UsageUpdate) {
        let entries = &mut self.entries;
        match update {
            UsageUpdate::Found { threshold, found } => {
                entries.entry(threshold.uid).or_insert_with(|| ThresholdStatusEntry::new(&threshold, *found));
            }
            UsageUpdate::Gone(uid) => {
                entries.remove(&uid);
            }
            UsageUpdate::Measured { uid, generation, facts } => {
                let Some(entry) = entries.get_mut(&uid) else { return };
                entry.record(generation, facts.observed_at, None);
                entry.status.value = Some(facts.value.to_string());
                entry.status.limit = facts.limit.as_ref().map(ToString::to_string);
                entry.status.percent = facts.percent().map(|percent| format!("{percent}%"));
                entry.status.last_evaluation = Some(whole_seconds(facts.observed_at));
            }
            UsageUpdate::Failed { uid, generation, failure, at } => {
                let Some(entry) = entries.get_mut(&uid) else { return };
                let reason = failure.reason;
                entry.record(generation, at, Some((reason.name(), &failure.message, reason.stalls())));
            }
            UsageUpdate::Reached { uid, thresholds } => {
                let entry = entries.get_mut(&uid).filter(|entry| entry.status.reached != thresholds);
                let Some(entry) = entry else { return };
                entry.status.reached = thresholds;
                entry.writes.touch(Changed::Conditions);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use llmtune_core::event::object::Uid;

    use super::*;
    use crate::source::usage::{Failure, Reason};
    use llmtune_core::event::{amount::Amount, object::UsageFacts};

    type Statuses = StatusTable<ThresholdStatusEntry>;

    fn uid(number: u128) -> Uid {
        Uid::from_u128(number)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn found(number: u128, status: UsageThresholdStatus) -> UsageUpdate {
        let threshold = UsageRef { uid: uid(number), namespace: "ns".into(), name: format!("usage-{number}") };
        UsageUpdate::Found { threshold, found: Box::new(status) }
    }

    fn measured(number: u128, value: &str, second: i64) -> UsageUpdate {
        let facts = UsageFacts {
            value: Amount::quantity(value).unwrap(),
            limit: Some(Amount::quantity("1k").unwrap()),
            observed_at: at(second),
            ..UsageFacts::default()
        };
        UsageUpdate::Measured { uid: uid(number), generation: 1, facts: Box::new(facts) }
    }

    fn failed(number: u128, reason: Reason, second: i64) -> UsageUpdate {
        let failure = Failure { reason, message: "as the test says".into() };
        UsageUpdate::Failed { uid: uid(number), generation: 1, failure, at: at(second) }
    }

    fn reached(number: u128, thresholds: &[&str]) -> UsageUpdate {
        UsageUpdate::Reached {
            uid: uid(number),
            thresholds: thresholds.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    fn condition(status: &UsageThresholdStatus, kind: &str) -> (String, String) {
        let condition = conditions::get(&status.conditions, kind).unwrap();
        (condition.status.clone(), condition.reason.clone())
    }

    /// Returns the statuses to write at this time, and records that the writes succeeded.
    fn write(statuses: &mut Statuses, now: Instant) -> Vec<UsageThresholdStatus> {
        let writes = statuses.due(now, false);
        for (threshold, _) in &writes {
            statuses.written(threshold.uid, true);
        }
        writes.into_iter().map(|(_, status)| status).collect()
    }

    #[test]
    fn values_are_written_once_a_minute_and_conditions_immediately() {
        let mut statuses = Statuses::default();
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        statuses.record(found(1, UsageThresholdStatus::default()));
        assert!(write(&mut statuses, begun).is_empty());
        statuses.record(measured(1, "834", 0));
        let first = write(&mut statuses, begun).remove(0);
        assert_eq!((first.value.as_deref(), first.percent.as_deref()), (Some("834"), Some("83.4%")));
        assert_eq!(condition(&first, "Ready"), ("True".into(), "Measured".into()));
        assert_eq!(condition(&first, "Stalled"), ("False".into(), "Progressing".into()));

        statuses.record(measured(1, "840", 10));
        assert!(write(&mut statuses, after(59)).is_empty());
        assert_eq!(write(&mut statuses, after(60))[0].value.as_deref(), Some("840"));
        statuses.record(reached(1, &["80%"]));
        assert_eq!(write(&mut statuses, after(61))[0].reached, ["80%"]);
        statuses.record(reached(1, &["80%"]));
        assert!(write(&mut statuses, after(1000)).is_empty());

        statuses.record(failed(1, Reason::NoSample, 70));
        let failed_once = write(&mut statuses, after(1001)).remove(0);
        assert_eq!(condition(&failed_once, "Ready"), ("False".into(), "NoSample".into()));
        assert_eq!(condition(&failed_once, "Stalled").0, "False");
        assert_eq!(failed_once.value.as_deref(), Some("840"), "the last value is kept");
        assert_eq!(failed_once.reached, ["80%"]);
        statuses.record(failed(1, Reason::PrometheusNotAllowed, 71));
        assert_eq!(condition(&write(&mut statuses, after(1002))[0], "Stalled").1, "PrometheusNotAllowed");
        statuses.record(UsageUpdate::Gone(uid(1)));
        statuses.record(measured(1, "1", 72));
        assert!(!statuses.is_dirty());
    }

    #[test]
    fn new_leader_writes_unchanged_conditions_only_with_values() {
        let mut statuses = Statuses::default();
        statuses.record(found(1, UsageThresholdStatus::default()));
        statuses.record(measured(1, "834", 0));
        statuses.record(reached(1, &["80%"]));
        let known = write(&mut statuses, Instant::now()).remove(0);
        let mut next_leaders = Statuses::default();
        next_leaders.record(found(1, known));
        next_leaders.record(measured(1, "900", 9));
        next_leaders.record(reached(1, &["80%"]));
        assert_eq!(next_leaders.entries[&uid(1)].writes.changed(), Changed::Figures);
        assert_eq!(write(&mut next_leaders, Instant::now()).len(), 1);
    }

    #[test]
    fn ten_writes_per_second_conditions_first_and_failures_are_repeated() {
        let mut statuses = Statuses::default();
        let begun = Instant::now();
        for number in 0..30 {
            statuses.record(found(number, UsageThresholdStatus::default()));
            statuses.record(measured(number, "1", 0));
        }
        assert_eq!(write(&mut statuses, begun).len(), LIMITS.figures_per_second);
        assert!(write(&mut statuses, begun + Duration::from_millis(999)).is_empty());
        assert_eq!(write(&mut statuses, begun + Duration::from_secs(1)).len(), LIMITS.figures_per_second);
        let (threshold, _) = statuses.due(begun + Duration::from_secs(2), false).remove(0);
        statuses.written(threshold.uid, false);
        assert_eq!(statuses.entries[&threshold.uid].writes.changed(), Changed::Conditions);
        assert!(statuses.is_dirty());
    }
}
