//! The headers that a `UsageThreshold` adds to its queries to Prometheus: with values in the spec, with values from
//! Secrets, and for basic authentication (RFC 7617).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use secrecy::{ExposeSecret, SecretString};

use super::{
    header::HeaderReference,
    reader::{Objects, Reader},
    reference::{Named, Place, Problem, ReferenceError, ReferenceKind, Role},
    resolve::SpecError,
};
use llmtune_api::header::Header;

/// The keys of a Secret of type kubernetes.io/basic-auth.
const USERNAME: &str = "username";
const PASSWORD: &str = "password";

/// The additional headers of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    headers: Vec<HeaderReference>,
    basic: Option<Named>,
}

impl Credentials {
    /// Reads the headers of a spec. References are to Secrets in this namespace.
    pub fn read(headers: &[Header], basic: Option<&str>, namespace: &str) -> Result<Self, SpecError> {
        let headers = headers.iter().map(|header| {
            let name = header.name.clone();
            HeaderReference::read_as(header, namespace, Role::QueryHeader(name))
        });
        let secret =
            |name: &str| Named { kind: ReferenceKind::Secret, namespace: namespace.to_owned(), name: name.to_owned() };
        Ok(Self { headers: headers.collect::<Result<_, _>>()?, basic: basic.map(secret) })
    }

    /// The headers with their current values. Values from Secrets are marked as sensitive.
    pub async fn find(&self, reader: &Reader) -> Result<HeaderMap, ReferenceError> {
        let places = self.headers.iter().filter_map(HeaderReference::place).map(|(_, place)| &place.object);
        let named: Vec<&Named> = places.chain(&self.basic).collect();
        let objects = if named.is_empty() { Objects::default() } else { reader.read(named).await };
        let mut headers = HeaderMap::new();
        for header in &self.headers {
            header.find(&objects, &mut headers)?;
        }
        if let Some(secret) = &self.basic {
            headers.insert(AUTHORIZATION, basic(secret, &objects)?);
        }
        Ok(headers)
    }

    /// Whether a header depends on a Secret, which may change.
    #[must_use]
    pub fn may_change(&self) -> bool {
        self.basic.is_some() || self.headers.iter().any(|header| header.place().is_some())
    }
}

fn basic(secret: &Named, objects: &Objects) -> Result<HeaderValue, ReferenceError> {
    let text = |key: &str| {
        let place = Place { object: secret.clone(), key: key.to_owned() };
        let bytes = objects.bytes(&Role::BasicAuth, &place)?.trim_ascii_end();
        let text = std::str::from_utf8(bytes).ok().filter(|text| !text.chars().any(char::is_control));
        text.map(|text| SecretString::from(text.to_owned())).ok_or_else(|| {
            let message = format!("key {key:?} is not one line of text: write the {key} there");
            ReferenceError::new(Role::BasicAuth, secret, Problem::Invalid(message))
        })
    };
    let (username, password) = (text(USERNAME)?, text(PASSWORD)?);
    if username.expose_secret().contains(':') {
        let message = format!("key {USERNAME:?} has a colon, which basic authentication does not allow: remove it");
        return Err(ReferenceError::new(Role::BasicAuth, secret, Problem::Invalid(message)));
    }
    let pair = SecretString::from(format!("{}:{}", username.expose_secret(), password.expose_secret()));
    let value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair.expose_secret())));
    let mut value = value.map_err(|_| {
        let message = "user name and password are too long for a header: shorten them".to_owned();
        ReferenceError::new(Role::BasicAuth, secret, Problem::Invalid(message))
    })?;
    value.set_sensitive(true);
    Ok(value)
}
