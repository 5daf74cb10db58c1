//! Where each segment goes, and whose it is: the ring, the snapshots, the claim of a new leader. Pure: whoever holds a
//! [`Journal`] writes its segments in order, and tells it what the apiserver answered.

mod recovery;

use std::collections::HashMap;

use super::contents::{self, Contents, MAX_TEXT, Packed, Unreadable};
use crate::{
    api::ledger_segment::{LedgerSegmentSpec, SegmentKind},
    event::object::Uid,
};

pub use recovery::{NoLedger, Recovered, RecoveredState, RememberedEvent, RememberedWatch, open};

/// The most characters of data in a segment that can be split no further: the definition takes 1,500,000, and etcd no request of more than
/// 1.5 MiB.
const MAX_DATA: usize = 1400 * 1024;

/// How large a ledger is.
#[derive(Clone, Copy, Debug)]
pub struct LedgerLayout {
    /// Journal segments.
    pub ring: u64,
    /// Snapshot segments.
    pub shards: usize,
    /// Characters of data in one segment, above which it is split.
    pub limit: usize,
}

impl LedgerLayout {
    /// Whether a segment is to be split.
    const fn is_exceeded_by(&self, packed: &Packed) -> bool {
        packed.data.len() > self.limit || packed.text > MAX_TEXT
    }
}

impl Default for LedgerLayout {
    fn default() -> Self {
        Self { ring: 256, shards: 64, limit: 1 << 20 }
    }
}

/// A segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    pub name: String,
    pub spec: LedgerSegmentSpec,
}

/// A segment as it was found, with its version.
#[derive(Clone, Debug)]
pub struct Found {
    pub segment: Segment,
    pub version: String,
}

/// What to write at once: a part of what changed, and the snapshots that come due with it.
#[derive(Debug, Default)]
pub struct Flush {
    pub contents: Contents,
    pub snapshots: Vec<(usize, Contents)>,
}

/// What a conflict comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Our write had landed.
    Landed,
    /// An older term's late write is in the place: write again over it.
    Overwrite,
    /// Another leads, or the store was restored: stop.
    Lost,
}

/// There is no room in the ring.
#[derive(Debug, thiserror::Error)]
pub enum LayOutError {
    #[error(
        "{0} segments of changes do not fit into the ledger's ring at once: divide the namespaces among operators with --watch-namespace"
    )]
    Full(usize),
    #[error("a segment cannot be written: {0}")]
    Pack(#[from] Unreadable),
}

/// The writing end of a ledger.
#[derive(Debug)]
pub struct Journal {
    shape: LedgerLayout,
    home: Uid,
    epoch: u64,
    term: u64,
    leader: u64,
    /// The place of this leader's claim and then of its first changes, and the leader before it.
    begun: (u64, u64),
    /// The next place.
    next: u64,
    /// Per shard, the first place that its snapshot does not cover, and the oldest of them.
    covered: Vec<u64>,
    oldest: u64,
    flushes: u64,
    versions: HashMap<String, String>,
    sizes: HashMap<String, usize>,
}

impl Journal {
    /// A ledger that begins: `epoch` must be newer than that of any segment that there is.
    #[must_use]
    pub fn begin(home: Uid, epoch: u64, shape: LedgerLayout, leader: u64) -> Self {
        let covered = vec![1; shape.shards];
        let (versions, sizes) = (HashMap::new(), HashMap::new());
        let (begun, next, oldest) = ((1, 0), 1, 1);
        Self { shape, home, epoch, term: 1, leader, begun, next, covered, oldest, flushes: 0, versions, sizes }
    }

    /// Which epoch it is.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The term that this leader writes in.
    #[must_use]
    pub const fn term(&self) -> u64 {
        self.term
    }

    /// Bytes of data in all segments.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.sizes.values().sum()
    }

    /// The claim: once it has landed, an older leader's next write conflicts. It uses up no place of the ring: the first changes
    /// replace it, or the claim of the next leader if this one dies before. Either way the write of the other conflicts.
    pub fn claim(&self) -> Result<Segment, LayOutError> {
        if self.room() == 0 {
            return Err(LayOutError::Full(1));
        }
        let (sequence, after) = self.begun;
        let claim = contents::pack_claim(self.home)?;
        Ok(self.segment(self.place(sequence), SegmentKind::Journal, sequence, after, 0, claim.data))
    }

    /// The shards whose snapshots should be rewritten with the next flush that holds all changes: with a leader's first flush and
    /// every second one after it the oldest, and whichever is so old that the ring could fill up.
    #[must_use]
    pub fn wanted(&self) -> Vec<usize> {
        let mut shards: Vec<usize> = (0..self.shape.shards).collect();
        shards.sort_by_key(|shard| self.covered[*shard]);
        let pressing = self.covered.iter().filter(|covered| self.is_pressing(**covered)).count();
        let regular = usize::from(self.flushes.is_multiple_of(2) && self.next > 2);
        shards.truncate(pressing.max(regular));
        shards
    }

    /// Whether a flush is needed although nothing has changed.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        self.is_pressing(self.oldest)
    }

    /// A snapshot is this old only after claims or split flushes: in the regular turn its age is twice the number of shards.
    fn is_pressing(&self, covered: u64) -> bool {
        let tolerated = 2 * self.shape.shards as u64 + self.shape.ring / 16;
        self.next - covered > tolerated
    }

    /// Free places of the ring.
    fn room(&self) -> u64 {
        (self.oldest + self.shape.ring).saturating_sub(self.next)
    }

    /// Turns a flush into segments; each must have landed before the next is written.
    pub fn lay_out(&mut self, flush: Flush) -> Result<Vec<Segment>, LayOutError> {
        let Flush { mut contents, snapshots } = flush;
        let (first, room) = (self.next, self.room());
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
                // What does not fit stays in the journal for another turn of the ring.
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
        if self.next - first > room {
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

    /// The name of the segment at this place of the ring.
    fn place(&self, sequence: u64) -> String {
        format!("journal-{}-{:03}", self.epoch, sequence % self.shape.ring)
    }

    /// A segment that this leader writes.
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

    /// The version that a write of this segment must carry; `None`: it must not exist yet.
    #[must_use]
    pub fn version(&self, segment: &Segment) -> Option<&str> {
        self.versions.get(&segment.name).map(String::as_str)
    }

    /// The name and the version of what this leader wrote before a journal segment that must not exist yet: where that is
    /// not there any more, the store was restored under it, and the segment must not be written.
    #[must_use]
    pub fn predecessor(&self, segment: &Segment) -> Option<(String, &str)> {
        if segment.spec.kind == SegmentKind::Snapshot || self.versions.contains_key(&segment.name) {
            return None;
        }
        let before = self.place(segment.spec.sequence.checked_sub(1)?);
        let version = self.versions.get(&before)?;
        Some((before, version))
    }

    /// A write has landed, as this version.
    pub fn committed(&mut self, segment: &Segment, version: String) {
        self.versions.insert(segment.name.clone(), version);
        self.sizes.insert(segment.name.clone(), segment.spec.data.len());
    }

    /// A write met a conflict; `found` is in its place.
    pub fn resolve(&mut self, segment: &Segment, found: Option<Found>) -> Resolution {
        match (segment.spec.kind, found) {
            (_, Some(found)) if found.segment == *segment => {
                self.committed(segment, found.version);
                Resolution::Landed
            }
            (SegmentKind::Snapshot, Some(found)) if found.segment.spec.term < self.term => {
                self.versions.insert(segment.name.clone(), found.version);
                Resolution::Overwrite
            }
            _ => Resolution::Lost,
        }
    }
}
