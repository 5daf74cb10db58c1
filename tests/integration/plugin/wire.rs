//! `verify` and `listen`: recorded, received and forwarded requests.

use super::*;

/// A request as a proxy or a receiver logs it.
pub fn recorded(post: &Received) -> String {
    let headers = post.headers.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap()));
    format!("POST {} HTTP/1.1\r\n{}\r\n{}", post.path, headers.collect::<String>(), post.body)
}

pub fn secret_file(secret: &str) -> PathBuf {
    let file = temporary_folder("secret").join("secret");
    fs::write(&file, secret).unwrap();
    file
}

pub fn decode(base64: &str) -> String {
    use base64::Engine as _;
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(base64).unwrap()).unwrap()
}

fn verify(secret: &str, arguments: &[&str], input: &str) -> Ran {
    let file = secret_file(secret);
    let ran =
        Ran::run(Command::new(plugin_binary()).args(["verify", "--secret-file"]).arg(&file).args(arguments), input);
    assert!(!ran.out.contains(secret.trim()) && !ran.err.contains(secret.trim()), "{ran:?}");
    ran
}

#[test]
fn recorded_requests_are_verified_and_explained() {
    run(async {
        let scene = Scene::new("plugin-verify").await;
        let (native, standard, newline) = (Receiver::start().await, Receiver::start().await, Receiver::start().await);
        let whsec = crate::formats::whsec(7, 32);
        scene.secret("native", SECRET);
        scene.secret("standard", &whsec);
        scene.secret("newline", &format!("{SECRET}\n"));
        scene.webhook("native", &native.url(), &json!({"secretRef": {"name": "native"}}));
        let spec = json!({"secretRef": {"name": "standard"}, "format": "StandardWebhooks"});
        scene.webhook("standard", &standard.url(), &spec);
        scene.webhook("newline", &newline.url(), &json!({"secretRef": {"name": "newline"}}));
        let _operator = scene.operator().await;
        for name in ["native", "standard", "newline"] {
            plugin(&scene, &["test", name]).succeeded();
        }
        let post = native.received().remove(0);
        let sound = recorded(&post);
        assert_eq!(
            verify(SECRET, &[], &sound).succeeded(),
            "verified: X-LLMTune-Signature is the signature of the body\n"
        );
        let signature = format!("X-Hub-Signature-256: {}", post.header("x-hub-signature-256"));
        assert!(verify(SECRET, &["-H", &signature], &post.body).succeeded().contains("X-Hub-Signature-256"));
        let pretty = serde_json::to_string_pretty(&post.json()).unwrap();
        for (secret, input, says) in [
            (format!("{SECRET}\n"), sound.clone(), "the secret file ends in a line break"),
            ("wr0ng".to_owned(), sound.clone(), "the secret is probably wrong"),
            (SECRET.to_owned(), sound.replace(&post.body, &pretty), "parsed and serialized again"),
            (SECRET.to_owned(), sound.replace("llama", "mallory"), "the secret is probably wrong"),
            (SECRET.to_owned(), sound.replace("signature", "signed"), "receivers read X-LLMTune-Signature"),
            (SECRET.to_owned(), recorded(&newline.received()[0]), "the Secret in the cluster ends in a line break"),
        ] {
            let ran = verify(&secret, &[], &input);
            assert_eq!(ran.code, 1);
            assert!(ran.out.starts_with("not verified: ") && ran.out.contains(says), "{says}: {ran:?}");
        }
        let post = standard.received().remove(0);
        let sound = recorded(&post);
        let expected = "verified: webhook-signature is the signature of id, timestamp and body\n";
        assert_eq!(verify(&whsec, &[], &sound).succeeded(), expected);
        let time = post.header("webhook-timestamp").to_owned();
        let millis = sound.replace(&format!("webhook-timestamp: {time}"), &format!("webhook-timestamp: {time}000"));
        assert!(
            verify(&whsec, &[], &millis)
                .out
                .contains("webhook-timestamp is not in whole seconds since 1970; forward it unchanged")
        );
        assert!(verify(SECRET, &[], &sound).out.contains("no secret of Standard Webhooks"));

        let output = verify(SECRET, &[], "").failed();
        assert!(output.contains("verify --secret-file FILE < request"), "{output}");
        let output = Ran::run(Command::new(plugin_binary()).args(["verify", "--secret-file", "/nowhere"]), "").failed();
        assert!(output.contains("/nowhere cannot be read"), "{output}");
    });
}

/// Runs `listen`. Returns its process and its URL.
async fn listen(arguments: &[&str]) -> (Process, String) {
    let log = temporary_folder("listen").join("log");
    let mut listen = Command::new(plugin_binary());
    let process = Process::start("listen", listen.args(["listen", "--port", "0"]).args(arguments), &log);
    let url = eventually("it listens", SOON, || async {
        let text = fs::read_to_string(&log).unwrap();
        text.split_once("Listening at ").and_then(|(_, rest)| rest.split(' ').next()).map(str::to_owned)
    })
    .await;
    (process, url)
}

#[test]
fn a_local_receiver_verifies_shows_and_hands_on() {
    run(async {
        let scene = Scene::new("plugin-listen").await;
        let behind = Receiver::answering(|_| Answer::status(202)).await;
        let file = secret_file(SECRET);
        let secret = ["--secret-file", file.to_str().unwrap()];
        let (listener, url) = listen(&[&secret[..], &["--forward", &behind.url()]].concat()).await;
        let (failing, failing_url) = listen(&["--answer", "503"]).await;
        let (nobody, nobody_url) = listen(&["--forward", "http://127.0.0.1:9/"]).await;
        scene.secret("ci", SECRET);
        scene.secret("wrong", "another");
        let format = json!({"secretRef": {"name": "ci"}, "format": "CloudEvents"});
        for (name, url, spec) in [
            ("ci", &url, json!({"secretRef": {"name": "ci"}})),
            ("events", &url, format),
            ("wrong", &url, json!({"secretRef": {"name": "wrong"}})),
            ("failing", &failing_url, json!({})),
            ("nobody", &nobody_url, json!({})),
        ] {
            scene.webhook(name, url, &spec);
        }
        let _operator = scene.operator().await;
        assert!(plugin(&scene, &["test", "ci"]).succeeded().contains("HTTP 202"), "the answer from behind");
        let post = behind.received().remove(0);
        assert!(post.is_signed_with(SECRET), "handed on byte for byte");
        assert_eq!(post.header("x-llmtune-attempt"), "1");
        plugin(&scene, &["test", "events"]).succeeded();
        assert!(plugin(&scene, &["test", "wrong"]).out.contains("HTTP 401"));
        assert_eq!(behind.count(), 2, "what does not verify is not handed on");
        assert!(plugin(&scene, &["test", "failing"]).out.contains("HTTP 503"));
        assert!(plugin(&scene, &["test", "nobody"]).out.contains("HTTP 502"));
        assert!(nobody.log_text().contains("→ http://127.0.0.1:9/: no answer: "), "{}", nobody.log_text());
        assert!(failing.log_text().contains("Nothing is verified"), "{}", failing.log_text());
        let shown = listener.log_text();
        println!("{shown}");
        assert!(!shown.contains('\x1b') && !shown.contains(SECRET));
        for says in [
            "training.started  ",
            "  attempt 1  evt_",
            "verified: X-LLMTune-Signature is the signature of the body\n",
            "\n    \"name\": \"sample\",\n",
            "/hook: 202 Accepted\n",
            "the secret is probably wrong",
            "answered 401 Unauthorized\n",
        ] {
            assert!(shown.contains(says), "{says:?}: {shown}");
        }
        // A page in a browser cannot reach the forwarding target.
        let crossed = reqwest::Client::new().post(&url).header("origin", "https://a.example").body("{}").send().await;
        assert_eq!(crossed.unwrap().status(), 403);
        let port = url.rsplit(':').next().unwrap();
        let output = Ran::run(Command::new(plugin_binary()).args(["listen", "--port", port]), "").failed();
        assert!(output.contains("--port 0"), "{output}");
    });
}
