//! Namespaces, by whose labels `ClusterWebhooks` select: what is learned of them goes to the engine first, then to the sources.

use super::Leader;
use crate::subscription::{
    namespaces::Namespaces,
    watch::namespaces::{Change, Seen},
};

impl Leader {
    pub(super) fn namespace(&mut self, change: Change) {
        let told = &self.sources.namespaces;
        match change {
            Change::Seen(seen) => {
                let Seen { name, version, labels, listed } = seen;
                told.seen(&name);
                self.engine.namespaces().seen(name, version, labels, listed);
            }
            Change::Gone(name) => {
                told.gone(&name);
                self.engine.namespaces().gone(&name);
            }
            Change::Listed => told.begin(),
            Change::Ended => {
                told.end();
                *self.engine.namespaces() = Namespaces::default();
            }
            Change::Answered(seen, asker) => {
                // The sources learn of it from the watch, as of its going.
                if let Some(Seen { name, version, labels, listed }) = seen {
                    self.engine.namespaces().seen(name, version, labels, listed);
                }
                // Whoever asked has been stopped.
                let _ = asker.send(());
            }
            // The log says so.
            Change::Refused => {}
        }
    }
}
