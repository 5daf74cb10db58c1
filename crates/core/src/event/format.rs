//! The body in formats that other specifications define.
//!
//! Each form is derived from the native body, which is the only one stored, so a retry, a replay after a crash and a
//! redelivery send the same content. No form contains the time of the attempt, so one copy serves all attempts in
//! flight.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::{Event, EventType, json};

/// The prefix of an event's name in a `CloudEvents` type.
const TYPE_PREFIX: &str = "io.llmtune.";
/// All characters except the unreserved ones of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The format of a Webhook's deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The operator's own format ([`super::body`]).
    #[default]
    LlmTune,
    /// A format that another specification defines.
    Derived(Derived),
}

/// The formats that other specifications define.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derived {
    /// Standard Webhooks 1.0.0.
    StandardWebhooks,
    /// `CloudEvents` 1.0, HTTP protocol binding 3.1: attributes in headers, the body is `data`.
    CloudEventsBinary,
    /// `CloudEvents` 1.0, HTTP protocol binding 3.2 and JSON event format: everything in the body.
    CloudEventsStructured,
}

/// An event in a derived format. All attempts to all subscribers share it.
#[derive(Debug, PartialEq, Eq)]
pub struct Form {
    /// The names and values of attributes outside the body; only for [`Derived::CloudEventsBinary`].
    pub attributes: Vec<(&'static str, String)>,
    /// The body; at most 2 KiB larger than the native one.
    pub body: Bytes,
}

/// The forms of one event that attempts in flight use. An event that only waits has none.
#[derive(Debug, Default)]
pub struct Forms([Mutex<Weak<Form>>; 3]);

impl Event {
    /// Returns the event in this format, created once for all attempts in flight, or `None` if [`super::body::open`]
    /// did not write the stored body.
    #[must_use]
    pub fn form(&self, format: Derived) -> Option<Arc<Form>> {
        let mut held = self.forms.0[format as usize].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(form) = held.upgrade() {
            return Some(form);
        }
        let form = Arc::new(derive(self, format)?);
        *held = Arc::downgrade(&form);
        Some(form)
    }
}

fn derive(event: &Event, format: Derived) -> Option<Form> {
    let data = event.body.data()?;
    match format {
        Derived::StandardWebhooks => {
            let body = standard_webhooks(event, data)?.into();
            Some(Form { attributes: Vec::new(), body })
        }
        Derived::CloudEventsBinary => {
            let attributes = Attributes::read(event, data)?;
            let mut all = vec![("specversion", "1.0".to_owned())];
            all.extend(attributes.texts);
            all.extend(attributes.flags.into_iter().map(|name| (name, "true".to_owned())));
            Some(Form { attributes: all, body: Bytes::copy_from_slice(data.as_bytes()) })
        }
        Derived::CloudEventsStructured => {
            let body = structured(Attributes::read(event, data)?, data).into();
            Some(Form { attributes: Vec::new(), body })
        }
    }
}

/// The event's ID is in a signed header, so the body does not repeat it.
fn standard_webhooks(event: &Event, data: &str) -> Option<String> {
    let rest = event.body.rest()?;
    let mut out = String::with_capacity(event.body.len());
    out.push_str("{\"type\":");
    json::write_string(&mut out, event.event_type.name());
    out.push_str(",\"timestamp\":");
    json::write_string(&mut out, &event.body.occurred_at()?.to_string());
    out.push_str(",\"data\":");
    out.push_str(data);
    out.push(',');
    out.push_str(rest);
    out.push('}');
    Some(out)
}

fn structured(attributes: Attributes, data: &str) -> String {
    let mut out = String::with_capacity(data.len() + 512);
    out.push_str("{\"specversion\":\"1.0\"");
    for (name, value) in attributes.texts {
        out.push_str(",\"");
        out.push_str(name);
        out.push_str("\":");
        json::write_string(&mut out, &value);
    }
    for name in attributes.flags {
        out.push_str(",\"");
        out.push_str(name);
        out.push_str("\":true");
    }
    out.push_str(",\"datacontenttype\":\"application/json\",\"data\":");
    out.push_str(data);
    out.push('}');
    out
}

/// The attributes of a `CloudEvent` except `specversion` and `datacontenttype`: texts, and flags that are present only
/// if true.
struct Attributes {
    texts: Vec<(&'static str, String)>,
    flags: Vec<&'static str>,
}

/// The members of `data` that identify the object.
#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    namespace: Cow<'a, str>,
}

/// The members of the native body after `occurredAt`.
#[derive(Deserialize)]
struct Rest<'a> {
    sequence: u32,
    #[serde(borrow, default)]
    cluster: Option<Cow<'a, str>>,
    #[serde(default)]
    test: bool,
    #[serde(default)]
    truncated: bool,
}

impl Attributes {
    fn read(event: &Event, data: &str) -> Option<Self> {
        let Named { name, namespace } = serde_json::from_str(data).ok()?;
        let rest = format!("{{{}}}", event.body.rest()?);
        let Rest { sequence, cluster, test, truncated } = serde_json::from_str(&rest).ok()?;
        let encoded = |text| utf8_percent_encode(text, RESERVED).to_string();
        let cluster_path = cluster.as_deref().map(|cluster| format!("/clusters/{}", encoded(cluster)));
        let lifecycle = match event.event_type {
            EventType::TrainingStarted | EventType::TrainingCompleted | EventType::TrainingFailed => "training",
            EventType::UsageThresholdReached => "usage",
            EventType::ModelDeployed
            | EventType::DeploymentCreated
            | EventType::DeploymentPaused
            | EventType::DeploymentResumed
            | EventType::DeploymentDeleted => "serving",
        };
        let source = format!(
            "{}/namespaces/{}/{lifecycle}/{}",
            cluster_path.unwrap_or_default(),
            encoded(&namespace),
            encoded(&name)
        );
        let mut texts = vec![
            ("id", event.id.to_string()),
            ("source", source),
            ("type", format!("{TYPE_PREFIX}{}", event.event_type.name())),
            ("subject", name.into_owned()),
            ("time", event.body.occurred_at()?.to_string()),
            // The `sequence` extension requires strings whose lexicographic order is the numeric order.
            ("sequence", format!("{sequence:010}")),
        ];
        texts.extend(cluster.map(|cluster| ("cluster", cluster.into_owned())));
        let flags = [("test", test), ("truncated", truncated)];
        let flags = flags.into_iter().filter_map(|(name, holds)| holds.then_some(name)).collect();
        Some(Self { texts, flags })
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::Value;

    use super::*;
    use crate::event::{
        body::{self, Envelope, OpenBody},
        id::EventId,
        object::{Object, Uid},
        payload::Data,
        sample::sample,
    };

    const ALL: [Derived; 3] = [Derived::StandardWebhooks, Derived::CloudEventsBinary, Derived::CloudEventsStructured];

    fn event(cluster: Option<&str>, note: &str) -> Event {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let mut data = Data::default();
        data.text("name", "llama-sft");
        data.text("namespace", "research");
        data.text("note", note);
        let id = EventId::of_test(Uid::from_u128(7));
        let event = EventType::TrainingCompleted;
        let envelope = Envelope { id, event, occurred_at: now, sequence: 2, cluster, test: false };
        Event { body: body::open(envelope, data), ..sample(event, Uid::from_u128(7), "research", None, now) }
    }

    fn text(event: &Event, format: Derived) -> String {
        String::from_utf8(event.form(format).unwrap().body.to_vec()).unwrap()
    }

    #[test]
    fn standard_webhook_has_type_timestamp_and_data() {
        assert_eq!(
            text(&event(Some("eu-1"), "n"), Derived::StandardWebhooks),
            concat!(
                r#"{"type":"training.completed","timestamp":"2023-11-14T22:13:20Z","#,
                r#""data":{"name":"llama-sft","namespace":"research","note":"n"},"sequence":2,"cluster":"eu-1"}"#
            )
        );
    }

    #[test]
    fn a_structured_cloud_event_says_all_in_its_body() {
        let event = event(Some("eu 1/ä"), "n");
        let id = event.id;
        let expected = concat!(
            r#","source":"/clusters/eu%201%2F%C3%A4/namespaces/research/training/llama-sft","type":"io.llmtune.training.completed","#,
            r#""subject":"llama-sft","time":"2023-11-14T22:13:20Z","sequence":"0000000002","cluster":"eu 1/ä","#,
            r#""datacontenttype":"application/json","data":{"name":"llama-sft","namespace":"research","note":"n"}}"#
        );
        let expected = format!("{{\"specversion\":\"1.0\",\"id\":\"{id}\"{expected}");
        assert_eq!(text(&event, Derived::CloudEventsStructured), expected);
    }

    #[test]
    fn binary_cloud_event_has_data_as_body() {
        let event = event(None, "n");
        let form = event.form(Derived::CloudEventsBinary).unwrap();
        assert_eq!(form.body, event.body.data().unwrap());
        let source = "/namespaces/research/training/llama-sft";
        assert!(form.attributes.contains(&("source", source.to_owned())), "{:?}", form.attributes);
        assert_eq!(form.attributes[0], ("specversion", "1.0".to_owned()));
        assert!(!form.attributes.iter().any(|(name, _)| ["cluster", "test", "truncated"].contains(name)));
    }

    #[test]
    fn every_format_marks_tests_and_truncated_bodies() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        for event_type in EventType::ALL {
            let test = sample(event_type, Uid::from_u128(7), "research", Some("east"), now);
            let truncated = event(None, &"x".repeat(body::MAX_BYTES));
            for (event, flag) in [(&test, "test"), (&truncated, "truncated")] {
                for format in [Derived::StandardWebhooks, Derived::CloudEventsStructured] {
                    let body: Value = serde_json::from_str(&text(event, format)).unwrap();
                    assert_eq!(body[flag], true, "{flag} in {format:?} of {event_type}");
                }
                let form = event.form(Derived::CloudEventsBinary).unwrap();
                assert!(form.attributes.contains(&(flag, "true".to_owned())));
            }
        }
    }

    #[test]
    fn stored_event_has_the_same_bytes_in_every_format() {
        let event = event(Some("east"), ",\"occurredAt\":\"x\",\"sequence\":9,\"deliveredAt\":\"");
        let kept = Event {
            body: OpenBody::stored(event.body.as_str().to_owned()),
            object: Arc::new(Object::of_event(
                event.event_type,
                Uid::from_u128(9),
                "elsewhere".into(),
                "unknown".into(),
            )),
            forms: Forms::default(),
            ..event
        };
        let original = self::event(Some("east"), ",\"occurredAt\":\"x\",\"sequence\":9,\"deliveredAt\":\"");
        for format in ALL {
            assert_eq!(kept.form(format), original.form(format), "{format:?}");
        }
        let unreadable = Event { body: OpenBody::stored("{}".into()), forms: Forms::default(), ..kept };
        assert!(ALL.into_iter().all(|format| unreadable.form(format).is_none()));
    }

    #[test]
    fn attempts_in_flight_share_one_body_per_format() {
        let event = event(None, "n");
        for format in ALL {
            let (first, second) = (event.form(format).unwrap(), event.form(format).unwrap());
            assert!(Arc::ptr_eq(&first, &second));
            let held = Arc::downgrade(&first);
            drop((first, second));
            assert!(held.upgrade().is_none());
        }
    }
}
