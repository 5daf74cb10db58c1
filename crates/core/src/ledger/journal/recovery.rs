//! Recovery: rebuilds the state for a new leader, and the journal it continues, from all stored segments. Pure.

use std::collections::{HashMap, HashSet};

use super::{Found, Journal, LedgerLayout, Segment};
use crate::{
    event::{Event, id::EventId, object::Uid, unknown::Unknown},
    ledger::{
        contents::{self, DeliveryEntry, GroupText, Text, WatchEntry},
        record::Record,
    },
};
use llmtune_api::ledger_segment::SegmentKind;

/// The state recovered from the ledger.
#[derive(Debug, Default)]
pub struct RecoveredState {
    pub watches: Vec<RememberedWatch>,
    /// The newest epoch of any record in the ledger, including records of removed watches.
    pub newest_epoch: u64,
    /// Events with deliveries, in the order in which they were created.
    pub events: Vec<RememberedEvent>,
    /// The number of events whose type this release does not know.
    pub unknown_events: usize,
}

/// A watch with its records.
#[derive(Debug)]
pub struct RememberedWatch {
    pub entry: WatchEntry,
    /// By shard of the snapshot.
    pub records: Vec<HashMap<Uid, Record>>,
    /// The store was restored before the records were committed: their versions belong to another history of the store.
    pub restored: bool,
}

/// An event that is still pending.
#[derive(Debug)]
pub struct RememberedEvent {
    pub event: Event,
    /// The event counts if this complete flush, or a record that counts it, is committed.
    pub after: u64,
    /// The position of the event in the order of all events.
    pub order: u64,
    pub deliveries: Vec<DeliveryEntry>,
    pub unknown: Unknown,
}

/// The result of opening a ledger.
#[derive(Debug)]
pub enum Recovered {
    /// The ledger of this installation. The caller must claim it first.
    Ledger(Box<Journal>, Box<RecoveredState>),
    /// There is no ledger to continue. The caller must start an epoch newer than `newest`.
    NoLedger { why: NoLedger, newest: u64 },
}

/// Why there is no ledger to continue.
#[derive(Debug, thiserror::Error)]
pub enum NoLedger {
    #[error("there is no ledger yet")]
    Fresh,
    #[error("the stored ledger belongs to another installation, and is not used")]
    Foreign,
    #[error("segment {0} cannot be read, because it is damaged or was written by a newer release: {1}")]
    Unreadable(String, String),
    #[error("journal segment number {0} is missing")]
    Missing(u64),
    #[error("the journal's ring is full")]
    Full,
}

/// Opens the newest ledger of this home among all stored segments.
#[must_use]
pub fn open(found: &[Found], home: Uid, shape: LedgerLayout, leader: u64) -> Recovered {
    let newest = found.iter().map(|found| found.segment.spec.epoch).max().unwrap_or_default();
    let mut epochs: Vec<u64> = found.iter().map(|found| found.segment.spec.epoch).collect();
    epochs.sort_unstable();
    epochs.dedup();
    let mut why = NoLedger::Fresh;
    for epoch in epochs.into_iter().rev() {
        match open_epoch(found, home, shape, leader, epoch) {
            Ok(Some((journal, memory))) => return Recovered::Ledger(Box::new(journal), Box::new(memory)),
            Ok(None) => why = NoLedger::Foreign,
            Err(why) => return Recovered::NoLedger { why, newest },
        }
    }
    Recovered::NoLedger { why, newest }
}

/// Opens the ledger of this epoch. Returns `None` if it belongs to another installation.
fn open_epoch(
    found: &[Found],
    home: Uid,
    shape: LedgerLayout,
    leader: u64,
    epoch: u64,
) -> Result<Option<(Journal, RecoveredState)>, NoLedger> {
    let of_epoch: Vec<&Found> = found.iter().filter(|found| found.segment.spec.epoch == epoch).collect();
    let of_kind = |kind| of_epoch.iter().map(|found| &found.segment).filter(move |segment| segment.spec.kind == kind);
    let writer = |segment: &Segment| (segment.spec.term, segment.spec.leader);
    let mut journal: Vec<&Segment> = of_kind(SegmentKind::Journal).collect();
    journal.sort_by_key(|segment| segment.spec.sequence);
    // A leader that survived a restore of the store continued from its own place, after a segment that is not there.
    // Its segments are ignored, and overwritten when the ring reaches them.
    let stray = journal.windows(2).position(|pair| {
        let (before, next) = (pair[0], pair[1]);
        next.spec.after != before.spec.leader
            && (next.spec.sequence == before.spec.sequence + 1 || next.spec.term <= before.spec.term)
    });
    journal.truncate(stray.map_or(journal.len(), |last| last + 1));
    let mut rebuilt = Rebuilt::default();
    let mut covered = vec![1; shape.shards];
    // One segment at a time: together, their JSON is many times larger than the resulting state.
    for segment in of_kind(SegmentKind::Snapshot) {
        let json = unpack(segment)?;
        let text = read(segment, &json)?;
        if text.home != home {
            return Ok(None);
        }
        let Some(shard) = text.shard.filter(|shard| *shard < shape.shards) else {
            let problem = format!("{:?} is not a shard of a snapshot", text.shard);
            return Err(NoLedger::Unreadable(segment.name.clone(), problem));
        };
        let flush = journal
            .binary_search_by_key(&segment.spec.sequence, |flush| flush.spec.sequence)
            .map(|at| writer(journal[at]));
        if flush != Ok(writer(segment)) {
            return Err(NoLedger::Missing(segment.spec.sequence));
        }
        covered[shard] = segment.spec.sequence;
        rebuilt.apply(text, |other| other == shard, shape.shards)?;
    }
    let (last, before) = journal.last().map_or((0, 0), |segment| (segment.spec.sequence, segment.spec.leader));
    let mut begun = (last + 1, before);
    // A snapshot that continues from the last place depends on that segment, so the claim must not replace it.
    let is_needed = of_kind(SegmentKind::Snapshot).any(|segment| segment.spec.sequence == last);
    let oldest = covered.iter().copied().min().unwrap_or(1);
    let mut expected = oldest;
    for segment in journal {
        let json = unpack(segment)?;
        let text = read(segment, &json)?;
        if text.home != home {
            return Ok(None);
        }
        if segment.spec.sequence < oldest {
            continue;
        }
        if segment.spec.sequence != expected {
            return Err(NoLedger::Missing(expected));
        }
        expected += 1;
        if segment.spec.sequence == last && text.is_empty_claim() && !is_needed {
            begun = (last, segment.spec.after);
        }
        if text.watches.is_some() {
            let at = of_epoch.iter().find(|found| found.segment.name == segment.name);
            rebuilt.landed = at.and_then(|found| found.version.parse().ok());
        }
        rebuilt.apply(text, |shard| segment.spec.sequence >= covered[shard], shape.shards)?;
    }
    if expected <= last.max(oldest) {
        return Err(NoLedger::Missing(expected));
    }
    let writing = Journal {
        shape,
        home,
        epoch,
        term: of_epoch.iter().map(|found| found.segment.spec.term).max().unwrap_or_default() + 1,
        leader,
        begun,
        next: begun.0,
        covered,
        oldest,
        flushes: 0,
        versions: of_epoch.iter().map(|found| (found.segment.name.clone(), found.version.clone())).collect(),
        sizes: of_epoch.iter().map(|found| (found.segment.name.clone(), found.segment.spec.data.len())).collect(),
    };
    Ok(Some((writing, rebuilt.memory(shape.shards))))
}

fn unpack(segment: &Segment) -> Result<Vec<u8>, NoLedger> {
    contents::unpack(&segment.spec.data).map_err(|error| NoLedger::Unreadable(segment.name.clone(), error.to_string()))
}

fn read<'a>(segment: &Segment, json: &'a [u8]) -> Result<Text<'a>, NoLedger> {
    serde_json::from_slice(json).map_err(|error| NoLedger::Unreadable(segment.name.clone(), error.to_string()))
}

/// The state rebuilt so far.
#[derive(Default)]
struct Rebuilt {
    watches: Vec<WatchEntry>,
    /// The store version at which the watches were committed.
    landed: Option<u64>,
    groups: HashMap<(String, u64), Vec<HashMap<Uid, Record>>>,
    events: HashMap<EventId, RememberedEvent>,
    unknown: HashSet<EventId>,
}

impl Rebuilt {
    /// Applies the parts of a segment whose shards are wanted.
    fn apply(&mut self, text: Text<'_>, wanted: impl Fn(usize) -> bool, shards: usize) -> Result<(), NoLedger> {
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
                let (after, order) = (event.after, event.order);
                let (deliveries, unknown) = (event.deliveries, event.unknown);
                self.events.insert(event.id, RememberedEvent { event: read, after, order, deliveries, unknown });
            } else if let Some(known) = self.events.get_mut(&event.id) {
                known.deliveries = event.deliveries;
                known.unknown = event.unknown;
            } else if !self.unknown.contains(&event.id) {
                let problem = format!("it contains deliveries of an event that is missing: {}", event.id);
                return Err(NoLedger::Unreadable("(several)".into(), problem));
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
            // A complete flush drops events that do not count. Without watches, no other entry holds its number.
            if watches.is_empty() {
                self.events.values_mut().for_each(|known| known.after = 0);
            }
            self.watches = watches;
        }
        Ok(())
    }

    /// Returns the recovered state. A watch without a position has no baseline, and its records are ignored.
    fn memory(mut self, shards: usize) -> RecoveredState {
        let epochs = self.watches.iter().map(|watch| watch.epoch).chain(self.groups.keys().map(|(_, epoch)| *epoch));
        let newest_epoch = epochs.max().unwrap_or_default();
        let watches = self.watches.into_iter().filter(|watch| watch.position > 0 || watch.absent).map(|entry| {
            let records = self.groups.remove(&(entry.watch.clone(), entry.epoch));
            let records = records.unwrap_or_else(|| vec![HashMap::new(); shards]);
            // In one history of the store, positions are older than the flush that holds them.
            let restored = self.landed.is_some_and(|landed| entry.position > landed);
            RememberedWatch { entry, records, restored }
        });
        let watches = watches.collect();
        let mut events: Vec<RememberedEvent> = self.events.into_values().collect();
        events.sort_by_key(|known| (known.order, known.event.id));
        RecoveredState { watches, newest_epoch, events, unknown_events: self.unknown.len() }
    }
}
