//! References of a Webhook to keys of Secrets and `ConfigMaps`, and their errors. Errors never contain the content of an
//! object.

use std::fmt;

use super::url::UrlError;
use llmtune_api::reference::{SEND_IN_CLEAR, ValueSource};

/// The kind of a referenced object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReferenceKind {
    Secret,
    ConfigMap,
}

/// A referenced object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Named {
    pub kind: ReferenceKind,
    pub namespace: String,
    pub name: String,
}

/// A key of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub object: Named,
    pub key: String,
}

impl Place {
    /// The key that a spec references in this namespace.
    pub(super) fn of(ValueSource { secret_key_ref: of }: &ValueSource, namespace: &str) -> Self {
        let object = Named { kind: ReferenceKind::Secret, namespace: namespace.to_owned(), name: of.name.clone() };
        Self { object, key: of.key.clone() }
    }
}

/// The purpose of a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    Url,
    /// The header with this name.
    Header(String),
    SigningKey,
    CaBundle,
    ClientCertificate,
    /// The header with this name of a query to Prometheus.
    QueryHeader(String),
    /// The user name and the password of a query to Prometheus.
    BasicAuth,
}

/// Why a reference cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The object does not exist.
    NotFound,
    /// The object does not have the key.
    KeyNotFound(String),
    /// The key is empty.
    Empty(String),
    /// The content is invalid.
    Invalid(String),
    /// The key does not contain a valid URL.
    Url(String, UrlError),
    /// The content would be sent in clear, and the object does not have the label that allows it.
    NotForSending,
    /// The operator may not read it.
    Forbidden,
    /// The read failed for another reason and is retried.
    Unavailable(String),
}

/// A reference that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ReferenceError {
    pub(super) role: Role,
    pub(super) object: Named,
    pub(super) problem: Problem,
}

impl ReferenceKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
        }
    }

    const fn resource(self) -> &'static str {
        match self {
            Self::Secret => "secrets",
            Self::ConfigMap => "configmaps",
        }
    }
}

/// Formats the field of the reference.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url => f.write_str("spec.urlFrom.secretKeyRef"),
            Self::Header(name) => write!(f, "spec.headers[{name}].valueFrom.secretKeyRef"),
            Self::SigningKey => f.write_str("spec.secretRef"),
            Self::CaBundle => f.write_str("spec.tls.caBundleRef"),
            Self::ClientCertificate => f.write_str("spec.tls.clientCertificateRef"),
            Self::QueryHeader(name) => write!(f, "spec.prometheus.headers[{name}].valueFrom.secretKeyRef"),
            Self::BasicAuth => f.write_str("spec.prometheus.basicAuthRef"),
        }
    }
}

impl fmt::Display for ReferenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, object: Named { kind, namespace, name }, problem } = self;
        let (kind, resource) = (kind.name(), kind.resource());
        match problem {
            Problem::NotFound => {
                write!(
                    f,
                    "{kind} {name:?} does not exist in namespace {namespace}: create it, or name another in {role}"
                )
            }
            Problem::KeyNotFound(key) => match role {
                Role::ClientCertificate => {
                    write!(f, "{kind} {name:?} has no key {key:?}: name a Secret of type kubernetes.io/tls in {role}")
                }
                Role::BasicAuth => {
                    write!(
                        f,
                        "{kind} {name:?} has no key {key:?}: name a Secret of type kubernetes.io/basic-auth in {role}"
                    )
                }
                _ => write!(f, "{kind} {name:?} has no key {key:?}: add the key, or name another in {role}.key"),
            },
            Problem::Empty(key) => {
                let content = match role {
                    Role::Url => "the URL",
                    Role::Header(_) | Role::QueryHeader(_) => "the header's value",
                    Role::BasicAuth => "the user name or the password",
                    Role::SigningKey => "at least 32 random bytes",
                    Role::CaBundle => "PEM certificates",
                    Role::ClientCertificate => "PEM",
                };
                write!(f, "key {key:?} of {kind} {name:?} is empty: put {content} there")
            }
            Problem::Invalid(problem) => write!(f, "{kind} {name:?} in {role} cannot be used: {problem}"),
            Problem::Url(key, error) => {
                write!(f, "key {key:?} of {kind} {name:?} in {role} cannot be used: {error}")
            }
            Problem::NotForSending => write!(
                f,
                "{kind} {name:?} in {role} would be sent in clear, but does not have the label that allows it; to allow it, run: kubectl -n {namespace} label secret {name} {SEND_IN_CLEAR}=true --overwrite"
            ),
            Problem::Forbidden => write!(
                f,
                "the operator may not read {kind} {name:?}: grant its service account get on {resource} in namespace {namespace}, as charts/kustomize/rbac.yaml does"
            ),
            Problem::Unavailable(error) => write!(f, "{kind} {name:?} cannot be read: {error}"),
        }
    }
}

impl Role {
    /// Whether the content is sent to the endpoint unchanged.
    pub(super) const fn is_sent_in_clear(&self) -> bool {
        matches!(self, Self::Url | Self::Header(_) | Self::QueryHeader(_) | Self::BasicAuth)
    }
}

impl ReferenceError {
    pub(super) fn new(role: Role, object: &Named, problem: Problem) -> Self {
        Self { role, object: object.clone(), problem }
    }

    /// Whether the object must be changed before the reference can work.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        match self.problem {
            Problem::Url(..) => true,
            Problem::Invalid(_) => {
                matches!(self.role, Role::SigningKey | Role::Header(_) | Role::QueryHeader(_) | Role::BasicAuth)
            }
            _ => false,
        }
    }

    /// The reason in conditions and Events.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        let [not_found, key_not_found, empty, invalid, forbidden, unavailable] = match self.role {
            Role::Url => [
                "URLSecretNotFound",
                "URLSecretKeyNotFound",
                "URLSecretEmpty",
                "InvalidURL",
                "URLSecretForbidden",
                "URLSecretUnavailable",
            ],
            Role::Header(_) | Role::QueryHeader(_) => [
                "HeaderSecretNotFound",
                "HeaderSecretKeyNotFound",
                "HeaderSecretEmpty",
                "InvalidHeader",
                "HeaderSecretForbidden",
                "HeaderSecretUnavailable",
            ],
            Role::SigningKey => [
                "SecretNotFound",
                "SecretKeyNotFound",
                "SecretEmpty",
                "InvalidSecret",
                "SecretForbidden",
                "SecretUnavailable",
            ],
            Role::CaBundle => [
                "CABundleNotFound",
                "CABundleKeyNotFound",
                "CABundleEmpty",
                "CABundleInvalid",
                "CABundleForbidden",
                "CABundleUnavailable",
            ],
            Role::ClientCertificate => [
                "ClientCertificateNotFound",
                "ClientCertificateKeyNotFound",
                "ClientCertificateEmpty",
                "ClientCertificateInvalid",
                "ClientCertificateForbidden",
                "ClientCertificateUnavailable",
            ],
            Role::BasicAuth => [
                "BasicAuthNotFound",
                "BasicAuthKeyNotFound",
                "BasicAuthEmpty",
                "InvalidBasicAuth",
                "BasicAuthForbidden",
                "BasicAuthUnavailable",
            ],
        };
        match self.problem {
            Problem::NotFound => not_found,
            Problem::KeyNotFound(_) => key_not_found,
            Problem::Empty(_) => empty,
            Problem::Invalid(_) => invalid,
            Problem::Url(_, error) => error.reason(),
            Problem::NotForSending => "SendInClearNotAllowed",
            Problem::Forbidden => forbidden,
            Problem::Unavailable(_) => unavailable,
        }
    }
}
