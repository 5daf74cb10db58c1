//! What a training run measured, as its events tell it.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::event::{body::MAX_BYTES, object::Metric};

/// At most this many metrics are passed on.
const MAX_METRICS: usize = 64;

/// Metrics as they are taken up, from whatever object: the first [`MAX_METRICS`], or none where they are longer than a body may be. A body
/// would leave them out whole, and what is kept of a job while it runs must fit into the ledger.
#[derive(Debug, Default)]
pub struct Metrics {
    pub kept: BTreeMap<String, Metric>,
    pub too_long: bool,
    bytes: usize,
}

impl Metrics {
    /// Whether more would not be kept.
    pub fn is_full(&self) -> bool {
        self.too_long || self.kept.len() >= MAX_METRICS
    }

    /// Takes one up, where there is room.
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
}

/// Takes numbers and strings up and drops the rest; whatever is no object is no metrics.
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

/// A metric; `None` where it is neither a number nor a string, which is skipped however deep it nests.
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
