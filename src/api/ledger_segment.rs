//! `LedgerSegment`: a piece of the ledger, the operator's own storage. Users neither write nor need it.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One segment of the ledger's ring, written anew in place.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "llmtune.io",
    version = "v1alpha1",
    kind = "LedgerSegment",
    plural = "ledgersegments",
    shortname = "lseg",
    namespaced,
    derive = "PartialEq",
    doc = "A piece of what llmtune-webhooks must remember over a crash. Internal: the operator writes it, in its own namespace only. Whoever writes or deletes one makes events be lost, repeated or forged.",
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
    /// `Journal`: what changed. `Snapshot`: a share of all records, as of one place in the journal.
    pub kind: SegmentKind,
    /// The life of the records that it belongs to; a new one begins when they had to be rebuilt.
    #[schemars(with = "i64", range(min = 0))]
    pub epoch: u64,
    /// The term of the leader that wrote it.
    #[schemars(with = "i64", range(min = 0))]
    pub term: u64,
    /// Which leader wrote it: a number of its own, beside the term.
    #[serde(default)]
    #[schemars(with = "i64", range(min = 0))]
    pub leader: u64,
    /// Of a journal segment: the leader that wrote the one before it.
    #[serde(default)]
    #[schemars(with = "i64", range(min = 0))]
    pub after: u64,
    /// Of a journal segment its place in the journal; of a snapshot the first place of the journal to apply on top.
    #[schemars(with = "i64", range(min = 0))]
    pub sequence: u64,
    /// How many entries it holds.
    #[schemars(with = "i32", range(min = 0))]
    pub records: u32,
    /// The length of `data`.
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
