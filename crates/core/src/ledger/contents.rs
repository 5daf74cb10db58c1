//! The contents of a segment and their encoding: JSON, compressed with zstd, in base64.

use std::{borrow::Cow, fmt, io, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde::{
    Deserialize, Serialize, Serializer,
    de::{MapAccess, Visitor},
};

use super::record::Record;
use crate::event::{
    Event, EventType,
    body::OpenBody,
    format::Forms,
    id::EventId,
    object::{Object, Uid},
    unknown::Unknown,
};

/// The maximum size of a segment's JSON in bytes. It bounds the memory that reading a segment takes, however well it
/// was compressed.
pub(super) const MAX_TEXT: usize = 1 << 24;
/// The zstd window never needs to be larger than the whole JSON.
const MAX_WINDOW_LOG: u32 = MAX_TEXT.ilog2();
const LEVEL: i32 = 3;

/// A watch, to which records belong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchEntry {
    /// The source, namespace and selector.
    pub watch: String,
    /// The epoch in which its records were last rebuilt from scratch. Records belong to this name and this epoch.
    pub epoch: u64,
    /// Everything up to this `resourceVersion` has been processed; 0 if no list was ever complete.
    pub position: u64,
    /// The resource was not installed. When it is, every object of it is new.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub absent: bool,
    /// Everything that existed at this time has been processed. The time is by the apiserver's clock, less the clock
    /// tolerance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Timestamp>,
    /// The time since which the resource has not been served while its records are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_since: Option<Timestamp>,
    /// The newest complete flush that events waited for. It is the same in all watches; 0 if no event ever waited.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flush: u64,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The watch name and epoch that a record belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    pub watch: String,
    pub epoch: u64,
}

/// The current state of a record; `None` if it is removed.
#[derive(Clone, Debug)]
pub struct RecordEntry {
    pub group: Arc<Group>,
    pub uid: Uid,
    pub record: Option<Record>,
}

/// The current state of an event's deliveries. Without deliveries, the event is removed.
#[derive(Clone, Debug)]
pub struct EventEntry {
    pub id: EventId,
    /// The event; `None` if an earlier segment holds it.
    pub event: Option<Arc<Event>>,
    /// The event counts once this complete flush, or a record that counts it, is committed. It is not attempted before.
    /// 0: it counts at once.
    pub after: u64,
    /// The position of the event in the order of all events, independent of the clocks of different leaders.
    pub order: u64,
    pub deliveries: Vec<DeliveryEntry>,
    pub unknown: Unknown,
}

impl EventEntry {
    /// Creates the entry of a removed event.
    #[must_use]
    pub const fn gone(id: EventId) -> Self {
        Self { id, event: None, after: 0, order: 0, deliveries: Vec::new(), unknown: Unknown::NONE }
    }
}

/// A delivery that is not acknowledged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryEntry {
    /// The Webhook's UID.
    pub webhook: Uid,
    /// The number of failed attempts.
    #[serde(default)]
    pub failed: u32,
    /// The time of the next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Timestamp>,
    /// The wait from which the time of the next attempt was computed, in milliseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub wait_millis: u64,
    /// Set for a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<GivenUp>,
    /// The owner of the delivery (see `subscription::owner`). If the Webhook is deleted and created again, the new one
    /// takes it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Box<str>>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl DeliveryEntry {
    /// Creates the entry of a delivery without attempts.
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
    /// The number of attempts.
    pub attempts: u32,
    /// The status code of the last answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
    /// The error of the last attempt, at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl GivenUp {
    /// Describes a delivery that was given up without an attempt.
    #[must_use]
    pub const fn unattempted(reason: Reason, at: Timestamp) -> Self {
        Self { reason, at, attempts: 0, status_code: None, error: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// All retries failed.
    Exhausted,
    /// The endpoint answered 410 Gone.
    EndpointGone,
    /// The bound on pending deliveries was reached.
    BoundReached,
    /// The Namespace of the event's object is unknown, so the selector of the Webhook cannot be evaluated.
    NamespaceUnknown,
}

impl Reason {
    /// Returns the reason of the condition of the dead letter's object.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exhausted => "Exhausted",
            Self::EndpointGone => "EndpointGone",
            Self::BoundReached => "BoundReached",
            Self::NamespaceUnknown => "NamespaceUnknown",
        }
    }

    /// Returns the message of that condition.
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::Exhausted => "the endpoint did not acknowledge the delivery within its retries",
            Self::EndpointGone => "the endpoint answered 410 Gone",
            Self::BoundReached => "too many deliveries were pending",
            Self::NamespaceUnknown => {
                "the namespace of the object was deleted, so spec.namespaceSelector could not be evaluated"
            }
        }
    }
}

/// The contents of a segment, in the order in which they may be split.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    pub events: Vec<EventEntry>,
    pub records: Vec<RecordEntry>,
    /// Removed records. They are committed together with the positions: if the log reports a deleted object again and
    /// its record is missing, the object would count as new.
    pub gone: Vec<RecordEntry>,
    /// All watches. Present only if everything that their positions cover is in these contents or already committed.
    pub watches: Option<Vec<WatchEntry>>,
}

impl Contents {
    /// Returns the number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len() + self.records.len() + self.gone.len()
    }

    /// Reports whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.watches.is_none()
    }

    /// Splits off the second half of the entries and the positions.
    #[must_use]
    pub fn split_off_half(&mut self) -> Self {
        let mut rest = Self { watches: self.watches.take(), ..Self::default() };
        // At least one entry, so that each part is smaller than the whole.
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

    /// Reduces the only record to what it needs: first it drops the facts for a deletion event, then the labels that
    /// selectors use. Returns false if there is nothing to drop.
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

    /// Adds entries that did not fit into a snapshot before those of a flush.
    pub fn prepend(&mut self, mut other: Self) {
        other.events.append(&mut self.events);
        other.records.append(&mut self.records);
        self.events = other.events;
        self.records = other.records;
    }
}

/// The error for a segment that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("its data is not valid base64: {0}")]
    Base64(#[from] base64::DecodeError),
    #[error("its data cannot be decompressed: {0}")]
    Zstd(#[from] io::Error),
    #[error("its data decompresses to more than {MAX_TEXT} bytes")]
    TooLong,
    #[error("its data cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

/// The JSON of a segment.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Text<'a> {
    /// The UID of the namespace that contains the ledger.
    pub(super) home: Uid,
    /// The shard number, for a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) shard: Option<usize>,
    /// This segment is a claim. Its leader replaces it with its first changes; until then the next leader may claim the
    /// same place.
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
    /// Reports whether this is a claim after which its leader wrote nothing.
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
    /// Returns the event, or `None` if this release does not know its type.
    pub(super) fn read(self, id: EventId) -> Option<Event> {
        let event_type = EventType::parse(&self.event_type)?;
        Some(Event {
            id,
            event_type,
            object: Arc::new(Object::of_event(
                event_type,
                self.uid,
                self.namespace.into_owned(),
                self.name.into_owned(),
            )),
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

/// Records by UID. A map in JSON, a list in memory.
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

/// The encoded data of a segment.
pub(super) struct Packed {
    pub(super) data: String,
    /// The size of its JSON in bytes.
    pub(super) text: usize,
}

/// Encodes the contents of one segment.
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

/// Encodes a claim.
pub(super) fn pack_claim(home: Uid) -> Result<Packed, Unreadable> {
    pack_text(&Text { home, shard: None, claim: true, events: Vec::new(), records: Vec::new(), watches: None })
}

fn pack_text(text: &Text<'_>) -> Result<Packed, Unreadable> {
    let json = serde_json::to_vec(text)?;
    Ok(Packed { data: STANDARD.encode(zstd::bulk::compress(&json, LEVEL)?), text: json.len() })
}

/// Decodes the data of a segment to JSON.
pub(super) fn unpack(data: &str) -> Result<Vec<u8>, Unreadable> {
    let packed = STANDARD.decode(data)?;
    let mut json = Vec::new();
    let mut decoder = zstd::stream::read::Decoder::new(&packed[..])?;
    decoder.window_log_max(MAX_WINDOW_LOG)?;
    io::Read::read_to_end(&mut io::Read::take(decoder, MAX_TEXT as u64 + 1), &mut json)?;
    if json.len() > MAX_TEXT { Err(Unreadable::TooLong) } else { Ok(json) }
}
