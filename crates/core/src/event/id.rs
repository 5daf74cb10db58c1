//! IDs of events and deliveries: hashes of what identifies the occurrence in the object itself. They use no randomness
//! and no clock, so a replay after a crash, or after loss of the ledger, produces the same ID.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest, Sha256};

use super::{EventType, object::Uid};

/// `evt_` and 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(u128);

/// `dlv_` and 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(u128);

/// The part of the object that identifies an occurrence.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OccurrenceName {
    /// The `startedAt` of the run.
    StartedAt(Timestamp),
    /// `metadata.generation`.
    Generation(i64),
    /// The threshold, by the name that all its spellings share, and `metadata.generation`.
    Threshold { threshold: String, generation: i64 },
}

/// The hash of a text that is too long to store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u128);

impl EventId {
    /// Creates the ID of the `count`th event with this name, starting at 1. The record's epoch is included only from
    /// the second on: only the ledger knows counts, and a new ledger must not repeat an old ID.
    #[must_use]
    pub fn new(source: &str, uid: Uid, event: EventType, name: &OccurrenceName, count: u32, epoch: u64) -> Self {
        let mut hash = Sha256::new();
        field(&mut hash, source.as_bytes());
        field(&mut hash, uid.to_string().as_bytes());
        field(&mut hash, event.name().as_bytes());
        match name {
            OccurrenceName::StartedAt(at) => {
                field(&mut hash, b"startedAt");
                field(&mut hash, at.to_string().as_bytes());
            }
            OccurrenceName::Generation(generation) => {
                field(&mut hash, b"generation");
                field(&mut hash, generation.to_string().as_bytes());
            }
            OccurrenceName::Threshold { threshold, generation } => {
                field(&mut hash, b"threshold");
                field(&mut hash, threshold.as_bytes());
                field(&mut hash, b"generation");
                field(&mut hash, generation.to_string().as_bytes());
            }
        }
        if count > 1 {
            field(&mut hash, count.to_string().as_bytes());
            field(&mut hash, epoch.to_string().as_bytes());
        }
        Self(truncate(hash))
    }

    /// Returns the ID of a test event that the object with this UID requests.
    #[must_use]
    pub fn of_test(uid: Uid) -> Self {
        let mut hash = Sha256::new();
        field(&mut hash, b"test");
        field(&mut hash, uid.to_string().as_bytes());
        Self(truncate(hash))
    }

    /// Parses the output of [`fmt::Display`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("evt_").filter(|digits| digits.len() == 32)?;
        let lower = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        lower.then(|| u128::from_str_radix(digits, 16).ok().map(Self))?
    }

    /// Returns the shard of the ledger's snapshot that holds the event.
    #[must_use]
    pub const fn shard(self, shards: usize) -> usize {
        (self.0 % shards as u128) as usize
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is no event id")))
    }
}

impl Fingerprint {
    /// Hashes a text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let mut hash = Sha256::new();
        field(&mut hash, text.as_bytes());
        Self(truncate(hash))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:032x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map(Self).map_err(|error| D::Error::custom(format!("{text:?}: {error}")))
    }
}

impl DeliveryId {
    /// Creates the ID of an event's delivery to the Webhook with this UID.
    #[must_use]
    pub fn new(event: EventId, webhook: Uid) -> Self {
        let mut hash = Sha256::new();
        field(&mut hash, event.to_string().as_bytes());
        field(&mut hash, webhook.to_string().as_bytes());
        Self(truncate(hash))
    }

    /// Returns the name of the delivery's `WebhookDelivery`. Object names cannot contain underscores.
    #[must_use]
    pub fn object_name(self) -> String {
        format!("dlv-{:032x}", self.0)
    }
}

/// Returns the `traceparent` of an attempt (W3C Trace Context, 3.2). The event is the trace, and each attempt is a
/// span. The sampled flag is set, so that receivers that follow the caller's decision record the span.
#[must_use]
pub fn traceparent(event: EventId, delivery: DeliveryId, attempt: u32) -> String {
    // An ID of all zeros is invalid.
    let (trace, span) = (event.0.max(1), (delivery.0 as u64 ^ u64::from(attempt)).max(1));
    format!("00-{trace:032x}-{span:016x}-01")
}

/// Hashes one field after its length, so that two different lists of fields never hash the same bytes.
fn field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

fn truncate(hash: Sha256) -> u128 {
    let digest = hash.finalize();
    digest.iter().take(16).fold(0, |value, byte| value << 8 | u128::from(*byte))
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "evt_{:032x}", self.0)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dlv_{:032x}", self.0)
    }
}

impl fmt::Debug for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_never_changes_between_releases() {
        let id = EventId::new(
            "trainingjobs.llmtune.io",
            Uid::from_u128(7),
            EventType::TrainingStarted,
            &OccurrenceName::Generation(1),
            1,
            42,
        );
        assert_eq!(id.to_string(), "evt_cf115a1ac6785f64fed6847fd715a301");
        assert_eq!(DeliveryId::new(id, Uid::from_u128(9)).to_string(), "dlv_09e5cf279ee92601c454634a5676971c");
    }

    #[test]
    fn event_is_a_trace_and_attempts_are_spans() {
        let (event, delivery) = (EventId(0xab), DeliveryId(0xff00_0000_0000_0000_0000_0000_0000_0001));
        assert_eq!(traceparent(event, delivery, 1), "00-000000000000000000000000000000ab-0000000000000001-01");
        assert_eq!(traceparent(event, delivery, 2), "00-000000000000000000000000000000ab-0000000000000003-01");
        assert_eq!(
            traceparent(EventId(0), DeliveryId(3), 3),
            "00-00000000000000000000000000000001-0000000000000001-01"
        );
    }

    #[test]
    fn epoch_enters_ids_from_the_second_event() {
        let id = |count, epoch| {
            let name = OccurrenceName::Generation(1);
            EventId::new("s", Uid::from_u128(1), EventType::TrainingStarted, &name, count, epoch)
        };
        assert_eq!(id(1, 1), id(1, 2));
        assert_ne!(id(2, 1), id(2, 2));
        assert_ne!(id(1, 1), id(2, 1));
    }
}
