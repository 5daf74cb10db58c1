//! Runs the operator as a real process, with a service account that has exactly the shipped roles.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use crate::{
    control_plane::ControlPlane,
    eventually,
    process::{Process, free_port, temporary_folder},
    root,
};

/// Options of an operator.
#[derive(Clone)]
pub struct OperatorOptions {
    /// The operator's binary.
    pub binary: PathBuf,
    /// The namespace of its Lease.
    pub namespace: String,
    /// The namespaces that it watches; empty for all.
    pub watch: Vec<String>,
    pub identity: String,
    pub arguments: Vec<String>,
    /// Additional environment variables.
    pub environment: Vec<(String, String)>,
    /// Whether the address guard allows loopback, where the receivers of tests listen.
    pub reaches_loopback: bool,
    /// The operator's `RUST_LOG`.
    pub log: String,
    /// The apiserver's port, if it differs from the control plane's.
    pub apiserver_port: Option<u16>,
    /// Whether its rights in the watched namespaces come from Roles instead of a `ClusterRole`.
    pub by_roles: bool,
}

impl OperatorOptions {
    /// An operator that runs in one namespace and watches it.
    pub fn new(binary: &str, namespace: &str) -> Self {
        Self {
            binary: binary.into(),
            namespace: namespace.into(),
            watch: vec![namespace.into()],
            identity: "operator-0".into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            reaches_loopback: true,
            log: std::env::var("LLMTUNE_TEST_LOG").unwrap_or_else(|_| "info,llmtune_webhooks=debug".into()),
            apiserver_port: None,
            by_roles: false,
        }
    }

    pub fn cluster_wide(mut self) -> Self {
        self.watch.clear();
        self
    }

    pub fn identity(mut self, identity: &str) -> Self {
        self.identity = identity.into();
        self
    }

    pub fn log(mut self, filter: &str) -> Self {
        self.log = filter.into();
        self
    }

    /// Leaves only the address guard's built-in rules.
    pub fn guarded(mut self) -> Self {
        self.reaches_loopback = false;
        self
    }

    /// Uses Roles in the watched namespaces instead of the `ClusterRole`.
    pub fn by_roles(mut self) -> Self {
        self.by_roles = true;
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.into());
        self
    }
}

/// Time limit for a graceful stop.
const STOPPING: Duration = Duration::from_secs(30);

/// A running operator.
pub struct Operator {
    pub process: Process,
    pub port: u16,
    pub options: OperatorOptions,
    /// When its process was started.
    pub launched: Instant,
    kubeconfig: PathBuf,
    /// Start of the current process's part of the log: all processes of one operator append to the same file.
    log_begins: usize,
}

/// Applies the shipped roles for an operator in this namespace.
pub fn install_roles(plane: &ControlPlane, namespace: &str) {
    let text = std::fs::read_to_string(root().join("charts/kustomize/rbac.yaml")).unwrap();
    // Several operators share the control plane, so each has its own bindings of the shipped roles.
    let text = text.replace("llmtune-system", namespace).replace(
        "kind: ClusterRoleBinding\nmetadata:\n  name: llmtune-webhooks",
        &format!("kind: ClusterRoleBinding\nmetadata:\n  name: llmtune-webhooks-{namespace}"),
    );
    apply(plane, &text);
}

/// The same for an operator that watches only these namespaces, with the chart's roles for that case.
fn install_roles_in(plane: &ControlPlane, namespace: &str, served: &[String]) {
    let chart = root().join("charts/llmtune-webhooks").display().to_string();
    let served = format!("operator.watchNamespace={{{}}}", served.join(","));
    let render = ["template", "llmtune-webhooks", &chart, "--namespace", namespace, "--set", &served];
    apply(plane, &plane.helm(&[&render[..], &["--show-only=templates/rbac.yaml"]].concat()));
}

fn apply(plane: &ControlPlane, manifests: &str) {
    let output = plane.kubectl_with_input(&["apply", "--server-side", "--force-conflicts", "-f", "-"], manifests);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Operator {
    /// Starts it, with its roles; does not wait until it is ready.
    pub async fn start(plane: &ControlPlane, options: &OperatorOptions) -> Self {
        if options.by_roles {
            install_roles_in(plane, &options.namespace, &options.watch);
        } else {
            install_roles(plane, &options.namespace);
        }
        let token = plane.token(&options.namespace, "llmtune-webhooks").await;
        let name = format!("operator-{}-{}", options.namespace, options.identity);
        let kubeconfig = plane.write_kubeconfig_for(&name, &token, options.apiserver_port.unwrap_or(plane.port));
        let log = temporary_folder("operator").join("operator.log");
        let launched = Instant::now();
        let (process, port) = launch(options, &kubeconfig, &log);
        Self { process, port, options: options.clone(), launched, kubeconfig, log_begins: 0 }
    }

    /// Starts it again with the same options, as the kubelet restarts a container. Kills it first if it still runs. The
    /// port changes. Makes no requests to the apiserver.
    pub fn restart(&mut self) {
        self.process.kill();
        self.log_begins = self.process.log_text().len();
        let log = self.process.log.clone();
        self.launched = Instant::now();
        (self.process, self.port) = launch(&self.options, &self.kubeconfig, &log);
    }

    /// Starts it again if it has ended. Returns the exit status of the process that ended.
    pub fn revive(&mut self) -> Option<ExitStatus> {
        let status = self.process.try_wait()?;
        self.restart();
        Some(status)
    }

    /// Stops it gracefully, and waits until it has ended.
    pub fn stop(&mut self) {
        let status = self.process.stop(STOPPING);
        assert!(status.success(), "the operator ended with {status}\n{}", self.process.log_tail());
    }

    /// Starts it and waits until it watches.
    pub async fn start_ready(plane: &ControlPlane, options: &OperatorOptions) -> Self {
        let mut operator = Self::start(plane, options).await;
        operator.wait_ready().await;
        operator
    }

    /// Waits until `/readyz` is 200.
    pub async fn wait_ready(&mut self) {
        self.wait_readyz("", Duration::from_secs(30)).await;
    }

    /// Waits until `/readyz` is 200 and contains this text.
    pub async fn wait_readyz(&mut self, text: &str, limit: Duration) {
        let port = self.port;
        let process = &mut self.process;
        let begun = Instant::now();
        loop {
            if let Some(status) = process.try_wait() {
                panic!("the operator ended with {status}\n{}", process.log_tail());
            }
            if get(port, "/readyz").is_some_and(|(status, body)| status == 200 && body.contains(text)) {
                return;
            }
            assert!(begun.elapsed() < limit, "not ready ({text:?}) within {limit:?}\n{}", process.log_tail());
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> String {
        let (status, text) = get(self.port, "/metrics").expect("/metrics answers");
        assert_eq!(status, 200);
        text
    }

    /// GETs this path. Returns status and body.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        get(self.port, path)
    }

    /// The value of a metric's series with all these labels; 0 if there is none.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        metric(&self.metrics(), name, labels)
    }

    /// The log since the last start.
    pub fn log(&self) -> String {
        self.process.log_text().split_off(self.log_begins)
    }

    /// Waits for a line in the log since the last start.
    pub async fn wait_log(&self, text: &str, limit: Duration) {
        eventually(&format!("the log says {text:?}"), limit, || async { self.log().contains(text).then_some(()) })
            .await;
    }
}

/// Starts an operator's process. Returns it with the port of its metrics.
fn launch(options: &OperatorOptions, kubeconfig: &Path, log: &Path) -> (Process, u16) {
    let name = format!("operator-{}-{}", options.namespace, options.identity);
    let port = free_port();
    let mut command = Command::new(&options.binary);
    command
        .args(["run", "--namespace", &options.namespace, "--identity", &options.identity])
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .env("KUBECONFIG", kubeconfig)
        .env_remove("HTTPS_PROXY")
        .env_remove("https_proxy")
        .env("RUST_LOG", &options.log);
    for namespace in &options.watch {
        command.args(["--watch-namespace", namespace]);
    }
    if options.reaches_loopback {
        command.args(["--allow-cidr", "127.0.0.0/8,::1/128"]);
    }
    command.args(&options.arguments);
    command.envs(options.environment.iter().map(|(name, value)| (name, value)));
    (Process::start(&name, &mut command, log), port)
}

/// The sum of a metric's series that have all these labels.
pub fn metric(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let lines = text.lines().filter(|line| {
        let rest = line.strip_prefix(name).unwrap_or_default();
        (rest.starts_with('{') || rest.starts_with(' '))
            && labels.iter().all(|(key, value)| rest.contains(&format!("{key}=\"{value}\"")))
    });
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// A GET over a new connection.
pub fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
