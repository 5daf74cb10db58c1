//! Calls to the apiserver: writes, how long to wait for one, and before the next, and how loudly failures are told.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::{HeaderValue, Request, header::ACCEPT};
use kube::{
    Client,
    api::{ObjectMeta, PartialObjectMeta},
    core::request,
};
use tokio::time::timeout;

const METADATA_ONLY: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// Makes a write of one object. Its answer would repeat what was written: only the metadata is asked for.
pub async fn write(
    client: &Client,
    request: Result<Request<Vec<u8>>, request::Error>,
) -> Result<ObjectMeta, kube::Error> {
    let mut request = request.map_err(kube::Error::BuildRequest)?;
    request.headers_mut().insert(ACCEPT, METADATA_ONLY);
    client.request::<PartialObjectMeta>(request).await.map(|written| written.metadata)
}

/// The result of a request that is given up on after `limit`.
pub async fn within<T, E: From<kube::Error>>(
    limit: Duration,
    request: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let elapsed = || kube::Error::Service(format!("the apiserver did not answer within {limit:?}").into());
    timeout(limit, request).await.map_err(|_| elapsed())?
}

/// How long to wait after so many failures in a row: 100 ms doubling up to 5 s, less up to half of it at random, so that those
/// whom one outage interrupted do not all come back at once.
pub fn pause(failures: u32) -> Duration {
    shortened(failures, random())
}

/// `random` is in [0, 1).
fn shortened(failures: u32, random: f64) -> Duration {
    let whole = Duration::from_millis(100 << failures.min(6)).min(Duration::from_secs(5));
    whole.mul_f64(1.0 - random / 2.0)
}

/// A number in [0, 1); std's hash keys are random, which is enough for varying waits.
pub fn random() -> f64 {
    (RandomState::new().hash_one(()) >> 11) as f64 / (1_u64 << 53) as f64
}

/// One line of a complaint is told this often, however many make it.
const ALOUD_EVERY: Duration = Duration::from_secs(5);

/// Keeps a complaint that many calls make at once from filling the log.
pub struct LogThrottle(Mutex<(Option<Instant>, u64)>);

impl LogThrottle {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_like_complaints_at_once_one_is_told() {
        let hush = LogThrottle::new();
        assert_eq!(hush.admit(), Some(0));
        for _ in 0..100 {
            assert_eq!(hush.admit(), None);
        }
        hush.0.lock().unwrap().0 = None;
        assert_eq!(hush.admit(), Some(100), "the next one says how many were not");
    }

    #[test]
    fn pauses_grow_to_five_seconds_and_differ_by_up_to_half() {
        let millis = |failures, random| shortened(failures, random).as_millis();
        assert_eq!([0, 1, 5, 6, 100].map(|failures| millis(failures, 0.0)), [100, 200, 3200, 5000, 5000]);
        assert_eq!(millis(6, 0.5), 3750);
        assert!((0..100).all(|_| (0.0..1.0).contains(&random())));
        assert_ne!(pause(6), pause(6), "two that wait as long come back at different times");
    }
}
