//! Shared by tests, demo and benchmarks: a real control plane on loopback, the operator as a real process with the
//! shipped roles, and receivers that record requests.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

pub mod control_plane;
pub mod operator;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod receiver;
pub mod reference;

use std::{
    future::Future,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

/// Waits until `probe` returns a value. Panics after the limit, with a description of the condition.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> F,
) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}
