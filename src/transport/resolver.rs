//! Resolves host names with an asynchronous DNS client, which works the same in the static image and elsewhere.
//!
//! 1. `/etc/hosts` comes first, then DNS as configured in `/etc/resolv.conf`: its name servers, search list, `ndots`,
//!    `timeout` and `attempts`. Both files are read at startup. `/etc/nsswitch.conf` and multicast DNS are not used.
//! 2. A and AAAA are queried at the same time. Addresses of one family are enough, whatever the response for the other
//!    is.
//! 3. A lookup ends after [`DEADLINE`], and delays no other. Responses are cached for their TTL, within bounds.
//! 4. Only allowed addresses are returned, and exactly these are connected to. A name that resolves differently a
//!    moment later cannot bypass the guard.

use std::{
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures::future::{Either, select};
use hickory_resolver::{
    Hosts, TokioResolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::{Query, ResponseCode},
        rr::{Name, RData, RecordType},
    },
    system_conf::read_system_conf,
};
use tokio::time::timeout;
use tracing::warn;

use super::address::{Guard, Refused};

/// The time limit of one lookup, including the whole search list.
const DEADLINE: Duration = Duration::from_secs(10);
/// The maximum time before a query is repeated, whatever resolv.conf says, because a packet can be lost.
const QUERY: Duration = Duration::from_secs(3);
/// How long AAAA may arrive after A. RFC 8305, 3, has 50 ms; lookups are rare here, because connections are kept.
const LATER: Duration = Duration::from_millis(250);
/// The maximum time for which a response, or the absence of one, is cached.
const MAX_TTL: Duration = Duration::from_secs(60);
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(5);
/// The number of cached responses. The least recently used ones are removed.
const CACHED: u64 = 2048;
/// The number of concurrent queries over one TCP connection to a name server. Over UDP, each has its own socket.
const ACTIVE: usize = 4096;
/// The number of addresses of a host that are tried.
const MAX_ADDRESSES: usize = 16;

/// The addresses of a name, when they are known.
pub type Resolving = Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, LookupError>> + Send>>;

/// Resolves host names.
pub trait Resolve: Send + Sync {
    /// Returns the addresses of this host.
    fn resolve(&self, host: String) -> Resolving;
}

/// Why a host has no address. Of several reasons, the greatest is the most informative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum LookupError {
    /// The host is not a DNS name.
    #[error("it is not a valid DNS name")]
    Invalid,
    /// No name of the search list exists.
    #[error("no such name (NXDOMAIN)")]
    NoSuchName,
    /// The name exists, but has no address.
    #[error("it has no address")]
    NoAddress,
    /// The name servers returned this error code.
    #[error("the name server answered {0}")]
    Answered(&'static str),
    /// No name server can be reached.
    #[error("no name server can be reached")]
    Unreachable,
    /// The name servers did not answer in time.
    #[error("no answer from the name servers in time")]
    NoAnswer,
}

/// A DNS client, configured by `/etc/resolv.conf`.
#[derive(Clone)]
pub struct Dns(Arc<Inner>);

struct Inner {
    /// `None`: hickory rejects the configuration, and only `/etc/hosts` is used.
    resolver: Option<TokioResolver>,
    hosts: Hosts,
    search: Vec<Name>,
    ndots: usize,
}

impl Dns {
    /// Reads `/etc/resolv.conf` and `/etc/hosts`. Without the former, the name server of this host is used, as in
    /// glibc.
    #[must_use]
    pub fn system() -> Self {
        let (config, options) = read_system_conf().unwrap_or_else(|error| {
            warn!(%error, "/etc/resolv.conf cannot be used; asking the name server at 127.0.0.1");
            let server = NameServerConfig::udp_and_tcp([127, 0, 0, 1].into());
            (ResolverConfig::from_name_servers(vec![server]), ResolverOpts::default())
        });
        let hosts = Hosts::from_system().unwrap_or_else(|error| {
            warn!(%error, "/etc/hosts cannot be read; continuing without it");
            Hosts::default()
        });
        Self::new(config, options, hosts)
    }

    /// Creates a client for these name servers.
    #[must_use]
    pub fn new(config: ResolverConfig, mut options: ResolverOpts, hosts: Hosts) -> Self {
        let (search, ndots) = (config.search().to_vec(), options.ndots);
        options.timeout = options.timeout.clamp(Duration::from_secs(1), QUERY);
        options.cache_size = CACHED;
        options.positive_max_ttl = Some(MAX_TTL);
        options.negative_max_ttl = Some(MAX_NEGATIVE_TTL);
        options.max_active_requests = ACTIVE;
        // The search list and the hosts file are handled here, for both families together.
        options.use_hosts_file = ResolveHosts::Never;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let resolver = builder.build();
        let resolver =
            resolver.inspect_err(|error| warn!(%error, "/etc/resolv.conf cannot be used; no name can be resolved"));
        Self(Arc::new(Inner { resolver: resolver.ok(), hosts, search, ndots }))
    }
}

impl Resolve for Dns {
    fn resolve(&self, host: String) -> Resolving {
        let dns = Arc::clone(&self.0);
        Box::pin(async move { timeout(DEADLINE, dns.find(&host)).await.unwrap_or(Err(LookupError::NoAnswer)) })
    }
}

impl Inner {
    async fn find(&self, host: &str) -> Result<Vec<IpAddr>, LookupError> {
        let name = Name::from_ascii(host).map_err(|_| LookupError::Invalid)?;
        let found = self.in_hosts(&name);
        if !found.is_empty() {
            return Ok(found);
        }
        let mut failure = LookupError::Invalid;
        for candidate in self.candidates(&name) {
            // As in glibc, a name server that refuses one name of the list is asked for the next.
            match self.addresses(candidate).await {
                Ok(found) => return Ok(found),
                Err(error) => failure = failure.max(error),
            }
        }
        Err(failure)
    }

    fn in_hosts(&self, name: &Name) -> Vec<IpAddr> {
        let of = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let lookups = [of(RecordType::AAAA), of(RecordType::A)];
        lookups.iter().flatten().flat_map(Lookup::answers).filter_map(|record| record.data.ip_addr()).collect()
    }

    /// Returns the names to look up for a name, in order (resolv.conf(5), `search` and `ndots`).
    fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut absolute = name.clone();
        absolute.set_fqdn(true);
        if name.is_fqdn() {
            return vec![absolute];
        }
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        let mut names: Vec<Name> =
            self.search.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect();
        for name in &mut names {
            name.set_fqdn(true);
        }
        let at = if dots >= self.ndots { 0 } else { names.len() };
        names.insert(at, absolute);
        names
    }

    /// Returns the addresses of a fully qualified name, of both families.
    async fn addresses(&self, name: Name) -> Result<Vec<IpAddr>, LookupError> {
        let six = pin!(self.lookup(name.clone(), RecordType::AAAA));
        let four = pin!(self.lookup(name, RecordType::A));
        match select(six, four).await {
            Either::Left((Ok(mut found), four)) => {
                found.extend(four.await.unwrap_or_default());
                Ok(found)
            }
            Either::Left((Err(error), four)) => four.await.map_err(|other| error.max(other)),
            Either::Right((Ok(mut found), six)) => {
                found.extend(timeout(LATER, six).await.ok().and_then(Result::ok).unwrap_or_default());
                Ok(found)
            }
            Either::Right((Err(error), six)) => six.await.map_err(|other| error.max(other)),
        }
    }

    async fn lookup(&self, name: Name, kind: RecordType) -> Result<Vec<IpAddr>, LookupError> {
        let Some(resolver) = &self.resolver else { return Err(LookupError::Unreachable) };
        let lookup = resolver.lookup(name, kind).await.map_err(|error| failure(&error))?;
        let address = |data: &RData| match data {
            RData::A(address) if kind == RecordType::A => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) if kind == RecordType::AAAA => Some(IpAddr::V6(address.0)),
            _ => None,
        };
        let found: Vec<_> = lookup.answers().iter().filter_map(|record| address(&record.data)).collect();
        if found.is_empty() { Err(LookupError::NoAddress) } else { Ok(found) }
    }
}

fn failure(error: &NetError) -> LookupError {
    let code = match error {
        NetError::Timeout => return LookupError::NoAnswer,
        NetError::Dns(DnsError::NoRecordsFound(none)) => none.response_code,
        NetError::Dns(DnsError::ResponseCode(code)) => *code,
        _ => return LookupError::Unreachable,
    };
    match code {
        ResponseCode::NXDomain => LookupError::NoSuchName,
        ResponseCode::NoError => LookupError::NoAddress,
        ResponseCode::ServFail => LookupError::Answered("SERVFAIL"),
        ResponseCode::Refused => LookupError::Answered("REFUSED"),
        ResponseCode::FormErr => LookupError::Answered("FORMERR"),
        ResponseCode::NotImp => LookupError::Answered("NOTIMP"),
        _ => LookupError::Answered("with an error"),
    }
}

/// Returns the addresses to connect to, in the order of RFC 8305, 4: the families alternate, IPv6 first. `guard`:
/// `None` allows all addresses.
pub(super) async fn endpoints(
    names: &dyn Resolve,
    guard: Option<&Guard>,
    host: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, Unresolved> {
    let literal = host.parse::<IpAddr>().ok();
    let found = match literal {
        Some(address) => vec![address],
        None => names.resolve(host.to_owned()).await?,
    };
    let (mut six, mut four, mut refusal) = (Vec::new(), Vec::new(), None);
    for address in found {
        match guard.map_or(Ok(()), |guard| guard.check(address, port)) {
            Ok(()) if address.is_ipv6() => six.push(SocketAddr::new(address, port)),
            Ok(()) => four.push(SocketAddr::new(address, port)),
            Err(refused) => refusal = refusal.or(Some(refused)),
        }
    }
    let mut turns = [six.into_iter(), four.into_iter()];
    let mut allowed = Vec::new();
    while allowed.len() < MAX_ADDRESSES && turns.iter().any(|family| family.len() > 0) {
        allowed.extend(turns.iter_mut().filter_map(Iterator::next));
    }
    match refusal {
        Some(refusal) if allowed.is_empty() => Err(Refused::new(host, refusal).into()),
        None if allowed.is_empty() => Err(LookupError::NoAddress.into()),
        _ => Ok(allowed),
    }
}

/// Why a host cannot be connected to.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unresolved {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Refused(#[from] Refused),
}

#[cfg(test)]
mod tests;
