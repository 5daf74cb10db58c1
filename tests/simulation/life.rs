//! Random changes of an object.

use std::collections::BTreeMap;

use jiff::Timestamp;
use llmtune_core::event::object::{Facts, Metric, ServingFacts, ServingStage, TrainingFacts, TrainingStage};

use crate::random::Random;

/// Times from this second on are later than every object's creation.
const NEWS: i64 = 1_900_000_000;
/// Times between this second and `NEWS` are earlier than every object's creation.
const PAST: i64 = 1_700_000_000;

/// A job that is restored from a backup with its status.
pub fn restored(random: &mut Random, serial: i64) -> Facts {
    let then = Timestamp::from_second(PAST + serial).ok();
    let (stage, completed_at) = [
        (TrainingStage::Running, None),
        (TrainingStage::Suspended, None),
        (TrainingStage::Completed, then),
        (TrainingStage::Failed, then),
    ][random.below(4)];
    Facts::Training(TrainingFacts { stage: Some(stage), started_at: then, completed_at, ..TrainingFacts::default() })
}

/// The facts and the generation after a change. `serial` is unique: it identifies runs.
pub fn next(random: &mut Random, facts: &Facts, generation: i64, serial: i64) -> (Facts, i64) {
    match facts {
        Facts::Training(facts) => (Facts::Training(train(random, facts, serial)), generation),
        Facts::Serving(facts) => {
            let (facts, generation) = serve(random, facts, generation);
            (Facts::Serving(facts), generation)
        }
        // Measured figures have no history in the store.
        Facts::Usage(facts) => (Facts::Usage(facts.clone()), generation),
    }
}

// Arms are grouped by the job's current stage, so several have the same result.
#[allow(clippy::match_same_arms)]
fn train(random: &mut Random, facts: &TrainingFacts, serial: i64) -> TrainingFacts {
    use TrainingStage::{Cancelled, Completed, Failed, Pending, Running, Suspended};
    let begun = Timestamp::from_second(NEWS + serial).ok();
    let same = facts.started_at;
    let (stage, started_at) = match (facts.stage.unwrap_or(Pending), random.below(100)) {
        (Pending, 0..70) | (Completed | Failed, 0..35) => (Running, begun),
        (Pending, 70..80) => (Suspended, same),
        (Pending, 80..90) => (Completed, begun),
        (Pending, 90..95) => (Cancelled, same),
        (Suspended, 0..40) => (Running, begun),
        (Suspended, 40..60) => (Running, same.or(begun)),
        (Suspended, 60..80) | (Running, 65..72) => (Pending, same),
        (Running, 0..40) => (Completed, same),
        (Running, 40..52) => (Failed, same),
        (Running, 52..57) => (Cancelled, same),
        (Running, 57..65) => (Suspended, same),
        (Running, 72..80) => (Running, begun),
        (stage, _) => (stage, same),
    };
    let message = Some(format!("step {serial}"));
    let completed_at = facts.completed_at.filter(|_| (facts.stage, same) == (Some(stage), started_at));
    let continues = facts.continues;
    TrainingFacts { stage: Some(stage), started_at, completed_at, message, continues, ..TrainingFacts::default() }
}

fn serve(random: &mut Random, facts: &ServingFacts, mut generation: i64) -> (ServingFacts, i64) {
    use ServingStage::{Available, Deployed, Paused, Pending};
    let mut facts = facts.clone();
    let roll = random.below(100);
    let stage = match (facts.stage.unwrap_or(Pending), roll) {
        (Pending, 0..50) | (Paused, 0..35) => Available,
        (Pending, 50..80) | (Available, 0..40) | (Paused, 35..80) => Deployed,
        (Available | Deployed, 40..50) => Pending,
        (Available, 50..75) | (Deployed, 0..40) => Paused,
        (Deployed, 50..90) => {
            facts.version = Some(random.below(3).to_string());
            if roll < 70 {
                facts.rolled_out = false;
                Available
            } else {
                Deployed
            }
        }
        (stage, _) => stage,
    };
    facts.rolled_out |= stage == Deployed;
    facts.autoscaled = stage == Paused && (facts.autoscaled || (facts.stage != Some(Paused) && random.chance(5)));
    // Scaling an existing Deployment to zero increases its generation.
    if (stage == Paused && generation == 1) || random.chance(10) {
        generation += 1;
    }
    facts.stage = Some(stage);
    (facts, generation)
}

/// Makes the events of a job almost as large as allowed, so that not all changes fit into one flush.
pub fn inflate(facts: &mut Facts) {
    if let Facts::Training(facts) = facts {
        facts.metrics = BTreeMap::from([("log".into(), Metric::Text("-".repeat(250_000)))]);
    }
}

pub fn first(random: &mut Random, kind: usize) -> Facts {
    if crate::store::KINDS[kind].serving {
        let version = Some(random.below(3).to_string());
        let stage = Some(ServingStage::Pending);
        return Facts::Serving(ServingFacts { stage, model_id: Some("m".into()), version, ..ServingFacts::default() });
    }
    // Covers runs that a new start time ends, and runs that continue under it.
    let continues = random.chance(50);
    Facts::Training(TrainingFacts { stage: Some(TrainingStage::Pending), continues, ..TrainingFacts::default() })
}
