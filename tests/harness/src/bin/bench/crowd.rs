//! Creates many objects at once: kubectl would take minutes.

use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Client,
    api::{ListParams, PostParams},
    core::Request,
};
use serde_json::Value;

/// Concurrent requests.
const CREATORS: usize = 32;

/// Creates each object in the collection paired with it.
pub async fn create(client: &Client, objects: impl IntoIterator<Item = (String, Value)>) -> Result<(), String> {
    let creations = stream::iter(objects).map(|(path, object)| async move {
        let body = serde_json::to_vec(&object).map_err(|error| error.to_string())?;
        let request = Request::new(&*path).create(&PostParams::default(), body).map_err(|error| error.to_string())?;
        client.request_text(request).await.map(drop).map_err(|error| format!("{path}: {error}"))
    });
    creations.buffer_unordered(CREATORS).try_collect().await
}

/// The number of Webhooks that are Ready, in this namespace or in all.
pub async fn ready(client: &Client, namespace: Option<&str>) -> Result<usize, String> {
    let scope = namespace.map(|namespace| format!("namespaces/{namespace}/")).unwrap_or_default();
    let request = Request::new(format!("/apis/llmtune.io/v1alpha1/{scope}webhooks")).list(&ListParams::default());
    let list = client.request::<Value>(request.map_err(|error| error.to_string())?).await;
    let list = list.map_err(|error| error.to_string())?;
    Ok(list["items"].as_array().into_iter().flatten().filter(|webhook| is_ready(webhook)).count())
}

/// Whether the Webhook's status says that it is Ready.
pub fn is_ready(webhook: &Value) -> bool {
    let mut conditions = webhook["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}
