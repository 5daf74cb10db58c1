//! `make image-check`: runs the contents of the image as a container would, on machines without a container engine. The
//! root folder holds only the binary, the CAs and the files that a kubelet adds. The uid is arbitrary; the environment
//! is a pod's. A binary for another processor runs in the given emulator, itself a static binary.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use llmtune_webhooks_harness::{
    control_plane::ControlPlane,
    eventually,
    operator::{get, install_roles},
    process::{Process, free_port, temporary_folder},
    receiver::Receiver,
};

/// Upper bound for the binary and the CAs together.
const MOST_MIB: f64 = 15.0;
/// The path of the CAs in Debian, and so in the image.
const ROOTS: &str = "etc/ssl/certs/ca-certificates.crt";
const ACCOUNT: &str = "var/run/secrets/kubernetes.io/serviceaccount";
/// The DNS name of a Service, which `/etc/hosts` resolves here.
const RECEIVER: &str = "receiver.team.svc.cluster.local";
/// Long enough for an emulator.
const SOON: Duration = Duration::from_secs(120);

fn main() {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let binary = arguments.next().expect("usage: image BINARY [EMULATOR]");
    let emulator = arguments.next();
    let is_native = check_file(&binary);
    if !is_native && emulator.is_none() {
        println!("skipped: the binary is for another processor; pass an emulator to run it");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(check_run(&binary, emulator.as_deref()));
}

/// Checks that the binary is static and small enough. Returns whether it is for this processor.
fn check_file(binary: &Path) -> bool {
    let bytes = fs::read(binary).unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
    let interpreter = segments(&bytes).any(|kind| kind == PT_INTERP);
    assert!(!interpreter, "{} needs a dynamic linker; build a static binary", binary.display());
    let roots = fs::metadata(Path::new("/").join(ROOTS)).expect("Debian's ca-certificates are installed").len();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (binary_mib, roots_mib) = (mib(bytes.len() as u64), mib(roots));
    println!("{}: static, {binary_mib:.2} MiB; with CAs {:.2} MiB", binary.display(), binary_mib + roots_mib);
    assert!(binary_mib + roots_mib < MOST_MIB, "the image must be smaller than {MOST_MIB} MiB");
    processor(&bytes) == processor(&fs::read("/proc/self/exe").unwrap())
}

fn processor(elf: &[u8]) -> &[u8] {
    &elf[18..20]
}

/// The type of the program header that names a dynamic linker.
const PT_INTERP: u32 = 3;

/// The program header types of a 64-bit little-endian ELF file (elf(5)).
fn segments(elf: &[u8]) -> impl Iterator<Item = u32> {
    assert!(elf.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit ELF file");
    let short = |at: usize| usize::from(u16::from_le_bytes(elf[at..at + 2].try_into().unwrap()));
    let (offset, size, count) = (u64::from_le_bytes(elf[32..40].try_into().unwrap()) as usize, short(54), short(56));
    (0..count).map(move |number| {
        let at = offset + number * size;
        u32::from_le_bytes(elf[at..at + 4].try_into().unwrap())
    })
}

/// Runs the binary as in a cluster, and checks that it delivers an event.
async fn check_run(binary: &Path, emulator: Option<&Path>) {
    let plane = ControlPlane::start().await;
    plane.install_crds();
    let namespace = plane.namespace("image").await;
    install_roles(&plane, &namespace);
    let receiver = Receiver::start().await;
    let apply = |manifest: &str| {
        let output = plane.kubectl_with_input(&["-n", &namespace, "apply", "--server-side", "-f", "-"], manifest);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    apply(&format!(
        "{{apiVersion: llmtune.io/v1alpha1, kind: Webhook, metadata: {{name: ci}}, \
         spec: {{url: 'http://{RECEIVER}:{}/hooks', events: ['*']}}}}",
        receiver.port
    ));

    let root = container(binary, emulator);
    fs::write(root.join(ACCOUNT).join("token"), plane.token(&namespace, "llmtune-webhooks").await).unwrap();
    fs::write(root.join(ACCOUNT).join("namespace"), &namespace).unwrap();
    fs::copy(plane.folder.join("certs/apiserver.crt"), root.join(ACCOUNT).join("ca.crt")).unwrap();
    let before = files(&root);
    let listen = free_port();
    let run = |environment: &[(&str, &str)]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-user=65532", "--map-group=65532", "--root"]).arg(&root).arg("--");
        command.args(emulator.map(|_| "/emulator")).args(["/llmtune-webhooks", "run", "--namespace", &namespace]);
        command.arg(format!("--listen=127.0.0.1:{listen}")).arg("--allow-cidr=127.0.0.0/8");
        command.env_clear().envs([
            ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
            ("KUBERNETES_SERVICE_PORT", &plane.port.to_string()),
            ("POD_NAME", "operator-0"),
            ("POD_UID", "0"),
            // For unshare itself, on the host.
            ("PATH", &std::env::var("PATH").unwrap()),
        ]);
        command.envs(environment.iter().copied());
        Process::start("operator", &mut command, &temporary_folder("image").join("operator.log"))
    };

    let mut without = run(&[("SSL_CERT_FILE", "/nowhere")]);
    assert_eq!(without.wait(SOON).code(), Some(1), "{}", without.log_tail());
    assert!(without.log_text().contains("No CA certificates were loaded"), "{}", without.log_tail());

    let operator = Mutex::new(run(&[]));
    eventually("the operator is ready", SOON, || async {
        let operator = &mut operator.lock().unwrap();
        assert!(operator.try_wait().is_none(), "the operator ended\n{}", operator.log_tail());
        get(listen, "/readyz").filter(|(status, _)| *status == 200)
    })
    .await;
    apply("{apiVersion: llmtune.io/v1alpha1, kind: TrainingJob, metadata: {name: a}, spec: {baseModel: llama}}");
    let started = r#"{"status": {"phase": "Running"}}"#;
    let patch = ["-n", &namespace, "patch", "trainingjob", "a", "--subresource=status", "--type=merge", "-p", started];
    assert!(plane.kubectl(&patch).status.success());
    receiver.wait_for("training.started", "a", SOON).await;
    let mut operator = operator.into_inner().unwrap();
    assert!(operator.stop(SOON).success(), "{}", operator.log_tail());
    assert_eq!(files(&root), before, "it writes nothing");
    println!(
        "runs: in a pod's place it found its service account and the CAs, and delivered {}",
        receiver.events()[0].0
    );
}

/// A root folder with the image's contents and the files that a kubelet adds.
fn container(binary: &Path, emulator: Option<&Path>) -> PathBuf {
    let root = temporary_folder("root");
    for folder in ["etc/ssl/certs", "dev", "proc", ACCOUNT] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy(binary, root.join("llmtune-webhooks")).unwrap();
    fs::copy(Path::new("/").join(ROOTS), root.join(ROOTS)).unwrap();
    fs::write(root.join("etc/hosts"), format!("127.0.0.1 localhost {RECEIVER}\n")).unwrap();
    if let Some(emulator) = emulator {
        fs::copy(emulator, root.join("emulator")).unwrap();
    }
    root
}

/// All files in a folder, recursively.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    let deeper: Vec<PathBuf> = found.iter().filter(|path| path.is_dir()).flat_map(|path| files(path)).collect();
    found.extend(deeper);
    found
}
