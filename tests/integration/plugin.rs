//! `kubectl llmtune`, as users run it, against a real apiserver, a real operator and real receivers.

mod cluster;
mod wire;

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use llmtune_webhooks_harness::{
    control_plane::tool,
    eventually,
    operator::Operator,
    process::{Process, temporary_folder},
    receiver::{Answer, Received, Receiver},
};
use serde_json::{Value, json};

use crate::support::{Jobs, SOON, Scene, plugin_binary, run};

pub const SECRET: &str = "s3cret-of-ci";

/// The result of a command.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Runs it to its end with this standard input, and prints the output that a user sees.
    pub fn run(command: &mut Command, input: &str) -> Self {
        let file = temporary_folder("input").join("text");
        fs::write(&file, input).unwrap();
        let output = command.stdin(File::open(file).unwrap()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let ran = Self { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) };
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        println!("$ kubectl llmtune {}\n{}{}# {}\n", words.join(" "), ran.out, ran.err, ran.code);
        for text in [&ran.out, &ran.err] {
            assert!(!text.contains('\x1b'), "colours into a pipe: {text:?}");
        }
        ran
    }

    pub fn succeeded(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// The message on standard error.
    pub fn failed(self) -> String {
        assert_eq!(self.code, 1, "{self:?}");
        self.err
    }
}

/// The plugin as the administrator, in the scene's namespace.
pub fn command(scene: &Scene, arguments: &[&str]) -> Command {
    command_as(scene, "admin", arguments)
}

/// The plugin with the kubeconfig of this name.
pub fn command_as(scene: &Scene, kubeconfig: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(plugin_binary());
    command
        .args(arguments)
        .env("KUBECONFIG", scene.plane.kubeconfig(kubeconfig))
        .env_remove("HTTPS_PROXY")
        .env_remove("https_proxy");
    if !arguments.iter().any(|argument| ["-n", "-A"].contains(argument)) {
        command.args(["-n", &scene.namespace]);
    }
    command
}

pub fn plugin(scene: &Scene, arguments: &[&str]) -> Ran {
    Ran::run(&mut command(scene, arguments), "")
}

/// The same on a terminal of 100 columns and 20 lines. The output contains everything sent to the terminal.
fn on_a_terminal(command: &Command) -> Command {
    let mut terminal = Command::new("python3");
    terminal.args(["-c", "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)", "sh", "-c"]);
    terminal.args(["stty cols 100 rows 20 && exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    terminal.env("TERM", "xterm").env_remove("NO_COLOR");
    terminal
}

/// A receiver that refuses everything, and its Webhook `ci`, which signs and gives up at once.
pub async fn refused(scene: &Scene) -> Receiver {
    let receiver = Receiver::answering(|_| Answer::status(500)).await;
    scene.secret("ci", SECRET);
    let spec = json!({"secretRef": {"name": "ci"}, "delivery": {"maxRetries": 0}});
    scene.webhook("ci", &receiver.url(), &spec);
    receiver
}

/// Starts jobs of these names, and waits until their deliveries are dead letters.
pub async fn given_up(scene: &Scene, names: &[&str]) {
    let jobs = Jobs::new(scene).await;
    for name in names {
        jobs.create(name).await;
        jobs.start(name).await;
    }
    eventually("deliveries are kept", SOON, || async {
        let kept = scene.list("whd", "");
        let finished = kept.iter().filter(|object| object["status"]["finishedAt"].is_string());
        (finished.count() >= names.len()).then_some(())
    })
    .await;
}

/// Webhooks in different states: `ci` has a dead letter, `good` acknowledges, `held` is suspended, `lost` lacks its
/// Secret. Returns the receiver of `ci` and that of the others.
pub async fn of_all_sorts(scene: &Scene) -> (Receiver, Receiver, Operator) {
    let receiver = refused(scene).await;
    let good = Receiver::start().await;
    scene.webhook("good", &good.url(), &json!({}));
    scene.webhook("held", &good.url(), &json!({"suspend": true}));
    scene.webhook("lost", &good.url(), &json!({"secretRef": {"name": "nowhere"}}));
    let operator = scene.operator().await;
    given_up(scene, &["a"]).await;
    scene.wait("webhook/ci", "condition=Healthy=False");
    scene.wait("webhook/good", "condition=Healthy");
    scene.wait("webhook/lost", "condition=Ready=False");
    (receiver, good, operator)
}

/// The words of each line.
fn words(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split("   ").map(str::trim).filter(|word| !word.is_empty()).collect()).collect()
}

#[test]
fn a_test_tells_what_the_endpoint_answers() {
    run(async {
        let scene = Scene::new("plugin-test").await;
        let receiver = Receiver::start().await;
        scene.secret("ci", SECRET);
        let spec = json!({"secretRef": {"name": "ci"}, "events": ["model.deployed", "deployment.*"]});
        scene.webhook("ci", &receiver.url(), &spec);
        let operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");

        let message = plugin(&scene, &["test", "ci"]).succeeded();
        assert!(
            message.contains("created: model.deployed to webhook/ci\nattempt 1: HTTP 200 from http://127.0.0.1"),
            "{message}"
        );
        assert!(message.contains("webhook/ci acknowledged the test"), "{message}");
        let post = receiver.received().remove(0);
        assert!(post.is_signed_with(SECRET) && post.header("x-llmtune-test") == "true");
        assert_eq!(post.event(), "model.deployed", "the first that it subscribes to");

        // As for users, kubectl finds the plugin in PATH.
        let folder = plugins();
        let mut kubectl = Command::new(tool("kubectl"));
        kubectl
            .args(["llmtune", "test", "webhook/ci", "--event", "usage.threshold_reached", "-o", "json"])
            .args(["-n", &scene.namespace, "--kubeconfig"])
            .arg(scene.plane.kubeconfig("admin"))
            .env("PATH", &folder)
            .env("HOME", &folder);
        let object: Value = serde_json::from_str(&Ran::run(&mut kubectl, "").succeeded()).unwrap();
        assert_eq!(object["kind"], "WebhookDelivery");
        assert_eq!(object["spec"]["test"]["event"], "usage.threshold_reached");
        assert_eq!(object["spec"]["ttl"], "1h");
        assert_eq!(object["status"]["lastAttempt"]["statusCode"], 200);
        assert!(object["metadata"].get("managedFields").is_none());
        assert_eq!(receiver.received()[1].event(), "usage.threshold_reached");

        receiver.answer(|_| Answer::status(403));
        let ran = plugin(&scene, &["test", "ci"]);
        assert!(ran.out.contains("attempt 1: HTTP 403"), "{ran:?}");
        let message = ran.failed();
        assert!(message.contains("error: webhook/ci did not acknowledge the test: HTTP 403"), "{message}");
        assert!(message.contains("give the receiver the key in spec.secretRef"), "{message}");
        assert!(message.contains(&format!("kubectl -n {} get whd test-", scene.namespace)), "{message}");

        scene.webhook("lost", &receiver.url(), &json!({"secretRef": {"name": "nowhere"}}));
        let message = plugin(&scene, &["test", "lost"]).failed();
        assert!(message.contains("is not ready") && message.contains("describe webhook/lost"), "{message}");

        let ran = plugin(&scene, &["test", "ci", "--event", "training.complete"]);
        assert!(ran.code == 2 && ran.err.contains("training.completed"), "{ran:?}");

        drop(operator);
        let message = plugin(&scene, &["test", "ci", "--timeout", "1s"]).failed();
        assert!(
            message.contains("did not handle the test of webhook/ci within 1.00s\ncheck that the operator is running"),
            "{message}"
        );
    });
}

/// A folder of plugins for PATH.
fn plugins() -> PathBuf {
    let folder = temporary_folder("plugins");
    for name in ["kubectl-llmtune", "kubectl_complete-llmtune"] {
        std::os::unix::fs::symlink(plugin_binary(), folder.join(name)).unwrap();
    }
    folder
}

#[test]
fn deliveries_are_listed_selected_and_sent_again() {
    run(async {
        let scene = Scene::new("plugin-kept").await;
        let receiver = refused(&scene).await;
        let _operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");
        let ran = plugin(&scene, &["deliveries", "ci"]);
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", "No deliveries of webhook/ci found.\n"));
        let ran = plugin(&scene, &["redeliver", "ci", "--failed"]);
        assert!(ran.code == 0 && ran.err.contains("webhook/ci has no WebhookDelivery objects"), "{ran:?}");

        given_up(&scene, &["a", "b"]).await;
        receiver.answer(|post| Answer::status(if post.name() == "c" { 200 } else { 503 }));
        let jobs = Jobs::new(&scene).await;
        jobs.create("c").await;
        jobs.start("c").await;
        let message = eventually("the status tells of what was delivered", SOON, || async {
            let message = plugin(&scene, &["deliveries", "ci"]).succeeded();
            (message.lines().count() == 4).then_some(message)
        })
        .await;
        let table = words(&message);
        assert_eq!(table[0], ["NAME", "EVENT", "OBJECT", "RESULT", "ATTEMPTS", "ANSWER", "AGE"]);
        let of = |object: &str| table.iter().find(|row| row[2] == object).unwrap();
        assert_eq!(of("trainingjob/c")[..6], ["<none>", "training.started", "trainingjob/c", "Delivered", "1", "200"]);
        assert_eq!(of("trainingjob/b")[3..6], ["Exhausted", "1", "500"]);
        let failed = plugin(&scene, &["deliveries", "ci", "--failed", "-o", "wide"]).succeeded();
        assert!(failed.lines().count() == 3 && failed.contains("evt_") && failed.contains("HTTP 500"), "{failed}");

        // The output for other programs is the same as kubectl's.
        let list: Value =
            serde_json::from_str(&plugin(&scene, &["deliveries", "ci", "--failed", "-o", "json"]).succeeded()).unwrap();
        let mut expected: Value = serde_json::from_str(&scene.kubectl(&["get", "whd", "-o", "json"])).unwrap();
        for item in expected["items"].as_array_mut().unwrap() {
            item["metadata"].as_object_mut().unwrap().remove("managedFields");
        }
        assert_eq!(list, expected);
        let yaml = plugin(&scene, &["deliveries", "ci", "--failed", "-o", "yaml"]).succeeded();
        assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), expected);
        let names = plugin(&scene, &["deliveries", "ci", "-o", "name"]).succeeded();
        assert_eq!(names, scene.kubectl(&["get", "whd", "-o", "name"]));

        let message = plugin(&scene, &["redeliver", "ci", "--dry-run", "--since", "1h"]).succeeded();
        assert!(message.ends_with("2 deliveries of webhook/ci would be sent again\n"), "{message}");
        let before = receiver.count();
        receiver.answer(|post| Answer::status(if post.name() == "a" { 200 } else { 503 }));
        let ran = plugin(&scene, &["redeliver", "ci", "--failed", "--since", "2h"]);
        assert_eq!((ran.code, ran.err.as_str()), (1, ""), "{ran:?}");
        assert!(
            ran.out.starts_with("2 deliveries of webhook/ci sent again in ")
                && ran.out.contains(": 1 acknowledged, 1 not acknowledged\n"),
            "{ran:?}"
        );
        let table = words(&ran.out);
        assert_eq!(table[2][1..6], ["training.started", "trainingjob/b", "Exhausted", "1", "503"]);
        assert_eq!(receiver.count(), before + 2);
        assert!(receiver.received()[before..].iter().all(|post| post.is_signed_with(SECRET)));

        // With `--failed`, delivered events are not sent again. The progress bar appears on terminals only.
        receiver.answer(|_| Answer::status(200).after(Duration::from_millis(300)));
        let terminal = on_a_terminal(&command(&scene, &["redeliver", "ci", "--failed"])).output().unwrap();
        let screen = String::from_utf8(terminal.stdout).unwrap();
        assert!(terminal.status.success() && screen.contains("0/1 answered"), "{screen:?}");
        assert!(
            screen.contains("1 delivery of webhook/ci sent again in ") && screen.contains(": 1 acknowledged"),
            "{screen:?}"
        );
        println!("{screen:?}");
        let ran = plugin(&scene, &["redeliver", "ci", "--failed"]);
        assert!(ran.code == 0 && ran.err.contains("0 of 2 WebhookDelivery objects"), "{ran:?}");
        let message = plugin(&scene, &["redeliver", "ci"]).succeeded();
        assert!(
            message.contains("2 deliveries of webhook/ci sent again") && message.contains(": 2 acknowledged\n"),
            "{message}"
        );

        // A suspended Webhook holds redeliveries too.
        scene.kubectl(&["patch", "webhook", "ci", "--type=merge", "-p", r#"{"spec":{"suspend":true}}"#]);
        let message = plugin(&scene, &["redeliver", "ci"]).succeeded();
        assert_eq!(message, "2 deliveries of webhook/ci requested; they stay pending while spec.suspend is true\n");
    });
}

#[test]
fn slow_redelivery_is_shown_as_in_progress() {
    run(async {
        let scene = Scene::new("plugin-slow").await;
        let receiver = refused(&scene).await;
        let mut operator = scene.operator().await;
        given_up(&scene, &["a"]).await;
        receiver.answer(|_| Answer::status(200).after(Duration::from_secs(20)));
        let ran = plugin(&scene, &["redeliver", "ci", "--timeout", "1s"]);
        assert!(ran.out.contains("0 acknowledged, 1 pending\n"), "{ran:?}");
        assert!(
            ran.failed().contains("error: no delivery finished before the timeout\ncheck that the operator is running")
        );
        let message = plugin(&scene, &["deliveries", "ci"]).succeeded();
        assert_eq!(words(&message)[1][3], "Pending");
        operator.process.kill();
    });
}

#[test]
fn status_has_a_line_per_webhook_and_a_live_table() {
    run(async {
        let scene = Scene::new("plugin-status").await;
        let ran = plugin(&scene, &["status"]);
        assert_eq!(ran.err, format!("No Webhooks found in namespace {}.\n", scene.namespace));
        let (receiver, _good, _operator) = of_all_sorts(&scene).await;
        let message = eventually("the counters are told", SOON, || async {
            let message = plugin(&scene, &["status"]).succeeded();
            (words(&message)[1][5] == "1").then_some(message)
        })
        .await;
        let table = words(&message);
        assert_eq!(table[0], ["NAME", "ENDPOINT", "READY", "HEALTHY", "PENDING", "FAILED", "LAST", "WHY"]);
        assert_eq!(table[1][..6], ["ci", &format!("http://127.0.0.1:{}", receiver.port), "True", "False", "0", "1"]);
        assert!(table[1][7].contains("HTTP 500"), "{table:?}");
        assert_eq!((table[2][0], table[2][3], table[2][7]), ("good", "True", "<none>"));
        assert_eq!((table[3][0], table[3][7]), ("held", "Suspended: deliveries wait"));
        assert!(table[4][2] == "False" && table[4][7].contains("SecretNotFound"), "{table:?}");
        let wide = plugin(&scene, &["status", "-o", "wide"]).succeeded();
        assert_eq!(words(&wide)[2][7..12], ["1", "0", "0", "*", "<none>"], "{wide}");
        let list: Value = serde_json::from_str(&plugin(&scene, &["status", "-o", "json"]).succeeded()).unwrap();
        assert_eq!(list["items"].as_array().unwrap().len(), 4);

        // A pipe gets a line for each change, a terminal one table.
        let log = temporary_folder("watch").join("log");
        let _piped = Process::start("watch", &mut command(&scene, &["status", "--watch"]), &log);
        let read = || async { fs::read_to_string(&log).unwrap() };
        eventually("all are told", SOON, || async { (read().await.lines().count() == 5).then_some(()) }).await;
        let screen = temporary_folder("screen").join("log");
        let _terminal = Process::start("terminal", &mut on_a_terminal(&command(&scene, &["status", "-w"])), &screen);
        let shown = || async { fs::read_to_string(&screen).unwrap() };
        eventually("a table is drawn", SOON, || async {
            shown().await.contains("4 webhooks, 1 failing, 1 not ready").then_some(())
        })
        .await;
        receiver.answer(|_| Answer::status(200));
        plugin(&scene, &["redeliver", "ci"]).succeeded();
        let news = eventually("a change is told", SOON, || async {
            let text = read().await;
            let of_ci = text.lines().skip(5).find(|line| line.starts_with("ci ") && words(line)[0][3] == "True");
            of_ci.map(|_| text.clone())
        })
        .await;
        assert!(!news.contains('\x1b') && news.matches("NAME").count() == 1, "{news:?}");
        println!("$ kubectl llmtune status --watch | cat\n{news}");
        let screen = eventually("the table changes", SOON, || async {
            let text = shown().await;
            text.contains("4 webhooks, 1 not ready").then_some(text)
        })
        .await;
        assert!(screen.contains("\x1b[H") && screen.contains("\x1b[32mTrue\x1b[0m"), "{screen:?}");
        let frame = screen.rsplit("\x1b[H").next().unwrap();
        println!("{}", frame.replace("\x1b[K", ""));
        assert!(screen.split("\x1b[H").all(|frame| frame.matches('\n').count() < 20), "{screen:?}");

        let plain =
            on_a_terminal(command(&scene, &["status"]).env("NO_COLOR", "1")).env("NO_COLOR", "1").output().unwrap();
        assert!(!String::from_utf8(plain.stdout).unwrap().contains('\x1b'));
    });
}

#[test]
fn what_is_created_is_applied_as_it_is_and_works() {
    run(async {
        let scene = Scene::new("plugin-create").await;
        let receiver = Receiver::start().await;
        let _operator = scene.operator().await;
        for (name, format) in [("ci", "LLMTune"), ("standard", "StandardWebhooks"), ("events", "CloudEvents")] {
            let url = receiver.url();
            let manifests = plugin(&scene, &["create", name, "--url", &url, "--format", format]).succeeded();
            let again = plugin(&scene, &["create", name, "--url", &url, "--format", format]).succeeded();
            assert_ne!(manifests, again, "each has a secret of its own");
            scene.apply_text(&manifests);
            scene.wait(&format!("webhook/{name}"), "condition=Ready");
            plugin(&scene, &["test", name]).succeeded();
            let post = receiver.received().pop().unwrap();
            let secret = scene.kubectl(&["get", "secret", &format!("{name}-hook"), "-o", "jsonpath={.data.secret}"]);
            let file = wire::secret_file(&wire::decode(&secret));
            let ran = Ran::run(
                Command::new(plugin_binary()).args(["verify", "--secret-file"]).arg(&file),
                &wire::recorded(&post),
            );
            assert!(ran.succeeded().starts_with("verified: "));
        }
        for (asked, says) in [
            (&["create", "CI", "--url", "https://a.example"][..], "such as ci"),
            (&["create", "ci", "--url", "ftp://a.example"], "an absolute http:// or https:// URL"),
            (&["create", "ci", "--url", "https://a.example", "--events", "training.finished"], "training.completed"),
        ] {
            let ran = plugin(&scene, asked);
            assert!(ran.code == 2 && ran.err.contains(says), "{ran:?}");
        }
    });
}

#[test]
fn commands_are_completed_in_every_shell_and_by_kubectl() {
    run(async {
        let scene = Scene::new("plugin-complete").await;
        scene.webhook("ci", "https://ci.example.com", &json!({}));
        scene.webhook("slack", "https://slack.example.com", &json!({}));
        for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
            let script = plugin(&scene, &["completion", shell]).succeeded();
            assert!(script.contains("kubectl-llmtune") && script.contains("redeliver"), "{script}");
            if shell == "bash" {
                let line = "COMP_WORDS=(kubectl-llmtune test --ev); COMP_CWORD=2";
                let ask = "$(complete -p kubectl-llmtune | grep -o '_[^ ]*' | head -1) kubectl-llmtune --ev test";
                let script = format!("{script}\n{line}\n{ask}\necho ${{COMPREPLY[@]}}\n");
                assert_eq!(Ran::run(Command::new("bash").arg("-s"), &script).succeeded(), "--event\n");
            }
        }
        let folder = plugins();
        let complete = |words: &[&str]| {
            let mut kubectl = Command::new(tool("kubectl"));
            kubectl.args(["__complete", "llmtune"]).args(words).env("PATH", &folder).env("HOME", &folder);
            kubectl.env("KUBECONFIG", scene.plane.kubeconfig("admin"));
            let message = Ran::run(&mut kubectl, "").succeeded();
            message.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let ns = scene.namespace.as_str();
        assert_eq!(complete(&["re"]), ["redeliver\tResend dead letters, and wait for the outcome", ":4"]);
        assert_eq!(complete(&["-n", ns, "test", ""]), ["ci", "slack", ":4"]);
        assert_eq!(complete(&["-n", ns, "test", "s"]), ["slack", ":4"]);
        assert_eq!(complete(&["test", "ci", "--event", "model"]), ["model.deployed", ":4"]);
        assert_eq!(complete(&["test", "-n", &ns[..ns.len() - 1]]), [ns, ":4"]);
        assert_eq!(complete(&["status", "--context", ""]), ["test", ":4"]);
        assert_eq!(complete(&["verify", "--secret-file", ""]), [":0"]);
    });
}

/// The rights of the shipped roles, and of a user without any.
#[test]
fn missing_rights_are_explained_to_users() {
    run(async {
        let scene = Scene::new("plugin-people").await;
        scene.plane.start_role_aggregation();
        scene.apply_text(
            &fs::read_to_string(llmtune_webhooks_harness::root().join("charts/kustomize/rbac-people.yaml")).unwrap(),
        );
        for role in ["view", "edit"] {
            let token = scene.plane.token(&scene.namespace, role).await;
            scene.plane.write_kubeconfig_for(&format!("plugin-{role}"), &token, scene.plane.port);
            scene.apply(&json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": role},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": role, "namespace": scene.namespace}]
            }));
        }
        let receiver = refused(&scene).await;
        let _operator = scene.operator().await;
        given_up(&scene, &["a"]).await;
        receiver.answer(|_| Answer::status(200));
        let ran = |role: &str, arguments: &[&str]| {
            Ran::run(&mut command_as(&scene, &format!("plugin-{role}"), arguments), "")
        };
        // kube-controller-manager aggregates the roles.
        for (role, verb) in [("view", "list"), ("edit", "patch")] {
            let account = format!("system:serviceaccount:{}:{role}", scene.namespace);
            eventually("the roles are filled in", SOON, || async {
                let arguments =
                    ["-n", &scene.namespace, "auth", "can-i", verb, "webhookdeliveries.llmtune.io", "--as", &account];
                (scene.plane.kubectl(&arguments).stdout == b"yes\n").then_some(())
            })
            .await;
        }
        assert!(ran("view", &["status"]).succeeded().contains("ci "));
        assert!(ran("view", &["deliveries", "ci"]).succeeded().contains("trainingjob/a"));
        let account = format!("--serviceaccount={}:view", scene.namespace);
        for arguments in [&["test", "ci"][..], &["redeliver", "ci"]] {
            let message = ran("view", arguments).failed();
            assert!(message.contains("webhookdeliveries") && message.contains("cannot"), "{message}");
            assert!(
                message.contains(&format!("create rolebinding llmtune-edit --clusterrole=edit {account}")),
                "{message}"
            );
        }
        let message = ran("view", &["status", "-A"]).failed();
        assert!(
            message.contains("at the cluster scope") && message.contains("use -n NAMESPACE instead of -A"),
            "{message}"
        );
        let message = ran("view", &["test", "clusterwebhook/platform"]).failed();
        assert!(message.contains("ask a cluster admin"), "{message}");
        assert!(ran("edit", &["test", "ci"]).succeeded().contains("acknowledged"));
        assert!(ran("edit", &["redeliver", "ci"]).succeeded().contains("1 acknowledged"));
        // A user who may impersonate sees what the other user sees.
        let message = plugin(&scene, &["status", "--as", "nobody"]).failed();
        assert!(message.contains("--clusterrole=view --user=nobody"), "{message}");
    });
}

#[test]
fn krew_manifest_is_valid_after_filling_placeholders() {
    let root = llmtune_webhooks_harness::root();
    let template = fs::read_to_string(root.join("plugin/krew.yaml")).unwrap();
    let mut archives = 0;
    let filled: String = template
        .lines()
        .map(|line| match line.split_once("{{addURIAndSha \"") {
            Some((indent, rest)) => {
                archives += 1;
                let uri = rest.strip_suffix("\" .TagName }}").unwrap();
                format!("{indent}uri: {uri}\n{indent}sha256: {}\n", "0".repeat(64))
            }
            None => format!("{line}\n"),
        })
        .collect();
    let version = concat!("v", env!("CARGO_PKG_VERSION"));
    let manifest: Value = serde_saphyr::from_str(&filled.replace("{{ .TagName }}", version)).unwrap();
    assert_eq!((&manifest["metadata"]["name"], &manifest["spec"]["version"]), (&json!("llmtune"), &json!(version)));
    // The limits of krew's own guidelines.
    assert!(manifest["spec"]["shortDescription"].as_str().unwrap().len() <= 50);
    let platforms = manifest["spec"]["platforms"].as_array().unwrap();
    assert_eq!((platforms.len(), archives), (4, 4));
    for platform in platforms {
        let labels = &platform["selector"]["matchLabels"];
        let (os, arch) = (labels["os"].as_str().unwrap(), labels["arch"].as_str().unwrap());
        assert!(platform["uri"].as_str().unwrap().ends_with(&format!("/{version}/kubectl-llmtune-{os}-{arch}.tar.gz")));
        assert_eq!(platform["bin"], "kubectl-llmtune");
        let files = platform["files"].as_array().unwrap();
        let files: Vec<&str> = files.iter().map(|file| file["from"].as_str().unwrap()).collect();
        assert_eq!(files, ["kubectl-llmtune", "LICENSE"]);
    }
    assert!(root.join("LICENSE").exists());
}
