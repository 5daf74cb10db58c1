//! The README, from a bare control plane to a verified delivery.

use std::{sync::Arc, time::Duration};

use llmtune_webhooks_harness::{control_plane::ControlPlane, eventually, operator::get};

use super::script::{Script, Shell};
use crate::support::Scene;

pub async fn play(scripts: &mut [Script]) {
    let [readme] = scripts else { unreachable!("one document") };
    let plane = ControlPlane::start().await;
    plane.start_controllers().await;
    let scene = Scene { plane: Arc::new(plane), namespace: "default".into() };
    let mut shell = Shell::new(&scene);
    let own = "Five minutes on a cluster of your own";
    let metrics = shell.port(8080);
    shell.port(8000);

    shell.run(&readme.take(own));
    scene.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]);
    let operator = shell.terminal(&readme.take(own));
    eventually("the operator watches", Duration::from_secs(60), || async {
        (get(metrics, "/readyz")?.0 == 200).then_some(())
    })
    .await;
    let receiver = shell.terminal(&readme.take(own));
    receiver.line(&["Listening on"]).await;
    shell.run(&readme.take(own));
    let described = shell.run(&readme.take(own));
    assert!(described.contains("Subscribed"), "{described}");
    for (event, object) in [
        ("deployment.created", "llama-chat"),
        ("model.deployed", "llama-chat"),
        ("training.started", "llama-sft"),
        ("training.completed", "llama-sft"),
        ("deployment.paused", "llama-chat"),
    ] {
        receiver.line(&[event, object, "verified"]).await;
    }
    shell.run(&readme.take(own));
    drop(operator);
    eventually("nothing of it stays", Duration::from_secs(90), || async {
        (!scene.kubectl(&["get", "namespaces", "-o", "name"]).contains("llmtune-system")).then_some(())
    })
    .await;

    shell.run(&readme.take("Install it"));
    let pods = scene.kubectl(&["-n", "llmtune-system", "get", "pods", "-o", "name"]);
    assert_eq!(pods.lines().count(), 2, "{pods}");
}
