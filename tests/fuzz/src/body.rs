//! A TrainingJob's status, up to the body of its event: the body is a fixed point of JSON and within its bound.

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};

use super::operator::{Operator, assert_well_formed};
use llmtune_core::event::{json, object::Object, observation::WatchEvent};
use llmtune_webhooks::source::{Source, training_job::TrainingJobs};

/// Runs a job, sets its status to this JSON and deletes it. Every body sent is bounded and unchanged by JavaScript.
pub fn body(status: &[u8]) {
    let Some(object) = str::from_utf8(status).ok().and_then(|status| job(3, status)) else { return };
    let Some(running) = job(2, r#"{"phase":"Running"}"#) else { return };
    let mut operator = Operator::new();
    operator.observe(WatchEvent::Seen(Box::new(running)));
    operator.observe(WatchEvent::Seen(Box::new(object.clone())));
    operator.observe(WatchEvent::Deleted(Box::new(Object { version: 4, ..object })));
    assert!(operator.attempt_all(assert_well_formed) >= 1, "it began to run");
}

pub(super) fn job(version: u64, status: &str) -> Option<Object> {
    let metadata = format!(
        r#"{{"name":"a","namespace":"ns","uid":"00000000-0000-0000-0000-000000000007","resourceVersion":"{version}"}}"#
    );
    let text = format!(r#"{{"metadata":{metadata},"spec":{{"baseModel":"b"}},"status":{status}}}"#);
    TrainingJobs::default().read(serde_json::from_str(&text).ok()?).ok()
}

/// Asserts that a body equals `JSON.stringify(JSON.parse(body))`.
pub(super) fn is_fixed(body: &str) {
    let Stringified(again) = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
    assert_eq!(again, body);
}

/// JSON as JavaScript writes it after reading it.
struct Stringified(String);

impl<'de> Deserialize<'de> for Stringified {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Values)
    }
}

struct Values;

impl<'de> Visitor<'de> for Values {
    type Value = Stringified;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Stringified, E> {
        Ok(Stringified("null".into()))
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<Stringified, E> {
        Ok(Stringified(truth.to_string()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Stringified, E> {
        self.visit_f64(number as f64)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Stringified, E> {
        self.visit_f64(number as f64)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Stringified, E> {
        let mut out = String::new();
        json::write_number(&mut out, number);
        Ok(Stringified(out))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Stringified, E> {
        let mut out = String::new();
        json::write_string(&mut out, text);
        Ok(Stringified(out))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Stringified, A::Error> {
        let mut texts = Vec::new();
        while let Some(Stringified(text)) = elements.next_element()? {
            texts.push(text);
        }
        Ok(Stringified(format!("[{}]", texts.join(","))))
    }

    /// If a name is repeated, the last value counts, at the place of the first.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Stringified, A::Error> {
        let mut members: Vec<(String, String)> = Vec::new();
        while let Some((name, Stringified(value))) = map.next_entry::<String, Stringified>()? {
            match members.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => *known = value,
                None => members.push((name, value)),
            }
        }
        let mut out = String::new();
        let members = members.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        json::write_object(&mut out, members, String::push_str);
        Ok(Stringified(out))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seeds;

    fn status() -> impl Strategy<Value = String> {
        let number = prop_oneof![
            any::<u64>().prop_map(|bits| f64::from_bits(bits).to_string()),
            "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
        ];
        // All kinds of escapes, including unpaired surrogates.
        let string = prop_oneof![
            "\"(\\\\u[0-9a-fA-F]{4}|\\\\u[dD][89abAB][0-9a-f]{2}|\\\\u[dD][c-fC-F][0-9a-f]{2}|\\\\[\"/bfnrt]|[ !#-\\[\\]-~]|\\PC){0,12}\"",
            Just("\"NaN\"".to_owned()),
            Just("\"\\u005f_proto__\"".to_owned()),
        ];
        let leaf =
            prop_oneof![2 => number, 2 => string.clone(), 1 => Just("null".to_owned()), 1 => Just("true".to_owned())];
        let deep = (leaf.clone(), 1..200_usize)
            .prop_map(|(leaf, depth)| format!("{}{leaf}{}", "[".repeat(depth), "]".repeat(depth)));
        let name = prop_oneof![
            string,
            "\"[0-9]{1,11}\"",
            prop::sample::select(vec!["\"__proto__\"", "\"constructor\"", "\"toJSON\"", "\"\"", "\"loss\""])
                .prop_map(str::to_owned),
        ];
        let value = prop_oneof![8 => leaf, 1 => deep];
        let metrics = prop::collection::vec((name, value), 0..12).prop_map(|members| {
            let members: Vec<String> = members.into_iter().map(|(name, value)| format!("{name}:{value}")).collect();
            format!("{{{}}}", members.join(","))
        });
        let phase = prop::sample::select(vec!["Running", "Completed", "Failed", "Cancelled", "Pending", "dreaming"]);
        (phase, metrics, "[^\"\\\\\u{0}-\u{1f}]{0,20}").prop_map(|(phase, metrics, message)| {
            format!(r#"{{"phase":"{phase}","metrics":{metrics},"message":"{message}"}}"#)
        })
    }

    proptest! {
        #![proptest_config(seeds::cases(3000))]

        #[test]
        fn arbitrary_facts_give_bounded_javascript_safe_bodies(status in status()) {
            body(status.as_bytes());
        }

        #[test]
        fn so_they_do_where_its_status_is_garbled(status in seeds::mutated("body")) {
            body(&status);
        }
    }

    #[test]
    fn what_nests_deeply_costs_a_job_that_metric_alone() {
        let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
        for text in [&deep, &deep.replace(['[', ']'], "").repeat(3)] {
            let object = job(2, &format!(r#"{{"phase":"Running","metrics":{{"deep":{text},"loss":0.5}}}}"#));
            assert!(object.is_some(), "{}…", &text[..20.min(text.len())]);
        }
    }
}
