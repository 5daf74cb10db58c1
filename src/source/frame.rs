//! What the apiserver sends: pages of a list and lines of a watch in, objects out. One that cannot be read disturbs no other.

use prometheus::IntCounter;
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::warn;

use super::{Malformed, Source, slim};
use crate::{
    causes::Causes,
    event::object::{Object, Uid},
};

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

/// A line of a watch.
#[derive(Deserialize)]
pub(super) struct Frame<'a> {
    #[serde(rename = "type")]
    pub(super) kind: &'a str,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// `metav1.Status`, as far as it is read.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) message: String,
    details: StatusDetails,
}

#[derive(Default, Deserialize)]
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
pub(super) type Item = Result<Object, Option<Unreadable>>;

/// An object that cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub(super) uid: Uid,
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

/// Reads one object; one that is malformed is counted in `malformed` and named in the log.
pub(super) fn read<S: Source>(source: &S, json: &str, malformed: &IntCounter, keep_annotations: bool) -> Item {
    match serde_json::from_str::<S::Slim>(json).map_err(Malformed::from).and_then(|slim| source.read(slim)) {
        Ok(object) if keep_annotations => Ok(Object { annotations: slim::annotations(json), ..object }),
        Ok(object) => Ok(object),
        Err(error) => {
            malformed.inc();
            let metadata = serde_json::from_str(json).map(|partial: Partial| partial.metadata).unwrap_or_default();
            let slim::SlimMeta { namespace, name, .. } = &metadata;
            warn!(kind = source.kind(), namespace, name, error = %Causes(&error), "skipping a malformed object");
            Err(Unreadable::of(metadata))
        }
    }
}
