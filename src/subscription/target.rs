//! Where the parts of a Webhook's [`Target`] lie, and the target itself, once they have been read.

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

/// A target as a spec tells it: each part itself, or where it lies.
#[derive(Clone, Debug, PartialEq)]
pub struct References {
    /// The namespace of all that it names.
    pub namespace: Arc<str>,
    pub url: UrlReference,
    /// A url that is a secret must be one of https.
    pub require_https: bool,
    pub headers: Vec<HeaderReference>,
    /// `None` where the Webhook names no Secret to sign with.
    pub key: Option<KeyReference>,
    /// `None` where the Webhook names no TLS of its own.
    pub tls: Option<TlsReference>,
}

impl References {
    /// The objects that it lies in, by what they are named for.
    pub(super) fn named(&self) -> impl Iterator<Item = (Role, &Named)> {
        let url = self.url.place().map(|place| (Role::Url, &place.object));
        let key = self.key.as_ref().map(|key| (Role::SigningKey, &key.place.object));
        let tls = self.tls.iter().flat_map(TlsReference::named);
        let headers = self.headers.iter().filter_map(HeaderReference::place);
        url.into_iter().chain(key).chain(tls).chain(headers.map(|(role, place)| (role, &place.object)))
    }

    /// The reading broke off inside the operator.
    pub(super) fn broken(&self) -> ReferenceError {
        let Some((role, object)) = self.named().next() else { unreachable!("what names nothing is not read") };
        let text = "the operator broke off reading it: please report this with its log";
        ReferenceError::new(role, object, Problem::Unavailable(text.into()))
    }

    /// Reads it; `before` is the copy that it takes the place of.
    pub(super) async fn read(&self, reader: &Reader, before: Option<&Target>) -> Result<Target, ReferenceError> {
        let objects = reader.read(self.named().map(|(_, object)| object).collect()).await;
        self.target(&objects, &reader.materials, before)
    }

    /// The same of objects that have been read.
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
        Ok(Target { tenant: Arc::clone(&self.namespace), url, headers, keys, tls, discretion: self.discretion() })
    }

    fn discretion(&self) -> Redaction {
        if self.url.place().is_some() {
            Redaction::Url
        } else if self.headers.iter().any(|header| header.place().is_some()) {
            Redaction::Headers
        } else {
            Redaction::None
        }
    }
}
