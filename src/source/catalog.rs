//! `WebhookSource` objects as they come, change and go: each is compiled, and handed on.

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

/// Which `WebhookSource`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceRef {
    pub uid: Uid,
    pub name: String,
}

/// What changed about the sources that users ask for.
pub enum SourceChange {
    /// One is new, or its spec has changed.
    Applied(Box<Applied>),
    /// One is deleted.
    Removed(Uid),
    /// All that existed at the start have been handed on, or it is believed that there are none. Comes once.
    Listed,
}

/// A `WebhookSource` as it stands.
pub struct Applied {
    pub source: SourceRef,
    pub generation: i64,
    pub mapping: Result<Arc<Mapping>, MappingError>,
    /// Where the spec is invalid, the newest valid one that the status has recorded, with its generation.
    pub recorded: Option<(i64, Arc<Mapping>)>,
    /// Its status as found in the cluster.
    pub found: Box<WebhookSourceStatus>,
}

/// Hands on all sources that users ask for, until the receiver is gone or a watch has ended. An apiserver that refuses to list
/// them, since it does not know the kind or grants no right to it, is believed after `patience`: one that has just begun may do
/// both, and records of sources that are not there are forgotten.
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
                    // Statuses change too.
                    let news = generations.insert(uid, generation) != Some(generation);
                    news.then(|| applied(uid, object))
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
                info!("WebhookSources cannot be listed; going on as if there were none, until they can");
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

/// `Err`: one that this release cannot read, such as one of a newer release.
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
