//! The pages of `examples/`: a first Webhook, and a receiver for it.

use super::script::{Script, Shell};
use crate::support::Scene;

pub async fn play(scripts: &mut [Script]) {
    let [examples, receivers] = scripts else { unreachable!("two documents") };
    let scene = Scene::new("pages").await;
    let _operator = scene.operator().await;
    let mut shell = Shell::new(&scene);
    shell.port(8000);
    let mut other = Shell::new(&scene);
    other.checkout.push("examples/receivers");
    let port = other.port(8000);
    let receiver = other.terminal(&receivers.take("Receivers"));
    receiver.line(&["Listening on"]).await;

    shell.instead("https://ci.example.com/hooks", &format!("http://127.0.0.1:{port}"));
    shell.instead("$(openssl rand -hex 32)", "s3cret");
    shell.run(&examples.take("Examples"));
    scene.job("llama-sft");
    scene.phase("llama-sft", "Running");
    scene.phase("llama-sft", "Completed");
    for event in ["training.started", "training.completed"] {
        receiver.line(&[event, &format!("{}/llama-sft", scene.namespace), "attempt 1", "evt_", "✓ verified"]).await;
    }
}
