//! The serving lifecycle: Pending, Available, Deployed, Paused.
//!
//! - `deployment.created`: first active (Available or Deployed). `deployment.paused`: was active and is at zero, unless an
//!   autoscaler idles it. `deployment.resumed`: active again after paused. `deployment.deleted`: gone after it was active.
//! - `model.deployed`: Deployed, and its (model id, version) differs from the one last announced. No model id, no event.

use serde::{Deserialize, Serialize};

use super::{Occurrence, Tally};
use crate::event::{
    EventType,
    id::OccurrenceName,
    object::{ServingFacts, ServingStage},
    unknown::Unknown,
};

/// A model id and its version.
pub type Model = (String, Option<String>);

/// What being at zero replicas meant when it was reached. It is decided once: an annotation that changes later moves
/// nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Zero {
    /// It is not at zero.
    #[default]
    No,
    /// An autoscaler idles it.
    Idle,
    /// It was paused, and that was announced.
    Paused,
}

/// What the lifecycle remembers of one deployment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServingRecord {
    /// It has been active once.
    pub active: bool,
    /// Whether and why it is at zero.
    pub zero: Zero,
    /// The model last announced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announced: Option<Box<Model>>,
    #[serde(skip_serializing_if = "Tally::is_empty")]
    deployed: Tally,
    #[serde(skip_serializing_if = "Tally::is_empty")]
    paused: Tally,
    #[serde(skip_serializing_if = "Tally::is_empty")]
    resumed: Tally,
    #[serde(flatten)]
    unknown: Unknown,
}

impl ServingRecord {
    /// A deployment that was there before the operator was: what it serves counts as announced.
    #[must_use]
    pub fn baseline(facts: &ServingFacts, generation: i64) -> Self {
        let stage = facts.stage;
        let serving = matches!(stage, Some(ServingStage::Available | ServingStage::Deployed));
        let at_zero = stage == Some(ServingStage::Paused);
        // A deployment that was created at zero and never changed has generation 1, and has never been active.
        let paused = at_zero && generation > 1;
        let rolled_out = facts.rolled_out && stage.is_some();
        let met = Tally::met(generation);
        Self {
            active: serving || paused || (rolled_out && !at_zero),
            zero: match (paused, facts.autoscaled) {
                (false, _) => Zero::No,
                (true, true) => Zero::Idle,
                (true, false) => Zero::Paused,
            },
            announced: if rolled_out || stage == Some(ServingStage::Deployed) {
                model(facts).map(Box::new)
            } else {
                None
            },
            deployed: met,
            paused: met,
            resumed: met,
            unknown: Unknown::NONE,
        }
    }

    /// Whether the deployment's going would be an event, so that its facts must be kept.
    #[must_use]
    pub const fn would_mind_going(&self) -> bool {
        self.active
    }
}

fn model(facts: &ServingFacts) -> Option<Model> {
    facts.model_id.clone().map(|id| (id, facts.version.clone()))
}

const fn occurrence(event: EventType, generation: i64, count: u32) -> Occurrence {
    Occurrence { event, name: OccurrenceName::Generation(generation), count, status: None, run: 0 }
}

/// What an observed state of the deployment means.
#[must_use]
pub fn step(mut record: ServingRecord, facts: &ServingFacts, generation: i64) -> (Vec<Occurrence>, ServingRecord) {
    let mut occurrences = Vec::new();
    match facts.stage {
        None | Some(ServingStage::Pending) => {}
        Some(stage @ (ServingStage::Available | ServingStage::Deployed)) => {
            if !record.active {
                record.active = true;
                occurrences.push(occurrence(EventType::DeploymentCreated, generation, 1));
            } else if record.zero == Zero::Paused {
                let count = record.resumed.next(generation);
                occurrences.push(occurrence(EventType::DeploymentResumed, generation, count));
            }
            record.zero = Zero::No;
            if stage == ServingStage::Deployed
                && let Some(model) = model(facts)
                && record.announced.as_deref() != Some(&model)
            {
                record.announced = Some(Box::new(model));
                let count = record.deployed.next(generation);
                occurrences.push(occurrence(EventType::ModelDeployed, generation, count));
            }
        }
        Some(ServingStage::Paused) => {
            if record.active && record.zero == Zero::No {
                if facts.autoscaled {
                    record.zero = Zero::Idle;
                } else {
                    record.zero = Zero::Paused;
                    let count = record.paused.next(generation);
                    occurrences.push(occurrence(EventType::DeploymentPaused, generation, count));
                }
            }
        }
    }
    (occurrences, record)
}

/// What it means that the deployment is gone. Its final state, where known, has been stepped before.
#[must_use]
pub fn gone(record: &ServingRecord, generation: i64) -> Vec<Occurrence> {
    if record.active { vec![occurrence(EventType::DeploymentDeleted, generation, 1)] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn facts() -> impl Strategy<Value = ServingFacts> {
        let stage = prop_oneof![
            Just(None),
            Just(Some(ServingStage::Pending)),
            Just(Some(ServingStage::Available)),
            Just(Some(ServingStage::Deployed)),
            Just(Some(ServingStage::Paused)),
        ];
        (stage, proptest::option::of(0..3_u8), proptest::bool::weighted(0.2), any::<bool>()).prop_map(
            |(stage, version, autoscaled, rolled_out)| ServingFacts {
                stage,
                model_id: version.map(|_| "m".into()),
                version: version.map(|version| version.to_string()),
                autoscaled,
                rolled_out,
                ..ServingFacts::default()
            },
        )
    }

    fn at(stage: ServingStage, version: &str) -> ServingFacts {
        ServingFacts {
            stage: Some(stage),
            model_id: Some("m".into()),
            version: Some(version.into()),
            ..ServingFacts::default()
        }
    }

    fn names(history: &[ServingFacts]) -> Vec<&'static str> {
        let mut record = ServingRecord::default();
        let mut names = Vec::new();
        for (generation, facts) in history.iter().enumerate() {
            let (occurrences, next) = step(record, facts, generation as i64);
            names.extend(occurrences.iter().map(|occurrence| occurrence.event.name()));
            record = next;
        }
        names.extend(gone(&record, 99).iter().map(|occurrence| occurrence.event.name()));
        names
    }

    #[test]
    fn a_life_from_creation_over_a_rollback_and_a_pause_to_deletion_tells_each_change_once() {
        use ServingStage::{Available, Deployed, Paused, Pending};
        let life = [
            at(Pending, "1"),
            at(Available, "1"),
            at(Deployed, "1"),
            at(Available, "2"),
            at(Deployed, "2"),
            at(Available, "2"),
            at(Deployed, "2"),
            at(Deployed, "1"),
            at(Paused, "1"),
            at(Paused, "1"),
            at(Available, "1"),
            at(Deployed, "1"),
        ];
        let expected = [
            "deployment.created",
            "model.deployed",
            "model.deployed",
            "model.deployed",
            "deployment.paused",
            "deployment.resumed",
            "deployment.deleted",
        ];
        assert_eq!(names(&life), expected);
    }

    #[test]
    fn what_never_served_is_neither_paused_nor_deleted() {
        assert!(names(&[at(ServingStage::Pending, "1"), at(ServingStage::Paused, "1")]).is_empty());
    }

    #[test]
    fn an_autoscaler_idling_it_is_no_pause_whatever_becomes_of_the_annotation_later() {
        let idle = ServingFacts { autoscaled: true, ..at(ServingStage::Paused, "1") };
        let life =
            [at(ServingStage::Deployed, "1"), idle, at(ServingStage::Paused, "1"), at(ServingStage::Deployed, "1")];
        assert_eq!(names(&life), ["deployment.created", "model.deployed", "deployment.deleted"]);
    }

    #[test]
    fn a_rollout_that_was_under_way_at_the_baseline_is_announced_when_it_completes_and_flapping_is_not() {
        let rolling = at(ServingStage::Available, "2");
        let (occurrences, _) = step(ServingRecord::baseline(&rolling, 4), &at(ServingStage::Deployed, "2"), 4);
        assert_eq!(occurrences.iter().map(|o| o.event).collect::<Vec<_>>(), [EventType::ModelDeployed]);

        let flapping = ServingFacts { rolled_out: true, ..at(ServingStage::Pending, "2") };
        let (occurrences, _) = step(ServingRecord::baseline(&flapping, 4), &at(ServingStage::Deployed, "2"), 4);
        assert!(occurrences.is_empty());
    }

    proptest! {
        #[test]
        fn no_event_is_named_twice_none_is_sent_for_a_repeat_and_pauses_and_resumes_alternate(
            history in proptest::collection::vec((facts(), 0..2_i64), 0..60), baseline in any::<bool>(),
        ) {
            let mut record = ServingRecord::default();
            let mut generation = 1;
            let mut seen = HashSet::new();
            let mut paused = false;
            for (index, (facts, growth)) in history.into_iter().enumerate() {
                generation += growth;
                if index == 0 && baseline {
                    record = ServingRecord::baseline(&facts, generation);
                    paused = record.zero == Zero::Paused;
                }
                let (occurrences, next) = step(record, &facts, generation);
                if index == 0 && baseline {
                    prop_assert!(occurrences.is_empty(), "a baseline sends nothing for the past");
                }
                for occurrence in &occurrences {
                    prop_assert!(seen.insert((occurrence.event, occurrence.name.clone(), occurrence.count)));
                    match occurrence.event {
                        EventType::DeploymentPaused => { prop_assert!(!paused); paused = true; }
                        EventType::DeploymentResumed => { prop_assert!(paused); paused = false; }
                        EventType::ModelDeployed => prop_assert!(facts.model_id.is_some()),
                        _ => {}
                    }
                }
                if facts.stage.is_none() || facts.stage == Some(ServingStage::Pending) {
                    prop_assert!(occurrences.is_empty());
                }
                let (again, same) = step(next.clone(), &facts, generation);
                prop_assert!(again.is_empty());
                prop_assert_eq!(&same, &next);
                record = next;
            }
        }
    }
}
