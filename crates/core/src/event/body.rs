//! The bytes of the body. Everything but the time of the attempt is written once and shared by all attempts to all
//! subscribers. `deliveredAt` comes last, so that an attempt appends only this value.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{EventType, id::EventId, json, payload::Data};

/// The maximum size of a body in bytes.
pub const MAX_BYTES: usize = 256 * 1024;

/// The size of `2025-11-08T14:22:31Z"}`, which an attempt appends.
const CLOSING_BYTES: usize = 22;

const DATA: &str = ",\"data\":";
const TRUNCATED: &str = ",\"truncated\":true";
const DELIVERED_AT: &str = ",\"deliveredAt\":\"";
const OCCURRED_AT: &str = ",\"occurredAt\":";

/// A body up to the value of `deliveredAt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OpenBody(String);

/// The members of a body other than its data.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    pub id: EventId,
    pub event: EventType,
    pub occurred_at: Timestamp,
    /// Sequence number of this event for its object, starting at 1.
    pub sequence: u32,
    /// `--cluster-name`, if set.
    pub cluster: Option<&'a str>,
    /// This is a test event.
    pub test: bool,
}

/// Writes everything but the time of the attempt. If the body exceeds [`MAX_BYTES`], `metrics` is dropped first, then
/// the largest members of `data`, one by one, and `"truncated":true` is added.
#[must_use]
pub fn open(envelope: Envelope<'_>, mut data: Data) -> OpenBody {
    let mut truncated = data.truncated;
    loop {
        let text = write(envelope, &data, truncated);
        if text.len() + CLOSING_BYTES <= MAX_BYTES || data.members.is_empty() {
            return OpenBody(text);
        }
        truncated = true;
        let metrics = data.members.iter().position(|(name, _)| *name == "metrics");
        let largest = || (0..data.members.len()).max_by_key(|index| data.members[*index].1.len());
        if let Some(index) = metrics.or_else(largest) {
            data.members.remove(index);
        }
    }
}

fn write(envelope: Envelope<'_>, data: &Data, truncated: bool) -> String {
    let size: usize = data.members.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    let mut out = String::with_capacity(size + 256);
    out.push_str("{\"id\":\"");
    out.push_str(&envelope.id.to_string());
    out.push_str("\",\"event\":\"");
    out.push_str(envelope.event.name());
    out.push('"');
    out.push_str(DATA);
    let members = data.members.iter().map(|(name, value)| (*name, value.as_str()));
    json::write_object(&mut out, members, String::push_str);
    out.push_str(OCCURRED_AT);
    json::write_string(&mut out, &envelope.occurred_at.to_string());
    out.push_str(",\"sequence\":");
    out.push_str(&envelope.sequence.to_string());
    if let Some(cluster) = envelope.cluster {
        out.push_str(",\"cluster\":");
        json::write_string(&mut out, cluster);
    }
    if envelope.test {
        out.push_str(",\"test\":true");
    }
    if truncated {
        out.push_str(TRUNCATED);
    }
    out.push_str(DELIVERED_AT);
    out
}

impl OpenBody {
    /// Returns the whole body of an attempt at this time. The time is written in whole seconds, UTC.
    #[must_use]
    pub fn close(&self, delivered_at: Timestamp) -> String {
        let whole = Timestamp::from_second(delivered_at.as_second()).unwrap_or(delivered_at);
        let mut body = String::with_capacity(self.0.len() + CLOSING_BYTES);
        body.push_str(&self.0);
        body.push_str(&whole.to_string());
        body.push_str("\"}");
        body
    }

    /// Returns the body up to the value of `deliveredAt`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the value of `occurredAt`, or `None` if [`open`] did not write the text.
    #[must_use]
    pub fn occurred_at(&self) -> Option<Timestamp> {
        // The last match belongs to the envelope: no object follows it, and quotes within strings are escaped.
        let (_, value) = self.0.rsplit_once(OCCURRED_AT)?;
        let (value, _) = value.strip_prefix('"')?.split_once('"')?;
        value.parse().ok()
    }

    /// Returns the JSON of `data`, or `None` if [`open`] did not write the text.
    #[must_use]
    pub fn data(&self) -> Option<&str> {
        // The first match belongs to the envelope: only an ID and a name precede it.
        let (_, rest) = self.0.split_once(DATA)?;
        // The last match belongs to the envelope, as in `occurred_at`.
        rest.rsplit_once(OCCURRED_AT).map(|(data, _)| data)
    }

    /// Returns the members between `occurredAt` and `deliveredAt`, from `"sequence":` on, or `None` if [`open`] did not
    /// write the text.
    #[must_use]
    pub fn rest(&self) -> Option<&str> {
        // The last match belongs to the envelope, as in `occurred_at`.
        let (_, rest) = self.0.rsplit_once(OCCURRED_AT)?;
        let (_, rest) = rest.strip_prefix('"')?.split_once("\",")?;
        rest.strip_suffix(DELIVERED_AT)
    }

    /// Reports whether members of `data` were dropped.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.0.strip_suffix(DELIVERED_AT).is_some_and(|rest| rest.ends_with(TRUNCATED))
    }

    /// Restores a body from the text that [`Self::as_str`] returned.
    #[must_use]
    pub fn stored(text: String) -> Self {
        Self(text)
    }

    /// Returns the stored size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Reports whether the stored text is empty, which never happens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::object::Uid;

    #[test]
    fn occurred_at_is_read_from_the_envelope() {
        let false_friend = ",\"occurredAt\":\"2001-01-01T00:00:00Z\"";
        let mut data = Data::default();
        data.text("note", false_friend);
        data.members.push(("metrics", format!("{{\"loss\":1{false_friend}}}")));
        let occurred_at = Timestamp::from_millisecond(1_700_000_000_123).unwrap();
        let id = EventId::of_test(Uid::from_u128(7));
        let event = EventType::TrainingCompleted;
        let envelope = Envelope { id, event, occurred_at, sequence: 1, cluster: Some(false_friend), test: true };
        let body = open(envelope, data);
        assert_eq!(body.occurred_at(), Some(occurred_at));
        assert!(!body.is_truncated());
        let data: serde_json::Value = serde_json::from_str(body.data().unwrap()).unwrap();
        assert_eq!(data["note"], false_friend);
        assert_eq!(OpenBody::stored(body.as_str().to_owned()).occurred_at(), Some(occurred_at));
        assert_eq!(OpenBody::stored("{\"deliveredAt\":\"".into()).occurred_at(), None);
    }
}
