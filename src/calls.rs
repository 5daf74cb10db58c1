//! Calls to the apiserver: metadata-only writes, time limits, backoff, and throttled logging of failures.

use std::{
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

/// Writes one object. The request asks only for the metadata, because the full response would repeat the object.
pub async fn write(
    client: &Client,
    request: Result<Request<Vec<u8>>, request::Error>,
) -> Result<ObjectMeta, kube::Error> {
    let mut request = request.map_err(kube::Error::BuildRequest)?;
    request.headers_mut().insert(ACCEPT, METADATA_ONLY);
    client.request::<PartialObjectMeta>(request).await.map(|written| written.metadata)
}

/// Waits for a request for at most `limit`.
pub async fn within<T, E: From<kube::Error>>(
    limit: Duration,
    request: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let elapsed = || kube::Error::Service(format!("the apiserver did not answer within {limit:?}").into());
    timeout(limit, request).await.map_err(|_| elapsed())?
}

/// The wait after this many consecutive failures: 100 ms, doubled each time up to 5 s, minus a random part of at most
/// half. The random part keeps clients from reconnecting all at once after an outage.
pub fn pause(failures: u32) -> Duration {
    shortened(failures, fastrand::f64())
}

/// `random` is in [0, 1).
fn shortened(failures: u32, random: f64) -> Duration {
    let full = Duration::from_millis(100 << failures.min(6)).min(Duration::from_secs(5));
    full.mul_f64(1.0 - random / 2.0)
}

/// At most one line is logged in this time, however many calls fail.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Limits the log lines of a failure that many calls have at once.
pub struct LogThrottle(Mutex<(Option<Instant>, u64)>);

impl LogThrottle {
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new((None, 0)))
    }

    /// The number of lines suppressed since the last logged line, or `None` if this line is suppressed too.
    pub fn admit(&self) -> Option<u64> {
        let (logged, suppressed) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_some_and(|logged| logged.elapsed() < LOG_INTERVAL) {
            *suppressed += 1;
            return None;
        }
        *logged = Some(Instant::now());
        Some(std::mem::take(suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_throttle_admits_one_line_per_interval() {
        let throttle = LogThrottle::new();
        assert_eq!(throttle.admit(), Some(0));
        for _ in 0..100 {
            assert_eq!(throttle.admit(), None);
        }
        throttle.0.lock().unwrap().0 = None;
        assert_eq!(throttle.admit(), Some(100), "the next line reports the number of suppressed lines");
    }

    #[test]
    fn pauses_grow_to_five_seconds_with_jitter() {
        let millis = |failures, random| shortened(failures, random).as_millis();
        assert_eq!([0, 1, 5, 6, 100].map(|failures| millis(failures, 0.0)), [100, 200, 3200, 5000, 5000]);
        assert_eq!(millis(6, 0.5), 3750);
        assert_ne!(pause(6), pause(6), "equal numbers of failures give different waits");
    }
}
