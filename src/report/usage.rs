//! The status of every `UsageThreshold`, and when it is written, by server-side apply on `/status`.
//!
//! 1. A change of a condition, or of what is reached, is written at once, at most once a second an object.
//! 2. What else has changed (the figure, when it was measured) is written at most every [`FIGURES_EVERY`] an object.
//! 3. At most [`WRITES_PER_SECOND`] writes are begun in all, changes of conditions first; none while another may lead.

use std::{
    cmp::Reverse,
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{
    Client, Resource,
    api::{Patch, PatchParams},
    core::Request,
};
use serde_json::json;
use tokio::{sync::mpsc, task::JoinSet, time::sleep};
use tracing::warn;

use super::{
    conditions::{self, whole_seconds},
    writer::FIELD_MANAGER,
};
use crate::{
    api::{UsageThreshold, usage_threshold::UsageThresholdStatus},
    calls::{self, Hush, within},
    causes::Causes,
    claim::Claim,
    event::object::Uid,
    source::usage::{Told, UsageRef},
};

/// Figures of one object are written at most this often.
pub const FIGURES_EVERY: Duration = Duration::from_secs(60);
/// Conditions of one object are written at most this often.
const CONDITIONS_EVERY: Duration = Duration::from_secs(1);
/// Writes in all.
pub const WRITES_PER_SECOND: usize = 10;
const REQUEST: Duration = Duration::from_secs(10);
/// What is told is taken in batches this far apart.
const BATCH: Duration = Duration::from_millis(100);
const MAX_BATCH: usize = 4096;
static NOT_WRITTEN: Hush = Hush::new();

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Dirty {
    No,
    Figures,
    Conditions,
}

#[derive(Debug)]
struct Entry {
    threshold: UsageRef,
    status: UsageThresholdStatus,
    dirty: Dirty,
    written: Option<Instant>,
    /// What is being written; if that fails, it is as due as it was.
    writing: Option<Dirty>,
}

impl Entry {
    /// Takes in what an evaluation came to.
    fn judge(&mut self, generation: i64, at: Timestamp, failure: Option<(&str, &str, bool)>) {
        let (ready, reason, message, stalled) = match failure {
            None => (true, "Measured", "the figure is measured, and its thresholds are watched", false),
            Some((reason, message, stalls)) => (false, reason, message, stalls),
        };
        let (stalled_reason, stalled_message) = match (stalled, ready) {
            (true, _) => (reason, message),
            (false, true) => ("Progressing", "the spec can work as it stands"),
            (false, false) => ("Progressing", "the spec can work as it stands; the condition Ready says what is amiss"),
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
        self.touch(if changed { Dirty::Conditions } else { Dirty::Figures });
    }

    fn touch(&mut self, dirty: Dirty) {
        self.dirty = self.dirty.max(dirty);
    }

    fn is_due(&self, now: Instant) -> bool {
        let spacing = match self.dirty {
            Dirty::No => return false,
            Dirty::Figures => FIGURES_EVERY,
            Dirty::Conditions => CONDITIONS_EVERY,
        };
        self.writing.is_none() && self.written.is_none_or(|written| now >= written + spacing)
    }
}

/// The statuses. Pure.
#[derive(Debug, Default)]
struct Statuses {
    entries: HashMap<Uid, Entry>,
    recent_writes: Vec<Instant>,
}

impl Statuses {
    fn take(&mut self, told: Told) {
        let (uid, told) = match told {
            Told::Found { threshold, found } => {
                let (dirty, written, writing) = (Dirty::No, None, None);
                let entry = || Entry { threshold: threshold.clone(), status: *found, dirty, written, writing };
                self.entries.entry(threshold.uid).or_insert_with(entry);
                return;
            }
            Told::Gone(uid) => {
                self.entries.remove(&uid);
                return;
            }
            Told::Measured { uid, .. } | Told::Failed { uid, .. } | Told::Reached { uid, .. } => (uid, told),
        };
        let Some(entry) = self.entries.get_mut(&uid) else { return };
        match told {
            Told::Measured { generation, facts, .. } => {
                entry.judge(generation, facts.observed_at, None);
                entry.status.value = Some(facts.value.to_string());
                entry.status.limit = facts.limit.as_ref().map(ToString::to_string);
                entry.status.percent = facts.percent().map(|percent| format!("{percent}%"));
                entry.status.last_evaluation = Some(whole_seconds(facts.observed_at));
            }
            Told::Failed { generation, failure, at, .. } => {
                let reason = failure.reason;
                entry.judge(generation, at, Some((reason.name(), &failure.message, reason.stalls())));
            }
            Told::Reached { thresholds, .. } if thresholds != entry.status.reached => {
                entry.status.reached = thresholds;
                entry.touch(Dirty::Conditions);
            }
            Told::Reached { .. } | Told::Found { .. } | Told::Gone(_) => {}
        }
    }

    /// The writes to begin now; each must be answered with [`Self::written`].
    fn due(&mut self, now: Instant) -> Vec<(UsageRef, UsageThresholdStatus)> {
        self.recent_writes.retain(|at| now.duration_since(*at) < Duration::from_secs(1));
        let room = WRITES_PER_SECOND.saturating_sub(self.recent_writes.len());
        if room == 0 {
            return Vec::new();
        }
        let mut due: Vec<&mut Entry> = self.entries.values_mut().filter(|entry| entry.is_due(now)).collect();
        due.sort_by_key(|entry| (Reverse(entry.dirty), entry.written));
        let writes = due.into_iter().take(room).map(|entry| {
            entry.writing = Some(std::mem::replace(&mut entry.dirty, Dirty::No));
            entry.written = Some(now);
            (entry.threshold.clone(), entry.status.clone())
        });
        let writes: Vec<_> = writes.collect();
        self.recent_writes.extend(writes.iter().map(|_| now));
        writes
    }

    /// A write has ended; one that failed is made again.
    fn written(&mut self, uid: Uid, landed: bool) {
        let Some(entry) = self.entries.get_mut(&uid) else { return };
        if let Some(dirty) = entry.writing.take().filter(|_| !landed) {
            entry.touch(dirty);
        }
    }

    fn is_dirty(&self) -> bool {
        self.entries.values().any(|entry| entry.dirty != Dirty::No || entry.writing.is_some())
    }
}

/// Writes statuses until nobody is left who tells anything.
pub struct UsageWriter {
    pub client: Client,
    pub told: mpsc::UnboundedReceiver<Told>,
    /// Asked before each write.
    pub claim: Claim,
}

impl UsageWriter {
    /// Runs to the end of what is told.
    pub async fn run(mut self) {
        let mut statuses = Statuses::default();
        let mut writes: JoinSet<(Uid, bool)> = JoinSet::new();
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                count = self.told.recv_many(&mut batch, MAX_BATCH) => if count == 0 { return },
                Some(written) = writes.join_next() => match written {
                    Ok((uid, landed)) => statuses.written(uid, landed),
                    Err(error) => warn!(error = %Causes(&error), "a status write broke off"),
                },
                () = sleep(Duration::from_millis(250)), if statuses.is_dirty() => {}
            }
            for told in batch.drain(..) {
                statuses.take(told);
            }
            if self.claim.holds() {
                for (threshold, status) in statuses.due(Instant::now()) {
                    writes.spawn(apply(self.client.clone(), threshold, status));
                }
            }
            sleep(BATCH).await;
        }
    }
}

/// Applies one status; true where it landed, or where there is no such object any more.
async fn apply(client: Client, threshold: UsageRef, status: UsageThresholdStatus) -> (Uid, bool) {
    let UsageRef { uid, namespace, name } = threshold;
    // With the uid an object that was deleted and created anew under this name is left alone.
    let patch = json!({
        "apiVersion": UsageThreshold::api_version(&()),
        "kind": UsageThreshold::kind(&()),
        "metadata": {"name": name, "uid": uid.to_string()},
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let thresholds = Request::new(UsageThreshold::url_path(&(), Some(&namespace)));
    let request = thresholds.patch_subresource("status", &name, &params, &Patch::Apply(&patch));
    let landed = match within(REQUEST, calls::write(&client, request)).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => true,
        Err(error) => {
            if let Some(more) = NOT_WRITTEN.admit() {
                warn!(namespace, threshold = name, more, error = %Causes(&error), "status not written; trying again");
            }
            false
        }
    };
    (uid, landed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{amount::Amount, object::UsageFacts},
        source::usage::{Failure, Reason},
    };

    fn uid(number: u128) -> Uid {
        Uid::from_u128(number)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn found(number: u128, status: UsageThresholdStatus) -> Told {
        let threshold = UsageRef { uid: uid(number), namespace: "ns".into(), name: format!("usage-{number}") };
        Told::Found { threshold, found: Box::new(status) }
    }

    fn measured(number: u128, value: &str, second: i64) -> Told {
        let facts = UsageFacts {
            value: Amount::quantity(value).unwrap(),
            limit: Some(Amount::quantity("1k").unwrap()),
            observed_at: at(second),
            ..UsageFacts::default()
        };
        Told::Measured { uid: uid(number), generation: 1, facts: Box::new(facts) }
    }

    fn failed(number: u128, reason: Reason, second: i64) -> Told {
        let failure = Failure { reason, message: "as the test says".into() };
        Told::Failed { uid: uid(number), generation: 1, failure, at: at(second) }
    }

    fn reached(number: u128, thresholds: &[&str]) -> Told {
        Told::Reached { uid: uid(number), thresholds: thresholds.iter().map(|text| (*text).to_owned()).collect() }
    }

    fn condition(status: &UsageThresholdStatus, kind: &str) -> (String, String) {
        let condition = conditions::get(&status.conditions, kind).unwrap();
        (condition.status.clone(), condition.reason.clone())
    }

    /// What is written at this time, and landed.
    fn write(statuses: &mut Statuses, now: Instant) -> Vec<UsageThresholdStatus> {
        let writes = statuses.due(now);
        for (threshold, _) in &writes {
            statuses.written(threshold.uid, true);
        }
        writes.into_iter().map(|(_, status)| status).collect()
    }

    #[test]
    fn figures_are_written_once_a_minute_and_what_changes_for_users_at_once() {
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
        assert_eq!(failed_once.value.as_deref(), Some("840"), "what was measured last is still known");
        assert_eq!(failed_once.reached, ["80%"]);
        statuses.take(failed(1, Reason::PrometheusNotAllowed, 71));
        assert_eq!(condition(&write(&mut statuses, after(1002))[0], "Stalled").1, "PrometheusNotAllowed");
        statuses.take(Told::Gone(uid(1)));
        statuses.take(measured(1, "1", 72));
        assert!(!statuses.is_dirty());
    }

    #[test]
    fn a_status_that_is_as_it_was_found_is_written_for_its_figures_alone() {
        let mut statuses = Statuses::default();
        statuses.take(found(1, UsageThresholdStatus::default()));
        statuses.take(measured(1, "834", 0));
        statuses.take(reached(1, &["80%"]));
        let known = write(&mut statuses, Instant::now()).remove(0);
        let mut next_leaders = Statuses::default();
        next_leaders.take(found(1, known));
        next_leaders.take(measured(1, "900", 9));
        next_leaders.take(reached(1, &["80%"]));
        assert_eq!(next_leaders.entries[&uid(1)].dirty, Dirty::Figures);
        assert_eq!(write(&mut next_leaders, Instant::now()).len(), 1);
    }

    #[test]
    fn ten_writes_a_second_are_begun_conditions_first_and_one_that_fails_is_made_again() {
        let mut statuses = Statuses::default();
        let begun = Instant::now();
        for number in 0..30 {
            statuses.take(found(number, UsageThresholdStatus::default()));
            statuses.take(measured(number, "1", 0));
        }
        assert_eq!(write(&mut statuses, begun).len(), WRITES_PER_SECOND);
        assert!(write(&mut statuses, begun + Duration::from_millis(999)).is_empty());
        assert_eq!(write(&mut statuses, begun + Duration::from_secs(1)).len(), WRITES_PER_SECOND);
        let (threshold, _) = statuses.due(begun + Duration::from_secs(2)).remove(0);
        statuses.written(threshold.uid, false);
        assert_eq!(statuses.entries[&threshold.uid].dirty, Dirty::Conditions);
        assert!(statuses.is_dirty());
    }
}
