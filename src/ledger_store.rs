//! Reads and writes the ledger's segments through the apiserver. A new leader reads them once, then writes them one by
//! one.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api, Client, Resource,
    api::{ListParams, PostParams},
    core::Request,
};
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use crate::{
    calls::{self, pause, within},
    claim::Claim,
    owner::Owner,
};
use llmtune_api::ledger_segment::LedgerSegment;
use llmtune_client::error_chain::ErrorChain;
use llmtune_core::event::object::Uid;
use llmtune_core::ledger::journal::{
    self, Flush, Found, Journal, LayOutError, LedgerLayout, NoLedger, Recovered, RecoveredState, Resolution, Segment,
};

/// Velero skips objects with this label. A ledger restored beside newer objects would cause repeated events.
const EXCLUDE_FROM_BACKUP: (&str, &str) = ("velero.io/exclude-from-backup", "true");
const REQUEST: Duration = Duration::from_secs(10);
/// The number of segments per page; each has up to a megabyte.
const PAGE: u32 = 16;
/// The number of entries that are laid out on this thread. They take about a millisecond; another thread would cost a
/// wake-up and a heap of its own.
const AT_ONCE: usize = 512;
const CLAIM_POLL: Duration = Duration::from_millis(50);

/// Why the ledger cannot be continued.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another leader has claimed it, or the store was restored.
    #[error(
        "segment {0} was changed by another leader or another process of the same --identity, deleted, or restored from a backup"
    )]
    Lost(String),
    #[error(transparent)]
    LayOut(#[from] LayOutError),
}

/// The ledger's segments in the apiserver.
#[derive(Clone)]
pub struct Store {
    client: Client,
    namespace: String,
    owner: Option<Owner>,
    /// The owner reference of the segments; set when the ledger is opened.
    belongs_to: Option<OwnerReference>,
    claim: Claim,
}

/// A ledger that is open and claimed.
pub struct Ledger {
    pub journal: Journal,
    pub memory: RecoveredState,
    /// Why a new epoch was started; `None` if the ledger continues.
    pub began: Option<NoLedger>,
}

impl Store {
    /// Creates a store for the segments in `namespace`. Segments get an owner reference to `owner`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, owner: Option<Owner>, claim: Claim) -> Self {
        Self { client, namespace: namespace.to_owned(), owner, belongs_to: None, claim }
    }

    fn api(&self) -> Api<LedgerSegment> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Reads the whole ledger and claims it. Retries until it succeeds. `leader` must be below 2^63 and unique among
    /// leaders. `epoch` must be newer than any that an earlier leader may have started.
    pub async fn open(&mut self, leader: u64, epoch: u64) -> Ledger {
        let mut failures = 0;
        loop {
            match self.try_open(leader, epoch).await {
                Ok(Some(ledger)) => return ledger,
                Ok(None) => info!("another leader wrote to the ledger during the claim; reading it again"),
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    warn!(
                        "LedgerSegment is not installed: apply the custom resource definitions of this release (crds/); trying again"
                    );
                    sleep(pause(failures)).await;
                    failures += 1;
                }
                Err(error) => {
                    warn!(error = %ErrorChain(&error), "the ledger cannot be used yet; trying again");
                    sleep(pause(failures)).await;
                    failures += 1;
                }
            }
        }
    }

    /// Returns `None` if another process wrote between the read and the claim.
    async fn try_open(&mut self, leader: u64, epoch: u64) -> Result<Option<Ledger>, kube::Error> {
        let begun = Instant::now();
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let home = within(REQUEST, namespaces.get(&self.namespace)).await?.metadata.uid;
        let Some(home) = home.as_deref().and_then(Uid::parse) else {
            return Err(kube::Error::Service(format!("namespace {} has no uid", self.namespace).into()));
        };
        if let Some(owner) = &self.owner {
            self.belongs_to = Some(within(REQUEST, owner.reference()).await?);
        }
        let found = self.read().await?;
        let read = begun.elapsed();
        // Not on another thread: nothing else runs yet, and the heap of that thread would keep the memory.
        let opened = journal::open(&found, home, LedgerLayout::default(), leader);
        drop(found);
        let new_epoch = |why: NoLedger, newest: u64| {
            let journal = Journal::begin(home, epoch.max(newest + 1), LedgerLayout::default(), leader);
            Ledger { journal, memory: RecoveredState::default(), began: Some(why) }
        };
        let mut ledger = match opened {
            Recovered::Ledger(journal, memory) => Ledger { journal: *journal, memory: *memory, began: None },
            Recovered::NoLedger { why, newest } => new_epoch(why, newest),
        };
        let claim = match ledger.journal.claim() {
            Ok(claim) => claim,
            Err(refused) => {
                error!(error = %refused, "the ledger's ring is full; starting a new epoch");
                let newest = ledger.journal.epoch();
                ledger = new_epoch(NoLedger::Full, newest);
                ledger.journal.claim().map_err(|error| kube::Error::Service(error.into()))?
            }
        };
        self.check_definition(&claim).await?;
        if self.write(&mut ledger.journal, &claim).await.is_err() {
            return Ok(None);
        }
        let Ledger { journal, memory, .. } = &ledger;
        let records: usize = memory.watches.iter().flat_map(|watch| &watch.records).map(HashMap::len).sum();
        info!(
            epoch = journal.epoch(), term = journal.term(), records, events = memory.events.len(), bytes = journal.bytes(),
            ?read, all = ?begun.elapsed(), "the ledger is open"
        );
        Ok(Some(ledger))
    }

    async fn read(&self) -> Result<Vec<Found>, kube::Error> {
        let api = self.api();
        let mut found = Vec::new();
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = within(REQUEST, api.list(&page)).await?;
            found.extend(list.items.into_iter().map(read));
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(found),
            }
        }
    }

    /// Writes a flush, one segment after the other. Returns once all are committed.
    pub async fn flush(self, mut journal: Journal, flush: Flush) -> (Journal, Result<(), LedgerError>) {
        let entries = flush.contents.len() + flush.snapshots.iter().map(|(_, contents)| contents.len()).sum::<usize>();
        let lay_out = move || {
            let segments = journal.lay_out(flush);
            (journal, segments)
        };
        let (mut journal, segments) = if entries <= AT_ONCE {
            lay_out()
        } else {
            match tokio::task::spawn_blocking(lay_out).await {
                Ok(laid_out) => laid_out,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        };
        let segments = match segments {
            Ok(segments) => segments,
            Err(error) => return (journal, Err(error.into())),
        };
        for segment in &segments {
            if let Err(error) = self.write(&mut journal, segment).await {
                return (journal, Err(error));
            }
        }
        (journal, Ok(()))
    }

    /// Writes one segment. Retries until it is committed, or fails if another process's segment is in its place.
    async fn write(&self, journal: &mut Journal, segment: &Segment) -> Result<(), LedgerError> {
        let mut failures = 0;
        loop {
            while !self.claim.holds() {
                sleep(CLAIM_POLL).await;
            }
            if let Some((before, version)) = journal.predecessor(segment) {
                match within(REQUEST, self.api().get_opt(&before)).await {
                    Ok(Some(found)) if found.metadata.resource_version.as_deref() == Some(version) => {}
                    Ok(_) => return Err(LedgerError::Lost(before)),
                    Err(error) => {
                        warn!(segment = segment.name, error = %ErrorChain(&error), "the ledger was not written; trying again");
                        sleep(pause(failures)).await;
                        failures += 1;
                        continue;
                    }
                }
            }
            let error = match self.put(segment, journal.version(segment)).await {
                Ok(version) => {
                    journal.committed(segment, version);
                    return Ok(());
                }
                Err(kube::Error::Api(status))
                    if status.code == 409 || (status.code == 404 && journal.version(segment).is_some()) =>
                {
                    match within(REQUEST, self.api().get_opt(&segment.name)).await {
                        Ok(found) => match journal.resolve(segment, found.map(read)) {
                            Resolution::Committed => return Ok(()),
                            Resolution::Overwrite => {
                                debug!(segment = segment.name, "replacing an older leader's late write");
                                continue;
                            }
                            Resolution::Lost => return Err(LedgerError::Lost(segment.name.clone())),
                        },
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            warn!(segment = segment.name, error = %ErrorChain(&error), "the ledger was not written; trying again");
            sleep(pause(failures)).await;
            failures += 1;
        }
    }

    /// Checks with a dry run that the apiserver stores the whole segment. An older custom resource definition drops
    /// unknown fields, and the ledger would become unreadable.
    async fn check_definition(&self, segment: &Segment) -> Result<(), kube::Error> {
        let mut probe = self.object(segment, None);
        probe.metadata.name = Some(format!("{}-probe", segment.name));
        let params = PostParams { dry_run: true, ..PostParams::default() };
        match within(REQUEST, self.api().create(&params, &probe)).await {
            Ok(kept) if kept.spec != probe.spec => {}
            // A quota may refuse the probe but allow the update of a segment. The real write reports such problems.
            Ok(_) | Err(kube::Error::Api(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
        let text = "the definition of LedgerSegment is another release's: apply the custom resource definitions of this release (crds/)";
        Err(kube::Error::Service(text.into()))
    }

    async fn put(&self, segment: &Segment, version: Option<&str>) -> Result<String, kube::Error> {
        let body = serde_json::to_vec(&self.object(segment, version)).map_err(kube::Error::SerdeError)?;
        let segments = Request::new(LedgerSegment::url_path(&(), Some(&self.namespace)));
        let params = PostParams::default();
        let request = match version {
            Some(_) => segments.replace(&segment.name, &params, body),
            None => segments.create(&params, body),
        };
        let written = within(REQUEST, calls::write(&self.client, request)).await?;
        Ok(written.resource_version.unwrap_or_default())
    }

    fn object(&self, segment: &Segment, version: Option<&str>) -> LedgerSegment {
        let (key, value) = EXCLUDE_FROM_BACKUP;
        let mut object = LedgerSegment::new(&segment.name, segment.spec.clone());
        object.metadata.labels = Some([(key.to_owned(), value.to_owned())].into());
        object.metadata.owner_references = self.belongs_to.clone().map(|owner| vec![owner]);
        object.metadata.resource_version = version.map(str::to_owned);
        object
    }
}

fn read(object: LedgerSegment) -> Found {
    let LedgerSegment { metadata, spec } = object;
    let segment = Segment { name: metadata.name.unwrap_or_default(), spec };
    Found { segment, version: metadata.resource_version.unwrap_or_default() }
}
