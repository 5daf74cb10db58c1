//! Counts the objects of each Webhook and the bytes of their events, and decides whether another object fits. Pure.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;

use super::{MAX_BYTES, MAX_OBJECTS, state::DeliveryEntry};
use llmtune_api::webhook_delivery::WebhookReference;
use llmtune_core::event::object::Uid;

/// Namespace and name of an object.
type Name = (String, String);
/// A Webhook, and the namespace of its objects.
type Owner = (String, WebhookReference);

/// Whether another object fits.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Capacity {
    Enough,
    /// It fits after these delivered objects are deleted, in order of expiry.
    After(Vec<Uid>),
    None,
}

/// The reservation of an object, which begins before its creation. It has the object's name, so that the object counts
/// once.
#[derive(Debug)]
struct Place {
    /// `None` while the object is being created.
    uid: Option<Uid>,
    webhook: Owner,
    bytes: usize,
    /// When the object expires, if it may be deleted early.
    spare: Option<Timestamp>,
}

impl Place {
    /// Returns the object's expiry, uid and bytes if it may be deleted early.
    fn spare(&self) -> Option<(Timestamp, Uid, usize)> {
        Some((self.spare?, self.uid?, self.bytes))
    }
}

/// The objects of one Webhook together.
#[derive(Debug, Default)]
struct Taken {
    count: usize,
    bytes: usize,
    /// The objects that may be deleted early: expiry, uid and bytes.
    spare: BTreeSet<(Timestamp, Uid, usize)>,
}

/// The reservations of all objects, and the usage of each Webhook.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    reservations: HashMap<Name, Place>,
    taken: HashMap<Owner, Taken>,
}

impl Reservations {
    /// Decides whether an object of this size fits. As many delivered objects are deleted as both bounds need. If all
    /// of them are not enough, none is deleted.
    pub(super) fn capacity(&self, namespace: &str, webhook: &WebhookReference, bytes: usize) -> Capacity {
        let Some(taken) = self.taken.get(&(namespace.to_owned(), webhook.clone())) else { return Capacity::Enough };
        let (mut count, mut total) = (taken.count + 1, taken.bytes + bytes);
        let mut makes_room = Vec::new();
        let mut spare = taken.spare.iter();
        while count > MAX_OBJECTS || total > MAX_BYTES {
            let Some((_, uid, freed)) = spare.next() else { return Capacity::None };
            makes_room.push(*uid);
            count -= 1;
            total -= freed;
        }
        if makes_room.is_empty() { Capacity::Enough } else { Capacity::After(makes_room) }
    }

    /// Reserves capacity for an object that is to be created.
    pub(super) fn reserve(&mut self, namespace: &str, webhook: WebhookReference, object: &str, bytes: usize) {
        let webhook = (namespace.to_owned(), webhook);
        self.put(name(namespace, object), Place { uid: None, webhook, bytes, spare: None });
    }

    /// Releases the reservation of an object that was created, or will not be.
    pub(super) fn release(&mut self, namespace: &str, object: &str) {
        self.take_away(&name(namespace, object), None);
    }

    /// Counts an existing object. While it is being created, its reservation counts.
    pub(super) fn seen(&mut self, uid: Uid, entry: &DeliveryEntry) {
        let DeliveryEntry { namespace, name: object, webhook, bytes, spent, expires, .. } = entry;
        let object = name(namespace, object);
        if self.reservations.get(&object).is_some_and(|place| place.uid.is_none()) {
            return;
        }
        let spare = expires.filter(|_| *spent);
        let webhook = (namespace.clone(), webhook.clone());
        self.put(object, Place { uid: Some(uid), webhook, bytes: *bytes, spare });
    }

    /// Removes a deleted object.
    pub(super) fn gone(&mut self, uid: Uid, entry: &DeliveryEntry) {
        self.take_away(&name(&entry.namespace, &entry.name), Some(uid));
    }

    fn put(&mut self, object: Name, place: Place) {
        if let Some(before) = self.reservations.get(&object) {
            self.take_away(&object, before.uid);
        }
        let taken = self.taken.entry(place.webhook.clone()).or_default();
        taken.count += 1;
        taken.bytes += place.bytes;
        taken.spare.extend(place.spare());
        self.reservations.insert(object, place);
    }

    fn take_away(&mut self, object: &Name, uid: Option<Uid>) {
        if self.reservations.get(object).is_none_or(|place| place.uid != uid) {
            return;
        }
        let Some(place) = self.reservations.remove(object) else { return };
        let Some(taken) = self.taken.get_mut(&place.webhook) else { return };
        taken.count -= 1;
        taken.bytes -= place.bytes;
        if let Some(spare) = place.spare() {
            taken.spare.remove(&spare);
        }
        if taken.count == 0 {
            self.taken.remove(&place.webhook);
        }
    }
}

fn name(namespace: &str, name: &str) -> Name {
    (namespace.to_owned(), name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use llmtune_api::webhook_delivery::WebhookKind;

    fn webhook(name: &str) -> WebhookReference {
        WebhookReference { kind: WebhookKind::Webhook, name: name.into() }
    }

    fn entry(number: usize, bytes: usize, delivered_until: Option<i64>) -> (Uid, DeliveryEntry) {
        let entry = DeliveryEntry {
            version: 1,
            namespace: "research".into(),
            name: format!("dlv-{number}"),
            webhook: webhook("ci"),
            bytes,
            spent: delivered_until.is_some(),
            expires: Some(Timestamp::from_second(delivered_until.unwrap_or(1)).unwrap()),
            empty_request: false,
        };
        (Uid::from_u128(number as u128), entry)
    }

    #[test]
    fn object_counts_once_from_reservation_to_deletion() {
        let mut reservations = Reservations::default();
        let (uid, object) = entry(0, MAX_BYTES - 10, None);
        let capacity = |reservations: &Reservations, bytes| reservations.capacity("research", &webhook("ci"), bytes);
        reservations.reserve("research", webhook("ci"), &object.name, object.bytes);
        assert_eq!((capacity(&reservations, 10), capacity(&reservations, 11)), (Capacity::Enough, Capacity::None));
        let (_, bare) = entry(0, 0, None);
        reservations.seen(uid, &bare);
        assert_eq!(capacity(&reservations, 11), Capacity::None, "its event is still to be written");
        reservations.release("research", &object.name);
        reservations.seen(uid, &object);
        reservations.seen(uid, &object);
        assert_eq!((capacity(&reservations, 10), capacity(&reservations, 11)), (Capacity::Enough, Capacity::None));
        assert_eq!(reservations.capacity("research", &webhook("other"), 11), Capacity::Enough);
        assert_eq!(reservations.capacity("serving", &webhook("ci"), 11), Capacity::Enough);
        let namesake = WebhookReference { kind: WebhookKind::ClusterWebhook, ..webhook("ci") };
        assert_eq!(reservations.capacity("research", &namesake, 11), Capacity::Enough);
        reservations.gone(Uid::from_u128(9), &object);
        assert_eq!(capacity(&reservations, 11), Capacity::None, "another object that had its name before");
        reservations.gone(uid, &object);
        reservations.gone(uid, &object);
        assert!(reservations.reservations.is_empty() && reservations.taken.is_empty());
    }

    #[test]
    fn delivered_object_that_expires_first_is_deleted_at_the_bound() {
        let mut reservations = Reservations::default();
        for number in 0..MAX_OBJECTS {
            let (uid, object) = entry(number, 1, (number % 100 == 50).then_some(5_000 - number as i64));
            reservations.seen(uid, &object);
        }
        for oldest in (50..MAX_OBJECTS).step_by(100).rev() {
            let (uid, object) = entry(oldest, 1, None);
            assert_eq!(reservations.capacity("research", &webhook("ci"), 1), Capacity::After(vec![uid]));
            reservations.gone(uid, &object);
            assert_eq!(reservations.capacity("research", &webhook("ci"), 1), Capacity::Enough);
            reservations.reserve("research", webhook("ci"), &format!("new-{oldest}"), 1);
        }
        assert_eq!(
            reservations.capacity("research", &webhook("ci"), 1),
            Capacity::None,
            "no remaining object is delivered"
        );
    }

    #[test]
    fn several_small_delivered_objects_are_deleted_for_a_large_one() {
        let mut reservations = Reservations::default();
        let capacity = |reservations: &Reservations, bytes| reservations.capacity("research", &webhook("ci"), bytes);
        let (full, undelivered) = entry(0, MAX_BYTES - 60, None);
        reservations.seen(full, &undelivered);
        for number in 1..=3 {
            let (uid, delivered) = entry(number, 20, Some(number as i64));
            reservations.seen(uid, &delivered);
        }
        let [one, two, three] = [1, 2, 3].map(Uid::from_u128);
        assert_eq!(capacity(&reservations, 0), Capacity::Enough);
        assert_eq!(capacity(&reservations, 20), Capacity::After(vec![one]));
        assert_eq!(capacity(&reservations, 21), Capacity::After(vec![one, two]));
        assert_eq!(capacity(&reservations, 60), Capacity::After(vec![one, two, three]));
        assert_eq!(capacity(&reservations, 61), Capacity::None, "nothing is deleted if that is not enough");
    }
}
