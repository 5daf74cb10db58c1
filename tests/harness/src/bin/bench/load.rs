//! Generates the load: creates jobs, and writes statuses as a training platform would.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use kube::{
    Client,
    api::{Patch, PatchParams, PostParams},
    core::Request,
};
use llmtune_webhooks_harness::{control_plane::ControlPlane, eventually};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::transition::{Transition, completed_at, job_name, started_at};

/// A patcher moves this many jobs to Running, then the same ones to Completed, so that consecutive transitions never
/// belong to the same job.
const GROUP: u32 = 8;
/// Patchers at a steady rate. Each waits for its responses, so there must be enough of them to keep the rate.
const STEADY_PATCHERS: u32 = 8;
/// Patchers at rates above `FAST`.
const FAST_PATCHERS: u32 = 24;
const FAST: u32 = 100;
/// Concurrent requests while jobs are created.
const CREATORS: u32 = 32;
const WITHOUT_SUBRESOURCE: &str = r#"[{"op": "remove", "path": "/spec/versions/0/subresources"}]"#;
const WITH_SUBRESOURCE: &str = r#"[{"op": "add", "path": "/spec/versions/0/subresources", "value": {"status": {}}}]"#;
/// Time limit for the apiserver to serve a changed resource.
const SERVED: Duration = Duration::from_secs(30);
const ANNOTATIONS: usize = 8;
const ANNOTATION_BYTES: usize = 256;

/// The kind of the jobs.
#[derive(Clone, Copy)]
pub struct JobKind {
    pub api_version: &'static str,
    pub name: &'static str,
    pub plural: &'static str,
}

/// The operator's own kind.
pub const TRAINING_JOB: JobKind =
    JobKind { api_version: "llmtune.io/v1alpha1", name: "TrainingJob", plural: "trainingjobs" };

impl JobKind {
    /// The path of the objects of one namespace.
    pub fn path(self, namespace: &str) -> String {
        format!("/apis/{}/namespaces/{namespace}/{}", self.api_version, self.plural)
    }

    /// The name of its `CustomResourceDefinition`.
    pub fn definition(self) -> String {
        let group = self.api_version.split('/').next().unwrap_or_default();
        format!("{}.{group}", self.plural)
    }
}

/// The jobs of one namespace, and the number of their runs.
#[derive(Clone)]
pub struct Load {
    client: Client,
    kind: JobKind,
    path: String,
    jobs: u32,
    runs: Arc<AtomicU32>,
}

/// The result of a period of load.
pub struct Driven {
    pub transitions: Vec<Transition>,
    /// From the first patch to the response of the last.
    pub elapsed: Duration,
}

/// The phase of jobs at creation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Completed,
}

#[derive(Clone, Copy)]
enum Pace {
    /// This many transitions at this interval.
    Steady(u32, Duration),
    /// As fast as possible, for this long.
    FlatOut(Duration),
}

impl Load {
    /// Creates the jobs with 2 kB of annotations each. The status is part of the create request, which saves a second
    /// request: the status subresource is disabled until all jobs exist.
    pub async fn create(
        plane: &ControlPlane,
        client: Client,
        namespace: &str,
        jobs: u32,
        phase: Phase,
        kind: JobKind,
    ) -> Self {
        let load = Self { client, kind, path: kind.path(namespace), jobs, runs: Arc::default() };
        let change = |patch: &str| {
            let output = plane.kubectl(&["patch", "crd", &kind.definition(), "--type=json", "-p", patch]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        change(WITHOUT_SUBRESOURCE);
        eventually("a status is created with its job", SERVED, || async {
            let probe = PostParams { dry_run: true, ..PostParams::default() };
            load.post(0, phase, &probe).await.contains("\"phase\"").then_some(())
        })
        .await;
        let mut creators = JoinSet::new();
        for creator in 0..CREATORS {
            let load = load.clone();
            creators.spawn(async move {
                for job in (creator..jobs).step_by(CREATORS as usize) {
                    load.post(job, phase, &PostParams::default()).await;
                }
            });
        }
        creators.join_all().await;
        change(WITH_SUBRESOURCE);
        eventually("statuses are written apart again", SERVED, || async { load.try_patch(0, &json!({})).await.ok() })
            .await;
        load
    }

    /// Makes transitions at this rate, independent of their delivery.
    pub async fn steady(&self, rate: u32, duration: Duration) -> Driven {
        let patchers = if rate > FAST { FAST_PATCHERS } else { STEADY_PATCHERS };
        let each = duration.as_secs_f64() * f64::from(rate) / f64::from(patchers);
        let interval = Duration::from_secs(1) / rate;
        self.drive(patchers, interval, Pace::Steady(each.round() as u32, interval * patchers)).await
    }

    /// Makes transitions as fast as the apiserver accepts them from this many patchers.
    pub async fn flat_out(&self, patchers: u32, duration: Duration) -> Driven {
        self.drive(patchers, Duration::ZERO, Pace::FlatOut(duration)).await
    }

    /// Starts the next run of one job.
    pub async fn once(&self) -> Transition {
        let transition = Transition { run: self.runs.fetch_add(1, Ordering::Relaxed), completed: false };
        self.patch(transition.run % self.jobs, &status(transition)).await;
        transition
    }

    async fn drive(&self, patchers: u32, stagger: Duration, pace: Pace) -> Driven {
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for patcher in 0..patchers {
            tasks.spawn(self.clone().run_patcher(begun + stagger * patcher, pace));
        }
        let transitions = tasks.join_all().await.concat();
        Driven { transitions, elapsed: begun.elapsed() }
    }

    async fn run_patcher(self, begin: Instant, pace: Pace) -> Vec<Transition> {
        let mut done = Vec::new();
        loop {
            let first = self.runs.fetch_add(GROUP, Ordering::Relaxed);
            for transition in group(first..first + GROUP) {
                match pace {
                    Pace::Steady(each, _) if done.len() as u32 >= each => return done,
                    Pace::Steady(_, interval) => {
                        tokio::time::sleep_until((begin + interval * done.len() as u32).into()).await;
                    }
                    Pace::FlatOut(limit) if begin.elapsed() >= limit => return done,
                    Pace::FlatOut(_) => {}
                }
                self.patch(transition.run % self.jobs, &status(transition)).await;
                done.push(transition);
            }
        }
    }

    async fn post(&self, job: u32, phase: Phase, params: &PostParams) -> String {
        let mut manifest = manifest(job, self.kind);
        manifest["status"] = first_status(job, phase);
        let request = Request::new(&*self.path).create(params, serde_json::to_vec(&manifest).unwrap()).unwrap();
        self.client.request_text(request).await.unwrap()
    }

    async fn patch(&self, job: u32, status: &Value) {
        self.try_patch(job, status).await.unwrap();
    }

    async fn try_patch(&self, job: u32, status: &Value) -> Result<(), kube::Error> {
        let patch = Patch::Merge(json!({"status": status}));
        let request = Request::new(&*self.path)
            .patch_subresource("status", &job_name(job), &PatchParams::default(), &patch)
            .unwrap();
        self.client.request_text(request).await.map(drop)
    }
}

fn first_status(job: u32, phase: Phase) -> Value {
    let id = format!("ltj-{job:08}");
    match phase {
        Phase::Pending => json!({"phase": "Pending", "jobId": id}),
        Phase::Completed => json!({
            "phase": "Completed", "jobId": id, "artifact": format!("s3://models/llama-sft-{job}"),
            "startedAt": "2025-11-08T09:00:00Z", "completedAt": "2025-11-08T14:22:31Z",
            "metrics": {"train_loss": 1.0 + 1.0 / f64::from(job + 3), "epoch": 3, "step": 1200},
        }),
    }
}

fn group(runs: Range<u32>) -> impl Iterator<Item = Transition> {
    let all = move |completed| runs.clone().map(move |run| Transition { run, completed });
    all(false).chain(all(true))
}

fn status(transition: Transition) -> Value {
    let Transition { run, completed } = transition;
    if completed {
        json!({
            "phase": "Completed", "startedAt": started_at(run), "completedAt": completed_at(run),
            "artifact": format!("s3://models/llama-sft-{run}"),
            "metrics": {"train_loss": 1.0 + 1.0 / f64::from(run + 3), "epoch": 3, "step": 1200},
        })
    } else {
        json!({
            "phase": "Running", "startedAt": started_at(run),
            "completedAt": null, "artifact": null, "metrics": null,
        })
    }
}

fn manifest(job: u32, kind: JobKind) -> Value {
    let annotations = (0..ANNOTATIONS).map(|number| {
        let value: String =
            (0..ANNOTATION_BYTES).map(|index| char::from(b'a' + ((index * 7 + number) % 26) as u8)).collect();
        (format!("training.example.com/note-{number}"), value)
    });
    let annotations: std::collections::BTreeMap<_, _> = annotations.collect();
    json!({
        "apiVersion": kind.api_version, "kind": kind.name,
        "metadata": {"name": job_name(job), "annotations": annotations, "labels": {"team": "research"}},
        "spec": {"baseModel": "meta-llama/Llama-3.1-8B", "trainingMethod": "sft"},
    })
}
