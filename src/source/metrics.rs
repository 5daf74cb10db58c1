//! The metrics of a training run, as its events contain them.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

use llmtune_core::event::{body::MAX_BYTES, object::Metric};

/// The maximum number of metrics in an event.
const MAX_METRICS: usize = 64;

/// The first [`MAX_METRICS`] metrics of an object. All are omitted if they are longer than a body may be: the body
/// would omit them anyway, and the ledger stores the facts of a job while it runs.
#[derive(Debug, Default)]
pub struct Metrics {
    pub kept: BTreeMap<String, Metric>,
    pub too_long: bool,
    bytes: usize,
}

impl Metrics {
    /// Whether further metrics would be ignored.
    pub fn is_full(&self) -> bool {
        self.too_long || self.kept.len() >= MAX_METRICS
    }

    /// Adds a metric, unless the limits are reached.
    pub fn take(&mut self, name: String, metric: Metric) {
        if self.is_full() {
            return;
        }
        self.bytes += name.len();
        if let Metric::Text(text) = &metric {
            self.bytes += text.len();
        }
        self.too_long = self.bytes > MAX_BYTES;
        if self.too_long {
            self.kept.clear();
        } else {
            self.kept.insert(name, metric);
        }
    }

    /// Reads metrics from a map of numbers and strings, or from a list of objects with `name` and `value`. Returns any
    /// other value as an error. Kubernetes APIs write the values of such lists as strings, because the API conventions
    /// do not allow floats, so a string that is a decimal number becomes a number.
    pub fn read(value: Value) -> Result<Self, Value> {
        let mut metrics = Self::default();
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    if let Some(metric) = metric(value) {
                        metrics.take(name, metric);
                    }
                }
            }
            Value::Array(elements) => {
                for mut element in elements {
                    let Some(Value::String(name)) = element.get_mut("name").map(Value::take) else { continue };
                    match element.get_mut("value").map(Value::take).and_then(metric) {
                        Some(Metric::Text(text)) => metrics.take(name, decimal(text)),
                        Some(metric) => metrics.take(name, metric),
                        None => {}
                    }
                }
            }
            other => return Err(other),
        }
        Ok(metrics)
    }
}

fn metric(value: Value) -> Option<Metric> {
    match value {
        Value::Number(number) => {
            let double = || Metric::Number(number.as_f64().unwrap_or(f64::NAN));
            Some(number.as_i128().map_or_else(double, Metric::integer))
        }
        Value::String(text) => Some(Metric::Text(text)),
        _ => None,
    }
}

/// Converts the text to a number if it is a JSON number.
fn decimal(text: String) -> Metric {
    if let Ok(integer) = serde_json::from_str::<i128>(&text) {
        return Metric::integer(integer);
    }
    match serde_json::from_str::<f64>(&text) {
        Ok(number) if number.is_finite() => Metric::Number(number),
        _ => Metric::Text(text),
    }
}

/// Deserializes metrics from an object. Values other than numbers and strings are ignored; null means no metrics.
pub fn metrics<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Metrics, D::Error> {
    struct Members;

    impl<'de> Visitor<'de> for Members {
        type Value = Metrics;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Metrics::default())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut metrics = Metrics::default();
            while let Some(name) = map.next_key::<String>()? {
                if metrics.is_full() {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                if let Figure(Some(metric)) = map.next_value()? {
                    metrics.take(name, metric);
                }
            }
            Ok(metrics)
        }
    }

    deserializer.deserialize_any(Members)
}

/// A metric, or `None` if the value is neither a number nor a string. Such a value is skipped at any nesting depth.
struct Figure(Option<Metric>);

impl<'de> Deserialize<'de> for Figure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values;

        impl<'de> Visitor<'de> for Values {
            type Value = Option<Metric>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
                Ok(Some(Metric::Number(number)))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
                Ok(Some(Metric::integer(number.into())))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
                Ok(Some(Metric::integer(number.into())))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Some(Metric::Text(text.to_owned())))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(None)
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(None)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
                while elements.next_element::<IgnoredAny>()?.is_some() {}
                Ok(None)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
                while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(None)
            }
        }

        deserializer.deserialize_any(Values).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn list_of_names_and_values_is_read_as_a_map() {
        let list = json!([
            {"name": "loss", "value": "0.42"}, {"name": "steps", "value": 12}, {"name": "note", "value": "warming up"},
            {"name": "diverged", "value": "NaN"}, {"name": "huge", "value": "1e999"}, {"name": "loss_of_none"},
            {"value": "3"}, {"name": "nested", "value": {"a": 1}}, "text", null
        ]);
        let kept = Metrics::read(list).unwrap().kept;
        let text = |text: &str| Metric::Text(text.into());
        let expected = [
            ("diverged", text("NaN")),
            ("huge", text("1e999")),
            ("loss", Metric::Number(0.42)),
            ("note", text("warming up")),
            ("steps", Metric::Number(12.0)),
        ];
        assert_eq!(kept, expected.map(|(name, metric)| (name.to_owned(), metric)).into());
        assert_eq!(Metrics::read(json!({"loss": "0.42"})).unwrap().kept, [("loss".into(), text("0.42"))].into());
        assert_eq!(Metrics::read(json!("0.42")).unwrap_err(), json!("0.42"));
    }

    #[test]
    fn first_64_metrics_of_a_list_are_kept() {
        let list = (0..65).map(|number| json!({"name": format!("m{number}"), "value": number})).collect();
        assert_eq!(Metrics::read(Value::Array(list)).unwrap().kept.len(), MAX_METRICS);
    }
}
