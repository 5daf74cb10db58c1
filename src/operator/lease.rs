//! Leader election on a Lease, as in client-go: every write has the resourceVersion, each process judges expiry by its
//! own monotonic clock, and a graceful stop releases the Lease.
//!
//! 1. A claim ends two thirds of the lease duration after the last successful renewal was sent. Every attempt and every
//!    write checks the claim first.
//! 2. A renewal after the claim has expired succeeds only if nobody else wrote the Lease in between. Then the leader
//!    continues; otherwise it has lost.

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

/// A watch that ends immediately, as behind some proxies, is not reopened before this time.
const SHORTEST_WATCH: Duration = Duration::from_millis(250);

/// The name of the Lease in the operator's namespace.
pub const LEASE: &str = "llmtune-webhooks";

/// Takes part in the election.
#[derive(Clone)]
pub struct Elector {
    api: Api<Lease>,
    identity: String,
    duration: Duration,
    owner: Option<Owner>,
}

/// The Lease held by another process, and when it was first seen so. Errors in between do not extend it.
struct Observed {
    version: Option<String>,
    expiry: Instant,
}

/// A held Lease, which is renewed in the background.
pub struct Leadership {
    /// The right to start attempts and writes.
    pub claim: Claim,
    /// When the Lease was acquired, in milliseconds since 1970. It increases from leader to leader.
    pub acquired: u64,
    /// The Lease.
    pub lease: ObjectReference,
    /// Resolves with the holder's identity if another process takes the Lease.
    pub lost: oneshot::Receiver<String>,
    release: oneshot::Sender<()>,
    renewing: JoinHandle<()>,
}

impl Leadership {
    /// Releases the Lease, so that another process can take it immediately. Start nothing afterwards.
    pub async fn release(self) {
        let _ = self.release.send(());
        if let Err(error) = self.renewing.await {
            warn!(error = %ErrorChain(&error), "the lease was not released");
        }
    }
}

/// The result of a write.
enum Written {
    Committed(Box<Lease>),
    Conflict,
}

impl Elector {
    /// Creates an elector for the Lease in `namespace`. Others may take the Lease if it is not renewed for `duration`.
    /// `owner` becomes the owner of a new Lease.
    #[must_use]
    pub fn new(client: Client, namespace: &str, identity: String, duration: Duration, owner: Option<Owner>) -> Self {
        Self { api: Api::namespaced(client, namespace), identity, duration, owner }
    }

    /// How long a leader may act after a renewal. The ratio is that of client-go's 15 and 10 seconds.
    fn renew_deadline(&self) -> Duration {
        self.duration * 2 / 3
    }

    fn retry_period(&self) -> Duration {
        self.duration * 2 / 15
    }

    fn request_timeout(&self) -> Duration {
        self.duration / 3
    }

    /// Waits until this process holds the Lease. Calls `standing_by` with the identity of another holder.
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

    /// Watches the Lease until it is free or has expired by this process's clock.
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

    /// Restarts the expiry of a Lease that was renewed since it was last seen.
    fn observe(&self, lease: &Lease, observed: &mut Observed) {
        let version = &lease.metadata.resource_version;
        if observed.version != *version {
            let expiry = Instant::now() + lease_duration(lease).unwrap_or(self.duration);
            *observed = Observed { version: version.clone(), expiry };
        }
    }

    /// Takes the Lease. Returns `None` if another process was faster.
    async fn lead(&self, found: Option<&Lease>) -> Result<Option<Leadership>, kube::Error> {
        let owner = match &self.owner {
            Some(owner) if found.is_none() => Some(self.call(owner.reference()).await?),
            _ => None,
        };
        let begun = Instant::now();
        let before = found.and_then(|lease| lease.spec.as_ref());
        // Later than every time that the previous leader wrote, whose clock may be ahead, because epochs are derived
        // from it.
        let times = before.map(|spec| [spec.acquire_time.clone(), spec.renew_time.clone()]);
        let latest = times.into_iter().flatten().flatten().map(|time| time.0).max().unwrap_or(Timestamp::MIN);
        let now = Timestamp::now().max(latest.checked_add(Duration::from_millis(1)).unwrap_or(Timestamp::MAX));
        let acquired = now.as_millisecond().unsigned_abs();
        let now = MicroTime(now);
        let same = found.is_some_and(|lease| holder(lease) == self.identity);
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or_default();
        let lease = Lease {
            // Keeps the labels, annotations and owners that others set.
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
        let Written::Committed(lease) = self.write(&lease).await? else { return Ok(None) };
        info!(identity = self.identity, "leading");
        let claim = Claim::until(begun + self.renew_deadline());
        let (lost_sender, lost) = oneshot::channel();
        let (release, released) = oneshot::channel();
        let reference = lease.object_ref(&());
        let renewing = tokio::spawn(self.clone().renew(*lease, claim.clone(), lost_sender, released));
        Ok(Some(Leadership { claim, acquired, lease: reference, lost, release, renewing }))
    }

    /// Renews the Lease until it is lost or released.
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
            // Continues from the time in the Lease, which a leader with a clock that is ahead may have written. The
            // next epoch is derived from it.
            let own = acquired.as_ref().and_then(|time| time.0.checked_add(since.elapsed()).ok());
            let time = Timestamp::now().max(own.unwrap_or(Timestamp::MIN));
            renewed.spec.get_or_insert_default().renew_time = Some(MicroTime(time));
            match self.write(&renewed).await {
                Ok(Written::Committed(written)) => {
                    if !claim.holds() {
                        info!("the lease had expired, but nobody took it; continuing");
                    }
                    lease = *written;
                    claim.extend(begun + self.renew_deadline());
                }
                Ok(Written::Conflict) => match self.call(self.api.get_opt(LEASE)).await {
                    // A renewal of this process had succeeded although its response was lost.
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

    /// Reports whether only renewals of this process changed the Lease since it was last seen.
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
                // A renewal of this process had succeeded although its response was lost.
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
            Ok(Written::Committed(_)) => info!("the lease is released"),
            Ok(Written::Conflict) => debug!("another process had taken the lease before it was released"),
            Err(error) => {
                warn!(error = %ErrorChain(&error), "the lease was not released; others can take it after it expires");
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
            Ok(lease) => Ok(Written::Committed(Box::new(lease))),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Written::Conflict),
            // The Lease was deleted, perhaps with its namespace.
            Err(kube::Error::Api(status)) if status.code == 404 && lease.metadata.resource_version.is_some() => {
                Ok(Written::Conflict)
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let text = format!("{}: create the namespace, or set another with --namespace", status.message);
                Err(kube::Error::Service(text.into()))
            }
            Err(error) => Err(error),
        }
    }

    async fn call<T>(&self, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
        within(self.request_timeout(), request).await
    }
}

/// Returns the Lease without a holder, as client-go releases it.
fn freed(lease: &Lease) -> Lease {
    let mut freed = lease.clone();
    let spec = freed.spec.get_or_insert_default();
    // Not before the last time in the Lease, because the next leader's epoch is derived from it.
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
