//! What a Webhook names, and what may be wrong with it. Nothing of what lies there is told.

use std::fmt;

/// The kinds of object that hold what is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Secret,
    ConfigMap,
}

/// An object that is named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

/// A key of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub object: Named,
    pub key: String,
}

/// What something is named for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    SigningKey,
    CaBundle,
    ClientCertificate,
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
    /// The operator may not read it.
    Forbidden,
    /// The apiserver could not be asked.
    Unavailable(String),
}

/// Something that a Webhook names cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
pub struct ReferenceError {
    pub(super) role: Role,
    pub(super) object: Named,
    pub(super) problem: Problem,
}

impl Kind {
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
        f.write_str(match self {
            Self::SigningKey => "spec.secretRef",
            Self::CaBundle => "spec.tls.caBundleRef",
            Self::ClientCertificate => "spec.tls.clientCertificateRef",
        })
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
                _ => write!(f, "{kind} {name:?} has no key {key:?}: add the key, or name another in {role}.key"),
            },
            Problem::Empty(key) => {
                let what = match role {
                    Role::SigningKey => "at least 32 random bytes",
                    Role::CaBundle => "PEM certificates",
                    Role::ClientCertificate => "PEM",
                };
                write!(f, "key {key:?} of {kind} {name:?} is empty: put {what} there")
            }
            Problem::Invalid(problem) => write!(f, "{kind} {name:?}, which {role} names, cannot be used: {problem}"),
            Problem::Forbidden => write!(
                f,
                "the operator may not read {kind} {name:?}: grant its service account get on {resource} in namespace {namespace}, as charts/llmtune-webhooks/rbac.yaml does"
            ),
            Problem::Unavailable(error) => write!(f, "{kind} {name:?} cannot be read just now: {error}"),
        }
    }
}

impl ReferenceError {
    pub(super) fn new(role: Role, object: &Named, problem: Problem) -> Self {
        Self { role, object: object.clone(), problem }
    }

    /// Whether waiting cannot help: somebody has to write the object anew.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!((self.role, &self.problem), (Role::SigningKey, Problem::Invalid(_)))
    }

    /// The reason that conditions and Events give.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        let [not_found, key_not_found, empty, invalid, forbidden, unavailable] = match self.role {
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
        };
        match self.problem {
            Problem::NotFound => not_found,
            Problem::KeyNotFound(_) => key_not_found,
            Problem::Empty(_) => empty,
            Problem::Invalid(_) => invalid,
            Problem::Forbidden => forbidden,
            Problem::Unavailable(_) => unavailable,
        }
    }
}
