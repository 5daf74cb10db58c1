//! Compares jobs of a custom kind, mapped by a `WebhookSource`, with the same jobs of the built-in kind. The difference
//! is the cost of the expressions.

use std::{sync::Arc, time::Instant};

use llmtune_webhooks_harness::{control_plane::ControlPlane, eventually, operator::Operator};
use serde_json::{Value, json};

use crate::{
    Bench, latency,
    load::{JobKind, Phase, TRAINING_JOB},
    page::Page,
    receiver,
    report::Round,
    subject::{Scene, Subject, Synced},
    tally::{Tally, percentile},
    watch,
};

/// The mapped kind: a copy of TrainingJob under another name.
const MAPPED: JobKind = JobKind { api_version: "bench.example.com/v1alpha1", name: "BenchJob", plural: "benchjobs" };

pub async fn run(bench: &Bench) -> Result<Page, String> {
    let built_in = round(bench, bench.plane().await, TRAINING_JOB).await?;
    let plane = bench.plane().await;
    install(&plane);
    let mapped = round(bench, plane, MAPPED).await?;
    let rounds = [built_in, mapped];
    let sorted = rounds.each_ref().map(|round| {
        let mut sorted = round.steady.latencies.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    });
    let micros = |of: fn(&Round) -> &crate::report::Stretch| {
        rounds.iter().map(|round| of(round).cpu.as_secs_f64() * 1e6 / of(round).latencies.len() as f64).collect()
    };
    let each = |of: &dyn Fn(&Round) -> f64| rounds.iter().map(of).collect::<Vec<f64>>();
    let mut page = Page::new(
        "\nThe jobs of the part above once as TrainingJobs and once as a kind of their own that a WebhookSource maps: six stages,\n\
         seven members of `data`, as `docs/sources.md` writes them. Operators of the whole cluster, one round each.\n",
    );
    let heads = ["TrainingJob", "mapped kind"].map(str::to_owned);
    let rate = bench.args.rate;
    let rows: [(&str, usize, Vec<f64>); 7] = [
        ("bare watch → POST, p50, ms", 2, sorted.iter().map(|sorted| percentile(sorted, 0.5)).collect()),
        ("bare watch → POST, p99, ms", 2, sorted.iter().map(|sorted| percentile(sorted, 0.99)).collect()),
        ("CPU per delivery, µs", 0, micros(|round| &round.steady)),
        ("CPU per delivery as fast as it goes, µs", 0, micros(|round| &round.flat_out)),
        ("resident in sync, MiB", 1, each(&|round| round.synced.memory.resident as f64 / 1024.0)),
        ("resident after the load, MiB", 1, each(&|round| round.loaded.resident as f64 / 1024.0)),
        ("CPU of the first sync, ms", 0, each(&|round| round.synced.cpu.as_secs_f64() * 1e3)),
    ];
    page.columns(&format!("{} jobs, {rate}/s", bench.args.jobs), &heads, &rows);
    Ok(page)
}

/// Installs the definition of [`MAPPED`], a copy of TrainingJob's, and the right to watch it.
fn install(plane: &ControlPlane) {
    let output = plane.kubectl(&["get", "crd", &TRAINING_JOB.definition(), "-o", "json"]);
    let mut definition: Value = serde_json::from_slice(&output.stdout).unwrap();
    definition["metadata"] = json!({"name": MAPPED.definition()});
    definition["spec"]["group"] = json!("bench.example.com");
    definition["spec"]["names"] =
        json!({"plural": MAPPED.plural, "singular": "benchjob", "kind": MAPPED.name, "listKind": "BenchJobList"});
    definition.as_object_mut().unwrap().remove("status");
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "benchjobs"},
        "rules": [{"apiGroups": ["bench.example.com"], "resources": [MAPPED.plural], "verbs": ["get", "list", "watch"]}],
    });
    for object in [&definition, &role] {
        apply(plane, object);
    }
    let wait = ["wait", "--for=condition=Established", "--timeout=60s", "crd", &MAPPED.definition()];
    assert!(plane.kubectl(&wait).status.success());
}

fn apply(plane: &ControlPlane, object: &Value) {
    let output = plane.kubectl_with_input(&["apply", "--server-side", "-f", "-"], &object.to_string());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn source() -> Value {
    let stages = ["Completed", "Failed", "Cancelled", "Running", "Suspended", "Pending"];
    let stages: Vec<Value> = stages
        .iter()
        .map(|stage| json!({"stage": stage, "when": format!("object.status.phase == '{stage}'")}))
        .collect();
    json!({
        "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookSource", "metadata": {"name": "bench"},
        "spec": {
            "resource": {"apiVersion": MAPPED.api_version, "kind": MAPPED.name}, "lifecycle": "Training", "stages": stages,
            "data": {
                "jobId": "object.status.jobId", "baseModel": "object.spec.baseModel",
                "trainingMethod": "object.spec.trainingMethod", "artifact": "object.status.artifact",
                "metrics": "object.status.metrics", "startedAt": "object.status.startedAt",
                "completedAt": "object.status.completedAt",
            },
        },
    })
}

async fn round(bench: &Bench, plane: Arc<ControlPlane>, kind: JobKind) -> Result<Round, String> {
    let stage = bench.fill(plane, bench.args.jobs, Phase::Pending, kind).await;
    let scene = bench.scene(&stage);
    let sightings = watch::start(stage.plane.clone(), kind.path(&stage.namespace), stage.jobs).await;
    let (port, posts) = receiver::start("receiver");
    scene.subscribe(port);
    let (operator, synced) = start(bench, &scene, &stage, kind).await;
    let subject = Subject::Operator(Box::new(operator));
    let mut tally = Tally::new(&sightings, &posts, scene.secret, stage.jobs);
    let say = |text: &str| bench.say(&format!("{}: {text}", kind.name));
    let round = latency::measure(&bench.args, &stage.load, &subject, synced, &mut tally, &say).await;
    let round = round.map_err(|error| format!("{}: {error}\n{}", kind.name, subject.process().log_tail()))?;
    subject.stop();
    Ok(round)
}

/// Starts an operator of the whole cluster: WebhookSources are not available with `--watch-namespace`.
async fn start(bench: &Bench, scene: &Scene<'_>, stage: &crate::Stage, kind: JobKind) -> (Operator, Synced) {
    let mut options = scene.options().await;
    options.watch.clear();
    if kind.name == MAPPED.name {
        apply(&stage.plane, &source());
        apply(
            &stage.plane,
            &json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "benchjobs"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "benchjobs"},
                "subjects": [{"kind": "ServiceAccount", "name": "llmtune-webhooks", "namespace": options.namespace}],
            }),
        );
    }
    bench.say(&format!("{}: starting", kind.name));
    let begun = Instant::now();
    let (operator, synced) = scene.start(&stage.client, &options).await;
    eventually("the kind is watched", std::time::Duration::from_secs(60), || async {
        let ready = operator.get("/readyz")?.1;
        let watched = |line: &str| line.starts_with(kind.name) && line.ends_with(": watching");
        ready.lines().any(watched).then_some(())
    })
    .await;
    bench.say(&format!("{}: in sync after {} ms", kind.name, begun.elapsed().as_millis()));
    (operator, synced)
}
