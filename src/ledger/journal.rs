//! Where each segment goes, and whose it is: the ring, the snapshots, the claim of a new leader, recovery. Pure: whoever
//! holds a [`Journal`] writes its segments in order, and tells it what the apiserver answered.

use std::collections::{HashMap, HashSet};

use super::{
    contents::{self, Contents, DeliveryEntry, GroupText, Text, Unreadable, WatchEntry},
    record::Record,
};
use crate::event::{Event, id::EventId, object::Uid, unknown::Unknown};

/// How large a ledger is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Journal segments.
    pub ring: u64,
    /// Snapshot segments.
    pub shards: usize,
    /// Characters of data in one segment, above which it is split.
    pub limit: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { ring: 256, shards: 64, limit: 1 << 20 }
    }
}

/// What a segment is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What changed.
    Journal,
    /// What was there, of one shard.
    Snapshot,
}

/// A segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub name: String,
    pub kind: Kind,
    pub epoch: u64,
    pub term: u64,
    /// Which leader wrote it, beside its term: a number of its own, below 2^63.
    pub leader: u64,
    /// Of a journal segment: the leader that wrote the one before it.
    pub after: u64,
    /// Of a journal segment its place in the journal, from 1; of a snapshot the first place to apply on top of it.
    pub sequence: u64,
    /// Entries in it.
    pub records: usize,
    pub data: String,
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

/// What a conflict meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Our write had landed.
    Landed,
    /// An older term's late write is in the place: write again over it.
    Again,
    /// Another leads, or the store was restored: stop.
    Lost,
}

/// There is no room in the ring.
#[derive(Debug, thiserror::Error)]
pub enum LayOutError {
    #[error("{0} segments of changes do not fit into the ledger's ring at once")]
    Full(usize),
    #[error("a segment cannot be written: {0}")]
    Pack(#[from] Unreadable),
}

/// The writing end of a ledger.
#[derive(Debug)]
pub struct Journal {
    shape: Shape,
    home: Uid,
    epoch: u64,
    term: u64,
    leader: u64,
    /// The first place that this leader writes to, and the leader before it.
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

/// What was remembered.
#[derive(Debug, Default)]
pub struct Memory {
    pub watches: Vec<RememberedWatch>,
    /// Events with their deliveries, in the order in which they occurred.
    pub events: Vec<RememberedEvent>,
    /// Events of a type that this release does not know.
    pub unknown_events: usize,
}

/// A watch with its records.
#[derive(Debug)]
pub struct RememberedWatch {
    pub entry: WatchEntry,
    /// By shard of the snapshot.
    pub records: Vec<HashMap<Uid, Record>>,
}

/// An event that is not done with.
#[derive(Debug)]
pub struct RememberedEvent {
    pub event: Event,
    /// It counts if this complete flush has landed, or a record that knows of it.
    pub after: u64,
    pub deliveries: Vec<DeliveryEntry>,
    pub unknown: Unknown,
}

/// What opening a ledger came to.
#[derive(Debug)]
pub enum Opened {
    /// It is ours; claim it before anything else.
    Ours(Box<Journal>, Box<Memory>),
    /// There is none to go on with, and why. An epoch must be begun that is newer than `newest`.
    Nothing { why: Nothing, newest: u64 },
}

/// Why there is no ledger to go on with.
#[derive(Debug, thiserror::Error)]
pub enum Nothing {
    #[error("there is no ledger yet")]
    Fresh,
    #[error("the ledger that is here belongs to another installation, and is set aside")]
    Foreign,
    #[error("segment {0} cannot be read: {1}")]
    Unreadable(String, String),
    #[error("journal segment number {0} is missing")]
    Missing(u64),
    #[error("the journal's ring is full")]
    Full,
}

/// Opens the newest ledger of this home among all segments that were found.
#[must_use]
pub fn open(found: &[Found], home: Uid, shape: Shape, leader: u64) -> Opened {
    let newest = found.iter().map(|found| found.segment.epoch).max().unwrap_or_default();
    let mut epochs: Vec<u64> = found.iter().map(|found| found.segment.epoch).collect();
    epochs.sort_unstable();
    epochs.dedup();
    let mut why = Nothing::Fresh;
    for epoch in epochs.into_iter().rev() {
        match open_epoch(found, home, shape, leader, epoch) {
            Ok(Some((journal, memory))) => return Opened::Ours(Box::new(journal), Box::new(memory)),
            Ok(None) => why = Nothing::Foreign,
            Err(why) => return Opened::Nothing { why, newest },
        }
    }
    Opened::Nothing { why, newest }
}

/// The ledger of this epoch; `None`: it is another's.
fn open_epoch(
    found: &[Found],
    home: Uid,
    shape: Shape,
    leader: u64,
    epoch: u64,
) -> Result<Option<(Journal, Memory)>, Nothing> {
    let of_epoch: Vec<&Found> = found.iter().filter(|found| found.segment.epoch == epoch).collect();
    let of_kind = |kind| of_epoch.iter().map(|found| &found.segment).filter(move |segment| segment.kind == kind);
    let writer = |segment: &Segment| (segment.term, segment.leader);
    let mut journal: Vec<&Segment> = of_kind(Kind::Journal).collect();
    journal.sort_by_key(|segment| segment.sequence);
    // A leader that outlived a restore of the store wrote on from its own place, after a segment that is not there: what it
    // wrote is overwritten in its turn.
    let stray = journal.windows(2).position(|pair| {
        let (before, next) = (pair[0], pair[1]);
        next.after != before.leader && (next.sequence == before.sequence + 1 || next.term <= before.term)
    });
    journal.truncate(stray.map_or(journal.len(), |last| last + 1));
    let mut rebuilt = Rebuilt::default();
    let mut covered = vec![1; shape.shards];
    // One after the other: together their texts are many times what they add up to.
    for segment in of_kind(Kind::Snapshot) {
        let json = unpack(segment)?;
        let text = read(segment, &json)?;
        if text.home != home {
            return Ok(None);
        }
        let Some(shard) = text.shard.filter(|shard| *shard < shape.shards) else {
            let problem = format!("{:?} is no part of a snapshot", text.shard);
            return Err(Nothing::Unreadable(segment.name.clone(), problem));
        };
        let flush =
            journal.binary_search_by_key(&segment.sequence, |flush| flush.sequence).map(|at| writer(journal[at]));
        if flush != Ok(writer(segment)) {
            return Err(Nothing::Missing(segment.sequence));
        }
        covered[shard] = segment.sequence;
        rebuilt.apply(text, |other| other == shard, shape.shards)?;
    }
    let (last, before) = journal.last().map_or((0, 0), |segment| (segment.sequence, segment.leader));
    let oldest = covered.iter().copied().min().unwrap_or(1);
    let mut expected = oldest;
    for segment in journal {
        let json = unpack(segment)?;
        let text = read(segment, &json)?;
        if text.home != home {
            return Ok(None);
        }
        if segment.sequence < oldest {
            continue;
        }
        if segment.sequence != expected {
            return Err(Nothing::Missing(expected));
        }
        expected += 1;
        rebuilt.apply(text, |shard| segment.sequence >= covered[shard], shape.shards)?;
    }
    if expected <= last.max(oldest) {
        return Err(Nothing::Missing(expected));
    }
    let writing = Journal {
        shape,
        home,
        epoch,
        term: of_epoch.iter().map(|found| found.segment.term).max().unwrap_or_default() + 1,
        leader,
        begun: (last + 1, before),
        next: last + 1,
        covered,
        oldest,
        flushes: 0,
        versions: of_epoch.iter().map(|found| (found.segment.name.clone(), found.version.clone())).collect(),
        sizes: of_epoch.iter().map(|found| (found.segment.name.clone(), found.segment.data.len())).collect(),
    };
    Ok(Some((writing, rebuilt.memory(shape.shards))))
}

fn unpack(segment: &Segment) -> Result<Vec<u8>, Nothing> {
    contents::unpack(&segment.data).map_err(|error| Nothing::Unreadable(segment.name.clone(), error.to_string()))
}

fn read<'a>(segment: &Segment, json: &'a [u8]) -> Result<Text<'a>, Nothing> {
    serde_json::from_slice(json).map_err(|error| Nothing::Unreadable(segment.name.clone(), error.to_string()))
}

/// What the segments add up to.
#[derive(Default)]
struct Rebuilt {
    watches: Vec<WatchEntry>,
    groups: HashMap<(String, u64), Vec<HashMap<Uid, Record>>>,
    events: HashMap<EventId, RememberedEvent>,
    unknown: HashSet<EventId>,
}

impl Rebuilt {
    /// Applies a segment as far as its shards are wanted from it.
    fn apply(&mut self, text: Text<'_>, wanted: impl Fn(usize) -> bool, shards: usize) -> Result<(), Nothing> {
        for event in text.events {
            if !wanted(event.id.shard(shards)) {
                continue;
            }
            if event.deliveries.is_empty() {
                self.events.remove(&event.id);
                self.unknown.remove(&event.id);
                continue;
            }
            if let Some(body) = event.event {
                let Some(read) = body.read(event.id) else {
                    self.unknown.insert(event.id);
                    continue;
                };
                let (after, deliveries, unknown) = (event.after, event.deliveries, event.unknown);
                self.events.insert(event.id, RememberedEvent { event: read, after, deliveries, unknown });
            } else if let Some(known) = self.events.get_mut(&event.id) {
                known.deliveries = event.deliveries;
                known.unknown = event.unknown;
            } else if !self.unknown.contains(&event.id) {
                let lost = format!("its deliveries are there, and the event is not: {}", event.id);
                return Err(Nothing::Unreadable("(several)".into(), lost));
            }
        }
        for GroupText { watch, epoch, objects, gone } in text.records {
            let group = self.groups.entry((watch.into_owned(), epoch)).or_insert_with(|| vec![HashMap::new(); shards]);
            for (uid, record) in objects.0 {
                let shard = uid.shard(shards);
                if wanted(shard) {
                    group[shard].insert(uid, record.into_owned());
                }
            }
            for uid in gone {
                let shard = uid.shard(shards);
                if wanted(shard) {
                    group[shard].remove(&uid);
                }
            }
        }
        if let Some(watches) = text.watches {
            self.watches = watches;
        }
        Ok(())
    }

    /// A watch without a position has no baseline, and its records count for nothing.
    fn memory(mut self, shards: usize) -> Memory {
        let watches = self.watches.into_iter().filter(|watch| watch.position > 0 || watch.absent).map(|entry| {
            let records = self.groups.remove(&(entry.watch.clone(), entry.epoch));
            let records = records.unwrap_or_else(|| vec![HashMap::new(); shards]);
            RememberedWatch { entry, records }
        });
        let watches = watches.collect();
        let mut events: Vec<RememberedEvent> = self.events.into_values().collect();
        events.sort_by_key(|known| (known.event.observed_at, known.event.object.uid, known.event.sequence));
        Memory { watches, events, unknown_events: self.unknown.len() }
    }
}

impl Journal {
    /// A ledger that begins: `epoch` must be newer than that of any segment that there is.
    #[must_use]
    pub fn found(home: Uid, epoch: u64, shape: Shape, leader: u64) -> Self {
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

    /// The claim: once it has landed, an older leader's next write conflicts.
    pub fn claim(&mut self) -> Result<Segment, LayOutError> {
        if self.room() == 0 {
            return Err(LayOutError::Full(1));
        }
        self.journal_segment(&Contents::default())
    }

    /// The shards whose snapshots should be rewritten with the next flush that holds all changes: with every second flush
    /// the oldest, and whichever is so old that the ring could fill up.
    #[must_use]
    pub fn wanted(&self) -> Vec<usize> {
        let mut shards: Vec<usize> = (0..self.shape.shards).collect();
        shards.sort_by_key(|shard| self.covered[*shard]);
        let pressing = self.covered.iter().filter(|covered| self.is_pressing(**covered)).count();
        let regular = usize::from(self.flushes % 2 == 1 && self.next > 2);
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
                let data = contents::pack(self.home, Some(shard), &snapshot)?;
                if data.len() <= self.shape.limit || snapshot.len() <= 1 {
                    break data;
                }
                // What does not fit stays in the journal for another turn of the ring.
                contents.prepend(snapshot.split_off_half());
            };
            rewritten.push(Segment {
                name: format!("snapshot-{}-{shard:02}", self.epoch),
                kind: Kind::Snapshot,
                epoch: self.epoch,
                term: self.term,
                leader: self.leader,
                after: 0,
                sequence: first,
                records: snapshot.len(),
                data,
            });
        }
        let mut segments = Vec::new();
        let mut waiting = vec![contents];
        while let Some(mut part) = waiting.pop() {
            let segment = self.journal_segment(&part)?;
            if segment.data.len() > self.shape.limit && part.len() > 1 {
                self.next -= 1;
                let rest = part.split_off_half();
                waiting.push(rest);
                waiting.push(part);
                continue;
            }
            segments.push(segment);
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

    fn journal_segment(&mut self, contents: &Contents) -> Result<Segment, LayOutError> {
        let data = contents::pack(self.home, None, contents)?;
        let sequence = self.next;
        self.next += 1;
        Ok(Segment {
            name: format!("journal-{}-{:03}", self.epoch, sequence % self.shape.ring),
            kind: Kind::Journal,
            epoch: self.epoch,
            term: self.term,
            leader: self.leader,
            after: if sequence == self.begun.0 { self.begun.1 } else { self.leader },
            sequence,
            records: contents.len(),
            data,
        })
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
        if segment.kind == Kind::Snapshot || self.versions.contains_key(&segment.name) {
            return None;
        }
        let before = format!("journal-{}-{:03}", self.epoch, segment.sequence.checked_sub(1)? % self.shape.ring);
        let version = self.versions.get(&before)?;
        Some((before, version))
    }

    /// A write has landed, as this version.
    pub fn landed(&mut self, segment: &Segment, version: String) {
        self.versions.insert(segment.name.clone(), version);
        self.sizes.insert(segment.name.clone(), segment.data.len());
    }

    /// A write met a conflict; `found` is in its place.
    pub fn judge(&mut self, segment: &Segment, found: Option<Found>) -> Judgement {
        match (segment.kind, found) {
            (_, Some(found)) if found.segment == *segment => {
                self.landed(segment, found.version);
                Judgement::Landed
            }
            (Kind::Snapshot, Some(found)) if found.segment.term < self.term => {
                self.versions.insert(segment.name.clone(), found.version);
                Judgement::Again
            }
            _ => Judgement::Lost,
        }
    }
}
