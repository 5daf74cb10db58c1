//! The subjects of the measurement: the operator, and the floor as the lower bound.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{Client, api::GetParams, core::Request};
use llmtune_webhooks_harness::{
    control_plane::ControlPlane,
    eventually,
    operator::{Operator, OperatorOptions, metric},
    process::{Process, temporary_folder},
};
use serde_json::{Value, json};

use crate::crowd::is_ready;

/// Time limit for a subject to be in sync.
const SYNCED: Duration = Duration::from_mins(3);

/// The namespace of the jobs, and the configuration of a subject.
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

/// The cost of the start.
#[derive(Clone, Copy, Default)]
pub struct Synced {
    pub cpu: Duration,
    pub wall: Duration,
    pub memory: Memory,
}

/// Resident memory in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    pub resident: u64,
    /// Resident memory without the pages of the program's file, which the kernel maps and unmaps as it likes.
    pub anonymous: u64,
    /// The maximum so far.
    pub peak: u64,
}

impl Synced {
    fn since(begun: Instant, process: &Process) -> Self {
        Self { cpu: cpu(process), wall: begun.elapsed(), memory: memory(process) }
    }
}

impl Scene<'_> {
    /// Creates the Webhook that the operator delivers to.
    pub fn subscribe(&self, port: u16) {
        self.apply(&self.webhook("bench", port, &json!({})));
    }

    /// A Webhook for every training event, with these additional fields of the spec, and its Secret.
    pub fn webhook(&self, name: &str, port: u16, spec: &Value) -> Vec<Value> {
        let mut webhook = json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "Webhook", "metadata": {"name": name}, "spec": {
                "url": format!("http://127.0.0.1:{port}/hook"), "events": ["training.*"], "secretRef": {"name": name},
            },
        });
        webhook["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        vec![self.signing_key(name), webhook]
    }

    /// The Secret of this name.
    pub fn signing_key(&self, name: &str) -> Value {
        let data = json!({"secret": self.secret});
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
    }

    /// Applies these objects in the jobs' namespace.
    pub fn apply(&self, objects: &[Value]) {
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let apply = ["-n", self.namespace, "apply", "--server-side", "-f", "-"];
        let output = self.plane.kubectl_with_input(&apply, &objects.to_string());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Options for an operator with a new Lease and an empty ledger, so that all existing jobs are its baseline.
    pub async fn options(&self) -> OperatorOptions {
        let home = self.plane.namespace("operator").await;
        let mut options = OperatorOptions::new(&self.operator.display().to_string(), &home).log("info");
        options.watch = vec![self.namespace.to_owned()];
        options
    }

    /// `Some` if this Webhook is Ready.
    pub async fn is_ready(&self, client: &Client, name: &str) -> Option<()> {
        let webhooks = Request::new(format!("/apis/llmtune.io/v1alpha1/namespaces/{}/webhooks", self.namespace));
        let webhook: Value = client.request(webhooks.get(name, &GetParams::default()).ok()?).await.ok()?;
        is_ready(&webhook).then_some(())
    }

    /// Starts an operator, and waits until it watches, knows every job and has a Webhook that is Ready.
    pub async fn start(&self, client: &Client, options: &OperatorOptions) -> (Operator, Synced) {
        let mut operator = Operator::start(self.plane, options).await;
        let begun = Instant::now();
        operator.wait_readyz("leader", SYNCED).await;
        eventually("the Webhook is Ready, and every job is known", SYNCED, || async {
            self.is_ready(client, "bench").await?;
            (operator.metric("llmtune_webhooks_ledger_records", &[]) as u32 == self.jobs).then_some(())
        })
        .await;
        let synced = Synced::since(begun, &operator.process);
        (operator, synced)
    }

    /// Starts the operator with an empty ledger, and waits until it watches.
    pub async fn start_operator(&self, client: &Client) -> (Subject, Synced) {
        let (operator, synced) = self.start(client, &self.options().await).await;
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
        eventually("the floor watches", SYNCED, || async { process.log_text().contains("watching").then_some(()) })
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

    /// The number of its writes to the apiserver, by resource.
    pub fn writes(&self) -> BTreeMap<String, u64> {
        match self {
            Self::Operator(operator) => writes(&operator.metrics()),
            Self::Floor(_) => BTreeMap::new(),
        }
    }

    pub fn memory(&self) -> Memory {
        memory(self.process())
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        match self {
            Self::Operator(operator) => operator.process.kill(),
            Self::Floor(process) => process.kill(),
        }
    }

    /// Stops it as Kubernetes does.
    pub fn stop(self) {
        let mut process = match self {
            Self::Operator(operator) => operator.process,
            Self::Floor(process) => process,
        };
        process.signal("TERM");
        process.wait(Duration::from_secs(20));
    }
}

/// The number of writes to the apiserver in an operator's metrics, by resource.
pub fn writes(text: &str) -> BTreeMap<String, u64> {
    let resources = text.lines().filter(|line| line.starts_with("llmtune_webhooks_api_requests_total{"));
    let resources = resources.filter_map(|line| line.split_once("resource=\"")?.1.split('"').next());
    let of = |resource: &str| -> f64 {
        let verbs = ["create", "update", "patch", "delete"];
        let writes =
            |verb| metric(text, "llmtune_webhooks_api_requests_total", &[("resource", resource), ("verb", verb)]);
        verbs.into_iter().map(writes).sum()
    };
    resources.map(|resource| (resource.to_owned(), of(resource) as u64)).collect()
}

pub fn memory(process: &Process) -> Memory {
    let [anonymous, peak] = ["RssAnon:", "VmHWM:"].map(|field| process.status_kib(field));
    Memory { resident: process.resident_kib(), anonymous, peak }
}

/// Starts and stops an operator in an empty namespace. Returns the milliseconds from the process's start to status 200
/// at `/readyz`.
pub async fn cold_start(plane: &ControlPlane, options: &OperatorOptions) -> Result<f64, String> {
    let operator = Operator::start(plane, options).await;
    loop {
        let answer = operator.get("/readyz");
        let took = operator.launched.elapsed();
        if answer.is_some_and(|(status, body)| status == 200 && body.contains("leader")) {
            return Ok(took.as_secs_f64() * 1e3);
        }
        if took > SYNCED {
            return Err(format!("not ready within {SYNCED:?}\n{}", operator.process.log_tail()));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// When the current process logged that it leads.
pub fn leading_since(operator: &Operator) -> Option<Instant> {
    let log = operator.log();
    let at: Timestamp = log.lines().find(|line| line.contains(": leading "))?.split(' ').next()?.parse().ok()?;
    Instant::now().checked_sub(Timestamp::now().duration_since(at).try_into().ok()?)
}

/// User and system time of all its threads, in nanoseconds if the kernel counts them.
pub fn cpu(process: &Process) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).into_iter().flatten().flatten();
    let nanoseconds: u64 = tasks
        .filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        })
        .sum();
    // The process total is in ticks, but includes threads that have ended.
    Duration::from_nanos(nanoseconds).max(Duration::from_secs_f64(process.cpu_seconds()))
}
