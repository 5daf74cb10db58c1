//! PromQL queries, over connections that all thresholds share. A server that hangs holds up its own queries alone.

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

/// The limit on one query, from its turn to the end of the answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Queries to one server at once.
const CONCURRENCY: usize = 8;
/// One number takes some hundred bytes; a longer answer is none.
const MAX_ANSWER: usize = 64 << 10;
/// Of what a server says about an error, this much is told.
const MAX_TOLD: usize = 256;
/// The longest that a server may ask to be left alone.
const MAX_PAUSE: Duration = Duration::from_secs(3600);

/// A Prometheus server: scheme, host, port and path prefix. Two spellings of one are the same.
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
                "it must not hold a user name or password: give a token with --prometheus-token-file".to_owned()
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

/// The servers that queries may be made to, and how.
pub struct Prometheus {
    clients: Clients,
    servers: Vec<Server>,
    turns: HashMap<Server, Semaphore>,
    token: Option<PathBuf>,
}

impl Prometheus {
    /// Queries may be made to these servers. `roots` are trusted beside the system's. `token`: a file with a bearer token, read anew
    /// for each query, since it may be replaced.
    pub fn new(
        servers: Vec<Server>,
        roots: Vec<CertificateDer<'static>>,
        token: Option<PathBuf>,
    ) -> Result<Self, rustls::Error> {
        // The platform team names the servers: no address of theirs is refused.
        let clients = Clients::new(roots, Guard::open(), Arc::new(Dns::system()), None)?;
        let turns = servers.iter().map(|server| (server.clone(), Semaphore::new(CONCURRENCY))).collect();
        Ok(Self { clients, servers, turns, token })
    }

    /// The servers, in the order of the configuration.
    #[must_use]
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// Makes a query with these headers once it is its turn.
    pub async fn query(&self, server: &Server, query: &str, headers: &HeaderMap) -> Asked {
        let failed = |failure, took| Asked { result: Err(failure), took, pause: None };
        let _turn = match self.turns.get(server) {
            Some(turns) => turns.acquire().await,
            None => return failed(unavailable(server, "it is not allowed"), Duration::ZERO),
        };
        let begun = Instant::now();
        match timeout(LIMIT, self.ask(server, query, headers)).await {
            Ok(Ok((result, pause))) => Asked { result, took: begun.elapsed(), pause },
            Ok(Err(failure)) => failed(failure, begun.elapsed()),
            Err(_) => failed(unavailable(server, &format!("no answer within {} s", LIMIT.as_secs())), begun.elapsed()),
        }
    }

    /// The result, and for how long the server wants not to be asked again; an error where there is no answer.
    async fn ask(
        &self,
        server: &Server,
        query: &str,
        given: &HeaderMap,
    ) -> Result<(Measured, Option<Duration>), Failure> {
        // A POST, since a query may be longer than what proxies take for a URL. One sample more than is wanted tells that there are several.
        let form = Url::parse_with_params("http://form", [("query", query), ("timeout", "10s"), ("limit", "2")]);
        let form = form.ok().and_then(|url| url.query().map(str::to_owned)).unwrap_or_default();
        let mut headers = given.clone();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(path) = self.token.as_ref().filter(|_| !given.contains_key(header::AUTHORIZATION)) {
            headers.insert(header::AUTHORIZATION, bearer(path).map_err(|problem| unavailable(server, &problem))?);
        }
        let secrets = Secrets::of(&headers);
        let mut url = server.0.clone();
        url.set_path(&format!("{}/api/v1/query", url.path().trim_end_matches('/')));
        // The limit is that of the whole query.
        let response = self.clients.post(&"".into(), &url, None, headers, form.into(), Duration::MAX).await;
        let response = response.map_err(|error| broken(server, &error))?;
        let status = response.status();
        let pause = retry_after(response.headers(), Timestamp::now()).map(|pause| pause.min(MAX_PAUSE));
        let pause = pause.filter(|_| matches!(status.as_u16(), 429 | 503));
        let body = read(server, response).await?;
        Ok((Answered { server, status, pause, secrets: &secrets }.measured(&body), pause))
    }
}

/// A figure, or why there is none.
type Measured = Result<Amount, Failure>;

/// What a query came to.
#[derive(Debug)]
pub struct Asked {
    pub result: Measured,
    /// How long it took from its turn on.
    pub took: Duration,
    /// For how long the server wants not to be asked again.
    pub pause: Option<Duration>,
}

/// What authorizes a query; the error never tells of the token.
fn bearer(path: &Path) -> Result<HeaderValue, String> {
    let refuse =
        |problem: &dyn fmt::Display| format!("the operator's --prometheus-token-file cannot be read: {problem}");
    let token = std::fs::read_to_string(path).map_err(|error| refuse(&error))?;
    let value = HeaderValue::from_str(&format!("Bearer {}", token.trim()));
    let mut value = value.map_err(|_| refuse(&"it holds what no token holds, such as a line break"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// What no message repeats, whatever a server answers: values of headers from Secrets, the token, the password.
#[derive(Default)]
struct Secrets(Vec<SecretString>);

impl Secrets {
    fn of(headers: &HeaderMap) -> Self {
        let mut secrets = Vec::new();
        for value in headers.values().filter(|value| value.is_sensitive()) {
            let Ok(whole) = value.to_str() else { continue };
            // A credential stands behind the name of its scheme; basic authentication's is base64.
            let credential = whole.split_once(' ').map(|(_, credential)| credential);
            let basic = credential.filter(|_| whole.starts_with("Basic ")).and_then(|text| STANDARD.decode(text).ok());
            let basic = basic.and_then(|pair| String::from_utf8(pair).ok());
            let password = basic.as_deref().and_then(|pair| pair.split_once(':')).map(|(_, password)| password);
            let texts = [Some(whole), credential, password];
            secrets.extend(texts.into_iter().flatten().filter(|text| !text.is_empty()).map(SecretString::from));
        }
        Self(secrets)
    }

    /// What a server said, in one line of bounded length, without what is secret.
    fn told(&self, text: &str) -> String {
        let secrets = self.0.iter().map(ExposeSecret::expose_secret);
        told(&secrets.fold(text.to_owned(), |text, secret| text.replace(secret, "[redacted]")))
    }
}

async fn read(server: &Server, mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| broken(server, &error))? {
        if body.len() + chunk.len() > MAX_ANSWER {
            let say = "spec.prometheus.query gives more than 64 KiB: aggregate it to one number, such as with sum(...)";
            return Err(Failure::new(Reason::SeveralSamples, say));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn unavailable(server: &Server, problem: &str) -> Failure {
    let say = format!(
        "{server} cannot be asked: {problem}; it is tried again, nothing is sent meanwhile and nothing is forgotten"
    );
    Failure::new(Reason::PrometheusUnavailable, say)
}

fn broken(server: &Server, error: &(dyn std::error::Error + 'static)) -> Failure {
    unavailable(server, &told(&innermost(error).to_string()))
}

/// One line of bounded length.
fn told(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TOLD).collect();
    line.trim().to_owned()
}

/// `/api/v1/query`'s answer, as far as it is read.
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
    /// That not all was looked at: of Prometheus, Thanos, Mimir and Cortex.
    #[serde(default)]
    warnings: Option<Vec<serde_json::Value>>,
    /// The same of `VictoriaMetrics`.
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

/// An element of a vector; a native histogram has no value.
#[derive(Deserialize)]
struct Element {
    value: Option<Sample>,
}

/// Seconds, and the value as text.
type Sample = (f64, String);

/// An answer that came, and from where.
struct Answered<'a> {
    server: &'a Server,
    status: StatusCode,
    pause: Option<Duration>,
    secrets: &'a Secrets,
}

impl Answered<'_> {
    /// The one number that it gives. A partial answer gives none: a figure of less than there is would arm a threshold again.
    fn measured(&self, body: &[u8]) -> Measured {
        let Self { server, status, .. } = self;
        let answer = serde_json::from_slice::<Answer<'_>>(body).ok();
        let words = match &answer {
            Some(answer) if !answer.error.is_empty() => self.secrets.told(&answer.error),
            Some(_) => String::new(),
            None => self.secrets.told(&words(body)),
        };
        // Gateways answer these in JSON too.
        if matches!(status.as_u16(), 401 | 403 | 429) || names_tenant(&words) {
            return Err(self.refused(&words));
        }
        let Some(answer) = answer else { return Err(self.refused(&words)) };
        if answer.status == "error" {
            let kind = self.secrets.told(&answer.error_type);
            let (reason, to_do) = match kind.as_str() {
                "bad_data" => (Reason::InvalidQuery, "correct spec.prometheus.query"),
                "timeout" | "canceled" | "unavailable" | "internal" => (Reason::QueryFailed, "it is tried again"),
                _ => (Reason::QueryFailed, "see whether spec.prometheus.query can be evaluated there"),
            };
            return Err(Failure::new(reason, format!("{server} answers {kind}: {words}; {to_do}")));
        }
        let Some(data) = answer.data.filter(|_| answer.status == "success" && status.is_success()) else {
            return Err(self.refused(&words));
        };
        let sample = self.sample(&data)?;
        let warning = answer.warnings.unwrap_or_default().into_iter().next();
        if warning.is_some() || answer.is_partial == Some(true) {
            let warning = warning.map(|warning| warning.as_str().map_or_else(|| warning.to_string(), str::to_owned));
            let warning = warning.map(|warning| format!(" ({})", self.secrets.told(&warning))).unwrap_or_default();
            let say = format!(
                "{server} answers with a warning{warning}: the answer may be partial, and so measures nothing; it is tried again, nothing is sent meanwhile and nothing is forgotten; see that all its stores answer, or correct spec.prometheus.query where the warning is of the query"
            );
            return Err(Failure::new(Reason::PartialAnswer, say));
        }
        let Some(text) = sample else {
            let say = "spec.prometheus.query gives no sample: nothing of that name and these labels has been scraped lately; correct the query, or add \"or vector(0)\" where absence means zero";
            return Err(Failure::new(Reason::NoSample, say));
        };
        Amount::sample(&text).map_err(|error| {
            let value = told(&text);
            match error {
                AmountError::NotFinite => {
                    let say = format!("spec.prometheus.query gives {value}, which is no figure: it divides by zero, or the metric itself is {value}");
                    Failure::new(Reason::NotFinite, say)
                }
                AmountError::Form | AmountError::TooLarge => not_one(&format!("{value:?}")),
            }
        })
    }

    /// The text of the one sample; `None` where there is none.
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
                        let say = "spec.prometheus.query gives several samples, and which one is meant cannot be told: aggregate them to one, such as with sum(...) or max(...)";
                        Err(Failure::new(Reason::SeveralSamples, say))
                    }
                    (None, _) => Ok(None),
                }
            }
            "matrix" => Err(not_one("a range of samples")),
            "string" => Err(not_one("a string")),
            other => Err(not_one(&format!("a {}", told(other)))),
        }
    }

    /// An answer that is not to the query.
    fn refused(&self, words: &str) -> Failure {
        let Self { server, status, pause, .. } = self;
        let said = if words.is_empty() { String::new() } else { format!(" ({words})") };
        let to_do = match status.as_u16() {
            429 => {
                let again = match pause {
                    Some(pause) => format!("in {} s, as it asks", pause.as_secs()),
                    None => "after spec.interval".to_owned(),
                };
                let say = format!(
                    "{server} limits how often it may be asked, HTTP 429{said}: it is asked again {again}, nothing is sent meanwhile and nothing is forgotten; where that lasts, raise spec.interval, or the limit there"
                );
                return Failure::new(Reason::PrometheusRateLimited, say);
            }
            _ if names_tenant(words) => {
                "it serves several tenants, name one in spec.prometheus.headers, such as {name: X-Scope-OrgID, value: team-a}"
            }
            300..=399 => "redirects are not followed, have the operator's --allow-prometheus name the final address",
            401 | 403 => {
                "it wants other credentials, or a header: give them in spec.prometheus.basicAuthRef or spec.prometheus.headers, or give the operator a token that it takes, with --prometheus-token-file"
            }
            404 | 405 => {
                "have the operator's --allow-prometheus name the address of a Prometheus API, with its path prefix"
            }
            500..=599 => {
                return unavailable(server, &format!("it answers HTTP {status}{said}"));
            }
            _ => "that is no answer of Prometheus's API, have the operator's --allow-prometheus name one",
        };
        Failure::new(Reason::PrometheusRefused, format!("{server} answers HTTP {status}{said}: {to_do}"))
    }
}

fn not_one(what: &str) -> Failure {
    let say = format!(
        "spec.prometheus.query gives {what}, not one number: write a query whose result is a scalar or a vector of one sample, such as sum(...)"
    );
    Failure::new(Reason::NotOneNumber, say)
}

/// Whether a server misses the name of a tenant, as Mimir, Cortex, Loki and their gateways say it.
fn names_tenant(words: &str) -> bool {
    let words = words.to_lowercase();
    ["no org id", "x-scope-orgid", "org id is required", "tenant id is required", "no tenant"]
        .iter()
        .any(|said| words.contains(said))
}

/// The words of an answer that is not Prometheus's own; a page is none.
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
    fn a_scalar_and_a_vector_of_one_sample_are_a_number_to_the_last_digit() {
        assert_eq!(gives(200, &data("scalar", r#"[1700000000.123,"0.1"]"#)).unwrap(), "0.1");
        let vector =
            |value: &str| data("vector", &format!(r#"[{{"metric":{{"a":"b"}},"value":[1700000000,"{value}"]}}]"#));
        assert_eq!(gives(200, &vector("9007199254740993")).unwrap(), "9007199254740993");
        assert_eq!(gives(200, &vector("1e+21")).unwrap(), "1000000000000000000000");
    }

    #[test]
    fn everything_else_is_a_failure_that_says_what_to_do() {
        let sample = r#"{"metric":{},"value":[1,"1"]}"#;
        let error = |kind: &str, text: &str| format!(r#"{{"status":"error","errorType":"{kind}","error":"{text}"}}"#);
        for (status, body, reason, says) in [
            (200, data("vector", "[]"), "NoSample", "or vector(0)"),
            (200, data("vector", &format!("[{sample},{sample}]")), "SeveralSamples", "sum(...)"),
            (200, data("vector", r#"[{"metric":{},"histogram":[1,{"count":"1"}]}]"#), "NotOneNumber", "a histogram"),
            (200, data("scalar", r#"[1,"NaN"]"#), "NotFinite", "gives NaN"),
            (200, data("scalar", r#"[1,"+Inf"]"#), "NotFinite", "gives +Inf"),
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
            (503, error("timeout", "query timed out"), "QueryFailed", "it is tried again"),
            (200, "<html>".into(), "PrometheusRefused", "no answer of Prometheus's API"),
            (302, String::new(), "PrometheusRefused", "redirects are not followed"),
            (401, "no".into(), "PrometheusRefused", "401 Unauthorized (no): it wants other credentials"),
            (401, "no".into(), "PrometheusRefused", "--prometheus-token-file"),
            (
                401,
                "no org id\n".into(),
                "PrometheusRefused",
                "(no org id): it serves several tenants, name one in spec.prometheus.headers",
            ),
            (401, error("unauthorized", "no org id"), "PrometheusRefused", "X-Scope-OrgID"),
            (500, "no org id".into(), "PrometheusRefused", "X-Scope-OrgID"),
            (403, error("bad_data", "denied"), "PrometheusRefused", "spec.prometheus.basicAuthRef"),
            (
                429,
                "too many".into(),
                "PrometheusRateLimited",
                "HTTP 429 (too many): it is asked again after spec.interval",
            ),
            (429, error("too_many_requests", "slow down"), "PrometheusRateLimited", "(slow down)"),
            (429, "<html>".into(), "PrometheusRateLimited", "HTTP 429: it"),
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
    fn a_partial_answer_measures_nothing() {
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
            let told = answer(result, r#""warnings":["store a:10901: deadline exceeded","b"]"#).unwrap_err();
            assert!(
                told.starts_with("PartialAnswer: ") && told.contains("(store a:10901: deadline exceeded)"),
                "{told}"
            );
            for partial in [r#""isPartial":true"#, r#""warnings":[{"code":1}]"#] {
                assert!(answer(result, partial).unwrap_err().starts_with("PartialAnswer: "), "{partial}");
            }
        }
        // Prometheus warns of the limit that the query itself sets.
        let several = format!("[{sample},{sample}]", sample = r#"{"metric":{},"value":[1,"5"]}"#);
        let told = answer(&several, r#""warnings":["results truncated due to limit"]"#).unwrap_err();
        assert!(told.starts_with("SeveralSamples: "), "{told}");
    }

    #[test]
    fn what_is_secret_is_not_repeated_whatever_a_server_answers() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-key", "hunter2"), ("authorization", "Basic dXM6cDRzcw==")] {
            let mut value = HeaderValue::from_static(value);
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        headers.insert("x-scope-orgid", HeaderValue::from_static("team-a"));
        let secrets = Secrets::of(&headers);
        let answered = Answered { server: &server(), status: StatusCode::UNAUTHORIZED, pause: None, secrets: &secrets };
        let told = answered.measured(b"hunter2? dXM6cDRzcw==? p4ss? team-a?").unwrap_err().message;
        assert!(told.contains("([redacted]? [redacted]? [redacted]? team-a?)"), "{told}");
    }

    #[test]
    fn what_a_server_says_is_told_in_one_bounded_line() {
        let text = format!("a\\nb{}", "x".repeat(10_000));
        let (_, message) =
            gives(400, &format!(r#"{{"status":"error","errorType":"bad_data","error":"{text}"}}"#)).unwrap_err();
        assert!(message.contains("a bxx") && message.len() < 500, "{message}");
    }

    #[test]
    fn a_server_is_named_by_scheme_host_port_and_path_and_nothing_else() {
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
