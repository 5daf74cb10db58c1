//! What a Webhook names, and what may be wrong with it. Nothing of what lies there is told.

use std::fmt;

use super::url::UrlError;
use llmtune_api::reference::{SEND_IN_CLEAR, ValueSource};

/// The kinds of object that hold what is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReferenceKind {
    Secret,
    ConfigMap,
}

/// An object that is named.
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
    /// The key that this names in a namespace.
    pub(super) fn of(ValueSource { secret_key_ref: of }: &ValueSource, namespace: &str) -> Self {
        let object = Named { kind: ReferenceKind::Secret, namespace: namespace.to_owned(), name: of.name.clone() };
        Self { object, key: of.key.clone() }
    }
}

/// What something is named for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    Url,
    /// The header of this name.
    Header(String),
    SigningKey,
    CaBundle,
    ClientCertificate,
    /// The header of this name of a query to a Prometheus.
    QueryHeader(String),
    /// User name and password of such a query.
    BasicAuth,
}

/// Why what is named cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// There is no such object.
    NotFound,
    /// It has no such key.
    KeyNotFound(String),
    /// The key holds nothing.
    Empty(String),
    /// What it holds is not what it should be.
    Invalid(String),
    /// The key holds no URL to send to.
    Url(String, UrlError),
    /// It would be sent in clear, and does not bear the label that allows that.
    NotForSending,
    /// The operator may not read it.
    Forbidden,
    /// The apiserver could not be asked.
    Unavailable(String),
}

/// Something that a Webhook names cannot be had.
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

/// The field that names it.
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
                    write!(f, "{kind} {name:?} has no key {key:?}: name one of type kubernetes.io/tls in {role}")
                }
                Role::BasicAuth => {
                    write!(f, "{kind} {name:?} has no key {key:?}: name one of type kubernetes.io/basic-auth in {role}")
                }
                _ => write!(f, "{kind} {name:?} has no key {key:?}: add the key, or name another in {role}.key"),
            },
            Problem::Empty(key) => {
                let what = match role {
                    Role::Url => "the URL",
                    Role::Header(_) | Role::QueryHeader(_) => "the header's value",
                    Role::BasicAuth => "the user name or the password",
                    Role::SigningKey => "at least 32 random bytes",
                    Role::CaBundle => "PEM certificates",
                    Role::ClientCertificate => "PEM",
                };
                write!(f, "key {key:?} of {kind} {name:?} is empty: put {what} there")
            }
            Problem::Invalid(problem) => write!(f, "{kind} {name:?}, which {role} names, cannot be used: {problem}"),
            Problem::Url(key, error) => {
                write!(f, "key {key:?} of {kind} {name:?}, which {role} names, cannot be used: {error}")
            }
            Problem::NotForSending => write!(
                f,
                "{kind} {name:?}, which {role} names, would be sent in clear, and does not bear the label that allows it; if that is meant: kubectl -n {namespace} label secret {name} {SEND_IN_CLEAR}=true --overwrite"
            ),
            Problem::Forbidden => write!(
                f,
                "the operator may not read {kind} {name:?}: grant its service account get on {resource} in namespace {namespace}, as charts/kustomize/rbac.yaml does"
            ),
            Problem::Unavailable(error) => write!(f, "{kind} {name:?} cannot be read just now: {error}"),
        }
    }
}

impl Role {
    /// Whether the endpoint is sent what lies there, as it is.
    pub(super) const fn is_sent_in_clear(&self) -> bool {
        matches!(self, Self::Url | Self::Header(_) | Self::QueryHeader(_) | Self::BasicAuth)
    }
}

impl ReferenceError {
    pub(super) fn new(role: Role, object: &Named, problem: Problem) -> Self {
        Self { role, object: object.clone(), problem }
    }

    /// Whether waiting cannot help: somebody has to write the object anew.
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

    /// The reason that conditions and Events give.
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
