//! Namespaces, whose labels `ClusterWebhooks` select. Changes go to the engine first, then to the sources.

use super::Leader;
use crate::subscription::watch::namespaces::{NamespaceChange, Seen};
use llmtune_core::subscription::namespaces::Namespaces;

impl Leader {
    pub(super) fn namespace(&mut self, change: NamespaceChange) {
        let namespaces = &self.sources.namespaces;
        match change {
            NamespaceChange::Seen(seen) => {
                let Seen { name, version, labels, listed } = seen;
                namespaces.seen(&name);
                self.engine.namespaces().seen(name, version, labels, listed);
            }
            NamespaceChange::Gone(name) => {
                namespaces.gone(&name);
                self.engine.namespaces().gone(&name);
            }
            NamespaceChange::Listed => namespaces.begin(),
            NamespaceChange::Ended => {
                namespaces.end();
                *self.engine.namespaces() = Namespaces::default();
            }
            NamespaceChange::Answered(seen, asker) => {
                // The watch informs the sources of a Namespace and of its deletion.
                if let Some(Seen { name, version, labels, listed }) = seen {
                    self.engine.namespaces().seen(name, version, labels, listed);
                }
                // The task that asked has ended.
                let _ = asker.send(());
            }
            // The watch logs it.
            NamespaceChange::Refused => {}
        }
    }
}
