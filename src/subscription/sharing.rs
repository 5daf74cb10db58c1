//! Which Webhooks sign with one and the same key: the receiver of one can forge what the others get. Pure.

use std::collections::{BTreeMap, HashMap};

use super::{reference::Place, secret::KeyReference};
use llmtune_api::webhook_delivery::WebhookKind;
use llmtune_core::event::object::Uid;
use llmtune_core::subscription::WebhookRef;

/// A note names at most this many others. In a larger group nobody's note changes any more, so that one Webhook that comes or
/// goes costs the others nothing, however many there are.
const NAMED: usize = 3;

/// Webhooks by name; with each what it is told: `None` where it is alone.
type Group = BTreeMap<Member, Option<String>>;

/// A Webhook, as the others are told of it.
type Member = (String, Uid);

/// Webhooks by the key that they name.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    places: HashMap<Uid, Place>,
    groups: HashMap<Place, Group>,
}

impl Sharing {
    /// Takes in that a Webhook names this key, or none. Returns those whose note has changed, itself included.
    pub(super) fn names(&mut self, webhook: &WebhookRef, key: Option<&KeyReference>) -> Vec<Uid> {
        let place = key.map(|key| &key.place);
        if self.places.get(&webhook.uid) == place {
            return Vec::new();
        }
        let mut changed = self.goes(webhook);
        if let Some(place) = place {
            let group = self.groups.entry(place.clone()).or_default();
            let newcomer = member(webhook);
            group.insert(newcomer.clone(), None);
            changed.extend(tell(group, place, Some(newcomer)));
            self.places.insert(webhook.uid, place.clone());
        }
        changed
    }

    /// Takes in that a Webhook is gone. Returns those whose note has changed.
    pub(super) fn goes(&mut self, webhook: &WebhookRef) -> Vec<Uid> {
        let Some(place) = self.places.remove(&webhook.uid) else { return Vec::new() };
        let Some(group) = self.groups.get_mut(&place) else { return Vec::new() };
        group.remove(&member(webhook));
        let changed = tell(group, &place, None);
        if group.is_empty() {
            self.groups.remove(&place);
        }
        changed
    }

    /// What a Webhook is to be told; `None` where it shares its key with nobody.
    pub(super) fn note(&self, webhook: &WebhookRef) -> Option<String> {
        let group = self.groups.get(self.places.get(&webhook.uid)?)?;
        group.get(&member(webhook))?.clone()
    }
}

/// A `ClusterWebhook` is told apart from a Webhook of the operator's namespace, whose Secrets it may share.
fn member(webhook: &WebhookRef) -> Member {
    let name = match webhook.kind {
        WebhookKind::Webhook => webhook.name.clone(),
        WebhookKind::ClusterWebhook => webhook.to_string(),
    };
    (name, webhook.uid)
}

/// Writes the notes of a group anew: all of a small one, of a large one the newcomer's. Returns whose have changed.
fn tell(group: &mut Group, place: &Place, newcomer: Option<Member>) -> Vec<Uid> {
    let small = group.len() <= NAMED + 1;
    let told: Vec<Member> = if small { group.keys().cloned().collect() } else { newcomer.into_iter().collect() };
    let mut changed = Vec::new();
    for member in told {
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
    let named: Vec<&str> = others.take(NAMED).map(|(name, _)| name.as_str()).collect();
    if named.is_empty() {
        return None;
    }
    let more = if group.len() - 1 > named.len() { " and others" } else { "" };
    let (secret, key, named) = (&place.object.name, &place.key, named.join(", "));
    Some(format!(
        "key {key:?} of Secret {secret:?} also signs the deliveries of {named}{more}: whoever verifies one can forge the others; give each Webhook a Secret of its own"
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
    fn those_that_share_a_key_are_told_of_each_other_and_again_when_they_share_anew() {
        let mut sharing = Sharing::default();
        assert_eq!(sharing.names(&webhook(1), Some(&key("a"))), []);
        assert_eq!(sharing.names(&webhook(2), Some(&key("b"))), []);
        assert_eq!(sharing.names(&webhook(3), None), []);
        assert_eq!(sharing.note(&webhook(1)), None);
        assert_eq!(sharing.names(&webhook(2), Some(&key("a"))), uids([1, 2]));
        let note = sharing.note(&webhook(1)).unwrap();
        assert!(note.starts_with("key \"secret\" of Secret \"a\" also signs the deliveries of hook-02: "), "{note}");
        assert_eq!(sharing.names(&webhook(2), Some(&key("a"))), [], "nothing has changed");
        let other = key_in("ns", "a", "other");
        assert_eq!(sharing.names(&webhook(3), Some(&other)), [], "another key of the same Secret");
        assert_eq!(sharing.names(&webhook(2), None), uids([1]));
        assert_eq!((sharing.note(&webhook(1)), sharing.note(&webhook(2))), (None, None));
        assert_eq!(sharing.names(&webhook(3), Some(&key("a"))), uids([1, 3]));
        assert_eq!(sharing.goes(&webhook(1)), uids([3]));
        assert_eq!(sharing.note(&webhook(3)), None);
        assert_eq!(sharing.goes(&webhook(3)), []);
        assert!(sharing.groups.is_empty() && sharing.places.is_empty());
    }

    #[test]
    fn a_cluster_webhook_shares_the_secrets_of_the_operator_s_namespace_alone() {
        let mut sharing = Sharing::default();
        let cluster = WebhookRef { kind: WebhookKind::ClusterWebhook, home: "system".into(), ..webhook(1) };
        let system = WebhookRef { home: "system".into(), ..webhook(2) };
        assert_eq!(sharing.names(&cluster, Some(&key_in("system", "a", "secret"))), []);
        assert_eq!(sharing.names(&webhook(3), Some(&key("a"))), [], "a Secret of the same name in another namespace");
        assert_eq!(sharing.names(&system, Some(&key_in("system", "a", "secret"))), uids([1, 2]));
        let (note, other) = (sharing.note(&system).unwrap(), sharing.note(&cluster).unwrap());
        assert!(note.contains(" of ClusterWebhook hook-01: "), "{note}");
        assert!(other.contains(" of hook-02: "), "{other}");
    }

    #[test]
    fn in_a_large_group_a_note_is_short_and_whoever_comes_or_goes_changes_nobody_elses() {
        let mut sharing = Sharing::default();
        for number in (0..4).rev() {
            sharing.names(&webhook(number), Some(&key("a")));
        }
        let note = sharing.note(&webhook(3)).unwrap();
        assert!(note.contains(" of hook-00, hook-01, hook-02: "), "{note}");
        for number in (4..2000).rev() {
            assert_eq!(sharing.names(&webhook(number), Some(&key("a"))), uids([number]));
        }
        let note = sharing.note(&webhook(1999)).unwrap();
        assert!(note.contains(" of hook-00, hook-01, hook-02 and others: ") && note.len() < 1000, "{note}");
        for number in 5..2000 {
            assert_eq!(sharing.goes(&webhook(number)), []);
        }
        assert_eq!(sharing.goes(&webhook(4)), [], "what the last four were told is so again");
        assert_eq!(sharing.goes(&webhook(0)), uids([1, 2, 3]));
    }
}
