//! What deliveries of one Webhook need beside the events: where they go, what signs them, and by which TLS.

use std::sync::Arc;

use reqwest::Url;
use secrecy::SecretSlice;

use super::{
    reader::{Objects, Reader},
    reference::{Named, Problem, ReferenceError, Role},
    secret::KeyReference,
    tls::TlsReference,
};
use crate::delivery::tls::{Material, Materials};

/// A target as a spec tells it: each part itself, or where it lies.
#[derive(Clone, Debug, PartialEq)]
pub struct References {
    pub url: Url,
    /// `None` where the Webhook names no Secret to sign with.
    pub key: Option<KeyReference>,
    /// `None` where the Webhook names no TLS of its own.
    pub tls: Option<TlsReference>,
}

/// All that the attempts of one Webhook need; it cannot be had without what the Webhook names.
pub struct Target {
    /// Where to send.
    pub url: Url,
    /// What to sign with.
    pub key: Option<Arc<SecretSlice<u8>>>,
    /// Its own TLS.
    pub tls: Option<Arc<Material>>,
}

impl References {
    /// The objects that it lies in, by what they are named for.
    pub(super) fn named(&self) -> impl Iterator<Item = (Role, &Named)> {
        let key = self.key.as_ref().map(|key| (Role::SigningKey, &key.place.object));
        key.into_iter().chain(self.tls.iter().flat_map(TlsReference::named))
    }

    /// The reading broke off inside the operator.
    pub(super) fn broken(&self) -> ReferenceError {
        let Some((role, object)) = self.named().next() else { unreachable!("what names nothing is not read") };
        let text = "the operator broke off reading it: please report this with its log";
        ReferenceError::new(role, object, Problem::Unavailable(text.into()))
    }

    /// Reads it; `before` is the copy that this one takes the place of.
    pub(super) async fn read(&self, reader: &Reader, before: Option<&Target>) -> Result<Target, ReferenceError> {
        let objects = reader.read(self.named().map(|(_, object)| object).collect()).await;
        self.target(&objects, &reader.materials, before)
    }

    /// The same of objects that have been read.
    pub(super) fn target(
        &self,
        objects: &Objects,
        materials: &Materials,
        _before: Option<&Target>,
    ) -> Result<Target, ReferenceError> {
        Ok(Target {
            url: self.url.clone(),
            key: self.key.as_ref().map(|key| key.find(objects)).transpose()?.map(Arc::new),
            tls: self.tls.as_ref().map(|tls| tls.find(objects, materials)).transpose()?,
        })
    }
}
