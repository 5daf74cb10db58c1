//! One watch: its records, its position, and how far the ledger knows of them.

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

/// A position that says that there is a baseline, and nothing of where in the watch's log it was: whoever goes on from it must list, and
/// what is measured has no log. No object has this version, since etcd begins with it.
const NO_VERSION: u64 = 1;

/// For how long the records of a resource are kept that is not served any more.
const KEPT_WHILE_MISSING: SignedDuration = SignedDuration::from_hours(7 * 24);

/// What it means that a resource is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Nothing that was not known.
    Known,
    /// Its records are kept from now on.
    Begun,
    /// There are no records of it, or they have been kept for long enough.
    Expired,
}

/// Where a watch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchState {
    /// Nothing is known: what its first list shows is a baseline.
    Fresh,
    /// What is seen for the first time is new.
    Live,
}

/// How a watch knows its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchScope {
    /// All that there are.
    Whole,
    /// Those that a label selector selects.
    Selected,
    /// By measuring them: they have no versions, and their going says nothing.
    Measured,
}

/// How far the ledger knows what the records began from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Baseline {
    Unwritten,
    /// In the complete flush of this number.
    Written(u64),
    Landed,
}

/// What the engine keeps of one watch.
#[derive(Debug)]
pub(super) struct Watch {
    /// The source's name, `resource.group`: part of every event id.
    pub(super) source: Arc<str>,
    pub(super) sight: WatchScope,
    stand: WatchState,
    pub(super) baseline: Baseline,
    listing: u16,
    in_list: bool,
    absent: bool,
    /// Everything that existed at this time has been passed.
    current: Option<Timestamp>,
    /// Since when its resource has not been served, while its records are kept.
    missing_since: Option<Timestamp>,
    /// Found gone before the log that tells their end was passed. What it still tells of them is not old.
    found_gone: HashSet<Uid>,
    position: u64,
    group: Arc<Group>,
    /// By shard of the ledger's snapshot.
    records: Vec<HashMap<Uid, Tracked>>,
    unknown: Unknown,
}

/// A record, with what no ledger need know of it.
#[derive(Debug)]
struct Tracked {
    record: Record,
    /// The number of the last list of its watch that held it, or that it was seen after.
    listing: u16,
    /// It waits for the next flush.
    dirty: bool,
}

/// An occurrence with the object it happened to.
pub(super) struct Occurred {
    pub(super) object: Arc<Object>,
    pub(super) occurrence: Occurrence,
    pub(super) sequence: u32,
}

use news::{Known, News};

pub(super) use checkpoint::is_known;

/// What to ask about an object that a list lacked.
pub(super) fn question(watch: WatchId, uid: Uid, record: &Record) -> Option<ExistenceCheck> {
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

    /// Begins a record.
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

    /// Everything up to this version has been passed; during a list nothing is. Tells whether that is news.
    pub(super) fn pass(&mut self, version: u64) -> bool {
        let news = !self.in_list && version > self.position;
        if news {
            self.position = version;
        }
        news
    }

    /// The watch follows the log, and has passed this version: a list that was under way has broken off.
    pub(super) fn follow(&mut self, version: u64) -> bool {
        self.in_list = false;
        self.pass(version)
    }

    pub(super) fn begin_list(&mut self) {
        // What a first list showed that broke off is no baseline.
        if self.stand == WatchState::Fresh {
            self.records.iter_mut().for_each(HashMap::clear);
        }
        self.listing = self.listing.wrapping_add(1);
        self.in_list = true;
    }

    /// The list was complete. Tells whether the ledger must know at once.
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

    /// Everything that existed at this time has been passed. It may be earlier than what was said before: the apiserver's clock has been
    /// set, or another one answered.
    pub(super) fn current(&mut self, at: Timestamp) {
        self.current = Some(at);
        self.found_gone.clear();
    }

    /// The resource is not served. Its records are kept for a while: it may be back, with the same objects.
    pub(super) fn missing(&mut self, at: Option<Timestamp>, now: Timestamp) -> Missing {
        if self.stand == WatchState::Fresh {
            // What was there before it was asked for is not news when it comes.
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
        // Whoever goes on from here must list.
        self.position = self.position.min(NO_VERSION);
        Missing::Begun
    }

    /// Whether its resource has been missing for longer than its records are kept.
    pub(super) fn has_expired(&self, now: Timestamp) -> bool {
        self.missing_since.is_some_and(|since| now.duration_since(since) >= KEPT_WHILE_MISSING)
    }

    /// The resource is served again, and a list of it is complete. Tells whether it was missing: what that list lacks went unseen.
    pub(super) fn is_back(&mut self) -> bool {
        self.missing_since.take().is_some()
    }

    /// There are no records of it any more: what comes of it is under an epoch of its own.
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

    /// Versions begin anew: the next list's objects are looked at whatever their versions. Whoever goes on from here must list: where the
    /// position was, something else may be by then.
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

    /// The labels that the object's Namespace had when the object was last seen.
    pub(super) fn namespace_labels(&self, uid: Uid) -> Option<&Arc<Labels>> {
        let tracked = self.records[uid.shard(self.records.len())].get(&uid)?;
        tracked.record.last.as_ref()?.namespace_labels.as_ref()
    }

    /// The object as it is.
    pub(super) fn seen(&mut self, object: Object, now: Timestamp, dirty: &mut Vec<Uid>) -> Vec<Occurred> {
        let (listing, uid) = (self.listing, object.uid);
        let (mut news, is_young) = (News::All, news::is_young(&object, now));
        let is_first = self.record(uid).is_none();
        if let Some(Tracked { record, listing: seen_in, .. }) = self.tracked(uid) {
            *seen_in = listing;
            if object.version <= record.version {
                // A flush may tell of a change that its position has not passed: what unselected the object before is then
                // observed again, and must not outlast this.
                if object.version == record.version && !object.owned && std::mem::take(&mut record.excluded) {
                    self.touch(uid, dirty);
                }
                return Vec::new();
            }
            record.version = object.version;
            if record.excluded || record.missed {
                // It was out of sight until now.
                news = News::KnownRun;
            }
            let changed = record.excluded != object.owned || record.missed;
            record.missed = false;
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
            // What has been passed has gone since; it comes again where a watch is begun anew while its observations are under way.
            return Vec::new();
        } else {
            // A list after a gap may show what happened in the gap; a line shows an object that has just come into view.
            let old = self.current.filter(|at| news::is_old(&object, *at) && !self.found_gone.contains(&uid));
            let hidden = old.filter(|current| self.in_list && news::changed_since(&object, *current));
            news = hidden.map_or(News::All, News::Since);
            let lifecycle = if self.stand == WatchState::Fresh || (old.is_some() && hidden.is_none()) {
                Lifecycle::baseline(&object.facts, object.generation)
            } else if self.absent && self.current.is_some_and(|at| news::existed(&object, at)) {
                // A watch before this one may have sent events of it: one of a source that was deleted since, or of records that expired.
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

    /// Lets the record's lifecycle judge the object's state, of which this is news.
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

    /// The object is deleted: its final state is stepped first.
    pub(super) fn deleted(&mut self, object: Object, now: Timestamp, dirty: &mut Vec<Uid>) -> Vec<Occurred> {
        let uid = object.uid;
        // Its going was told, and the position had not passed it when that was flushed.
        if self.record(uid).is_none_or(|record| object.version <= record.version) {
            return Vec::new();
        }
        let mut occurred = self.seen(object, now, dirty);
        occurred.extend(self.go(uid, Gone::Deleted, dirty));
        occurred
    }

    /// The object is deleted, or no longer selected: its final state is stepped first, then it is to be asked after.
    pub(super) fn left(
        &mut self,
        object: Object,
        now: Timestamp,
        dirty: &mut Vec<Uid>,
    ) -> (Vec<Occurred>, Option<&Record>) {
        let uid = object.uid;
        let Some(record) = self.record(uid) else { return (Vec::new(), None) };
        if object.version <= record.version {
            // It was told, and the position had not passed it when that was flushed.
            return (Vec::new(), self.asked_at(uid, object.version));
        }
        let outline = object.outline();
        let occurred = self.seen(object, now, dirty);
        (occurred, self.miss(outline, true, dirty))
    }

    /// The same of an object whose last state cannot be read.
    pub(super) fn left_unread(&mut self, question: &ExistenceCheck, dirty: &mut Vec<Uid>) -> Option<&Record> {
        let record = self.record(question.uid)?;
        if question.version <= record.version {
            return self.asked_at(question.uid, question.version);
        }
        record.version = question.version;
        let event = match record.lifecycle {
            Lifecycle::Training(_) => EventType::TrainingFailed,
            Lifecycle::Serving(_) | Lifecycle::Usage(_) => EventType::DeploymentDeleted,
        };
        let outline = event.outline(question.uid, question.namespace.clone(), question.name.clone());
        self.miss(outline, false, dirty)
    }

    /// The record, if the object has been asked after since this version: no answer counted before the log had told it again.
    fn asked_at(&mut self, uid: Uid, version: u64) -> Option<&Record> {
        self.record(uid).filter(|record| record.missed && record.version == version).map(|record| &*record)
    }

    /// Whether the object is asked after.
    pub(super) fn is_missed(&mut self, uid: Uid) -> bool {
        self.record(uid).is_some_and(|record| record.missed)
    }

    /// Whether the object lives is to be asked. The outline says where to ask, over a crash too.
    fn miss(&mut self, outline: Object, left: bool, dirty: &mut Vec<Uid>) -> Option<&Record> {
        let uid = outline.uid;
        let record = self.record(uid)?;
        (record.missed, record.left) = (true, left);
        record.last.get_or_insert_with(|| Arc::new(outline));
        self.touch(uid, dirty);
        self.record(uid).map(|record| &*record)
    }

    /// Whether the object lives is not asked any more.
    fn settle_missed(&mut self, uid: Uid, dirty: &mut Vec<Uid>) {
        let Some(record) = self.record(uid) else { return };
        (record.missed, record.left) = (false, false);
        if !record.lifecycle.emits_on_delete() {
            record.last = None;
        }
        self.touch(uid, dirty);
    }

    /// The object was no longer there after a gap.
    pub(super) fn vanished(&mut self, uid: Uid, dirty: &mut Vec<Uid>) -> Vec<Occurred> {
        self.go(uid, Gone::Vanished, dirty)
    }

    fn go(&mut self, uid: Uid, how: Gone, dirty: &mut Vec<Uid>) -> Vec<Occurred> {
        let Some(Tracked { mut record, dirty: told, .. }) = self.remove(uid) else { return Vec::new() };
        // A dirty record is told of already; then the flush finds it gone.
        if !told && self.stand == WatchState::Live {
            dirty.push(uid);
        }
        let Some(object) = record.last.take().filter(|_| !record.excluded) else { return Vec::new() };
        let lifecycle = std::mem::replace(&mut record.lifecycle, Lifecycle::new(&object.facts));
        let occurrences = lifecycle.gone(how, record.generation);
        number(&mut record, &object, occurrences)
    }

    /// The object lives, but sends nothing until it is selected again.
    pub(super) fn exclude(&mut self, uid: Uid, dirty: &mut Vec<Uid>) {
        self.listed(uid);
        if let Some(record) = self.record(uid)
            && (!record.excluded || record.missed)
        {
            record.excluded = true;
            self.settle_missed(uid, dirty);
        }
    }

    /// These objects are measured, and no others. Tells whether the ledger must know at once: they are the baseline.
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

    /// An evaluation of the object: what occurred, and the thresholds that are reached. `None` before it is known what is there.
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

    /// The object is gone, in silence.
    pub(super) fn forget(&mut self, uid: Uid, dirty: &mut Vec<Uid>) {
        self.go(uid, Gone::Deleted, dirty);
    }

    /// The list that is under way, or the log after the last one, holds the object.
    pub(super) fn listed(&mut self, uid: Uid) {
        let listing = self.listing;
        if let Some(tracked) = self.tracked(uid) {
            tracked.listing = listing;
        }
    }

    /// The objects that the list which has just ended lacked.
    pub(super) fn lacking(&self) -> Vec<Uid> {
        let records = self.records.iter().flatten();
        let mut lacking: Vec<Uid> =
            records.filter(|(_, tracked)| tracked.listing != self.listing).map(|(uid, _)| *uid).collect();
        lacking.sort_unstable();
        lacking
    }

    /// On a watch with a selector, absence from a list may mean only that the label went: it is to be asked after, where
    /// going would be an event.
    pub(super) fn begin_existence_check(&mut self, uid: Uid, dirty: &mut Vec<Uid>) -> Option<&Record> {
        if self.sight != WatchScope::Selected || self.record(uid)?.last.is_none() {
            return None;
        }
        let record = self.record(uid)?;
        record.left &= record.missed;
        record.missed = true;
        self.touch(uid, dirty);
        self.record(uid).map(|record| &*record)
    }

    /// Objects that are asked after.
    pub(super) fn existence_checks(&self) -> impl Iterator<Item = (Uid, &Record)> {
        let records = self.records.iter().flatten().map(|(uid, tracked)| (*uid, &tracked.record));
        records.filter(|(_, record)| record.missed)
    }

    /// Takes in an answer; it is void once the object has been seen anew.
    pub(super) fn answer(
        &mut self,
        question: &ExistenceCheck,
        living: bool,
        dirty: &mut Vec<Uid>,
    ) -> Option<Vec<Occurred>> {
        let record = self.record(question.uid)?;
        if !record.missed || record.version > question.version {
            return None;
        }
        if living {
            self.exclude(question.uid, dirty);
            return None;
        }
        let (how, left_at) = (if record.left { Gone::Deleted } else { Gone::Vanished }, record.version);
        if self.position < left_at {
            // After a crash: the log will tell it again, and then it is asked again.
            return None;
        }
        self.found_gone.insert(question.uid);
        Some(self.go(question.uid, how, dirty))
    }
}

/// Gives occurrences their places among the events of their object.
fn number(record: &mut Record, object: &Arc<Object>, occurrences: Vec<Occurrence>) -> Vec<Occurred> {
    let numbered = occurrences.into_iter().map(|occurrence| {
        record.sequence = record.sequence.saturating_add(1);
        Occurred { object: Arc::clone(object), occurrence, sequence: record.sequence }
    });
    numbered.collect()
}
