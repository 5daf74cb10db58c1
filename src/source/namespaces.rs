//! The Namespaces whose labels the engine knows, shared by all sources: while a `ClusterWebhook` selects by labels, nothing of another
//! Namespace is observed before it has been asked after. Watches of different kinds know no order, so that word of an object in a
//! Namespace that was created just now may come before word of the Namespace.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock, RwLockWriteGuard},
};

use tokio::sync::{mpsc, oneshot};

/// The Namespaces that the engine has been told of.
#[derive(Clone, Debug)]
pub struct NamespaceBarrier {
    told: Arc<RwLock<BarrierState>>,
    ask: mpsc::UnboundedSender<(String, oneshot::Sender<()>)>,
}

#[derive(Debug, Default)]
struct BarrierState {
    /// Labels matter, and all Namespaces that existed when they began to have been told of.
    wanted: bool,
    names: HashSet<String>,
}

impl NamespaceBarrier {
    /// Nobody asks for labels yet. Names go to `ask`, each with whom to tell once the engine knows what is known of it.
    #[must_use]
    pub fn new(ask: mpsc::UnboundedSender<(String, oneshot::Sender<()>)>) -> Self {
        Self { told: Arc::default(), ask }
    }

    /// The engine has been told of one.
    pub fn seen(&self, name: &str) {
        self.write().names.insert(name.to_owned());
    }

    /// The engine has been told that one is gone.
    pub fn gone(&self, name: &str) {
        self.write().names.remove(name);
    }

    /// From now on labels matter.
    pub fn begin(&self) {
        self.write().wanted = true;
    }

    /// They do not any more.
    pub fn end(&self) {
        *self.write() = BarrierState::default();
    }

    /// Whether the engine has been told of this one, or need not be.
    #[must_use]
    pub fn know(&self, name: &str) -> bool {
        let told = self.told.read().unwrap_or_else(PoisonError::into_inner);
        !told.wanted || told.names.contains(name)
    }

    /// Comes back once the engine knows what is known of this Namespace, if that matters.
    pub async fn wait_for(&self, name: &str) {
        if self.know(name) {
            return;
        }
        let (told, answer) = oneshot::channel();
        if self.ask.send((name.to_owned(), told)).is_ok() {
            // Dropped without an answer: nobody asks for labels any more.
            let _ = answer.await;
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, BarrierState> {
        self.told.write().unwrap_or_else(PoisonError::into_inner)
    }
}
