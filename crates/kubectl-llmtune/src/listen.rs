//! `kubectl llmtune listen`: a receiver on loopback that prints the deliveries it receives.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, HeaderName, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use secrecy::SecretSlice;
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::mpsc::{Sender, channel},
};

use super::{
    cli::ListenArgs,
    failure::Failure,
    output::{Screen, note, print},
    table::{Paint, Tone, printable},
    verify::{
        self,
        examine::{Verdict, examine},
        json::indented,
        request::Request,
    },
};
use llmtune_client::error_chain::ErrorChain;

/// Upper bound for a request body, in bytes. No delivery is larger.
const MAX_BODY: usize = 1 << 20;
/// Hop-by-hop headers (RFC 9110, 7.6.1), and headers that the forwarding client writes itself.
const CONNECTION_HEADERS: [HeaderName; 9] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::HOST,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The state that request handlers share.
struct Receiver {
    secret: Option<SecretSlice<u8>>,
    forward: Option<(reqwest::Client, reqwest::Url)>,
    answer: StatusCode,
    paint: Paint,
    /// Receives the error if standard output can no longer be written.
    ended: Sender<Failure>,
}

pub async fn run(asked: &ListenArgs) -> Result<ExitCode, Failure> {
    let secret = asked.secret_file.as_deref().map(verify::secret).transpose()?;
    let client = || {
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build();
        client.map_err(|error| Failure::new(format!("cannot forward deliveries: {}", ErrorChain(&error))))
    };
    let forward = asked.forward.clone().map(|url| Ok((client()?, url))).transpose()?;
    let (listener, address) = on_loopback(asked.port).await?;
    note(&format!(
        "Listening at http://{address} (press Ctrl-C to stop). An operator on this machine can send to it with --allow-cidr 127.0.0.0/8."
    ));
    if secret.is_none() {
        note("Nothing is verified: to verify deliveries, pass a file that contains the secret with --secret-file.");
    }
    let (ended, mut end) = channel(1);
    let answer = StatusCode::from_u16(asked.answer).unwrap_or(StatusCode::OK);
    let receiver = Receiver { secret, forward, answer, paint: Screen::of_stdout().paint, ended };
    let router = Router::new().fallback(receive).layer(DefaultBodyLimit::max(MAX_BODY)).with_state(Arc::new(receiver));
    tokio::select! {
        served = async { axum::serve(listener, router).await } => {
            served.map_err(|error| Failure::new(format!("stopped listening: {error}")))?;
            Ok(ExitCode::SUCCESS)
        }
        Some(failure) = end.recv() => Err(failure),
    }
}

/// Listens on this port of 127.0.0.1, which other machines cannot reach. Port 0 selects a free port.
pub async fn on_loopback(port: u16) -> Result<(TcpListener, SocketAddr), Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| {
        Failure::new(format!("cannot listen at 127.0.0.1:{port}: {error}"))
            .next("choose another port with --port; --port 0 selects a free one")
    })?;
    let address = listener.local_addr().map_err(|error| Failure::new(format!("cannot listen: {error}")))?;
    Ok((listener, address))
}

async fn receive(State(receiver): State<Arc<Receiver>>, method: Method, headers: HeaderMap, body: Bytes) -> Response {
    // The operator never sends this header. Browsers send it with each cross-origin POST.
    if headers.contains_key(header::ORIGIN) {
        return (StatusCode::FORBIDDEN, "requests from web pages are refused\n").into_response();
    }
    if method != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, "method not allowed: deliveries use POST\n").into_response();
    }
    let now = Timestamp::now();
    let request = recorded(&headers, &body);
    let verdict = receiver.secret.as_ref().map(|secret| examine(&request, secret, None, now));
    let mut text = shown(&request, verdict.as_ref(), now, receiver.paint);
    let answer = if verdict.as_ref().is_some_and(|verdict| !verdict.verified) {
        StatusCode::UNAUTHORIZED
    } else if let Some((client, url)) = &receiver.forward {
        let (answer, outcome) = forward_delivery(client, url, headers, body).await;
        text.extend([format!("→ {}{}: {outcome}\n", url.origin().ascii_serialization(), url.path())]);
        answer
    } else {
        receiver.answer
    };
    if answer != StatusCode::OK {
        text.extend([format!("answered {answer}\n")]);
    }
    if let Err(failure) = print(&text) {
        // A full channel already holds such an error.
        let _ = receiver.ended.try_send(failure);
    }
    answer.into_response()
}

fn recorded(headers: &HeaderMap, body: &Bytes) -> Request {
    let headers = headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    Request { headers: headers.collect(), body: body.to_vec() }
}

/// Forwards a delivery. Returns the answer of the target and a line that describes it.
async fn forward_delivery(
    client: &reqwest::Client,
    url: &reqwest::Url,
    mut headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    for name in CONNECTION_HEADERS {
        headers.remove(name);
    }
    match client.post(url.clone()).headers(headers).body(body).send().await {
        Ok(response) => (response.status(), response.status().to_string()),
        Err(error) => (StatusCode::BAD_GATEWAY, format!("no answer: {}", ErrorChain(&error.without_url()))),
    }
}

/// Formats a delivery: a summary line, the findings, and the body.
fn shown(request: &Request, verdict: Option<&Verdict>, now: Timestamp, paint: Paint) -> String {
    let header = |name: &str| request.header(name).map(printable).unwrap_or_default();
    let json: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let data = json.get("data").unwrap_or(&json);
    let named = |name: &str| data.get(name).and_then(Value::as_str).map(printable);
    let object = [named("namespace"), named("name")].into_iter().flatten().collect::<Vec<_>>().join("/");
    let test = if header("x-llmtune-test") == "true" { "(test)" } else { "" };
    let attempt = format!("attempt {}", header("x-llmtune-attempt"));
    let parts = [
        now.strftime("%H:%M:%SZ").to_string(),
        header("x-llmtune-event"),
        object,
        attempt,
        header("x-llmtune-event-id"),
        test.into(),
    ];
    let mut text =
        parts.into_iter().filter(|part| !part.is_empty() && part != "attempt ").collect::<Vec<_>>().join("  ");
    text.push('\n');
    if let Some(verdict) = verdict {
        text.push_str(&verify::formatted(verdict, paint));
    }
    let body = indented(&request.body).unwrap_or_else(|| String::from_utf8_lossy(&request.body).into_owned() + "\n");
    for line in body.lines() {
        text.push_str(&paint.paint(Tone::Faint, &printable(line)));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_delivery_in_written_order_without_control_characters() {
        let text = "X-LLMTune-Event: training.started\nX-LLMTune-Attempt: 1\nX-LLMTune-Event-Id: evt_1\nX-LLMTune-Test: true\n\n\
            {\"id\":\"evt_1\",\"data\":{\"name\":\"ll\u{9b}ama\",\"namespace\":\"research\",\"metrics\":{\"loss\":0.42,\"step\":7}}}";
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let expected = "\
22:13:20Z  training.started  research/ll\u{fffd}ama  attempt 1  evt_1  (test)
{
  \"id\": \"evt_1\",
  \"data\": {
    \"name\": \"ll\u{fffd}ama\",
    \"namespace\": \"research\",
    \"metrics\": {
      \"loss\": 0.42,
      \"step\": 7
    }
  }
}
";
        assert_eq!(shown(&Request::read(text.as_bytes(), &[]), None, now, Paint(false)), expected);
        let bare = Request { headers: Vec::new(), body: b"\x1b[2J".to_vec() };
        assert_eq!(shown(&bare, None, now, Paint(false)), "22:13:20Z\n\u{fffd}[2J\n");
    }
}
