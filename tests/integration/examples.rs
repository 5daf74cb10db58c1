//! The manifests in `examples/`, as a user applies them.

use std::{fs, path::PathBuf};

use llmtune_webhooks_harness::{operator::Operator, root};

use crate::support::{Scene, run};

fn manifests() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("examples")).unwrap().map(|entry| entry.unwrap().path());
    let mut manifests: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect();
    manifests.sort();
    manifests
}

#[test]
fn every_example_applies_and_becomes_ready() {
    run(async {
        let scene = Scene::alone("examples").await;
        let _operator = Operator::start_ready(&scene.plane, &scene.options().cluster_wide()).await;
        let manifests = manifests();
        assert!(manifests.len() >= 3, "{manifests:?}");
        for manifest in manifests {
            scene.kubectl(&["apply", "--server-side", "--validate=strict", "-f", manifest.to_str().unwrap()]);
        }
        scene.wait("webhook/ci", "condition=Ready");
        scene.wait("webhook/llama-finished", "condition=Ready");
        scene.wait("webhook/internal", "condition=Ready");
        scene.wait("webhook/chat", "condition=Ready");
        scene.wait("clusterwebhook/platform", "condition=Ready");
        let webhook = scene.get("webhook", "ci");
        assert_eq!(webhook["status"]["endpoint"], "https://receiver.example.com");
        assert_eq!(scene.get("webhook", "chat")["status"]["endpoint"], "(Secret chat)");
    });
}
