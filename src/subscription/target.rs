//! The references of a Webhook to the parts of its [`Target`], and how the target is built from them.

use std::sync::Arc;

use http::HeaderMap;

use super::{
    header::HeaderReference,
    reader::{Objects, Reader},
    reference::{Named, Problem, ReferenceError, Role},
    secret::KeyReference,
    tls::TlsReference,
    url::UrlReference,
};
use crate::{
    delivery::{failure::Redaction, target::Target},
    transport::tls::Materials,
};

/// The target in a spec. Each part is a value or a reference.
#[derive(Clone, Debug, PartialEq)]
pub struct References {
    /// The namespace of the referenced objects.
    pub namespace: Arc<str>,
    pub url: UrlReference,
    /// Whether a URL in a Secret must be an `https://` URL.
    pub require_https: bool,
    pub headers: Vec<HeaderReference>,
    /// The signing key. `None` if the Webhook has no `secretRef`.
    pub key: Option<KeyReference>,
    /// The CA bundle and the client certificate. `None` if the Webhook has neither.
    pub tls: Option<TlsReference>,
}

impl References {
    /// The referenced objects, with the purpose of each.
    pub(super) fn named(&self) -> impl Iterator<Item = (Role, &Named)> {
        let url = self.url.place().map(|place| (Role::Url, &place.object));
        let key = self.key.as_ref().map(|key| (Role::SigningKey, &key.place.object));
        let tls = self.tls.iter().flat_map(TlsReference::named);
        let headers = self.headers.iter().filter_map(HeaderReference::place);
        url.into_iter().chain(key).chain(tls).chain(headers.map(|(role, place)| (role, &place.object)))
    }

    /// The error for a read that panicked.
    pub(super) fn broken(&self) -> ReferenceError {
        let Some((role, object)) = self.named().next() else { unreachable!("only targets with references are read") };
        let text = "reading it failed because of a bug in the operator: report it with the operator's log";
        ReferenceError::new(role, object, Problem::Unavailable(text.into()))
    }

    /// Reads the target. `before` is the previous copy.
    pub(super) async fn read(&self, reader: &Reader, before: Option<&Target>) -> Result<Target, ReferenceError> {
        let objects = reader.read(self.named().map(|(_, object)| object).collect()).await;
        self.target(&objects, &reader.materials, before)
    }

    /// Builds the target from objects that have been read.
    pub(super) fn target(
        &self,
        objects: &Objects,
        materials: &Materials,
        before: Option<&Target>,
    ) -> Result<Target, ReferenceError> {
        let mut headers = HeaderMap::with_capacity(self.headers.len());
        let url = self.url.find(objects, self.require_https, self.tls.is_some())?;
        let known = before.and_then(|before| before.keys.as_ref());
        let keys = self.key.as_ref().map(|key| key.find(objects, known)).transpose()?;
        let tls = self.tls.as_ref().map(|tls| tls.find(objects, materials)).transpose()?;
        for header in &self.headers {
            header.find(objects, &mut headers)?;
        }
        Ok(Target { tenant: Arc::clone(&self.namespace), url, headers, keys, tls, discretion: self.redaction() })
    }

    fn redaction(&self) -> Redaction {
        if self.url.place().is_some() {
            Redaction::Url
        } else if self.headers.iter().any(|header| header.place().is_some()) {
            Redaction::Headers
        } else {
            Redaction::None
        }
    }
}
