//! What a segment holds, and how it is written: JSON, compressed with zstd, in base64.

use std::{borrow::Cow, fmt, io, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde::{
    Deserialize, Serialize, Serializer,
    de::{MapAccess, Visitor},
};

use super::record::Record;
use crate::event::{Event, EventType, body::OpenBody, format::Forms, id::EventId, object::Uid, unknown::Unknown};

/// No segment's text is longer, so that reading one takes no more memory however well it was compressed.
pub(super) const MAX_TEXT: usize = 1 << 24;
/// zstd's window reaches no further back than a whole text.
const MAX_WINDOW_LOG: u32 = MAX_TEXT.ilog2();
const LEVEL: i32 = 3;

/// A watch, and what its records belong to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchEntry {
    /// Source, namespace and selector.
    pub watch: String,
    /// When its records were last built anew: they belong to this name and this number.
    pub epoch: u64,
    /// Everything up to this `resourceVersion` has been passed; 0: no list was ever complete.
    pub position: u64,
    /// Its resource was not installed: when it comes, everything of it is new.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub absent: bool,
    /// Everything that existed at this time has been passed: by the apiserver's clock, less what clocks may differ by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Timestamp>,
    /// Since when its resource has not been served, where records of it are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_since: Option<Timestamp>,
    /// The newest complete flush that events waited for; the same in all watches, 0 where none ever did.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flush: u64,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What records belong to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    pub watch: String,
    pub epoch: u64,
}

/// A record as it is now; `None`: it is gone.
#[derive(Clone, Debug)]
pub struct RecordEntry {
    pub group: Arc<Group>,
    pub uid: Uid,
    pub record: Option<Record>,
}

/// An event's deliveries as they are now; none: it is done with.
#[derive(Clone, Debug)]
pub struct EventEntry {
    pub id: EventId,
    /// The event; `None` where a segment before this one holds it.
    pub event: Option<Arc<Event>>,
    /// It counts once this complete flush has landed, or a record that knows of it: until then nobody was told of it. 0: at once.
    pub after: u64,
    /// Events that wait were told in the order of these numbers, whatever the clocks of those who told them.
    pub order: u64,
    pub deliveries: Vec<DeliveryEntry>,
    pub unknown: Unknown,
}

impl EventEntry {
    /// An event that is done with.
    #[must_use]
    pub const fn gone(id: EventId) -> Self {
        Self { id, event: None, after: 0, order: 0, deliveries: Vec::new(), unknown: Unknown::NONE }
    }
}

/// A delivery that is not acknowledged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryEntry {
    /// The Webhook's uid.
    pub webhook: Uid,
    /// Attempts that failed.
    #[serde(default)]
    pub failed: u32,
    /// When the next attempt is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Timestamp>,
    /// The wait that the due time came from, in milliseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub wait_millis: u64,
    /// It is given up, and waits to become an object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<GivenUp>,
    /// Who it belongs to (`subscription::owner`): a Webhook that is deleted and created again takes it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Box<str>>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl DeliveryEntry {
    /// A delivery that nothing has happened to.
    #[must_use]
    pub const fn new(webhook: Uid) -> Self {
        Self { webhook, failed: 0, due: None, wait_millis: 0, given_up: None, owner: None, unknown: Unknown::NONE }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Why and when a delivery was given up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GivenUp {
    pub reason: Reason,
    pub at: Timestamp,
    /// Attempts that were made.
    pub attempts: u32,
    /// Of the last of them: the answer's status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
    /// Of the last of them: what went wrong, in at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl GivenUp {
    /// Given up without an attempt.
    #[must_use]
    pub const fn unattempted(reason: Reason, at: Timestamp) -> Self {
        Self { reason, at, attempts: 0, status_code: None, error: None }
    }
}

/// Why a delivery was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// All retries failed.
    Exhausted,
    /// The endpoint answered 410 Gone.
    EndpointGone,
    /// The bound on pending deliveries was reached.
    BoundReached,
    /// Nothing is known of the Namespace of the event's object, so that it cannot be told whether the Webhook selects it.
    NamespaceUnknown,
}

impl Reason {
    /// The reason of the conditions of what is kept.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exhausted => "Exhausted",
            Self::EndpointGone => "EndpointGone",
            Self::BoundReached => "BoundReached",
            Self::NamespaceUnknown => "NamespaceUnknown",
        }
    }

    /// The same in words.
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::Exhausted => "the endpoint did not acknowledge the delivery within its retries",
            Self::EndpointGone => "the endpoint answered 410 Gone",
            Self::BoundReached => "too many deliveries were pending for another to wait",
            Self::NamespaceUnknown => {
                "the namespace of its object is gone, and whether spec.namespaceSelector selects it is not known"
            }
        }
    }
}

/// What a segment holds, in the order in which it may be split.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    pub events: Vec<EventEntry>,
    pub records: Vec<RecordEntry>,
    /// Records that are gone. They land with the positions: an object whose deletion is seen again without its record would be
    /// told from its beginning.
    pub gone: Vec<RecordEntry>,
    /// All watches; only where everything that they have passed is here or has landed.
    pub watches: Option<Vec<WatchEntry>>,
}

impl Contents {
    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len() + self.records.len() + self.gone.len()
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.watches.is_none()
    }

    /// Takes the second half of the entries away, with the positions.
    #[must_use]
    pub fn split_off_half(&mut self) -> Self {
        let mut rest = Self { watches: self.watches.take(), ..Self::default() };
        // At least one, so that each part is smaller than the whole.
        let half = ((self.len() - self.gone.len()) / 2).max(1);
        if self.events.is_empty() && self.records.is_empty() {
            rest.gone = self.gone.split_off(self.gone.len() / 2);
            return rest;
        }
        rest.gone = std::mem::take(&mut self.gone);
        if half < self.events.len() {
            rest.events = self.events.split_off(half);
            rest.records = std::mem::take(&mut self.records);
        } else {
            rest.records = self.records.split_off(half - self.events.len());
        }
        rest
    }

    /// Takes from the one record that is left what it can do without: what its object's going would tell, and then its labels, by which
    /// that is selected. False where there is nothing to take.
    #[must_use]
    pub fn lighten(&mut self) -> bool {
        let [RecordEntry { record: Some(record), .. }] = &mut self.records[..] else { return false };
        let Some(last) = &mut record.last else { return false };
        let mut outline = last.outline();
        if outline == **last {
            outline.labels.clear();
        }
        let lighter = outline != **last;
        *last = Arc::new(outline);
        lighter
    }

    /// Puts what a snapshot had no room for before what a flush holds.
    pub fn prepend(&mut self, mut other: Self) {
        other.events.append(&mut self.events);
        other.records.append(&mut self.records);
        self.events = other.events;
        self.records = other.records;
    }
}

/// Why a segment cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("its data is no base64: {0}")]
    Base64(#[from] base64::DecodeError),
    #[error("its data cannot be unpacked: {0}")]
    Zstd(#[from] io::Error),
    #[error("its data unpacks to more than {MAX_TEXT} bytes")]
    TooLong,
    #[error("its data cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

/// A segment's text.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Text<'a> {
    /// The uid of the namespace that the ledger lives in.
    pub(super) home: Uid,
    /// Of a snapshot: which part of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) shard: Option<usize>,
    /// It is a claim: its leader writes its first changes in its place, and the next leader may claim there until then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) claim: bool,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    pub(super) events: Vec<EventText<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    pub(super) records: Vec<GroupText<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) watches: Option<Vec<WatchEntry>>,
}

impl Text<'_> {
    /// Whether it is a claim after which its leader has written nothing.
    pub(super) const fn is_empty_claim(&self) -> bool {
        self.claim && self.events.is_empty() && self.records.is_empty() && self.watches.is_none()
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct EventText<'a> {
    pub(super) id: EventId,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(super) event: Option<EventBody<'a>>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) after: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) order: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) deliveries: Vec<DeliveryEntry>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EventBody<'a> {
    #[serde(rename = "type")]
    event_type: Cow<'a, str>,
    uid: Uid,
    namespace: Cow<'a, str>,
    name: Cow<'a, str>,
    sequence: u32,
    observed_at: Timestamp,
    body: Cow<'a, str>,
}

impl EventBody<'_> {
    /// The event; `None` where this release does not know its type.
    pub(super) fn read(self, id: EventId) -> Option<Event> {
        let event_type = EventType::parse(&self.event_type)?;
        Some(Event {
            id,
            event_type,
            object: Arc::new(event_type.outline(self.uid, self.namespace.into_owned(), self.name.into_owned())),
            observed_at: self.observed_at,
            sequence: self.sequence,
            body: OpenBody::stored(self.body.into_owned()),
            forms: Forms::default(),
        })
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct GroupText<'a> {
    #[serde(borrow)]
    pub(super) watch: Cow<'a, str>,
    pub(super) epoch: u64,
    #[serde(default, skip_serializing_if = "Objects::is_empty")]
    pub(super) objects: Objects<'a>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) gone: Vec<Uid>,
}

/// Records by uid: a map in the text, a list here.
#[derive(Default)]
pub(super) struct Objects<'a>(pub(super) Vec<(Uid, Cow<'a, Record>)>);

impl Objects<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Objects<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(uid, record)| (uid, record)))
    }
}

impl<'de> Deserialize<'de> for Objects<'_> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Vec<(Uid, Cow<'static, Record>)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("records by uid")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((uid, record)) = map.next_entry()? {
                    entries.push((uid, Cow::Owned(record)));
                }
                Ok(entries)
            }
        }

        Ok(Self(deserializer.deserialize_map(Entries)?))
    }
}

/// A segment's data.
pub(super) struct Packed {
    pub(super) data: String,
    /// Its text's length.
    pub(super) text: usize,
}

/// Writes the contents of one segment.
pub(super) fn pack(home: Uid, shard: Option<usize>, contents: &Contents) -> Result<Packed, Unreadable> {
    let events = contents.events.iter().map(|entry| EventText {
        id: entry.id,
        event: entry.event.as_deref().map(|event| EventBody {
            event_type: event.event_type.name().into(),
            uid: event.object.uid,
            namespace: event.object.namespace.as_str().into(),
            name: event.object.name.as_str().into(),
            sequence: event.sequence,
            observed_at: event.observed_at,
            body: event.body.as_str().into(),
        }),
        after: entry.after,
        order: entry.order,
        deliveries: entry.deliveries.clone(),
        unknown: entry.unknown.clone(),
    });
    let mut records: Vec<GroupText<'_>> = Vec::new();
    for RecordEntry { group, uid, record } in contents.records.iter().chain(&contents.gone) {
        let known = records.iter().rposition(|text| text.watch == group.watch && text.epoch == group.epoch);
        let at = known.unwrap_or_else(|| {
            let Group { watch, epoch } = &**group;
            let (watch, epoch) = (watch.as_str().into(), *epoch);
            records.push(GroupText { watch, epoch, objects: Objects::default(), gone: Vec::new() });
            records.len() - 1
        });
        match record {
            Some(record) => records[at].objects.0.push((*uid, Cow::Borrowed(record))),
            None => records[at].gone.push(*uid),
        }
    }
    let watches = contents.watches.clone();
    pack_text(&Text { home, shard, claim: false, events: events.collect(), records, watches })
}

/// Writes a claim.
pub(super) fn pack_claim(home: Uid) -> Result<Packed, Unreadable> {
    pack_text(&Text { home, shard: None, claim: true, events: Vec::new(), records: Vec::new(), watches: None })
}

fn pack_text(text: &Text<'_>) -> Result<Packed, Unreadable> {
    let json = serde_json::to_vec(text)?;
    Ok(Packed { data: STANDARD.encode(zstd::bulk::compress(&json, LEVEL)?), text: json.len() })
}

/// The JSON of a segment's data.
pub(super) fn unpack(data: &str) -> Result<Vec<u8>, Unreadable> {
    let packed = STANDARD.decode(data)?;
    let mut json = Vec::new();
    let mut decoder = zstd::stream::read::Decoder::new(&packed[..])?;
    decoder.window_log_max(MAX_WINDOW_LOG)?;
    io::Read::read_to_end(&mut io::Read::take(decoder, MAX_TEXT as u64 + 1), &mut json)?;
    if json.len() > MAX_TEXT { Err(Unreadable::TooLong) } else { Ok(json) }
}
