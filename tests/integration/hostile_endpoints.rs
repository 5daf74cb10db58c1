//! Malicious endpoints: their Webhook's status names the problem, their responses are bounded in time and memory, and a
//! well-behaved endpoint still gets its deliveries on time.

use std::time::{Duration, Instant};

use llmtune_webhooks_harness::{eventually, operator::Operator, process::temporary_folder, receiver::Receiver};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::{
    connections::acceptor,
    support::{Jobs, SOON, Scene, misbehaving, read_request, run},
};

/// Number of events for each endpoint, each with one retry.
const EVENTS: usize = 6;
/// Maximum delay for the well-behaved endpoint, on a machine that also runs the others.
const ON_TIME: Duration = Duration::from_secs(2);
/// Maximum growth of the operator's memory, in KiB.
const GROWTH: u64 = 48 * 1024;

/// An endpoint, the possible outcomes of its attempts, and for each outcome the text in the status.
type Case = (&'static str, String, &'static [ExpectedStatus]);
type ExpectedStatus = (&'static str, &'static str);

/// Runs an operator with a Webhook for each of these endpoints, and one for a well-behaved endpoint.
async fn harm_nobody(scene: Scene, arguments: &[&str], cases: Vec<Case>) {
    let good = Receiver::start().await;
    let policy = json!({"delivery": {"timeout": "2s", "maxRetries": 1, "concurrency": 1,
                                     "backoff": {"initial": "100ms", "max": "100ms"}}});
    for (name, url, _) in &cases {
        scene.webhook(name, url, &policy);
    }
    scene.webhook("good", &good.url(), &policy);
    let options = arguments.iter().fold(scene.options(), |options, argument| options.argument(argument));
    let operator = Operator::start_ready(&scene.plane, &options).await;
    for name in cases.iter().map(|(name, ..)| *name).chain(["good"]) {
        scene.wait(&format!("webhook/{name}"), "condition=Ready");
    }
    let before = operator.process.resident_kib();
    let jobs = Jobs::new(&scene).await;
    let mut latest = Duration::ZERO;
    for number in 0..EVENTS {
        let name = format!("job-{number}");
        jobs.create(&name).await;
        let begun = Instant::now();
        jobs.start(&name).await;
        let post = good.wait_for("training.started", &name, SOON).await;
        latest = latest.max(post.at - begun);
        // The other endpoints are active during this time.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let mut wrong = Vec::new();
    for (name, _, outcomes) in &cases {
        eventually(&format!("{name} exhausts its deliveries"), Duration::from_secs(90), || async {
            (scene.get("webhook", name)["status"]["deliveries"]["failed"] == EVENTS).then_some(())
        })
        .await;
        let status = &scene.get("webhook", name)["status"];
        let error = status["lastFailure"]["error"].as_str().unwrap();
        let made = |(outcome, _): &ExpectedStatus| {
            let labels = [("webhook", *name), ("outcome", *outcome)];
            operator.metric("llmtune_webhooks_attempts_total", &labels) as usize
        };
        let made: usize = outcomes.iter().map(made).sum();
        println!("{name}: {error}");
        if made != 2 * EVENTS || !outcomes.iter().any(|(_, says)| error.contains(says)) {
            wrong.push(format!("{name}: {made} attempts had the outcomes {outcomes:?}; {error}"));
        }
    }
    let grown = operator.process.status_kib("VmHWM:").saturating_sub(before);
    let processor = operator.process.cpu_seconds();
    println!("told {latest:?} late at most; memory grew by {grown} KiB at most; {processor} s of CPU");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(latest < ON_TIME, "{latest:?}");
    assert!(grown < GROWTH, "{grown} KiB");
    assert!(!operator.log().contains("panicked"), "{}", operator.process.log_tail());
}

/// An endpoint that answers each request with `once`, then with `forever` repeatedly, and reads no further.
async fn answers(once: impl Into<Vec<u8>>, forever: impl Into<Vec<u8>>) -> String {
    let (once, forever) = (once.into(), forever.into());
    misbehaving(move |mut stream| {
        let (once, forever) = (once.clone(), at_length(&forever));
        async move {
            read_request(&mut stream).await;
            if stream.write_all(&once).await.is_ok() && !forever.is_empty() {
                while stream.write_all(&forever).await.is_ok() {}
            }
        }
    })
    .await
}

/// Repeats a piece, so that each write is large.
fn at_length(piece: &[u8]) -> Vec<u8> {
    if piece.is_empty() { Vec::new() } else { piece.repeat(8192 / piece.len() + 1) }
}

const PROTOCOL: &[ExpectedStatus] = &[("protocol", BROKE)];
const ENDLESS: &[ExpectedStatus] = &[("protocol", UNASKED)];
const LATE: &[ExpectedStatus] = &[("timeout", "no answer within 2 s")];
const HTTP_500: &[ExpectedStatus] = &[("5xx", "HTTP 500")];
/// The client may detect the error before it has read the status.
const EITHER: &[ExpectedStatus] = &[("5xx", "HTTP 500"), ("protocol", BROKE)];

const FAILS: &str = "HTTP/1.1 500 Internal Server Error\r\n";
const BROKE: &str = "the connection broke: ";
const UNASKED: &str = "the endpoint sent more than 256 KiB without an answer";

/// An endpoint with an invalid HTTP/1.1 response.
async fn answers_once(text: &str) -> String {
    answers(text, "").await
}

#[test]
fn endpoints_that_break_http_harm_nobody_and_are_told_of() {
    run(async {
        let scene = Scene::new("broken-http").await;
        let closes = misbehaving(|stream| async move { drop(stream) }).await;
        let resets = misbehaving(|mut stream| async move {
            read_request(&mut stream).await;
            stream.set_zero_linger().unwrap();
        })
        .await;
        let breaks_off = misbehaving(|mut stream| async move {
            let _ = stream.read(&mut [0; 16]).await;
            let _ = stream.write_all(b"HTTP/1.1 2").await;
        })
        .await;
        let hasty = misbehaving(|mut stream| async move {
            let _ = stream.write_all(format!("{FAILS}content-length: 0\r\n\r\n").as_bytes()).await;
            read_request(&mut stream).await;
        })
        .await;
        let two = format!("{FAILS}content-length: 0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        let ok = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
        let chunked = format!("{FAILS}transfer-encoding: chunked\r\n\r\nzz\r\n");
        let switches = "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";
        let cases: Vec<Case> = vec![
            ("closes", closes, PROTOCOL),
            ("resets", resets, PROTOCOL),
            ("breaks-off", breaks_off, PROTOCOL),
            ("hasty", hasty, EITHER),
            ("version", answers_once("ICY 200 OK\r\n\r\n").await, &[("protocol", "invalid HTTP version")]),
            ("status", answers_once("HTTP/1.1 2x0 OK\r\n\r\n").await, &[("protocol", "invalid HTTP status")]),
            ("header", answers_once(&ok("a\0b: c")).await, &[("protocol", "invalid HTTP header")]),
            ("lengths", answers_once(&ok("content-length: 1\r\ncontent-length: 2")).await, PROTOCOL),
            ("negative", answers_once(&ok("content-length: -1")).await, PROTOCOL),
            ("many", answers_once(&ok(&"a: b\r\n".repeat(1001))).await, PROTOCOL),
            ("chunk", answers_once(&chunked).await, HTTP_500),
            // Data after a response acknowledges nothing.
            ("two-answers", answers_once(&two).await, HTTP_500),
            ("switches", answers(switches, "x").await, &[("protocol", "HTTP 101")]),
        ];
        harm_nobody(scene, &[], cases).await;
    });
}

#[test]
fn endless_responses_harm_no_other_and_are_reported() {
    run(async {
        let scene = Scene::new("endless-http").await;
        let drips = misbehaving(|mut stream| async move {
            read_request(&mut stream).await;
            let mut next = format!("{FAILS}transfer-encoding: chunked\r\n\r\n").into_bytes();
            while stream.write_all(&next).await.is_ok() {
                next = b"1\r\nx\r\n".to_vec();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
        let chunked = |rest: &str| format!("{FAILS}transfer-encoding: chunked\r\n\r\n{rest}");
        // Members of 20 bytes that each decompress to nothing, and one that never ends (RFC 1952).
        let packed = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255][..], &[3, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
        let bomb = [format!("{FAILS}content-encoding: gzip\r\n\r\n").as_bytes(), &packed[..10]].concat();
        let hint = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
        let cases: Vec<Case> = vec![
            ("headers", answers(FAILS, "a: b\r\n").await, PROTOCOL),
            ("header", answers(format!("{FAILS}a: "), "b").await, &[("protocol", "message head is too large")]),
            ("status-line", answers("HTTP/1.1 200 ", "O").await, &[("protocol", "message head is too large")]),
            ("hints", answers("", hint).await, ENDLESS),
            ("continues", answers("", "HTTP/1.1 100 Continue\r\n\r\n").await, ENDLESS),
            ("body", answers(format!("{FAILS}\r\n"), "x").await, HTTP_500),
            ("chunks", answers(chunked(""), "1\r\nx\r\n").await, HTTP_500),
            ("extension", answers(chunked("1;"), "a").await, HTTP_500),
            ("trailers", answers(chunked("0\r\n"), "a: b\r\n").await, HTTP_500),
            ("bomb", answers(bomb, "\0").await, HTTP_500),
            ("drips", drips, HTTP_500),
        ];
        harm_nobody(scene, &[], cases).await;
    });
}

/// An HTTP/2 frame (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = &(payload.len() as u32).to_be_bytes()[1..];
    [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
/// A frame type that no specification defines.
const UNKNOWN: u8 = 0xfa;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
/// `:status: 500` and `:status: 103` (RFC 7541).
const STATUS_500: &[u8] = &[0x8e];
const STATUS_103: &[u8] = &[0x08, 3, b'1', b'0', b'3'];

/// An HTTP/2 endpoint that sends `once` after a request has arrived, and then `forever` repeatedly.
async fn speaks(acceptor: &TlsAcceptor, once: Vec<u8>, forever: Vec<u8>) -> String {
    let acceptor = acceptor.clone();
    let url = misbehaving(move |stream| {
        let (acceptor, once, forever) = (acceptor.clone(), once.clone(), at_length(&forever));
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let _ = stream.write_all(&frame(SETTINGS, 0, 0, &[])).await;
            // Before its first request the client sends fewer bytes than this.
            let mut asked = vec![0; 300];
            let _ = stream.read_exact(&mut asked).await;
            let (mut reading, mut writing) = tokio::io::split(stream);
            let read = async { tokio::io::copy(&mut reading, &mut tokio::io::sink()).await };
            let write = async {
                if writing.write_all(&once).await.is_ok() && !forever.is_empty() {
                    while writing.write_all(&forever).await.is_ok() {}
                }
            };
            let _ = tokio::join!(read, write);
        }
    })
    .await;
    url.replace("http://127.0.0.1", "https://localhost")
}

#[test]
fn broken_http2_and_tls_harm_no_other_and_are_reported() {
    run(async {
        let scene = Scene::new("broken-http2").await;
        let (acceptor, certificate) = acceptor();
        let bundle = temporary_folder("ca").join("ca.pem");
        std::fs::write(&bundle, certificate).unwrap();
        let https = |url: String| url.replace("http://127.0.0.1", "https://localhost");
        let silent = misbehaving(|mut stream| async move {
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        })
        .await;
        // Handshake records (RFC 8446, 5.1) of a message without an end.
        let record = [&[22, 3, 3, 0x10, 0][..], &[2; 0x1000]].concat();
        let once = async |frames: Vec<u8>| speaks(&acceptor, frames, Vec::new()).await;
        let flood = async |frames: Vec<u8>| speaks(&acceptor, Vec::new(), frames).await;
        let setting = |id: u16, value: u32| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        let settings = |id, value| frame(SETTINGS, 0, 0, &setting(id, value));
        let hint = frame(HEADERS, END_HEADERS, 1, STATUS_103);
        // A field of 4,000 bytes for the client's dynamic table; from then on one byte refers to it.
        let field = [STATUS_103, &[0x40, 1, b'a', 0x7f, 0xa1, 0x1e], &[b'v'; 4000]].concat();
        let field = frame(HEADERS, END_HEADERS, 1, &field);
        let named = |status: &[u8], times| frame(HEADERS, END_HEADERS, 1, &[status, &vec![0xbe; times]].concat());
        let push = frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x83, 0x87, 0x84, 0x41, 1, b'a']);
        let goaway = |last: u8| frame(GOAWAY, 0, 0, &[0, 0, 0, last, 0, 0, 0, 0]);
        // The next request comes over another connection.
        let fails = || [frame(HEADERS, END_HEADERS, 1, STATUS_500), goaway(1)].concat();
        let fails_and = async |frames: Vec<u8>| speaks(&acceptor, fails(), frames).await;
        let padding = frame(DATA, PADDED, 1, &[&[255][..], &[0; 255]].concat());
        let cases: Vec<Case> = vec![
            ("silent", https(silent), LATE),
            ("handshake", https(answers("", record).await), &[("tls", "TLS: ")]),
            ("goaway", once(goaway(0)).await, PROTOCOL),
            ("reset", once([frame(RST_STREAM, 0, 1, &[0, 0, 0, 2]), goaway(1)].concat()).await, PROTOCOL),
            ("http1", once(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()).await, PROTOCOL),
            ("push", once(push).await, PROTOCOL),
            ("no-window", once(settings(4, 0)).await, LATE),
            ("settings", flood(settings(4, 65535)).await, ENDLESS),
            ("pings", flood(frame(PING, 0, 0, &[0; 8])).await, ENDLESS),
            ("windows", flood(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])).await, ENDLESS),
            ("unknown", flood(frame(UNKNOWN, 0, 0, &[0; 64])).await, ENDLESS),
            ("hints", flood(hint).await, ENDLESS),
            ("large-hints", speaks(&acceptor, field.clone(), named(STATUS_103, 3)).await, ENDLESS),
            ("fields", speaks(&acceptor, field, named(STATUS_500, 8000)).await, PROTOCOL),
            (
                "continuations",
                speaks(&acceptor, frame(HEADERS, 0, 1, STATUS_500), frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b']))
                    .await,
                PROTOCOL,
            ),
            ("data", fails_and(frame(DATA, 0, 1, &[b'x'; 8192])).await, EITHER),
            ("empty-data", fails_and(frame(DATA, 0, 1, &[])).await, EITHER),
            ("padding", fails_and(padding).await, EITHER),
        ];
        harm_nobody(scene, &["--ca-file", bundle.to_str().unwrap()], cases).await;
    });
}
