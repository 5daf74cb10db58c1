//! `make demo`: shows the operator on a real control plane. The demo applies `examples/`, acts as the training platform
//! and the deployment controller, and shows each delivery as a receiver saw and verified it. With `--keep` everything
//! keeps running until Ctrl-C.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{IsTerminal, Read},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::{Duration, Instant},
};

use k8s_openapi::{api::apps::v1::Deployment, jiff::Timestamp};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use llmtune_webhooks_harness::{
    control_plane::{ControlPlane, tool},
    operator::{Operator, OperatorOptions},
    process::{Process, temporary_folder},
    root,
};
use serde_json::{Value, json};

/// The placeholders in `examples/webhook.yaml` that users replace.
const URL: &str = "https://receiver.example.com/hooks";
const SECRET: &str = "replace-me-with-the-output-of-openssl-rand-hex-32";
/// The names in `examples/`.
const WEBHOOK: &str = "ci";
const JOB: &str = "llama-sft";
const DEPLOYMENT: &str = "llama-chat";
/// Long enough for a loaded machine; every wait ends as soon as its condition holds.
const SOON: Duration = Duration::from_mins(1);

type Result<T> = std::result::Result<T, String>;

/// The path of the operator's log, once it exists.
static OPERATOR_LOG: OnceLock<PathBuf> = OnceLock::new();

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let keep = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--keep"] => true,
        _ => {
            eprintln!("usage: demo [--keep]");
            return ExitCode::from(2);
        }
    };
    // The harness panics where a test would fail. The demo prints the message below, like any other error.
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(demo(keep))
    }));
    let failure = match outcome {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(failure)) => failure,
        Err(panic) => match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(panic) => (*panic.downcast_ref::<&str>().unwrap_or(&"a step failed")).to_owned(),
        },
    };
    eprintln!("\n{}", paint(Style::Bad, &format!("The demo failed: {}", failure.trim_end())));
    let log = OPERATOR_LOG.get().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    if let Some(last) = log.lines().last()
        && !failure.contains(last)
    {
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("\nThe end of the operator's log:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
    }
    ExitCode::FAILURE
}

async fn demo(keep: bool) -> Result<()> {
    let begun = Instant::now();
    let mut scene = Scene::start().await?;
    scene.subscribe()?;
    scene.train().await?;
    scene.deploy().await?;
    scene.show()?;
    let count = scene.deliveries;
    let seconds = begun.elapsed().as_secs_f64();
    note(&format!(
        "All {count} deliveries arrived in order, each with a valid signature. The demo took {seconds:.0} s."
    ));
    if keep {
        scene.keep().await?;
    }
    drop(scene);
    note("Stopped: the receiver, the operator, kube-apiserver, etcd.");
    Ok(())
}

/// The running processes. Fields are in the order of their drop.
struct Scene {
    receiver: Receiver,
    operator: Operator,
    plane: ControlPlane,
    kubectl: PathBuf,
    secret: String,
    deliveries: usize,
}

impl Scene {
    async fn start() -> Result<Self> {
        step("A control plane on loopback: etcd and kube-apiserver");
        let kubectl = tool("kubectl");
        let plane = ControlPlane::start().await;
        let version = plane.admin().await.apiserver_version().await.map_err(|error| error.to_string())?;
        note(&format!("kube-apiserver {} is ready on https://127.0.0.1:{}", version.git_version, plane.port));
        let shell = Shell { kubectl: &kubectl, plane: &plane, variables: &[] };
        shell.run("kubectl apply -f crds/")?;
        shell.run("kubectl wait --for=condition=Established crd --all --timeout=60s")?;

        step("The operator, as the service account and with the roles of charts/kustomize/rbac.yaml");
        shell.run("kubectl create namespace llmtune-system")?;
        let binary = std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("llmtune-webhooks");
        if !binary.exists() {
            return Err(format!("{} is missing; run `make demo`, or `cargo build` first", binary.display()));
        }
        let options = OperatorOptions::new(&binary.to_string_lossy(), "llmtune-system").cluster_wide();
        show_command("llmtune-webhooks run --namespace llmtune-system");
        let mut operator = Operator::start(&plane, &options).await;
        let _ = OPERATOR_LOG.set(operator.process.log.clone());
        operator.wait_ready().await;
        note(&format!("ready; see http://127.0.0.1:{}/metrics", operator.port));

        step("A receiver that verifies every signature");
        let secret = random_secret()?;
        note("WEBHOOK_SECRET contains 32 new random bytes in hexadecimal, as `openssl rand -hex 32` prints them.");
        show_command("PORT=0 node examples/receivers/receiver.mjs");
        let mut receiver = Receiver::start(&secret)?;
        receiver.wait_listening().await?;
        Ok(Self { receiver, operator, plane, kubectl, secret, deliveries: 0 })
    }

    /// Runs a command as a user would type it, with the demo's own standard output and error.
    fn run(&self, command: &str) -> Result<()> {
        let variables = [("WEBHOOK_SECRET", self.secret.as_str()), ("RECEIVER_URL", self.receiver.url.as_str())];
        Shell { kubectl: &self.kubectl, plane: &self.plane, variables: &variables }.run(command)
    }

    /// Waits for the next delivery, which must be this one.
    async fn delivered(&mut self, event: &str, name: &str) -> Result<()> {
        let waiting_since = Instant::now();
        let object = format!("default/{name}");
        loop {
            let verified = self.receiver.verified()?;
            if let Some(line) = verified.get(self.deliveries) {
                if !has_word(line, event) || !has_word(line, &object) {
                    return Err(format!("expected {event} of {object}, but the receiver got\n  {line}"));
                }
                self.deliveries += 1;
                return Ok(());
            }
            if let Some(status) = self.operator.process.try_wait() {
                return Err(format!("the operator ended with {status}"));
            }
            if waiting_since.elapsed() > SOON {
                return Err(format!("{event} of {object} did not reach the receiver within {} s", SOON.as_secs()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Applies the Webhook, with the receiver's URL and the secret in place of the placeholders.
    fn subscribe(&self) -> Result<()> {
        step("The subscription: examples/webhook.yaml, with the URL and the secret of the receiver");
        let manifest = fs::read_to_string(root().join("examples/webhook.yaml")).map_err(|error| error.to_string())?;
        for placeholder in [URL, SECRET] {
            if !manifest.contains(placeholder) {
                return Err(format!("examples/webhook.yaml does not contain {placeholder}"));
            }
        }
        note(&format!("RECEIVER_URL={}", self.receiver.url));
        self.run(&format!(
            "sed -e \"s|{URL}|$RECEIVER_URL|\" -e \"s|{SECRET}|$WEBHOOK_SECRET|\" examples/webhook.yaml | kubectl apply -f -"
        ))?;
        self.run(&format!("kubectl wait --for=condition=Ready webhook/{WEBHOOK} --timeout=60s"))
    }

    async fn train(&mut self) -> Result<()> {
        step("A TrainingJob; the demo writes its status, as the training platform would");
        self.run("kubectl apply -f examples/training-job.yaml")?;
        self.job(&json!({"phase": "Pending"}))?;
        self.job(&json!({"phase": "Running", "jobId": "job-7", "startedAt": now()}))?;
        self.delivered("training.started", JOB).await?;
        self.job(&json!({
            "phase": "Completed", "completedAt": now(), "artifact": "s3://models/llama-support-7", "metrics": {"loss": 0.42}
        }))?;
        self.delivered("training.completed", JOB).await
    }

    fn job(&self, status: &Value) -> Result<()> {
        let patch = json!({"status": status});
        self.run(&format!("kubectl patch trainingjob {JOB} --subresource=status --type=merge -p '{patch}'"))
    }

    async fn deploy(&mut self) -> Result<()> {
        step("A model Deployment");
        note("No deployment controller runs here. The demo writes the Deployment's status, as the controller would.");
        self.run("kubectl apply -f examples/deployment.yaml")?;
        self.rollout(Rollout { replicas: 2, updated: 2, available: 0, complete: false }).await?;
        self.rollout(Rollout { replicas: 2, updated: 2, available: 1, complete: false }).await?;
        self.delivered("deployment.created", DEPLOYMENT).await?;
        self.rollout(Rollout { replicas: 2, updated: 2, available: 2, complete: true }).await?;
        self.delivered("model.deployed", DEPLOYMENT).await?;

        step("A new model version");
        let patch = json!({"spec": {"template": {"metadata": {"annotations": {"llmtune.io/model-version": "8"}}}}});
        self.run(&format!("kubectl patch deployment {DEPLOYMENT} --type=merge -p '{patch}'"))?;
        self.rollout(Rollout { replicas: 3, updated: 1, available: 2, complete: false }).await?;
        self.rollout(Rollout { replicas: 2, updated: 2, available: 2, complete: true }).await?;
        self.delivered("model.deployed", DEPLOYMENT).await?;

        step("Scaled to zero, then deleted");
        self.run(&format!("kubectl scale deployment {DEPLOYMENT} --replicas=0"))?;
        self.rollout(Rollout { replicas: 0, updated: 0, available: 0, complete: true }).await?;
        self.delivered("deployment.paused", DEPLOYMENT).await?;
        self.run(&format!("kubectl delete deployment {DEPLOYMENT}"))?;
        self.delivered("deployment.deleted", DEPLOYMENT).await
    }

    /// Writes the Deployment's status in place of the deployment controller.
    async fn rollout(&self, rollout: Rollout) -> Result<()> {
        let Rollout { replicas, updated, available, complete } = rollout;
        let deployments: Api<Deployment> = Api::namespaced(self.plane.admin().await, "default");
        let generation = deployments.get(DEPLOYMENT).await.map_err(|error| error.to_string())?.metadata.generation;
        let progress = if complete { "NewReplicaSetAvailable" } else { "ReplicaSetUpdated" };
        let status = json!({"status": {
            "observedGeneration": generation,
            "replicas": replicas,
            "updatedReplicas": updated,
            "readyReplicas": available,
            "availableReplicas": available,
            "conditions": [{"type": "Progressing", "status": "True", "reason": progress, "lastUpdateTime": now()}],
        }});
        deployments
            .patch_status(DEPLOYMENT, &PatchParams::default(), &Patch::Merge(&status))
            .await
            .map_err(|error| format!("the Deployment's status could not be written: {error}"))?;
        note(&format!("status: {replicas} replicas, {updated} of them updated, {available} available"));
        Ok(())
    }

    /// Shows what a Kubernetes user sees.
    fn show(&mut self) -> Result<()> {
        step("The Webhook, as Kubernetes users see it");
        note("The operator writes counters at most every 5 s. Wait for them.");
        let count = self.deliveries;
        self.run(&format!(
            "kubectl wait --for=jsonpath='{{.status.deliveries.succeeded}}'={count} webhook/{WEBHOOK} --timeout=60s"
        ))?;
        self.run("kubectl get webhooks")?;
        self.run(&format!("kubectl describe webhook {WEBHOOK}"))?;
        let verified = self.receiver.verified()?;
        if let Some(line) = verified.get(count) {
            return Err(format!("the receiver got an unexpected delivery:\n  {line}"));
        }
        Ok(())
    }

    /// Keeps everything running until Ctrl-C, and prints further deliveries.
    async fn keep(&mut self) -> Result<()> {
        step("Everything keeps running until Ctrl-C");
        let mut text = String::from("In another terminal:\n\n");
        let _ = writeln!(text, "  export KUBECONFIG={}", self.plane.kubeconfig("admin").display());
        let folder = self.kubectl.parent().unwrap_or(Path::new("."));
        let _ = writeln!(text, "  export PATH={}:$PATH    # contains kubectl; your own works too", folder.display());
        let _ = writeln!(text, "  kubectl get webhooks,trainingjobs\n");
        let _ = writeln!(text, "The operator's log: {}", self.operator.process.log.display());
        let _ = write!(text, "Its metrics: http://127.0.0.1:{}/metrics", self.operator.port);
        println!("{text}");
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        loop {
            tokio::select! {
                signal = &mut interrupted => return signal.map_err(|error| error.to_string()),
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
            self.receiver.check_running()?;
            if let Some(status) = self.operator.process.try_wait() {
                return Err(format!("the operator ended with {status}"));
            }
        }
    }
}

/// The progress of a rollout.
#[derive(Clone, Copy)]
struct Rollout {
    replicas: i32,
    updated: i32,
    available: i32,
    complete: bool,
}

/// Runs commands with `KUBECONFIG` set and kubectl in `PATH`.
struct Shell<'a> {
    kubectl: &'a Path,
    plane: &'a ControlPlane,
    variables: &'a [(&'a str, &'a str)],
}

impl Shell<'_> {
    fn run(&self, command: &str) -> Result<()> {
        show_command(command);
        let mut path = self.kubectl.parent().unwrap_or(Path::new(".")).as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let status = Command::new("sh")
            .args(["-c", command])
            .current_dir(root())
            .env("PATH", path)
            .env("KUBECONFIG", self.plane.kubeconfig("admin"))
            // kubectl keeps caches and preferences there.
            .env("HOME", &self.plane.folder)
            .envs(self.variables.iter().copied())
            .stdin(Stdio::null())
            .status()
            .map_err(|error| format!("cannot run sh: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("this command ended with {status}:\n  {command}")) }
    }
}

/// The receiver. Its output is printed as it arrives, and recorded.
struct Receiver {
    process: Process,
    url: String,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    fn start(secret: &str) -> Result<Self> {
        let script = "examples/receivers/receiver.mjs";
        if !root().join(script).exists() {
            return Err(format!("{script} is missing"));
        }
        let mut command = Command::new("node");
        command.arg(script).current_dir(root()).env("PORT", "0").env("WEBHOOK_SECRET", secret);
        let log = temporary_folder("receiver").join("receiver.log");
        let process = Process::start("node, which runs the receiver", &mut command, &log);
        let lines = Arc::default();
        let weak = Arc::downgrade(&lines);
        std::thread::spawn(move || follow(&log, &weak));
        Ok(Self { process, url: String::new(), lines })
    }

    /// Waits for the line that contains the address.
    async fn wait_listening(&mut self) -> Result<()> {
        let waiting_since = Instant::now();
        while waiting_since.elapsed() < SOON {
            let line = self.lines().first().cloned().unwrap_or_default();
            if let Some(url) = line.split_whitespace().find(|word| word.starts_with("http://")) {
                url.clone_into(&mut self.url);
                return Ok(());
            }
            self.check_running()?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(format!("the receiver did not print its address within {} s", SOON.as_secs()))
    }

    /// The lines about verified deliveries, without repeats. Returns an error if the receiver refused a delivery or
    /// ended.
    fn verified(&mut self) -> Result<Vec<String>> {
        self.check_running()?;
        let lines = self.lines();
        if let Some(line) = lines.iter().find(|line| line.contains("refused")) {
            return Err(format!("the receiver did not accept a delivery:\n  {line}"));
        }
        Ok(lines.into_iter().filter(|line| has_word(line, "verified")).collect())
    }

    fn check_running(&mut self) -> Result<()> {
        match self.process.try_wait() {
            None => Ok(()),
            Some(status) => Err(format!("the receiver ended with {status}\n{}", self.process.log_tail())),
        }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Prints and records the lines of a growing file until the recorded lines are dropped.
fn follow(log: &Path, lines: &Weak<Mutex<Vec<String>>>) {
    let Ok(mut file) = File::open(log) else { return };
    let mut rest = Vec::new();
    while let Some(lines) = lines.upgrade() {
        if file.read_to_end(&mut rest).is_err() {
            return;
        }
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            println!("{}", paint(Style::Receiver, &format!("  receiver | {line}")));
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
        drop(lines);
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn has_word(line: &str, word: &str) -> bool {
    line.split_whitespace().any(|other| other == word)
}

/// 32 random bytes in hexadecimal, as `openssl rand -hex 32` prints them.
fn random_secret() -> Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| format!("/dev/urandom cannot be read: {error}"))?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[derive(Clone, Copy)]
enum Style {
    Step,
    Command,
    Note,
    Receiver,
    Bad,
}

/// Colors a text if standard output is a terminal.
fn paint(style: Style, text: &str) -> String {
    if !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some() {
        return text.to_owned();
    }
    let code = match style {
        Style::Step => "1;36",
        Style::Command => "1",
        Style::Note => "2",
        Style::Receiver => "32",
        Style::Bad => "1;31",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

fn step(text: &str) {
    println!("\n{}", paint(Style::Step, &format!("== {text}")));
}

fn note(text: &str) {
    println!("{}", paint(Style::Note, &format!("# {text}")));
}

fn show_command(command: &str) {
    println!("{}", paint(Style::Command, &format!("$ {command}")));
}
