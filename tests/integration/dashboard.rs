//! `kubectl llmtune dashboard` in a real browser, against a real apiserver, a real operator and real receivers.

mod browser;
mod content;
mod pictures;
mod strangers;

use std::time::Duration;

use llmtune_webhooks_harness::{
    eventually,
    process::{Process, temporary_folder},
    receiver::{Answer, Receiver},
};
use serde_json::{Value, json};

use crate::{
    plugin::{SECRET, command_as, given_up, of_all_sorts, plugin, refused},
    support::{SOON, Scene, run},
};
use browser::Browser;

/// Upper bound for the size of the page with three Webhooks, with its style and its script.
const KILOBYTES: usize = 16;

/// A running dashboard.
struct Dashboard {
    process: Process,
    /// Its URL, with the key.
    url: String,
    /// The same without its path.
    origin: String,
}

impl Dashboard {
    async fn start(scene: &Scene, kubeconfig: &str, arguments: &[&str]) -> Self {
        let log = temporary_folder("dashboard").join("log");
        let mut command = command_as(scene, kubeconfig, &[&["dashboard"], arguments].concat());
        let mut process = Process::start("dashboard", &mut command, &log);
        let url = eventually("the page is served", SOON, || async {
            let output = std::fs::read_to_string(&log).unwrap();
            Some(output.strip_prefix("Open ")?.split_once(' ')?.0.to_owned())
        })
        .await;
        assert!(process.try_wait().is_none());
        let origin = url.split('/').take(3).collect::<Vec<_>>().join("/");
        Self { process, url, origin }
    }

    /// The URL of a Webhook's page.
    fn of(&self, scene: &Scene, name: &str) -> String {
        format!("{}webhook/{}/{name}", self.url, scene.namespace)
    }

    /// The status and the text of the response to a request with these headers.
    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.origin) };
        let mut request = client.request(method.parse().unwrap(), url).body(body.to_owned());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        for (name, _) in answer.headers() {
            assert!(!name.as_str().starts_with("access-control-"), "{name}");
        }
        let policy = answer.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; ") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(answer.headers()["cache-control"], "no-store");
        assert_eq!(answer.headers()["cross-origin-resource-policy"], "same-origin");
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// Checks that the page sent no requests elsewhere and that the browser reported no errors.
    fn was_well(&self, browser: &mut Browser) {
        let (requests, complaints) = browser.heard();
        let own = |request: &String| {
            let url = request.split_once(' ').unwrap().1;
            url.starts_with(&self.url) || url.starts_with("data:")
        };
        assert!(requests.len() >= 2 && requests.iter().all(own), "{requests:#?}");
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}

/// Reloads the page until it contains this text.
async fn says(browser: &mut Browser, what: &str) {
    let begun = std::time::Instant::now();
    while !browser.text().contains(what) {
        assert!(begun.elapsed() < SOON, "the page does not say {what:?}:\n{}", browser.text());
        tokio::time::sleep(Duration::from_millis(100)).await;
        browser.ask("reload", json!({}));
    }
}

/// Waits until this script is true, without touching the page.
async fn becomes(browser: &mut Browser, script: &str) {
    let begun = std::time::Instant::now();
    while browser.evaluate(script) != true {
        assert!(begun.elapsed() < SOON, "{script} does not become so:\n{}", browser.text());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn without_javascript() -> Value {
    json!({"javascript": false})
}

#[test]
fn webhooks_are_seen_tested_and_mended_without_javascript() {
    run(async {
        let scene = Scene::new("dashboard-plain").await;
        let receiver = refused(&scene).await;
        let good = Receiver::start().await;
        scene.webhook("good", &good.url(), &json!({"events": ["model.deployed"]}));
        scene.webhook("lost", &good.url(), &json!({"secretRef": {"name": "nowhere"}}));
        let dashboard = Dashboard::start(&scene, "admin", &[]).await;
        let _operator = scene.operator().await;
        given_up(&scene, &["a", "b"]).await;
        scene.wait("webhook/lost", "condition=Ready=False");
        let mut browser = Browser::start();

        assert_eq!(browser.open(&dashboard.url, without_javascript()), 200);
        says(&mut browser, "0 pending, 2 given up").await;
        let text = browser.text();
        for said in [
            &format!("Webhooks in namespace {}\n", scene.namespace),
            "3 webhooks, 1 failing, 1 not ready\n",
            &format!("http://127.0.0.1:{}\n", receiver.port),
            "0 delivered, 2 failed attempts, failing during ",
            "DeliveriesFailing: attempts fail: HTTP 500",
            "SecretNotFound: ",
            "JavaScript is off: reload to update the page",
        ] {
            assert!(text.contains(said), "{said:?}: {text}");
        }
        let base = dashboard.url.strip_prefix(&dashboard.origin).unwrap();
        let mut weight = 0;
        for path in ["", "style.css", "script.js"] {
            let (status, text) = dashboard.ask("GET", &format!("{base}{path}"), &[], "").await;
            assert_eq!(status, 200);
            weight += text.len();
        }
        println!("the page of three Webhooks, its style and its script: {weight} bytes");
        assert!(weight < KILOBYTES << 10, "{weight} bytes");

        assert_eq!(browser.ask("click", json!({"selector": "h2 a[id$='-ci']"})), 200);
        let text = browser.text();
        for said in [
            "trainingjob/a",
            "trainingjob/b",
            "Exhausted",
            "HTTP 500",
            "Redeliver all 2 that failed",
            "DeliveriesFailing",
        ] {
            assert!(text.contains(said), "{said:?}: {text}");
        }
        assert_eq!(browser.ask("click", json!({"selector": "#test"})), 200);
        says(&mut browser, "was not acknowledged: HTTP 500").await;
        let test = receiver.received().pop().unwrap();
        assert!(test.is_signed_with(SECRET) && test.header("x-llmtune-test") == "true");
        assert!(browser.text().contains("Redeliver all 2 that failed"), "a test is made anew instead");

        receiver.answer(|_| Answer::status(200));
        let before = receiver.count();
        assert_eq!(browser.ask("click", json!({"selector": "button[aria-label$='trainingjob/a']"})), 200);
        says(&mut browser, "was acknowledged with HTTP 200.").await;
        let sent = &receiver.received()[before..];
        assert!(sent.len() == 1 && sent[0].name() == "a" && sent[0].is_signed_with(SECRET), "{sent:#?}");
        browser.ask("click", json!({"selector": "#again"}));
        says(&mut browser, "1 delivery requested again.").await;
        receiver.wait_for("training.started", "b", SOON).await;
        browser.ask("click", json!({"selector": "#test"}));
        says(&mut browser, "The test test-").await;
        says(&mut browser, "was acknowledged with HTTP 200.").await;
        assert!(!browser.text().contains("Redeliver all"), "{}", browser.text());

        browser.ask("click", json!({"selector": "#all"}));
        says(&mut browser, "3 webhooks, 1 not ready").await;
        browser.ask("click", json!({"selector": "h2 a[id$='-good']"}));
        assert_eq!(
            browser.evaluate("document.getElementById('event').value"),
            "model.deployed",
            "what it subscribes to"
        );
        dashboard.was_well(&mut browser);
        scene.kubectl(&["delete", "webhook", "good"]);
        says(&mut browser, "There is no such webhook").await;
    });
}

#[test]
fn page_updates_without_losing_focus() {
    run(async {
        let scene = Scene::new("dashboard-live").await;
        let receiver = refused(&scene).await;
        let _operator = scene.operator().await;
        given_up(&scene, &["a", "b"]).await;
        scene.wait("webhook/ci", "condition=Healthy=False");
        let dashboard = Dashboard::start(&scene, "admin", &[]).await;
        let mut browser = Browser::start();
        browser.open(&dashboard.url, json!({}));
        let link = format!("hook-Webhook-{}-ci", scene.namespace);
        browser.ask("press", json!({"key": "Tab"}));
        assert_eq!(browser.evaluate("document.activeElement.textContent"), "Skip to content");
        browser.tab_to(&link);
        browser.evaluate("window.stays = document.getElementById('now')");
        // An update from the time of the page load may still arrive.
        becomes(&mut browser, "!window.stays.isConnected").await;
        assert_eq!(browser.focused(), link);

        receiver.answer(|post| Answer::status(if post.name() == "b" { 503 } else { 200 }));
        plugin(&scene, &["redeliver", "ci"]);
        receiver.answer(|_| Answer::status(200));
        plugin(&scene, &["test", "ci"]).succeeded();
        becomes(&mut browser, "document.querySelector('.mark.bad') === null").await;
        assert!(browser.text().contains("Healthy"), "{}", browser.text());
        becomes(&mut browser, "document.getElementById('live').textContent === '1 webhook'").await;
        assert_eq!(browser.evaluate("typeof window.stays"), "object", "it was not loaded anew");
        assert_eq!(browser.focused(), link);

        // Keyboard only.
        assert_eq!(browser.ask("press", json!({"key": "Enter", "leads": true})), 200);
        let kept = scene.kubectl(&["get", "whd", "-o", "json"]);
        let kept: Value = serde_json::from_str(&kept).unwrap();
        let of_b = |item: &&Value| item["status"]["event"]["object"]["name"] == "b";
        let name = kept["items"].as_array().unwrap().iter().find(of_b).unwrap()["metadata"]["name"].clone();
        let button = format!("again-{}", name.as_str().unwrap());
        browser.tab_to(&button);
        assert_eq!(browser.ask("press", json!({"key": "Enter", "leads": true})), 200);
        becomes(
            &mut browser,
            "document.getElementById('told').textContent.endsWith('was acknowledged with HTTP 200.')",
        )
        .await;
        browser.tab_to("event");
        browser.ask("press", json!({"key": "ArrowDown"}));
        let chosen = browser.evaluate("document.getElementById('event').value");
        browser.tab_to("test");
        // An update of the page keeps the selected option.
        browser.evaluate("window.stays = document.getElementById('now')");
        scene.kubectl(&["annotate", "webhook", "ci", "changed=now"]);
        becomes(&mut browser, "!window.stays.isConnected").await;
        assert_eq!(
            (browser.focused().as_str(), browser.evaluate("document.getElementById('event').value")),
            ("test", chosen.clone())
        );
        assert_eq!(browser.ask("press", json!({"key": "Space", "leads": true})), 200);
        becomes(&mut browser, "/^The test test-.* was acknowledged/.test(document.getElementById('told').textContent)")
            .await;
        assert_eq!(json!(receiver.received().pop().unwrap().event()), chosen);
        dashboard.was_well(&mut browser);

        let mut dashboard = dashboard;
        dashboard.process.kill();
        becomes(&mut browser, "document.getElementById('live').textContent.startsWith('Not connected')").await;
    });
}

#[test]
fn page_is_accessible_in_light_and_dark() {
    run(async {
        let scene = Scene::new("dashboard-axe").await;
        let _running = of_all_sorts(&scene).await;
        let dashboard = Dashboard::start(&scene, "admin", &[]).await;
        let mut browser = Browser::start();
        let test = plugin(&scene, &["test", "good", "-o", "name"]).succeeded();
        let result = format!("{}?of={}", dashboard.of(&scene, "good"), test.trim().split('/').next_back().unwrap());
        let pages = [dashboard.url.clone(), dashboard.of(&scene, "ci"), result, dashboard.of(&scene, "none")];
        for scheme in ["light", "dark"] {
            for width in [1200, 360] {
                for url in &pages {
                    browser.open(url, json!({"scheme": scheme, "width": width}));
                    let found = browser.ask("axe", json!({}));
                    assert_eq!(found, json!([]), "{scheme} {width} {url}");
                    let wide = browser.evaluate("document.documentElement.scrollWidth");
                    assert_eq!(wide, width, "{url} does not fit");
                    // By their ids, because an update replaces the elements.
                    let usable = "[...document.querySelectorAll('a[href], button, select, [tabindex=\"0\"]')].map(one => one.id)";
                    let usable = browser.evaluate(usable);
                    let usable: Vec<&str> = usable.as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
                    let mut reached = Vec::new();
                    for _ in &usable {
                        browser.ask("press", json!({"key": "Tab"}));
                        reached.push(browser.focused());
                    }
                    assert_eq!(reached, usable, "{url}: Tab does not lead there");
                    assert_eq!(
                        browser.evaluate(&format!("matchMedia('(prefers-color-scheme: {scheme})').matches")),
                        true
                    );
                }
            }
        }
    });
}

#[test]
fn page_of_a_missing_webhook_updates_when_it_exists() {
    run(async {
        let scene = Scene::new("dashboard-none").await;
        scene.webhook("other", "https://receiver.example.com/hooks", &json!({}));
        let dashboard = Dashboard::start(&scene, "admin", &[]).await;
        let mut browser = Browser::start();
        assert_eq!(browser.open(&dashboard.of(&scene, "later"), json!({})), 404);
        let title = "document.querySelector('h1').textContent";
        // The first event arrives immediately.
        let asked = "performance.getEntriesByType('resource').some(entry => entry.initiatorType === 'fetch')";
        becomes(&mut browser, asked).await;
        assert_eq!(browser.evaluate(title), "There is no such webhook");
        scene.webhook("later", "https://receiver.example.com/hooks", &json!({}));
        becomes(&mut browser, &format!("{title} === 'later'")).await;
    });
}
