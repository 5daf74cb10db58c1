//! The health of Webhooks in the last hour, minute by minute. Pure.
//!
//! The API reports the current state, not the past. The time before the first look is derived from the condition's
//! transition time and from the known deliveries. After that, the history follows the counters of the status.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;

use crate::selection::{Delivery, Standing};
use llmtune_api::{conditions, webhook::WebhookStatus};

/// Length of the history in minutes.
pub const MINUTES: usize = 60;
/// Maximum number of Webhooks whose counters are followed. Each takes about 2 kB.
const FOLLOWED: usize = 500;
/// A status may show its counters this many seconds late (see `report`). A delivery that ended shortly before the first
/// look may be counted after it.
const LATE: i64 = 6;
/// Seconds in a minute.
const MINUTE: i64 = 60;

/// Whether the endpoint acknowledges deliveries. If a minute has several states, the worst one counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    #[default]
    Unknown,
    Healthy,
    Failing,
}

impl Health {
    /// The status of the condition `Healthy`, and its transition time.
    fn read(status: &WebhookStatus) -> (Self, Option<Timestamp>) {
        conditions::get(&status.conditions, "Healthy").map_or((Self::Unknown, None), |condition| {
            let health = match condition.status.as_str() {
                "True" => Self::Healthy,
                "False" => Self::Failing,
                _ => Self::Unknown,
            };
            (health, Some(condition.last_transition_time.0))
        })
    }
}

/// The events of one minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Minute {
    /// Acknowledged deliveries.
    pub delivered: u64,
    /// Failed attempts.
    pub failed: u64,
    pub health: Health,
}

/// The last hour of a Webhook.
#[derive(Debug, PartialEq, Eq)]
pub struct Hour {
    /// Oldest minute first.
    pub minutes: [Minute; MINUTES],
    /// Start of the time for which the counts are complete.
    pub since: Timestamp,
}

/// The history of one Webhook.
struct Track {
    since: Timestamp,
    /// The health at the first look, and its transition time.
    found: (Health, Option<Timestamp>),
    /// Acknowledged deliveries and failed attempts, as the status last counted them.
    counted: (i64, i64),
    /// The minutes with a look, by their number since 1970; the newest last.
    minutes: VecDeque<(i64, Minute)>,
}

/// The history of all Webhooks, by an arbitrary key.
pub struct History<K> {
    tracks: HashMap<K, Track>,
}

impl<K> Default for History<K> {
    fn default() -> Self {
        Self { tracks: HashMap::new() }
    }
}

impl<K: Eq + std::hash::Hash> History<K> {
    /// Records the current status of a Webhook.
    pub fn observe(&mut self, key: K, status: &WebhookStatus, now: Timestamp) {
        let counts = status.deliveries.unwrap_or_default();
        // Each delivery fails once before each of its retries, and once more if it is given up.
        let counted = (counts.succeeded, counts.retries.saturating_add(counts.failed));
        let found = Health::read(status);
        if self.tracks.len() >= FOLLOWED && !self.tracks.contains_key(&key) {
            return;
        }
        let track = self.tracks.entry(key).or_insert_with(|| Track {
            since: now,
            found,
            counted,
            minutes: VecDeque::with_capacity(MINUTES),
        });
        let number = now.as_second().div_euclid(MINUTE);
        if track.minutes.back().is_none_or(|(last, _)| *last < number) {
            if track.minutes.len() == MINUTES {
                track.minutes.pop_front();
            }
            track.minutes.push_back((number, Minute::default()));
        }
        // A counter that decreases was reset.
        let more = |new: i64, old: i64| u64::try_from(new.saturating_sub(old)).unwrap_or_default();
        if let Some((_, minute)) = track.minutes.back_mut() {
            minute.delivered = minute.delivered.saturating_add(more(counted.0, track.counted.0));
            minute.failed = minute.failed.saturating_add(more(counted.1, track.counted.1));
            minute.health = minute.health.max(found.0);
        }
        track.counted = counted;
    }

    /// Forgets Webhooks that no longer exist.
    pub fn keep(&mut self, exists: impl Fn(&K) -> bool) {
        self.tracks.retain(|key, _| exists(key));
    }

    /// The last hour of a Webhook with this status and these deliveries.
    pub fn hour(&self, key: &K, status: &WebhookStatus, known: &[Delivery], now: Timestamp) -> Hour {
        let track = self.tracks.get(key);
        let (since, found) = track.map_or_else(|| (now, Health::read(status)), |track| (track.since, track.found));
        let first = now.as_second().div_euclid(MINUTE) - (MINUTES as i64 - 1);
        let mut minutes = [Minute::default(); MINUTES];
        let place = |number: i64| usize::try_from(number - first).ok().filter(|place| *place < MINUTES);
        for (number, seen) in track.iter().flat_map(|track| &track.minutes) {
            if let Some(place) = place(*number) {
                minutes[place] = *seen;
            }
        }
        for delivery in known {
            let Some(at) = delivery.at.filter(|at| at.as_second() < since.as_second() - LATE) else { continue };
            let Some(place) = place(at.as_second().div_euclid(MINUTE)) else { continue };
            match delivery.standing {
                Standing::Delivered => minutes[place].delivered = minutes[place].delivered.saturating_add(1),
                Standing::Failed => minutes[place].failed = minutes[place].failed.saturating_add(1),
                Standing::Pending => {}
            }
        }
        if let (health, Some(from)) = found {
            for (place, minute) in minutes.iter_mut().enumerate() {
                let begins = (first + place as i64) * MINUTE;
                if begins + MINUTE > from.as_second() && begins < since.as_second() {
                    minute.health = minute.health.max(health);
                }
            }
        }
        Hour { minutes, since }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use llmtune_api::webhook::DeliverySummary;

    /// Start of a minute, in seconds since 1970.
    const NOW: i64 = 28_333_333 * MINUTE;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(NOW + second).unwrap()
    }

    fn status(succeeded: i64, retries: i64, failed: i64, healthy: &str, since: i64) -> WebhookStatus {
        serde_json::from_value(json!({
            "deliveries": {"succeeded": succeeded, "retries": retries, "failed": failed, "pending": 0, "dropped": 0},
            "conditions": [{
                "type": "Healthy", "status": healthy, "reason": "A", "message": "", "lastTransitionTime": at(since).to_string()
            }]
        }))
        .unwrap()
    }

    fn delivery(result: &str, second: i64) -> Delivery {
        let summary: DeliverySummary = serde_json::from_value(json!({
            "time": at(second).to_string(), "event": "training.started", "eventId": format!("evt_{second}"),
            "object": "trainingjob/a", "result": result, "attempts": 1
        }))
        .unwrap();
        crate::selection::all([], &[summary]).remove(0)
    }

    fn newest(hour: &Hour, number: usize) -> &[Minute] {
        &hour.minutes[MINUTES - number..]
    }

    #[test]
    fn counter_increases_belong_to_the_current_minute() {
        let mut history = History::default();
        history.observe("ci", &status(100, 5, 1, "True", -600), at(0));
        history.observe("ci", &status(102, 5, 1, "True", -600), at(10));
        history.observe("ci", &status(102, 8, 2, "False", 70), at(70));
        let now = status(103, 8, 2, "True", 110);
        history.observe("ci", &now, at(110));
        // A new leader starts with lower counters.
        history.observe("ci", &status(1, 0, 0, "True", 110), at(120));
        history.observe("ci", &status(3, 0, 0, "True", 110), at(121));
        let minute = |delivered, failed, health| Minute { delivered, failed, health };
        let expected = [minute(2, 0, Health::Healthy), minute(1, 4, Health::Failing), minute(2, 0, Health::Healthy)];
        assert_eq!(newest(&history.hour(&"ci", &now, &[], at(125)), 3), expected);
    }

    #[test]
    fn earlier_minutes_come_from_known_deliveries() {
        let mut history = History::default();
        let now = status(100, 5, 1, "False", -100);
        history.observe("ci", &now, at(30));
        let known = [
            delivery("Delivered", -130),
            delivery("Exhausted", 10),
            delivery("Exhausted", 25),
            delivery("Exhausted", 40),
            delivery("Delivered", -4000),
        ];
        let hour = history.hour(&"ci", &now, &known, at(45));
        let minute = |delivered, failed, health| Minute { delivered, failed, health };
        let expected = [
            minute(1, 0, Health::Unknown),
            minute(0, 0, Health::Failing),
            minute(0, 0, Health::Failing),
            minute(0, 1, Health::Failing),
        ];
        assert_eq!(newest(&hour, 4), expected, "the status counts later deliveries");
        assert_eq!(hour.since, at(30));
        assert_eq!(hour.minutes[..MINUTES - 4], [Minute::default(); MINUTES - 4]);
    }

    #[test]
    fn minutes_and_webhooks_are_bounded() {
        let mut history = History::default();
        for minute in 0..200 {
            history.observe(0, &status(minute, 0, 0, "True", -600), at(minute * MINUTE));
        }
        assert_eq!(history.tracks[&0].minutes.len(), MINUTES);
        let hour = history.hour(&0, &WebhookStatus::default(), &[], at(199 * MINUTE));
        assert!(hour.minutes.iter().all(|minute| minute.delivered == 1));
        for number in 0..2000 {
            history.observe(number, &WebhookStatus::default(), at(0));
        }
        assert_eq!(history.tracks.len(), FOLLOWED);
        let beyond = history.hour(&1999, &status(1, 0, 0, "True", -90), &[delivery("Delivered", -10)], at(0));
        assert_eq!(newest(&beyond, 2)[0], Minute { delivered: 1, failed: 0, health: Health::Healthy });
        history.keep(|number| *number == 7);
        assert_eq!(history.tracks.len(), 1);
    }
}
