//! Usage figures, end to end: a real Prometheus that scrapes the test's exporter, and a real quota that pods use.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{ConnectInfo, State},
    http::HeaderMap,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use llmtune_webhooks_harness::{
    eventually,
    operator::Operator,
    process::temporary_folder,
    prometheus::{Exporter, Prometheus},
    receiver::{Received, Receiver},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    support::{SOON, Scene, run},
    usage_thresholds::manifest,
};

/// A Prometheus takes a while to start on a loaded machine.
const LATE: Duration = Duration::from_secs(60);
const EVALUATIONS: &str = "llmtune_webhooks_usage_evaluations_total";

/// A figure of a test, exposed by an exporter and scraped by a Prometheus.
struct Figure {
    exporter: Exporter,
    prometheus: Prometheus,
}

impl Figure {
    async fn start() -> Self {
        let exporter = Exporter::start().await;
        let prometheus = Prometheus::start(&[exporter.target()]).await;
        Self { exporter, prometheus }
    }

    /// Sets a gauge, and waits until Prometheus has it.
    async fn set(&self, value: f64) {
        self.exporter.set("llm_tokens", &[], value);
        self.prometheus.wait_value("llm_tokens", Some(value)).await;
    }

    async fn remove(&self) {
        self.exporter.remove("llm_tokens", &[]);
        self.prometheus.wait_value("llm_tokens", None).await;
    }
}

/// A threshold of the gauge, evaluated every second, with these fields over a limit of 1,000.
fn tokens(name: &str, fields: &Value) -> Value {
    let mut spec = json!({
        "prometheus": {"query": "llm_tokens"}, "limit": "1k", "thresholds": ["50%", "80%", "950"], "hysteresis": "5%",
        "interval": "1s", "unit": "tokens"
    });
    for (key, value) in fields.as_object().unwrap() {
        if value.is_null() {
            spec.as_object_mut().unwrap().remove(key);
        } else {
            spec[key] = value.clone();
        }
    }
    manifest(name, spec)
}

async fn operator_with(scene: &Scene, server: &str) -> Operator {
    let options = scene.options().argument("--allow-prometheus").argument(server);
    Operator::start_ready(&scene.plane, &options).await
}

/// Waits until the current value in Prometheus has been evaluated.
async fn evaluated(operator: &Operator) {
    let count = || operator.metric(EVALUATIONS, &[("source", "prometheus"), ("result", "Measured")]);
    let before = count();
    // One may have been in progress.
    eventually("two more evaluations", SOON, || async { (count() >= before + 2.0).then_some(()) }).await;
}

/// A condition's status, reason and message.
fn condition(scene: &Scene, name: &str, kind: &str) -> Option<(String, String, String)> {
    let object = scene.get("usagethreshold", name);
    let conditions = object["status"]["conditions"].as_array()?.clone();
    let condition = conditions.into_iter().find(|condition| condition["type"] == kind)?;
    let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

/// Waits until a threshold is ready, or not ready for this reason. Returns the message.
async fn wait_ready(scene: &Scene, name: &str, reason: &str) -> String {
    let status = if reason == "Measured" { "True" } else { "False" };
    eventually(&format!("{name} is {reason}"), LATE, || async {
        let ready = condition(scene, name, "Ready")?;
        (ready.0 == status && ready.1 == reason).then_some(ready.2)
    })
    .await
}

/// The thresholds in the events, in the order of arrival, each event once.
fn announced(receiver: &Receiver) -> Vec<String> {
    let mut seen = HashSet::new();
    let received = receiver.received();
    let usage = received.iter().filter(|post| post.event() == "usage.threshold_reached");
    let first = usage.filter(|post| seen.insert(post.event_id().to_owned()));
    first.map(|post| post.json()["data"]["threshold"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn each_crossing_is_sent_once() {
    run(async {
        let scene = Scene::new("rises").await;
        let (figure, receiver) = (Figure::start().await, Receiver::start().await);
        let selector = json!({"matchLabels": {"team": "research"}});
        scene.webhook("ci", &receiver.url(), &json!({"events": ["usage.*"], "selector": selector}));
        let operator = operator_with(&scene, &figure.prometheus.url()).await;
        figure.set(100.0).await;
        let mut labelled = tokens("tokens", &json!({}));
        labelled["metadata"]["labels"] = json!({"team": "research"});
        scene.apply(&labelled);
        scene.apply(&tokens("unlabelled", &json!({})));
        wait_ready(&scene, "tokens", "Measured").await;
        wait_ready(&scene, "unlabelled", "Measured").await;

        let mut expected: Vec<&str> = Vec::new();
        for (value, tells) in [
            (600.0, &["50%"][..]),
            (480.0, &[]),
            (600.0, &[]),
            (449.0, &[]),
            (600.0, &["50%"]),
            (2000.5, &["80%", "950"]),
        ] {
            figure.set(value).await;
            evaluated(&operator).await;
            expected.extend(tells);
            let what = format!("{value} tells {expected:?}");
            eventually(&what, SOON, || async { (announced(&receiver).len() == expected.len()).then_some(()) }).await;
            assert_eq!(announced(&receiver), expected, "{value}");
        }
        evaluated(&operator).await;
        assert_eq!(receiver.count(), expected.len(), "nothing is sent twice, and nothing for the other labels");

        let last = receiver.received().pop().unwrap().json();
        let observed_at = last["data"]["observedAt"].as_str().unwrap();
        assert_eq!(last["occurredAt"], observed_at);
        let data = format!(
            r#"{{"name":"tokens","namespace":"{}","metric":"llm_tokens","value":2000.5,"limit":1000,"percent":200.05,"threshold":"950","unit":"tokens","observedAt":"{observed_at}"}}"#,
            scene.namespace
        );
        assert!(receiver.received().pop().unwrap().body.contains(&data), "{last:#}");
        let status = eventually("all three are reached", SOON, || async {
            let status = scene.get("ut", "tokens")["status"].clone();
            (status["reached"] == json!(["50%", "80%", "950"])).then_some(status)
        })
        .await;
        assert_eq!(status["limit"], "1000");
        assert!(status["lastEvaluation"].is_string() && status["percent"].as_str().unwrap().ends_with('%'));
        let columns = scene.kubectl(&["get", "ut", "tokens"]);
        let head: Vec<&str> = columns.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(head, ["NAME", "VALUE", "LIMIT", "PERCENT", "REACHED", "READY", "LAST", "AGE"]);
    });
}

#[test]
fn failed_measurement_is_a_condition_and_no_reset() {
    run(async {
        let scene = Scene::new("failures").await;
        let (figure, receiver) = (Figure::start().await, Receiver::start().await);
        scene.webhook("ci", &receiver.url(), &json!({"events": ["usage.*"]}));
        let operator = operator_with(&scene, &figure.prometheus.url()).await;
        figure.exporter.set("several", &[("a", "1")], 999.0);
        figure.exporter.set("several", &[("a", "2")], 999.0);
        figure.exporter.set("diverged", &[], f64::NAN);
        figure.set(600.0).await;
        let query = |query: &str| json!({"prometheus": {"query": query}});
        let elsewhere = json!({"prometheus": {"url": "http://127.0.0.1:1", "query": "llm_tokens"}});
        let quota = json!({"prometheus": null, "limit": null, "resourceQuota": {"name": "none", "resource": "pods"}, "thresholds": ["50%"]});
        let cases = [
            ("absent", query("nothing_of_that_name"), "NoSample", false, "correct the query"),
            ("several", query("several"), "SeveralSamples", false, "sum(...)"),
            ("diverged", query("diverged"), "NotFinite", false, "returns NaN"),
            ("infinite", query("llm_tokens / 0"), "NotFinite", false, "returns +Inf"),
            ("wrong", query("sum(llm_tokens"), "InvalidQuery", true, "parse error"),
            ("range", query("llm_tokens[1m]"), "NotOneNumber", true, "a range of samples"),
            ("text", query("'600'"), "NotOneNumber", true, "a string"),
            ("elsewhere", elsewhere, "PrometheusNotAllowed", true, "--allow-prometheus"),
            ("quota", quota, "QuotaNotFound", false, "ResourceQuota none does not exist"),
            ("blunt", json!({"hysteresis": "950"}), "HysteresisTooLarge", true, "lower the hysteresis"),
        ];
        for (name, fields, ..) in &cases {
            scene.apply(&tokens(name, fields));
        }
        for (name, _, reason, stalls, says) in &cases {
            let message = wait_ready(&scene, name, reason).await;
            assert!(message.contains(says), "{name}: {message}");
            let stalled = condition(&scene, name, "Stalled").unwrap();
            assert_eq!(stalled.0, if *stalls { "True" } else { "False" }, "{name}: {stalled:?}");
        }
        for (name, scalar) in [("scalar", "scalar(llm_tokens)"), ("steady", "llm_tokens")] {
            scene.apply(&tokens(name, &query(scalar)));
            receiver.wait_for("usage.threshold_reached", name, SOON).await;
        }
        assert_eq!(announced(&receiver), ["50%", "50%"]);

        // A missing sample resets nothing; nor does an error that is corrected.
        figure.remove().await;
        wait_ready(&scene, "steady", "NoSample").await;
        figure.set(610.0).await;
        wait_ready(&scene, "steady", "Measured").await;
        scene.apply(&tokens("steady", &query("llm_tokens / 0")));
        wait_ready(&scene, "steady", "NotFinite").await;
        scene.apply(&tokens(
            "steady",
            &json!({"prometheus": {"url": figure.prometheus.url() + "/", "query": "llm_tokens"}}),
        ));
        wait_ready(&scene, "steady", "Measured").await;
        evaluated(&operator).await;
        assert_eq!(announced(&receiver), ["50%", "50%"]);

        // After the correction the figure counts as seen for the first time.
        scene.apply(&tokens("several", &query("max(several)")));
        let post = receiver.wait_for("usage.threshold_reached", "several", SOON).await;
        assert_eq!(post.json()["data"]["threshold"], "950", "only the highest");
        assert_eq!(receiver.count(), 3);
        assert!(operator.metric(EVALUATIONS, &[("source", "none"), ("result", "PrometheusNotAllowed")]) >= 1.0);
    });
}

#[test]
fn prometheus_outage_loses_and_repeats_no_crossing() {
    run(async {
        let scene = Scene::new("away").await;
        let (mut figure, receiver) = (Figure::start().await, Receiver::start().await);
        scene.webhook("ci", &receiver.url(), &json!({"events": ["*"]}));
        let operator = operator_with(&scene, &figure.prometheus.url()).await;
        figure.set(600.0).await;
        scene.apply(&tokens("tokens", &json!({})));
        receiver.wait_for("usage.threshold_reached", "tokens", SOON).await;
        figure.prometheus.stop();
        let message = wait_ready(&scene, "tokens", "PrometheusUnavailable").await;
        assert!(message.contains("Connection refused"), "{message}");
        assert_eq!(operator.get("/healthz").unwrap().0, 200);
        assert_eq!(operator.get("/readyz").unwrap().0, 200);
        scene.job("meanwhile");
        scene.phase("meanwhile", "Running");
        receiver.wait_for("training.started", "meanwhile", SOON).await;
        assert_eq!(scene.get("ut", "tokens")["status"]["reached"], json!(["50%"]));

        figure.exporter.set("llm_tokens", &[], 900.0);
        figure.prometheus.restart().await;
        wait_ready(&scene, "tokens", "Measured").await;
        eventually("80% is told", SOON, || async { (announced(&receiver) == ["50%", "80%"]).then_some(()) }).await;
        evaluated(&operator).await;
        assert_eq!(receiver.count(), 3);
    });
}

#[test]
fn a_prometheus_that_hangs_delays_nothing_else() {
    run(async {
        let scene = Scene::new("hangs").await;
        let (figure, receiver) = (Figure::start().await, Receiver::start().await);
        scene.webhook("ci", &receiver.url(), &json!({"events": ["*"]}));
        // It accepts connections, and never answers.
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hanging = format!("http://{}", socket.local_addr().unwrap());
        let held = tokio::spawn(async move {
            let mut connections = Vec::new();
            while let Ok((connection, _)) = socket.accept().await {
                connections.push(connection);
            }
        });
        let options = scene.options().argument("--allow-prometheus").argument(&hanging);
        let options = options.argument("--allow-prometheus").argument(&figure.prometheus.url());
        let operator = Operator::start_ready(&scene.plane, &options).await;
        figure.set(100.0).await;
        for number in 0..20 {
            scene.apply(&tokens(&format!("hangs-{number}"), &json!({})));
        }
        scene
            .apply(&tokens("healthy", &json!({"prometheus": {"url": figure.prometheus.url(), "query": "llm_tokens"}})));
        wait_ready(&scene, "healthy", "Measured").await;
        for (value, expected) in [(600.0, 1), (900.0, 2), (1000.0, 3)] {
            figure.set(value).await;
            let set = Instant::now();
            eventually("the crossing is told", Duration::from_secs(5), || async {
                (announced(&receiver).len() == expected).then_some(())
            })
            .await;
            println!("{value} told {:?} after it was scraped", set.elapsed());
        }
        scene.job("beside");
        scene.phase("beside", "Running");
        receiver.wait_for("training.started", "beside", Duration::from_secs(5)).await;
        let message = wait_ready(&scene, "hangs-0", "PrometheusUnavailable").await;
        assert!(message.contains("no answer within 10 s"), "{message}");
        assert_eq!(operator.get("/healthz").unwrap().0, 200);
        // A threshold with a new address does not wait behind the query that hangs.
        scene.apply(&tokens(
            "hangs-19",
            &json!({"prometheus": {"url": figure.prometheus.url(), "query": "llm_tokens"}}),
        ));
        receiver.wait_for("usage.threshold_reached", "hangs-19", Duration::from_secs(5)).await;
        held.abort();
    });
}

/// Checks that each event id stands for one body, however often it came. Returns the number of ids.
fn ids(receiver: &Receiver) -> usize {
    let mut bodies: HashMap<String, String> = HashMap::new();
    for post in receiver.received() {
        let body = post.lasting_body().to_owned();
        let known = bodies.entry(post.event_id().to_owned()).or_insert_with(|| body.clone());
        assert_eq!(*known, body, "one id, two crossings");
    }
    bodies.len()
}

#[test]
fn kill_between_evaluation_and_delivery_keeps_the_id() {
    run(async {
        let scene = Scene::alone("usage-killed").await;
        let (figure, receiver) = (Figure::start().await, Receiver::start().await);
        scene.webhook("ci", &receiver.url(), &json!({"events": ["usage.*"]}));
        let mut operator = operator_with(&scene, &figure.prometheus.url()).await;
        figure.set(100.0).await;
        scene.apply(&tokens("tokens", &json!({"thresholds": ["50%"]})));
        wait_ready(&scene, "tokens", "Measured").await;

        // The flush cannot be committed: the crossing is known, and nothing may be attempted.
        scene.plane.freeze_etcd();
        figure.set(600.0).await;
        operator.wait_log("event=usage.threshold_reached", SOON).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(receiver.count(), 0, "what is not in the ledger is not attempted");
        operator.process.kill();
        scene.plane.thaw_etcd();
        operator.restart();
        receiver.wait(1, LATE).await;

        // Kills at different moments.
        let mut crossings = 1;
        for moment in [0, 150, 300, 450, 600, 750, 900, 1050, 1200, 1350] {
            figure.set(100.0).await;
            operator.wait_ready().await;
            evaluated(&operator).await;
            figure.set(600.0).await;
            tokio::time::sleep(Duration::from_millis(moment)).await;
            operator.process.kill();
            operator.restart();
            crossings += 1;
            eventually(&format!("crossing {crossings} is told"), LATE, || async {
                (ids(&receiver) == crossings).then_some(())
            })
            .await;
        }
        operator.wait_ready().await;
        evaluated(&operator).await;
        println!("{crossings} crossings, {} posts", receiver.count());
        assert_eq!(ids(&receiver), crossings);
    });
}

#[test]
fn quota_thresholds_fire_and_rearm_with_a_new_hard() {
    run(async {
        let scene = Scene::alone("quota").await;
        scene.plane.start_controllers().await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({"events": ["usage.*"]}));
        let operator = Operator::start_ready(&scene.plane, &scene.options()).await;
        let spec = json!({
            "resourceQuota": {"name": "team", "resource": "pods"}, "thresholds": ["50%", "100%"], "hysteresis": "10%"
        });
        scene.apply(&manifest("pods", spec.clone()));
        let mut held = spec.clone();
        held["for"] = json!("3s");
        scene.apply(&manifest("held", held));
        let mut lacks = spec;
        lacks["resourceQuota"]["resource"] = json!("services");
        scene.apply(&manifest("lacks", lacks));
        let missing = wait_ready(&scene, "pods", "QuotaNotFound").await;
        assert!(missing.contains("ResourceQuota team does not exist"), "{missing}");

        let quota = |pods: &str| {
            scene.apply(&json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"}, "spec": {"hard": {"pods": pods}}}));
        };
        quota("4");
        wait_ready(&scene, "pods", "Measured").await;
        // The message until the controller has written the quota's status.
        let message = eventually("lacks tells what the quota limits", LATE, || async {
            condition(&scene, "lacks", "Ready")
                .map(|ready| ready.2)
                .filter(|text| text.contains("does not limit services"))
        })
        .await;
        assert!(message.contains("(pods)"), "{message}");
        eventually("the service account is there", SOON, || async {
            scene
                .plane
                .kubectl(&["-n", &scene.namespace, "get", "serviceaccount", "default"])
                .status
                .success()
                .then_some(())
        })
        .await;
        let pod = |name: &str| {
            scene.apply(&json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                "spec": {"containers": [{"name": "server", "image": "registry.k8s.io/pause:3.10"}]}
            }));
        };
        let of = |name: &str| -> Vec<Received> {
            receiver.received().into_iter().filter(|post| post.name() == name).collect()
        };
        let reports = async |name: &str, expected: &[&str]| {
            eventually(&format!("{name} tells {expected:?}"), LATE, || async {
                let reached: Vec<String> =
                    of(name).iter().map(|post| post.json()["data"]["threshold"].as_str().unwrap().to_owned()).collect();
                (reached == expected).then_some(())
            })
            .await;
        };
        pod("a");
        pod("b");
        reports("pods", &["50%"]).await;
        let first = of("pods").remove(0).json();
        assert_eq!(first["data"]["metric"], "team/pods");
        assert_eq!(
            (&first["data"]["value"], &first["data"]["limit"], &first["data"]["percent"]),
            (&json!(2), &json!(4), &json!(50))
        );
        reports("held", &["50%"]).await;
        let (at, held_at) = (of("pods")[0].at, of("held")[0].at);
        println!("held for 3 s: told {:?} later", held_at - at);
        assert!(held_at - at >= Duration::from_secs(2));
        pod("c");
        pod("d");
        reports("pods", &["50%", "100%"]).await;
        scene.wait("pod/d", "condition=Ready");
        // Below both by more than the hysteresis, and above both again in one step.
        scene.kubectl(&["delete", "pod", "b", "c", "d"]);
        eventually("one pod is counted", LATE, || async {
            (scene.get("resourcequota", "team")["status"]["used"]["pods"] == "1").then_some(())
        })
        .await;
        for name in ["b", "c", "d"] {
            pod(name);
        }
        reports("pods", &["50%", "100%", "50%", "100%"]).await;

        quota("8");
        reports("pods", &["50%", "100%", "50%", "100%", "50%"]).await;
        assert_eq!(of("pods").pop().unwrap().json()["data"]["limit"], 8);
        let distinct: HashSet<String> = of("pods").iter().map(|post| post.event_id().to_owned()).collect();
        assert_eq!(distinct.len(), 5);
        let lists =
            operator.metric("llmtune_webhooks_api_requests_total", &[("verb", "list"), ("resource", "resourcequotas")]);
        assert!(lists <= 2.0, "quotas are watched, not polled: {lists} lists");
    });
}

/// The client's address, the path, the headers and the form.
type Asked = (SocketAddr, String, HeaderMap, String);

/// Status, headers and body of a response.
type Answer = (u16, Vec<(&'static str, &'static str)>, String);

/// A server that answers queries like Prometheus, and records the requests.
#[derive(Clone)]
struct Fake {
    asked: Arc<Mutex<Vec<Asked>>>,
    answer: Arc<Mutex<Answer>>,
}

impl Default for Fake {
    fn default() -> Self {
        let fake = Self { asked: Arc::default(), answer: Arc::default() };
        fake.answer(200, &[], &vector("1", ""));
        fake
    }
}

/// A response with one sample and additional members.
fn vector(value: &str, more: &str) -> String {
    format!(
        r#"{{"status":"success","data":{{"resultType":"vector","result":[{{"metric":{{}},"value":[1,"{value}"]}}]}}{more}}}"#
    )
}

impl Fake {
    async fn start(&self) -> String {
        async fn answer(
            State(fake): State<Fake>,
            ConnectInfo(from): ConnectInfo<SocketAddr>,
            uri: axum::http::Uri,
            headers: HeaderMap,
            body: String,
        ) -> axum::response::Response<String> {
            fake.asked.lock().unwrap().push((from, uri.path().to_owned(), headers, body));
            let (status, headers, body) = fake.answer.lock().unwrap().clone();
            let answer = axum::response::Response::builder().status(status);
            headers.iter().fold(answer, |answer, (name, value)| answer.header(*name, *value)).body(body).unwrap()
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/tenant/", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(self.clone());
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        url
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn answer(&self, status: u16, headers: &[(&'static str, &'static str)], body: &str) {
        *self.answer.lock().unwrap() = (status, headers.to_vec(), body.to_owned());
    }

    /// The headers of the next query.
    async fn next(&self) -> HeaderMap {
        let before = self.asked().len();
        // One may have been in flight.
        eventually("two queries", SOON, || async {
            self.asked().get(before + 1).map(|(.., headers, _)| headers.clone())
        })
        .await
    }
}

#[test]
fn a_partial_answer_neither_measures_nor_arms_a_threshold() {
    run(async {
        let scene = Scene::new("partial").await;
        let (fake, receiver) = (Fake::default(), Receiver::start().await);
        scene.webhook("ci", &receiver.url(), &json!({"events": ["usage.*"]}));
        fake.answer(200, &[], &vector("600", r#","warnings":[],"infos":["PromQL info: not a counter"]"#));
        let _operator = operator_with(&scene, &fake.start().await).await;
        scene.apply(&tokens("tokens", &json!({"thresholds": ["50%"]})));
        receiver.wait(1, SOON).await;
        for partial in [r#","warnings":["store 10.0.0.1:10901: deadline exceeded"]"#, r#","isPartial":true"#] {
            // One store is unavailable: the response is partial.
            fake.answer(200, &[], &vector("100", partial));
            let message = wait_ready(&scene, "tokens", "PartialAnswer").await;
            println!("{message}");
            assert!(message.contains("is not used"), "{message}");
            assert_eq!(condition(&scene, "tokens", "Stalled").unwrap().0, "False");
            assert_eq!(scene.get("usagethreshold", "tokens")["status"]["value"], "600");
            fake.answer(200, &[], &vector("600", ""));
            wait_ready(&scene, "tokens", "Measured").await;
            fake.next().await;
        }
        assert_eq!(announced(&receiver), ["50%"], "one crossing");
        fake.answer(200, &[], &vector("100", ""));
        fake.next().await;
        fake.answer(200, &[], &vector("600", ""));
        receiver.wait(2, SOON).await;
    });
}

#[test]
fn a_rate_limit_is_told_and_its_retry_after_kept() {
    run(async {
        let scene = Scene::new("rate-limit").await;
        let fake = Fake::default();
        let _operator = operator_with(&scene, &fake.start().await).await;
        scene.apply(&tokens("tokens", &json!({})));
        wait_ready(&scene, "tokens", "Measured").await;
        fake.answer(401, &[], "no org id");
        let message = wait_ready(&scene, "tokens", "PrometheusRefused").await;
        assert!(message.contains("name one in spec.prometheus.headers, such as {name: X-Scope-OrgID"), "{message}");
        fake.answer(
            429,
            &[("retry-after", "4")],
            "the request has been rejected because the tenant exceeded the rate limit",
        );
        let message = wait_ready(&scene, "tokens", "PrometheusRateLimited").await;
        println!("{message}");
        assert!(
            message.contains("exceeded the rate limit") && message.contains("in 4 s") && !message.contains("org id")
        );
        let before = fake.asked().len();
        let began = Instant::now();
        fake.answer(200, &[], &vector("1", ""));
        eventually("it is asked again", SOON, || async { (fake.asked().len() > before).then_some(()) }).await;
        println!("asked again {:?} later", began.elapsed());
        assert!(began.elapsed() >= Duration::from_secs(2), "every second without Retry-After");
        wait_ready(&scene, "tokens", "Measured").await;
    });
}

#[test]
fn queries_have_the_headers_and_basic_auth() {
    run(async {
        let scene = Scene::new("query-headers").await;
        let fake = Fake::default();
        let url = fake.start().await;
        let file = temporary_folder("token").join("token");
        std::fs::write(&file, "operators-s3cret").unwrap();
        let options = scene.options().argument("--allow-prometheus").argument(&url);
        let options = options.argument("--prometheus-token-file").argument(file.to_str().unwrap());
        let operator = Operator::start_ready(&scene.plane, &options).await;
        let secret = |name: &str, labelled: bool, data: Value| {
            let labels = if labelled { json!({"llmtune.io/send-in-clear": "true"}) } else { json!({}) };
            scene.apply(&json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": labels}, "stringData": data
            }));
        };
        let with = |fields: Value| {
            let mut prometheus = json!({"query": "llm_tokens"});
            prometheus.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            tokens("tokens", &json!({"prometheus": prometheus}))
        };
        let org = json!([{"name": "X-Scope-OrgID", "value": "team-a|team-b"}]);
        scene.apply(&with(json!({"headers": org})));
        wait_ready(&scene, "tokens", "Measured").await;
        let headers = fake.next().await;
        assert_eq!(headers["x-scope-orgid"], "team-a|team-b");
        assert_eq!(headers["authorization"], "Bearer operators-s3cret");

        // From Secrets, which need the label that allows sending them.
        let from = json!([{"name": "X-Key", "valueFrom": {"secretKeyRef": {"name": "key", "key": "token"}}}]);
        scene.apply(&with(json!({"headers": from})));
        wait_ready(&scene, "tokens", "HeaderSecretNotFound").await;
        secret("key", false, json!({"token": "key-s3cret\n"}));
        let message = wait_ready(&scene, "tokens", "SendInClearNotAllowed").await;
        assert!(
            message.contains("spec.prometheus.headers[X-Key]") && message.contains("label secret key"),
            "{message}"
        );
        secret("key", true, json!({"token": "key-s3cret\n"}));
        wait_ready(&scene, "tokens", "Measured").await;
        assert_eq!(fake.next().await["x-key"], "key-s3cret");

        secret("login", true, json!({"username": "us", "password": "p4ss-s3cret"}));
        scene.apply(&with(json!({"basicAuthRef": {"name": "login"}})));
        wait_ready(&scene, "tokens", "Measured").await;
        let basic = |password: &str| format!("Basic {}", STANDARD.encode(format!("us:{password}")));
        let headers = fake.next().await;
        assert_eq!(headers["authorization"], basic("p4ss-s3cret").as_str(), "in place of the operator's token");
        assert!(!headers.contains_key("x-key"));
        // After a refusal the Secret is read again immediately. The server's echo of it does not appear in the status.
        fake.answer(401, &[], "p4ss-s3cret is wrong");
        let message = wait_ready(&scene, "tokens", "PrometheusRefused").await;
        assert!(
            message.contains("([redacted] is wrong)") && message.contains("spec.prometheus.basicAuthRef"),
            "{message}"
        );
        fake.answer(401, &[], "no");
        secret("login", true, json!({"username": "us", "password": "new-s3cret"}));
        eventually("the new password", SOON, || async {
            let asked = fake.asked();
            (asked.last()?.2["authorization"] == basic("new-s3cret").as_str()).then_some(())
        })
        .await;
        secret("login", true, json!({"username": "u:s", "password": "new-s3cret"}));
        let message = wait_ready(&scene, "tokens", "InvalidBasicAuth").await;
        assert!(message.contains("has a colon"), "{message}");
        assert_eq!(condition(&scene, "tokens", "Stalled").unwrap().0, "True");

        for (fields, says) in [
            (json!({"headers": [{"name": "Host", "value": "a"}]}), "a header that HTTP, a proxy or the operator sets"),
            (
                json!({"headers": [{"name": "a", "value": "1"}, {"name": "A", "value": "2"}]}),
                "each header name can occur once",
            ),
            (
                json!({"headers": [{"name": "authorization", "value": "1"}], "basicAuthRef": {"name": "a"}}),
                "remove one of them",
            ),
        ] {
            let refusal = scene.try_apply(&with(fields)).unwrap_err();
            assert!(refusal.contains(says), "{refusal}");
        }
        let shown = [operator.log(), operator.metrics(), scene.kubectl(&["get", "ut", "-o", "yaml"])];
        assert!(shown.iter().all(|text| !text.contains("s3cret")));
    });
}

#[test]
fn thresholds_share_connections_and_use_the_newest_token() {
    run(async {
        let scene = Scene::new("shared").await;
        let fake = Fake::default();
        let url = fake.start().await;
        let file = temporary_folder("token").join("token");
        std::fs::write(&file, "first-s3cret\n").unwrap();
        let options = scene.options().argument("--allow-prometheus").argument(&url);
        let options = options.argument("--prometheus-token-file").argument(file.to_str().unwrap());
        let operator = Operator::start_ready(&scene.plane, &options).await;
        for number in 0..40 {
            scene.apply(&tokens(
                &format!("tokens-{number}"),
                &json!({"prometheus": {"query": format!("a{number} & b")}}),
            ));
        }
        eventually("several rounds", LATE, || async { (fake.asked().len() > 160).then_some(()) }).await;
        let asked = fake.asked();
        let connections: HashSet<SocketAddr> = asked.iter().map(|(from, ..)| *from).collect();
        println!("{} queries over {} connections", asked.len(), connections.len());
        assert!(connections.len() <= 8);
        assert!(asked.iter().all(|(_, path, ..)| path == "/tenant/api/v1/query"));
        assert!(asked.iter().any(|(.., body)| body.starts_with("query=a7+%26+b&")));
        assert!(asked.iter().all(|(.., headers, _)| headers["authorization"] == "Bearer first-s3cret"));

        std::fs::write(&file, "second-s3cret").unwrap();
        let before = fake.asked().len();
        eventually("the new token", SOON, || async {
            fake.asked()[before..]
                .iter()
                .any(|(.., headers, _)| headers["authorization"] == "Bearer second-s3cret")
                .then_some(())
        })
        .await;
        let shown = [operator.log(), operator.metrics(), scene.kubectl(&["get", "ut", "-o", "yaml"])];
        assert!(shown.iter().all(|text| !text.contains("s3cret")));
    });
}

#[test]
fn missing_usagethreshold_kind_is_picked_up_later() {
    run(async {
        let scene = Scene::alone("kindless").await;
        scene.kubectl(&["delete", "crd", "usagethresholds.llmtune.io"]);
        let (figure, receiver) = (Figure::start().await, Receiver::start().await);
        scene.webhook("ci", &receiver.url(), &json!({}));
        let operator = operator_with(&scene, &figure.prometheus.url()).await;
        operator.wait_log("the kind is not installed", SOON).await;
        scene.job("a");
        scene.phase("a", "Running");
        receiver.wait_for("training.started", "a", SOON).await;

        scene.plane.install_crds();
        figure.set(600.0).await;
        scene.apply(&tokens("tokens", &json!({})));
        receiver.wait_for("usage.threshold_reached", "tokens", SOON).await;
    });
}
