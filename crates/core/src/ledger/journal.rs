//! Lays out segments: the ring, the snapshots, and the claim of a new leader. Pure: the caller of a [`Journal`]
//! (`store`, or the simulation) writes its segments in order and reports the apiserver's answers.

mod recovery;

use std::collections::HashMap;

use super::contents::{self, Contents, MAX_TEXT, Packed, Unreadable};
use crate::event::object::Uid;
use llmtune_api::ledger_segment::{LedgerSegmentSpec, SegmentKind};

pub use recovery::{NoLedger, Recovered, RecoveredState, RememberedEvent, RememberedWatch, open};

/// The maximum size in characters of the data of a segment that cannot be split further. The custom resource definition
/// allows 1,500,000, and etcd a request of 1.5 MiB.
const MAX_DATA: usize = 1400 * 1024;

/// The size of a ledger.
#[derive(Clone, Copy, Debug)]
pub struct LedgerLayout {
    /// The number of journal segments.
    pub ring: u64,
    /// The number of snapshot segments.
    pub shards: usize,
    /// The size of a segment's data in characters above which it is split.
    pub limit: usize,
}

impl LedgerLayout {
    /// Reports whether a segment must be split.
    const fn is_exceeded_by(&self, packed: &Packed) -> bool {
        packed.data.len() > self.limit || packed.text > MAX_TEXT
    }
}

impl Default for LedgerLayout {
    fn default() -> Self {
        Self { ring: 256, shards: 64, limit: 1 << 20 }
    }
}

/// A segment with its object name.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    pub name: String,
    pub spec: LedgerSegmentSpec,
}

/// A stored segment with its resource version.
#[derive(Clone, Debug)]
pub struct Found {
    pub segment: Segment,
    pub version: String,
}

/// One flush: changes, and the snapshots to rewrite with them.
#[derive(Debug, Default)]
pub struct Flush {
    pub contents: Contents,
    pub snapshots: Vec<(usize, Contents)>,
}

/// The resolution of a write conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// This process's own write was committed.
    Committed,
    /// An older term's late write is there. Write again over it.
    Overwrite,
    /// Another leader wrote there, or the store was restored. Stop.
    Lost,
}

/// The error for a flush that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum LayOutError {
    #[error(
        "{0} segments of changes do not fit into the ledger's ring at once: divide the namespaces among operators with --watch-namespace"
    )]
    Full(usize),
    #[error("a segment cannot be written: {0}")]
    Pack(#[from] Unreadable),
}

/// The state of the process that writes a ledger.
#[derive(Debug)]
pub struct Journal {
    shape: LedgerLayout,
    home: Uid,
    epoch: u64,
    term: u64,
    leader: u64,
    /// The place of this leader's claim, which its first changes replace, and the ID of the leader before it.
    begun: (u64, u64),
    /// The place of the next segment.
    next: u64,
    /// Per shard, the first place that its snapshot does not cover; and the oldest of these places.
    covered: Vec<u64>,
    oldest: u64,
    flushes: u64,
    versions: HashMap<String, String>,
    sizes: HashMap<String, usize>,
}

impl Journal {
    /// Starts a new ledger. `epoch` must be newer than that of any existing segment.
    #[must_use]
    pub fn begin(home: Uid, epoch: u64, shape: LedgerLayout, leader: u64) -> Self {
        let covered = vec![1; shape.shards];
        let (versions, sizes) = (HashMap::new(), HashMap::new());
        let (begun, next, oldest) = ((1, 0), 1, 1);
        Self { shape, home, epoch, term: 1, leader, begun, next, covered, oldest, flushes: 0, versions, sizes }
    }

    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the term of this leader.
    #[must_use]
    pub const fn term(&self) -> u64 {
        self.term
    }

    /// Returns the size of the data in all segments, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.sizes.values().sum()
    }

    /// Returns the claim. Once it is committed, an older leader's next write conflicts. The claim uses up no place of
    /// the ring: this leader's first changes replace it, or the next leader's claim if this leader fails before. In
    /// both cases the other leader's write conflicts.
    pub fn claim(&self) -> Result<Segment, LayOutError> {
        if self.free_places() == 0 {
            return Err(LayOutError::Full(1));
        }
        let (sequence, after) = self.begun;
        let claim = contents::pack_claim(self.home)?;
        Ok(self.segment(self.place(sequence), SegmentKind::Journal, sequence, after, 0, claim.data))
    }

    /// Returns the shards whose snapshots should be rewritten with the next complete flush. In the regular turn, that
    /// is the oldest snapshot with a leader's first flush and every second one after it. Snapshots so old that the ring
    /// could fill up are included too.
    #[must_use]
    pub fn wanted(&self) -> Vec<usize> {
        let mut shards: Vec<usize> = (0..self.shape.shards).collect();
        shards.sort_by_key(|shard| self.covered[*shard]);
        let pressing = self.covered.iter().filter(|covered| self.is_pressing(**covered)).count();
        let regular = usize::from(self.flushes.is_multiple_of(2) && self.next > 2);
        shards.truncate(pressing.max(regular));
        shards
    }

    /// Reports whether a flush is needed although nothing has changed.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        self.is_pressing(self.oldest)
    }

    /// A snapshot becomes this old only after claims or split flushes. In the regular turn its age stays within twice
    /// the number of shards.
    fn is_pressing(&self, covered: u64) -> bool {
        let tolerated = 2 * self.shape.shards as u64 + self.shape.ring / 16;
        self.next - covered > tolerated
    }

    /// Returns the number of free places in the ring.
    fn free_places(&self) -> u64 {
        (self.oldest + self.shape.ring).saturating_sub(self.next)
    }

    /// Lays out a flush as segments. Each must be committed before the next is written.
    pub fn lay_out(&mut self, flush: Flush) -> Result<Vec<Segment>, LayOutError> {
        let Flush { mut contents, snapshots } = flush;
        let (first, free) = (self.next, self.free_places());
        let shards: Vec<usize> = snapshots.iter().map(|(shard, _)| *shard).collect();
        let mut rewritten = Vec::with_capacity(snapshots.len());
        for (shard, mut snapshot) in snapshots {
            let data = loop {
                let packed = contents::pack(self.home, Some(shard), &snapshot)?;
                if snapshot.len() <= 1 && packed.data.len() > MAX_DATA && snapshot.lighten() {
                    continue;
                }
                if !self.shape.is_exceeded_by(&packed) || snapshot.len() <= 1 {
                    break packed.data;
                }
                // Entries that do not fit stay in the journal for another turn of the ring.
                contents.prepend(snapshot.split_off_half());
            };
            let name = format!("snapshot-{}-{shard:02}", self.epoch);
            rewritten.push(self.segment(name, SegmentKind::Snapshot, first, 0, snapshot.len(), data));
        }
        let mut segments = Vec::new();
        let mut waiting = vec![contents];
        while let Some(mut part) = waiting.pop() {
            let packed = contents::pack(self.home, None, &part)?;
            if self.shape.is_exceeded_by(&packed) && part.len() > 1 {
                let rest = part.split_off_half();
                waiting.push(rest);
                waiting.push(part);
                continue;
            }
            if part.len() == 1 && packed.data.len() > MAX_DATA && part.lighten() {
                waiting.push(part);
                continue;
            }
            segments.push(self.journal_segment(packed, part.len()));
        }
        if self.next - first > free {
            return Err(LayOutError::Full(segments.len()));
        }
        for shard in shards {
            self.covered[shard] = first;
        }
        self.oldest = self.covered.iter().copied().min().unwrap_or(1);
        self.flushes += 1;
        segments.extend(rewritten);
        Ok(segments)
    }

    fn journal_segment(&mut self, packed: Packed, records: usize) -> Segment {
        let sequence = self.next;
        self.next += 1;
        let name = self.place(sequence);
        let after = if sequence == self.begun.0 { self.begun.1 } else { self.leader };
        self.segment(name, SegmentKind::Journal, sequence, after, records, packed.data)
    }

    /// Returns the name of the segment at this place of the ring.
    fn place(&self, sequence: u64) -> String {
        format!("journal-{}-{:03}", self.epoch, sequence % self.shape.ring)
    }

    fn segment(
        &self,
        name: String,
        kind: SegmentKind,
        sequence: u64,
        after: u64,
        records: usize,
        data: String,
    ) -> Segment {
        let (epoch, term, leader) = (self.epoch, self.term, self.leader);
        let (records, bytes) = (records as u32, data.len() as u64);
        Segment { name, spec: LedgerSegmentSpec { kind, epoch, term, leader, after, sequence, records, bytes, data } }
    }

    /// Returns the version that a write of this segment must carry, or `None` if the segment must not exist yet.
    #[must_use]
    pub fn version(&self, segment: &Segment) -> Option<&str> {
        self.versions.get(&segment.name).map(String::as_str)
    }

    /// Returns the name and version of this leader's previous segment, if `segment` is a journal segment that must not
    /// exist yet. If that version is no longer stored, the store was restored, and the segment must not be written.
    #[must_use]
    pub fn predecessor(&self, segment: &Segment) -> Option<(String, &str)> {
        if segment.spec.kind == SegmentKind::Snapshot || self.versions.contains_key(&segment.name) {
            return None;
        }
        let before = self.place(segment.spec.sequence.checked_sub(1)?);
        let version = self.versions.get(&before)?;
        Some((before, version))
    }

    /// Records a committed write with its version.
    pub fn committed(&mut self, segment: &Segment, version: String) {
        self.versions.insert(segment.name.clone(), version);
        self.sizes.insert(segment.name.clone(), segment.spec.data.len());
    }

    /// Resolves a conflict. `found` is the segment that is stored.
    pub fn resolve(&mut self, segment: &Segment, found: Option<Found>) -> Resolution {
        match (segment.spec.kind, found) {
            (_, Some(found)) if found.segment == *segment => {
                self.committed(segment, found.version);
                Resolution::Committed
            }
            (SegmentKind::Snapshot, Some(found)) if found.segment.spec.term < self.term => {
                self.versions.insert(segment.name.clone(), found.version);
                Resolution::Overwrite
            }
            _ => Resolution::Lost,
        }
    }
}
