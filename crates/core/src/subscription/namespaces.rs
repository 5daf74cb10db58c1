//! The labels of the Namespaces that the operator knows. Pure.
//!
//! A deleted Namespace is remembered for a while. Its objects were deleted before it, but their deletions arrive on
//! other watches, possibly later.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::event::object::Labels;

/// The maximum number of deleted Namespaces that are remembered.
pub const MAX_GONE: usize = 1_000;

/// The labels of Namespaces, by name.
#[derive(Debug, Default)]
pub struct Namespaces {
    known: HashMap<String, Known>,
    /// Deleted Namespaces, oldest first. A Namespace that was created again stays in the queue until it is dequeued.
    gone: VecDeque<String>,
}

#[derive(Debug)]
struct Known {
    version: u64,
    labels: Arc<Labels>,
    gone: bool,
}

impl Namespaces {
    /// Records a Namespace at this version. An older version than the known one is ignored unless it is from a list,
    /// because a restored etcd assigns lower versions.
    pub fn seen(&mut self, name: String, version: u64, labels: Labels, listed: bool) {
        if !listed && self.known.get(&name).is_some_and(|known| known.version >= version) {
            return;
        }
        self.known.insert(name, Known { version, labels: Arc::new(labels), gone: false });
    }

    /// Records that a Namespace is deleted.
    pub fn gone(&mut self, name: &str) {
        let Some(known) = self.known.get_mut(name).filter(|known| !known.gone) else { return };
        known.gone = true;
        self.gone.push_back(name.to_owned());
        if self.gone.len() > MAX_GONE
            && let Some(oldest) = self.gone.pop_front()
            && self.known.get(&oldest).is_some_and(|known| known.gone)
        {
            self.known.remove(&oldest);
        }
    }

    /// The current or last known labels of this Namespace. `None` if the Namespace is unknown.
    #[must_use]
    pub fn labels(&self, name: &str) -> Option<&Arc<Labels>> {
        self.known.get(name).map(|known| &known.labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(team: &str) -> Labels {
        [("team".to_owned(), team.to_owned())].into()
    }

    #[test]
    fn older_versions_are_ignored_unless_listed() {
        let mut namespaces = Namespaces::default();
        let team = |namespaces: &Namespaces| namespaces.labels("ns").unwrap()["team"].clone();
        namespaces.seen("ns".into(), 10, labels("a"), false);
        for (version, says, listed, then) in [
            (8, "b", false, "a"),
            (10, "b", false, "a"),
            (11, "c", false, "c"),
            (3, "d", true, "d"),
            (4, "e", false, "e"),
        ] {
            namespaces.seen("ns".into(), version, labels(says), listed);
            assert_eq!(team(&namespaces), then, "version {version}");
        }
        assert!(namespaces.labels("other").is_none());
    }

    #[test]
    fn deleted_namespaces_are_remembered_up_to_the_bound() {
        let mut namespaces = Namespaces::default();
        namespaces.gone("never seen");
        namespaces.seen("first".into(), 1, labels("a"), false);
        namespaces.gone("first");
        namespaces.gone("first");
        namespaces.seen("first".into(), 1, labels("b"), false);
        assert_eq!(
            namespaces.labels("first").unwrap()["team"],
            "a",
            "a late event from before the deletion is ignored"
        );
        for number in 1..MAX_GONE {
            let name = format!("ns-{number}");
            namespaces.seen(name.clone(), 1, labels("b"), false);
            namespaces.gone(&name);
        }
        assert_eq!(namespaces.labels("first").unwrap()["team"], "a");
        namespaces.seen("back".into(), 1, labels("c"), false);
        namespaces.gone("back");
        assert!(namespaces.labels("first").is_none());
        namespaces.seen("back".into(), 2, labels("d"), false);
        for number in 0..=MAX_GONE {
            namespaces.seen(format!("ns-{number}"), 9, labels("b"), false);
            namespaces.gone(&format!("ns-{number}"));
        }
        assert_eq!(
            namespaces.labels("back").unwrap()["team"],
            "d",
            "a Namespace that was created again is not forgotten"
        );
        assert!(namespaces.known.len() <= MAX_GONE + 1 && namespaces.gone.len() <= MAX_GONE);
    }
}
