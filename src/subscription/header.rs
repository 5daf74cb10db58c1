//! The headers that a Webhook adds to its deliveries.

use std::str::FromStr;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    reader::Objects,
    reference::{Place, Problem, ReferenceError, Role},
    resolve::SpecError,
};
use llmtune_api::header::{Header, MAX_VALUE, is_reserved};

/// A header as a spec gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderReference {
    name: HeaderName,
    /// What its Secret is named for.
    role: Role,
    value: ValueReference,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ValueReference {
    Given(HeaderValue),
    Secret(Place),
}

impl HeaderReference {
    /// Reads a header of a spec whose references are to objects of this namespace.
    pub(super) fn read(header: &Header, namespace: &str) -> Result<Self, SpecError> {
        Self::read_as(header, namespace, Role::Header(header.name.clone()))
    }

    /// Reads a header that is named for something else than deliveries.
    pub(super) fn read_as(header: &Header, namespace: &str, role: Role) -> Result<Self, SpecError> {
        let spelled = header.name.clone();
        let refuse = || SpecError::Header(spelled.clone());
        let name = HeaderName::from_str(&spelled).ok().filter(|name| !is_reserved(name.as_str())).ok_or_else(refuse)?;
        let value = match (&header.value, &header.value_from) {
            (Some(text), None) => ValueReference::Given(value(text.as_bytes()).ok_or_else(refuse)?),
            (None, Some(source)) => ValueReference::Secret(Place::of(source, namespace)),
            _ => return Err(refuse()),
        };
        Ok(Self { name, role, value })
    }

    /// The Secret's key that its value lies in, and what that is named for.
    pub(super) fn place(&self) -> Option<(Role, &Place)> {
        match &self.value {
            ValueReference::Given(_) => None,
            ValueReference::Secret(place) => Some((self.role.clone(), place)),
        }
    }

    /// Adds it to those that deliveries bear.
    pub(super) fn find(&self, objects: &Objects, headers: &mut HeaderMap) -> Result<(), ReferenceError> {
        let value = match &self.value {
            ValueReference::Given(value) => value.clone(),
            ValueReference::Secret(place) => {
                let role = self.role.clone();
                let Some(mut value) = value(objects.bytes(&role, place)?.trim_ascii_end()) else {
                    let say = format!(
                        "key {:?} cannot be a header's value: write one line of at most {MAX_VALUE} printable ASCII characters there",
                        place.key
                    );
                    return Err(ReferenceError::new(role, &place.object, Problem::Invalid(say)));
                };
                // HTTP/2 then keeps it out of its tables, and nothing prints it.
                value.set_sensitive(true);
                value
            }
        };
        headers.insert(self.name.clone(), value);
        Ok(())
    }
}

/// What the apiserver takes for a header's value.
fn value(bytes: &[u8]) -> Option<HeaderValue> {
    let is_visible = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_graphic);
    let is_printable = bytes.iter().all(|byte| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t'));
    let is_value = is_visible(bytes.first()) && is_visible(bytes.last()) && is_printable && bytes.len() <= MAX_VALUE;
    HeaderValue::from_bytes(bytes).ok().filter(|_| is_value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_printable_ascii_within_bounds_and_nothing_else() {
        for text in ["x", "Bearer a.b-c_d", "a\tb", "{\"a\": 1}", &"a".repeat(MAX_VALUE)] {
            assert!(value(text.as_bytes()).is_some(), "{text}");
        }
        for text in ["", " ", " x", "x\t", "a\nb", "a\r\nX-Forged: 1", "a\0b", "a\x7f", "é", &"a".repeat(MAX_VALUE + 1)]
        {
            assert!(value(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn what_the_operator_or_http_decides_on_cannot_be_given_however_it_is_spelled() {
        let read = |name: &str| {
            let header = Header { name: name.into(), value: Some("x".into()), value_from: None };
            HeaderReference::read(&header, "ns")
        };
        for name in
            ["Host", "content-LENGTH", "X-LLMTune-Event", "X-Signature", "Webhook-Id", "ce-id", "Via", "a b", ""]
        {
            assert!(read(name).is_err(), "{name}");
        }
        assert!(read("Authorization").is_ok());
    }
}
