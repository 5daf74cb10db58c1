//! What is measured: the operator, and the floor beneath it.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use kube::{Client, api::GetParams, core::Request};
use llmtune_webhooks_harness::{
    control_plane::ControlPlane,
    eventually,
    operator::{Operator, OperatorOptions, metric},
    process::{Process, temporary_folder},
};
use serde_json::{Value, json};

/// Where the jobs are, and what a subject is told of them.
pub struct Scene<'a> {
    pub plane: &'a ControlPlane,
    pub namespace: &'a str,
    pub jobs: u32,
    pub secret: &'a str,
    pub operator: PathBuf,
    pub floor: PathBuf,
}

/// A running subject.
pub enum Subject {
    Operator(Box<Operator>),
    Floor(Process),
}

/// What it took to begin.
#[derive(Clone, Copy, Default)]
pub struct Synced {
    pub cpu: Duration,
    pub wall: Duration,
    pub memory: Memory,
}

/// Resident memory in KiB.
#[derive(Clone, Copy, Default)]
pub struct Memory {
    pub resident: u64,
    /// Of it, what is not the program's own file, whose pages the kernel maps as it likes.
    pub anonymous: u64,
}

impl Synced {
    fn since(begun: Instant, process: &Process) -> Self {
        Self { cpu: cpu(process), wall: begun.elapsed(), memory: memory(process) }
    }
}

impl Scene<'_> {
    /// The Webhook that the operator serves.
    pub fn subscribe(&self, port: u16) {
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bench"}, "stringData": {"secret": self.secret}},
            {"apiVersion": "llmtune.io/v1alpha1", "kind": "Webhook", "metadata": {"name": "bench"}, "spec": {
                "url": format!("http://127.0.0.1:{port}/hook"), "events": ["training.*"], "secretRef": {"name": "bench"},
            }},
        ]});
        let apply = ["-n", self.namespace, "apply", "--server-side", "-f", "-"];
        let output = self.plane.kubectl_with_input(&apply, &objects.to_string());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts the operator, which knows nothing yet, and waits until it watches.
    pub async fn start_operator(&self, client: &Client) -> (Subject, Synced) {
        // Its Lease and its ledger are new, so that what happened since the last round is a baseline.
        let home = self.plane.namespace("operator").await;
        let mut options = OperatorOptions::new(&self.operator.display().to_string(), &home).log("info");
        options.watch = vec![self.namespace.to_owned()];
        let mut operator = Operator::start(self.plane, &options).await;
        let begun = Instant::now();
        operator.wait_ready().await;
        let webhooks = Request::new(format!("/apis/llmtune.io/v1alpha1/namespaces/{}/webhooks", self.namespace));
        eventually("the Webhook is Ready, and every job is known", Duration::from_secs(30), || async {
            let request = webhooks.get("bench", &GetParams::default()).ok()?;
            let webhook: Value = client.request(request).await.ok()?;
            let mut conditions = webhook["status"]["conditions"].as_array()?.iter();
            conditions.find(|condition| condition["type"] == "Ready" && condition["status"] == "True")?;
            (operator.metric("llmtune_webhooks_ledger_records", &[]) as u32 == self.jobs).then_some(())
        })
        .await;
        let synced = Synced::since(begun, &operator.process);
        (Subject::Operator(Box::new(operator)), synced)
    }

    /// Starts the floor and waits until it watches.
    pub async fn start_floor(&self, port: u16) -> (Subject, Synced) {
        let mut command = Command::new(&self.floor);
        command
            .args([self.namespace, &format!("http://127.0.0.1:{port}/hook"), self.secret])
            .env("KUBECONFIG", self.plane.kubeconfig("admin"));
        let begun = Instant::now();
        let process = Process::start("floor", &mut command, &temporary_folder("floor").join("floor.log"));
        eventually("the floor watches", Duration::from_mins(1), || async {
            process.log_text().contains("watching").then_some(())
        })
        .await;
        let synced = Synced::since(begun, &process);
        (Subject::Floor(process), synced)
    }
}

impl Subject {
    pub fn process(&self) -> &Process {
        match self {
            Self::Operator(operator) => &operator.process,
            Self::Floor(process) => process,
        }
    }

    pub fn cpu(&self) -> Duration {
        cpu(self.process())
    }

    /// How many writes to the apiserver it has made, by resource.
    pub fn writes(&self) -> BTreeMap<String, u64> {
        let Self::Operator(operator) = self else { return BTreeMap::new() };
        let text = operator.metrics();
        let resources = text.lines().filter(|line| line.starts_with("llmtune_webhooks_api_requests_total{"));
        let resources = resources.filter_map(|line| line.split_once("resource=\"")?.1.split('"').next());
        let of = |resource: &str| -> f64 {
            let verbs = ["create", "update", "patch", "delete"];
            let writes =
                |verb| metric(&text, "llmtune_webhooks_api_requests_total", &[("resource", resource), ("verb", verb)]);
            verbs.into_iter().map(writes).sum()
        };
        resources.map(|resource| (resource.to_owned(), of(resource) as u64)).collect()
    }

    pub fn memory(&self) -> Memory {
        memory(self.process())
    }

    /// Ends it as Kubernetes does.
    pub fn stop(self) {
        let mut process = match self {
            Self::Operator(operator) => operator.process,
            Self::Floor(process) => process,
        };
        process.signal("TERM");
        process.wait(Duration::from_secs(20));
    }
}

fn memory(process: &Process) -> Memory {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    let anonymous = line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or_default();
    Memory { resident: process.resident_kib(), anonymous }
}

/// User and system time of all its threads, in nanoseconds where the kernel counts them.
fn cpu(process: &Process) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).into_iter().flatten().flatten();
    let nanoseconds: u64 = tasks
        .filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        })
        .sum();
    // In ticks, but with the threads that have ended.
    Duration::from_nanos(nanoseconds).max(Duration::from_secs_f64(process.cpu_seconds()))
}
