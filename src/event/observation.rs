//! What sources see, on its way to the engine, and what the engine asks them back.

use jiff::{SignedDuration, Timestamp};

use super::object::{Object, Uid, WatchId};

/// Clocks differ, and Kubernetes writes whole seconds: of two times that are closer than this, it is not known which was earlier.
pub const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(60);

/// What a source saw.
#[derive(Debug)]
pub struct Observation {
    /// The watch that saw it.
    pub watch: WatchId,
    /// What changed.
    pub change: WatchEvent,
}

/// One thing that a source can see.
#[derive(Debug)]
pub enum WatchEvent {
    /// The store has moved back behind the watch's position: stages are compared from here on, not versions.
    Restored,
    /// A complete list begins.
    ListBegun,
    /// The object as it is, from a list or a watch.
    Seen(Box<Object>),
    /// The object is deleted; this was its last state.
    Deleted(Box<Object>),
    /// On a watch with a selector: the object is deleted, or no longer selected. This was its last state.
    Left(Box<Object>),
    /// The same of an object whose last state cannot be read, with the question which of both it is.
    LeftUnread(ExistenceCheck),
    /// The object is gone, and its last state cannot be read.
    Vanished(Uid),
    /// The object is there, in a form that cannot be read.
    Unreadable(Uid),
    /// The list was complete, as of this version.
    ListEnded(u64),
    /// Everything up to this version has been seen.
    Bookmark(u64),
    /// Everything that existed at this time has been seen: by the apiserver's clock, less [`CLOCK_TOLERANCE`].
    Current(Timestamp),
    /// The answer to a [`ExistenceCheck`].
    Answer { question: ExistenceCheck, living: bool },
    /// The resource is not served, and was not at this time, which is measured as that of [`Change::Current`]. Of one that was never
    /// seen, what is created from then on is new.
    NotInstalled(Option<Timestamp>),
    /// On a watch of what is measured: these objects are there and no others. The first such word makes them the baseline.
    Only(Vec<Uid>),
    /// On a watch of what is measured: an evaluation of the object. It has no version; each is newer than the one before.
    Measured(Box<Object>),
    /// On a watch of what is measured: the object is gone, which says nothing.
    Gone(Uid),
}

/// An object that left a watch with a selector, or that its list lacked: does it live?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExistenceCheck {
    pub watch: WatchId,
    pub uid: Uid,
    pub namespace: String,
    pub name: String,
    /// The version at which it left, or was last seen before a list lacked it; an answer is void once the object has been seen anew.
    pub version: u64,
}
