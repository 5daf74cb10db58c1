//! The sources in `examples/sources/`, as a user applies them. Objects with each system's real structure go through
//! their states, written as their controllers write them, and send exactly the expected events.
//!
//! A walk is a table in `source_examples/`: the steps, the status that the system writes at each step, and the expected
//! events.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::PathBuf,
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use llmtune_webhooks_harness::{
    control_plane::ControlPlane,
    eventually,
    operator::{Operator, OperatorOptions},
    receiver::{Received, Receiver},
    root,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::{
    documents::script::{Script, Shell},
    support::{BINARY, SOON, Scene, run},
};

/// The life of one object.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Walk {
    /// A description for failure messages.
    #[serde(rename = "walk")]
    about: String,
    /// The object at its creation.
    object: Value,
    steps: Vec<Step>,
}

/// A step: patches of the object's metadata and then of its spec, its new status, or its deletion.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    then: String,
    metadata: Option<Value>,
    spec: Option<Value>,
    /// The whole status, as controllers write it.
    status: Option<Value>,
    #[serde(default)]
    delete: bool,
    /// The events that this sends, in order.
    sends: Vec<String>,
    /// Members in the `data` of the last event.
    data: Option<Value>,
}

/// A sequence of objects as a real controller wrote them, and the expected events.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Replay {
    #[serde(rename = "replay")]
    about: String,
    source: String,
    steps: Vec<ReplayStep>,
}

/// The object takes on an observed state, or is deleted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplayStep {
    /// A file in `tests/sources/observed/`.
    observed: Option<String>,
    #[serde(default)]
    delete: bool,
    /// The events that this sends, in order: the name and, if present in `data`, status, modelId, version and run.
    sends: Vec<String>,
    /// Members in the `data` of the last event. Null means that the member is absent.
    data: Option<Value>,
}

fn walks(source: &str) -> Vec<Walk> {
    let path = root().join(format!("tests/integration/source_examples/{source}.yaml"));
    // Transitions from before an object's creation would not be news.
    let day = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24)).strftime("%Y-%m-%dT").to_string();
    let text = fs::read_to_string(&path).unwrap().replace("2026-11-24T", &day);
    let read = |walk| serde_saphyr::from_str(walk).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.split("\n---\n").map(read).collect()
}

/// A kind: its group, version, name and plural.
type Kind = (&'static str, &'static str, &'static str, &'static str);

/// The kinds of the sources that are not part of Kubernetes.
const KINDS: [Kind; 6] = [
    ("trainer.kubeflow.org", "v1alpha1", "TrainJob", "trainjobs"),
    ("kubeflow.org", "v1", "PyTorchJob", "pytorchjobs"),
    ("ray.io", "v1", "RayJob", "rayjobs"),
    ("jobset.x-k8s.io", "v1alpha2", "JobSet", "jobsets"),
    ("serving.kserve.io", "v1beta1", "InferenceService", "inferenceservices"),
    ("argoproj.io", "v1alpha1", "Rollout", "rollouts"),
];

const JOB: Kind = ("batch", "v1", "Job", "jobs");
/// The kind of the guide's own source.
const VOLCANO_JOB: Kind = ("batch.volcano.sh", "v1alpha1", "Job", "jobs");

/// The kind that a resource, or an object, names.
fn kind_of(named: &Value) -> Kind {
    let mut kinds = KINDS.into_iter().chain([JOB, VOLCANO_JOB]);
    let names = |(group, version, kind, _): &Kind| {
        named["apiVersion"] == format!("{group}/{version}") && named["kind"] == *kind
    };
    kinds.find(names).unwrap()
}

fn definition((group, version, kind, plural): Kind) -> Value {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{
                "name": version, "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": open, "status": open}}}
            }]
        }
    })
}

fn examples() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("examples/sources")).unwrap().map(|entry| entry.unwrap().path());
    let mut manifests: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect();
    manifests.sort();
    manifests
}

/// A control plane with all examples applied, and an operator for all namespaces.
struct Stage {
    plane: Arc<ControlPlane>,
    operator: Operator,
}

impl Stage {
    async fn start() -> Self {
        let plane = Arc::new(ControlPlane::start().await);
        plane.install_crds();
        plane.start_role_aggregation();
        let scene = Scene::on(Arc::clone(&plane), "operator").await;
        for kind in KINDS {
            scene.apply(&definition(kind));
        }
        scene.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]);
        for manifest in examples() {
            scene.kubectl(&["apply", "--server-side", "--validate=strict", "-f", manifest.to_str().unwrap()]);
        }
        let operator =
            Operator::start_ready(&plane, &OperatorOptions::new(BINARY, &scene.namespace).cluster_wide()).await;
        scene.kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", "webhooksource", "--all"]);
        Self { plane, operator }
    }

    /// The stage that the walks share. Each walk has its own namespace.
    async fn shared() -> &'static Self {
        static STAGE: OnceCell<Stage> = OnceCell::const_new();
        STAGE.get_or_init(Self::start).await
    }
}

/// A namespace for objects, and the requests of its one Webhook.
struct Theatre {
    scene: Scene,
    client: Client,
    receiver: Receiver,
    /// The events so far, with the names of their objects.
    expected: Vec<(String, String)>,
}

impl Theatre {
    async fn new(stage: &Stage, name: &str) -> Self {
        let scene = Scene::on(Arc::clone(&stage.plane), name).await;
        let receiver = Receiver::start().await;
        // One at a time, so that the last event proves that no other came before it.
        scene.webhook("ci", &receiver.url(), &json!({"delivery": {"concurrency": 1}}));
        scene.wait("webhook/ci", "condition=Ready");
        Self { client: scene.plane.admin().await, scene, receiver, expected: Vec::new() }
    }

    fn api(&self, object: &Value) -> Api<DynamicObject> {
        let (group, version, kind, plural) = kind_of(object);
        let kind = GroupVersionKind::gvk(group, version, kind);
        Api::namespaced_with(
            self.client.clone(),
            &self.scene.namespace,
            &ApiResource::from_gvk_with_plural(&kind, plural),
        )
    }

    /// Creates an object. Returns its uid.
    async fn create(&self, object: &Value) -> String {
        let object: DynamicObject = serde_json::from_value(object.clone()).unwrap();
        let api = self.api(&serde_json::to_value(&object).unwrap());
        api.create(&PostParams::default(), &object).await.unwrap().metadata.uid.unwrap()
    }

    /// Replaces the status of an object.
    async fn status(&self, object: &Value, status: &Value) {
        let (api, name) = (self.api(object), object["metadata"]["name"].as_str().unwrap());
        let mut current = api.get(name).await.unwrap();
        current.data["status"] = status.clone();
        api.replace_status(name, &PostParams::default(), &current).await.unwrap();
    }

    async fn patch(&self, object: &Value, patch: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        self.api(object).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    async fn delete(&self, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        self.api(object).delete(name, &DeleteParams::background()).await.unwrap();
    }

    /// Waits for these events of an object, and checks that no others have arrived in addition to the earlier ones.
    async fn expect(&mut self, name: &str, events: &[String], why: &str) -> Option<Received> {
        self.expected.extend(events.iter().map(|event| (event.clone(), name.to_owned())));
        eventually(&format!("{why}: {events:?}; came: {:?}", self.receiver.events()), SOON, || async {
            (self.receiver.count() >= self.expected.len()).then_some(())
        })
        .await;
        assert_eq!(self.receiver.events(), self.expected, "{why}");
        self.receiver.received().pop()
    }

    /// Walks an object through its life. After each step that sends nothing, another object of its kind goes through
    /// the walk `fence`: an unexpected event of the step would come before its events.
    async fn walk(&mut self, walk: &Walk, fence: &Walk) {
        self.create(&walk.object).await;
        for step in &walk.steps {
            self.take(walk, step).await;
            if step.sends.is_empty() {
                let name = format!("fence-{}", self.expected.len());
                let mut object = fence.object.clone();
                object["metadata"]["name"] = json!(name);
                let fence =
                    Walk { about: format!("{}, {}", walk.about, step.then), object, steps: fence.steps.clone() };
                self.create(&fence.object).await;
                for step in &fence.steps {
                    self.take(&fence, step).await;
                }
            }
        }
    }

    async fn take(&mut self, walk: &Walk, step: &Step) {
        let Step { then, metadata, spec, status, delete, sends, data } = step;
        let why = format!("{}: {then}", walk.about);
        if let Some(metadata) = metadata {
            self.patch(&walk.object, &json!({"metadata": metadata})).await;
        }
        if let Some(spec) = spec {
            self.patch(&walk.object, &json!({"spec": spec})).await;
        }
        if let Some(status) = status {
            self.status(&walk.object, status).await;
        }
        if *delete {
            self.delete(&walk.object).await;
        }
        if sends.is_empty() {
            return;
        }
        let last = self.expect(walk.object["metadata"]["name"].as_str().unwrap(), sends, &why).await;
        for (key, value) in data.iter().flat_map(|data| data.as_object().unwrap()) {
            let fields = &last.as_ref().unwrap().json()["data"];
            assert_eq!(&fields[key], value, "{why}: data.{key} of {fields:#}");
        }
    }
}

/// An object in a replay.
struct Actor {
    object: Value,
    /// How much later it was created than the observed object.
    later: SignedDuration,
}

/// Moves all times in it by this much.
fn postpone(value: &mut Value, later: SignedDuration) {
    match value {
        Value::String(text) => {
            if let Ok(time) = text.parse::<Timestamp>() {
                *text = (time + later).to_string();
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(|element| postpone(element, later)),
        Value::Object(members) => members.values_mut().for_each(|member| postpone(member, later)),
        _ => {}
    }
}

/// One event in a line.
fn line(received: &Received) -> String {
    let data = &received.json()["data"];
    let mut line = vec![received.event()];
    line.extend(["status", "modelId", "version"].iter().filter_map(|key| data[*key].as_str().map(str::to_owned)));
    line.extend(data["run"].as_u64().map(|run| format!("run {run}")));
    line.join(" ")
}

impl Theatre {
    /// The object takes on the observed state: its spec, then its status, with times moved by the difference in
    /// creation.
    async fn become_observed(&self, actor: &mut Option<Actor>, name: &str, file: &str) {
        let text = fs::read_to_string(root().join(format!("tests/sources/observed/{file}.json"))).unwrap();
        let observed: Value = serde_json::from_str(&text).unwrap();
        let mut object = json!({
            "apiVersion": observed["apiVersion"], "kind": observed["kind"], "spec": observed["spec"],
            "metadata": {
                "name": name, "labels": observed["metadata"]["labels"], "annotations": observed["metadata"]["annotations"]
            }
        });
        let is_job = object["kind"] == "Job";
        if is_job {
            // The apiserver creates them, and forbids changes of the template.
            object["spec"]["selector"] = Value::Null;
            object["spec"]["template"]["metadata"] = json!({});
        }
        if let Some(actor) = actor {
            let spec = if is_job { json!({"suspend": object["spec"]["suspend"]}) } else { object["spec"].clone() };
            self.patch(
                &actor.object,
                &json!({"metadata": {"annotations": object["metadata"]["annotations"]}, "spec": spec}),
            )
            .await;
        } else {
            self.create(&object).await;
            let created = self.api(&object).get(name).await.unwrap().metadata.creation_timestamp.unwrap().0;
            let then: Timestamp = observed["metadata"]["creationTimestamp"].as_str().unwrap().parse().unwrap();
            *actor = Some(Actor { object, later: created.duration_since(then) });
        }
        let actor = actor.as_ref().unwrap();
        let mut status = observed["status"].clone();
        postpone(&mut status, actor.later);
        // Keeps the distance between the observed generation and the spec's.
        let generation = self.api(&actor.object).get(name).await.unwrap().metadata.generation.unwrap();
        let behind = |seen: i64| generation - (observed["metadata"]["generation"].as_i64().unwrap() - seen);
        status["observedGeneration"] = match &status["observedGeneration"] {
            Value::String(seen) => json!(behind(seen.parse().unwrap()).to_string()),
            Value::Number(seen) => json!(behind(seen.as_i64().unwrap())),
            _ => Value::Null,
        };
        self.status(&actor.object, &status).await;
    }

    /// Waits for these events, of any object, in addition to all that came before.
    async fn hears(&self, expected: &mut Vec<String>, name: &str, sends: &[String], why: &str) -> Option<Received> {
        expected.extend(sends.iter().map(|line| format!("{name}: {line}")));
        let lines = || -> Vec<String> {
            let received = self.receiver.received();
            received
                .iter()
                .map(|event| format!("{}: {}", event.json()["data"]["name"].as_str().unwrap(), line(event)))
                .collect()
        };
        eventually(&format!("{why} sends {sends:?}; came: {:?}", lines()), SOON, || async {
            (lines().len() >= expected.len()).then_some(())
        })
        .await;
        assert_eq!(&lines(), expected, "{why}");
        self.receiver.received().pop()
    }
}

/// Replays the states that a real controller wrote. The last walk of the source comes at the end: an unexpected event
/// of an earlier state would come before its events.
fn is_replayed(source: &str) {
    run(async {
        let stage = Stage::shared().await;
        let theatre = Theatre::new(stage, &format!("replay-{source}")).await;
        let text = fs::read_to_string(root().join("tests/sources/observed/replays.yaml")).unwrap();
        let replays: Vec<Replay> = serde_saphyr::from_str(&text).unwrap();
        let mut expected = Vec::new();
        for (number, Replay { about: replay, steps, .. }) in
            replays.iter().filter(|replay| replay.source == source).enumerate()
        {
            let name = format!("replay-{number}");
            let mut actor = None;
            for ReplayStep { observed, delete, sends, data } in steps {
                let why = format!("{source}: {replay}: {}", observed.as_deref().unwrap_or("deletion"));
                if let Some(file) = observed {
                    theatre.become_observed(&mut actor, &name, file).await;
                }
                if *delete {
                    theatre.delete(&actor.as_ref().unwrap().object).await;
                }
                if sends.is_empty() {
                    continue;
                }
                let last = theatre.hears(&mut expected, &name, sends, &why).await.unwrap().json()["data"].clone();
                for (key, value) in data.iter().flat_map(|data| data.as_object().unwrap()) {
                    assert!(key == "error" || last[key] == *value, "{why}: data.{key} of {last:#}");
                    assert_eq!(last[key].is_null(), value.is_null(), "{why}: data.{key} of {last:#}");
                }
            }
        }
        let mut theatre = theatre;
        theatre.expected = theatre.receiver.events();
        let walks = walks(source);
        let fence = walks.last().unwrap();
        theatre.walk(fence, fence).await;

        let received = theatre.receiver.received();
        let ids: HashSet<String> = received.iter().map(|event| event.json()["id"].to_string()).collect();
        assert_eq!(ids.len(), received.len(), "no id stands for two events");
        let mut began = HashMap::new();
        for event in received.iter().map(Received::json).filter(|event| event["data"]["run"].is_u64()) {
            let time: Timestamp = event["occurredAt"].as_str().unwrap().parse().unwrap();
            let run = (event["data"]["jobId"].to_string(), event["data"]["run"].to_string());
            if event["event"] == "training.started" {
                assert_eq!(began.insert(run, time), None, "a run starts once: {event:#}");
            } else {
                let began = began.remove(&run).unwrap_or_else(|| panic!("a run starts and ends once: {event:#}"));
                assert!(began <= time, "the run began at {began}: {event:#}");
            }
        }
        assert!(began.is_empty(), "runs that have no end: {began:?}");
        let errors = stage.operator.metric("llmtune_webhooks_source_evaluation_errors_total", &[("source", source)]);
        assert_eq!(errors as u64, 0, "{:#}", theatre.scene.get("webhooksource", source)["status"]);
    });
}

#[test]
fn recorded_trainjobs_send_one_start_and_end_per_run() {
    is_replayed("kubeflow-trainjob");
}

#[test]
fn recorded_jobsets_send_one_start_and_end_per_run() {
    is_replayed("jobset");
}

#[test]
fn recorded_jobs_send_one_start_and_end_per_run() {
    is_replayed("job");
}

#[test]
fn recorded_rayjobs_send_one_start_and_end_per_run() {
    is_replayed("kuberay-rayjob");
}

#[test]
fn what_argo_rollouts_wrote_tells_the_version_that_serves() {
    is_replayed("argo-rollout");
}

#[test]
fn what_kserve_wrote_announces_each_rollout_once_when_it_serves() {
    is_replayed("kserve-inferenceservice");
}

/// Walks all objects of a source, one after the other. The last walk of each source ends with an event, and is the
/// fence of the others.
fn is_walked(source: &str) {
    run(async {
        let stage = Stage::shared().await;
        let mut theatre = Theatre::new(stage, source).await;
        let walks = walks(source);
        let fence = walks.last().unwrap();
        assert!(fence.steps.iter().all(|step| !step.sends.is_empty()), "{} is no fence", fence.about);
        for walk in &walks {
            theatre.walk(walk, fence).await;
        }
        let labels = [("source", source)];
        let errors = stage.operator.metric("llmtune_webhooks_source_evaluation_errors_total", &labels);
        assert_eq!(errors as u64, 0, "{:#}", theatre.scene.get("webhooksource", source)["status"]);
    });
}

#[test]
fn trainjob_sends_start_and_end_once() {
    is_walked("kubeflow-trainjob");
}

#[test]
fn pytorchjob_replica_restart_sends_nothing() {
    is_walked("kubeflow-pytorchjob");
}

#[test]
fn rayjob_fails_after_its_retries() {
    is_walked("kuberay-rayjob");
}

#[test]
fn restarted_or_suspended_jobset_continues_its_run() {
    is_walked("jobset");
}

#[test]
fn kubernetes_job_starts_with_its_first_ready_pod() {
    is_walked("job");
}

#[test]
fn inferenceservice_is_deployed_with_all_traffic() {
    is_walked("kserve-inferenceservice");
}

#[test]
fn argo_rollout_is_deployed_when_promoted() {
    is_walked("argo-rollout");
}

#[test]
fn every_source_has_tests_and_a_role() {
    let sources: Vec<String> =
        examples().iter().map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(sources.len(), KINDS.len() + 1, "{sources:?}");
    for source in sources {
        assert!(!walks(&source).is_empty());
        let text = fs::read_to_string(root().join(format!("examples/sources/{source}.yaml"))).unwrap();
        let (mapping, role) = text.split_once("\n---\n").unwrap();
        let (mapping, role): (Value, Value) =
            (serde_saphyr::from_str(mapping).unwrap(), serde_saphyr::from_str(role).unwrap());
        let (group, _, _, plural) = kind_of(&mapping["spec"]["resource"]);
        assert_eq!(mapping["metadata"]["name"], *source);
        assert_eq!(role["metadata"]["labels"]["rbac.llmtune.io/aggregate-to-operator"], "true");
        let rule = json!({"apiGroups": [group], "resources": [plural], "verbs": ["get", "list", "watch"]});
        assert_eq!(role["rules"], json!([rule]));
    }
}

/// A controller's reference to an object that it owns.
fn owner(object: &Value, uid: &str) -> Value {
    json!([{
        "apiVersion": object["apiVersion"], "kind": object["kind"], "name": object["metadata"]["name"], "uid": uid,
        "controller": true, "blockOwnerDeletion": true
    }])
}

#[test]
fn owned_jobsets_and_jobs_send_nothing() {
    run(async {
        let mut stage = Stage::start().await;
        let mut theatre = Theatre::new(&stage, "owned").await;
        let trainjob = json!({
            "apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": {"name": "llama"},
            "spec": {"runtimeRef": {"name": "torch-distributed"}, "labels": {"llmtune.io/training-job": "true"}}
        });
        let uid = theatre.create(&trainjob).await;
        let jobset = json!({
            "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet",
            "metadata": {"name": "llama", "ownerReferences": owner(&trainjob, &uid), "labels": {"llmtune.io/training-job": "true"}},
            "spec": {"replicatedJobs": [{"name": "node", "replicas": 2}]}
        });
        let uid = theatre.create(&jobset).await;
        let mut jobs = Vec::new();
        for index in 0..2 {
            let job = json!({
                "apiVersion": "batch/v1", "kind": "Job",
                "metadata": {
                    "name": format!("llama-node-{index}"), "ownerReferences": owner(&jobset, &uid),
                    // Inherited from the TrainJob. This label is not the reason that they send nothing.
                    "labels": {"llmtune.io/training-job": "true"}
                },
                "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "node", "image": "example.com/trainer"}]}}}
            });
            theatre.create(&job).await;
            jobs.push(job);
        }

        let condition = |kind: &str, reason: &str| json!({"type": kind, "status": "True", "reason": reason, "message": "done", "lastTransitionTime": "2026-11-24T12:00:00Z"});
        let running =
            json!({"startTime": "2026-11-24T10:00:00Z", "active": 1, "ready": 1, "uncountedTerminatedPods": {}});
        for job in &jobs {
            theatre.status(job, &running).await;
        }
        theatre.status(&jobset, &json!({"replicatedJobsStatus": [{"name": "node", "ready": 2}]})).await;
        theatre.status(&trainjob, &json!({"jobsStatus": [{"name": "node", "ready": 1}]})).await;
        theatre.expect("llama", &["training.started".into()], "all of them run").await;

        for job in &jobs {
            let status = json!({
                "conditions": [condition("SuccessCriteriaMet", "CompletionsReached"), condition("Complete", "CompletionsReached")],
                "startTime": "2026-11-24T10:00:00Z", "completionTime": "2026-11-24T12:00:00Z", "succeeded": 1,
                "uncountedTerminatedPods": {}
            });
            theatre.status(job, &status).await;
        }
        let completed =
            json!({"conditions": [condition("Completed", "AllJobsCompleted")], "terminalState": "Completed"});
        theatre.status(&jobset, &completed).await;
        theatre.status(&trainjob, &json!({"conditions": [condition("Complete", "AllJobsCompleted")]})).await;
        let last = theatre.expect("llama", &["training.completed".into()], "all of them have completed").await.unwrap();
        assert_eq!(last.json()["data"]["completedAt"], "2026-11-24T12:00:00Z");

        // The operator's watches resume at their positions; after a restart of the apiserver they list again.
        stage.operator.stop();
        stage.operator.restart();
        stage.operator.wait_ready().await;
        stage.plane.restart_apiserver().await;
        theatre.delete(&jobs[0]).await;
        let alone = json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": "alone", "labels": {"llmtune.io/training-job": "true"}},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "train", "image": "example.com/trainer"}]}}}
        });
        theatre.create(&alone).await;
        // A list may show it as running immediately. A start before its creation would then be no news.
        let mut running = running;
        running["startTime"] = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        theatre.status(&alone, &running).await;
        theatre.expect("alone", &["training.started".into()], "a Job that nothing owns runs").await;
        for object in [&trainjob, &jobset] {
            theatre.delete(object).await;
        }
        theatre.delete(&alone).await;
        theatre.expect("alone", &["training.failed".into()], "it is deleted").await;
    });
}

#[test]
fn an_orphan_speaks_for_itself_once_its_owner_is_gone() {
    run(async {
        let stage = Stage::shared().await;
        let mut theatre = Theatre::new(stage, "orphan").await;
        let trainjob = json!({
            "apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": {"name": "owner"},
            "spec": {"runtimeRef": {"name": "torch-distributed"}}
        });
        let uid = theatre.create(&trainjob).await;
        let jobset = json!({
            "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet",
            "metadata": {"name": "orphan", "ownerReferences": owner(&trainjob, &uid)},
            "spec": {"replicatedJobs": [{"name": "node", "replicas": 1}]}
        });
        theatre.create(&jobset).await;
        let ready = json!({"name": "node", "ready": 1, "succeeded": 0, "failed": 0, "active": 1, "suspended": 0});
        theatre.status(&jobset, &json!({"replicatedJobsStatus": [ready], "restarts": 0})).await;
        theatre.status(&trainjob, &json!({"jobsStatus": [ready]})).await;
        theatre.expect("owner", &["training.started".into()], "it runs").await;

        // As the garbage collector does for --cascade=orphan: the references are removed first, then the owner.
        theatre.patch(&jobset, &json!({"metadata": {"ownerReferences": null}})).await;
        theatre.expect("orphan", &["training.started".into()], "it runs, and nobody speaks for it").await;
        theatre.delete(&trainjob).await;
        let end = theatre.expect("owner", &["training.failed".into()], "it is deleted").await.unwrap();
        assert_eq!(end.json()["data"]["status"], "cancelled");
        let completed = json!({
            "type": "Completed", "status": "True", "reason": "AllJobsCompleted", "message": "jobset completed successfully",
            "lastTransitionTime": Timestamp::now().to_string()
        });
        theatre.status(&jobset, &json!({"conditions": [completed], "terminalState": "Completed", "restarts": 0})).await;
        let end = theatre.expect("orphan", &["training.completed".into()], "it completes").await.unwrap();
        assert_eq!(end.json()["data"]["run"], 1);
    });
}

/// The blocks of the guide in this language, in order.
fn blocks(language: &str) -> Vec<String> {
    let guide = fs::read_to_string(root().join("docs/sources.md")).unwrap();
    let fence = format!("```{language}\n");
    guide.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// Follows the guide from a `TrainJob` to the event that it shows.
pub async fn play(scripts: &mut [Script]) {
    let [guide] = scripts else { unreachable!("one document") };
    let stage = Stage::shared().await;
    let scene = Scene::on(Arc::clone(&stage.plane), "guide").await;
    let receiver = Receiver::start().await;
    let manifests = blocks("yaml");
    let subscription = manifests[0].replace("https://receiver.example.com/hooks", &receiver.url());
    let mut shell = Shell::new(&scene);
    shell.instead("$(openssl rand -hex 32)", "s3cret");
    let own = "From Kubeflow to a delivered event in five minutes";
    shell.run(&guide.take(own));
    shell.run(&guide.take(own));
    scene.apply_text(&subscription);
    scene.wait("webhook/training", "condition=Ready");
    scene.apply_text(&manifests[1]);

    let write = |status: Value| {
        let patch = json!({"status": status}).to_string();
        let job = ["patch", "trainjob", "llama-lora", "--subresource=status", "--type=merge", "-p", &patch];
        scene.kubectl(&job);
    };
    let resumed = json!({
        "type": "Suspended", "status": "False", "reason": "Resumed", "message": "TrainJob is resumed",
        "lastTransitionTime": "2026-11-24T10:00:00Z"
    });
    write(json!({
        "conditions": [resumed],
        "jobsStatus": [{"name": "node", "ready": 1, "succeeded": 0, "failed": 0, "active": 1, "suspended": 0}]
    }));
    receiver.wait_for("training.started", "llama-lora", SOON).await;
    let complete = json!({
        "type": "Complete", "status": "True", "reason": "AllJobsCompleted", "message": "jobset completed successfully",
        "lastTransitionTime": "2026-11-24T12:00:00Z"
    });
    write(json!({"conditions": [resumed, complete]}));
    let received = receiver.wait_for("training.completed", "llama-lora", SOON).await;
    assert!(received.is_signed_with("s3cret"));
    let (mut actual, mut shown) = (received.json(), serde_json::from_str::<Value>(&blocks("json")[0]).unwrap());
    for event in [&mut actual, &mut shown] {
        for key in ["id", "deliveredAt"] {
            assert!(event[key].take().is_string());
        }
        for key in ["jobId", "namespace", "createdAt"] {
            assert!(event["data"][key].take().is_string());
        }
    }
    assert_eq!(actual, shown);
    let described = shell.run(&guide.take("Where it shows"));
    assert!(described.contains("kubeflow-trainjob") && described.contains("Watching"), "{described}");
}

#[test]
fn source_in_the_guide_waits_for_its_kind() {
    run(async {
        let stage = Stage::shared().await;
        let mut theatre = Theatre::new(stage, "volcano").await;
        theatre.scene.apply_text(&blocks("yaml")[2]);
        let ready = async |status: &str, reason: &str| {
            eventually(&format!("Ready={status} ({reason})"), SOON, || async {
                let source = theatre.scene.get("webhooksource", "volcano-job");
                let conditions = source["status"]["conditions"].as_array()?.clone();
                let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready")?;
                (ready["status"] == status && ready["reason"] == reason).then_some(())
            })
            .await;
        };
        ready("False", "NotInstalled").await;
        theatre.scene.apply(&definition(VOLCANO_JOB));
        ready("True", "Watching").await;

        let job = json!({
            "apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job",
            "metadata": {"name": "llama", "labels": {"team": "research"}}, "spec": {"minAvailable": 1}
        });
        let phase = |phase: &str| json!({"state": {"phase": phase, "lastTransitionTime": "2026-11-24T10:00:00Z"}});
        theatre.create(&job).await;
        for (next, events) in [
            ("Pending", [].as_slice()),
            ("Running", ["training.started".to_owned()].as_slice()),
            ("Restarting", &[]),
            ("Running", &[]),
            ("Completed", &["training.completed".to_owned()]),
        ] {
            theatre.status(&job, &phase(next)).await;
            theatre.expect("llama", events, next).await;
        }
    });
}
