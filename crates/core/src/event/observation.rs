//! Observations that sources send to the engine, and the existence checks that the engine sends back.

use jiff::{SignedDuration, Timestamp};

use super::object::{Object, Uid, WatchId};

/// The clock tolerance. Clocks differ, and Kubernetes writes whole seconds: if two times are closer than this, it is
/// unknown which was earlier.
pub const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(60);

/// An event of a watch.
#[derive(Debug)]
pub struct Observation {
    /// The watch that reports it.
    pub watch: WatchId,
    pub change: WatchEvent,
}

/// The events that a source can report.
#[derive(Debug)]
pub enum WatchEvent {
    /// The store was restored to a state before the watch's position. From here on stages are compared, not versions.
    Restored,
    /// A complete list begins.
    ListBegun,
    /// The current state of an object, from a list or a watch.
    Seen(Box<Object>),
    /// The object was deleted; this was its last state.
    Deleted(Box<Object>),
    /// On a watch with a selector: the object was deleted or is no longer selected. This was its last state.
    Left(Box<Object>),
    /// Like [`Self::Left`], for an object whose last state cannot be read, with the check whether it was deleted.
    LeftUnread(ExistenceCheck),
    /// The object was deleted, and its last state cannot be read.
    Vanished(Uid),
    /// The object exists, but its state cannot be read.
    Unreadable(Uid),
    /// The list is complete, as of this version.
    ListEnded(u64),
    /// Everything up to this version was reported.
    Bookmark(u64),
    /// Everything that existed at this time was reported: by the apiserver's clock, less [`CLOCK_TOLERANCE`].
    Current(Timestamp),
    /// The answer to an [`ExistenceCheck`].
    ExistenceChecked { check: ExistenceCheck, exists: bool },
    /// The resource is not served, and was not at this time, measured like that of [`Self::Current`]. If it was never
    /// served, objects created from then on are new.
    NotInstalled(Option<Timestamp>),
    /// On a measured watch: exactly these objects exist. The first report makes them the baseline.
    Only(Vec<Uid>),
    /// On a measured watch: an evaluation of the object. It has no version; each evaluation is newer than the one
    /// before.
    Measured(Box<Object>),
    /// On a measured watch: the object was deleted, which is not an event.
    Gone(Uid),
}

/// Asks whether an object still exists that left a watch with a selector, or that its list lacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExistenceCheck {
    pub watch: WatchId,
    pub uid: Uid,
    pub namespace: String,
    pub name: String,
    /// The version at which the object left, or was last seen before a list lacked it. The answer is void if the object
    /// has been seen since.
    pub version: u64,
}
