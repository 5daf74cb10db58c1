use kube::core::GroupVersionKind;
use prometheus::IntCounter;
use serde_json::json;

use super::*;
use llmtune_api::webhook_source::WebhookSourceSpec;
use llmtune_core::event::object::{Metric, TrainingStage};

fn spec(lifecycle: &str, stages: &[(&str, &str)], data: &Value) -> WebhookSourceSpec {
    let stages: Vec<Value> = stages.iter().map(|(stage, when)| json!({"stage": stage, "when": when})).collect();
    let resource = json!({"apiVersion": "batch/v1", "kind": "Job"});
    serde_json::from_value(json!({"resource": resource, "lifecycle": lifecycle, "stages": stages, "data": data}))
        .unwrap()
}

fn source_of(spec: &WebhookSourceSpec) -> CustomSource {
    let failures = Arc::new(Failures::new(IntCounter::new("errors", "of a source").unwrap()));
    CustomSource::new(Arc::new(Mapping::compile("jobs", spec).unwrap()), WatchedKinds::default(), failures)
}

fn read(source: &CustomSource, mut object: Value) -> Object {
    object["metadata"]["uid"] = json!("00000000-0000-0000-0000-000000000007");
    object["metadata"]["resourceVersion"] = json!("11");
    source.read(serde_json::value::to_raw_value(&object).unwrap()).unwrap()
}

fn training(object: Object) -> TrainingFacts {
    let Facts::Training(facts) = object.facts else { panic!("training facts") };
    facts
}

const STAGES: [(&str, &str); 2] = [
    ("Completed", "object.status.conditions.exists(c, c.type == 'Complete' && c.status == 'True')"),
    ("Running", "object.status.ready > 0"),
];

#[test]
fn first_true_stage_wins_and_without_one_the_stage_stays() {
    let source = source_of(&spec("Training", &STAGES, &json!({})));
    let complete = json!([{"type": "Suspended", "status": "False"}, {"type": "Complete", "status": "True"}]);
    for (status, stage) in [
        (json!({"conditions": complete, "ready": 1}), Some(TrainingStage::Completed)),
        (json!({"ready": 1}), Some(TrainingStage::Running)),
        (json!({"ready": 0}), None),
        (json!({}), None),
        (Value::Null, None),
    ] {
        let object = read(&source, json!({"metadata": {"name": "a", "namespace": "ns"}, "status": status}));
        assert_eq!(object.kind.as_ref().map(|kind| kind.kind.as_str()), Some("Job"));
        assert_eq!(training(object).stage, stage, "{status}");
    }
    assert_eq!(source.failures.summary().0, 0, "a missing field is not an error");
}

#[test]
fn too_long_texts_and_metrics_are_omitted() {
    let data = json!({"message": "object.spec.log", "artifact": "object.spec.short", "metrics": "object.spec.metrics"});
    let source = source_of(&spec("Training", &STAGES, &data));
    let (long, longest) = ("x".repeat(MAX_TEXT + 1), "x".repeat(llmtune_core::event::body::MAX_BYTES));
    let spec = json!({"log": long, "short": &long[1..], "metrics": {"loss": 0.5, "text": longest}});
    let facts = training(read(&source, json!({"metadata": {"name": "a", "namespace": "ns"}, "spec": spec})));
    assert_eq!((facts.message, facts.artifact.map(|text| text.len())), (None, Some(MAX_TEXT)));
    assert!(facts.metrics.is_empty() && facts.metrics_too_long);
    let (count, failure) = source.failures.summary();
    let text = format!("{:?}", failure.unwrap());
    assert!(count == 1 && text.contains("the value must be a string of at most 32 KiB"), "{text}");
}

#[test]
fn failed_evaluations_are_counted_and_change_no_stage() {
    let source = source_of(&spec(
        "Training",
        &[("Completed", "object.status.phase > 3"), ("Running", "true")],
        &json!({"jobId": "object.metadata", "startedAt": "object.spec.begun", "metrics": "object.spec.begun"}),
    ));
    let object =
        json!({"metadata": {"name": "a", "namespace": "ns"}, "spec": {"begun": "yesterday"}, "status": {"phase": "x"}});
    let facts = training(read(&source, object));
    assert_eq!(facts, TrainingFacts { continues: true, ..TrainingFacts::default() });
    let (count, last) = source.failures.summary();
    assert_eq!((count, source.failures.metric.get()), (4, 4));
    let last = last.unwrap();
    assert_eq!((last.namespace.as_str(), last.name.as_str()), ("ns", "a"));
    assert!(last.place.starts_with("spec."), "{last:?}");
    assert!(!last.error.contains("yesterday"), "{last:?}");
}

#[test]
fn facts_come_from_the_expressions() {
    let data = json!({
        "jobId": "object.spec.number", "baseModel": "object.metadata.annotations['llmtune.io/base-model']",
        "startedAt": "object.status.startTime", "completedAt": "object.status.completionTime",
        "reason": "object.status.conditions.filter(c, c.type == 'Failed')[0].reason",
        "metrics": "{'loss': object.status.loss, 'note': 'x', 'nested': [1], 'flops': 9007199254740993, 'most': 18446744073709551615u}"
    });
    let source = source_of(&spec("Training", &STAGES, &data));
    let facts = training(read(
        &source,
        json!({
            "metadata": {"name": "a", "namespace": "ns", "annotations": {"llmtune.io/base-model": "llama"}},
            "spec": {"number": 7},
            "status": {
                "startTime": "2025-11-08T14:22:31Z", "loss": 0.5,
                "conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]
            }
        }),
    ));
    assert_eq!(source.failures.summary().0, 0, "{:?}", source.failures.summary());
    assert_eq!((facts.job_id.as_deref(), facts.base_model.as_deref()), (Some("7"), Some("llama")));
    assert_eq!(facts.started_at, "2025-11-08T14:22:31Z".parse().ok());
    assert_eq!((facts.completed_at, facts.reason.as_deref()), (None, Some("BackoffLimitExceeded")));
    let text = |text: &str| Metric::Text(text.into());
    let metrics = [
        ("flops", text("9007199254740993")),
        ("loss", Metric::Number(0.5)),
        ("most", text("18446744073709551615")),
        ("note", text("x")),
    ];
    assert_eq!(facts.metrics, metrics.map(|(name, metric)| (name.to_owned(), metric)).into());
}

#[test]
fn owned_objects_are_skipped_unless_include_owned_is_set() {
    let owner = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": "u", "controller": true});
    let object =
        json!({"metadata": {"name": "a", "namespace": "ns", "ownerReferences": [owner]}, "status": {"ready": 1}});
    let mut spec = spec("Training", &STAGES, &json!({}));
    assert!(read(&source_of(&spec), object.clone()).owned);
    spec.include_owned = true;
    let included = read(&source_of(&spec), object);
    assert!(!included.owned);
    assert_eq!(training(included).stage, Some(TrainingStage::Running));
}

#[test]
fn records_depend_on_rules_and_not_on_data() {
    let name = |spec: &WebhookSourceSpec| source_of(spec).watch_name(None);
    let before = spec("Training", &STAGES, &json!({}));
    let other_data = spec("Training", &STAGES, &json!({"jobId": "object.metadata.name"}));
    assert_eq!(name(&before), name(&other_data));
    let mut other_version = before.clone();
    other_version.resource.api_version = "batch/v2".into();
    assert_eq!(name(&before), name(&other_version));
    let other_stages = spec("Training", &STAGES[..1], &json!({}));
    let mut owned = before.clone();
    owned.include_owned = true;
    let mut selected = before.clone();
    selected.selector = serde_json::from_value(json!({"matchLabels": {"team": "a"}})).unwrap();
    let mut other_kind = before.clone();
    other_kind.resource.kind = "JobSet".into();
    let names = [&before, &other_stages, &owned, &selected, &other_kind].map(name);
    assert_eq!(std::collections::HashSet::from(names.clone()).len(), names.len(), "{names:?}");
    assert!(names[3].contains("team=a"), "{names:?}");
}

#[test]
fn every_invalid_expression_is_reported_with_its_field() {
    let bad = spec(
        "Serving",
        &[("Deployed", "object.status."), ("Paused", "objet.spec.replicas == 0")],
        &json!({"modelId": "1 +"}),
    );
    let error = Mapping::compile("jobs", &bad).unwrap_err();
    assert_eq!(error.reason(), "InvalidExpression");
    let text = error.to_string();
    for place in ["spec.stages[0].when: ", "spec.stages[1].when: ", "spec.data.modelId: "] {
        assert!(text.contains(place), "{text}");
    }
    assert_eq!(text.lines().count(), 3, "{text}");
}

#[test]
fn missing_right_is_reported_as_a_manifest_to_apply() {
    let source = source_of(&spec("Training", &STAGES, &json!({})));
    assert_eq!((source.grant(), source.path(None)), (None, None), "nothing is known before the kind is located");
    let gvk = GroupVersionKind::gvk("batch", "v1", "Job");
    source.resource.set(ApiResource::from_gvk_with_plural(&gvk, "jobs")).unwrap();
    assert_eq!(source.path(Some("ns")).as_deref(), Some("/apis/batch/v1/namespaces/ns/jobs"));
    let grant = source.grant().unwrap();
    assert!(grant.contains("name: llmtune-webhooks-jobs.batch\n"), "{grant}");
    assert!(grant.contains("- {apiGroups: [\"batch\"], resources: [jobs], verbs: [get, list, watch]}"), "{grant}");
}

#[test]
fn watch_name_contains_source_kind_and_selector() {
    let named = |resource: Value, selector: Value| {
        let mut spec = serde_json::to_value(spec("Training", &STAGES, &json!({}))).unwrap();
        (spec["resource"], spec["selector"]) = (resource, selector);
        source_of(&serde_json::from_value(spec).unwrap()).watch_name(None)
    };
    for (api_version, group) in [("batch/v1", "batch"), ("v1", ""), ("a.b.example.com/v1", "a.b.example.com")] {
        for (selector, selective) in [(json!({}), false), (json!({"matchLabels": {"team": "a"}}), true)] {
            let name = named(json!({"apiVersion": api_version, "kind": "Job"}), selector);
            let read = WatchName::read(&name).unwrap();
            assert_eq!((read.webhook_source, read.selective), ("jobs", selective), "{name}");
            assert_eq!(read.group_kind(), (group.to_owned(), "Job".to_owned()), "{name}");
            let source = source_of(&spec("Training", &STAGES, &json!({})));
            assert!(api_version != "batch/v1" || read.source == source.name());
        }
    }
    let built_in = [
        "trainingjobs.llmtune.io",
        "trainingjobs.llmtune.io in ns",
        "deployments.apps where llmtune.io/model-endpoint=true",
    ];
    for other in built_in.into_iter().chain(["usagethresholds.llmtune.io in ns"]) {
        assert_eq!(WatchName::read(other), None, "{other}");
    }
}
