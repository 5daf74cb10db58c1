//! Calls to the apiserver: their time limit, the pauses between tries, how loudly failures are told, and a watch that is
//! fed to whoever listens.

use std::{
    fmt::Debug,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

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

/// One line of a complaint is told this often, however many make it.
const ALOUD_EVERY: Duration = Duration::from_secs(5);

/// Keeps a complaint that many calls make at once from filling the log.
pub struct Hush(Mutex<(Option<Instant>, u64)>);

impl Hush {
    /// Nobody has complained yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new((None, 0)))
    }

    /// How many complaints were kept back since the last that was told; `None`: this one is kept back too.
    pub fn admit(&self) -> Option<u64> {
        let (told, kept_back) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|told| told.elapsed() < ALOUD_EVERY) {
            *kept_back += 1;
            return None;
        }
        *told = Some(Instant::now());
        Some(std::mem::take(kept_back))
    }
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
                // A list that is refused has begun all the same.
                if !matches!(event, Event::Init) {
                    failures = 0;
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_like_complaints_at_once_one_is_told() {
        let hush = Hush::new();
        assert_eq!(hush.admit(), Some(0));
        for _ in 0..100 {
            assert_eq!(hush.admit(), None);
        }
        hush.0.lock().unwrap().0 = None;
        assert_eq!(hush.admit(), Some(100), "the next one says how many were not");
    }
}
