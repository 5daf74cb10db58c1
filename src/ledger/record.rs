//! The record of one object: what its lifecycle remembers, which version was seen last, and the facts that its going would
//! tell. A finished object's record is a few dozen bytes.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::event::{lifecycle::Lifecycle, object::Object, shared, unknown::Unknown};

/// What is remembered of one object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The newest `resourceVersion` that was seen of it; in the ledger, the one of its last change that mattered.
    pub version: u64,
    /// `metadata.generation` as of then.
    #[serde(default)]
    pub generation: i64,
    /// How many events of it there were.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sequence: u32,
    /// It lives but is no longer selected, or is owned: it sends nothing until it is seen again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub excluded: bool,
    /// A list lacked it, or it left a watch with a selector, and whether it lives is not known yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missed: bool,
    /// It left its watch: if it does not live, its deletion was observed. Meaningful while `missed`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left: bool,
    /// What its lifecycle remembers.
    #[serde(flatten)]
    pub lifecycle: Lifecycle,
    /// The object, while its going would be an event or it is missed.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "shared")]
    pub last: Option<Arc<Object>>,
    /// What a later release wrote.
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Record {
    /// The record of an object that no event of was told.
    #[must_use]
    pub const fn new(version: u64, lifecycle: Lifecycle) -> Self {
        Self {
            version,
            generation: 0,
            sequence: 0,
            excluded: false,
            missed: false,
            left: false,
            lifecycle,
            last: None,
            unknown: Unknown::NONE,
        }
    }
}
