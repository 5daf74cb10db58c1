//! The TLS settings of one Webhook: the CA bundle that it trusts in addition to the system's roots, and its client
//! certificate.

use std::sync::Arc;

use super::{
    reader::Objects,
    reference::{Named, Place, Problem, ReferenceError, ReferenceKind, Role},
};
use crate::transport::tls::{Materials, TlsConfig, Unusable};
use llmtune_api::reference::{BundleKind, Tls};

/// The reason of the Event for a CA bundle with invalid parts.
pub const BUNDLE_INVALID: &str = "CABundlePartlyInvalid";

/// The references in `spec.tls`. At least one of the two is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsReference {
    bundle: Option<Place>,
    certificate: Option<Named>,
}

impl TlsReference {
    /// The references of a spec, to objects in this namespace. `None` if there are none.
    #[must_use]
    pub fn of(spec: &Tls, namespace: &str) -> Option<Self> {
        let named = |kind, name: &str| Named { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        let bundle = spec.ca_bundle_ref.as_ref().map(|bundle| {
            let kind = match bundle.kind {
                BundleKind::ConfigMap => ReferenceKind::ConfigMap,
                BundleKind::Secret => ReferenceKind::Secret,
            };
            Place { object: named(kind, &bundle.name), key: bundle.key.clone() }
        });
        let certificate = spec.client_certificate_ref.as_ref();
        let certificate = certificate.map(|certificate| named(ReferenceKind::Secret, &certificate.name));
        (bundle.is_some() || certificate.is_some()).then_some(Self { bundle, certificate })
    }

    /// The referenced objects, with the purpose of each.
    pub(super) fn named(&self) -> impl Iterator<Item = (Role, &Named)> {
        let bundle = self.bundle.as_ref().map(|bundle| (Role::CaBundle, &bundle.object));
        bundle.into_iter().chain(self.certificate.as_ref().map(|object| (Role::ClientCertificate, object)))
    }

    /// The note of the Event for a CA bundle with invalid parts.
    pub(super) fn warn_of(&self, problem: &str) -> String {
        match &self.bundle {
            Some(Place { object: Named { name, .. }, key }) => {
                format!("{}, key {key:?} of {name:?}: {problem}; the rest of the bundle is used", Role::CaBundle)
            }
            None => problem.to_owned(),
        }
    }

    /// The TLS configuration. Webhooks with the same material share it.
    pub(super) fn find(&self, objects: &Objects, materials: &Materials) -> Result<Arc<TlsConfig>, ReferenceError> {
        let bundle = self.bundle.as_ref().map(|place| objects.bytes(&Role::CaBundle, place)).transpose()?;
        let mut identity = None;
        if let Some(object) = &self.certificate {
            let key = |key: &str| {
                let place = Place { object: object.clone(), key: key.to_owned() };
                objects.bytes(&Role::ClientCertificate, &place)
            };
            identity = Some((key("tls.crt")?, key("tls.key")?));
        }
        materials.get(bundle, identity).map_err(|unusable| {
            let bundle = self.bundle.as_ref().map(|place| &place.object);
            let (role, object, problem) = match unusable {
                Unusable::Bundle(problem) => (Role::CaBundle, bundle, problem),
                Unusable::Certificate(problem) => (Role::ClientCertificate, self.certificate.as_ref(), problem),
            };
            match object {
                Some(object) => ReferenceError::new(role, object, Problem::Invalid(problem)),
                None => unreachable!("only referenced objects can be unusable"),
            }
        })
    }
}
