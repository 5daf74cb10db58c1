//! Panics of tasks. A panic is a bug, but it must end only the task in which it happens.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;

/// The output of the future, or `None` if it panics. A panic must not leave shared state half changed, so the future
/// must only return its result and change nothing else.
pub async fn caught<T>(future: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(future).catch_unwind().await.ok()
}
