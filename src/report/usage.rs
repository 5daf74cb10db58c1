//! The status of every `UsageThreshold`. [`super::write_rate_limiter`] decides when it is written.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::Client;
use tokio::{sync::mpsc, task::JoinSet, time::sleep};
use tracing::warn;

use super::{
    write_rate_limiter::{Changed, Limits, Turn, WriteRateLimiter},
    writer::apply,
};
use crate::{
    claim::Claim,
    panics::caught,
    source::usage::{UsageRef, UsageUpdate},
};
use llmtune_api::conditions::{self, whole_seconds};
use llmtune_api::{UsageThreshold, usage_threshold::UsageThresholdStatus};
use llmtune_client::error_chain::ErrorChain;
use llmtune_core::event::object::Uid;

/// Users and pipelines wait for conditions and for reached thresholds.
const LIMITS: Limits = Limits {
    figures_every: Duration::from_secs(60),
    conditions_every: Duration::from_secs(1),
    figures_per_second: 10,
    conditions_per_second: 10,
};
/// Updates are processed in batches, this far apart.
const BATCH: Duration = Duration::from_millis(100);
const MAX_BATCH: usize = 4096;

#[derive(Debug)]
struct ThresholdStatusEntry {
    threshold: UsageRef,
    status: UsageThresholdStatus,
    turn: Turn,
}

impl ThresholdStatusEntry {
    /// Records the result of an evaluation.
    fn judge(&mut self, generation: i64, at: Timestamp, failure: Option<(&str, &str, bool)>) {
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
        self.turn.touch(if changed { Changed::Conditions } else { Changed::Figures });
    }
}

/// The statuses. Pure.
#[derive(Debug)]
struct Statuses {
    entries: HashMap<Uid, ThresholdStatusEntry>,
    turns: WriteRateLimiter,
}

impl Default for Statuses {
    fn default() -> Self {
        Self { entries: HashMap::new(), turns: WriteRateLimiter::new(LIMITS) }
    }
}

impl Statuses {
    fn take(&mut self, update: UsageUpdate) {
        let (uid, update) = match update {
            UsageUpdate::Found { threshold, found } => {
                let entry = self.entries.entry(threshold.uid);
                entry.or_insert_with(|| ThresholdStatusEntry { threshold, status: *found, turn: Turn::default() });
                return;
            }
            UsageUpdate::Gone(uid) => {
                self.entries.remove(&uid);
                return;
            }
            UsageUpdate::Measured { uid, .. } | UsageUpdate::Failed { uid, .. } | UsageUpdate::Reached { uid, .. } => {
                (uid, update)
            }
        };
        let Some(entry) = self.entries.get_mut(&uid) else { return };
        match update {
            UsageUpdate::Measured { generation, facts, .. } => {
                entry.judge(generation, facts.observed_at, None);
                entry.status.value = Some(facts.value.to_string());
                entry.status.limit = facts.limit.as_ref().map(ToString::to_string);
                entry.status.percent = facts.percent().map(|percent| format!("{percent}%"));
                entry.status.last_evaluation = Some(whole_seconds(facts.observed_at));
            }
            UsageUpdate::Failed { generation, failure, at, .. } => {
                let reason = failure.reason;
                entry.judge(generation, at, Some((reason.name(), &failure.message, reason.stalls())));
            }
            UsageUpdate::Reached { thresholds, .. } if thresholds != entry.status.reached => {
                entry.status.reached = thresholds;
                entry.turn.touch(Changed::Conditions);
            }
            UsageUpdate::Reached { .. } | UsageUpdate::Found { .. } | UsageUpdate::Gone(_) => {}
        }
    }

    /// Returns the writes to start now. Each must be followed by [`Self::written`].
    fn due(&mut self, now: Instant) -> Vec<(UsageRef, UsageThresholdStatus)> {
        let all = self
            .entries
            .values_mut()
            .map(|ThresholdStatusEntry { turn, threshold, status }| (turn, (&*threshold, &*status)));
        let due = self.turns.due(all, now, false);
        due.map(|(threshold, status)| (threshold.clone(), status.clone())).collect()
    }

    /// Records the end of a write. A failed write is repeated.
    fn written(&mut self, uid: Uid, succeeded: bool) {
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.turn.ended(succeeded);
        }
    }

    fn is_dirty(&self) -> bool {
        self.entries.values().any(|entry| entry.turn.is_open())
    }
}

/// Writes statuses until all senders are dropped.
pub struct UsageWriter {
    pub client: Client,
    pub updates: mpsc::UnboundedReceiver<UsageUpdate>,
    /// Checked before each write.
    pub claim: Claim,
}

impl UsageWriter {
    /// Runs until all senders are dropped.
    pub async fn run(mut self) {
        let mut statuses = Statuses::default();
        let mut writes: JoinSet<(Uid, bool)> = JoinSet::new();
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                count = self.updates.recv_many(&mut batch, MAX_BATCH) => if count == 0 { return },
                Some(written) = writes.join_next() => match written {
                    Ok((uid, succeeded)) => statuses.written(uid, succeeded),
                    Err(error) => warn!(error = %ErrorChain(&error), "a status write panicked"),
                },
                () = sleep(Duration::from_millis(250)), if statuses.is_dirty() => {}
            }
            for update in batch.drain(..) {
                statuses.take(update);
            }
            if self.claim.holds() {
                for (threshold, status) in statuses.due(Instant::now()) {
                    let client = self.client.clone();
                    writes.spawn(async move {
                        let UsageRef { uid, namespace, name } = threshold;
                        let applying = apply::<UsageThreshold>(&client, uid, Some(&namespace), &name, &status);
                        (uid, caught(applying).await.unwrap_or(false))
                    });
                }
            }
            sleep(BATCH).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::usage::{Failure, Reason};
    use llmtune_core::event::{amount::Amount, object::UsageFacts};

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
        let writes = statuses.due(now);
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
        statuses.take(found(1, UsageThresholdStatus::default()));
        assert!(write(&mut statuses, begun).is_empty());
        statuses.take(measured(1, "834", 0));
        let first = write(&mut statuses, begun).remove(0);
        assert_eq!((first.value.as_deref(), first.percent.as_deref()), (Some("834"), Some("83.4%")));
        assert_eq!(condition(&first, "Ready"), ("True".into(), "Measured".into()));
        assert_eq!(condition(&first, "Stalled"), ("False".into(), "Progressing".into()));

        statuses.take(measured(1, "840", 10));
        assert!(write(&mut statuses, after(59)).is_empty());
        assert_eq!(write(&mut statuses, after(60))[0].value.as_deref(), Some("840"));
        statuses.take(reached(1, &["80%"]));
        assert_eq!(write(&mut statuses, after(61))[0].reached, ["80%"]);
        statuses.take(reached(1, &["80%"]));
        assert!(write(&mut statuses, after(1000)).is_empty());

        statuses.take(failed(1, Reason::NoSample, 70));
        let failed_once = write(&mut statuses, after(1001)).remove(0);
        assert_eq!(condition(&failed_once, "Ready"), ("False".into(), "NoSample".into()));
        assert_eq!(condition(&failed_once, "Stalled").0, "False");
        assert_eq!(failed_once.value.as_deref(), Some("840"), "the last value is kept");
        assert_eq!(failed_once.reached, ["80%"]);
        statuses.take(failed(1, Reason::PrometheusNotAllowed, 71));
        assert_eq!(condition(&write(&mut statuses, after(1002))[0], "Stalled").1, "PrometheusNotAllowed");
        statuses.take(UsageUpdate::Gone(uid(1)));
        statuses.take(measured(1, "1", 72));
        assert!(!statuses.is_dirty());
    }

    #[test]
    fn new_leader_writes_unchanged_conditions_only_with_values() {
        let mut statuses = Statuses::default();
        statuses.take(found(1, UsageThresholdStatus::default()));
        statuses.take(measured(1, "834", 0));
        statuses.take(reached(1, &["80%"]));
        let known = write(&mut statuses, Instant::now()).remove(0);
        let mut next_leaders = Statuses::default();
        next_leaders.take(found(1, known));
        next_leaders.take(measured(1, "900", 9));
        next_leaders.take(reached(1, &["80%"]));
        assert_eq!(next_leaders.entries[&uid(1)].turn.changed(), Changed::Figures);
        assert_eq!(write(&mut next_leaders, Instant::now()).len(), 1);
    }

    #[test]
    fn ten_writes_per_second_conditions_first_and_failures_are_repeated() {
        let mut statuses = Statuses::default();
        let begun = Instant::now();
        for number in 0..30 {
            statuses.take(found(number, UsageThresholdStatus::default()));
            statuses.take(measured(number, "1", 0));
        }
        assert_eq!(write(&mut statuses, begun).len(), LIMITS.figures_per_second);
        assert!(write(&mut statuses, begun + Duration::from_millis(999)).is_empty());
        assert_eq!(write(&mut statuses, begun + Duration::from_secs(1)).len(), LIMITS.figures_per_second);
        let (threshold, _) = statuses.due(begun + Duration::from_secs(2)).remove(0);
        statuses.written(threshold.uid, false);
        assert_eq!(statuses.entries[&threshold.uid].turn.changed(), Changed::Conditions);
        assert!(statuses.is_dirty());
    }
}
