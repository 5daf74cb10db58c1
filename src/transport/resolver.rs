//! Names become addresses here and nowhere else, and only addresses that the guard lets through leave: what a name resolves to
//! is what is connected to, so that one which resolves anew cannot slip through between check and connect.

use std::{
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    vec,
};

use hyper_util::client::legacy::connect::dns::Name;
use tower::Service;

use super::address::{Guard, Refused};

/// The addresses of a name, once they are known.
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Whom names are asked of.
pub trait Resolve: Send + Sync {
    /// The addresses of this host.
    fn resolve(&self, host: String) -> Resolving;
}

/// The system's resolver.
pub struct System;

impl Resolve for System {
    fn resolve(&self, host: String) -> Resolving {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.map(|at| at.ip()).collect()) })
    }
}

/// A name has no address.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct NotFound(io::Error);

/// A resolver for one connection, of which only the addresses are seen that it may go to.
#[derive(Clone)]
pub(super) struct Guarded {
    pub names: Arc<dyn Resolve>,
    /// `None`: all of them may be connected to.
    pub guard: Option<Arc<Guard>>,
    /// The port that is connected to.
    pub port: u16,
}

impl Service<Name> for Guarded {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (guard, port) = (self.guard.clone(), self.port);
        let host = name.as_str().to_owned();
        let resolving = self.names.resolve(host.clone());
        Box::pin(async move {
            let (mut allowed, mut refusal) = (Vec::new(), None);
            for address in resolving.await.map_err(NotFound)? {
                match guard.as_ref().map_or(Ok(()), |guard| guard.check(address, port)) {
                    Ok(()) => allowed.push(SocketAddr::new(address, port)),
                    Err(refused) => refusal = refusal.or(Some(refused)),
                }
            }
            match refusal {
                Some(refusal) if allowed.is_empty() => Err(Refused::new(&host, refusal).into()),
                None if allowed.is_empty() => Err(NotFound(io::Error::other("it has no address")).into()),
                _ => Ok(allowed.into_iter()),
            }
        })
    }
}
