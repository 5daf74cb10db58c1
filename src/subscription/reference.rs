//! What a Webhook names: read by name, never listed or watched, kept fresh while it is used.
//!
//! A copy older than [`MAX_AGE`] is read again before it is used, and so is one that an endpoint refused, at most once in
//! [`GRACE`]. While the apiserver cannot be asked, the copy at hand is used on.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use tokio::time::Instant;
use tracing::warn;

use crate::{calls::within, causes::Causes, delivery::tls::Materials};

/// A copy older than this is read again before it is used.
pub const MAX_AGE: Duration = Duration::from_secs(30);
/// After a repeated or failed reading the copy at hand serves at least this long before the next one, whatever the endpoint
/// says of it: one that refuses everything must not cost the apiserver a call for each delivery.
pub const GRACE: Duration = Duration::from_secs(5);
/// The limit on one reading; an attempt waits for it, and as a rule has a copy to go on with.
const REQUEST: Duration = Duration::from_secs(5);

/// What an object is named for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    SigningKey,
    CaBundle,
    ClientCertificate,
}

/// The kinds of object that hold what is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Secret,
    ConfigMap,
}

/// An object that a Webhook names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Named {
    pub role: Role,
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
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
    /// What it holds is not what it should be; nothing of it is told.
    Invalid(String),
    /// The operator may not read it.
    Forbidden,
    /// The apiserver could not be asked.
    Unavailable(String),
}

/// Something that a Webhook names cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
pub struct ReferenceError {
    named: Named,
    problem: Problem,
}

impl fmt::Display for ReferenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Named { role, kind, namespace, name } = &self.named;
        let (kind, resource) = match kind {
            Kind::Secret => ("Secret", "secrets"),
            Kind::ConfigMap => ("ConfigMap", "configmaps"),
        };
        let field = role.field();
        match &self.problem {
            Problem::NotFound => {
                write!(
                    f,
                    "{kind} {name:?} does not exist in namespace {namespace}: create it, or name another in {field}"
                )
            }
            Problem::KeyNotFound(key) => match role {
                Role::ClientCertificate => {
                    write!(f, "{kind} {name:?} has no key {key:?}: name one of type kubernetes.io/tls in {field}")
                }
                _ => write!(f, "{kind} {name:?} has no key {key:?}: add the key, or name another in {field}.key"),
            },
            Problem::Empty(key) => {
                let what = match role {
                    Role::SigningKey => "at least 32 random bytes",
                    Role::CaBundle => "PEM certificates",
                    Role::ClientCertificate => "PEM",
                };
                write!(f, "key {key:?} of {kind} {name:?} is empty: put {what} there")
            }
            Problem::Invalid(problem) => write!(f, "{kind} {name:?}, which {field} names, cannot be used: {problem}"),
            Problem::Forbidden => write!(
                f,
                "the operator may not read {kind} {name:?}: grant its service account get on {resource} in namespace {namespace}, as charts/kustomize/rbac.yaml does"
            ),
            Problem::Unavailable(error) => write!(f, "{kind} {name:?} cannot be read just now: {error}"),
        }
    }
}

impl Role {
    const fn field(self) -> &'static str {
        match self {
            Self::SigningKey => "spec.secretRef",
            Self::CaBundle => "spec.tls.caBundleRef",
            Self::ClientCertificate => "spec.tls.clientCertificateRef",
        }
    }
}

impl ReferenceError {
    pub(super) const fn new(named: Named, problem: Problem) -> Self {
        Self { named, problem }
    }

    /// The reading broke off inside the operator.
    pub(super) fn broken(named: Named) -> Self {
        let text = "the operator broke off reading it: please report this with its log";
        Self::new(named, Problem::Unavailable(text.into()))
    }

    /// Whether waiting cannot help: somebody has to write the object anew.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!((self.named.role, &self.problem), (Role::SigningKey, Problem::Invalid(_)))
    }

    /// The reason that conditions and Events give.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        let [not_found, key_not_found, empty, invalid, forbidden, unavailable] = match self.named.role {
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

/// Reads objects by name.
pub struct Reader {
    client: Client,
    pub(super) materials: Materials,
}

impl Reader {
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, materials: Materials::default() }
    }

    /// The data of an object.
    pub(super) async fn data(&self, named: &Named) -> Result<Data, ReferenceError> {
        let Named { kind, namespace, name, .. } = named;
        let client = self.client.clone();
        let found = match kind {
            Kind::Secret => {
                let found = within(REQUEST, Api::<Secret>::namespaced(client, namespace).get_opt(name)).await;
                found.map(|found| {
                    let data = found.map(|secret| secret.data.unwrap_or_default());
                    data.map(|data| data.into_iter().map(|(key, bytes)| (key, bytes.0)).collect())
                })
            }
            Kind::ConfigMap => {
                let found = within(REQUEST, Api::<ConfigMap>::namespaced(client, namespace).get_opt(name)).await;
                found.map(|found| {
                    found.map(|map| {
                        let texts =
                            map.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes()));
                        let binary = map.binary_data.unwrap_or_default().into_iter();
                        texts.chain(binary.map(|(key, bytes)| (key, bytes.0))).collect()
                    })
                })
            }
        };
        let problem = match found {
            Ok(Some(values)) => return Ok(Data { named: named.clone(), values }),
            Ok(None) => Problem::NotFound,
            Err(kube::Error::Api(status)) if status.code == 403 => Problem::Forbidden,
            Err(error) => Problem::Unavailable(Causes(&error).to_string()),
        };
        Err(ReferenceError::new(named.clone(), problem))
    }
}

/// The data of an object that was read.
pub(super) struct Data {
    named: Named,
    values: BTreeMap<String, Vec<u8>>,
}

impl Data {
    /// Takes a key's bytes as stored, at least one.
    pub(super) fn take(&mut self, key: &str) -> Result<Vec<u8>, ReferenceError> {
        let problem = match self.values.remove(key) {
            None => Problem::KeyNotFound(key.to_owned()),
            Some(bytes) if bytes.is_empty() => Problem::Empty(key.to_owned()),
            Some(bytes) => return Ok(bytes),
        };
        Err(ReferenceError::new(self.named.clone(), problem))
    }
}

/// Where something lies that an attempt needs.
pub trait Referent: Clone + PartialEq + Send + Sync + 'static {
    /// What lies there.
    type Value: Send + Sync + 'static;

    /// The object that it lies in, the first where there are several.
    fn named(&self) -> Named;

    /// Reads it.
    fn read(&self, reader: &Reader) -> impl Future<Output = Result<Arc<Self::Value>, ReferenceError>> + Send;
}

/// Something that was there when this was made, and is kept fresh.
pub struct Kept<R: Referent> {
    reader: Arc<Reader>,
    referent: R,
    copy: Mutex<Copy<R::Value>>,
    reading: tokio::sync::Mutex<()>,
}

struct Copy<T> {
    value: Arc<T>,
    read_again: Instant,
    /// Refused before this, it still serves until then.
    serves_until: Instant,
}

impl<R: Referent> Kept<R> {
    /// Reads it for the first time.
    pub async fn read(reader: Arc<Reader>, referent: R) -> Result<Self, ReferenceError> {
        let value = referent.read(&reader).await?;
        let now = Instant::now();
        // The first copy may be refused at once: the object may have been put right together with the Webhook, and after it.
        let copy = Mutex::new(Copy { value, read_again: now + MAX_AGE, serves_until: now });
        Ok(Self { reader, referent, copy, reading: tokio::sync::Mutex::new(()) })
    }

    /// Where it lies.
    #[must_use]
    pub const fn referent(&self) -> &R {
        &self.referent
    }

    /// What lies there, at most [`MAX_AGE`] old. An error means that it is gone, or of no use any more.
    pub async fn current(&self) -> Result<Arc<R::Value>, ReferenceError> {
        if let Some(value) = self.fresh() {
            return Ok(value);
        }
        let _one_reader = self.reading.lock().await;
        if let Some(value) = self.fresh() {
            return Ok(value);
        }
        let result = self.referent.read(&self.reader).await;
        let mut copy = self.copy();
        let now = Instant::now();
        copy.serves_until = now + GRACE;
        match result {
            Ok(value) => {
                copy.value = value;
                copy.read_again = now + MAX_AGE;
            }
            Err(error) if matches!(error.problem, Problem::Unavailable(_)) => {
                let Named { namespace, .. } = &error.named;
                warn!(namespace, %error, "going on with the copy at hand");
                copy.read_again = copy.serves_until;
            }
            Err(error) => return Err(error),
        }
        Ok(Arc::clone(&copy.value))
    }

    /// Has it read again soon, as a rule before its next use: the endpoint refused it.
    pub fn expire(&self) {
        let mut copy = self.copy();
        copy.read_again = copy.read_again.min(Instant::now().max(copy.serves_until));
    }

    /// The newest copy, whatever its age.
    #[must_use]
    pub fn copy_at_hand(&self) -> Arc<R::Value> {
        Arc::clone(&self.copy().value)
    }

    fn fresh(&self) -> Option<Arc<R::Value>> {
        let copy = self.copy();
        (Instant::now() < copy.read_again).then(|| Arc::clone(&copy.value))
    }

    fn copy(&self) -> MutexGuard<'_, Copy<R::Value>> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
