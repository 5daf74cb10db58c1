//! One connection to an endpoint, with a bound on unrequested bytes.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

/// The maximum number of bytes since the last request was started, besides consumed response bodies: heads, and what is
/// read ahead. Otherwise an endpoint that keeps sending interim responses or meaningless frames would be read for as
/// long as an attempt may take, at the cost of all others.
const MAX_UNSOLICITED: usize = 256 * 1024;
/// The length of the HTTP/2 client preface (RFC 9113, 3.4).
const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;

/// A byte stream in both directions.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The endpoint sends too many unrequested bytes.
#[derive(Debug, thiserror::Error)]
#[error("the endpoint sent more than {} KiB without an answer: answer with a status at once", MAX_UNSOLICITED / 1024)]
struct Endless;

/// Counts the unrequested bytes of a connection. All responses of a connection share the counter, because many can
/// arrive at once.
#[derive(Clone, Debug, Default)]
pub(super) struct Unsolicited(Arc<AtomicUsize>);

impl Unsolicited {
    /// Subtracts consumed bytes of a response body.
    pub(super) fn taken(&self, bytes: usize) {
        let less = |unsolicited: usize| Some(unsolicited.saturating_sub(bytes));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Reports whether nothing has arrived since the last request was started.
    pub(super) fn is_none(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// Reports whether the limit is exceeded.
    pub(super) fn is_too_much(&self) -> bool {
        self.0.load(Ordering::Relaxed) > MAX_UNSOLICITED
    }

    /// Adds received bytes. Returns whether they are within the limit.
    fn add(&self, bytes: usize) -> bool {
        self.0.fetch_add(bytes, Ordering::Relaxed) + bytes <= MAX_UNSOLICITED
    }

    /// Resets the counter at the start of a request.
    fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// How a connection is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Http1,
    /// HTTP/1.1 to a proxy that gets the whole URL.
    Proxied,
    Http2,
}

/// A connection.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    used: Use,
    frames: Frames,
    unsolicited: Unsolicited,
    /// The connection is closed when this ends.
    ended: Option<oneshot::Receiver<()>>,
    cut: bool,
}

impl Wire {
    /// Creates a connection over this stream.
    pub(super) fn over(stream: impl Stream + 'static, used: Use) -> Self {
        Self {
            stream: Box::new(stream),
            used,
            frames: Frames::default(),
            unsolicited: Unsolicited::default(),
            ended: None,
            cut: false,
        }
    }

    /// Closes the connection when the other end of `ended` is dropped.
    pub(super) fn until(self, ended: oneshot::Receiver<()>) -> Self {
        Self { ended: Some(ended), ..self }
    }

    pub(super) const fn used(&self) -> Use {
        self.used
    }

    pub(super) fn unsolicited(&self) -> Unsolicited {
        self.unsolicited.clone()
    }

    /// Fails if the connection is to be closed, whatever it waits for.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.ended.as_mut().is_some_and(|ended| Pin::new(ended).poll(cx).is_ready()) {
            (self.ended, self.cut) = (None, true);
        }
        if self.cut { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    fn sent(&mut self, data: &[u8]) {
        // The rest of a request is sent as slowly as the endpoint accepts it, and HTTP/2 acknowledgments as often as it
        // causes them.
        let begins = match self.used {
            Use::Http1 | Use::Proxied => data.starts_with(b"POST "),
            Use::Http2 => self.frames.begin_request(data),
        };
        if begins {
            self.unsolicited.reset();
        }
    }
}

/// Parses the HTTP/2 frames that a client sends.
#[derive(Debug)]
struct Frames {
    head: [u8; FRAME_HEAD],
    /// The number of known bytes of `head`.
    known: usize,
    /// The number of bytes before the next head.
    before: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self { head: [0; FRAME_HEAD], known: 0, before: PREFACE }
    }
}

impl Frames {
    /// Reports whether a request starts in the data that is sent next.
    fn begin_request(&mut self, mut data: &[u8]) -> bool {
        let mut begins = false;
        loop {
            let skipped = self.before.min(data.len());
            self.before -= skipped;
            data = &data[skipped..];
            if data.is_empty() {
                return begins;
            }
            let taken = (FRAME_HEAD - self.known).min(data.len());
            self.head[self.known..self.known + taken].copy_from_slice(&data[..taken]);
            self.known += taken;
            data = &data[taken..];
            if self.known == FRAME_HEAD {
                let [a, b, c, kind, ..] = self.head;
                (self.known, self.before) = (0, u32::from_be_bytes([0, a, b, c]) as usize);
                begins |= kind == HEADERS;
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let comes = self.unsolicited.add(buffer.filled().len() - before);
        Poll::Ready(if comes { Ok(()) } else { Err(io::Error::other(Endless)) })
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, data))?;
        self.sent(&data[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, data))?;
        let mut left = written;
        for slice in data {
            let sent = left.min(slice.len());
            self.sent(&slice[..sent]);
            left -= sent;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn requests_are_recognized_in_any_chunks(
            frames in prop::collection::vec((0..10_u8, 0..300_usize), 0..20), cut in 1..40_usize,
        ) {
            let mut sent = vec![HEADERS; PREFACE];
            for (kind, length) in &frames {
                sent.extend_from_slice(&(*length as u32).to_be_bytes()[1..]);
                sent.push(*kind);
                sent.extend([HEADERS; 5]);
                sent.extend(vec![HEADERS; *length]);
            }
            let mut seen = Frames::default();
            let requests = sent.chunks(cut).filter(|piece| seen.begin_request(piece)).count();
            let begun = frames.iter().filter(|(kind, _)| *kind == HEADERS).count();
            prop_assert!(requests <= begun && (requests > 0) == (begun > 0));
            prop_assert_eq!((seen.known, seen.before), (0, 0));
        }
    }
}
