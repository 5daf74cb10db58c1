//! From a transition on the apiserver to a signed POST.

use llmtune_webhooks_harness::receiver::Receiver;
use serde_json::json;

use crate::support::{SOON, Scene, run};

#[test]
fn a_job_that_runs_and_completes_is_told_in_two_signed_posts() {
    run(async {
        let scene = Scene::new("basic").await;
        let receiver = Receiver::start().await;
        scene.secret("ci-hook", "s3cret");
        scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci-hook"}}));
        let _operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");
        scene.job("llama");
        scene.phase("llama", "Pending");
        scene.phase("llama", "Running");
        scene.phase("llama", "Completed");
        let received = receiver.wait(2, SOON).await;
        assert_eq!(receiver.events()[0].0, "training.started");
        assert_eq!(receiver.events()[1].0, "training.completed");
        for r in &received {
            println!("{} {:?}", r.body, r.headers);
        }
        std::thread::sleep(std::time::Duration::from_secs(6));
        println!("{}", scene.kubectl(&["describe", "webhook", "ci"]));
        println!("{}", scene.kubectl(&["get", "webhook"]));
        println!("{}", _operator.process.log_text());
    });
}
