//! The idle connections of one client, each for one namespace and one origin.
//!
//! 1. A connection is reused only while it is younger than [`MAX_AGE`], so that DNS changes are followed, and has been
//!    idle for less than [`IDLE`].
//! 2. After an attempt has timed out or a connection has broken, only connections to that origin that have answered
//!    since are reused.
//! 3. All clients together keep [`Shares::MAX`] connections. A namespace may keep another one only while it has fewer
//!    than are still free.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use http::uri::Authority;
use tokio::time::{Instant, sleep};

use super::connection::{Connection, Http1, Http2};

/// An idle connection is closed after this time.
pub(super) const IDLE: Duration = Duration::from_secs(60);
/// An older connection is not reused.
pub(super) const MAX_AGE: Duration = Duration::from_secs(120);
/// How often connections that may not be reused are closed.
const SWEEP: Duration = Duration::from_secs(15);

/// The namespace and the origin of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The namespace of its requests.
    pub tenant: Arc<str>,
    pub https: bool,
    pub authority: Authority,
}

/// The connections of one client.
#[derive(Clone)]
pub(super) struct Pool(Arc<Inner>);

struct Inner {
    shares: Arc<Shares>,
    kept: Mutex<PooledConnections>,
}

#[derive(Default)]
struct PooledConnections {
    origins: HashMap<Key, Origin>,
    sweeping: bool,
}

#[derive(Default)]
struct Origin {
    /// The most recently used one is last.
    idle: Vec<(Http1, Share)>,
    shared: Option<(Arc<Http2>, Share)>,
}

impl Pool {
    pub(super) fn new(shares: Arc<Shares>) -> Self {
        Self(Arc::new(Inner { shares, kept: Mutex::default() }))
    }

    /// Takes a connection that can be used immediately.
    pub(super) fn take(&self, key: &Key) -> Option<Connection> {
        let now = Instant::now();
        let mut kept = self.0.lock();
        let origin = kept.origins.get_mut(key)?;
        if let Some((shared, _)) = &origin.shared {
            if shared.may_be_used(now) {
                return Some(Connection::Http2(Arc::clone(shared)));
            }
            origin.shared = None;
        }
        while let Some((connection, _)) = origin.idle.pop() {
            if connection.may_be_used(now) {
                return Some(Connection::Http1(connection));
            }
        }
        None
    }

    /// Keeps an HTTP/1.1 connection that has answered, if there is capacity.
    pub(super) fn keep(&self, key: Key, connection: Http1) {
        let Some(share) = self.0.shares.take(&key.tenant) else { return };
        self.insert(key, |origin| origin.idle.push((connection, share)));
    }

    /// Lets other requests use an HTTP/2 connection, if there is capacity. It replaces an older one.
    pub(super) fn share(&self, key: Key, connection: &Arc<Http2>) {
        let Some(share) = self.0.shares.take(&key.tenant) else { return };
        self.insert(key, |origin| origin.shared = Some((Arc::clone(connection), share)));
    }

    /// Excludes all connections to that origin except those that have answered after `since`. `suspect` is always
    /// excluded.
    pub(super) fn forget(&self, key: &Key, since: Instant, suspect: Option<&Arc<Http2>>) {
        let mut kept = self.0.lock();
        let Some(origin) = kept.origins.get_mut(key) else { return };
        origin.idle.retain(|(connection, _)| connection.has_answered_after(since));
        origin.shared.take_if(|(shared, _)| {
            suspect.is_some_and(|suspect| Arc::ptr_eq(suspect, shared)) || !shared.has_answered_after(since)
        });
    }

    fn insert(&self, key: Key, insert: impl FnOnce(&mut Origin)) {
        let mut kept = self.0.lock();
        insert(kept.origins.entry(key).or_default());
        if !std::mem::replace(&mut kept.sweeping, true) {
            tokio::spawn(sweep(Arc::downgrade(&self.0)));
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, PooledConnections> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes connections that may not be reused, until none is kept.
async fn sweep(pool: Weak<Inner>) {
    loop {
        sleep(SWEEP).await;
        let Some(pool) = pool.upgrade() else { return };
        let now = Instant::now();
        let mut kept = pool.lock();
        kept.origins.retain(|_, origin| {
            origin.idle.retain(|(connection, _)| connection.may_be_used(now));
            origin.shared.take_if(|(shared, _)| !shared.may_be_used(now));
            !origin.idle.is_empty() || origin.shared.is_some()
        });
        if kept.origins.is_empty() {
            kept.origins.shrink_to_fit();
            kept.sweeping = false;
            return;
        }
    }
}

/// The number of kept connections of all clients, in total and by namespace.
#[derive(Default)]
pub(super) struct Shares(Mutex<Taken>);

#[derive(Default)]
struct Taken {
    all: usize,
    tenants: HashMap<Arc<str>, usize>,
}

impl Shares {
    /// The maximum number of kept connections.
    pub(super) const MAX: usize = 1024;

    fn take(self: &Arc<Self>, tenant: &Arc<str>) -> Option<Share> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = Self::MAX - taken.all;
        let held = taken.tenants.get(tenant).copied().unwrap_or_default();
        if held >= free {
            return None;
        }
        taken.all += 1;
        taken.tenants.insert(Arc::clone(tenant), held + 1);
        Some(Share { shares: Arc::clone(self), tenant: Arc::clone(tenant) })
    }
}

/// The reservation of one kept connection.
struct Share {
    shares: Arc<Shares>,
    tenant: Arc<str>,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(held) = taken.tenants.get_mut(&self.tenant) {
            *held -= 1;
            if *held == 0 {
                taken.tenants.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_keeps_at_most_half_so_newcomers_find_capacity() {
        let shares = Arc::new(Shares::default());
        let [greedy, second, newcomer] = ["greedy", "second", "newcomer"].map(Arc::<str>::from);
        let all = |tenant: &Arc<str>| std::iter::from_fn(|| shares.take(tenant)).collect::<Vec<_>>();
        let first = all(&greedy);
        assert_eq!(first.len(), Shares::MAX / 2);
        let second = all(&second);
        assert_eq!(second.len(), Shares::MAX / 4);
        assert!(shares.take(&greedy).is_none());
        assert!(shares.take(&newcomer).is_some());
        drop((first, second));
        assert_eq!(all(&newcomer).len(), Shares::MAX / 2);
        assert!(shares.0.lock().unwrap().tenants.is_empty());
    }
}
