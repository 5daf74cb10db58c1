//! The serving lifecycle: Pending, Available, Deployed, Paused.
//!
//! - `deployment.created`: the deployment is active (Available or Deployed) for the first time. `deployment.paused`: it
//!   was active and is at zero replicas, unless an autoscaler idles it. `deployment.resumed`: it is active again after
//!   a pause. `deployment.deleted`: it was active once and is deleted.
//! - `model.deployed`: the deployment is Deployed, and its model ID or version differs from the last announced one.
//!   Without a model ID there is no event. If the facts name the rollout's revision, the revision is compared instead,
//!   because the model may be named before its rollout begins.
//! - `deployment.paused`, `.resumed` and `.deleted` contain the model announced last, whatever is being rolled out.

use serde::{Deserialize, Serialize};

use super::{AnnouncedModel, Occurrence, Recalled, Tally};
use crate::event::{
    EventType,
    id::{Fingerprint, OccurrenceName},
    object::{ServingFacts, ServingStage},
    unknown::Unknown,
};

/// A model ID and its version.
pub type Model = (String, Option<String>);

/// The meaning of zero replicas, decided when zero is reached: an annotation that changes later has no effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Zero {
    /// Not at zero.
    #[default]
    No,
    /// An autoscaler idles it.
    Idle,
    /// Paused, and the pause was announced.
    Paused,
}

/// The state of one deployment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServingRecord {
    /// It was active once.
    pub active: bool,
    pub zero: Zero,
    /// The model announced last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announced: Option<Box<Model>>,
    /// The model at creation, until a model is announced.
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<Box<Model>>,
    /// The revision of the rollout announced last.
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<Fingerprint>,
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
    /// Starts the record of a deployment that existed before the operator started: the model it serves counts as
    /// announced.
    #[must_use]
    pub fn baseline(facts: &ServingFacts, generation: i64) -> Self {
        let stage = facts.stage;
        let serving = matches!(stage, Some(ServingStage::Available | ServingStage::Deployed));
        let at_zero = stage == Some(ServingStage::Paused);
        // A deployment that was created at zero and never changed has generation 1, and was never active.
        let paused = at_zero && generation > 1;
        let rolled_out = facts.rolled_out && stage.is_some();
        let met = Tally::met(generation);
        let complete = rolled_out || stage == Some(ServingStage::Deployed);
        Self {
            active: serving || paused || (rolled_out && !at_zero),
            zero: match (paused, facts.autoscaled) {
                (false, _) => Zero::No,
                (true, true) => Zero::Idle,
                (true, false) => Zero::Paused,
            },
            announced: model(facts).filter(|_| complete).map(Box::new),
            created: None,
            revision: revision(facts).filter(|_| complete),
            deployed: met,
            paused: met,
            resumed: met,
            unknown: Unknown::NONE,
        }
    }

    /// Starts the record of a deployment whose earlier record may be gone. The model it serves is announced. No ID of
    /// this generation is used again, because it is unknown which ones were sent.
    #[must_use]
    pub fn unremembered(generation: i64) -> Self {
        let met = Tally::met(generation);
        Self { deployed: met, paused: met, resumed: met, ..Self::default() }
    }

    /// Reports whether deletion would be an event, so that the facts must be kept.
    #[must_use]
    pub const fn emits_on_delete(&self) -> bool {
        self.active
    }

    /// Returns the model that serves or served last.
    fn serves(&self) -> AnnouncedModel {
        let known = self.announced.as_ref().or(self.created.as_ref());
        known.map_or(AnnouncedModel::Unknown, |model| AnnouncedModel::Last(model.clone()))
    }

    /// Reports whether the deployed model must be announced, and records it.
    fn announces(&mut self, facts: &ServingFacts) -> bool {
        let Some(model) = model(facts) else { return false };
        let (before, now) = (self.revision, revision(facts));
        self.revision = now.or(before);
        let differs = match (before, now) {
            (Some(before), Some(now)) => before != now,
            _ => self.announced.as_deref() != Some(&model),
        };
        if differs {
            self.announced = Some(Box::new(model));
        }
        self.created = None;
        differs
    }
}

fn revision(facts: &ServingFacts) -> Option<Fingerprint> {
    facts.revision.as_deref().map(Fingerprint::of)
}

fn model(facts: &ServingFacts) -> Option<Model> {
    facts.model_id.clone().map(|id| (id, facts.version.clone()))
}

fn occurrence(event: EventType, generation: i64, count: u32, model: AnnouncedModel) -> Occurrence {
    let recalled = Recalled { model, ..Recalled::default() };
    Occurrence { event, name: OccurrenceName::Generation(generation), count, status: None, run: 0, recalled }
}

/// Processes an observed state of the deployment.
#[must_use]
pub fn step(mut record: ServingRecord, facts: &ServingFacts, generation: i64) -> (Vec<Occurrence>, ServingRecord) {
    let mut occurrences = Vec::new();
    match facts.stage {
        None | Some(ServingStage::Pending) => {}
        Some(stage @ (ServingStage::Available | ServingStage::Deployed)) => {
            if !record.active {
                record.active = true;
                record.created = model(facts).map(Box::new);
                occurrences.push(occurrence(EventType::DeploymentCreated, generation, 1, AnnouncedModel::Named));
            } else if record.zero == Zero::Paused {
                // The revisions before the pause no longer exist, and their names may start again from the first.
                record.revision = None;
                let count = record.resumed.next(generation);
                occurrences.push(occurrence(EventType::DeploymentResumed, generation, count, record.serves()));
            }
            record.zero = Zero::No;
            if stage == ServingStage::Deployed && record.announces(facts) {
                let count = record.deployed.next(generation);
                occurrences.push(occurrence(EventType::ModelDeployed, generation, count, AnnouncedModel::Named));
            }
        }
        Some(ServingStage::Paused) => {
            if record.active && record.zero == Zero::No {
                if facts.autoscaled {
                    record.zero = Zero::Idle;
                } else {
                    record.zero = Zero::Paused;
                    let count = record.paused.next(generation);
                    occurrences.push(occurrence(EventType::DeploymentPaused, generation, count, record.serves()));
                }
            }
        }
    }
    (occurrences, record)
}

/// Returns the occurrences of a deletion. The final state, if known, was processed before.
#[must_use]
pub fn gone(record: &ServingRecord, generation: i64) -> Vec<Occurrence> {
    if !record.active {
        return Vec::new();
    }
    vec![occurrence(EventType::DeploymentDeleted, generation, 1, record.serves())]
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
    fn each_change_of_a_deployment_is_sent_once() {
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

    /// Returns each event with the version in its payload.
    fn versions(record: ServingRecord, history: &[ServingFacts]) -> Vec<String> {
        let mut record = record;
        let mut sent = Vec::new();
        let version = |occurrence: &Occurrence, facts: &ServingFacts| {
            let version = match &occurrence.recalled.model {
                AnnouncedModel::Named => facts.version.clone(),
                AnnouncedModel::Last(model) => model.1.clone(),
                AnnouncedModel::Unknown => None,
            };
            format!("{} {}", occurrence.event.name().rsplit('.').next().unwrap(), version.unwrap_or_default())
        };
        for (generation, facts) in history.iter().enumerate() {
            let (occurrences, next) = step(record, facts, generation as i64);
            sent.extend(occurrences.iter().map(|occurrence| version(occurrence, facts)));
            record = serde_json::from_value(serde_json::to_value(&next).unwrap()).unwrap();
            assert_eq!(record, next);
        }
        let last = history.last().unwrap();
        sent.extend(gone(&record, 99).iter().map(|occurrence| version(occurrence, last)));
        sent
    }

    #[test]
    fn events_name_the_model_that_served() {
        use ServingStage::{Available, Deployed, Paused, Pending};
        let stuck = [at(Available, "1"), at(Deployed, "1"), at(Available, "2"), at(Pending, "2")];
        assert_eq!(versions(ServingRecord::default(), &stuck), ["created 1", "deployed 1", "deleted 1"]);
        let at_zero = [at(Deployed, "1"), at(Paused, "2"), at(Paused, "3"), at(Available, "3"), at(Deployed, "3")];
        let expected = ["created 1", "deployed 1", "paused 1", "resumed 1", "deployed 3", "deleted 3"];
        assert_eq!(versions(ServingRecord::default(), &at_zero), expected);
        // No model was deployed, so the one at creation is used.
        let first = [at(Available, "1"), at(Available, "2")];
        assert_eq!(versions(ServingRecord::default(), &first), ["created 1", "deleted 1"]);
        // It is unknown which model served at the baseline.
        let rolling = at(Available, "2");
        let baseline = || ServingRecord::baseline(&rolling, 4);
        assert_eq!(versions(baseline(), std::slice::from_ref(&rolling)), ["deleted "]);
        assert_eq!(versions(baseline(), &[rolling.clone(), at(Deployed, "2")]), ["deployed 2", "deleted 2"]);
    }

    #[test]
    fn model_may_be_known_before_its_rollout() {
        use ServingStage::{Available, Deployed, Paused};
        let at = |stage, version: &str, revision: &str| ServingFacts {
            revision: Some(revision.into()),
            ..at(stage, version)
        };
        let life = [
            at(Deployed, "1", "a"),
            at(Deployed, "2", "a"),
            at(Available, "2", "a"),
            at(Deployed, "2", "b"),
            at(Deployed, "2", "b"),
            at(Deployed, "1", "a"),
            at(Deployed, "1", "c"),
        ];
        let expected = ["created 1", "deployed 1", "deployed 2", "deployed 1", "deployed 1", "deleted 1"];
        assert_eq!(versions(ServingRecord::default(), &life), expected);
        // After a pause, revision names may start again from the first.
        let paused = [at(Deployed, "1", "a"), at(Paused, "2", "a"), at(Deployed, "2", "a"), at(Deployed, "3", "a")];
        let expected = ["created 1", "deployed 1", "paused 1", "resumed 1", "deployed 2", "deleted 2"];
        assert_eq!(versions(ServingRecord::default(), &paused), expected);
        // A record of the previous release has no revision, and remains valid.
        let old: ServingRecord = serde_json::from_str(r#"{"active":true,"zero":"No","announced":["m","1"]}"#).unwrap();
        assert_eq!(versions(old, &[at(Deployed, "1", "a"), at(Deployed, "1", "b")]), ["deployed 1", "deleted 1"]);
    }

    #[test]
    fn what_never_served_is_neither_paused_nor_deleted() {
        assert!(names(&[at(ServingStage::Pending, "1"), at(ServingStage::Paused, "1")]).is_empty());
    }

    #[test]
    fn autoscaler_scaling_to_zero_is_not_a_pause() {
        let idle = ServingFacts { autoscaled: true, ..at(ServingStage::Paused, "1") };
        let life =
            [at(ServingStage::Deployed, "1"), idle, at(ServingStage::Paused, "1"), at(ServingStage::Deployed, "1")];
        assert_eq!(names(&life), ["deployment.created", "model.deployed", "deployment.deleted"]);
    }

    #[test]
    fn rollout_in_progress_at_the_baseline_is_announced() {
        let rolling = at(ServingStage::Available, "2");
        let (occurrences, _) = step(ServingRecord::baseline(&rolling, 4), &at(ServingStage::Deployed, "2"), 4);
        assert_eq!(occurrences.iter().map(|o| o.event).collect::<Vec<_>>(), [EventType::ModelDeployed]);

        let flapping = ServingFacts { rolled_out: true, ..at(ServingStage::Pending, "2") };
        let (occurrences, _) = step(ServingRecord::baseline(&flapping, 4), &at(ServingStage::Deployed, "2"), 4);
        assert!(occurrences.is_empty());
    }

    proptest! {
        #[test]
        fn serving_events_are_unique_and_pauses_alternate(
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
