//! Shared by the tests: a control plane, and helpers for the actions of users.

use std::{
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use futures::StreamExt;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use llmtune_api::training_job::{TrainingJob, TrainingJobSpec};
use llmtune_webhooks_harness::{
    control_plane::ControlPlane,
    operator::{Operator, OperatorOptions},
    process::temporary_folder,
    receiver::Received,
    root,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::{TcpListener, TcpStream},
    sync::OnceCell,
};

pub const BINARY: &str = env!("CARGO_BIN_EXE_llmtune-webhooks");

/// Returns the path of the plugin's binary. Cargo builds it with the plugin's own tests, next to the operator's.
pub fn plugin_binary() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = Path::new(BINARY).with_file_name("kubectl-llmtune");
        let sources = fs::read_to_string(path.with_extension("d")).unwrap_or_default();
        let modified = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
        let built = modified(&path);
        let is_older = |source: &str| built < modified(Path::new(source));
        let stale = sources.split_whitespace().skip(1).any(is_older);
        assert!(built.is_some() && !stale, "build the plugin first: cargo test --workspace --test cli");
        path
    })
}

/// Long enough for a loaded machine; tests wait for conditions, not for time.
pub const SOON: Duration = Duration::from_secs(30);

/// A runtime that outlives the individual test, for shared resources.
fn shared_runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap())
}

/// Runs a test's future.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test);
}

/// The control plane that most tests share, with the custom resources installed.
pub async fn plane() -> Arc<ControlPlane> {
    static PLANE: OnceCell<Arc<ControlPlane>> = OnceCell::const_new();
    PLANE
        .get_or_init(|| async {
            let starting = shared_runtime().spawn(async {
                let plane = ControlPlane::start().await;
                plane.install_crds();
                Arc::new(plane)
            });
            starting.await.unwrap()
        })
        .await
        .clone()
}

/// The folder of the receiver libraries in this language. Installs them first if they are missing.
pub fn libraries(language: &str) -> PathBuf {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new(root().join("tests/libraries/install"));
    let output = command.arg(language).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "the libraries for {language} could not be installed; see above");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// The output of a script in Node with these arguments and this input.
pub fn node(script: &str, arguments: &[&str], input: &str) -> String {
    printed(Command::new("node").arg(root().join(script)).args(arguments), input)
}

/// The output of a script in Python with these libraries and this input.
pub fn python(script: &str, libraries: &Path, input: &str) -> String {
    printed(Command::new("python3").arg(root().join(script)).env("PYTHONPATH", libraries), input)
}

/// The output of a command with this input. Panics if it fails.
pub fn printed(command: &mut Command, input: &str) -> String {
    // From a file: a pipe could fill up before the command reads it.
    let file = temporary_folder("input").join("text");
    std::fs::write(&file, input).unwrap();
    let output = command.stdin(File::open(file).unwrap()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A test's namespace, and the actions in it.
pub struct Scene {
    pub plane: Arc<ControlPlane>,
    pub namespace: String,
}

impl Scene {
    /// A scene on the shared control plane.
    pub async fn new(name: &str) -> Self {
        Self::on(plane().await, name).await
    }

    /// A scene on its own control plane, which the test may break.
    pub async fn alone(name: &str) -> Self {
        let plane = ControlPlane::start().await;
        plane.install_crds();
        Self::on(Arc::new(plane), name).await
    }

    /// A scene on this control plane.
    pub async fn on(plane: Arc<ControlPlane>, name: &str) -> Self {
        let namespace = plane.namespace(name).await;
        Self { plane, namespace }
    }

    pub fn options(&self) -> OperatorOptions {
        OperatorOptions::new(BINARY, &self.namespace)
    }

    /// Starts an operator of this namespace, and waits until it is ready.
    pub async fn operator(&self) -> Operator {
        Operator::start_ready(&self.plane, &self.options()).await
    }

    /// Runs kubectl here. Panics on errors.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let mut all = vec!["-n", &self.namespace];
        all.extend(arguments);
        let output = self.plane.kubectl(&all);
        assert!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Applies an object here. Panics on errors.
    pub fn apply(&self, object: &Value) {
        self.try_apply(object).unwrap_or_else(|error| panic!("{error}\n{object:#}"));
    }

    /// Applies an object here. The error is kubectl's message.
    pub fn try_apply(&self, object: &Value) -> Result<(), String> {
        self.try_apply_text(&object.to_string())
    }

    /// Applies manifests as a document shows them. Panics on errors.
    pub fn apply_text(&self, manifests: &str) {
        self.try_apply_text(manifests).unwrap_or_else(|error| panic!("{error}\n{manifests}"));
    }

    fn try_apply_text(&self, manifests: &str) -> Result<(), String> {
        let arguments = ["-n", &self.namespace, "apply", "--server-side", "--force-conflicts", "-f", "-"];
        let output = self.plane.kubectl_with_input(&arguments, manifests);
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    pub fn secret(&self, name: &str, value: &str) {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"secret": value}
        }));
    }

    /// Applies a Webhook; `spec` is merged over its url and `events: ["*"]`.
    pub fn webhook(&self, name: &str, url: &str, spec: &Value) {
        self.apply(&webhook(name, url, spec));
    }

    /// Creates a TrainingJob without a status.
    pub fn job(&self, name: &str) {
        self.apply(&json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": name},
            "spec": {"baseModel": "meta-llama/Llama-3.1-8B", "trainingMethod": "sft"}
        }));
    }

    /// Merges this into a TrainingJob's status.
    pub fn job_status(&self, name: &str, status: &Value) {
        let patch = json!({"status": status}).to_string();
        self.kubectl(&["patch", "trainingjob", name, "--subresource=status", "--type=merge", "-p", &patch]);
    }

    pub fn phase(&self, name: &str, phase: &str) {
        self.job_status(name, &json!({"phase": phase}));
    }

    /// An object as JSON, as `kubectl get` shows it.
    pub fn get(&self, kind: &str, name: &str) -> Value {
        self.find(kind, name).unwrap_or_else(|error| panic!("{kind} {name}: {error}"))
    }

    /// The same; the error is the apiserver's message.
    pub fn find(&self, kind: &str, name: &str) -> Result<Value, String> {
        let mut object = self.plane.read(&format!("{}/{name}", self.collection(kind)))?;
        object["metadata"].as_object_mut().unwrap().remove("managedFields");
        Ok(object)
    }

    /// The objects of a kind here with these labels, as in `kubectl get -l`. Empty selects all.
    pub fn list(&self, kind: &str, labels: &str) -> Vec<Value> {
        self.selected(kind, &format!("labelSelector={}", escaped(labels)))
    }

    fn selected(&self, kind: &str, selector: &str) -> Vec<Value> {
        let path = format!("{}?{selector}", self.collection(kind));
        let mut list = self.plane.read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        serde_json::from_value(list["items"].take()).unwrap()
    }

    /// The path of a kind's collection, by the kind's name or short name.
    fn collection(&self, kind: &str) -> String {
        let here = |group: &str, resource: &str| format!("/{group}/namespaces/{}/{resource}", self.namespace);
        let ours = "apis/llmtune.io/v1alpha1";
        match kind {
            "webhook" => here(ours, "webhooks"),
            "whd" => here(ours, "webhookdeliveries"),
            "trainingjob" => here(ours, "trainingjobs"),
            "usagethreshold" | "ut" => here(ours, "usagethresholds"),
            "ledgersegment" => here(ours, "ledgersegments"),
            "clusterwebhook" | "cwh" => format!("/{ours}/clusterwebhooks"),
            "webhooksource" => format!("/{ours}/webhooksources"),
            "configmap" | "secret" | "resourcequota" => here("api/v1", &format!("{kind}s")),
            "deployment" => here("apis/apps/v1", "deployments"),
            "lease" => here("apis/coordination.k8s.io/v1", "leases"),
            "event" => here("apis/events.k8s.io/v1", "events"),
            "clusterrole" => "/apis/rbac.authorization.k8s.io/v1/clusterroles".into(),
            _ => panic!("where {kind} objects are is not written here"),
        }
    }

    /// Waits with `kubectl wait --for`.
    pub fn wait(&self, what: &str, condition: &str) {
        self.kubectl(&["wait", "--timeout=90s", what, &format!("--for={condition}")]);
    }

    /// Status, reason and message of a Webhook's condition.
    pub fn condition(&self, webhook: &str, kind: &str) -> Option<(String, String, String)> {
        let object = self.get("webhook", webhook);
        let conditions = object["status"]["conditions"].as_array()?.clone();
        let condition = conditions.into_iter().find(|condition| condition["type"] == kind)?;
        let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
        Some((text("status"), text("reason"), text("message")))
    }

    /// Waits until a Webhook's condition has this status and reason.
    pub async fn wait_condition(&self, webhook: &str, kind: &str, status: &str, reason: &str, limit: Duration) {
        let what = format!("{kind}={status} ({reason}) of {webhook}");
        llmtune_webhooks_harness::eventually(&what, limit, || async {
            let condition = self.condition(webhook, kind)?;
            (condition.0 == status && condition.1 == reason).then_some(())
        })
        .await;
    }

    /// The Kubernetes Events about an object: reason and note.
    pub fn events(&self, kind: &str, name: &str) -> Vec<(String, String)> {
        let about = escaped(&format!("regarding.kind={kind},regarding.name={name}"));
        let events = self.selected("event", &format!("fieldSelector={about}"));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        events.iter().map(|event| (text(&event["reason"]), text(&event["note"]))).collect()
    }

    /// Waits for an Event of this reason, and returns its note.
    pub async fn wait_event(&self, kind: &str, name: &str, reason: &str) -> String {
        llmtune_webhooks_harness::eventually(&format!("Event {reason} of {kind} {name}"), SOON, || async {
            self.events(kind, name).into_iter().find(|event| event.0 == reason).map(|event| event.1)
        })
        .await
    }
}

/// Escapes a selector for a query.
fn escaped(selector: &str) -> String {
    selector.replace('=', "%3D")
}

/// An endpoint that misbehaves below HTTP. `behaviour` handles each connection. Returns its URL.
pub async fn misbehaving<F>(behaviour: impl Fn(TcpStream) -> F + Send + 'static) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://127.0.0.1:{}/hook", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(behaviour(stream));
        }
    });
    url
}

/// Reads a request, or the part of it that arrives at once.
pub async fn read_request(stream: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = vec![0; 16 * 1024];
    let _ = stream.read(&mut buffer).await;
}

/// A Webhook's manifest; `spec` is merged over its url and `events: ["*"]`.
pub fn webhook(name: &str, url: &str, spec: &Value) -> Value {
    let mut merged = json!({"url": url, "events": ["*"]});
    for (key, value) in spec.as_object().unwrap() {
        merged[key] = value.clone();
    }
    json!({"apiVersion": "llmtune.io/v1alpha1", "kind": "Webhook", "metadata": {"name": name}, "spec": merged})
}

/// TrainingJobs driven through the API directly, because kubectl would be too slow.
#[derive(Clone)]
pub struct Jobs {
    api: Api<TrainingJob>,
}

impl Jobs {
    pub async fn new(scene: &Scene) -> Self {
        Self { api: Api::namespaced(scene.plane.admin().await, &scene.namespace) }
    }

    pub async fn create(&self, name: &str) {
        let spec = TrainingJobSpec { base_model: Some("meta-llama/Llama-3.1-8B".into()), ..TrainingJobSpec::default() };
        let job = TrainingJob::new(name, spec);
        persist(|| async {
            match self.api.create(&PostParams::default(), &job).await {
                // The response to an earlier call was lost.
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                result => result.map(|_| ()),
            }
        })
        .await;
    }

    pub async fn phase(&self, name: &str, phase: &str) {
        self.status(name, &json!({"phase": phase})).await;
    }

    /// Starts a run and sets its time, as training platforms do.
    pub async fn start(&self, name: &str) {
        let now = jiff::Timestamp::now().to_string();
        self.status(name, &json!({"phase": "Running", "startedAt": now})).await;
    }

    /// Completes a run and sets its time.
    pub async fn complete(&self, name: &str) {
        let now = jiff::Timestamp::now().to_string();
        self.status(name, &json!({"phase": "Completed", "completedAt": now})).await;
    }

    pub async fn delete(&self, name: &str) {
        persist(|| async { self.api.delete(name, &DeleteParams::default()).await }).await;
    }

    /// Merges this into the status.
    pub async fn status(&self, name: &str, status: &Value) {
        let patch = json!({"status": status});
        persist(|| async { self.api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await }).await;
    }

    /// Drives `count` jobs from Pending over Running to Completed, at `rate` transitions a second. Returns the
    /// duration.
    pub async fn drive(&self, count: usize, rate: u32) -> Duration {
        let creating = futures::stream::iter(0..count).for_each_concurrent(16, |number| async move {
            let name = format!("job-{number:04}");
            self.create(&name).await;
            self.phase(&name, "Pending").await;
        });
        creating.await;
        let begun = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
        // Each job runs for fifty transitions before it completes, so that many runs are active at once.
        let runs = (0..count).map(|number| (2 * number, number, false));
        let completions = (0..count).map(|number| (2 * number + 101, number, true));
        let mut steps: Vec<(usize, usize, bool)> = runs.chain(completions).collect();
        steps.sort_unstable();
        let mut running = std::collections::HashMap::new();
        let mut completing = tokio::task::JoinSet::new();
        for (_, number, completes) in steps {
            tick.tick().await;
            let (jobs, name) = (self.clone(), format!("job-{number:04}"));
            if completes {
                // A job completes only after its Running status is written, even if the apiserver was unavailable in
                // between.
                let run: tokio::task::JoinHandle<()> = running.remove(&number).unwrap();
                completing.spawn(async move {
                    run.await.unwrap();
                    jobs.complete(&name).await;
                });
            } else {
                running.insert(number, tokio::spawn(async move { jobs.start(&name).await }));
            }
        }
        while let Some(result) = completing.join_next().await {
            result.unwrap();
        }
        begun.elapsed()
    }
}

/// Repeats a call until the apiserver accepts it: tests stop and start the apiserver.
async fn persist<T, F: Future<Output = kube::Result<T>>>(mut call: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        match tokio::time::timeout(Duration::from_secs(5), call()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(error)) => assert!(begun.elapsed() < Duration::from_secs(120), "{error}"),
            Err(_) => assert!(begun.elapsed() < Duration::from_secs(120), "the apiserver does not answer"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Two replicas with this `--lease-duration`; the first one leads.
pub async fn replicas(scene: &Scene, lease: &str) -> (Operator, Operator) {
    let options = scene.options().argument(lease);
    let mut first = Operator::start(&scene.plane, &options.clone().identity("one")).await;
    first.wait_readyz("leader", SOON).await;
    let mut second = Operator::start(&scene.plane, &options.identity("two")).await;
    second.wait_readyz("standby: one leads", SOON).await;
    (first, second)
}

/// Checks that each of this many jobs has started and then completed, once each.
pub fn in_order(first: &[Received], jobs: usize) {
    let mut by_job: HashMap<String, Vec<(String, u64)>> = HashMap::new();
    for post in first {
        let sequence = post.json()["sequence"].as_u64().unwrap();
        by_job.entry(post.name()).or_default().push((post.event(), sequence));
    }
    assert_eq!(by_job.len(), jobs);
    let expected = [("training.started".to_owned(), 1), ("training.completed".to_owned(), 2)];
    for (job, events) in by_job {
        assert_eq!(events, expected, "{job}");
    }
}
