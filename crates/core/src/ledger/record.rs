//! The record of one object: the state of its lifecycle, its newest version, and the facts that its deletion event
//! would contain. The record of a finished object has a few dozen bytes.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::event::{lifecycle::Lifecycle, object::Object, shared, unknown::Unknown};

/// The stored state of one object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The newest `resourceVersion` observed; in the ledger, the version of the last change that mattered.
    pub version: u64,
    /// `metadata.generation` at that version.
    #[serde(default)]
    pub generation: i64,
    /// The number of events of this object so far.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sequence: u32,
    /// The object exists but is owned or no longer selected. It sends no events until it is selected again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub excluded: bool,
    /// An existence check is open: a list lacked the object, or it left a watch with a selector.
    #[serde(rename = "missed", default, skip_serializing_if = "std::ops::Not::not")]
    pub unconfirmed: bool,
    /// The object left its watch: if it no longer exists, its deletion was observed. Used only while `unconfirmed` is set.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left: bool,
    #[serde(flatten)]
    pub lifecycle: Lifecycle,
    /// The object, while its deletion would be an event or an existence check is open.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "shared")]
    pub last: Option<Arc<Object>>,
    /// Members that a later release wrote.
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Record {
    /// Creates the record of an object without events.
    #[must_use]
    pub const fn new(version: u64, lifecycle: Lifecycle) -> Self {
        Self {
            version,
            generation: 0,
            sequence: 0,
            excluded: false,
            unconfirmed: false,
            left: false,
            lifecycle,
            last: None,
            unknown: Unknown::NONE,
        }
    }
}
