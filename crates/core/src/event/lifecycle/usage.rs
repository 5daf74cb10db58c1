//! The usage lifecycle: the thresholds of a figure, each armed or reached.
//!
//! - `usage.threshold_reached`: the figure has been at or above a threshold for the time that the spec requires. If it
//!   jumps over several thresholds, one event is sent for each, ascending.
//! - A threshold is armed again once the figure is below it by more than the hysteresis. A new limit also arms
//!   thresholds in percent, because they are other amounts then.
//! - If thresholds are already reached at their first evaluation (a new object, another metric, a threshold added by an
//!   edit), only the highest reached threshold is announced. The others count as reached.
//! - Equal thresholds are one threshold, however they are spelled.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Occurrence, Recalled, Tally};
use crate::event::{
    EventType,
    amount::{Amount, Level},
    id::{Fingerprint, OccurrenceName},
    object::UsageFacts,
    unknown::Unknown,
};

/// The state of one figure. An evaluation that moves no threshold leaves it unchanged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UsageRecord {
    /// The metric of the marks; `None` before the first evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    metric: Option<Fingerprint>,
    /// The limit at the last evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Amount>,
    /// The thresholds by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    marks: BTreeMap<String, Mark>,
    /// The object existed before the record.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    rebuilt: bool,
    /// It is unknown which events were sent up to this generation; 0: none were sent.
    #[serde(skip_serializing_if = "is_zero")]
    unknown_to: i64,
    #[serde(flatten)]
    unknown: Unknown,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// The state of one threshold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Mark {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    reached: bool,
    /// The time since which the figure has been at or above the threshold, while the required time has not passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    /// The figure was at or above the threshold at its first evaluation, and has been ever since.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    found: bool,
    #[serde(skip_serializing_if = "Tally::is_empty")]
    tally: Tally,
    #[serde(flatten)]
    unknown: Unknown,
}

impl UsageRecord {
    /// Starts the record of a figure that was measured before the operator started: it is unknown which events were
    /// sent.
    #[must_use]
    pub fn baseline() -> Self {
        Self { rebuilt: true, ..Self::default() }
    }

    /// Returns the thresholds that are reached, as the spec writes them, ascending.
    #[must_use]
    pub fn reached(&self, facts: &UsageFacts) -> Vec<String> {
        let reached =
            Rung::ladder(facts).into_iter().filter(|rung| self.marks.get(&rung.name).is_some_and(|mark| mark.reached));
        reached.map(|rung| rung.level.text().to_owned()).collect()
    }
}

/// A threshold as an amount.
struct Rung<'a> {
    level: &'a Level,
    name: String,
    /// The threshold is reached at this amount.
    at: Amount,
    /// The threshold is armed again below this amount.
    armed_below: Amount,
}

impl<'a> Rung<'a> {
    /// Returns the distinct thresholds, ascending. If two are equal, the one in percent comes first. Percentages
    /// without a limit are left out.
    fn ladder(facts: &'a UsageFacts) -> Vec<Self> {
        let limit = facts.limit.as_ref();
        let rungs = facts.thresholds.iter().filter_map(|level| {
            let at = level.of(limit)?;
            let hysteresis = facts.hysteresis.of(Some(limit.unwrap_or(&at)))?;
            Some(Self { level, name: level.name(), armed_below: at.minus(&hysteresis), at })
        });
        let mut rungs: Vec<Self> = rungs.collect();
        rungs.sort_by(|a, b| (&a.at, b.level.is_percent(), &a.name).cmp(&(&b.at, a.level.is_percent(), &b.name)));
        rungs.dedup_by(|next, kept| next.name == kept.name);
        rungs
    }
}

/// Processes an evaluation.
#[must_use]
pub fn step(mut record: UsageRecord, facts: &UsageFacts, generation: i64) -> (Vec<Occurrence>, UsageRecord) {
    let metric = Fingerprint::of(&facts.metric);
    if record.metric != Some(metric) {
        record.metric = Some(metric);
        record.marks.clear();
    }
    if std::mem::take(&mut record.rebuilt) {
        record.unknown_to = generation;
    }
    let new_limit = record.limit != facts.limit;
    record.limit.clone_from(&facts.limit);
    let mut known = std::mem::take(&mut record.marks);
    let mut highest = None;
    let mut risen = Vec::new();
    let mut marks = Vec::new();
    for (index, rung) in Rung::ladder(facts).into_iter().enumerate() {
        let over = facts.value >= rung.at;
        let mut mark = known.remove(&rung.name).unwrap_or_else(|| Mark { found: over, ..Mark::default() });
        if new_limit && rung.level.is_percent() {
            mark.reached = false;
            mark.since = None;
        }
        mark.reached &= facts.value >= rung.armed_below;
        mark.found &= over;
        if mark.reached {
            highest = Some(index);
        } else if over {
            // A clock that was set back must not prolong the wait.
            let since = mark.since.map_or(facts.observed_at, |since| since.min(facts.observed_at));
            let held = std::time::Duration::try_from(facts.observed_at.duration_since(since)).unwrap_or_default();
            mark.since = Some(since);
            if held >= facts.hold {
                mark.reached = true;
                mark.since = None;
                highest = Some(index);
                risen.push(index);
            }
        } else {
            mark.since = None;
        }
        marks.push((rung.name, mark));
    }
    let mut occurrences = Vec::new();
    for index in risen {
        let (name, mark) = &mut marks[index];
        let found = std::mem::take(&mut mark.found);
        if found && highest != Some(index) {
            continue;
        }
        // If the object was announced before the baseline, this announcement repeats the same ID at worst.
        if !found && mark.tally.is_empty() && generation <= record.unknown_to {
            mark.tally = Tally::met(generation);
        }
        occurrences.push(Occurrence {
            event: EventType::UsageThresholdReached,
            name: OccurrenceName::Threshold { threshold: name.clone(), generation },
            count: mark.tally.next(generation),
            status: None,
            run: 0,
            recalled: Recalled::default(),
        });
    }
    record.marks = marks.into_iter().collect();
    (occurrences, record)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn levels(texts: &[&str]) -> Vec<Level> {
        texts.iter().map(|text| Level::parse(text).unwrap()).collect()
    }

    fn figure(value: i64, second: i64) -> UsageFacts {
        UsageFacts {
            metric: "tokens".into(),
            value: Amount::quantity(&value.to_string()).unwrap(),
            limit: Some(Amount::quantity("1000").unwrap()),
            thresholds: levels(&["50%", "80%", "950"]),
            hysteresis: Level::parse("5%").unwrap(),
            observed_at: at(second),
            ..UsageFacts::default()
        }
    }

    /// Returns the announcements of each evaluation: thresholds by name, with their count if it is not 1.
    fn sent(mut record: UsageRecord, history: impl IntoIterator<Item = (UsageFacts, i64)>) -> Vec<String> {
        let mut sent = Vec::new();
        for (facts, generation) in history {
            let (occurrences, next) = step(record, &facts, generation);
            sent.push(occurrences.iter().map(spelled).collect::<Vec<_>>().join(" "));
            // The ledger restores the record unchanged.
            record = serde_json::from_value(serde_json::to_value(&next).unwrap()).unwrap();
            assert_eq!(record, next);
        }
        sent
    }

    fn spelled(occurrence: &Occurrence) -> String {
        let OccurrenceName::Threshold { threshold, .. } = &occurrence.name else { panic!("a threshold") };
        let count = if occurrence.count > 1 { format!("#{}", occurrence.count) } else { String::new() };
        format!("{threshold}{count}")
    }

    fn sends(values: &[i64], expected: &[&str]) {
        let history = values.iter().zip(0..).map(|(value, second)| (figure(*value, second), 1));
        assert_eq!(sent(UsageRecord::default(), history), expected, "{values:?}");
    }

    #[test]
    fn a_figure_that_rises_tells_each_threshold_once() {
        sends(&[0, 499, 500, 501, 799, 800, 949, 950, 2000], &["", "", "50%", "", "", "80%", "", "950", ""]);
    }

    #[test]
    fn a_jump_over_several_tells_each_ascending() {
        sends(&[0, 1000], &["", "50% 80% 950"]);
    }

    #[test]
    fn threshold_fires_again_after_falling_below_hysteresis() {
        sends(&[0, 800, 799, 800, 750, 800, 749, 800], &["", "50% 80%", "", "", "", "", "", "80%#2"]);
        let mut none = figure(0, 0);
        none.hysteresis = Level::default();
        let at = |value: i64| UsageFacts { value: Amount::quantity(&value.to_string()).unwrap(), ..none.clone() };
        let history = [at(0), at(500), at(499), at(500)].map(|facts| (facts, 1));
        assert_eq!(sent(UsageRecord::default(), history), ["", "50%", "", "50%#2"]);
    }

    #[test]
    fn percent_hysteresis_without_limit_refers_to_the_threshold() {
        let at = |value: i64| UsageFacts { limit: None, thresholds: levels(&["100", "800"]), ..figure(value, 0) };
        let history = [at(0), at(800), at(761), at(800), at(759), at(800), at(96), at(100), at(94), at(100)];
        let expected = ["", "100 800", "", "", "", "800#2", "", "", "", "100#2"];
        assert_eq!(sent(UsageRecord::default(), history.map(|facts| (facts, 1))), expected);
    }

    #[test]
    fn first_evaluation_sends_only_the_highest_threshold() {
        sends(&[850, 860, 950, 749, 449, 900], &["80%", "", "950", "", "", "50% 80%#2"]);
        sends(&[2000], &["950"]);
        sends(&[10], &[""]);
    }

    #[test]
    fn failures_and_crashes_do_not_interrupt_for() {
        let at = |value, second| (UsageFacts { hold: Duration::from_secs(60), ..figure(value, second) }, 1);
        let history =
            [at(0, 0), at(600, 10), at(600, 69), at(600, 70), at(900, 80), at(799, 90), at(800, 100), at(800, 160)];
        assert_eq!(sent(UsageRecord::default(), history), ["", "", "", "50%", "", "", "", "80%"]);
        // No evaluation for an hour.
        let history = [at(0, 0), at(600, 10), at(600, 3610)];
        assert_eq!(sent(UsageRecord::default(), history), ["", "", "50%"]);
        // The clock was set back.
        let history = [at(0, 0), at(600, 5000), at(600, 10), at(600, 70)];
        assert_eq!(sent(UsageRecord::default(), history), ["", "", "", "50%"]);
    }

    #[test]
    fn thresholds_held_since_the_first_evaluation_fire_once() {
        let at = |value, second| (UsageFacts { hold: Duration::from_secs(60), ..figure(value, second) }, 1);
        assert_eq!(sent(UsageRecord::default(), [at(850, 0), at(850, 60)]), ["", "80%"]);
        let fell = [at(850, 0), at(10, 30), at(850, 40), at(850, 100)];
        assert_eq!(sent(UsageRecord::default(), fell), ["", "", "", "50% 80%"]);
    }

    #[test]
    fn a_new_limit_arms_percentages_and_nothing_else() {
        let with =
            |value, limit: &str| (UsageFacts { limit: Some(Amount::quantity(limit).unwrap()), ..figure(value, 0) }, 1);
        let history = [with(0, "1000"), with(960, "1000"), with(960, "1k"), with(960, "1200"), with(960, "10k")];
        assert_eq!(sent(UsageRecord::default(), history), ["", "50% 80% 950", "", "50%#2 80%#2", ""]);
    }

    #[test]
    fn edit_sends_only_the_highest_added_threshold() {
        let with =
            |texts: &[&str], generation| (UsageFacts { thresholds: levels(texts), ..figure(850, 0) }, generation);
        let history = [
            with(&["80%"], 1),
            with(&["50%", "80%"], 2),
            with(&["50%", "80%", "84%"], 3),
            with(&["80%"], 4),
            with(&["80.0%", "50%"], 5),
        ];
        assert_eq!(sent(UsageRecord::default(), history), ["80%", "", "84%", "", ""]);
    }

    #[test]
    fn another_metric_starts_from_scratch() {
        let other = UsageFacts { metric: "gpus".into(), ..figure(850, 1) };
        assert_eq!(sent(UsageRecord::default(), [(figure(960, 0), 1), (other, 2)]), ["950", "80%"]);
    }

    #[test]
    fn equal_thresholds_are_one() {
        let with = |value, texts: &[&str]| (UsageFacts { thresholds: levels(texts), ..figure(value, 0) }, 1);
        let spellings = ["50%", "050.0%", "500", "0.5k", "500000m"];
        assert_eq!(sent(UsageRecord::default(), [with(0, &spellings), with(500, &spellings)]), ["", "50% 500"]);
        let facts = with(500, &["0.5k", "500"]).0;
        let (_, record) = step(UsageRecord::default(), &facts, 1);
        assert_eq!(record.reached(&facts), ["0.5k"]);
    }

    #[test]
    fn rebuilt_ledger_repeats_only_the_first_crossing() {
        let history = [(figure(850, 0), 3), (figure(950, 1), 3), (figure(10, 2), 3), (figure(800, 3), 3)];
        assert_eq!(sent(UsageRecord::baseline(), history), ["80%", "950#2", "", "50%#2 80%#2"]);
        let edited = [(figure(10, 0), 3), (figure(800, 1), 4)];
        assert_eq!(sent(UsageRecord::baseline(), edited), ["", "50% 80%"]);
    }

    fn history() -> impl Strategy<Value = Vec<(UsageFacts, i64)>> {
        let spec = (
            proptest::sample::subsequence(vec!["10%", "50%", "80%", "80.0%", "300", "800", "0.8k", "950"], 1..6),
            proptest::sample::select(vec![800, 1000, 2000]),
            proptest::sample::select(vec!["0%", "5%", "40"]),
            proptest::sample::select(vec![0, 0, 20]),
            proptest::sample::select(vec!["tokens", "tokens", "gpus"]),
        );
        let edit = proptest::option::weighted(0.15, spec.clone());
        let steps = proptest::collection::vec((edit, 0..1200_i64, 1..15_i64), 1..60);
        (spec, steps).prop_map(|(mut spec, steps)| {
            let (mut generation, mut second) = (1, 0);
            let steps = steps.into_iter().map(|(edit, value, pause)| {
                if let Some(edit) = edit {
                    spec = edit;
                    generation += 1;
                }
                second += pause;
                let (texts, limit, hysteresis, hold, metric) = &spec;
                let facts = UsageFacts {
                    metric: (*metric).into(),
                    limit: Some(Amount::quantity(&limit.to_string()).unwrap()),
                    thresholds: levels(texts),
                    hysteresis: Level::parse(hysteresis).unwrap(),
                    hold: Duration::from_secs(*hold),
                    ..figure(value, second)
                };
                (facts, generation)
            });
            steps.collect()
        })
    }

    proptest! {
        #[test]
        fn crossings_are_unique_ascending_and_true(
            history in history(), baseline in any::<bool>(),
        ) {
            let mut record = if baseline { UsageRecord::baseline() } else { UsageRecord::default() };
            let mut seen = HashSet::new();
            for (index, (facts, generation)) in history.into_iter().enumerate() {
                let (occurrences, next) = step(record, &facts, generation);
                let mut before = None;
                for occurrence in &occurrences {
                    prop_assert!(seen.insert((occurrence.name.clone(), occurrence.count)));
                    let OccurrenceName::Threshold { threshold, generation: of } = &occurrence.name else { panic!("a threshold") };
                    prop_assert_eq!(*of, generation);
                    let at = Level::parse(threshold).unwrap().of(facts.limit.as_ref()).unwrap();
                    prop_assert!(facts.value >= at, "{} is told at {}", threshold, facts.value);
                    prop_assert!(before.is_none_or(|before| before <= at));
                    before = Some(at);
                }
                if index == 0 {
                    prop_assert!(occurrences.len() <= 1);
                }
                let reached = next.reached(&facts);
                for occurrence in &occurrences {
                    let OccurrenceName::Threshold { threshold, .. } = &occurrence.name else { panic!("a threshold") };
                    prop_assert!(reached.iter().any(|text| Level::parse(text).unwrap().name() == *threshold));
                }
                let (again, same) = step(next.clone(), &facts, generation);
                prop_assert!(again.is_empty());
                prop_assert_eq!(&same, &next, "an evaluation that moves nothing dirties nothing");
                record = next;
            }
        }

        /// An independent model of the rule: without hold and edits, each threshold is a separate switch.
        #[test]
        fn threshold_fires_once_per_rise_from_below_hysteresis(
            values in proptest::collection::vec(0..1200_i64, 1..60),
        ) {
            let mut record = UsageRecord::default();
            let mut sent = [0, 0, 0];
            let mut expected = [0, 0, 0];
            let mut armed = [true; 3];
            for (index, value) in values.into_iter().enumerate() {
                let (occurrences, next) = step(record, &figure(value, index as i64), 1);
                for occurrence in &occurrences {
                    let threshold = spelled(occurrence);
                    sent[["50%", "80%", "950"].iter().position(|name| threshold.starts_with(name)).unwrap()] += 1;
                }
                let highest = [500, 800, 950].iter().rposition(|at| value >= *at);
                for (rung, at) in [500, 800, 950].into_iter().enumerate() {
                    if value >= at && std::mem::replace(&mut armed[rung], false) {
                        expected[rung] += usize::from(index > 0 || highest == Some(rung));
                    } else if value < at - 50 {
                        armed[rung] = true;
                    }
                }
                record = next;
            }
            prop_assert_eq!(sent, expected);
        }
    }
}
