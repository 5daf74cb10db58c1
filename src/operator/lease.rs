//! Leader election on a Lease, with client-go's semantics: every write carries the resourceVersion, expiry is judged by
//! this process's monotonic clock from its own observations, and the Lease is released on a graceful stop.
//!
//! 1. A claim ends two thirds of a lease's duration after the last renewal that landed was sent; whoever begins an attempt
//!    or a write asks the claim first.
//! 2. A renewal after a lapse lands only if nobody wrote the Lease meanwhile: then the leader goes on, else it has lost.

use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client, Resource,
    api::{PostParams, WatchEvent, WatchParams},
};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, info, warn};

use crate::{calls::within, claim::Claim, owner::Owner};
use llmtune_client::error_chain::ErrorChain;

/// A watch that ends at once, as through a proxy, is not opened anew at once.
const SHORTEST_WATCH: Duration = Duration::from_millis(250);

/// The Lease's name, in the operator's namespace.
pub const LEASE: &str = "llmtune-webhooks";

/// How this process takes part in the election.
#[derive(Clone)]
pub struct Elector {
    api: Api<Lease>,
    identity: String,
    duration: Duration,
    owner: Option<Owner>,
}

/// The Lease as another held it, and when it was first seen so: errors in between do not prolong it.
struct Observed {
    version: Option<String>,
    expiry: Instant,
}

/// A Lease that is held, and renewed in the background.
pub struct Leadership {
    /// The right to act.
    pub claim: Claim,
    /// Milliseconds after 1970 at which the Lease was acquired, by a clock that never goes back from leader to leader.
    pub acquired: u64,
    /// The Lease.
    pub lease: ObjectReference,
    /// Resolves once another has taken the Lease, with its identity.
    pub lost: oneshot::Receiver<String>,
    release: oneshot::Sender<()>,
    renewing: JoinHandle<()>,
}

impl Leadership {
    /// Gives the Lease back, so that another can take it at once. Begin nothing afterwards.
    pub async fn release(self) {
        let _ = self.release.send(());
        if let Err(error) = self.renewing.await {
            warn!(error = %ErrorChain(&error), "the lease was not released");
        }
    }
}

/// What came of a write.
enum Written {
    Landed(Box<Lease>),
    Conflict,
}

impl Elector {
    /// An elector for the Lease in `namespace`. `duration`: after how long without a renewal others may take the Lease. `owner`: what it
    /// belongs to where it has to be created.
    #[must_use]
    pub fn new(client: Client, namespace: &str, identity: String, duration: Duration, owner: Option<Owner>) -> Self {
        Self { api: Api::namespaced(client, namespace), identity, duration, owner }
    }

    /// As client-go's 15, 10 and 2 seconds: how long a leader may act after a renewal.
    fn renew_deadline(&self) -> Duration {
        self.duration * 2 / 3
    }

    fn retry_period(&self) -> Duration {
        self.duration * 2 / 15
    }

    fn request_timeout(&self) -> Duration {
        self.duration / 3
    }

    /// Waits until this process holds the Lease. `standing_by` is told once the holder is known to be another.
    pub async fn acquire(&self, standing_by: impl Fn(&str)) -> Leadership {
        let mut observed = Observed { version: None, expiry: Instant::now() };
        loop {
            match self.try_acquire(&standing_by, &mut observed).await {
                Ok(Some(leadership)) => return leadership,
                Ok(None) => {}
                Err(error) => {
                    warn!(error = %ErrorChain(&error), "cannot take part in the election; trying again");
                    sleep(self.retry_period()).await;
                }
            }
        }
    }

    async fn try_acquire(
        &self,
        standing_by: &impl Fn(&str),
        observed: &mut Observed,
    ) -> Result<Option<Leadership>, kube::Error> {
        let Some(found) = self.call(self.api.get_opt(LEASE)).await? else {
            return self.lead(None).await;
        };
        let holder = holder(&found);
        if holder.is_empty() || holder == self.identity {
            return self.lead(Some(&found)).await;
        }
        standing_by(&holder);
        match self.follow(found, observed).await? {
            Some(expired) => self.lead(Some(&expired)).await,
            None => Ok(None),
        }
    }

    /// Watches the Lease until it is free or expires: by this process's clock, nobody renewed it for its duration.
    async fn follow(&self, mut lease: Lease, observed: &mut Observed) -> Result<Option<Lease>, kube::Error> {
        let params = WatchParams::default().fields(&format!("metadata.name={LEASE}")).timeout(60);
        self.observe(&lease, observed);
        'watch: loop {
            let version = lease.metadata.resource_version.clone().unwrap_or_default();
            let opened = timeout(self.request_timeout(), self.api.watch(&params, &version)).await;
            let Ok(Ok(stream)) = opened else {
                if Instant::now() >= observed.expiry {
                    return Ok(Some(lease));
                }
                sleep(self.retry_period().min(observed.expiry.saturating_duration_since(Instant::now()))).await;
                match self.call(self.api.get_opt(LEASE)).await? {
                    None => return Ok(None),
                    Some(found) if found.metadata.resource_version != lease.metadata.resource_version => {
                        self.observe(&found, observed);
                        lease = found;
                        if holder(&lease).is_empty() {
                            return Ok(Some(lease));
                        }
                    }
                    Some(_) => {}
                }
                continue;
            };
            let mut stream = std::pin::pin!(stream);
            loop {
                let event = tokio::select! {
                    () = sleep_until(observed.expiry) => return Ok(Some(lease)),
                    event = stream.next() => event,
                };
                match event {
                    Some(Ok(WatchEvent::Added(found) | WatchEvent::Modified(found))) => {
                        self.observe(&found, observed);
                        lease = found;
                        if holder(&lease).is_empty() {
                            return Ok(Some(lease));
                        }
                    }
                    Some(Ok(WatchEvent::Deleted(_))) => return Ok(None),
                    Some(Ok(WatchEvent::Bookmark(_))) => {}
                    Some(Ok(WatchEvent::Error(_)) | Err(_)) => {
                        let found = self.call(self.api.get_opt(LEASE)).await?;
                        let Some(found) = found else { return Ok(None) };
                        if found.metadata.resource_version != lease.metadata.resource_version {
                            return Ok(None);
                        }
                        sleep(self.retry_period().min(observed.expiry.saturating_duration_since(Instant::now()))).await;
                        continue 'watch;
                    }
                    None => {
                        sleep(SHORTEST_WATCH).await;
                        continue 'watch;
                    }
                }
            }
        }
    }

    /// A Lease that was renewed since it was last seen expires its duration from now on.
    fn observe(&self, lease: &Lease, observed: &mut Observed) {
        let version = &lease.metadata.resource_version;
        if observed.version != *version {
            let expiry = Instant::now() + lease_duration(lease).unwrap_or(self.duration);
            *observed = Observed { version: version.clone(), expiry };
        }
    }

    /// Writes the Lease as this process's. `None` where another was faster.
    async fn lead(&self, found: Option<&Lease>) -> Result<Option<Leadership>, kube::Error> {
        let owner = match &self.owner {
            Some(owner) if found.is_none() => Some(self.call(owner.reference()).await?),
            _ => None,
        };
        let begun = Instant::now();
        let before = found.and_then(|lease| lease.spec.as_ref());
        // Later than whatever the leader before wrote, whose clock may be ahead: epochs are taken from it.
        let times = before.map(|spec| [spec.acquire_time.clone(), spec.renew_time.clone()]);
        let latest = times.into_iter().flatten().flatten().map(|time| time.0).max().unwrap_or(Timestamp::MIN);
        let now = Timestamp::now().max(latest.checked_add(Duration::from_millis(1)).unwrap_or(Timestamp::MAX));
        let acquired = now.as_millisecond().unsigned_abs();
        let now = MicroTime(now);
        let same = found.is_some_and(|lease| holder(lease) == self.identity);
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or_default();
        let lease = Lease {
            // With the labels, annotations and owners that others gave it.
            metadata: found.map_or_else(
                || ObjectMeta {
                    name: Some(LEASE.into()),
                    owner_references: owner.map(|owner| vec![owner]),
                    ..ObjectMeta::default()
                },
                |lease| lease.metadata.clone(),
            ),
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(self.duration.as_secs().max(1) as i32),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_transitions: Some(if same || found.is_none() { transitions } else { transitions + 1 }),
                ..LeaseSpec::default()
            }),
        };
        let Written::Landed(lease) = self.write(&lease).await? else { return Ok(None) };
        info!(identity = self.identity, "leading");
        let claim = Claim::until(begun + self.renew_deadline());
        let (lost_sender, lost) = oneshot::channel();
        let (release, released) = oneshot::channel();
        let reference = lease.object_ref(&());
        let renewing = tokio::spawn(self.clone().renew(*lease, claim.clone(), lost_sender, released));
        Ok(Some(Leadership { claim, acquired, lease: reference, lost, release, renewing }))
    }

    /// Renews the Lease until it is lost or to be released.
    async fn renew(
        self,
        mut lease: Lease,
        claim: Claim,
        lost: oneshot::Sender<String>,
        mut released: oneshot::Receiver<()>,
    ) {
        let (since, acquired) = (Instant::now(), lease.spec.as_ref().and_then(|spec| spec.acquire_time.clone()));
        loop {
            tokio::select! {
                () = sleep(self.retry_period()) => {}
                _ = &mut released => return self.give_back(lease, &claim).await,
            }
            let begun = Instant::now();
            let mut renewed = lease.clone();
            // Time goes on from the Lease's own, which a leader whose clock is ahead may have written: the next epoch is taken from it.
            let own = acquired.as_ref().and_then(|time| time.0.checked_add(since.elapsed()).ok());
            let time = Timestamp::now().max(own.unwrap_or(Timestamp::MIN));
            renewed.spec.get_or_insert_default().renew_time = Some(MicroTime(time));
            match self.write(&renewed).await {
                Ok(Written::Landed(written)) => {
                    if !claim.holds() {
                        info!("the lease had lapsed, and nobody held it meanwhile; going on");
                    }
                    lease = *written;
                    claim.extend(begun + self.renew_deadline());
                }
                Ok(Written::Conflict) => match self.call(self.api.get_opt(LEASE)).await {
                    // A renewal of ours had landed although its answer never came.
                    Ok(Some(found)) if self.is_ours(&found, &lease) => lease = found,
                    Ok(found) => {
                        claim.end();
                        let holder = found.as_ref().map(holder).unwrap_or_default();
                        let _ = lost.send(holder);
                        return;
                    }
                    Err(error) => warn!(error = %ErrorChain(&error), "the lease was not renewed; trying again"),
                },
                Err(error) => {
                    warn!(error = %ErrorChain(&error), leading = claim.holds(), "the lease was not renewed; trying again");
                }
            }
        }
    }

    /// Whether the Lease differs from the one last seen by our own renewals alone.
    fn is_ours(&self, found: &Lease, known: &Lease) -> bool {
        let of = |lease: &Lease| {
            let spec = lease.spec.clone().unwrap_or_default();
            (lease.metadata.uid.clone(), spec.holder_identity, spec.acquire_time, spec.lease_transitions)
        };
        holder(found) == self.identity && of(found) == of(known)
    }

    async fn give_back(&self, mut lease: Lease, claim: &Claim) {
        claim.end();
        let released = match self.write(&freed(&lease)).await {
            Ok(Written::Conflict) => match self.call(self.api.get_opt(LEASE)).await {
                // A renewal of ours had landed although its answer never came.
                Ok(Some(found)) if self.is_ours(&found, &lease) => {
                    lease = found;
                    self.write(&freed(&lease)).await
                }
                Ok(_) => Ok(Written::Conflict),
                Err(error) => Err(error),
            },
            released => released,
        };
        match released {
            Ok(Written::Landed(_)) => info!("the lease is released"),
            Ok(Written::Conflict) => debug!("the lease had been taken before it was released"),
            Err(error) => {
                warn!(error = %ErrorChain(&error), "the lease was not released; others take it when it expires");
            }
        }
    }

    async fn write(&self, lease: &Lease) -> Result<Written, kube::Error> {
        let params = PostParams::default();
        let result = if lease.metadata.resource_version.is_some() {
            self.call(self.api.replace(LEASE, &params, lease)).await
        } else {
            self.call(self.api.create(&params, lease)).await
        };
        match result {
            Ok(lease) => Ok(Written::Landed(Box::new(lease))),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Written::Conflict),
            // It was deleted, perhaps together with its namespace.
            Err(kube::Error::Api(status)) if status.code == 404 && lease.metadata.resource_version.is_some() => {
                Ok(Written::Conflict)
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let text = format!("{}: create the namespace, or name another with --namespace", status.message);
                Err(kube::Error::Service(text.into()))
            }
            Err(error) => Err(error),
        }
    }

    async fn call<T>(&self, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
        within(self.request_timeout(), request).await
    }
}

/// The Lease without a holder, as client-go gives it back.
fn freed(lease: &Lease) -> Lease {
    let mut freed = lease.clone();
    let spec = freed.spec.get_or_insert_default();
    // Not before what was written last: the next leader's epoch is taken from it.
    let latest = spec.acquire_time.iter().chain(&spec.renew_time).map(|time| time.0).max().unwrap_or(Timestamp::MIN);
    let now = MicroTime(Timestamp::now().max(latest));
    spec.holder_identity = Some(String::new());
    spec.lease_duration_seconds = Some(1);
    spec.acquire_time = Some(now.clone());
    spec.renew_time = Some(now);
    freed
}

fn holder(lease: &Lease) -> String {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default()
}

fn lease_duration(lease: &Lease) -> Option<Duration> {
    let seconds = lease.spec.as_ref()?.lease_duration_seconds?;
    Some(Duration::from_secs(u64::try_from(seconds).ok()?))
}
