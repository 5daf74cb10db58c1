//! Names become addresses here and nowhere else, and only addresses that the guard lets through leave: what a name resolves to
//! is what is connected to, so that one which resolves anew cannot slip through between check and connect.

use std::{io, net::SocketAddr, sync::Arc};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::address::{Guard, Refused};

/// The system's resolver.
pub struct System;

impl Resolve for System {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The connector sets the port.
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// A resolver of which only the addresses are seen that may be connected to at this port.
pub(super) struct Guarded {
    pub names: Arc<dyn Resolve>,
    pub guard: Arc<Guard>,
    /// The port that is connected to; where no apiserver listens, any will do.
    pub port: u16,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, port) = (Arc::clone(&self.guard), self.port);
        let host = name.as_str().to_owned();
        let resolving = self.names.resolve(name);
        Box::pin(async move {
            let (mut allowed, mut refusal) = (Vec::new(), None);
            for address in resolving.await? {
                match guard.check(address.ip(), port) {
                    Ok(()) => allowed.push(address),
                    Err(refused) => refusal = refusal.or(Some(refused)),
                }
            }
            match refusal {
                Some(refusal) if allowed.is_empty() => Err(Refused::new(&host, refusal).into()),
                None if allowed.is_empty() => Err(io::Error::other("it has no address").into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}
