//! `LedgerSegment`: a part of the ledger, the operator's storage. Internal.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One segment of the ledger's ring, overwritten in place.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "llmtune.io",
    version = "v1alpha1",
    kind = "LedgerSegment",
    plural = "ledgersegments",
    shortname = "lseg",
    namespaced,
    derive = "PartialEq",
    doc = "A part of the state that llmtune-webhooks restores after a crash. Internal: only the operator writes it, in its own namespace. If anyone else writes or deletes one, events are lost, repeated or forged.",
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.kind"),
    printcolumn(name = "Term", type_ = "integer", json_path = ".spec.term"),
    printcolumn(name = "Sequence", type_ = "integer", json_path = ".spec.sequence"),
    printcolumn(name = "Records", type_ = "integer", json_path = ".spec.records"),
    printcolumn(name = "Bytes", type_ = "integer", json_path = ".spec.bytes"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".spec.epoch", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct LedgerSegmentSpec {
    /// `Journal`: changes. `Snapshot`: a share of all records, as of one position in the journal.
    pub kind: SegmentKind,
    /// Epoch of the records. A new epoch begins when the records had to be rebuilt.
    #[schemars(with = "i64", range(min = 0))]
    pub epoch: u64,
    /// Term of the leader that wrote this segment.
    #[schemars(with = "i64", range(min = 0))]
    pub term: u64,
    /// Id of the leader that wrote this segment.
    #[serde(default)]
    #[schemars(with = "i64", range(min = 0))]
    pub leader: u64,
    /// Journal segments: id of the leader that wrote the previous segment.
    #[serde(default)]
    #[schemars(with = "i64", range(min = 0))]
    pub after: u64,
    /// Journal segments: position in the journal. Snapshots: first position of the journal to apply on top.
    #[schemars(with = "i64", range(min = 0))]
    pub sequence: u64,
    /// Number of entries.
    #[schemars(with = "i32", range(min = 0))]
    pub records: u32,
    /// Length of `data` in bytes.
    #[schemars(with = "i64", range(min = 0))]
    pub bytes: u64,
    /// The entries: JSON, compressed by zstd, in base64.
    #[schemars(length(max = 1_500_000))]
    pub data: String,
}

/// The two kinds of segments.
#[derive(JsonSchema, Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, Hash)]
pub enum SegmentKind {
    Journal,
    Snapshot,
}
