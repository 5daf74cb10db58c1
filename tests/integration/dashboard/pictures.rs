//! The pictures in the documentation.

use std::{path::PathBuf, sync::Arc, time::Duration};

use llmtune_webhooks_harness::{control_plane::ControlPlane, root};

use super::*;
use crate::support::Jobs;

/// Draws the pictures of docs/kubectl.md, over a quarter of an hour of real deliveries: `LLMTUNE_TEST_PICTURES=1`.
#[test]
fn the_pictures_in_the_documentation_are_of_this_page() {
    run(async {
        let folder = root().join("docs/images");
        let pictures = ["dashboard-light.png", "dashboard-dark.png", "dashboard-webhook.png"];
        if std::env::var_os("LLMTUNE_TEST_PICTURES").is_some() {
            draw(pictures.map(|name| folder.join(name))).await;
        }
        let text = std::fs::read_to_string(root().join("docs/kubectl.md")).unwrap();
        for name in pictures {
            let bytes = std::fs::read(folder.join(name)).unwrap();
            assert!(bytes.starts_with(b"\x89PNG") && bytes.len() < 150_000, "{name}: {} bytes", bytes.len());
            assert!(text.contains(&format!("images/{name}")), "{name} is shown nowhere");
        }
    });
}

async fn draw([light, dark, webhook]: [PathBuf; 3]) {
    let plane = ControlPlane::start().await;
    plane.install_crds();
    let scene = Scene { plane: Arc::new(plane), namespace: "research".into() };
    scene.plane.kubectl(&["create", "namespace", "research"]);
    let [ci, grafana] = [Receiver::start().await, Receiver::start().await];
    let registry = Receiver::answering(|_| Answer::status(503)).await;
    let backoff = json!({"delivery": {"maxRetries": 1, "backoff": {"initial": "2s"}}});
    scene.webhook("ci", &ci.url(), &json!({"events": ["training.*", "model.deployed"]}));
    scene.webhook(
        "grafana",
        &grafana.url(),
        &json!({"events": ["training.completed", "training.failed"], "delivery": backoff["delivery"]}),
    );
    scene.webhook(
        "registry",
        &registry.url(),
        &json!({"events": ["training.completed"], "delivery": backoff["delivery"]}),
    );
    let _operator = scene.operator().await;
    let dashboard = Dashboard::start(&scene, "admin", &[]).await;
    let jobs = Jobs::new(&scene).await;
    for number in 0..80 {
        grafana.answer(move |_| Answer::status(if (20..28).contains(&number) { 502 } else { 200 }));
        for job in 0..=number % 4 {
            let name = format!("{}-{number}", ["llama-sft", "qwen-dpo", "mistral-lora", "gemma-sft"][job]);
            jobs.create(&name).await;
            jobs.start(&name).await;
            // Like a real training, it takes some time.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            if number % 11 != 10 {
                jobs.complete(&name).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(7)).await;
    }
    let mut browser = Browser::start();
    std::fs::create_dir_all(light.parent().unwrap()).unwrap();
    for (url, path, scheme) in [
        (dashboard.url.clone(), light, "light"),
        (dashboard.url.clone(), dark, "dark"),
        (dashboard.of(&scene, "registry"), webhook, "light"),
    ] {
        browser.open(&url, json!({"scheme": scheme, "width": 1000}));
        let height = browser.evaluate("Math.min(document.body.scrollHeight, 900)");
        browser.ask("screenshot", json!({"path": path, "height": height}));
    }
}
