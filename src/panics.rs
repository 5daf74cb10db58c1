//! Panics of a task. One is a bug, and yet must cost nothing but what it was met in: the others go on.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;

/// What the future comes to; `None` where it panics. What it shared must not be left half changed by that: the futures that are run
/// so hand their result back, and change nothing else.
pub async fn caught<T>(future: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(future).catch_unwind().await.ok()
}
