//! A real control plane on loopback: etcd and kube-apiserver with RBAC, and on demand kube-controller-manager,
//! kube-scheduler and kwok.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, OnceLock},
    thread,
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Namespace, Node, ServiceAccount},
};
use kube::{
    Api, Client, Config,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::{
    runtime::{Builder, Runtime},
    sync::OnceCell,
};

use crate::{
    eventually,
    operator::get,
    process::{Process, free_port, temporary_folder},
    root,
};

const ADMIN_TOKEN: &str = "admin-token";

/// The runtime of [`ControlPlane::read`].
fn reading() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap())
}

/// The path of a control-plane tool. Builds it first if it is missing.
pub fn tool(name: &str) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let output = Command::new(root().join("tests/control-plane/build"))
        .arg(name)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{name} could not be built; see above");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// The folder of a Go module pinned in `tests/control-plane/PINS`. Downloads it first if it is missing.
pub fn module(pins: &str, path: &str) -> PathBuf {
    let output = Command::new("go")
        .args(["mod", "download", "-json", path])
        .current_dir(root().join("tests/control-plane").join(pins))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let folder =
        answer["Dir"].as_str().unwrap_or_else(|| panic!("{path} could not be downloaded: {}", answer["Error"]));
    folder.into()
}

/// A running control plane.
pub struct ControlPlane {
    pub folder: PathBuf,
    pub port: u16,
    etcd_port: u16,
    etcd: Mutex<Option<Process>>,
    apiserver: Mutex<Option<Process>>,
    controllers: Mutex<Vec<Process>>,
    audited: bool,
    reader: OnceCell<Client>,
}

/// Logs the requests of service accounts, without their content.
const AUDIT_POLICY: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
    {"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}]}"#;

impl ControlPlane {
    /// Starts etcd and kube-apiserver and waits until they are ready.
    pub async fn start() -> Self {
        Self::start_with(false).await
    }

    /// The same, with an audit log of the requests of service accounts.
    pub async fn start_audited() -> Self {
        Self::start_with(true).await
    }

    /// The path of the audit log.
    pub fn audit_log(&self) -> PathBuf {
        self.folder.join("audit.log")
    }

    async fn start_with(audited: bool) -> Self {
        // Both clients of the tests use it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = temporary_folder("control-plane");
        let key = rcgen::KeyPair::generate().unwrap();
        fs::write(folder.join("sa.key"), key.serialize_pem()).unwrap();
        fs::write(folder.join("sa.pub"), key.public_key_pem()).unwrap();
        fs::write(folder.join("tokens"), format!("{ADMIN_TOKEN},admin,admin,system:masters\n")).unwrap();
        let plane = Self {
            port: free_port(),
            etcd_port: free_port(),
            folder,
            etcd: Mutex::default(),
            apiserver: Mutex::default(),
            controllers: Mutex::default(),
            audited,
            reader: OnceCell::new(),
        };
        plane.start_etcd();
        plane.start_apiserver();
        plane.wait_ready().await;
        plane.write_kubeconfig("admin", ADMIN_TOKEN);
        plane
    }

    pub fn start_etcd(&self) {
        let (folder, port, peer) = (&self.folder, self.etcd_port, free_port());
        let client = format!("http://127.0.0.1:{port}");
        let peer = format!("http://127.0.0.1:{peer}");
        let mut command = Command::new(tool("etcd"));
        command
            .arg("--data-dir")
            .arg(folder.join("etcd"))
            .args(["--unsafe-no-fsync", "--log-level", "error", "--quota-backend-bytes", "8589934592"])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")]);
        *self.etcd.lock().unwrap() = Some(Process::start("etcd", &mut command, &folder.join("etcd.log")));
    }

    /// Stops etcd gracefully, which writes all data to disk although etcd runs without fsync.
    pub fn stop_etcd(&self) {
        if let Some(mut process) = self.etcd.lock().unwrap().take() {
            process.stop(Duration::from_secs(30));
        }
    }

    /// Freezes etcd: requests to the apiserver that need it hang.
    pub fn freeze_etcd(&self) {
        self.etcd.lock().unwrap().as_ref().expect("etcd runs").freeze();
    }

    pub fn thaw_etcd(&self) {
        self.etcd.lock().unwrap().as_ref().expect("etcd runs").thaw();
    }

    /// Copies etcd's data folder in the state that a crash would leave now. etcd stops only while the copy is made.
    pub fn copy_etcd(&self) -> PathBuf {
        let copy = temporary_folder("etcd-copy");
        self.freeze_etcd();
        copy_folder(&self.folder.join("etcd"), &copy);
        self.thaw_etcd();
        copy
    }

    /// Restores etcd from a copy of its data folder, restarts the apiserver with it, and waits until both are ready.
    pub async fn restore_etcd(&self, copy: &Path) {
        self.stop_apiserver();
        self.stop_etcd();
        let folder = self.folder.join("etcd");
        fs::remove_dir_all(&folder).unwrap();
        copy_folder(copy, &folder);
        self.start_etcd();
        self.start_apiserver();
        self.wait_ready().await;
    }

    /// Restarts kube-apiserver and waits until it is ready. The new process has an empty watch cache: watches cannot
    /// resume from before its start.
    pub async fn restart_apiserver(&self) {
        self.stop_apiserver();
        self.start_apiserver();
        self.wait_ready().await;
    }

    pub fn start_apiserver(&self) {
        let folder = &self.folder;
        let file = |name: &str| folder.join(name).display().to_string();
        let mut command = Command::new(tool("kube-apiserver"));
        command
            .args(["--bind-address", "127.0.0.1", "--secure-port", &self.port.to_string()])
            .args(["--etcd-servers", &format!("http://127.0.0.1:{}", self.etcd_port)])
            .args(["--cert-dir", &file("certs"), "--token-auth-file", &file("tokens")])
            .args(["--service-account-issuer", "https://kubernetes.default.svc"])
            .args(["--service-account-key-file", &file("sa.pub")])
            .args(["--service-account-signing-key-file", &file("sa.key")])
            .args(["--authorization-mode", "RBAC", "--service-cluster-ip-range", "10.0.0.0/24"])
            .args(["--endpoint-reconciler-type", "none", "--profiling=false"]);
        if self.audited {
            fs::write(folder.join("audit-policy.json"), AUDIT_POLICY).unwrap();
            command
                .args(["--audit-policy-file", &file("audit-policy.json"), "--audit-log-path", &file("audit.log")])
                .args(["--audit-log-mode", "blocking"]);
        }
        *self.apiserver.lock().unwrap() =
            Some(Process::start("kube-apiserver", &mut command, &folder.join("kube-apiserver.log")));
    }

    /// Stops kube-apiserver; its clients' connections break.
    pub fn stop_apiserver(&self) {
        if let Some(mut process) = self.apiserver.lock().unwrap().take() {
            process.kill();
        }
    }

    /// Waits until kube-apiserver's `/readyz` is 200.
    pub async fn wait_ready(&self) {
        let kubeconfig = self.write_kubeconfig("probe", ADMIN_TOKEN);
        eventually("kube-apiserver is ready", Duration::from_secs(120), || async {
            if let Some(process) = self.apiserver.lock().unwrap().as_mut()
                && let Some(status) = process.try_wait()
            {
                panic!("kube-apiserver ended with {status}\n{}", process.log_tail());
            }
            let config = config(&kubeconfig).await.ok()?;
            let client = Client::try_from(config).ok()?;
            let request = axum::http::Request::get("/readyz").body(Vec::new()).ok()?;
            client.request_text(request).await.ok()
        })
        .await;
    }

    /// Starts only the controller that aggregates roles.
    pub fn start_role_aggregation(&self) {
        let mut command = Command::new(tool("kube-controller-manager"));
        command.arg("--kubeconfig").arg(self.kubeconfig("admin")).args([
            "--controllers=clusterrole-aggregation-controller",
            "--secure-port",
            "0",
            "--leader-elect=false",
        ]);
        let log = self.folder.join("role-aggregation.log");
        self.controllers.lock().unwrap().push(Process::start("role-aggregation", &mut command, &log));
    }

    /// Starts the components that real rollouts need: controller-manager, scheduler, kwok and a node.
    pub async fn start_controllers(&self) {
        let kubeconfig = self.kubeconfig("admin");
        let folder = &self.folder;
        let start = |name: &str, configure: &dyn Fn(&mut Command)| {
            let mut command = Command::new(tool(name));
            command.arg("--kubeconfig").arg(&kubeconfig);
            configure(&mut command);
            let process = Process::start(name, &mut command, &folder.join(format!("{name}.log")));
            self.controllers.lock().unwrap().push(process);
        };
        start("kube-controller-manager", &|command| {
            command.arg("--service-account-private-key-file").arg(folder.join("sa.key")).args([
                "--secure-port",
                "0",
                "--leader-elect=false",
            ]);
        });
        start("kube-scheduler", &|command| {
            command.args(["--secure-port", "0", "--leader-elect=false"]);
        });
        let stages = module("kwok", "sigs.k8s.io/kwok").join("kustomize/stage");
        start("kwok", &|command| {
            command.args(["--manage-all-nodes=true", "--node-lease-duration-seconds=40"]);
            for stage in [
                "node/fast/node-initialize",
                "node/heartbeat-with-lease/node-heartbeat-with-lease",
                "pod/fast/pod-ready",
                "pod/fast/pod-complete",
                "pod/fast/pod-delete",
            ] {
                command.arg("--config").arg(stages.join(format!("{stage}.yaml")));
            }
        });
        let nodes: Api<Node> = Api::all(self.admin().await);
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "kwok-0", "annotations": {"kwok.x-k8s.io/node": "fake"}},
            "status": {
                "allocatable": {"cpu": "64", "memory": "256Gi", "pods": "1000"},
                "capacity": {"cpu": "64", "memory": "256Gi", "pods": "1000"}
            }
        });
        nodes.patch("kwok-0", &PatchParams::apply("harness").force(), &Patch::Apply(&node)).await.unwrap();
    }

    /// The kubeconfig of that name, if it has been written.
    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.kubeconfig"))
    }

    fn write_kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        self.write_kubeconfig_for(name, token, self.port)
    }

    /// Writes a kubeconfig that reaches the apiserver at another port, such as a proxy's.
    pub fn write_kubeconfig_for(&self, name: &str, token: &str, port: u16) -> PathBuf {
        let path = self.kubeconfig(name);
        let certificate = self.folder.join("certs/apiserver.crt");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{port}"),
                "certificate-authority": certificate,
            }}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}],
        });
        fs::write(&path, serde_json::to_vec_pretty(&config).unwrap()).unwrap();
        path
    }

    /// A client with all rights.
    pub async fn admin(&self) -> Client {
        let mut config = config(&self.kubeconfig("admin")).await.unwrap();
        config.read_timeout = Some(Duration::from_secs(120));
        Client::try_from(config).unwrap()
    }

    /// GETs this path as the administrator, and blocks until the response. The error is the apiserver's message. It
    /// costs a hundredth of a kubectl call, which matters in tests that poll.
    pub fn read(&self, path: &str) -> Result<Value, String> {
        let request = axum::http::Request::get(path).body(Vec::new()).unwrap();
        let answer = async { self.reader.get_or_init(|| self.admin()).await.request(request).await };
        // A separate thread, because tests call this from within their runtimes.
        let answer = thread::scope(|scope| scope.spawn(|| reading().block_on(answer)).join()).unwrap();
        answer.map_err(|error| error.to_string())
    }

    /// etcd's own metrics.
    pub fn etcd_metrics(&self) -> String {
        get(self.etcd_port, "/metrics").expect("etcd serves its metrics").1
    }

    /// kube-apiserver's own metrics.
    pub async fn apiserver_metrics(&self) -> String {
        let request = axum::http::Request::get("/metrics").body(Vec::new()).unwrap();
        self.admin().await.request_text(request).await.unwrap()
    }

    /// Creates a namespace.
    pub async fn namespace(&self, prefix: &str) -> String {
        let api: Api<Namespace> = Api::all(self.admin().await);
        let metadata = ObjectMeta { generate_name: Some(format!("{prefix}-")), ..ObjectMeta::default() };
        let created =
            api.create(&PostParams::default(), &Namespace { metadata, ..Namespace::default() }).await.unwrap();
        created.metadata.name.unwrap()
    }

    /// A token of a service account. Creates the account if it is missing.
    pub async fn token(&self, namespace: &str, account: &str) -> String {
        let api: Api<ServiceAccount> = Api::namespaced(self.admin().await, namespace);
        let patch = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}});
        api.patch(account, &PatchParams::apply("harness").force(), &Patch::Apply(&patch)).await.unwrap();
        let request = TokenRequest {
            spec: Some(TokenRequestSpec { expiration_seconds: Some(86_400), ..TokenRequestSpec::default() }),
            ..TokenRequest::default()
        };
        let token = api.create_token_request(account, &PostParams::default(), &request).await.unwrap();
        token.status.unwrap().token.unwrap()
    }

    /// Runs kubectl as the administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> std::process::Output {
        self.kubectl_with_input(arguments, "")
    }

    /// Runs kubectl as the administrator, with this standard input.
    pub fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> std::process::Output {
        use std::io::Write;
        static KUBECTL: OnceLock<PathBuf> = OnceLock::new();
        let mut child = Command::new(KUBECTL.get_or_init(|| tool("kubectl")))
            .arg("--kubeconfig")
            .arg(self.kubeconfig("admin"))
            .args(arguments)
            .env("HOME", &self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Runs Helm as the administrator. Panics on errors.
    pub fn helm(&self, arguments: &[&str]) -> String {
        let output = Command::new(tool("helm"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig("admin"))
            .args(arguments)
            .env("HOME", &self.folder)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "helm {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Applies the custom resource definitions in `crds/` and waits until they are served.
    pub fn install_crds(&self) {
        let folder = root().join("crds");
        let output = self.kubectl(&["apply", "--server-side", "-f", folder.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let output = self.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn copy_folder(from: &Path, to: &Path) {
    // etcd requires that only the owner has access to the folder.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

async fn config(kubeconfig: &Path) -> Result<Config, Box<dyn std::error::Error + Send + Sync>> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // kube uses HTTPS_PROXY for loopback too.
    config.proxy_url = None;
    Ok(config)
}
