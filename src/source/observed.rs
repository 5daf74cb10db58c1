//! Replays objects that the controllers of other systems wrote, through the sources in `examples/sources/` and the
//! lifecycles. `tests/sources/observed/replays.yaml` lists the objects and the expected events. The integration suite
//! replays the same table through an apiserver.

use std::{collections::HashMap, fs, path::PathBuf, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use prometheus::IntCounter;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Source,
    custom_source::{CustomSource, Failures, Mapping},
    owners::WatchedKinds,
};
use llmtune_core::event::{
    EventType,
    id::EventId,
    lifecycle::{Gone, Lifecycle, Occurrence},
    object::Object,
    payload,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Replay {
    #[serde(rename = "replay")]
    about: String,
    source: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    observed: Option<String>,
    #[serde(default)]
    delete: bool,
    sends: Vec<String>,
    /// Expected members of the last event's `data`. Null means that the member is absent.
    data: Option<Value>,
}

fn root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn source(name: &str) -> CustomSource {
    let text = fs::read_to_string(root(&format!("examples/sources/{name}.yaml"))).unwrap();
    let manifest: Value = serde_saphyr::from_str(text.split("\n---\n").next().unwrap()).unwrap();
    let spec = serde_json::from_value(manifest["spec"].clone()).unwrap();
    let failures = Arc::new(Failures::new(IntCounter::new("errors", "of a source").unwrap()));
    CustomSource::new(Arc::new(Mapping::compile(name, &spec).unwrap()), WatchedKinds::default(), failures)
}

fn observed(name: &str) -> Value {
    let text = fs::read_to_string(root(&format!("tests/sources/observed/{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Formats an event in one line: its name and the members of `data` that distinguish occurrences.
fn line(event: EventType, data: &Value) -> String {
    let run = data["run"].as_u64().map(|run| format!("run {run}"));
    let mut line = vec![event.name().to_owned()];
    line.extend(["status", "modelId", "version"].iter().filter_map(|key| data[key].as_str().map(str::to_owned)));
    line.extend(run);
    line.join(" ")
}

/// The state of a replay.
#[derive(Default)]
struct ReplayState {
    record: Option<Lifecycle>,
    generation: i64,
    last: Option<Object>,
    ids: Vec<EventId>,
    /// The last event's `data`.
    data: Value,
    /// The start and the end of each run.
    runs: HashMap<u64, (Option<Timestamp>, Option<Timestamp>)>,
}

impl ReplayState {
    fn record_occurrences(&mut self, object: &Object, occurrences: Vec<Occurrence>, now: Timestamp) -> Vec<String> {
        let mut lines = Vec::new();
        for occurrence in occurrences {
            let members = payload::data(object, &occurrence).members;
            let members =
                members.into_iter().map(|(name, text)| (name.to_owned(), serde_json::from_str(&text).unwrap()));
            let data = Value::Object(members.collect());
            let at = payload::occurred_at(object, &occurrence, now);
            let id = EventId::new("s", object.uid, occurrence.event, &occurrence.name, occurrence.count, 1);
            assert!(!self.ids.contains(&id), "{id} identifies two events");
            self.ids.push(id);
            if let Some(run) = data["run"].as_u64() {
                let (began, ended) = self.runs.entry(run).or_default();
                let time = if occurrence.event == EventType::TrainingStarted { began } else { ended };
                assert_eq!(time.replace(at), None, "run {run} has two starts or two ends: {data:#}");
            }
            lines.push(line(occurrence.event, &data));
            self.data = data;
        }
        lines
    }
}

#[test]
fn objects_of_real_controllers_send_the_expected_events() {
    let text = fs::read_to_string(root("tests/sources/observed/replays.yaml")).unwrap();
    let replays: Vec<Replay> = serde_saphyr::from_str(&text).unwrap();
    let mut wrong = Vec::new();
    for Replay { about: replay, source: name, steps } in replays {
        let source = source(&name);
        let mut state = ReplayState::default();
        // All changes are observed long after they happened, as after an outage.
        let mut now: Timestamp = "2026-12-01T00:00:00.123Z".parse().unwrap();
        for (version, step) in steps.iter().enumerate() {
            now += SignedDuration::from_secs(1);
            let mut lines = Vec::new();
            if let Some(stage) = &step.observed {
                let mut object = observed(stage);
                object["metadata"]["uid"] = json!("00000000-0000-0000-0000-000000000007");
                object["metadata"]["resourceVersion"] = json!((version + 5).to_string());
                let object = source.read(serde_json::value::to_raw_value(&object).unwrap()).unwrap();
                let record = state.record.take().unwrap_or_else(|| Lifecycle::new(&object.facts));
                let (occurrences, record) = record.step(&object.facts, object.generation);
                state.generation = object.generation;
                // The record survives a restart.
                let record = serde_json::from_value(serde_json::to_value(&record).unwrap()).unwrap();
                state.record = Some(record);
                lines.extend(state.record_occurrences(&object, occurrences, now));
                state.last = Some(object);
            }
            if step.delete
                && let Some((record, object)) = state.record.take().zip(state.last.take())
                && record.emits_on_delete()
            {
                let occurrences = record.gone(Gone::Deleted, state.generation);
                lines.extend(state.record_occurrences(&object, occurrences, now));
            }
            for (key, value) in step.data.iter().flat_map(|data| data.as_object().unwrap()) {
                if state.data[key] != *value {
                    wrong.push(format!("{name}: {replay}: data.{key} is {}, not {value}", state.data[key]));
                }
            }
            if lines != step.sends {
                wrong.push(format!(
                    "{name}: {replay}: {} sends {lines:?}, not {:?}",
                    step.observed.as_deref().unwrap_or("deletion"),
                    step.sends
                ));
            }
        }
        for (run, (began, ended)) in &state.runs {
            if began.is_none() || ended.is_none() {
                wrong.push(format!("{name}: {replay}: run {run} began {began:?} and ended {ended:?}"));
            }
            if began.zip(*ended).is_some_and(|(began, ended)| began > ended) {
                wrong.push(format!("{name}: {replay}: run {run} ended at {ended:?}, before it began at {began:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
