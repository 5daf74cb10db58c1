//! Values and environments as they occur in practice: large integers, clock changes, hosts without IPv6, proxies to the
//! apiserver.

mod proxies;

use std::{
    net::TcpStream,
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime},
};

use llmtune_webhooks_harness::{
    eventually,
    operator::{Operator, get},
    process::{Process, free_port, temporary_folder},
    receiver::Receiver,
    root,
};
use serde_json::{Value, json};

use crate::support::{BINARY, SOON, Scene, run};

/// A library that simulates another clock and a kernel without IPv6; compiled from `values/host.c`.
fn host() -> PathBuf {
    let library = temporary_folder("host").join("host.so");
    let source = root().join("tests/integration/values/host.c");
    let compiler =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).output().unwrap();
    assert!(compiler.status.success(), "{}", String::from_utf8_lossy(&compiler.stderr));
    library
}

#[test]
fn an_event_after_a_clock_step_bears_the_new_time() {
    run(async {
        let scene = Scene::new("clock").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let offset = temporary_folder("clock").join("offset");
        let set = |seconds: i64| std::fs::write(&offset, seconds.to_string()).unwrap();
        set(0);
        let options = scene.options().env("LD_PRELOAD", host().to_str().unwrap());
        let options = options.env("HOST_CLOCK_OFFSET", offset.to_str().unwrap());
        let operator = Operator::start_ready(&scene.plane, &options).await;
        let occurred_at = |name: String| {
            let (scene, receiver) = (&scene, &receiver);
            async move {
                scene.job(&name);
                // If the job has no time of its own, the operator's time is used.
                scene.phase(&name, "Running");
                let post = receiver.wait_for("training.started", &name, SOON).await;
                let at: jiff::Timestamp = post.json()["occurredAt"].as_str().unwrap().parse().unwrap();
                at.duration_since(jiff::Timestamp::try_from(SystemTime::now()).unwrap()).as_secs()
            }
        };
        let before = occurred_at("before".into()).await;
        assert!(before.abs() < 30, "{before} s");
        for (name, step) in [("ahead", 86_400), ("back", -86_400)] {
            set(step);
            let off = occurred_at(name.into()).await;
            println!("clock set by {step} s: occurredAt is {off} s from this host's");
            assert!((off - step).abs() < 30, "{off} s");
        }
        assert!(operator.log().contains("the clock of this host was set"));
        let status = scene.get("webhook", "ci")["status"].clone();
        assert_eq!(status["lastFailure"], Value::Null, "{status}");
    });
}

#[test]
fn the_default_listener_takes_ipv4_and_works_without_ipv6() {
    let serve = |environment: &[(&str, &str)], port: u16| {
        let mut command = Command::new(BINARY);
        let kubeconfig = temporary_folder("listen").join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "a", "users": [{"name": "a", "user": {}}],
            "clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:1"}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}]
        });
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        command.args(["run", &format!("--listen=[::]:{port}")]).env("KUBECONFIG", kubeconfig);
        command.envs(environment.iter().copied());
        Process::start("operator", &mut command, &temporary_folder("operator").join("operator.log"))
    };
    run(async {
        let library = host();
        for environment in [&[][..], &[("LD_PRELOAD", library.to_str().unwrap()), ("HOST_WITHOUT_IPV6", "1")]] {
            let port = free_port();
            let operator = serve(environment, port);
            eventually("it answers over IPv4", SOON, || async { (get(port, "/healthz")?.0 == 200).then_some(()) })
                .await;
            let ipv6 = TcpStream::connect_timeout(&format!("[::1]:{port}").parse().unwrap(), Duration::from_secs(5));
            let log = operator.log_text();
            let has_ipv6 = std::net::TcpListener::bind("[::1]:0").is_ok();
            println!("{environment:?}: over IPv6 {}, log: {}", ipv6.is_ok(), log.lines().next().unwrap_or_default());
            assert_eq!(ipv6.is_ok(), environment.is_empty() && has_ipv6);
            assert_eq!(log.contains("this host has no IPv6"), !environment.is_empty() || !has_ipv6, "{log}");
        }
    });
}

#[test]
fn large_integers_arrive_with_all_their_digits() {
    run(async {
        let scene = Scene::new("integers").await;
        let (native, events) = (Receiver::start().await, Receiver::start().await);
        scene.webhook("native", &native.url(), &json!({}));
        scene.webhook("events", &events.url(), &json!({"format": "CloudEvents"}));
        let _operator = scene.operator().await;
        scene.wait("webhook/native", "condition=Ready");
        scene.wait("webhook/events", "condition=Ready");
        scene.job("llama");
        // Raw text, so that no JSON library of this test rounds it.
        let metrics = r#"{"status":{"phase":"Completed","metrics":{"flops":9007199254740993,"even":9007199254740992,"tokens":9000000000000000000,"least":-9223372036854775808,"power":1152921504606846976,"loss":0.25}}}"#;
        scene.kubectl(&["patch", "trainingjob", "llama", "--subresource=status", "--type=merge", "-p", metrics]);
        let expected = r#""metrics":{"even":9007199254740992,"flops":"9007199254740993","least":"-9223372036854775808","loss":0.25,"power":"1152921504606846976","tokens":9000000000000000000}"#;
        for receiver in [&native, &events] {
            let body = receiver.wait(1, SOON).await.pop().unwrap().body;
            assert!(body.contains(expected), "{body}");
        }
    });
}
