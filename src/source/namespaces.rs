//! The Namespaces whose labels the engine knows, shared by all sources. Watches of different kinds have no common
//! order, so an object may arrive before its new Namespace. While a `ClusterWebhook` selects by labels, a source
//! therefore waits until the labels of an unknown Namespace have been looked up before it sends an observation from it.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock, RwLockWriteGuard},
};

use tokio::sync::{mpsc, oneshot};

/// Holds back observations of Namespaces that the engine does not know.
#[derive(Clone, Debug)]
pub struct NamespaceBarrier {
    state: Arc<RwLock<BarrierState>>,
    ask: mpsc::UnboundedSender<(String, oneshot::Sender<()>)>,
}

#[derive(Debug, Default)]
struct BarrierState {
    /// True if labels matter and the engine has received all Namespaces that existed when they began to matter.
    wanted: bool,
    names: HashSet<String>,
}

impl NamespaceBarrier {
    /// Creates a barrier that holds back nothing. Names of Namespaces to look up go to `ask`, each with a channel to
    /// confirm on once the engine has the result.
    #[must_use]
    pub fn new(ask: mpsc::UnboundedSender<(String, oneshot::Sender<()>)>) -> Self {
        Self { state: Arc::default(), ask }
    }

    /// Records that the engine knows a Namespace.
    pub fn seen(&self, name: &str) {
        self.write().names.insert(name.to_owned());
    }

    /// Records that the engine knows that a Namespace is gone.
    pub fn gone(&self, name: &str) {
        self.write().names.remove(name);
    }

    /// Starts to hold back observations of unknown Namespaces.
    pub fn begin(&self) {
        self.write().wanted = true;
    }

    /// Stops holding back observations.
    pub fn end(&self) {
        *self.write() = BarrierState::default();
    }

    /// Whether the engine knows this Namespace, or does not need to.
    #[must_use]
    pub fn know(&self, name: &str) -> bool {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        !state.wanted || state.names.contains(name)
    }

    /// Waits until the engine knows this Namespace, if labels matter.
    pub async fn wait_for(&self, name: &str) {
        if self.know(name) {
            return;
        }
        let (confirm, confirmed) = oneshot::channel();
        if self.ask.send((name.to_owned(), confirm)).is_ok() {
            // An error means that labels no longer matter.
            let _ = confirmed.await;
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, BarrierState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}
