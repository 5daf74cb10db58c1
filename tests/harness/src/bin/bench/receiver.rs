//! A receiver that acknowledges immediately, or fails a share of requests, and records when the last byte of each
//! request arrived. It runs in its own thread. It supports only the part of HTTP/1.1 that its two clients use: requests
//! with a Content-Length over persistent connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const ACKNOWLEDGED: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const FAILED: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";

/// A received request.
#[derive(Debug)]
pub struct Post {
    pub at: Instant,
    pub path: String,
    /// `X-LLMTune-Signature`; empty if absent.
    pub signature: String,
    pub body: Vec<u8>,
    /// Whether the response was 200.
    pub acknowledged: bool,
}

/// Listens on loopback. Returns the port and the received requests.
pub fn start(name: &str) -> (u16, mpsc::Receiver<Post>) {
    start_failing(name, 0)
}

/// The same, with this percentage of responses being 500.
pub fn start_failing(name: &str, percent: u64) -> (u16, mpsc::Receiver<Post>) {
    let (posts, incoming) = mpsc::channel();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            let requests = Arc::new(AtomicU64::new(0));
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, posts.clone(), Arc::clone(&requests), percent));
            }
        });
    };
    thread::Builder::new().name(name.into()).spawn(serve).unwrap();
    (port, incoming)
}

async fn serve(mut stream: TcpStream, posts: mpsc::Sender<Post>, requests: Arc<AtomicU64>, percent: u64) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = Vec::with_capacity(16 << 10);
    while let Ok(1..) = stream.read_buf(&mut buffer).await {
        let at = Instant::now();
        while let Some((mut post, length)) = read(&buffer, at) {
            buffer.drain(..length);
            let number = requests.fetch_add(1, Ordering::Relaxed);
            post.acknowledged = scattered(number) % 100 >= percent;
            let answer = if post.acknowledged { ACKNOWLEDGED } else { FAILED };
            if stream.write_all(answer).await.is_err() || posts.send(post).is_err() {
                return;
            }
        }
    }
}

/// A pseudo-random number, the same in every run (the finalizer of splitmix64).
fn scattered(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The first request in the buffer and its length, if it is complete.
fn read(buffer: &[u8], at: Instant) -> Option<(Post, usize)> {
    let head_end = buffer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&buffer[..head_end]).unwrap();
    let header = |wanted: &str| {
        let mut headers = head.lines().filter_map(|line| line.split_once(':'));
        headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
    };
    let length: usize = header("content-length").expect("a POST has a Content-Length").parse().unwrap();
    let body = buffer.get(head_end..head_end + length)?.to_vec();
    let signature = header("x-llmtune-signature").unwrap_or_default().to_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    Some((Post { at, path, signature, body, acknowledged: true }, head_end + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_that_fails_is_the_one_asked_for() {
        let failing = (1..=10_000).filter(|number| scattered(*number) % 100 < 30).count();
        assert!((2_900..3_100).contains(&failing), "{failing}");
    }

    #[test]
    fn a_request_is_read_once_it_is_complete() {
        let bytes = b"POST /7 HTTP/1.1\r\nContent-Length: 2\r\nX-LLMTune-Signature: ab\r\n\r\n{}POST";
        assert!(read(&bytes[..bytes.len() - 5], Instant::now()).is_none());
        let (post, length) = read(bytes, Instant::now()).unwrap();
        assert_eq!((post.path.as_str(), post.signature.as_str()), ("/7", "ab"));
        assert_eq!((post.body.as_slice(), length), (&b"{}"[..], bytes.len() - 4));
    }
}
