//! The labels of Namespaces, as far as the operator has heard of them. Pure.
//!
//! A Namespace that is gone is remembered for a while: its objects went before it, but word of them comes on other watches, perhaps later.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::event::object::Labels;

/// Namespaces that are gone are remembered up to this many.
pub const MAX_GONE: usize = 1_000;

/// The labels of Namespaces by name.
#[derive(Debug, Default)]
pub struct Namespaces {
    known: HashMap<String, Known>,
    /// Those that are gone, oldest first; one that has come back is among them until its turn comes.
    gone: VecDeque<String>,
}

#[derive(Debug)]
struct Known {
    version: u64,
    labels: Arc<Labels>,
    gone: bool,
}

impl Namespaces {
    /// A Namespace as it was at this version. What is older than what is known says nothing, unless it is from a list: a store that was
    /// restored counts from lower on.
    pub fn seen(&mut self, name: String, version: u64, labels: Labels, listed: bool) {
        if !listed && self.known.get(&name).is_some_and(|known| known.version >= version) {
            return;
        }
        self.known.insert(name, Known { version, labels: Arc::new(labels), gone: false });
    }

    /// A Namespace is gone.
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

    /// The labels that the Namespace of this name has, or had last; `None`: nothing is known of it.
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
    fn what_is_older_says_nothing_unless_a_list_says_it() {
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
    fn a_namespace_that_is_gone_is_remembered_until_many_others_have_gone() {
        let mut namespaces = Namespaces::default();
        namespaces.gone("never seen");
        namespaces.seen("first".into(), 1, labels("a"), false);
        namespaces.gone("first");
        namespaces.gone("first");
        namespaces.seen("first".into(), 1, labels("b"), false);
        assert_eq!(namespaces.labels("first").unwrap()["team"], "a", "word of its life that comes late");
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
        assert_eq!(namespaces.labels("back").unwrap()["team"], "d", "one that lives again is not forgotten");
        assert!(namespaces.known.len() <= MAX_GONE + 1 && namespaces.gone.len() <= MAX_GONE);
    }
}
