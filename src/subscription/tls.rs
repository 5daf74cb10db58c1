//! The TLS of one Webhook: the bundle that it trusts beside the rest, and the certificate that it shows.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretSlice};

use super::reference::{Kept, Kind, Named, Problem, Reader, ReferenceError, Referent, Role};
use crate::{
    api::reference::{BundleKind, Tls},
    delivery::tls::{Material, Unusable},
};

/// Where a Webhook's TLS lies; at least one of the two is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsReference {
    bundle: Option<(Named, String)>,
    certificate: Option<Named>,
}

/// A Webhook's TLS, kept fresh.
pub type KeptTls = Kept<TlsReference>;

impl TlsReference {
    /// What a spec names in its Webhook's namespace; `None` where that is nothing.
    #[must_use]
    pub fn of(spec: &Tls, namespace: &str) -> Option<Self> {
        let named =
            |role, kind, name: &str| Named { role, kind, namespace: namespace.to_owned(), name: name.to_owned() };
        let bundle = spec.ca_bundle_ref.as_ref().map(|bundle| {
            let kind = match bundle.kind {
                BundleKind::ConfigMap => Kind::ConfigMap,
                BundleKind::Secret => Kind::Secret,
            };
            (named(Role::CaBundle, kind, &bundle.name), bundle.key.clone())
        });
        let certificate = spec.client_certificate_ref.as_ref();
        let certificate =
            certificate.map(|certificate| named(Role::ClientCertificate, Kind::Secret, &certificate.name));
        (bundle.is_some() || certificate.is_some()).then_some(Self { bundle, certificate })
    }
}

impl Referent for TlsReference {
    type Value = Material;

    fn named(&self) -> Named {
        match (&self.bundle, &self.certificate) {
            (Some((named, _)), _) | (None, Some(named)) => named.clone(),
            (None, None) => unreachable!("a reference names at least one object"),
        }
    }

    async fn read(&self, reader: &Reader) -> Result<Arc<Material>, ReferenceError> {
        let mut bundle = None;
        if let Some((named, key)) = &self.bundle {
            bundle = Some(reader.data(named).await?.take(key)?);
        }
        let mut identity = None;
        if let Some(named) = &self.certificate {
            let mut data = reader.data(named).await?;
            let certificate = data.take("tls.crt")?;
            identity = Some((certificate, SecretSlice::from(data.take("tls.key")?)));
        }
        let pair = identity.as_ref().map(|(certificate, key)| (certificate.as_slice(), key.expose_secret()));
        reader.materials.get(bundle.as_deref(), pair).map_err(|unusable| match (unusable, &self.certificate) {
            (Unusable::Certificate(problem), Some(named)) => {
                ReferenceError::new(named.clone(), Problem::Invalid(problem))
            }
            (Unusable::Bundle(problem) | Unusable::Certificate(problem), _) => {
                ReferenceError::new(self.named(), Problem::Invalid(problem))
            }
        })
    }
}
