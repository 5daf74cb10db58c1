//! Parses what the apiserver sends: pages of a list and lines of a watch. An object that cannot be read does not affect
//! others.

use bytes::{Buf, BytesMut};
use prometheus::IntCounter;
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::warn;

use super::{Malformed, Source, slim};
use llmtune_client::error_chain::ErrorChain;
use llmtune_core::event::object::{Object, Uid};

/// The fields of a page of a list that are read.
#[derive(Deserialize)]
pub(super) struct Page<T> {
    pub(super) metadata: ListMeta,
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMeta {
    #[serde(rename = "continue")]
    pub(super) continue_token: Option<String>,
    pub(super) resource_version: String,
}

/// The maximum length of a watch line in bytes. etcd rejects objects over 1.5 MiB, the apiserver requests over 3 MiB.
pub(super) const MAX_LINE: usize = 8 << 20;

/// A line exceeds the maximum length.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {0} bytes")]
pub struct LongLine(usize);

/// Splits the bytes of a watch into lines, independently of the chunks in which they arrive.
pub struct Lines {
    buffer: BytesMut,
    /// The length of the start of the buffer that is known to contain no line end.
    scanned: usize,
    longest: usize,
}

impl Lines {
    /// Creates a splitter for lines of at most `longest` bytes.
    pub fn of(longest: usize) -> Self {
        Self { buffer: BytesMut::new(), scanned: 0, longest }
    }

    /// Appends received bytes.
    pub fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next complete line without its line end, or `None` until more bytes have arrived.
    pub fn next_line(&mut self) -> Result<Option<BytesMut>, LongLine> {
        let end = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n');
        let length = end.map_or(self.buffer.len(), |end| self.scanned + end);
        if length > self.longest {
            return Err(LongLine(self.longest));
        }
        self.scanned = if end.is_some() { 0 } else { length };
        Ok(end.is_some().then(|| {
            let line = self.buffer.split_to(length);
            self.buffer.advance(1);
            line
        }))
    }
}

/// The JSON of a watch line.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// A parsed watch line.
#[derive(Debug)]
pub enum Line {
    /// All changes up to this version have been sent.
    Bookmark(u64),
    /// The apiserver ends the watch.
    Ended(Status),
    /// An object exists, in this state.
    Seen(Item),
    /// An object is deleted or no longer selected. This is its last state.
    Deleted(Item),
}

/// The fields of `metav1.Status` that are read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    pub(super) code: u16,
    pub(super) message: String,
    details: StatusDetails,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StatusDetails {
    name: String,
}

impl Status {
    /// Whether the status is about a named object, not about a kind that is not served.
    pub(super) fn names_an_object(&self) -> bool {
        !self.details.name.is_empty()
    }
}

/// An object's metadata, for bookmarks, for GETs by name, and to identify an object that cannot be read.
#[derive(Deserialize)]
pub(super) struct Partial {
    #[serde(default)]
    pub(super) metadata: slim::SlimMeta,
}

/// An object, or the identity of one that cannot be read. `Err(None)` if its identity cannot be read either.
pub type Item = Result<Object, Option<Unreadable>>;

/// The identity of an object that cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub uid: Uid,
    pub(super) version: u64,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Unreadable {
    fn of(metadata: slim::SlimMeta) -> Option<Self> {
        let slim::SlimMeta { namespace, name, uid, resource_version, .. } = metadata;
        Some(Self { uid: Uid::parse(&uid)?, version: slim::version(&resource_version).ok()?, namespace, name })
    }
}

/// Reads a page of a list. Objects are parsed one by one if annotations are kept or if one of them is malformed;
/// malformed objects are counted in `malformed`.
pub(super) fn read_page<S: Source>(
    source: &S,
    body: &[u8],
    malformed: &IntCounter,
    keep_annotations: bool,
) -> Result<(ListMeta, Vec<Item>), serde_json::Error> {
    if !keep_annotations
        && let Ok(page) = serde_json::from_slice::<Page<S::Slim>>(body)
        && let Ok(items) = page.items.into_iter().map(|slim| source.read(slim).map(Ok)).collect()
    {
        return Ok((page.metadata, items));
    }
    let page: Page<&RawValue> = serde_json::from_slice(body)?;
    let items = page.items.into_iter().map(|raw| read(source, raw.get(), malformed, keep_annotations));
    Ok((page.metadata, items.collect()))
}

/// Reads a line of a watch. A malformed object is counted in `malformed`.
pub fn read_line<S: Source>(
    source: &S,
    line: &[u8],
    malformed: &IntCounter,
    keep_annotations: bool,
) -> Result<Line, Malformed> {
    let Frame { kind, object } = serde_json::from_slice(line)?;
    let json = object.get();
    Ok(match kind {
        "BOOKMARK" => {
            let Partial { metadata } = serde_json::from_str(json)?;
            Line::Bookmark(slim::version(&metadata.resource_version)?)
        }
        "ERROR" => Line::Ended(serde_json::from_str(json)?),
        "DELETED" => Line::Deleted(read(source, json, malformed, keep_annotations)),
        _ => Line::Seen(read(source, json, malformed, keep_annotations)),
    })
}

/// Reads one object. A malformed object is counted in `malformed` and logged.
fn read<S: Source>(source: &S, json: &str, malformed: &IntCounter, keep_annotations: bool) -> Item {
    match serde_json::from_str::<S::Slim>(json).map_err(Malformed::from).and_then(|slim| source.read(slim)) {
        Ok(object) if keep_annotations => Ok(Object { annotations: slim::annotations(json), ..object }),
        Ok(object) => Ok(object),
        Err(error) => {
            malformed.inc();
            let metadata = serde_json::from_str(json).map(|partial: Partial| partial.metadata).unwrap_or_default();
            let slim::SlimMeta { namespace, name, .. } = &metadata;
            warn!(kind = source.kind(), namespace, name, error = %ErrorChain(&error), "skipping a malformed object");
            Err(Unreadable::of(metadata))
        }
    }
}
