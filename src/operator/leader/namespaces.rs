//! Namespaces, by whose labels `ClusterWebhooks` select: what is learned of them goes to the engine first, then to the sources.

use super::Leader;
use crate::subscription::watch::namespaces::{NamespaceChange, Seen};
use llmtune_core::subscription::namespaces::Namespaces;

impl Leader {
    pub(super) fn namespace(&mut self, change: NamespaceChange) {
        let told = &self.sources.namespaces;
        match change {
            NamespaceChange::Seen(seen) => {
                let Seen { name, version, labels, listed } = seen;
                told.seen(&name);
                self.engine.namespaces().seen(name, version, labels, listed);
            }
            NamespaceChange::Gone(name) => {
                told.gone(&name);
                self.engine.namespaces().gone(&name);
            }
            NamespaceChange::Listed => told.begin(),
            NamespaceChange::Ended => {
                told.end();
                *self.engine.namespaces() = Namespaces::default();
            }
            NamespaceChange::Answered(seen, asker) => {
                // The sources learn of it from the watch, as of its going.
                if let Some(Seen { name, version, labels, listed }) = seen {
                    self.engine.namespaces().seen(name, version, labels, listed);
                }
                // Whoever asked has been stopped.
                let _ = asker.send(());
            }
            // The log says so.
            NamespaceChange::Refused => {}
        }
    }
}
