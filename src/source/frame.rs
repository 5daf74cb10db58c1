//! What the apiserver sends: pages of a list and lines of a watch in, objects out. One that cannot be read disturbs no other.

use bytes::{Buf, BytesMut};
use prometheus::IntCounter;
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::warn;

use super::{Malformed, Source, slim};
use llmtune_client::error_chain::ErrorChain;
use llmtune_core::event::object::{Object, Uid};

/// A page of a list, as far as it is read.
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

/// The longest line of a watch: etcd refuses objects over 1.5 MiB, the apiserver requests over 3 MiB.
pub(super) const MAX_LINE: usize = 8 << 20;

/// A line is longer than any of a watch.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {0} bytes")]
pub struct LongLine(usize);

/// What comes of a watch, cut into lines wherever it was cut on its way.
pub struct Lines {
    buffer: BytesMut,
    /// So much of the buffer holds no line's end.
    scanned: usize,
    longest: usize,
}

impl Lines {
    /// Lines of at most so many bytes.
    pub fn of(longest: usize) -> Self {
        Self { buffer: BytesMut::new(), scanned: 0, longest }
    }

    /// What has come.
    pub fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next whole line, without its end; `None` until more has come.
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

/// A line of a watch, as it is written.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// What a line of a watch says.
#[derive(Debug)]
pub enum Line {
    /// Everything up to this version has been told.
    Bookmark(u64),
    /// The watch cannot go on.
    Ended(Status),
    /// An object is there, as it is here.
    Seen(Item),
    /// An object is deleted, or no longer selected; this was its last state.
    Deleted(Item),
}

/// `metav1.Status`, as far as it is read.
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
    /// Whether it speaks of an object by name, rather than of a kind that is not served.
    pub(super) fn names_an_object(&self) -> bool {
        !self.details.name.is_empty()
    }
}

/// Metadata alone, for bookmarks, for GETs by name, and to name an object that cannot be read.
#[derive(Deserialize)]
pub(super) struct Partial {
    #[serde(default)]
    pub(super) metadata: slim::SlimMeta,
}

/// An object that was read, or what can be told of one that cannot be read; `None` where not even that can.
pub type Item = Result<Object, Option<Unreadable>>;

/// An object that cannot be read.
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

/// Reads a page at once; where one object cannot be read, or annotations are kept, one by one. The former are counted in
/// `malformed`.
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

/// Reads a line of a watch; an object that is malformed is counted in `malformed`.
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

/// Reads one object; one that is malformed is counted in `malformed` and named in the log.
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
