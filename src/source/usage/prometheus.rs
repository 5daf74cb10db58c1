//! Makes PromQL queries, over connections that all thresholds share. A server that hangs delays only its own queries.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use reqwest::Url;
use rustls::pki_types::CertificateDer;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::plan::{Failure, Reason};
use crate::{
    delivery::send::retry_after,
    transport::{address::Guard, client::Response, clients::Clients, resolver::Dns},
};
use llmtune_client::error_chain::innermost;
use llmtune_core::event::amount::{Amount, AmountError};

/// The time limit of one query, from its start to the end of the response.
const LIMIT: Duration = Duration::from_secs(10);
/// The maximum number of concurrent queries to one server.
const CONCURRENCY: usize = 8;
/// The maximum response in bytes. A response with one sample has some hundred bytes.
const MAX_RESPONSE: usize = 64 << 10;
/// The maximum number of characters that a message quotes from a server.
const MAX_QUOTED: usize = 256;
/// The maximum wait that a server can request with `Retry-After`.
const MAX_PAUSE: Duration = Duration::from_secs(3600);

/// A Prometheus server: scheme, host, port and path prefix. Different spellings of the same URL are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server(Url);

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const WRITE: &str = "write an absolute http:// or https:// URL, such as http://prometheus.monitoring:9090";
        let mut url = Url::parse(text).map_err(|error| format!("{error}; {WRITE}"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(WRITE.to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(
                "it must not contain a user name or password: give a token with --prometheus-token-file".to_owned()
            );
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("it must have neither a query (?...) nor a fragment (#...): remove it".to_owned());
        }
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        Ok(Self(url))
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

/// The client for the allowed servers.
pub struct Prometheus {
    clients: Clients,
    servers: Vec<Server>,
    permits: HashMap<Server, Semaphore>,
    token: Option<PathBuf>,
}

impl Prometheus {
    /// Creates a client for these servers. `roots` are trusted in addition to the system's roots. `token` is a file
    /// with a bearer token. The file is read for each query, because the token may be rotated.
    pub fn new(
        servers: Vec<Server>,
        roots: Vec<CertificateDer<'static>>,
        token: Option<PathBuf>,
    ) -> Result<Self, rustls::Error> {
        // The platform team configures the servers, so their addresses are not restricted.
        let clients = Clients::new(roots, Guard::open(), Arc::new(Dns::system()), None)?;
        let permits = servers.iter().map(|server| (server.clone(), Semaphore::new(CONCURRENCY))).collect();
        Ok(Self { clients, servers, permits, token })
    }

    /// The servers, in the order of the configuration.
    #[must_use]
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// Makes a query with these headers. Waits while [`CONCURRENCY`] other queries to the server are in flight.
    pub async fn query(&self, server: &Server, query: &str, headers: &HeaderMap) -> QueryResult {
        let failed = |failure, took| QueryResult { result: Err(failure), took, pause: None };
        let _permit = match self.permits.get(server) {
            Some(permits) => permits.acquire().await,
            None => return failed(unavailable(server, "it is not in --allow-prometheus"), Duration::ZERO),
        };
        let begun = Instant::now();
        match timeout(LIMIT, self.ask(server, query, headers)).await {
            Ok(Ok((result, pause))) => QueryResult { result, took: begun.elapsed(), pause },
            Ok(Err(failure)) => failed(failure, begun.elapsed()),
            Err(_) => failed(unavailable(server, &format!("no answer within {} s", LIMIT.as_secs())), begun.elapsed()),
        }
    }

    /// The result and the wait that the server requests. An error if there is no response.
    async fn ask(
        &self,
        server: &Server,
        query: &str,
        extra: &HeaderMap,
    ) -> Result<(Measured, Option<Duration>), Failure> {
        // A POST, because a query may be longer than the URL length that proxies allow. Two samples are enough to
        // detect that there are several.
        let form = Url::parse_with_params("http://form", [("query", query), ("timeout", "10s"), ("limit", "2")]);
        let form = form.ok().and_then(|url| url.query().map(str::to_owned)).unwrap_or_default();
        let mut headers = extra.clone();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(path) = self.token.as_ref().filter(|_| !extra.contains_key(header::AUTHORIZATION)) {
            headers.insert(header::AUTHORIZATION, bearer(path).map_err(|problem| unavailable(server, &problem))?);
        }
        let secrets = Secrets::of(&headers);
        let mut url = server.0.clone();
        url.set_path(&format!("{}/api/v1/query", url.path().trim_end_matches('/')));
        // `query` limits the time.
        let response = self.clients.post(&"".into(), &url, None, headers, form.into(), Duration::MAX).await;
        let response = response.map_err(|error| broken(server, &error))?;
        let status = response.status();
        let pause = retry_after(response.headers(), Timestamp::now()).map(|pause| pause.min(MAX_PAUSE));
        let pause = pause.filter(|_| matches!(status.as_u16(), 429 | 503));
        let body = read(server, response).await?;
        Ok((Answered { server, status, pause, secrets: &secrets }.measured(&body), pause))
    }
}

/// A figure, or why it could not be measured.
type Measured = Result<Amount, Failure>;

/// The outcome of a query.
#[derive(Debug)]
pub struct QueryResult {
    pub result: Measured,
    /// The duration, without the wait for other queries.
    pub took: Duration,
    /// The wait until the next query that the server requests.
    pub pause: Option<Duration>,
}

/// The `Authorization` header with the token from this file. The error never contains the token.
fn bearer(path: &Path) -> Result<HeaderValue, String> {
    let refuse =
        |problem: &dyn fmt::Display| format!("the operator's --prometheus-token-file cannot be read: {problem}");
    let token = std::fs::read_to_string(path).map_err(|error| refuse(&error))?;
    let value = HeaderValue::from_str(&format!("Bearer {}", token.trim()));
    let mut value =
        value.map_err(|_| refuse(&"it contains characters that a token cannot have, such as a line break"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Texts that must not appear in messages, even if a server returns them: header values from Secrets, the token, the
/// password.
#[derive(Default)]
struct Secrets(Vec<SecretString>);

impl Secrets {
    fn of(headers: &HeaderMap) -> Self {
        let mut secrets = Vec::new();
        for value in headers.values().filter(|value| value.is_sensitive()) {
            let Ok(whole) = value.to_str() else { continue };
            // The credential follows the name of the scheme. In basic authentication it is base64.
            let credential = whole.split_once(' ').map(|(_, credential)| credential);
            let basic = credential.filter(|_| whole.starts_with("Basic ")).and_then(|text| STANDARD.decode(text).ok());
            let basic = basic.and_then(|pair| String::from_utf8(pair).ok());
            let password = basic.as_deref().and_then(|pair| pair.split_once(':')).map(|(_, password)| password);
            let texts = [Some(whole), credential, password];
            secrets.extend(texts.into_iter().flatten().filter(|text| !text.is_empty()).map(SecretString::from));
        }
        Self(secrets)
    }

    /// The text in one line of bounded length, without secrets.
    fn redact(&self, text: &str) -> String {
        let secrets = self.0.iter().map(ExposeSecret::expose_secret);
        one_line(&secrets.fold(text.to_owned(), |text, secret| text.replace(secret, "[redacted]")))
    }
}

async fn read(server: &Server, mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| broken(server, &error))? {
        if body.len() + chunk.len() > MAX_RESPONSE {
            let message =
                "spec.prometheus.query returns more than 64 KiB: aggregate it to one number, for example with sum(...)";
            return Err(Failure::new(Reason::SeveralSamples, message));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Explains to users that a failed query neither sends an event nor resets a threshold.
const UNTIL_MEASURED: &str = "no event is sent and reached thresholds stay reached until it succeeds";

fn unavailable(server: &Server, problem: &str) -> Failure {
    let message = format!("{server} cannot be queried: {problem}; the query is retried; {UNTIL_MEASURED}");
    Failure::new(Reason::PrometheusUnavailable, message)
}

fn broken(server: &Server, error: &(dyn std::error::Error + 'static)) -> Failure {
    unavailable(server, &one_line(&innermost(error).to_string()))
}

/// The text in one line of at most [`MAX_QUOTED`] characters.
fn one_line(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_QUOTED).collect();
    line.trim().to_owned()
}

/// The fields of a response of `/api/v1/query` that are read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    status: &'a str,
    #[serde(borrow)]
    data: Option<Data<'a>>,
    #[serde(default)]
    error_type: String,
    #[serde(default)]
    error: String,
    /// Set by Prometheus, Thanos, Mimir and Cortex if the response may be partial.
    #[serde(default)]
    warnings: Option<Vec<serde_json::Value>>,
    /// Set by `VictoriaMetrics` if the response is partial.
    #[serde(default)]
    is_partial: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    result_type: &'a str,
    #[serde(borrow)]
    result: &'a RawValue,
}

/// An element of a vector. A native histogram has no value.
#[derive(Deserialize)]
struct Element {
    value: Option<Sample>,
}

/// The time in seconds, and the value as text.
type Sample = (f64, String);

/// A response and its server.
struct Answered<'a> {
    server: &'a Server,
    status: StatusCode,
    pause: Option<Duration>,
    secrets: &'a Secrets,
}

impl Answered<'_> {
    /// The number in the response. A partial response is an error, because a figure that is too low would reset
    /// thresholds.
    fn measured(&self, body: &[u8]) -> Measured {
        let Self { server, status, .. } = self;
        let answer = serde_json::from_slice::<Answer<'_>>(body).ok();
        let words = match &answer {
            Some(answer) if !answer.error.is_empty() => self.secrets.redact(&answer.error),
            Some(_) => String::new(),
            None => self.secrets.redact(&words(body)),
        };
        // Gateways may return these as Prometheus errors in JSON.
        if matches!(status.as_u16(), 401 | 403 | 429) || names_tenant(&words) {
            return Err(self.refused(&words));
        }
        let Some(answer) = answer else { return Err(self.refused(&words)) };
        if answer.status == "error" {
            let kind = self.secrets.redact(&answer.error_type);
            let (reason, fix) = match kind.as_str() {
                "bad_data" => (Reason::InvalidQuery, "correct spec.prometheus.query"),
                "timeout" | "canceled" | "unavailable" | "internal" => (Reason::QueryFailed, "the query is retried"),
                _ => (Reason::QueryFailed, "run spec.prometheus.query on that server to find the cause"),
            };
            return Err(Failure::new(reason, format!("{server} answers {kind}: {words}; {fix}")));
        }
        let Some(data) = answer.data.filter(|_| answer.status == "success" && status.is_success()) else {
            return Err(self.refused(&words));
        };
        let sample = self.sample(&data)?;
        let warning = answer.warnings.unwrap_or_default().into_iter().next();
        if warning.is_some() || answer.is_partial == Some(true) {
            let warning = warning.map(|warning| warning.as_str().map_or_else(|| warning.to_string(), str::to_owned));
            let warning = warning.map(|warning| format!(" ({})", self.secrets.redact(&warning))).unwrap_or_default();
            let message = format!(
                "{server} answers with a warning{warning}, so the answer may be partial and is not used: check that all its stores answer, or correct spec.prometheus.query if the warning is about the query; the query is retried; {UNTIL_MEASURED}"
            );
            return Err(Failure::new(Reason::PartialAnswer, message));
        }
        let Some(text) = sample else {
            let message = "spec.prometheus.query returns no sample: no series with this name and these labels was scraped recently; correct the query, or add \"or vector(0)\" if absence means zero";
            return Err(Failure::new(Reason::NoSample, message));
        };
        Amount::sample(&text).map_err(|error| {
            let value = one_line(&text);
            match error {
                AmountError::NotFinite => {
                    let message = format!("spec.prometheus.query returns {value}, which is not a finite number: correct the query if it divides by zero, or the exporter if the metric itself is {value}");
                    Failure::new(Reason::NotFinite, message)
                }
                AmountError::Form | AmountError::TooLarge => not_one(&format!("{value:?}")),
            }
        })
    }

    /// The text of the only sample, or `None` if there is no sample.
    fn sample(&self, data: &Data<'_>) -> Result<Option<String>, Failure> {
        let unreadable = |_| self.refused("");
        let result = data.result.get();
        match data.result_type {
            "scalar" => serde_json::from_str::<Sample>(result).map(|(_, text)| Some(text)).map_err(unreadable),
            "vector" => {
                let mut elements: Vec<Element> = serde_json::from_str(result).map_err(unreadable)?;
                match (elements.pop(), elements.is_empty()) {
                    (Some(element), true) => {
                        element.value.map(|(_, text)| Some(text)).ok_or_else(|| not_one("a histogram"))
                    }
                    (Some(_), false) => {
                        let message = "spec.prometheus.query returns several samples: aggregate them to one, for example with sum(...) or max(...)";
                        Err(Failure::new(Reason::SeveralSamples, message))
                    }
                    (None, _) => Ok(None),
                }
            }
            "matrix" => Err(not_one("a range of samples")),
            "string" => Err(not_one("a string")),
            other => Err(not_one(&format!("a {}", one_line(other)))),
        }
    }

    /// The failure for a response that is not a result of the query.
    fn refused(&self, words: &str) -> Failure {
        let Self { server, status, pause, .. } = self;
        let said = if words.is_empty() { String::new() } else { format!(" ({words})") };
        let fix = match status.as_u16() {
            429 => {
                let again = match pause {
                    Some(pause) => format!("in {} s, as the server requests", pause.as_secs()),
                    None => "after spec.interval".to_owned(),
                };
                let message = format!(
                    "{server} limits the rate of queries, HTTP 429{said}: the query is retried {again}; {UNTIL_MEASURED}. If this lasts, raise spec.interval or the limit of the server"
                );
                return Failure::new(Reason::PrometheusRateLimited, message);
            }
            _ if names_tenant(words) => {
                "it serves several tenants; name one in spec.prometheus.headers, such as {name: X-Scope-OrgID, value: team-a}"
            }
            300..=399 => "redirects are not followed; write the final address in the operator's --allow-prometheus",
            401 | 403 => {
                "it requires other credentials or a header; set spec.prometheus.basicAuthRef or spec.prometheus.headers, or give the operator a valid token with --prometheus-token-file"
            }
            404 | 405 => {
                "write the address of a Prometheus API, with its path prefix, in the operator's --allow-prometheus"
            }
            500..=599 => {
                return unavailable(server, &format!("it answers HTTP {status}{said}"));
            }
            _ => {
                "this is not an answer of a Prometheus API; write the address of one in the operator's --allow-prometheus"
            }
        };
        Failure::new(Reason::PrometheusRefused, format!("{server} answers HTTP {status}{said}: {fix}"))
    }
}

fn not_one(what: &str) -> Failure {
    let message = format!(
        "spec.prometheus.query returns {what}, not one number: write a query whose result is a scalar or a vector of one sample, such as sum(...)"
    );
    Failure::new(Reason::NotOneNumber, message)
}

/// Whether the message says that the tenant is missing, in the words of Mimir, Cortex, Loki and their gateways.
fn names_tenant(words: &str) -> bool {
    let words = words.to_lowercase();
    ["no org id", "x-scope-orgid", "org id is required", "tenant id is required", "no tenant"]
        .iter()
        .any(|said| words.contains(said))
}

/// The text of a response that is not in the format of Prometheus. Empty for an HTML page.
fn words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    if text.starts_with('<') { String::new() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        "http://prometheus:9090".parse().unwrap()
    }

    fn gives(status: u16, body: &str) -> Result<String, (&'static str, String)> {
        let status = StatusCode::from_u16(status).unwrap();
        let answered = Answered { server: &server(), status, pause: None, secrets: &Secrets::default() };
        answered
            .measured(body.as_bytes())
            .map(|amount| amount.to_string())
            .map_err(|failure| (failure.reason.name(), failure.message))
    }

    fn data(kind: &str, result: &str) -> String {
        format!(
            r#"{{"status":"success","data":{{"resultType":"{kind}","result":{result},"stats":{{}}}},"infos":["i"],"warnings":[],"isPartial":false}}"#
        )
    }

    #[test]
    fn scalar_and_one_sample_vector_keep_every_digit() {
        assert_eq!(gives(200, &data("scalar", r#"[1700000000.123,"0.1"]"#)).unwrap(), "0.1");
        let vector =
            |value: &str| data("vector", &format!(r#"[{{"metric":{{"a":"b"}},"value":[1700000000,"{value}"]}}]"#));
        assert_eq!(gives(200, &vector("9007199254740993")).unwrap(), "9007199254740993");
        assert_eq!(gives(200, &vector("1e+21")).unwrap(), "1000000000000000000000");
    }

    #[test]
    fn other_responses_are_failures_that_say_what_to_do() {
        let sample = r#"{"metric":{},"value":[1,"1"]}"#;
        let error = |kind: &str, text: &str| format!(r#"{{"status":"error","errorType":"{kind}","error":"{text}"}}"#);
        for (status, body, reason, says) in [
            (200, data("vector", "[]"), "NoSample", "or vector(0)"),
            (200, data("vector", &format!("[{sample},{sample}]")), "SeveralSamples", "sum(...)"),
            (200, data("vector", r#"[{"metric":{},"histogram":[1,{"count":"1"}]}]"#), "NotOneNumber", "a histogram"),
            (200, data("scalar", r#"[1,"NaN"]"#), "NotFinite", "returns NaN"),
            (200, data("scalar", r#"[1,"+Inf"]"#), "NotFinite", "returns +Inf"),
            (200, data("scalar", r#"[1,"soon"]"#), "NotOneNumber", "\"soon\""),
            (200, data("matrix", "[]"), "NotOneNumber", "a range of samples"),
            (200, data("string", r#"[1,"a"]"#), "NotOneNumber", "a string"),
            (
                400,
                error("bad_data", "1:5: parse error"),
                "InvalidQuery",
                "1:5: parse error; correct spec.prometheus.query",
            ),
            (422, error("execution", "many-to-many"), "QueryFailed", "many-to-many"),
            (503, error("timeout", "query timed out"), "QueryFailed", "the query is retried"),
            (200, "<html>".into(), "PrometheusRefused", "not an answer of a Prometheus API"),
            (302, String::new(), "PrometheusRefused", "redirects are not followed"),
            (401, "no".into(), "PrometheusRefused", "401 Unauthorized (no): it requires other credentials"),
            (401, "no".into(), "PrometheusRefused", "--prometheus-token-file"),
            (
                401,
                "no org id\n".into(),
                "PrometheusRefused",
                "(no org id): it serves several tenants; name one in spec.prometheus.headers",
            ),
            (401, error("unauthorized", "no org id"), "PrometheusRefused", "X-Scope-OrgID"),
            (500, "no org id".into(), "PrometheusRefused", "X-Scope-OrgID"),
            (403, error("bad_data", "denied"), "PrometheusRefused", "spec.prometheus.basicAuthRef"),
            (
                429,
                "too many".into(),
                "PrometheusRateLimited",
                "HTTP 429 (too many): the query is retried after spec.interval",
            ),
            (429, error("too_many_requests", "slow down"), "PrometheusRateLimited", "(slow down)"),
            (429, "<html>".into(), "PrometheusRateLimited", "HTTP 429: the"),
            (500, data("scalar", r#"[1,"1"]"#), "PrometheusUnavailable", "500"),
            (302, data("scalar", r#"[1,"1"]"#), "PrometheusRefused", "redirects"),
            (
                200,
                r#"{"status":"partial","data":{"resultType":"vector","result":[]}}"#.into(),
                "PrometheusRefused",
                "200",
            ),
            (404, "404 page not found".into(), "PrometheusRefused", "path prefix"),
            (502, "bad gateway".into(), "PrometheusUnavailable", "502"),
        ] {
            let (is, message) = gives(status, &body).unwrap_err();
            assert_eq!(is, reason, "{message}");
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn partial_response_measures_nothing() {
        let answer = |result: &str, more: &str| {
            let body = format!(r#"{{"status":"success","data":{{"resultType":"vector","result":{result}}},{more}}}"#);
            gives(200, &body).map_err(|(reason, message)| format!("{reason}: {message}"))
        };
        let one = r#"[{"metric":{},"value":[1,"5"]}]"#;
        for whole in
            [r#""warnings":[]"#, r#""warnings":null"#, r#""infos":["PromQL info: no counter"]"#, r#""isPartial":false"#]
        {
            assert_eq!(answer(one, whole).as_deref(), Ok("5"), "{whole}");
        }
        for result in [one, "[]"] {
            let message = answer(result, r#""warnings":["store a:10901: deadline exceeded","b"]"#).unwrap_err();
            assert!(
                message.starts_with("PartialAnswer: ") && message.contains("(store a:10901: deadline exceeded)"),
                "{message}"
            );
            for partial in [r#""isPartial":true"#, r#""warnings":[{"code":1}]"#] {
                assert!(answer(result, partial).unwrap_err().starts_with("PartialAnswer: "), "{partial}");
            }
        }
        // Prometheus warns about the limit of two samples that the query sets.
        let several = format!("[{sample},{sample}]", sample = r#"{"metric":{},"value":[1,"5"]}"#);
        let message = answer(&several, r#""warnings":["results truncated due to limit"]"#).unwrap_err();
        assert!(message.starts_with("SeveralSamples: "), "{message}");
    }

    #[test]
    fn secrets_in_a_response_are_redacted() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-key", "hunter2"), ("authorization", "Basic dXM6cDRzcw==")] {
            let mut value = HeaderValue::from_static(value);
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        headers.insert("x-scope-orgid", HeaderValue::from_static("team-a"));
        let secrets = Secrets::of(&headers);
        let answered = Answered { server: &server(), status: StatusCode::UNAUTHORIZED, pause: None, secrets: &secrets };
        let message = answered.measured(b"hunter2? dXM6cDRzcw==? p4ss? team-a?").unwrap_err().message;
        assert!(message.contains("([redacted]? [redacted]? [redacted]? team-a?)"), "{message}");
    }

    #[test]
    fn server_errors_are_quoted_in_one_bounded_line() {
        let text = format!("a\\nb{}", "x".repeat(10_000));
        let (_, message) =
            gives(400, &format!(r#"{{"status":"error","errorType":"bad_data","error":"{text}"}}"#)).unwrap_err();
        assert!(message.contains("a bxx") && message.len() < 500, "{message}");
    }

    #[test]
    fn server_has_scheme_host_port_and_path_only() {
        let shown = |text: &str| text.parse::<Server>().map(|server| server.to_string());
        assert_eq!(shown("HTTP://Prometheus:80/").unwrap(), "http://prometheus");
        assert_eq!(shown("https://a:8443/x//").unwrap(), "https://a:8443/x");
        for (text, says) in [
            ("prometheus:9090", "http://"),
            ("ftp://a", "http://"),
            ("http://u:p@a", "--prometheus-token-file"),
            ("http://a?x", "query"),
            ("http://a#x", "fragment"),
            ("", "http://"),
        ] {
            assert!(shown(text).unwrap_err().contains(says), "{text}");
        }
    }
}
