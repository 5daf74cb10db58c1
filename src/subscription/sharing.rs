//! Finds Webhooks that sign with the same key. The receiver of one such Webhook can forge the deliveries of the others.
//! Pure.

use std::collections::{BTreeMap, HashMap};

use super::{reference::Place, secret::KeyReference};
use llmtune_api::webhook_delivery::WebhookKind;
use llmtune_core::event::object::Uid;
use llmtune_core::subscription::WebhookRef;

/// The maximum number of other Webhooks in a note. In a larger group existing notes do not change, so adding or
/// removing one Webhook does not update the status of all others.
const MAX_NAMED: usize = 3;

/// The Webhooks that share a key, ordered by name, and the note of each. `None` for a single Webhook.
type Group = BTreeMap<Member, Option<String>>;

/// The name of a Webhook in notes, and its uid.
type Member = (String, Uid);

/// Groups Webhooks by their signing key.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    places: HashMap<Uid, Place>,
    groups: HashMap<Place, Group>,
}

impl Sharing {
    /// Records the key of a Webhook. Returns the Webhooks whose note has changed, which may include this one.
    pub(super) fn set(&mut self, webhook: &WebhookRef, key: Option<&KeyReference>) -> Vec<Uid> {
        let place = key.map(|key| &key.place);
        if self.places.get(&webhook.uid) == place {
            return Vec::new();
        }
        let mut changed = self.remove(webhook);
        if let Some(place) = place {
            let group = self.groups.entry(place.clone()).or_default();
            let newcomer = member(webhook);
            group.insert(newcomer.clone(), None);
            changed.extend(update_notes(group, place, Some(newcomer)));
            self.places.insert(webhook.uid, place.clone());
        }
        changed
    }

    /// Removes a Webhook. Returns the Webhooks whose note has changed.
    pub(super) fn remove(&mut self, webhook: &WebhookRef) -> Vec<Uid> {
        let Some(place) = self.places.remove(&webhook.uid) else { return Vec::new() };
        let Some(group) = self.groups.get_mut(&place) else { return Vec::new() };
        group.remove(&member(webhook));
        let changed = update_notes(group, &place, None);
        if group.is_empty() {
            self.groups.remove(&place);
        }
        changed
    }

    /// The note for a Webhook. `None` if no other Webhook has its key.
    pub(super) fn note(&self, webhook: &WebhookRef) -> Option<String> {
        let group = self.groups.get(self.places.get(&webhook.uid)?)?;
        group.get(&member(webhook))?.clone()
    }
}

/// Names a `ClusterWebhook` with its kind, because it may share a Secret with a Webhook in the operator's namespace.
fn member(webhook: &WebhookRef) -> Member {
    let name = match webhook.kind {
        WebhookKind::Webhook => webhook.name.clone(),
        WebhookKind::ClusterWebhook => webhook.to_string(),
    };
    (name, webhook.uid)
}

/// Updates the notes of a group: all notes of a small group, only the newcomer's in a large one. Returns the Webhooks
/// whose note has changed.
fn update_notes(group: &mut Group, place: &Place, newcomer: Option<Member>) -> Vec<Uid> {
    let small = group.len() <= MAX_NAMED + 1;
    let affected: Vec<Member> = if small { group.keys().cloned().collect() } else { newcomer.into_iter().collect() };
    let mut changed = Vec::new();
    for member in affected {
        let new = note(group, &member, place);
        if let Some(known) = group.get_mut(&member).filter(|known| **known != new) {
            *known = new;
            changed.push(member.1);
        }
    }
    changed
}

fn note(group: &Group, member: &Member, place: &Place) -> Option<String> {
    let others = group.keys().filter(|other| *other != member);
    let named: Vec<&str> = others.take(MAX_NAMED).map(|(name, _)| name.as_str()).collect();
    if named.is_empty() {
        return None;
    }
    let more = if group.len() - 1 > named.len() { " and others" } else { "" };
    let (secret, key, named) = (&place.object.name, &place.key, named.join(", "));
    Some(format!(
        "key {key:?} of Secret {secret:?} also signs the deliveries of {named}{more}: a receiver of one can forge the others; give each Webhook its own Secret"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscription::reference::{Named, ReferenceKind};
    use llmtune_api::secret::Encoding;

    fn webhook(number: u128) -> WebhookRef {
        let (kind, uid) = (WebhookKind::Webhook, Uid::from_u128(number));
        WebhookRef { kind, uid, home: "ns".into(), name: format!("hook-{number:02}") }
    }

    fn key_in(namespace: &str, secret: &str, key: &str) -> KeyReference {
        let object = Named { kind: ReferenceKind::Secret, namespace: namespace.into(), name: secret.into() };
        let place = Place { object, key: key.into() };
        KeyReference { place, previous: "previous".into(), encoding: Encoding::Raw }
    }

    fn key(secret: &str) -> KeyReference {
        key_in("ns", secret, "secret")
    }

    fn uids<const N: usize>(numbers: [u128; N]) -> Vec<Uid> {
        numbers.map(Uid::from_u128).to_vec()
    }

    #[test]
    fn webhooks_with_the_same_key_get_notes() {
        let mut sharing = Sharing::default();
        assert_eq!(sharing.set(&webhook(1), Some(&key("a"))), []);
        assert_eq!(sharing.set(&webhook(2), Some(&key("b"))), []);
        assert_eq!(sharing.set(&webhook(3), None), []);
        assert_eq!(sharing.note(&webhook(1)), None);
        assert_eq!(sharing.set(&webhook(2), Some(&key("a"))), uids([1, 2]));
        let note = sharing.note(&webhook(1)).unwrap();
        assert!(note.starts_with("key \"secret\" of Secret \"a\" also signs the deliveries of hook-02: "), "{note}");
        assert_eq!(sharing.set(&webhook(2), Some(&key("a"))), [], "nothing has changed");
        let other = key_in("ns", "a", "other");
        assert_eq!(sharing.set(&webhook(3), Some(&other)), [], "another key of the same Secret");
        assert_eq!(sharing.set(&webhook(2), None), uids([1]));
        assert_eq!((sharing.note(&webhook(1)), sharing.note(&webhook(2))), (None, None));
        assert_eq!(sharing.set(&webhook(3), Some(&key("a"))), uids([1, 3]));
        assert_eq!(sharing.remove(&webhook(1)), uids([3]));
        assert_eq!(sharing.note(&webhook(3)), None);
        assert_eq!(sharing.remove(&webhook(3)), []);
        assert!(sharing.groups.is_empty() && sharing.places.is_empty());
    }

    #[test]
    fn cluster_webhook_shares_secrets_of_the_operators_namespace_only() {
        let mut sharing = Sharing::default();
        let cluster = WebhookRef { kind: WebhookKind::ClusterWebhook, home: "system".into(), ..webhook(1) };
        let system = WebhookRef { home: "system".into(), ..webhook(2) };
        assert_eq!(sharing.set(&cluster, Some(&key_in("system", "a", "secret"))), []);
        assert_eq!(sharing.set(&webhook(3), Some(&key("a"))), [], "a Secret of the same name in another namespace");
        assert_eq!(sharing.set(&system, Some(&key_in("system", "a", "secret"))), uids([1, 2]));
        let (note, other) = (sharing.note(&system).unwrap(), sharing.note(&cluster).unwrap());
        assert!(note.contains(" of ClusterWebhook hook-01: "), "{note}");
        assert!(other.contains(" of hook-02: "), "{other}");
    }

    #[test]
    fn notes_of_large_groups_are_short_and_stable() {
        let mut sharing = Sharing::default();
        for number in (0..4).rev() {
            sharing.set(&webhook(number), Some(&key("a")));
        }
        let note = sharing.note(&webhook(3)).unwrap();
        assert!(note.contains(" of hook-00, hook-01, hook-02: "), "{note}");
        for number in (4..2000).rev() {
            assert_eq!(sharing.set(&webhook(number), Some(&key("a"))), uids([number]));
        }
        let note = sharing.note(&webhook(1999)).unwrap();
        assert!(note.contains(" of hook-00, hook-01, hook-02 and others: ") && note.len() < 1000, "{note}");
        for number in 5..2000 {
            assert_eq!(sharing.remove(&webhook(number)), []);
        }
        assert_eq!(sharing.remove(&webhook(4)), [], "the notes of the last four are correct again");
        assert_eq!(sharing.remove(&webhook(0)), uids([1, 2, 3]));
    }
}
