//! Access from other sites, under other host names and by other users of the machine.

use axum::{Router, response::Html, routing::get};

use super::*;

/// A page of another origin, on the same host and so of the same site.
async fn elsewhere() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let router = Router::new().route("/", get(|| async { Html("<!doctype html><title>elsewhere</title><body>") }));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

#[test]
fn other_origins_can_neither_read_nor_send() {
    run(async {
        let scene = Scene::new("dashboard-elsewhere").await;
        let receiver = refused(&scene).await;
        let _operator = scene.operator().await;
        given_up(&scene, &["a"]).await;
        let dashboard = Dashboard::start(&scene, "admin", &[]).await;
        let before = receiver.count();
        let objects = scene.kubectl(&["get", "whd", "-o", "name"]);
        let mut browser = Browser::start();
        let page = elsewhere().await;
        let hook = dashboard.of(&scene, "ci");
        for known in [&dashboard.url, &hook] {
            browser.open(&page, json!({}));
            let read = browser.evaluate(&format!("fetch('{known}').then(() => 'read', () => 'refused')"));
            assert_eq!(read, "refused");
            let opaque = browser
                .evaluate(&format!("fetch('{known}', {{mode: 'no-cors'}}).then(() => 'loaded', () => 'refused')"));
            assert_eq!(opaque, "refused", "Cross-Origin-Resource-Policy");
        }
        let framed = browser.evaluate(&format!(
            "new Promise(done => {{ const frame = document.createElement('iframe'); frame.src = '{hook}'; \
             frame.onload = () => done(frame.contentDocument === null); document.body.append(frame); }})"
        ));
        assert_eq!(framed, true);
        assert!(browser.heard().1.iter().any(|complaint| complaint.contains("frame-ancestors")));
        for (action, field) in [("test", "event=training.started"), ("redeliver", "")] {
            browser.open(&page, json!({}));
            let post = format!(
                "fetch('{hook}/{action}', {{method: 'POST', mode: 'no-cors', body: new URLSearchParams('{field}')}}).then(() => 0, () => 0)"
            );
            browser.evaluate(&post);
            browser.open(&page, json!({}));
            let (name, value) = field.split_once('=').unwrap_or(("delivery", ""));
            browser.evaluate(&format!(
                "document.body.innerHTML = '<form method=post action=\"{hook}/{action}\"><input name={name} value=\"{value}\"><button>win a prize</button></form>'"
            ));
            assert_eq!(browser.ask("click", json!({"selector": "button"})), 403);
            assert!(browser.text().contains("requests from other pages are refused"), "{}", browser.text());
        }
        // The page itself can do what the other page could not.
        let origin = [("origin", dashboard.origin.as_str()), ("content-type", "application/x-www-form-urlencoded")];
        assert_eq!(scene.kubectl(&["get", "whd", "-o", "name"]), objects);
        assert_eq!(receiver.count(), before);
        let (status, _) = dashboard.ask("POST", &format!("{hook}/test"), &origin, "event=training.started").await;
        assert_eq!((status, receiver.count()), (303, before + 1));
    });
}

#[test]
fn rebound_names_and_urls_without_key_are_refused() {
    run(async {
        let scene = Scene::new("dashboard-rebound").await;
        scene.webhook("ci", "https://ci.example.com/hooks", &json!({}));
        let dashboard = Dashboard::start(&scene, "admin", &[]).await;
        let port = dashboard.origin.rsplit(':').next().unwrap();
        let (url, hook) = (dashboard.url.as_str(), dashboard.of(&scene, "ci"));
        // Another address of this machine stands for the address of another machine.
        assert!(tokio::net::TcpStream::connect(format!("127.0.0.2:{port}")).await.is_err());
        let own = format!("localhost:{port}");
        assert_eq!(dashboard.ask("GET", url, &[("host", &own)], "").await.0, 200);
        let rebound = format!("evil.example:{port}");
        for (method, url) in [("GET", url), ("GET", &hook), ("POST", &format!("{hook}/test"))] {
            let (status, text) = dashboard.ask(method, url, &[("host", &rebound)], "").await;
            assert!(status == 421 && text.contains("unknown host name"), "{status} {text}");
        }
        let other = format!("/{}/", "0".repeat(32));
        for path in ["/", "/style.css", "/favicon.ico", &other, &format!("/webhook/{}/ci", scene.namespace)] {
            let (status, text) = dashboard.ask("GET", path, &[], "").await;
            assert!(
                status == 403 && text.contains("open the URL that kubectl llmtune dashboard printed"),
                "{path}: {text}"
            );
        }
        for method in ["PUT", "DELETE", "OPTIONS", "PATCH"] {
            assert_eq!(dashboard.ask(method, url, &[], "").await.0, 405, "{method}");
        }
        assert_eq!(dashboard.ask("POST", url, &[("origin", &dashboard.origin)], "").await.0, 405);
        assert_eq!(dashboard.ask("GET", &format!("{url}no/such/page"), &[], "").await.0, 404);
        let again = Dashboard::start(&scene, "admin", &[]).await;
        assert_ne!(again.url.rsplit('/').nth(1), url.rsplit('/').nth(1), "each start has a key of its own");
        assert_eq!(scene.kubectl(&["get", "whd", "-o", "name"]), "");
    });
}
