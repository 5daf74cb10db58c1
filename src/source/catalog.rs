//! Follows `WebhookSource` objects: compiles each and sends it to the leader loop.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kube::{Client, ResourceExt, core::error_boundary::InvalidObject, runtime::watcher::Config};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use super::custom_source::{Mapping, MappingError};
use crate::objects::{self, Objects};
use llmtune_api::{WebhookSource, webhook_source::WebhookSourceStatus};
use llmtune_core::event::object::Uid;

/// Identifies a `WebhookSource`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceRef {
    pub uid: Uid,
    pub name: String,
}

/// A change of the `WebhookSource` objects.
pub enum SourceChange {
    /// A source is new, or its spec has changed.
    Applied(Box<Applied>),
    /// A source is deleted.
    Removed(Uid),
    /// All sources that existed at the start have been sent, or the list has been refused for too long. Sent once.
    Listed,
}

/// The current state of a `WebhookSource`.
pub struct Applied {
    pub source: SourceRef,
    pub generation: i64,
    pub mapping: Result<Arc<Mapping>, MappingError>,
    /// If the spec is invalid, the newest valid one that the status records, with its generation.
    pub recorded: Option<(i64, Arc<Mapping>)>,
    /// The status in the cluster.
    pub found: Box<WebhookSourceStatus>,
}

/// Sends all changes of `WebhookSource` objects until the receiver is dropped or a watch has ended.
///
/// If the apiserver refuses the list because the kind is not installed or the right is missing, the operator waits for
/// `patience` before it continues without sources. An apiserver that has just started may refuse for both reasons, and
/// the operator drops the records of sources that do not exist.
pub async fn follow(client: Client, changes: mpsc::Sender<SourceChange>, patience: Duration) {
    let mut sources = Objects::<WebhookSource>::watch_all(&client, &Config::default().timeout(30));
    let mut generations: HashMap<Uid, i64> = HashMap::new();
    let mut listed = false;
    let mut refused: Option<Instant> = None;
    loop {
        let change = tokio::select! {
            change = sources.next() => match change {
                Some(objects::ObjectChange::Seen { uid, object, .. }) => {
                    let metadata = match &object {
                        Ok(source) => &source.metadata,
                        Err(invalid) => &invalid.metadata,
                    };
                    let generation = metadata.generation.unwrap_or_default();
                    // Changes of the status do not change the generation.
                    let changed = generations.insert(uid, generation) != Some(generation);
                    changed.then(|| applied(uid, object))
                }
                Some(objects::ObjectChange::Gone(uid)) => {
                    generations.remove(&uid);
                    Some(SourceChange::Removed(uid))
                }
                Some(objects::ObjectChange::Listed) if listed => None,
                Some(objects::ObjectChange::Listed) => Some(SourceChange::Listed),
                Some(objects::ObjectChange::Refused) => {
                    refused.get_or_insert_with(Instant::now);
                    None
                }
                None => return,
            },
            () = sleep_until(refused.unwrap_or_else(Instant::now) + patience), if refused.is_some() && !listed => {
                info!("WebhookSources cannot be listed; continuing without them until they can");
                Some(SourceChange::Listed)
            }
        };
        listed |= matches!(change, Some(SourceChange::Listed));
        if let Some(change) = change
            && changes.send(change).await.is_err()
        {
            return;
        }
    }
}

/// `object` is an error if this release cannot read it, for example because a newer release wrote it.
fn applied(uid: Uid, object: Result<Box<WebhookSource>, Box<InvalidObject>>) -> SourceChange {
    let (metadata, mapping, found): (_, _, Box<WebhookSourceStatus>) = match object {
        Ok(source) => {
            let mapping = Mapping::compile(&source.name_any(), &source.spec).map(Arc::new);
            (source.metadata, mapping, Box::new(source.status.unwrap_or_default()))
        }
        Err(invalid) => (invalid.metadata, Err(MappingError::Unreadable(invalid.error)), Box::default()),
    };
    let name = metadata.name.unwrap_or_default();
    if let Err(error) = &mapping {
        warn!(webhook_source = name, %error, "the WebhookSource cannot be used");
    }
    let recorded = found.in_force.as_ref().filter(|_| mapping.is_err()).and_then(|record| {
        let mapping = Mapping::compile(&name, &record.spec);
        mapping.ok().map(|mapping| (record.generation, Arc::new(mapping)))
    });
    let generation = metadata.generation.unwrap_or_default();
    SourceChange::Applied(Box::new(Applied { source: SourceRef { uid, name }, generation, mapping, recorded, found }))
}
