//! JSON documents, parsed once for all expressions that are evaluated on them.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::value::{Key, Map, Value};

/// A JSON document for expressions, deserialized directly from JSON; cheap to clone.
///
/// Integers become int, beyond 2^63 - 1 uint, and beyond 2^64 - 1 double. Numbers with a fraction or an exponent become
/// double. The deserializer limits the nesting (`serde_json`: 128).
#[derive(Clone, Debug)]
pub struct Document(pub(super) Value);

impl From<&str> for Document {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

/// A map. If several members have the same name, the last one counts.
impl<'a> FromIterator<(&'a str, Document)> for Document {
    fn from_iter<I: IntoIterator<Item = (&'a str, Document)>>(members: I) -> Self {
        let members = members.into_iter().map(|(name, Self(value))| (Key::String(name.into()), value));
        Self(Map::new(members.collect()).into())
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Document, E> {
        Ok(Document(Value::Null))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Document, E> {
        Ok(Document(Value::Bool(value)))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Document, E> {
        Ok(Document(Value::Int(value)))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Document, E> {
        Ok(Document(i64::try_from(value).map_or(Value::Uint(value), Value::Int)))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Document, E> {
        Ok(Document(Value::Double(value)))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Document, E> {
        Ok(Document(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Document, A::Error> {
        let mut list = Vec::new();
        while let Some(Document(element)) = elements.next_element()? {
            list.push(element);
        }
        Ok(Document(list.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Document, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, Document(value))) = members.next_entry::<String, Document>()? {
            entries.push((Key::String(key.into()), value));
        }
        Ok(Document(Map::new(entries).into()))
    }
}
