//! Follows the labels of Namespaces while a `ClusterWebhook` selects by them.

use std::{collections::HashMap, future::pending, time::Duration};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client,
    api::{ListParams, ObjectMeta, PartialObjectMeta},
    runtime::watcher::Config,
};
use tokio::{sync::oneshot, task::JoinSet, time::sleep};
use tracing::warn;

use crate::{
    calls::{pause, within},
    objects::{self, Objects},
};
use llmtune_client::error_chain::ErrorChain;
use llmtune_core::event::object::{Labels, Uid};

const REQUEST: Duration = Duration::from_secs(10);

/// The name of a Namespace to look up, and a channel to confirm on once the engine has the result.
pub type Asked = (String, oneshot::Sender<()>);

/// A change of the Namespaces.
pub enum NamespaceChange {
    /// A Namespace exists, in this state.
    Seen(Seen),
    /// A Namespace is gone.
    Gone(String),
    /// All existing Namespaces have been reported. Sent once each time that they are followed.
    Listed,
    /// They are no longer followed.
    Ended,
    /// The result of a lookup. `None` if the Namespace does not exist.
    Answered(Option<Seen>, oneshot::Sender<()>),
    /// The apiserver refuses the list. The list is retried.
    Refused,
}

/// A Namespace at a resource version.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub name: String,
    pub version: u64,
    pub labels: Labels,
    /// Whether it is from a list. A list overrides newer versions.
    pub listed: bool,
}

/// Follows Namespaces, and looks up single ones.
pub(super) struct Namespaces {
    client: Client,
    following: Option<Following>,
    lookups: JoinSet<(Option<Seen>, oneshot::Sender<()>)>,
}

struct Following {
    objects: Objects<PartialObjectMeta<Namespace>>,
    names: HashMap<Uid, String>,
    listed: bool,
}

impl Namespaces {
    pub(super) fn new(client: Client) -> Self {
        Self { client, following: None, lookups: JoinSet::new() }
    }

    /// Starts or stops following Namespaces. Returns true if this call has stopped it.
    pub(super) fn follow(&mut self, wanted: bool) -> bool {
        if !wanted {
            return self.following.take().is_some();
        }
        self.following.get_or_insert_with(|| Following {
            objects: Objects::watch_metadata(&self.client, &Config::default().timeout(30)),
            names: HashMap::new(),
            listed: false,
        });
        false
    }

    /// Whether all existing Namespaces have been reported.
    pub(super) fn are_listed(&self) -> bool {
        self.following.as_ref().is_some_and(|following| following.listed)
    }

    /// The next change, or `None` if the watch has ended.
    pub(super) async fn next(&mut self) -> Option<NamespaceChange> {
        tokio::select! {
            change = next_of(&mut self.following) => change,
            // A lookup that panicked has dropped its channel.
            Some(Ok((seen, confirm))) = self.lookups.join_next() => Some(NamespaceChange::Answered(seen, confirm)),
        }
    }

    /// Looks up one Namespace. An object of a new Namespace may arrive before the Namespace itself.
    pub(super) fn ask(&mut self, (name, confirm): Asked) {
        // Otherwise labels no longer matter, and dropping `confirm` ends the wait.
        if self.following.is_some() {
            let client = self.client.clone();
            self.lookups.spawn(async move { (look_up(client, &name).await, confirm) });
        }
    }
}

async fn next_of(following: &mut Option<Following>) -> Option<NamespaceChange> {
    match following {
        Some(following) => following.next().await,
        None => pending().await,
    }
}

impl Following {
    async fn next(&mut self) -> Option<NamespaceChange> {
        loop {
            match self.objects.next().await? {
                objects::ObjectChange::Seen { uid, object, listed } => {
                    let metadata = match object {
                        Ok(object) => object.metadata,
                        Err(invalid) => invalid.metadata,
                    };
                    let seen = seen(metadata, listed);
                    self.names.insert(uid, seen.name.clone());
                    return Some(NamespaceChange::Seen(seen));
                }
                objects::ObjectChange::Gone(uid) => {
                    let Some(name) = self.names.remove(&uid) else { continue };
                    // A Namespace of the same name may already exist again, with another uid.
                    if self.names.values().all(|other| *other != name) {
                        return Some(NamespaceChange::Gone(name));
                    }
                }
                objects::ObjectChange::Listed => {
                    self.listed = true;
                    return Some(NamespaceChange::Listed);
                }
                objects::ObjectChange::Refused => return Some(NamespaceChange::Refused),
            }
        }
    }
}

fn seen(metadata: ObjectMeta, listed: bool) -> Seen {
    Seen {
        name: metadata.name.unwrap_or_default(),
        version: metadata.resource_version.and_then(|version| version.parse().ok()).unwrap_or_default(),
        labels: metadata.labels.unwrap_or_default(),
        listed,
    }
}

/// Looks up the Namespace of this name with a consistent list, because a GET would need another right. Retries until
/// the apiserver answers.
async fn look_up(client: Client, name: &str) -> Option<Seen> {
    let api = Api::<PartialObjectMeta<Namespace>>::all(client);
    let params = ListParams::default().fields(&format!("metadata.name={name}"));
    let mut failures = 0;
    loop {
        match within(REQUEST, api.list(&params)).await {
            Ok(list) => return list.items.into_iter().next().map(|found| seen(found.metadata, false)),
            Err(error) => {
                warn!(namespace = name, error = %ErrorChain(&error), "the Namespace's labels cannot be read; trying again");
                sleep(pause(failures)).await;
                failures += 1;
            }
        }
    }
}
