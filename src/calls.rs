//! Calls to the apiserver: their time limit, the pauses between tries, and a watch that is fed to whoever listens.

use std::{fmt::Debug, time::Duration};

use futures::StreamExt;
use kube::{
    Api, Resource,
    core::DeserializeGuard,
    runtime::watcher::{Config, Event, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tracing::warn;

use crate::causes::Causes;

/// The result of a request that is given up on after `limit`.
pub async fn within<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    let elapsed = || kube::Error::Service(format!("the apiserver did not answer within {limit:?}").into());
    timeout(limit, request).await.map_err(|_| elapsed())?
}

/// How long to wait after so many failures in a row: 100 ms doubling up to 5 s.
pub fn pause(failures: u32) -> Duration {
    Duration::from_millis(100 << failures.min(6)).min(Duration::from_secs(5))
}

/// Feeds one watch of objects in, for as long as somebody listens.
pub async fn pump<K>(
    api: Api<DeserializeGuard<K>>,
    config: Config,
    scope: usize,
    events: mpsc::Sender<(usize, Event<DeserializeGuard<K>>)>,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut failures = 0;
    let mut stream = watcher(api, config).boxed();
    while let Some(item) = stream.next().await {
        match item {
            Ok(event) => {
                failures = 0;
                if events.send((scope, event)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let wait = pause(failures);
                failures += 1;
                warn!(kind = %K::kind(&()), error = %Causes(&error), ?wait, "watch interrupted; trying again");
                sleep(wait).await;
            }
        }
    }
}
