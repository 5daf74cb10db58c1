//! Calls to the apiserver: how long to wait for one, and before the next.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use tokio::time::timeout;

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
fn random() -> f64 {
    (RandomState::new().hash_one(()) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_five_seconds_and_differ_by_up_to_half() {
        let millis = |failures, random| shortened(failures, random).as_millis();
        assert_eq!([0, 1, 5, 6, 100].map(|failures| millis(failures, 0.0)), [100, 200, 3200, 5000, 5000]);
        assert_eq!(millis(6, 0.5), 3750);
        assert!((0..100).all(|_| (0.0..1.0).contains(&random())));
        assert_ne!(pause(6), pause(6), "two that wait as long come back at different times");
    }
}
