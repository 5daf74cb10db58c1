//! The bare watch records when a client that only watches receives a transition. It has its own thread and connection,
//! and searches each line for only three fields.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Instant,
};

use http_body_util::BodyExt;
use kube::{
    Client,
    api::{ListParams, WatchParams},
    client::Body,
    core::Request,
};
use llmtune_webhooks_harness::control_plane::ControlPlane;
use serde_json::Value;

use crate::transition::Transition;

/// A transition and its arrival time, or the reason why the watch ended.
pub type Sighting = Result<(Transition, Instant), String>;

/// Starts the watch, and returns once it is open. It does not keep the control plane running.
pub async fn start(plane: Arc<ControlPlane>, path: String, jobs: u32) -> mpsc::Receiver<Sighting> {
    let (sightings, incoming) = mpsc::channel();
    let (open, opened) = tokio::sync::oneshot::channel();
    let watch = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = plane.admin().await;
            drop(plane);
            let ended = watch(client, path, jobs, &sightings, open).await;
            // Sending fails only after the measurement is over.
            let _ = sightings.send(Err(format!("the bare watch has ended: {ended}")));
        });
    };
    thread::Builder::new().name("bare-watch".into()).spawn(watch).unwrap();
    opened.await.unwrap();
    incoming
}

/// Sends transitions until the watch ends. Returns the reason.
async fn watch(
    client: Client,
    path: String,
    jobs: u32,
    sightings: &mpsc::Sender<Sighting>,
    open: tokio::sync::oneshot::Sender<()>,
) -> String {
    let collection = Request::new(path);
    let list: Value = client.request(collection.list(&ListParams::default().limit(1)).unwrap()).await.unwrap();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let request = collection.watch(&WatchParams::default().timeout(3600), version).unwrap();
    let mut body = client.send(request.map(Body::from)).await.unwrap().into_body();
    open.send(()).unwrap();
    let mut buffer: Vec<u8> = Vec::with_capacity(1 << 20);
    while let Some(frame) = body.frame().await {
        let at = Instant::now();
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return error.to_string(),
        };
        let Ok(data) = frame.into_data() else { continue };
        let scanned = buffer.len();
        buffer.extend_from_slice(&data);
        let Some(newline) = buffer[scanned..].iter().rposition(|byte| *byte == b'\n') else { continue };
        let end = scanned + newline + 1;
        for line in std::str::from_utf8(&buffer[..end]).unwrap().lines() {
            if let Some(transition) = read(line, jobs)
                && sightings.send(Ok((transition, at))).is_err()
            {
                return "nobody listens".into();
            }
        }
        buffer.drain(..end);
    }
    "the apiserver has closed it".into()
}

fn read(line: &str, jobs: u32) -> Option<Transition> {
    let phase = word(line, "\"phase\":\"")?;
    Transition::read(word(line, "\"name\":\"")?, phase, word(line, "\"startedAt\":\"")?, jobs)
}

/// The text between `key` and the next quotation mark.
fn word<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_once(key)?.1.split_once('"').map(|(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_its_transition_past_managed_fields() {
        let line = r#"{"type":"MODIFIED","object":{"metadata":{"managedFields":[{"fieldsV1":{"f:status":{"f:phase":{},"f:startedAt":{}}}}],"name":"job-000003"},"status":{"phase":"Running","startedAt":"2026-01-01T00:00:03Z"}}}"#;
        assert_eq!(read(line, 10), Some(Transition { run: 3, completed: false }));
    }
}
