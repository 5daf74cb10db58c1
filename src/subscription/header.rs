//! The headers that a Webhook adds to its deliveries.

use std::str::FromStr;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    reader::Objects,
    reference::{Place, Problem, ReferenceError, Role},
    resolve::SpecError,
};
use llmtune_api::header::{Header, MAX_VALUE, is_reserved};

/// A header of a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderReference {
    name: HeaderName,
    /// The purpose of its Secret, for error messages.
    role: Role,
    value: ValueReference,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ValueReference {
    Given(HeaderValue),
    Secret(Place),
}

impl HeaderReference {
    /// Reads a header of a spec. References are to objects in this namespace.
    pub(super) fn read(header: &Header, namespace: &str) -> Result<Self, SpecError> {
        Self::read_as(header, namespace, Role::Header(header.name.clone()))
    }

    /// Reads a header for another purpose than deliveries.
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

    /// The Secret key that contains the value, and its purpose. `None` if the value is in the spec.
    pub(super) fn place(&self) -> Option<(Role, &Place)> {
        match &self.value {
            ValueReference::Given(_) => None,
            ValueReference::Secret(place) => Some((self.role.clone(), place)),
        }
    }

    /// Adds the header to those of the request.
    pub(super) fn find(&self, objects: &Objects, headers: &mut HeaderMap) -> Result<(), ReferenceError> {
        let value = match &self.value {
            ValueReference::Given(value) => value.clone(),
            ValueReference::Secret(place) => {
                let role = self.role.clone();
                let Some(mut value) = value(objects.bytes(&role, place)?.trim_ascii_end()) else {
                    let message = format!(
                        "key {:?} is not a valid header value: write one line of at most {MAX_VALUE} printable ASCII characters",
                        place.key
                    );
                    return Err(ReferenceError::new(role, &place.object, Problem::Invalid(message)));
                };
                // HTTP/2 then does not index it for header compression, and debug output hides it.
                value.set_sensitive(true);
                value
            }
        };
        headers.insert(self.name.clone(), value);
        Ok(())
    }
}

/// Parses a header value by the apiserver's validation rules.
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
    fn header_values_are_printable_ascii_within_bounds() {
        for text in ["x", "Bearer a.b-c_d", "a\tb", "{\"a\": 1}", &"a".repeat(MAX_VALUE)] {
            assert!(value(text.as_bytes()).is_some(), "{text}");
        }
        for text in ["", " ", " x", "x\t", "a\nb", "a\r\nX-Forged: 1", "a\0b", "a\x7f", "é", &"a".repeat(MAX_VALUE + 1)]
        {
            assert!(value(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn reserved_header_names_are_rejected_in_any_case() {
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
