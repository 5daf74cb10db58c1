//! The plugin's page: each command prints what the page shows, except for ids, times, ports and keys.

use std::fs;

use http::{HeaderName, HeaderValue};
use llmtune_webhooks_harness::{eventually, receiver::Receiver};
use regex::Regex;
use serde_json::json;

use super::script::{Script, Shell};
use crate::support::{Jobs, SOON, Scene};

pub async fn play(scripts: &mut [Script]) {
    let [page] = scripts else { unreachable!("one document") };
    let scene = Scene::new("page").await;
    let mut shell = Shell::new(&scene);
    let receiver = Receiver::start().await;
    let port = shell.port(44153);
    scene.secret("grafana-hook", "s3cret");
    let spec = json!({"secretRef": {"name": "grafana-hook"}, "delivery": {"maxRetries": 0}});
    scene.webhook("ci", &receiver.url(), &spec);
    scene.webhook("grafana", &format!("http://127.0.0.1:{port}/hook"), &spec);
    let _operator = scene.operator().await;
    scene.wait("webhook/ci", "condition=Ready");
    scene.wait("webhook/grafana", "condition=Ready");

    shell.run(&page.take("kubectl llmtune"));
    shell.run(&page.take("completion"));
    let says = |page: &mut Script, heading: &str| {
        for (command, shown) in page.take(heading).commands() {
            assert_eq!(shape(&shell.look(&command), &scene), shape(&shown, &scene), "{command}");
        }
    };
    says(page, "test");
    says(page, "test");
    // Failed tests are not among the failures that the page lists.
    scene.kubectl(&["delete", "whd", "-l", "llmtune.io/webhook=grafana"]);
    fs::write(shell.checkout.join("grafana.key"), "s3cret").unwrap();
    recorded(&shell, &receiver);

    let jobs = Jobs::new(&scene).await;
    for name in ["nightly-1", "nightly-2", "nightly-3"] {
        jobs.create(name).await;
        jobs.start(name).await;
        receiver.wait_for("training.started", name, SOON).await;
    }
    let (command, shown) = page.take("deliveries and redeliver").commands().remove(0);
    let output = eventually("the status tells of all deliveries", SOON, || async {
        let output = shell.look(&command);
        ["nightly-1", "nightly-2", "nightly-3", "(test)"].iter().all(|object| output.contains(object)).then_some(output)
    })
    .await;
    assert_eq!(shape(&output, &scene).lines().next(), shape(&shown, &scene).lines().next());
    eventually("grafana's failures are counted", SOON, || async {
        (scene.get("webhook", "grafana")["status"]["deliveries"]["failed"] == 3).then_some(())
    })
    .await;
    says(page, "status");
    let dashboard = page.take("dashboard");
    shell.terminal(&dashboard).line(&["Open http://127.0.0.1:", "Keep this URL secret"]).await;

    let listen = page.take("listen");
    let terminal = shell.terminal(&listen);
    terminal.line(&["Listening at"]).await;
    says(page, "deliveries and redeliver");
    says(page, "verify");
    says(page, "verify");
    says(page, "create");
    says(page, "When something is missing");

    shell.type_in("kubectl llmtune test grafana --event training.started");
    let shown = shape(&listen.commands()[0].1, &scene);
    let (first, test) = shown.split_once('\n').unwrap();
    eventually(&format!("the receiver shows\n{shown}"), SOON, || async {
        let log = shape(&terminal.log(), &scene);
        (log.starts_with(first) && log.contains(test)).then_some(())
    })
    .await;
}

/// The files that the page verifies: a recorded request, the same with a reserialized body, and wrong keys.
fn recorded(shell: &Shell, receiver: &Receiver) {
    let post = receiver.received().remove(0);
    let header = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
    let head: Vec<String> = post.headers.iter().map(header).collect();
    let request = |body: &str| format!("POST /hook HTTP/1.1\r\n{}\r\n\r\n{body}", head.join("\r\n"));
    let file = |name: &str, text: &str| fs::write(shell.checkout.join(name), text).unwrap();
    file("request", &request(&post.body));
    file("reserialized", &request(&post.body.replace(",\"", ", \"")));
    file("newline.key", "s3cret\n");
    file("wrong.key", "an0ther");
}

/// A text without its ids, times, numbers, ports and keys, and with single spaces.
fn shape(text: &str, scene: &Scene) -> String {
    let text = text.replace(&scene.namespace, "default");
    let same = [
        ("[0-9a-f]{32,}", "ID"),
        ("test-[a-z0-9]{5}", "test-ID"),
        ("([0-9.]+[smh])+", "0s"),
        ("[0-9]+", "0"),
        (" +", " "),
    ];
    same.iter()
        .fold(text, |text, (varies, stands)| Regex::new(varies).unwrap().replace_all(&text, *stands).into_owned())
}
