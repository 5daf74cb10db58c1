//! A real Prometheus server on loopback, and an exporter whose gauges the test sets.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, extract::State, http::header::CONTENT_TYPE, response::IntoResponse, routing};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    control_plane::tool,
    eventually,
    operator::get,
    process::{Process, free_port, temporary_folder},
};

/// Scrape interval in milliseconds.
const SCRAPE_INTERVAL: u32 = 250;
/// Replaying the write-ahead log takes long on a loaded machine.
const STARTING: Duration = Duration::from_secs(60);
const STOPPING: Duration = Duration::from_secs(30);

/// A Prometheus server with its own folder; stopped when dropped.
pub struct Prometheus {
    pub process: Process,
    pub port: u16,
    folder: PathBuf,
    client: reqwest::Client,
}

impl Prometheus {
    /// Starts it with these targets (`host:port`), and waits until it answers queries. Each target is scraped four
    /// times a second at `/metrics`.
    pub async fn start(targets: &[String]) -> Self {
        // The client of its queries is built for TLS too.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (folder, port) = (temporary_folder("prometheus"), free_port());
        let interval = format!("{SCRAPE_INTERVAL}ms");
        // JSON is valid YAML.
        let config = json!({
            "global": {"scrape_interval": interval, "scrape_timeout": interval},
            "scrape_configs": [{"job_name": "test", "static_configs": [{"targets": targets}]}]
        });
        fs::write(folder.join("prometheus.yml"), config.to_string()).unwrap();
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
        let process = launch(&folder, port);
        let mut prometheus = Self { process, port, folder, client };
        prometheus.wait_ready().await;
        prometheus
    }

    /// Stops it. The scraped data stays on disk.
    pub fn stop(&mut self) {
        self.process.stop(STOPPING);
    }

    /// Starts it again on the same port, with the scraped data, and waits until it answers queries. Stops it first if
    /// it still runs.
    pub async fn restart(&mut self) {
        if self.process.try_wait().is_none() {
            self.stop();
        }
        self.process = launch(&self.folder, self.port);
        self.wait_ready().await;
    }

    async fn wait_ready(&mut self) {
        let (port, process) = (self.port, Mutex::new(&mut self.process));
        eventually("Prometheus is ready", STARTING, || async {
            let mut process = process.lock().unwrap();
            if let Some(status) = process.try_wait() {
                panic!("Prometheus ended with {status}\n{}", process.log_tail());
            }
            get(port, "/-/ready").filter(|(status, _)| *status == 200).map(|_| ())
        })
        .await;
    }

    /// Its address, without a path.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The samples of an instant vector, as `{"metric": {…}, "value": [seconds, "text"]}`. `None` if it does not answer
    /// or refuses the query.
    pub async fn query(&self, query: &str) -> Option<Vec<Value>> {
        let url = reqwest::Url::parse_with_params(&format!("{}/api/v1/query", self.url()), [("query", query)]).unwrap();
        let text = self.client.get(url).send().await.ok()?.text().await.ok()?;
        let answer: Value = serde_json::from_str(&text).ok()?;
        answer["data"]["result"].as_array().cloned()
    }

    /// The value of a query that yields exactly one sample.
    pub async fn value(&self, query: &str) -> Option<f64> {
        match self.query(query).await?.as_slice() {
            [sample] => sample["value"][1].as_str()?.parse().ok(),
            _ => None,
        }
    }

    /// Waits until a query yields exactly one sample with this value, or no sample at all if the value is `None`.
    pub async fn wait_value(&self, query: &str, value: Option<f64>) {
        eventually(&format!("{query} is {value:?}"), Duration::from_secs(30), || async {
            let samples = self.query(query).await?;
            let settled = if value.is_none() { samples.is_empty() } else { self.value(query).await == value };
            settled.then_some(())
        })
        .await;
    }
}

fn launch(folder: &std::path::Path, port: u16) -> Process {
    let mut command = Command::new(tool("prometheus"));
    command
        .arg("--config.file")
        .arg(folder.join("prometheus.yml"))
        .arg("--storage.tsdb.path")
        .arg(folder.join("data"))
        .args(["--web.listen-address", &format!("127.0.0.1:{port}"), "--log.level", "warn"])
        // Without it, the first scrape comes after 5 s.
        .args(["--scrape.discovery-reload-interval", "100ms"]);
    Process::start("prometheus", &mut command, &folder.join("prometheus.log"))
}

/// Gauges by name and labels, because `/metrics` groups by name.
type Gauges = Arc<Mutex<BTreeMap<(String, Vec<(String, String)>), f64>>>;

/// An HTTP server that exposes gauges at `/metrics`; stopped when dropped.
pub struct Exporter {
    pub port: u16,
    gauges: Gauges,
    server: JoinHandle<()>,
}

impl Exporter {
    /// An exporter without gauges.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let gauges = Gauges::default();
        let router = Router::new().route("/metrics", routing::get(exposition)).with_state(Arc::clone(&gauges));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { port, gauges, server }
    }

    /// Its target for [`Prometheus::start`].
    pub fn target(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Sets a gauge, from the next scrape on.
    pub fn set(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.gauges.lock().unwrap().insert(series(name, labels), value);
    }

    /// Removes a gauge: from the next scrape on it has no sample.
    pub fn remove(&self, name: &str, labels: &[(&str, &str)]) {
        self.gauges.lock().unwrap().remove(&series(name, labels));
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn series(name: &str, labels: &[(&str, &str)]) -> (String, Vec<(String, String)>) {
    (name.to_owned(), labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
}

/// The text format 0.0.4. Label values are escaped as Rust escapes `\`, `"` and newlines; tests use nothing else.
async fn exposition(State(gauges): State<Gauges>) -> impl IntoResponse {
    let mut text = String::new();
    let mut last = "";
    let gauges = gauges.lock().unwrap();
    for ((name, labels), value) in gauges.iter() {
        if last != name {
            writeln!(text, "# TYPE {name} gauge").unwrap();
            last = name;
        }
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
        writeln!(text, "{name}{{{}}} {value}", labels.join(",")).unwrap();
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn prometheus_answers_with_exported_values_after_a_restart() {
        let exporter = Exporter::start().await;
        exporter.set("llm_tokens_total", &[("tenant", "a")], 12.0);
        exporter.set("llm_tokens_total", &[("tenant", "b")], 30.0);
        let mut prometheus = Prometheus::start(&[exporter.target()]).await;
        prometheus.wait_value("llm_tokens_total{tenant='a'}", Some(12.0)).await;
        prometheus.wait_value("sum(llm_tokens_total)", Some(42.0)).await;
        exporter.set("llm_tokens_total", &[("tenant", "a")], 13.5);
        prometheus.wait_value("sum(llm_tokens_total)", Some(43.5)).await;
        exporter.remove("llm_tokens_total", &[("tenant", "a")]);
        prometheus.wait_value("llm_tokens_total{tenant='a'}", None).await;

        prometheus.stop();
        assert_eq!(prometheus.query("sum(llm_tokens_total)").await, None);
        exporter.set("llm_tokens_total", &[("tenant", "b")], 31.0);
        let url = prometheus.url();
        prometheus.restart().await;
        assert_eq!(prometheus.url(), url);
        prometheus.wait_value("sum(llm_tokens_total)", Some(31.0)).await;
    }
}
