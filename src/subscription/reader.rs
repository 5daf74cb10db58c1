//! Reads Secrets and `ConfigMaps` by name. The operator never lists or watches them.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use secrecy::{ExposeSecret, SecretSlice};

use super::reference::{Named, Place, Problem, ReferenceError, ReferenceKind, Role};
use crate::{calls::within, transport::tls::Materials};
use llmtune_api::reference::SEND_IN_CLEAR;
use llmtune_client::error_chain::ErrorChain;

/// The time limit of one read. An attempt waits for the read, and usually has a cached copy if the read fails.
const REQUEST: Duration = Duration::from_secs(5);

/// Reads objects by name.
pub struct Reader {
    client: Client,
    pub(super) materials: Materials,
}

/// The read objects, or the errors.
#[derive(Default)]
pub(super) struct Objects(BTreeMap<Named, Result<Data, Problem>>);

/// The content of an object.
struct Data {
    values: BTreeMap<String, SecretSlice<u8>>,
    /// Whether the object's label allows sending its content to endpoints unchanged.
    may_be_sent: bool,
}

impl Reader {
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, materials: Materials::default() }
    }

    /// Reads these objects concurrently, each once.
    pub(super) async fn read(&self, mut objects: Vec<&Named>) -> Objects {
        objects.sort_unstable();
        objects.dedup();
        let reading = objects.into_iter().map(|object| async { (object.clone(), self.data(object).await) });
        Objects(join_all(reading).await.into_iter().collect())
    }

    async fn data(&self, Named { kind, namespace, name }: &Named) -> Result<Data, Problem> {
        let client = self.client.clone();
        let found = match kind {
            ReferenceKind::Secret => {
                let found = within(REQUEST, Api::<Secret>::namespaced(client, namespace).get_opt(name)).await;
                found.map(|found| found.map(Data::from))
            }
            ReferenceKind::ConfigMap => {
                let found = within(REQUEST, Api::<ConfigMap>::namespaced(client, namespace).get_opt(name)).await;
                found.map(|found| found.map(Data::from))
            }
        };
        match found {
            Ok(Some(data)) => Ok(data),
            Ok(None) => Err(Problem::NotFound),
            Err(kube::Error::Api(status)) if status.code == 403 => Err(Problem::Forbidden),
            // The text of this error quotes the response.
            Err(kube::Error::SerdeError(_)) => {
                Err(Problem::Unavailable("the response of the apiserver is not a valid object".into()))
            }
            Err(error) => Err(Problem::Unavailable(ErrorChain(&error).to_string())),
        }
    }
}

impl From<Secret> for Data {
    fn from(Secret { metadata, data, .. }: Secret) -> Self {
        let label = metadata.labels.as_ref().and_then(|labels| labels.get(SEND_IN_CLEAR));
        let values = data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0.into())).collect();
        Self { values, may_be_sent: label.is_some_and(|label| label == "true") }
    }
}

impl From<ConfigMap> for Data {
    fn from(map: ConfigMap) -> Self {
        let texts = map.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes().into()));
        let binary = map.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0.into()));
        Self { values: texts.chain(binary).collect(), may_be_sent: false }
    }
}

impl Objects {
    /// The bytes of a key. An empty value is an error.
    pub(super) fn bytes(&self, role: &Role, place: &Place) -> Result<&[u8], ReferenceError> {
        let refuse = |problem| Err(ReferenceError::new(role.clone(), &place.object, problem));
        match self.value(role, place)? {
            None => refuse(Problem::KeyNotFound(place.key.clone())),
            Some([]) => refuse(Problem::Empty(place.key.clone())),
            Some(bytes) => Ok(bytes),
        }
    }

    /// The bytes of a key, or `None` if the object does not have it.
    pub(super) fn value(&self, role: &Role, Place { object, key }: &Place) -> Result<Option<&[u8]>, ReferenceError> {
        let refuse = |problem| Err(ReferenceError::new(role.clone(), object, problem));
        match self.0.get(object) {
            None => refuse(Problem::NotFound),
            Some(Err(problem)) => refuse(problem.clone()),
            Some(Ok(data)) if role.is_sent_in_clear() && !data.may_be_sent => refuse(Problem::NotForSending),
            Some(Ok(data)) => Ok(data.values.get(key).map(ExposeSecret::expose_secret)),
        }
    }
}
