//! One watch: its records, its position, and how much of them the ledger holds. Only the engine uses it.

mod checkpoint;
mod news;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};

use crate::{
    event::{
        EventType,
        lifecycle::{Gone, Lifecycle, Occurrence, usage::UsageRecord},
        object::{Labels, Object, Uid, WatchId},
        observation::ExistenceCheck,
        unknown::Unknown,
    },
    ledger::{contents::Group, record::Record},
};

/// A position that stands for a baseline without a resource version: a source that resumes from it must list, and
/// measured objects have no log. No object has this version, since etcd starts with it.
const NO_VERSION: u64 = 1;

/// The time for which the records of a resource are kept after it stops being served.
const KEPT_WHILE_MISSING: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The effect of a resource that is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// None: this was already known.
    Known,
    /// Its records are kept from now on.
    Begun,
    /// It has no records, or they were kept for long enough.
    Expired,
}

/// The state of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchState {
    /// No list is complete yet. The objects of the first list are a baseline.
    Fresh,
    /// An object seen for the first time is new.
    Live,
}

/// How a watch sees its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchScope {
    /// It sees all objects.
    Whole,
    /// It sees the objects that match a label selector.
    Selected,
    /// It measures its objects: they have no versions, and their deletion is not an event.
    Measured,
}

/// Whether the ledger holds the baseline of the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Baseline {
    Unwritten,
    /// The complete flush with this number holds it, and is not committed yet.
    Written(u64),
    Committed,
}

/// The engine's state of one watch.
#[derive(Debug)]
pub(super) struct Watch {
    /// The source's name, `resource.group`. Part of every event ID.
    pub(super) source: Arc<str>,
    pub(super) sight: WatchScope,
    stand: WatchState,
    pub(super) baseline: Baseline,
    listing: u16,
    in_list: bool,
    absent: bool,
    /// The watch has processed everything that existed at this time.
    current: Option<Timestamp>,
    /// The time since which the resource has not been served while its records are kept.
    missing_since: Option<Timestamp>,
    /// Objects that a GET found deleted before the log reached their deletion. What the log still shows of them is not
    /// old.
    found_gone: HashSet<Uid>,
    position: u64,
    group: Arc<Group>,
    /// By shard of the ledger's snapshot.
    records: Vec<HashMap<Uid, Tracked>>,
    unknown: Unknown,
}

/// A record, with state that the ledger does not need.
#[derive(Debug)]
struct Tracked {
    record: Record,
    /// The number of the watch's last list that held the object, or of the list after which it was seen.
    listing: u16,
    /// The record waits for the next flush.
    dirty: bool,
}

/// An occurrence with its object and its sequence number.
pub(super) struct Occurred {
    pub(super) object: Arc<Object>,
    pub(super) occurrence: Occurrence,
    pub(super) sequence: u32,
}

use news::{Known, News};

pub(super) use checkpoint::is_known;

/// Creates the existence check for an object that a list lacked.
pub(super) fn existence_check(watch: WatchId, uid: Uid, record: &Record) -> Option<ExistenceCheck> {
    let object = record.last.as_ref()?;
    let (namespace, name) = (object.namespace.clone(), object.name.clone());
    Some(ExistenceCheck { watch, uid, namespace, name, version: record.version })
}

impl Watch {
    pub(super) fn new(source: &str, sight: WatchScope, shards: usize, name: &str, epoch: u64) -> Self {
        Self {
            source: source.into(),
            sight,
            stand: WatchState::Fresh,
            baseline: Baseline::Unwritten,
            listing: 0,
            in_list: false,
            absent: false,
            current: None,
            missing_since: None,
            found_gone: HashSet::new(),
            position: 0,
            group: Arc::new(Group { watch: name.to_owned(), epoch }),
            records: (0..shards).map(|_| HashMap::new()).collect(),
            unknown: Unknown::NONE,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.records.iter().map(HashMap::len).sum()
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn epoch(&self) -> u64 {
        self.group.epoch
    }

    fn tracked(&mut self, uid: Uid) -> Option<&mut Tracked> {
        let shards = self.records.len();
        self.records[uid.shard(shards)].get_mut(&uid)
    }

    fn record(&mut self, uid: Uid) -> Option<&mut Record> {
        self.tracked(uid).map(|tracked| &mut tracked.record)
    }

    fn track(&mut self, uid: Uid, version: u64, lifecycle: Lifecycle) {
        let (shards, listing) = (self.records.len(), self.listing);
        let tracked = Tracked { record: Record::new(version, lifecycle), listing, dirty: false };
        self.records[uid.shard(shards)].insert(uid, tracked);
    }

    fn remove(&mut self, uid: Uid) -> Option<Tracked> {
        let shards = self.records.len();
        self.records[uid.shard(shards)].remove(&uid)
    }

    fn touch(&mut self, uid: Uid, dirty: &mut Vec<Uid>) {
        if self.stand == WatchState::Fresh {
            return;
        }
        if let Some(tracked) = self.tracked(uid)
            && !std::mem::replace(&mut tracked.dirty, true)
        {
            dirty.push(uid);
        }
    }

    /// Advances the position to this version, except during a list. Returns whether it moved.
    pub(super) fn pass(&mut self, version: u64) -> bool {
        let news = !self.in_list && version > self.position;
        if news {
            self.position = version;
        }
        news
    }

    /// Advances the position on an event of the watch log. A list in progress has been abandoned.
    pub(super) fn follow(&mut self, version: u64) -> bool {
        self.in_list = false;
        self.pass(version)
    }

    pub(super) fn begin_list(&mut self) {
        // An incomplete first list is not a baseline.
        if self.stand == WatchState::Fresh {
            self.records.iter_mut().for_each(HashMap::clear);
        }
        self.listing = self.listing.wrapping_add(1);
        self.in_list = true;
    }

    /// Completes the list. Returns whether the ledger must record it at once.
    pub(super) fn end_list(&mut self, version: u64, dirty: &mut Vec<Uid>) -> bool {
        self.in_list = false;
        let began = self.stand == WatchState::Fresh || self.absent || self.missing_since.is_some();
        if self.stand == WatchState::Fresh {
            self.stand = WatchState::Live;
            for (uid, tracked) in self.records.iter_mut().flatten() {
                tracked.dirty = true;
                dirty.push(*uid);
            }
            dirty.sort_unstable();
        }
        self.absent = false;
        self.position = version;
        began
    }

    /// Records that everything that existed at this time has been processed. The time may be earlier than the one
    /// before, if the apiserver's clock was set back or another apiserver answered.
    pub(super) fn current(&mut self, at: Timestamp) {
        self.current = Some(at);
        self.found_gone.clear();
    }

    /// Handles a resource that is not served. Its records are kept for a while, because it may return with the same
    /// objects.
    pub(super) fn missing(&mut self, at: Option<Timestamp>, now: Timestamp) -> Missing {
        if self.stand == WatchState::Fresh {
            // Objects created before the resource was first requested are not news when it appears.
            self.current = at;
            return Missing::Expired;
        }
        if self.absent {
            return Missing::Known;
        }
        if self.missing_since.is_some() {
            return if self.has_expired(now) { Missing::Expired } else { Missing::Known };
        }
        self.missing_since = Some(now);
        self.in_list = false;
        // The source must list when the resource is served again.
        self.position = self.position.min(NO_VERSION);
        Missing::Begun
    }

    /// Reports whether the resource has been missing for longer than its records are kept.
    pub(super) fn has_expired(&self, now: Timestamp) -> bool {
        self.missing_since.is_some_and(|since| now.duration_since(since) >= KEPT_WHILE_MISSING)
    }

    /// Ends the time in which the resource was missing, after a complete list. Returns whether it was missing: if so,
    /// the deletion of an object that the list lacks went unseen.
    pub(super) fn is_back(&mut self) -> bool {
        self.missing_since.take().is_some()
    }

    /// Drops all records. New ones belong to a new epoch.
    pub(super) fn absent(&mut self, epoch: u64) {
        self.records.iter_mut().for_each(HashMap::clear);
        self.stand = WatchState::Live;
        self.baseline = Baseline::Unwritten;
        self.absent = true;
        self.missing_since = None;
        self.in_list = false;
        self.position = 0;
        self.group = Arc::new(Group { watch: self.group.watch.clone(), epoch });
    }

    /// Handles a restored store, whose versions start again: the objects of the next list are compared whatever their
    /// versions. The source must list, because the old position may now stand for another state.
    pub(super) fn distrust_versions(&mut self, dirty: &mut Vec<Uid>) {
        self.position = self.position.min(NO_VERSION);
        for (uid, tracked) in self.records.iter_mut().flatten() {
            tracked.record.version = 0;
            if !std::mem::replace(&mut tracked.dirty, true) {
                dirty.push(*uid);
            }
        }
        dirty.sort_unstable();
    }

    /// Returns the labels that the object's Namespace had when the object was last seen.
    pub(super) fn namespace_labels(&self, uid: Uid) -> Option<&Arc<Labels>> {
        let tracked = self.records[uid.shard(self.records.len())].get(&uid)?;
        tracked.record.last.as_ref()?.namespace_labels.as_ref()
    }

    /// Processes the current state of an object.
    pub(super) fn seen(&mut self, object: Object, now: Timestamp, dirty: &mut Vec<Uid>) -> Vec<Occurred> {
        let (listing, uid) = (self.listing, object.uid);
        let (mut news, is_young) = (News::All, news::is_young(&object, now));
        let is_first = self.record(uid).is_none();
        if let Some(Tracked { record, listing: seen_in, .. }) = self.tracked(uid) {
            *seen_in = listing;
            if object.version <= record.version {
                // A flush may hold a change without the position after it. If an earlier change excluded the object, the
                // engine observes that change again after a crash. This state must then end the exclusion again.
                if object.version == record.version && !object.owned && std::mem::take(&mut record.excluded) {
                    self.touch(uid, dirty);
                }
                return Vec::new();
            }
            record.version = object.version;
            if record.excluded || record.unconfirmed {
                // The object was out of view until now.
                news = News::KnownRun;
            }
            let changed = record.excluded != object.owned || record.unconfirmed;
            record.unconfirmed = false;
            record.left = false;
            record.excluded = object.owned;
            if object.owned {
                record.last = None;
            }
            if changed {
                self.touch(uid, dirty);
            }
            if object.owned {
                return Vec::new();
            }
        } else if object.owned || (!self.in_list && object.version < self.position) {
            // The position is past this version, so the object is already deleted. This happens if a watch restarts
            // while its observations are in transit.
            return Vec::new();
        } else {
            // A list after a gap may show changes from the gap. An event of the log shows an object that has just come
            // into view.
            let old = self.current.filter(|at| news::is_old(&object, *at) && !self.found_gone.contains(&uid));
            let hidden = old.filter(|current| self.in_list && news::changed_since(&object, *current));
            news = hidden.map_or(News::All, News::Since);
            let lifecycle = if self.stand == WatchState::Fresh || (old.is_some() && hidden.is_none()) {
                Lifecycle::baseline(&object.facts, object.generation)
            } else if self.absent && self.current.is_some_and(|at| news::existed(&object, at)) {
                // An earlier watch may have sent events of the object: the watch of a deleted source, or one whose
                // records expired.
                Lifecycle::unremembered(&object.facts, object.generation)
            } else {
                Lifecycle::new(&object.facts)
            };
            self.track(uid, object.version, lifecycle);
            self.touch(uid, dirty);
        }
        let announced = self.record(uid).is_some_and(|record| record.sequence > 0);
        self.step(object, news, Known { is_first, is_young, announced }, dirty)
    }

    /// Steps the object's lifecycle with this state. `news` selects the occurrences that are sent.
    fn step(&mut self, object: Object, news: News, known: Known, dirty: &mut Vec<Uid>) -> Vec<Occurred> {
        let uid = object.uid;
        let Some(record) = self.record(uid) else { return Vec::new() };
        record.generation = object.generation;
        let before = record.lifecycle.clone();
        let lifecycle = std::mem::replace(&mut record.lifecycle, Lifecycle::new(&object.facts));
        let (mut occurrences, lifecycle) = lifecycle.step(&object.facts, object.generation);
        news.retain(&mut occurrences, &object, known);
        record.lifecycle = lifecycle;
        let keep = record.lifecycle.emits_on_delete();
        let mut changed = !occurrences.is_empty() || record.lifecycle != before;
        let mut occurred = Vec::new();
        if occurrences.is_empty() && !keep {
            changed |= record.last.take().is_some();
        } else {
            changed |= !keep || !record.last.as_ref().is_some_and(|last| last.differs_in_version_alone(&object));
            let object = Arc::new(object);
            record.last = keep.then(|| Arc::clone(&object));
            occurred = number(record, &object, occurrences);
        }
        if changed {
            self.touch(uid, dirty);
        }
        occurred
    }

    /// Handles a deletion. The object's final state is processed first.
    pub(super) fn deleted(&mut self, object: Object, now: Timestamp, dirty: &mut Vec<Uid>) -> Vec<Occurred> {
        let uid = object.uid;
        // A flush before the crash held this deletion, but not the position after it.
        if self.record(uid).is_none_or(|record| object.version <= record.version) {
            return Vec::new();
        }
        let mut occurred = self.seen(object, now, dirty);
        occurred.extend(self.go(uid, Gone::Deleted, dirty));
        occurred
    }

    /// Handles an object that is deleted or no longer selected. Its final state is processed first; then an existence
    /// check begins.
    pub(super) fn left(
        &mut self,
        object: Object,
        now: Timestamp,
        dirty: &mut Vec<Uid>,
    ) -> (Vec<Occurred>, Option<&Record>) {
        let uid = object.uid;
        let Some(record) = self.record(uid) else { return (Vec::new(), None) };
        if object.version <= record.version {
            // A flush before the crash held this change, but not the position after it.
            return (Vec::new(), self.asked_at(uid, object.version));
        }
        let outline = object.outline();
        let occurred = self.seen(object, now, dirty);
        (occurred, self.miss(outline, true, dirty))
    }

    /// Like [`Self::left`], for an object whose last state cannot be read.
    pub(super) fn left_unread(&mut self, check: &ExistenceCheck, dirty: &mut Vec<Uid>) -> Option<&Record> {
        let record = self.record(check.uid)?;
        if check.version <= record.version {
            return self.asked_at(check.uid, check.version);
        }
        record.version = check.version;
        let event = match record.lifecycle {
            Lifecycle::Training(_) => EventType::TrainingFailed,
            Lifecycle::Serving(_) | Lifecycle::Usage(_) => EventType::DeploymentDeleted,
        };
        let outline = Object::of_event(event, check.uid, check.namespace.clone(), check.name.clone());
        self.miss(outline, false, dirty)
    }

    /// Returns the record if an existence check is open since this version. No answer counted before the log reached
    /// that version again.
    fn asked_at(&mut self, uid: Uid, version: u64) -> Option<&Record> {
        self.record(uid).filter(|record| record.unconfirmed && record.version == version).map(|record| &*record)
    }

    /// Reports whether an existence check of the object is open.
    pub(super) fn is_unconfirmed(&mut self, uid: Uid) -> bool {
        self.record(uid).is_some_and(|record| record.unconfirmed)
    }

    /// Opens an existence check. The outline has the namespace and name that the check needs, also after a crash.
    fn miss(&mut self, outline: Object, left: bool, dirty: &mut Vec<Uid>) -> Option<&Record> {
        let uid = outline.uid;
        let record = self.record(uid)?;
        (record.unconfirmed, record.left) = (true, left);
        record.last.get_or_insert_with(|| Arc::new(outline));
        self.touch(uid, dirty);
        self.record(uid).map(|record| &*record)
    }

    /// Closes an existence check.
    fn close_existence_check(&mut self, uid: Uid, dirty: &mut Vec<Uid>) {
        let Some(record) = self.record(uid) else { return };
        (record.unconfirmed, record.left) = (false, false);
        if !record.lifecycle.emits_on_delete() {
            record.last = None;
        }
        self.touch(uid, dirty);
    }

    /// Handles an object that no longer exists after a gap.
    pub(super) fn vanished(&mut self, uid: Uid, dirty: &mut Vec<Uid>) -> Vec<Occurred> {
        self.go(uid, Gone::Vanished, dirty)
    }

    fn go(&mut self, uid: Uid, how: Gone, dirty: &mut Vec<Uid>) -> Vec<Occurred> {
        let Some(Tracked { mut record, dirty: queued, .. }) = self.remove(uid) else { return Vec::new() };
        // A dirty record is already queued for the flush, which then finds it removed.
        if !queued && self.stand == WatchState::Live {
            dirty.push(uid);
        }
        let Some(object) = record.last.take().filter(|_| !record.excluded) else { return Vec::new() };
        let lifecycle = std::mem::replace(&mut record.lifecycle, Lifecycle::new(&object.facts));
        let occurrences = lifecycle.gone(how, record.generation);
        number(&mut record, &object, occurrences)
    }

    /// Excludes an object that still exists. It sends no events until it is selected again.
    pub(super) fn exclude(&mut self, uid: Uid, dirty: &mut Vec<Uid>) {
        self.listed(uid);
        if let Some(record) = self.record(uid)
            && (!record.excluded || record.unconfirmed)
        {
            record.excluded = true;
            self.close_existence_check(uid, dirty);
        }
    }

    /// Sets the complete set of measured objects. Returns whether they are the baseline, which the ledger must record
    /// at once.
    pub(super) fn only(&mut self, there: &[Uid], dirty: &mut Vec<Uid>) -> bool {
        if self.stand == WatchState::Live {
            let there: HashSet<&Uid> = there.iter().collect();
            let mut gone: Vec<Uid> =
                self.records.iter().flat_map(HashMap::keys).filter(|uid| !there.contains(uid)).copied().collect();
            gone.sort_unstable();
            for uid in gone {
                self.forget(uid, dirty);
            }
            return false;
        }
        self.stand = WatchState::Live;
        self.position = NO_VERSION;
        for uid in there {
            self.track(*uid, 0, Lifecycle::Usage(UsageRecord::baseline()));
            self.touch(*uid, dirty);
        }
        true
    }

    /// Processes an evaluation of the object. Returns the occurrences and the thresholds that are reached, or `None` if
    /// the set of measured objects is not known yet.
    pub(super) fn measure(&mut self, object: Object, dirty: &mut Vec<Uid>) -> Option<(Vec<Occurred>, Vec<String>)> {
        if self.stand == WatchState::Fresh {
            return None;
        }
        let uid = object.uid;
        if self.record(uid).is_none() {
            self.track(uid, 0, Lifecycle::new(&object.facts));
        }
        let record = self.record(uid)?;
        record.generation = object.generation;
        let before = record.lifecycle.clone();
        let (occurrences, lifecycle) = before.clone().step(&object.facts, object.generation);
        let changed = lifecycle != before;
        record.lifecycle = lifecycle;
        let reached = record.lifecycle.reached(&object.facts);
        let occurred = number(record, &Arc::new(object), occurrences);
        if changed {
            self.touch(uid, dirty);
        }
        Some((occurred, reached))
    }

    /// Drops the object's record without an event.
    pub(super) fn forget(&mut self, uid: Uid, dirty: &mut Vec<Uid>) {
        self.go(uid, Gone::Deleted, dirty);
    }

    /// Marks the object as present in the current list, or in the log after the last one.
    pub(super) fn listed(&mut self, uid: Uid) {
        let listing = self.listing;
        if let Some(tracked) = self.tracked(uid) {
            tracked.listing = listing;
        }
    }

    /// Returns the objects that the list which just ended lacked.
    pub(super) fn lacking(&self) -> Vec<Uid> {
        let records = self.records.iter().flatten();
        let mut lacking: Vec<Uid> =
            records.filter(|(_, tracked)| tracked.listing != self.listing).map(|(uid, _)| *uid).collect();
        lacking.sort_unstable();
        lacking
    }

    /// Opens an existence check if deletion would be an event. On a watch with a selector, absence from a list may mean
    /// that only the label was removed.
    pub(super) fn begin_existence_check(&mut self, uid: Uid, dirty: &mut Vec<Uid>) -> Option<&Record> {
        if self.sight != WatchScope::Selected || self.record(uid)?.last.is_none() {
            return None;
        }
        let record = self.record(uid)?;
        record.left &= record.unconfirmed;
        record.unconfirmed = true;
        self.touch(uid, dirty);
        self.record(uid).map(|record| &*record)
    }

    /// Returns the objects with an open existence check.
    pub(super) fn existence_checks(&self) -> impl Iterator<Item = (Uid, &Record)> {
        let records = self.records.iter().flatten().map(|(uid, tracked)| (*uid, &tracked.record));
        records.filter(|(_, record)| record.unconfirmed)
    }

    /// Processes the answer to an existence check. The answer is void if the object has been seen since.
    pub(super) fn answer(
        &mut self,
        check: &ExistenceCheck,
        living: bool,
        dirty: &mut Vec<Uid>,
    ) -> Option<Vec<Occurred>> {
        let record = self.record(check.uid)?;
        if !record.unconfirmed || record.version > check.version {
            return None;
        }
        if living {
            self.exclude(check.uid, dirty);
            return None;
        }
        let (how, left_at) = (if record.left { Gone::Deleted } else { Gone::Vanished }, record.version);
        if self.position < left_at {
            // After a crash the log reports the departure again, and that opens a new check.
            return None;
        }
        self.found_gone.insert(check.uid);
        Some(self.go(check.uid, how, dirty))
    }
}

/// Assigns the object's next sequence numbers to the occurrences.
fn number(record: &mut Record, object: &Arc<Object>, occurrences: Vec<Occurrence>) -> Vec<Occurred> {
    let numbered = occurrences.into_iter().map(|occurrence| {
        record.sequence = record.sequence.saturating_add(1);
        Occurred { object: Arc::clone(object), occurrence, sequence: record.sequence }
    });
    numbered.collect()
}
