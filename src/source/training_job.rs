//! The source of `TrainingJob` objects, on the training lifecycle.

use jiff::Timestamp;
use kube::Resource;
use serde::{Deserialize, Deserializer};

use super::{
    Malformed, Source,
    metrics::{Metrics, metrics},
    owners::WatchedKinds,
    slim::SlimMeta,
};
use llmtune_api::TrainingJob;
use llmtune_core::event::object::{Facts, Object, TrainingFacts, TrainingStage};

/// The source of training jobs.
#[derive(Debug, Default)]
pub struct TrainingJobs {
    kinds: WatchedKinds,
}

impl TrainingJobs {
    /// The name of the source in event ids.
    pub const NAME: &'static str = "trainingjobs.llmtune.io";

    /// Creates the source. Objects whose controller is of one of these kinds send no events.
    #[must_use]
    pub const fn new(kinds: WatchedKinds) -> Self {
        Self { kinds }
    }
}

/// The fields of a `TrainingJob` that are read.
#[derive(Debug, Deserialize)]
pub struct SlimTrainingJob {
    metadata: SlimMeta,
    #[serde(default)]
    spec: SlimSpec,
    #[serde(default)]
    status: SlimStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SlimSpec {
    base_model: Option<String>,
    training_method: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SlimStatus {
    phase: Option<String>,
    job_id: Option<String>,
    artifact: Option<String>,
    #[serde(deserialize_with = "metrics")]
    metrics: Metrics,
    #[serde(deserialize_with = "time")]
    started_at: Option<Timestamp>,
    #[serde(deserialize_with = "time")]
    completed_at: Option<Timestamp>,
    reason: Option<String>,
    message: Option<String>,
}

impl Source for TrainingJobs {
    type Slim = SlimTrainingJob;

    fn kind(&self) -> &'static str {
        "TrainingJob"
    }

    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn selector(&self) -> Option<&'static str> {
        None
    }

    fn path(&self, namespace: Option<&str>) -> Option<String> {
        Some(TrainingJob::url_path(&(), namespace))
    }

    fn read(&self, slim: SlimTrainingJob) -> Result<Object, Malformed> {
        let SlimTrainingJob { metadata, spec, status } = slim;
        let facts = TrainingFacts {
            stage: status.phase.as_deref().and_then(TrainingStage::parse),
            job_id: status.job_id.filter(|id| !id.is_empty()),
            base_model: spec.base_model,
            training_method: spec.training_method,
            artifact: status.artifact,
            metrics_too_long: status.metrics.too_long,
            metrics: status.metrics.kept,
            progress: None,
            started_at: status.started_at,
            completed_at: status.completed_at,
            reason: status.reason,
            message: status.message,
            // A TrainingJob identifies its runs by `status.jobId`.
            continues: false,
        };
        metadata.object(Facts::Training(facts), &self.kinds)
    }
}

/// Parses a time. An invalid one counts as absent: the apiserver's `date-time` format admits texts that RFC 3339 does
/// not, such as an offset of `+99:99`, and the job must still send its events.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.and_then(|text| text.parse().ok()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use llmtune_core::event::{body::MAX_BYTES, object::Metric};

    #[test]
    fn metrics_are_numbers_and_strings_only() {
        let json = serde_json::json!({
            "metadata": {"uid": "00000000-0000-0000-0000-000000000001", "resourceVersion": "7"},
            "status": {"phase": "Failed", "metrics": {"loss": "NaN", "step": 12, "nested": {"a": 1}, "ok": true, "n": null}}
        });
        let object = TrainingJobs::default().read(serde_json::from_value(json).unwrap()).unwrap();
        let Facts::Training(facts) = object.facts else { panic!("training facts") };
        let expected = [("loss".to_owned(), Metric::Text("NaN".into())), ("step".to_owned(), Metric::Number(12.0))];
        assert_eq!(facts.metrics, BTreeMap::from(expected));
        assert_eq!(facts.stage, Some(TrainingStage::Failed));
    }

    #[test]
    fn integers_beyond_double_precision_become_texts() {
        let json = r#"{
            "metadata": {"uid": "00000000-0000-0000-0000-000000000001", "resourceVersion": "7"},
            "status": {"phase": "Failed", "metrics": {
                "exact": 9007199254740992, "flops": 9007199254740993, "least": -9223372036854775808, "even": 1152921504606846976,
                "round": 9000000000000000000, "huge": 18446744073709551615, "double": 1e21, "ratio": 0.1
            }}
        }"#;
        let object = TrainingJobs::default().read(serde_json::from_str(json).unwrap()).unwrap();
        let Facts::Training(facts) = object.facts else { panic!("training facts") };
        let text = |text: &str| Metric::Text(text.into());
        let expected = [
            ("exact", Metric::Number(9_007_199_254_740_992.0)),
            ("flops", text("9007199254740993")),
            ("least", text("-9223372036854775808")),
            ("even", text("1152921504606846976")),
            ("round", Metric::Number(9e18)),
            ("huge", text("18446744073709551615")),
            ("double", Metric::Number(1e21)),
            ("ratio", Metric::Number(0.1)),
        ];
        assert_eq!(facts.metrics, BTreeMap::from(expected.map(|(name, metric)| (name.to_owned(), metric))));
    }

    #[test]
    fn metrics_that_exceed_a_body_are_all_omitted() {
        let read = |length: usize| {
            let json = serde_json::json!({
                "metadata": {"uid": "00000000-0000-0000-0000-000000000001", "resourceVersion": "7"},
                "status": {"phase": "Running", "metrics": {"a": "x", "long": "x".repeat(length), "z": 1}}
            });
            let object = TrainingJobs::default().read(serde_json::from_value(json).unwrap()).unwrap();
            let Facts::Training(facts) = object.facts else { panic!("training facts") };
            (facts.metrics.len(), facts.metrics_too_long)
        };
        assert_eq!(read(MAX_BYTES - 7), (3, false));
        assert_eq!(read(MAX_BYTES), (0, true));
        assert_eq!(read(3 * MAX_BYTES), (0, true));
    }

    #[test]
    fn invalid_time_counts_as_absent() {
        let json = serde_json::json!({
            "metadata": {"uid": "00000000-0000-0000-0000-000000000001", "resourceVersion": "7"},
            "status": {"phase": "Running", "startedAt": "2025-11-08T14:22:31+99:99", "completedAt": "2025-11-08T14:22:31Z"}
        });
        let object = TrainingJobs::default().read(serde_json::from_value(json).unwrap()).unwrap();
        let Facts::Training(facts) = object.facts else { panic!("training facts") };
        assert_eq!(facts.started_at, None);
        assert!(facts.completed_at.is_some());
    }

    #[test]
    fn unknown_phase_has_no_stage() {
        let json = serde_json::json!({
            "metadata": {"uid": "00000000-0000-0000-0000-000000000001", "resourceVersion": "7"},
            "status": {"phase": "Warming"}
        });
        let object = TrainingJobs::default().read(serde_json::from_value(json).unwrap()).unwrap();
        assert!(matches!(object.facts, Facts::Training(TrainingFacts { stage: None, .. })));
    }
}
