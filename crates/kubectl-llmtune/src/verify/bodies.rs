//! Guesses the original body of a request that was changed on the way. Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{examine::Variant, json::Json};

const VERIFY_RAW_BODY: &str =
    "verify the received bytes before anything parses them (express.raw(), request.get_data(), io.ReadAll)";

/// The body and its possible originals, each with a description of the change.
pub fn bodies(body: &[u8]) -> Vec<Variant<Vec<u8>>> {
    let mut all = vec![Variant::as_it_is(body.to_vec())];
    let mut add = |value: Vec<u8>, said: String| {
        if all.iter().all(|known| known.value != value) {
            all.push(Variant::said(value, said));
        }
    };
    let trimmed = body.trim_ascii();
    if let Some(rest) = body.strip_prefix("\u{feff}".as_bytes()) {
        add(rest.to_vec(), format!("the body begins with a byte order mark that was not sent; {VERIFY_RAW_BODY}"));
    }
    add(
        trimmed.to_vec(),
        format!("the body has line breaks or spaces around it that were not sent; {VERIFY_RAW_BODY}"),
    );
    if let Ok(decoded) = STANDARD.decode(trimmed) {
        let said = "the body is base64-encoded, as some API gateways forward it (isBase64Encoded); decode it before you verify it";
        add(decoded, said.into());
    }
    if let Some(json) = Json::read(body) {
        if let Json::Text(inner) = &json {
            let said = format!("the body is a JSON string that contains the original body; {VERIFY_RAW_BODY}");
            add(inner.clone().into_bytes(), said);
        }
        let said = format!(
            "the body was parsed and serialized again, with different white space, escapes or numbers; {VERIFY_RAW_BODY}"
        );
        add(json.written().into_bytes(), said);
        let said =
            format!("the body was parsed and serialized again, with its members in another order; {VERIFY_RAW_BODY}");
        add(restored(json).written().into_bytes(), said);
    }
    all
}

/// Whether the operator could have written these bytes: JSON that `JSON.stringify` would not change.
pub fn is_as_written(body: &[u8]) -> bool {
    Json::read(body).is_some_and(|json| json.written().as_bytes() == body)
}

/// The order of the operator's body fields, in its own format and in that of Standard Webhooks.
const ENVELOPE: [&str; 11] = [
    "id",
    "event",
    "type",
    "timestamp",
    "data",
    "occurredAt",
    "sequence",
    "cluster",
    "test",
    "truncated",
    "deliveredAt",
];

/// The field order of a structured `CloudEvent`.
const CLOUD_EVENT: [&str; 12] = [
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "time",
    "sequence",
    "cluster",
    "test",
    "truncated",
    "datacontenttype",
    "data",
];

/// The field order of `data`, over all events.
const DATA: [&str; 26] = [
    "jobId",
    "deploymentId",
    "name",
    "namespace",
    "baseModel",
    "trainingMethod",
    "modelId",
    "version",
    "environment",
    "endpoint",
    "status",
    "error",
    "artifact",
    "metrics",
    "progress",
    "run",
    "createdAt",
    "startedAt",
    "completedAt",
    "metric",
    "value",
    "limit",
    "percent",
    "threshold",
    "unit",
    "observedAt",
];

/// The body with its fields in the operator's order.
fn restored(body: Json) -> Json {
    match &body {
        // A CloudEvent in binary mode consists of `data` alone.
        _ if body.get("data").is_none() => restored_data(body),
        _ if body.get("specversion").is_some() => ordered(body, &CLOUD_EVENT, restored_member),
        _ => ordered(body, &ENVELOPE, restored_member),
    }
}

fn restored_member(name: &str, value: Json) -> Json {
    if name == "data" { restored_data(value) } else { value }
}

fn restored_data(data: Json) -> Json {
    ordered(data, &DATA, |name, value| match (name, value) {
        ("error", error) => ordered(error, &["reason", "message"], |_, value| value),
        ("metrics", Json::Object(mut metrics)) => {
            metrics.sort_by(|(one, _), (other, _)| one.cmp(other));
            Json::Object(metrics)
        }
        (_, value) => value,
    })
}

/// The object with its fields in this order, followed by all others in their original order. `inside` transforms each
/// value.
fn ordered(object: Json, order: &[&str], inside: impl Fn(&str, Json) -> Json) -> Json {
    let Json::Object(members) = object else { return object };
    let place = |name: &str| order.iter().position(|known| *known == name).unwrap_or(order.len());
    let mut members: Vec<(String, Json)> = members
        .into_iter()
        .map(|(name, value)| {
            let value = inside(&name, value);
            (name, value)
        })
        .collect();
    members.sort_by_key(|(name, _)| place(name));
    Json::Object(members)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::Value;

    use super::*;
    use llmtune_core::event::{EventType, format::Derived, object::Uid, sample::sample};

    #[test]
    fn restores_member_order_of_each_event_and_format() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        for event in EventType::ALL {
            let sample = sample(event, Uid::from_u128(7), "research", Some("east"), now);
            let derived = [Derived::StandardWebhooks, Derived::CloudEventsStructured, Derived::CloudEventsBinary]
                .map(|format| sample.form(format).unwrap().body.to_vec());
            for body in derived.into_iter().chain([sample.body.close(now).into_bytes()]) {
                assert!(is_as_written(&body));
                // `Value` sorts the fields.
                let sorted = serde_json::to_string_pretty(&serde_json::from_slice::<Value>(&body).unwrap()).unwrap();
                let restored = bodies(sorted.as_bytes()).into_iter().any(|variant| variant.value == body);
                assert!(restored, "{sorted}\n{}", String::from_utf8(body).unwrap());
            }
        }
    }

    #[test]
    fn undoes_each_known_change() {
        let body =
            r#"{"id":"evt_1","event":"training.started","data":{"name":"é"},"deliveredAt":"2026-01-01T00:00:00Z"}"#;
        for (made, said) in [
            (format!("{body}\n"), "line breaks"),
            (format!("\u{feff}{body}"), "byte order mark"),
            (STANDARD.encode(body), "base64"),
            (serde_json::to_string(body).unwrap(), "a JSON string"),
            (
                body.replace(':', ": ").replace('é', "\\u00e9").replace("00: 00: 00", "00:00:00"),
                "serialized again, with different white space",
            ),
        ] {
            let found = bodies(made.as_bytes()).into_iter().find(|variant| variant.value == body.as_bytes());
            let message = found.unwrap_or_else(|| panic!("{made}")).said.unwrap_or_default();
            assert!(message.contains(said), "{made}: {message}");
        }
    }
}
