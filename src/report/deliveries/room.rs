//! How many objects each Webhook has and how many bytes of events they hold: whether another finds room. Pure.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;

use super::{MAX_BYTES, MAX_OBJECTS, state::DeliveryEntry};
use llmtune_api::webhook_delivery::WebhookReference;
use llmtune_core::event::object::Uid;

/// Namespace and name of an object.
type Name = (String, String);
/// A Webhook, and the namespace of its objects.
type Owner = (String, WebhookReference);

/// Whether a Webhook may have another object.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    Enough,
    /// These delivered ones make room, the one that would expire first before the others.
    After(Vec<Uid>),
    None,
}

/// The place that an object takes, from before its creation on: under its name, so that it counts once.
#[derive(Debug)]
struct Place {
    /// `None` while it is being created.
    uid: Option<Uid>,
    webhook: Owner,
    bytes: usize,
    /// When it would go by itself, where nothing is lost with it.
    spare: Option<Timestamp>,
}

impl Place {
    /// When the object expires, its uid and its bytes, where it may make room for another.
    fn spare(&self) -> Option<(Timestamp, Uid, usize)> {
        Some((self.spare?, self.uid?, self.bytes))
    }
}

/// What the objects of a Webhook take together.
#[derive(Debug, Default)]
struct Taken {
    count: usize,
    bytes: usize,
    /// The objects that may make room: when each expires, its uid and its bytes.
    spare: BTreeSet<(Timestamp, Uid, usize)>,
}

/// The places of all objects, and what is taken of each Webhook's bounds.
#[derive(Debug, Default)]
pub(super) struct Places {
    places: HashMap<Name, Place>,
    taken: HashMap<Owner, Taken>,
}

impl Places {
    /// Whether an object with so many bytes may be created. As many delivered ones make room as are needed for both bounds to hold; where all of
    /// them together are too few, none does.
    pub(super) fn room(&self, namespace: &str, webhook: &WebhookReference, bytes: usize) -> Room {
        let Some(taken) = self.taken.get(&(namespace.to_owned(), webhook.clone())) else { return Room::Enough };
        let (mut count, mut total) = (taken.count + 1, taken.bytes + bytes);
        let mut makes_room = Vec::new();
        let mut spare = taken.spare.iter();
        while count > MAX_OBJECTS || total > MAX_BYTES {
            let Some((_, uid, freed)) = spare.next() else { return Room::None };
            makes_room.push(*uid);
            count -= 1;
            total -= freed;
        }
        if makes_room.is_empty() { Room::Enough } else { Room::After(makes_room) }
    }

    /// Keeps a place for an object that is to be created.
    pub(super) fn reserve(&mut self, namespace: &str, webhook: WebhookReference, object: &str, bytes: usize) {
        let webhook = (namespace.to_owned(), webhook);
        self.put(name(namespace, object), Place { uid: None, webhook, bytes, spare: None });
    }

    /// Gives a place back whose object has been created, or will not be.
    pub(super) fn release(&mut self, namespace: &str, object: &str) {
        self.take_away(&name(namespace, object), None);
    }

    /// An object is there. While it is being created the place kept for it counts.
    pub(super) fn seen(&mut self, uid: Uid, entry: &DeliveryEntry) {
        let DeliveryEntry { namespace, name: object, webhook, bytes, spent, expires, .. } = entry;
        let object = name(namespace, object);
        if self.places.get(&object).is_some_and(|place| place.uid.is_none()) {
            return;
        }
        let spare = expires.filter(|_| *spent);
        let webhook = (namespace.clone(), webhook.clone());
        self.put(object, Place { uid: Some(uid), webhook, bytes: *bytes, spare });
    }

    /// An object goes.
    pub(super) fn gone(&mut self, uid: Uid, entry: &DeliveryEntry) {
        self.take_away(&name(&entry.namespace, &entry.name), Some(uid));
    }

    fn put(&mut self, object: Name, place: Place) {
        if let Some(before) = self.places.get(&object) {
            self.take_away(&object, before.uid);
        }
        let taken = self.taken.entry(place.webhook.clone()).or_default();
        taken.count += 1;
        taken.bytes += place.bytes;
        taken.spare.extend(place.spare());
        self.places.insert(object, place);
    }

    fn take_away(&mut self, object: &Name, uid: Option<Uid>) {
        if self.places.get(object).is_none_or(|place| place.uid != uid) {
            return;
        }
        let Some(place) = self.places.remove(object) else { return };
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
    fn an_object_counts_once_from_before_its_creation_until_it_goes() {
        let mut places = Places::default();
        let (uid, object) = entry(0, MAX_BYTES - 10, None);
        let room = |places: &Places, bytes| places.room("research", &webhook("ci"), bytes);
        places.reserve("research", webhook("ci"), &object.name, object.bytes);
        assert_eq!((room(&places, 10), room(&places, 11)), (Room::Enough, Room::None));
        let (_, bare) = entry(0, 0, None);
        places.seen(uid, &bare);
        assert_eq!(room(&places, 11), Room::None, "it has not got its event yet, and will");
        places.release("research", &object.name);
        places.seen(uid, &object);
        places.seen(uid, &object);
        assert_eq!((room(&places, 10), room(&places, 11)), (Room::Enough, Room::None));
        assert_eq!(places.room("research", &webhook("other"), 11), Room::Enough);
        assert_eq!(places.room("serving", &webhook("ci"), 11), Room::Enough);
        let namesake = WebhookReference { kind: WebhookKind::ClusterWebhook, ..webhook("ci") };
        assert_eq!(places.room("research", &namesake, 11), Room::Enough);
        places.gone(Uid::from_u128(9), &object);
        assert_eq!(room(&places, 11), Room::None, "another that had its name before");
        places.gone(uid, &object);
        places.gone(uid, &object);
        assert!(places.places.is_empty() && places.taken.is_empty());
    }

    #[test]
    fn of_as_many_objects_as_may_be_the_delivered_one_that_would_go_first_makes_room() {
        let mut places = Places::default();
        for number in 0..MAX_OBJECTS {
            let (uid, object) = entry(number, 1, (number % 100 == 50).then_some(5_000 - number as i64));
            places.seen(uid, &object);
        }
        for oldest in (50..MAX_OBJECTS).step_by(100).rev() {
            let (uid, object) = entry(oldest, 1, None);
            assert_eq!(places.room("research", &webhook("ci"), 1), Room::After(vec![uid]));
            places.gone(uid, &object);
            assert_eq!(places.room("research", &webhook("ci"), 1), Room::Enough);
            places.reserve("research", webhook("ci"), &format!("new-{oldest}"), 1);
        }
        assert_eq!(places.room("research", &webhook("ci"), 1), Room::None, "nothing of what is left is delivered");
    }

    #[test]
    fn several_small_delivered_objects_make_room_for_a_large_one() {
        let mut places = Places::default();
        let room = |places: &Places, bytes| places.room("research", &webhook("ci"), bytes);
        let (full, undelivered) = entry(0, MAX_BYTES - 60, None);
        places.seen(full, &undelivered);
        for number in 1..=3 {
            let (uid, delivered) = entry(number, 20, Some(number as i64));
            places.seen(uid, &delivered);
        }
        let [one, two, three] = [1, 2, 3].map(Uid::from_u128);
        assert_eq!(room(&places, 0), Room::Enough);
        assert_eq!(room(&places, 20), Room::After(vec![one]));
        assert_eq!(room(&places, 21), Room::After(vec![one, two]));
        assert_eq!(room(&places, 60), Room::After(vec![one, two, three]));
        assert_eq!(room(&places, 61), Room::None, "nothing is deleted where that would not be enough");
    }
}
