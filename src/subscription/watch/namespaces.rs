//! Namespaces, followed for their labels while a `ClusterWebhook` selects by them.

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

/// The name of a Namespace that is asked after, and whom to tell once the engine knows what is known of it.
pub type Asked = (String, oneshot::Sender<()>);

/// What is learned of Namespaces.
pub enum NamespaceChange {
    /// One as it is.
    Seen(Seen),
    /// One is gone.
    Gone(String),
    /// All that exist have been seen. Comes once for each time that they are followed.
    Listed,
    /// They are no longer followed.
    Ended,
    /// The answer to a question; `None`: there is no such Namespace.
    Answered(Option<Seen>, oneshot::Sender<()>),
    /// The apiserver refuses to list them. It is asked again.
    Refused,
}

/// A Namespace as it was at a version.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub name: String,
    pub version: u64,
    pub labels: Labels,
    /// It is from a list, which has the last word.
    pub listed: bool,
}

/// The Namespaces.
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

    /// Follows them, or ceases to. Tells whether it has ceased now.
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

    /// Whether all that exist have been handed on.
    pub(super) fn are_listed(&self) -> bool {
        self.following.as_ref().is_some_and(|following| following.listed)
    }

    /// The next change; `None` where the watch has ended.
    pub(super) async fn next(&mut self) -> Option<NamespaceChange> {
        tokio::select! {
            change = next_of(&mut self.following) => change,
            // One that broke off has dropped whom to tell.
            Some(Ok((seen, told))) = self.lookups.join_next() => Some(NamespaceChange::Answered(seen, told)),
        }
    }

    /// Asks the apiserver for one Namespace: it may have been created just now, and word of its objects may have been faster.
    pub(super) fn ask(&mut self, (name, told): Asked) {
        // Nobody selects by labels any more.
        if self.following.is_some() {
            let client = self.client.clone();
            self.lookups.spawn(async move { (look_up(client, &name).await, told) });
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
                    // It may be there again already, under another uid.
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

/// The Namespace of this name as it is now, by a consistent list: a GET would be a right of its own. Asked until the apiserver tells.
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
