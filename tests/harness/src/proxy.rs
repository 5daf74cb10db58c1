//! A TCP proxy on loopback that can go silent, like a half-open connection, or refuse, like a network partition.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

#[derive(Default)]
struct State {
    /// Connections up to this number stay open, but carry no more data.
    silent_up_to: AtomicU64,
    refusing: AtomicBool,
    accepted: AtomicU64,
}

/// The proxy; stopped when dropped.
pub struct Proxy {
    pub port: u16,
    state: Arc<State>,
    cut: watch::Sender<u64>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// A proxy to a loopback port.
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let (cut, mut cuts) = watch::channel(0);
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = shared.accepted.fetch_add(1, Ordering::SeqCst) + 1;
                if shared.refusing.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { continue };
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                // Only later cuts concern this connection.
                cuts.mark_unchanged();
                let (one, other) = (Arc::clone(&shared), Arc::clone(&shared));
                tokio::spawn(carry(number, client_read, server_write, one, cuts.clone()));
                tokio::spawn(carry(number, server_read, client_write, other, cuts.clone()));
            }
        });
        Self { port, state, cut, accepting }
    }

    /// Silences every existing connection; new ones work.
    pub fn silence(&self) {
        self.state.silent_up_to.store(self.state.accepted.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Breaks every connection and refuses new ones.
    pub fn cut(&self) {
        self.state.refusing.store(true, Ordering::SeqCst);
        self.cut.send_modify(|count| *count += 1);
    }

    /// Accepts connections again.
    pub fn mend(&self) {
        self.state.refusing.store(false, Ordering::SeqCst);
    }

    /// The number of accepted connections.
    pub fn accepted(&self) -> u64 {
        self.state.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(
    number: u64,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: Arc<State>,
    mut cuts: watch::Receiver<u64>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = cuts.changed() => return,
        };
        let Ok(length @ 1..) = read else { return };
        if number <= state.silent_up_to.load(Ordering::SeqCst) {
            // The connection stays open without data.
            let _ = cuts.changed().await;
            return;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
