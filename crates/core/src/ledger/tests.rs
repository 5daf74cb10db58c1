//! Tests of the encoding and the ring: what is written is read back, also after a later release has rewritten it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    contents::{Contents, DeliveryEntry, EventEntry, Group, MAX_TEXT, RecordEntry, Unreadable, WatchEntry, unpack},
    journal::{
        Flush, Found, Journal, LayOutError, LedgerLayout, NoLedger, Recovered, RecoveredState, Resolution, Segment,
        open,
    },
    record::Record,
};
use crate::event::{
    Event, EventType,
    body::OpenBody,
    format::Forms,
    id::{EventId, OccurrenceName},
    lifecycle::Lifecycle,
    object::{Facts, Object, ServingFacts, ServingStage, TrainingFacts, TrainingStage, Uid},
    unknown::Unknown,
};
use llmtune_api::ledger_segment::{LedgerSegmentSpec, SegmentKind};

const HOME: Uid = Uid::from_u128(99);
const SHAPE: LedgerLayout = LedgerLayout { ring: 16, shards: 2, limit: 4096 };

/// The segments that an apiserver would store.
#[derive(Default)]
struct StoredSegments(BTreeMap<String, Segment>);

impl StoredSegments {
    fn write(&mut self, journal: &mut Journal, segments: Vec<Segment>) {
        for segment in segments {
            journal.committed(&segment, "1".into());
            self.0.insert(segment.name.clone(), segment);
        }
    }

    fn found(&self) -> Vec<Found> {
        self.found_at(u64::MAX)
    }

    /// Returns the segments as if each was committed at this version.
    fn found_at(&self, version: u64) -> Vec<Found> {
        self.0.values().map(|segment| Found { segment: segment.clone(), version: version.to_string() }).collect()
    }

    fn open(&self) -> (Journal, RecoveredState) {
        match open(&self.found(), HOME, SHAPE, 8) {
            Recovered::Ledger(journal, memory) => (*journal, *memory),
            Recovered::NoLedger { why, .. } => panic!("{why}"),
        }
    }

    fn doctor(&mut self, edit: impl Fn(&mut Value)) {
        for segment in self.0.values_mut() {
            let mut value: Value = serde_json::from_slice(&unpack(&segment.spec.data).unwrap()).unwrap();
            edit(&mut value);
            let json = serde_json::to_vec(&value).unwrap();
            segment.spec.data = STANDARD.encode(zstd::bulk::compress(&json, 3).unwrap());
        }
    }
}

/// Returns a copy of the segment with an altered spec.
fn altered(segment: &Segment, alter: impl FnOnce(&mut LedgerSegmentSpec)) -> Segment {
    let mut altered = segment.clone();
    alter(&mut altered.spec);
    altered
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn object(number: u128, facts: Facts) -> Object {
    Object {
        uid: Uid::from_u128(number),
        version: 7,
        generation: 3,
        namespace: "research".into(),
        name: format!("object-{number}"),
        kind: None,
        labels: [("team".to_owned(), "nlp".to_owned())].into(),
        namespace_labels: None,
        annotations: None,
        created_at: Some(at(0)),
        owned: false,
        facts,
    }
}

fn training(number: u128) -> Object {
    let facts = TrainingFacts {
        stage: Some(TrainingStage::Running),
        job_id: Some("job".into()),
        started_at: Some(at(5)),
        metrics: [("loss".to_owned(), crate::event::object::Metric::Number(0.5))].into(),
        ..TrainingFacts::default()
    };
    object(number, Facts::Training(facts))
}

fn serving(number: u128) -> Object {
    let facts = ServingFacts {
        stage: Some(ServingStage::Deployed),
        model_id: Some("llama".into()),
        rolled_out: true,
        ..ServingFacts::default()
    };
    object(number, Facts::Serving(facts))
}

fn record(object: Object) -> Record {
    let (_, lifecycle) = Lifecycle::new(&object.facts).step(&object.facts, object.generation);
    Record {
        version: object.version,
        generation: object.generation,
        sequence: 2,
        excluded: false,
        unconfirmed: true,
        left: false,
        lifecycle,
        last: Some(Arc::new(object)),
        unknown: Unknown::NONE,
    }
}

fn entry(object: Object) -> RecordEntry {
    let group = Arc::new(Group { watch: "w".into(), epoch: 5 });
    RecordEntry { group, uid: object.uid, record: Some(record(object)) }
}

fn event(number: u128, body: &str) -> EventEntry {
    let uid = Uid::from_u128(number);
    let event_type = EventType::TrainingStarted;
    let id = EventId::new("s", uid, event_type, &OccurrenceName::Generation(1), 1, 1);
    let object = Arc::new(Object::of_event(event_type, uid, "research".into(), format!("object-{number}")));
    let event = Event {
        id,
        event_type,
        object,
        observed_at: at(number as i64),
        sequence: 1,
        body: OpenBody::stored(format!("{{\"id\":\"{id}\",\"text\":\"{body}\",\"deliveredAt\":\"")),
        forms: Forms::default(),
    };
    let waiting =
        DeliveryEntry { failed: 2, due: Some(at(60)), wait_millis: 25_000, ..DeliveryEntry::new(Uid::from_u128(50)) };
    let deliveries = vec![waiting, DeliveryEntry::new(Uid::from_u128(51))];
    EventEntry { id, event: Some(Arc::new(event)), after: 0, order: number as u64, deliveries, unknown: Unknown::NONE }
}

fn watches() -> Vec<WatchEntry> {
    vec![WatchEntry {
        watch: "w".into(),
        epoch: 5,
        position: 40,
        absent: false,
        current: None,
        missing_since: None,
        flush: 0,
        unknown: Unknown::NONE,
    }]
}

fn begun(contents: Contents, snapshots: Vec<(usize, Contents)>) -> StoredSegments {
    let mut journal = Journal::begin(HOME, 1, SHAPE, 7);
    let mut kept = StoredSegments::default();
    let claim = journal.claim().unwrap();
    kept.write(&mut journal, vec![claim]);
    let segments = journal.lay_out(Flush { contents, snapshots }).unwrap();
    kept.write(&mut journal, segments);
    kept
}

#[test]
fn what_is_written_comes_back() {
    let records = vec![entry(training(1)), entry(serving(2))];
    let kept = begun(
        Contents {
            events: vec![event(1, "a"), event(2, "b")],
            records,
            watches: Some(watches()),
            ..Contents::default()
        },
        Vec::new(),
    );
    let (journal, memory) = kept.open();
    assert_eq!((journal.epoch(), journal.term()), (1, 2));
    let [watch] = &memory.watches[..] else { panic!("one watch") };
    let records: HashMap<Uid, &Record> = watch.records.iter().flatten().map(|(uid, record)| (*uid, record)).collect();
    assert_eq!((watch.entry.position, records.len()), (40, 2));
    for original in [record(training(1)), record(serving(2))] {
        let object = original.last.clone().unwrap();
        let found = records[&object.uid];
        assert_eq!(found.lifecycle, original.lifecycle);
        assert_eq!(found.last, original.last);
        assert_eq!((found.version, found.generation, found.sequence, found.unconfirmed), (7, 3, 2, true));
    }
    let bodies: Vec<&str> = memory.events.iter().map(|known| known.event.body.as_str()).collect();
    assert!(bodies[0].contains("\"a\"") && bodies[1].contains("\"b\""), "in the order in which they occurred");
    assert_eq!(memory.events[0].deliveries, event(1, "a").deliveries);
}

#[test]
fn members_of_a_later_release_are_kept() {
    let records = vec![entry(training(1)), entry(serving(2))];
    let mut kept = begun(
        Contents { events: vec![event(1, "a")], records, watches: Some(watches()), ..Contents::default() },
        Vec::new(),
    );
    kept.doctor(|text| {
        text["later"] = json!({"section": true});
        for event in text.get_mut("events").and_then(Value::as_array_mut).into_iter().flatten() {
            event["later"] = json!([1]);
            event["deliveries"][0]["later"] = json!("x");
        }
        for group in text.get_mut("records").and_then(Value::as_array_mut).into_iter().flatten() {
            for record in group["objects"].as_object_mut().unwrap().values_mut() {
                record["later"] = json!({"a": 1});
                let lifecycle = if record["training"].is_null() { "serving" } else { "training" };
                record[lifecycle]["later"] = json!(2.5);
            }
        }
        for watch in text.get_mut("watches").and_then(Value::as_array_mut).into_iter().flatten() {
            watch["later"] = json!(null);
        }
    });
    let (mut journal, memory) = kept.open();
    let now = at(100);
    let mut engine = crate::engine::Engine::recover(None, 1, SHAPE.shards, memory, now);
    engine.add_watch(crate::event::object::WatchId(0), "s", "w", false);
    let flush = engine.flush(&[0, 1], usize::MAX);
    let segments = journal.lay_out(flush).unwrap();
    let mut later = 0;
    for segment in &segments {
        let value: Value = serde_json::from_slice(&unpack(&segment.spec.data).unwrap()).unwrap();
        later += value.to_string().matches("\"later\"").count();
    }
    // One event, one delivery, two records with a lifecycle each, one watch.
    assert_eq!(later, 7, "{segments:#?}");
}

#[test]
fn large_flush_is_split_with_positions_last() {
    let noise = |number: u128| {
        let mut text = String::new();
        for part in 0..60 {
            text.push_str(&EventId::of_test(Uid::from_u128(number * 1000 + part)).to_string());
        }
        text
    };
    let events: Vec<EventEntry> = (1..=16).map(|number| event(number, &noise(number))).collect();
    let records = (1..=8).map(|number| entry(training(number))).collect();
    let events: Vec<EventEntry> = events.into_iter().filter(|event| event.id.shard(SHAPE.shards) == 0).collect();
    let snapshot = Contents { events: events.clone(), ..Contents::default() };
    let kept = begun(
        Contents { events: Vec::new(), records, watches: Some(watches()), ..Contents::default() },
        vec![(0, snapshot)],
    );
    let journal: Vec<&Segment> = kept.0.values().filter(|segment| segment.spec.kind == SegmentKind::Journal).collect();
    assert!(
        journal.len() > 2 && kept.0.values().all(|segment| segment.spec.data.len() <= SHAPE.limit),
        "{}",
        journal.len()
    );
    let with_positions: Vec<u64> = journal
        .iter()
        .filter(|segment| String::from_utf8(unpack(&segment.spec.data).unwrap()).unwrap().contains("\"position\""))
        .map(|segment| segment.spec.sequence)
        .collect();
    assert_eq!(with_positions, [journal.len() as u64]);
    let (_, memory) = kept.open();
    assert_eq!(memory.events.len(), events.len(), "what the snapshot had no room for is in the journal");
}

#[test]
fn ring_stays_readable_after_many_turns() {
    let mut kept = begun(Contents { watches: Some(watches()), ..Contents::default() }, Vec::new());
    let (mut journal, _) = kept.open();
    let claim = journal.claim().unwrap();
    kept.write(&mut journal, vec![claim]);
    for turn in 0..200_u128 {
        let wanted = journal.wanted();
        let all: Vec<RecordEntry> = (1..=turn + 1).map(|number| entry(training(number))).collect();
        let snapshots = wanted.into_iter().map(|shard| {
            let records = all.iter().filter(|entry| entry.uid.shard(2) == shard).cloned().collect();
            (shard, Contents { records, ..Contents::default() })
        });
        let snapshots = snapshots.collect();
        let contents =
            Contents { records: vec![entry(training(turn + 1))], watches: Some(watches()), ..Contents::default() };
        let segments = journal.lay_out(Flush { contents, snapshots }).unwrap();
        kept.write(&mut journal, segments);
        let (_, memory) = kept.open();
        assert_eq!(memory.watches[0].records.iter().flatten().count() as u128, turn + 1);
    }
    assert!(kept.0.len() as u64 <= SHAPE.ring + SHAPE.shards as u64);
}

#[test]
fn missing_unreadable_or_foreign_segments_start_a_new_epoch() {
    let kept = || {
        begun(
            Contents { records: vec![entry(training(1))], watches: Some(watches()), ..Contents::default() },
            Vec::new(),
        )
    };
    let opened = |kept: &StoredSegments| match open(&kept.found(), HOME, SHAPE, 8) {
        Recovered::NoLedger { why, newest } => (why, newest),
        Recovered::Ledger(..) => panic!("it must not be gone on with"),
    };
    let mut garbled = kept();
    garbled.0.get_mut("journal-1-001").unwrap().spec.data = "AAAA".into();
    assert!(matches!(opened(&garbled), (NoLedger::Unreadable(name, _), 1) if name == "journal-1-001"));
    let mut torn = kept();
    let (mut journal, _) = torn.open();
    let next = journal.lay_out(nothing_changed()).unwrap();
    torn.write(&mut journal, next);
    torn.0.remove("journal-1-001");
    assert!(matches!(opened(&torn), (NoLedger::Missing(1), 1)));
    let mut foreign = kept();
    foreign.doctor(|text| text["home"] = json!(Uid::from_u128(1).to_string()));
    assert!(matches!(opened(&foreign), (NoLedger::Foreign, 1)));
    assert!(matches!(opened(&StoredSegments::default()), (NoLedger::Fresh, 0)));
}

#[test]
fn a_conflict_is_judged_by_what_is_in_the_place() {
    let kept = begun(Contents { watches: Some(watches()), ..Contents::default() }, vec![(0, Contents::default())]);
    let (mut journal, _) = kept.open();
    let claim = journal.claim().unwrap();
    let found = |segment: &Segment| Some(Found { segment: segment.clone(), version: "9".into() });
    assert_eq!(journal.resolve(&claim, found(&claim)), Resolution::Committed);
    assert_eq!(journal.version(&claim), Some("9"));
    assert_eq!(journal.resolve(&claim, found(&altered(&claim, |spec| spec.term = 9))), Resolution::Lost);
    assert_eq!(journal.resolve(&claim, None), Resolution::Lost);
    let flush = Flush {
        contents: Contents { watches: Some(watches()), ..Contents::default() },
        snapshots: vec![(0, Contents::default())],
    };
    let segments = journal.lay_out(flush).unwrap();
    let snapshot = segments.iter().find(|segment| segment.spec.kind == SegmentKind::Snapshot).unwrap();
    let late = altered(snapshot, |spec| (spec.term, spec.data) = (1, "older".into()));
    assert_eq!(journal.resolve(snapshot, found(&late)), Resolution::Overwrite);
    assert_eq!(journal.version(snapshot), Some("9"));
    let newer = altered(snapshot, |spec| (spec.term, spec.data) = (3, "newer".into()));
    assert_eq!(journal.resolve(snapshot, found(&newer)), Resolution::Lost);
}

#[test]
fn late_write_of_an_older_leader_is_overwritten() {
    let mut kept = begun(
        Contents { records: vec![entry(training(1))], watches: Some(watches()), ..Contents::default() },
        Vec::new(),
    );
    let (mut newer, _) = kept.open();
    let claim = newer.claim().unwrap();
    kept.write(&mut newer, vec![claim.clone()]);
    let mut stray = altered(&kept.0["journal-1-001"], |spec| {
        (spec.sequence, spec.term, spec.leader, spec.after) = (5, 1, 7, 7);
    });
    stray.name = "journal-1-005".into();
    kept.0.insert(stray.name.clone(), stray);
    let (next, memory) = kept.open();
    assert_eq!(memory.watches[0].records.iter().flatten().count(), 1);
    assert_eq!(next.claim().unwrap().spec.sequence, claim.spec.sequence);
}

/// The previous release's form of a watch and a record.
mod before {
    use super::*;

    #[derive(serde::Serialize, serde::Deserialize)]
    pub struct Watch {
        #[serde(rename = "watch")]
        pub name: String,
        pub epoch: u64,
        pub position: u64,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub absent: bool,
        #[serde(default)]
        pub flush: u64,
        #[serde(flatten)]
        pub unknown: Unknown,
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    pub struct Record {
        pub version: u64,
        #[serde(default)]
        pub generation: i64,
        #[serde(default)]
        pub unconfirmed: bool,
        #[serde(flatten)]
        pub lifecycle: Lifecycle,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub last: Option<Object>,
        #[serde(flatten)]
        pub unknown: Unknown,
    }

    /// Returns the value after the previous release has read it and written it back.
    pub fn kept<T: serde::Serialize + serde::de::DeserializeOwned>(value: &Value) -> Value {
        serde_json::to_value(serde_json::from_value::<T>(value.clone()).unwrap()).unwrap()
    }
}

#[test]
fn the_release_before_reads_and_keeps_what_this_one_adds() {
    let watch = WatchEntry { current: Some(at(7)), missing_since: Some(at(9)), position: 1, ..watches().remove(0) };
    let written = serde_json::to_value(&watch).unwrap();
    assert!(written["current"].is_string() && written["missingSince"].is_string(), "{written}");
    let back: WatchEntry = serde_json::from_value(before::kept::<before::Watch>(&written)).unwrap();
    assert_eq!(back, watch);
    let left = Record { left: true, ..record(training(1)) };
    let kept = before::kept::<before::Record>(&serde_json::to_value(&left).unwrap());
    let back: Record = serde_json::from_value(kept).unwrap();
    assert!(back.unconfirmed && back.left && back.version == left.version);
}

#[test]
fn what_the_release_before_wrote_is_gone_on_with() {
    // The stored texts of a claim and a flush.
    let texts = [
        format!(r#"{{"home":"{HOME}"}}"#),
        format!(
            r#"{{"home":"{HOME}","records":[{{"watch":"w","epoch":5,"objects":{{"{}":{{"version":7,"generation":1,"missed":true,"training":{{"stage":"Completed","run":1}}}}}}}}],"watches":[{{"watch":"w","epoch":5,"position":40}},{{"watch":"x","epoch":6,"position":0,"absent":true}}]}}"#,
            Uid::from_u128(1)
        ),
    ];
    let mut kept = StoredSegments::default();
    for (sequence, text) in (1..).zip(texts) {
        let segment = &begun(nothing_changed().contents, Vec::new()).0["journal-1-001"];
        let after = if sequence == 1 { 0 } else { 7 };
        let data = STANDARD.encode(zstd::bulk::compress(text.as_bytes(), 3).unwrap());
        let mut segment = altered(segment, |spec| (spec.sequence, spec.after, spec.data) = (sequence, after, data));
        segment.name = format!("journal-1-{sequence:03}");
        kept.0.insert(segment.name.clone(), segment);
    }
    let (journal, memory) = kept.open();
    assert_eq!(journal.claim().unwrap().spec.sequence, 3);
    let watches: Vec<_> =
        memory.watches.iter().map(|known| (known.entry.watch.as_str(), known.entry.current)).collect();
    assert_eq!(watches, [("w", None), ("x", None)]);
    let record = &memory.watches[0].records[Uid::from_u128(1).shard(SHAPE.shards)][&Uid::from_u128(1)];
    assert!(record.unconfirmed && !record.left);
}

#[test]
fn leaders_that_die_early_keep_pending_deliveries() {
    let contents = || Contents {
        events: vec![event(1, "a")],
        records: vec![entry(training(1))],
        watches: Some(watches()),
        ..Contents::default()
    };
    let shards = |memory: &RecoveredState, wanted: Vec<usize>| {
        let part = |shard: usize| Contents {
            events: vec![event(1, "a")].into_iter().filter(|event| event.id.shard(SHAPE.shards) == shard).collect(),
            records: vec![entry(training(1))]
                .into_iter()
                .filter(|entry| entry.uid.shard(SHAPE.shards) == shard)
                .collect(),
            ..Contents::default()
        };
        assert_eq!(memory.events.len(), 1);
        wanted.into_iter().map(|shard| (shard, part(shard))).collect::<Vec<_>>()
    };
    let mut kept = begun(contents(), Vec::new());
    // The crash comes after the claim, after a flush that lacks its snapshot, or after a whole flush.
    for start in 0..10 * SHAPE.ring {
        let (mut journal, memory) = kept.open();
        assert_eq!((memory.events.len(), memory.watches[0].records.iter().flatten().count()), (1, 1), "start {start}");
        let claim = journal.claim().unwrap();
        kept.write(&mut journal, vec![claim]);
        if start % 3 == 0 {
            let snapshots = shards(&memory, journal.wanted());
            let segments = journal
                .lay_out(Flush { contents: Contents { watches: Some(watches()), ..Contents::default() }, snapshots });
            let mut segments = segments.unwrap();
            if start % 2 == 0 {
                segments.truncate(1);
            }
            kept.write(&mut journal, segments);
        }
    }
}

#[test]
fn only_one_of_two_claims_succeeds() {
    let mut kept = begun(contents_of(0, 1, 0, true), Vec::new());
    let (mut first, _) = kept.open();
    let claim = first.claim().unwrap();
    kept.write(&mut first, vec![claim.clone()]);
    let (mut second, _) = kept.open();
    let newer = second.claim().unwrap();
    assert!(newer.name == claim.name && second.version(&newer).is_some(), "it replaces the claim");
    assert!(newer.spec.term > claim.spec.term && newer.spec.after == claim.spec.after);
    // Of the two writes, the one that is committed first makes the other conflict.
    let changes = first.lay_out(nothing_changed()).unwrap().remove(0);
    assert_eq!((changes.name.as_str(), first.version(&changes)), (claim.name.as_str(), Some("1")));
    let found = |segment: &Segment| Some(Found { segment: segment.clone(), version: "2".into() });
    assert_eq!(first.resolve(&changes, found(&newer)), Resolution::Lost);
    assert_eq!(second.resolve(&newer, found(&changes)), Resolution::Lost);
    // The changes of the first leader are not replaced.
    kept.write(&mut first, vec![changes.clone()]);
    assert_eq!(kept.open().0.claim().unwrap().spec.sequence, changes.spec.sequence + 1);
}

#[test]
fn a_claim_of_the_release_before_keeps_its_place() {
    let mut kept = begun(contents_of(0, 1, 0, true), Vec::new());
    let (mut journal, _) = kept.open();
    let claim = journal.claim().unwrap();
    kept.write(&mut journal, vec![claim.clone()]);
    // Its leader continues after the claim, so only a claim in that place stops it.
    kept.doctor(|text| {
        text.as_object_mut().unwrap().remove("claim");
    });
    let next = kept.open().0.claim().unwrap();
    assert_eq!((next.spec.sequence, next.spec.after), (claim.spec.sequence + 1, claim.spec.leader));
}

fn gone(number: u128) -> RecordEntry {
    RecordEntry { record: None, ..entry(training(number)) }
}

fn contents_of(events: u128, records: u128, gone_records: u128, positions: bool) -> Contents {
    Contents {
        events: (0..events).map(|number| event(number, "x")).collect(),
        records: (0..records).map(|number| entry(training(100 + number))).collect(),
        gone: (0..gone_records).map(|number| gone(200 + number)).collect(),
        watches: positions.then(watches),
    }
}

fn nothing_changed() -> Flush {
    Flush { contents: Contents { watches: Some(watches()), ..Contents::default() }, snapshots: Vec::new() }
}

/// Returns the JSON of a segment.
fn text(segment: &Segment) -> Value {
    serde_json::from_slice(&unpack(&segment.spec.data).unwrap()).unwrap()
}

#[test]
fn contents_are_empty_without_entries_and_positions() {
    assert_eq!(contents_of(2, 3, 4, false).len(), 9);
    assert!(contents_of(0, 0, 0, false).is_empty());
    assert!(!contents_of(0, 0, 0, true).is_empty() && !contents_of(0, 0, 1, false).is_empty());
}

proptest! {
    #[test]
    fn split_flush_commits_removals_and_positions_last(
        events in 0..12_u128, records in 0..12_u128, gone in 0..12_u128, positions in any::<bool>(),
    ) {
        prop_assume!(events + records + gone > 1);
        let whole = contents_of(events, records, gone, positions);
        let mut first = contents_of(events, records, gone, positions);
        let rest = first.split_off_half();
        prop_assert!(first.len() < whole.len() && rest.len() < whole.len());
        prop_assert!(first.watches.is_none() && rest.watches == whole.watches);
        prop_assert!(first.gone.is_empty() || events + records == 0);
        prop_assert!(first.records.is_empty() || rest.events.is_empty(), "deliveries land before records");
        let in_turn = |part: &Contents| {
            let events = part.events.iter().map(|entry| entry.event.as_ref().unwrap().object.uid);
            events.chain(part.records.iter().chain(&part.gone).map(|entry| entry.uid)).collect::<Vec<_>>()
        };
        prop_assert_eq!([in_turn(&first), in_turn(&rest)].concat(), in_turn(&whole));
    }
}

#[test]
fn records_return_to_their_watch_and_epoch() {
    let of = |watch: &str, epoch, number| {
        let group = Arc::new(Group { watch: watch.into(), epoch });
        RecordEntry { group, ..entry(training(number)) }
    };
    let groups = [("v", 5), ("w", 4), ("w", 5)];
    let records = (1..).zip(groups.iter().cycle().take(6)).map(|(number, (watch, epoch))| of(watch, *epoch, number));
    let watch = |name: &str| WatchEntry { watch: name.into(), ..watches().remove(0) };
    let kept = begun(
        Contents { records: records.collect(), watches: Some(vec![watch("v"), watch("w")]), ..Contents::default() },
        Vec::new(),
    );
    assert_eq!(text(&kept.0["journal-1-001"])["records"].as_array().unwrap().len(), 3, "each group is told once");
    let (_, memory) = kept.open();
    let numbers = memory.watches.iter().map(|watch| {
        let mut uids: Vec<Uid> = watch.records.iter().flatten().map(|(uid, _)| *uid).collect();
        uids.sort_unstable();
        uids
    });
    let expected = [[1, 4], [3, 6]].map(|numbers| numbers.map(Uid::from_u128).to_vec());
    assert_eq!(numbers.collect::<Vec<_>>(), expected);
}

#[test]
fn what_says_nothing_is_not_written() {
    let mut fresh = entry(training(1));
    if let Some(record) = &mut fresh.record {
        (record.sequence, record.unconfirmed, record.last) = (0, false, None);
    }
    let mut waiting = event(1, "a");
    waiting.deliveries = vec![DeliveryEntry::new(Uid::from_u128(50))];
    let other = RecordEntry { group: Arc::new(Group { watch: "other".into(), epoch: 5 }), ..gone(2) };
    let contents = Contents { events: vec![waiting], records: vec![fresh], gone: vec![other], ..Contents::default() };
    let segments = Journal::begin(HOME, 1, SHAPE, 7).lay_out(Flush { contents, snapshots: Vec::new() }).unwrap();
    let text = text(&segments[0]);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(keys(&text["events"][0]["deliveries"][0]), "failed webhook");
    assert_eq!(keys(&text["records"][0]["objects"][Uid::from_u128(1).to_string()]), "generation training version");
    assert_eq!(keys(&text["records"][1]), "epoch gone watch");
    assert_eq!(keys(&text), "events home records");
}

#[test]
fn unknown_event_is_skipped_with_its_updates() {
    let mut journal = Journal::begin(HOME, 1, SHAPE, 7);
    let mut kept = StoredSegments::default();
    let update = EventEntry { event: None, ..event(1, "a") };
    for entry in [event(1, "a"), update.clone()] {
        let contents = Contents { events: vec![entry], watches: Some(watches()), ..Contents::default() };
        let segments = journal.lay_out(Flush { contents, snapshots: Vec::new() }).unwrap();
        kept.write(&mut journal, segments);
    }
    let (_, memory) = kept.open();
    assert_eq!((memory.events.len(), memory.unknown_events), (1, 0));
    kept.doctor(|text| {
        if let Some(body) = text["events"][0].get_mut("event") {
            body["type"] = json!("training.dreamt");
        }
    });
    let (_, memory) = kept.open();
    assert_eq!((memory.events.len(), memory.unknown_events), (0, 1));
    let alone = begun(Contents { events: vec![update], ..Contents::default() }, Vec::new());
    let Recovered::NoLedger { why, .. } = open(&alone.found(), HOME, SHAPE, 8) else { panic!("an event is lost") };
    assert!(why.to_string().contains(&event(1, "a").id.to_string()), "{why}");
}

#[test]
fn watch_without_position_is_removed_unless_its_kind_was_missing() {
    let watch = |name: &str, absent| WatchEntry { watch: name.into(), position: 0, absent, ..watches().remove(0) };
    let kept = begun(
        Contents { watches: Some(vec![watch("begun", false), watch("missing", true)]), ..Contents::default() },
        Vec::new(),
    );
    let (_, memory) = kept.open();
    assert_eq!(memory.watches.iter().map(|watch| watch.entry.watch.as_str()).collect::<Vec<_>>(), ["missing"]);
}

#[test]
fn position_newer_than_its_flush_means_a_restore() {
    let kept = begun(Contents { watches: Some(watches()), ..Contents::default() }, Vec::new());
    for (landed, restored) in [(39, true), (40, false), (41, false)] {
        let Recovered::Ledger(_, memory) = open(&kept.found_at(landed), HOME, SHAPE, 8) else { panic!("a ledger") };
        assert_eq!(memory.watches.iter().map(|watch| watch.restored).collect::<Vec<_>>(), [restored], "{landed}");
    }
}

#[test]
fn rejects_unknown_shards_and_malformed_records() {
    let mut kept = begun(contents_of(0, 1, 0, true), vec![(1, Contents::default())]);
    kept.doctor(|text| {
        if text.get("shard").is_some() {
            text["shard"] = json!(SHAPE.shards);
        }
    });
    let why = |kept: &StoredSegments| match open(&kept.found(), HOME, SHAPE, 8) {
        Recovered::NoLedger { why, .. } => why.to_string(),
        Recovered::Ledger(..) => panic!("it must not be gone on with"),
    };
    assert!(why(&kept).contains("is not a shard of a snapshot"), "{}", why(&kept));
    let mut kept = begun(contents_of(0, 1, 0, true), Vec::new());
    kept.doctor(|text| {
        if text.get("records").is_some() {
            text["records"][0]["objects"] = json!(5);
        }
    });
    assert!(why(&kept).contains("expected records by uid"), "{}", why(&kept));
}

#[test]
fn writes_after_a_restored_segment_are_ignored() {
    let written = || {
        begun(
            Contents { records: vec![entry(training(1))], watches: Some(watches()), ..Contents::default() },
            Vec::new(),
        )
    };
    let stray = |sequence, after| {
        let mut stray = altered(&written().0["journal-1-001"], |spec| {
            (spec.sequence, spec.term, spec.leader, spec.after) = (sequence, 3, 9, after);
        });
        stray.name = format!("journal-1-{sequence:03}");
        stray
    };
    let mut kept = written();
    kept.0.insert("stray".into(), stray(2, 8));
    assert_eq!(kept.open().0.claim().unwrap().spec.sequence, 2, "it is overwritten");
    let mut kept = written();
    kept.0.insert("next".into(), stray(2, 7));
    assert_eq!(kept.open().0.claim().unwrap().spec.sequence, 3, "it follows what is there");
    // If there is a gap before it, the missing segment is reported.
    let mut kept = written();
    kept.0.insert("far".into(), stray(3, 8));
    assert!(matches!(open(&kept.found(), HOME, SHAPE, 8), Recovered::NoLedger { why: NoLedger::Missing(2), .. }));
}

#[test]
fn every_second_flush_rewrites_the_oldest_snapshot() {
    let shape = LedgerLayout { ring: 64, shards: 3, limit: 4096 };
    let mut journal = Journal::begin(HOME, 4, shape, 7);
    assert_eq!(journal.epoch(), 4);
    let mut order: Vec<usize> = Vec::new();
    for flush in 0..302 {
        let wanted = journal.wanted();
        assert_eq!(wanted.len(), usize::from(flush > 1 && flush % 2 == 0), "flush {flush}");
        assert!(!journal.is_pressed());
        order.extend(&wanted);
        let snapshots = wanted.into_iter().map(|shard| (shard, Contents::default())).collect();
        journal.lay_out(Flush { snapshots, ..nothing_changed() }).unwrap();
    }
    assert!(order.chunks(3).all(|turn| turn == &order[..3]), "each in its turn");

    let mut journal = Journal::begin(HOME, 1, shape, 7);
    // Twice the number of shards plus a sixteenth of the ring.
    for _ in 0..10 {
        journal.lay_out(nothing_changed()).unwrap();
        assert!(!journal.is_pressed() && journal.wanted().len() <= 1);
    }
    for _ in 0..3 {
        journal.lay_out(nothing_changed()).unwrap();
        assert!(journal.is_pressed());
        assert_eq!(journal.wanted().len(), 3);
    }
}

#[test]
fn ring_accepts_segments_up_to_its_size() {
    let mut journal = Journal::begin(HOME, 1, SHAPE, 7);
    for _ in 0..SHAPE.ring {
        journal.lay_out(nothing_changed()).unwrap();
    }
    assert!(matches!(journal.lay_out(nothing_changed()), Err(LayOutError::Full(1))));
    assert!(matches!(journal.claim(), Err(LayOutError::Full(1))));
    // A split flush needs a place for each part.
    let large = || Flush { contents: contents_of(0, 2, 0, true), snapshots: Vec::new() };
    let shape = LedgerLayout { limit: 1, ..SHAPE };
    for taken in [SHAPE.ring - 2, SHAPE.ring - 1] {
        let mut journal = Journal::begin(HOME, 1, shape, 7);
        for _ in 0..taken {
            journal.lay_out(nothing_changed()).unwrap();
        }
        let laid_out = journal.lay_out(large());
        assert_eq!(laid_out.is_ok(), taken == SHAPE.ring - 2, "{laid_out:?}");
    }
}

#[test]
fn entry_larger_than_a_segment_is_written_whole() {
    let flush = || Flush { contents: contents_of(0, 3, 0, true), snapshots: vec![(0, contents_of(0, 3, 0, false))] };
    let laid_out = |limit| Journal::begin(HOME, 1, LedgerLayout { limit, ..SHAPE }, 7).lay_out(flush()).unwrap();
    let sizes = |segments: &[Segment]| {
        segments.iter().map(|segment| (segment.spec.kind, segment.spec.records)).collect::<Vec<_>>()
    };
    let whole = laid_out(4096);
    assert_eq!(sizes(&whole), [(SegmentKind::Journal, 3), (SegmentKind::Snapshot, 3)]);
    let longest = whole.iter().map(|segment| segment.spec.data.len()).max().unwrap();
    assert_eq!(sizes(&laid_out(longest)), sizes(&whole), "to the last character");
    let mut parts = vec![(SegmentKind::Journal, 1); 5];
    parts.push((SegmentKind::Snapshot, 1));
    assert_eq!(sizes(&laid_out(1)), parts);
}

#[test]
fn free_segment_is_written_only_after_own_segments() {
    let mut journal = Journal::begin(HOME, 3, SHAPE, 7);
    let claim = journal.claim().unwrap();
    assert_eq!(journal.predecessor(&claim), None, "nothing is before the first");
    assert_eq!((journal.version(&claim), journal.bytes()), (None, 0));
    journal.committed(&claim, "41".into());
    assert_eq!((journal.version(&claim), journal.bytes()), (Some("41"), claim.spec.data.len()));
    let flush = Flush { snapshots: vec![(0, Contents::default())], ..nothing_changed() };
    let segments = journal.lay_out(flush).unwrap();
    let [first, snapshot] = &segments[..] else { panic!("a segment and a snapshot") };
    assert_eq!((&first.name, journal.version(first)), (&claim.name, Some("41")), "in the place of the claim");
    assert_eq!(journal.predecessor(first), None, "its version tells enough");
    assert_eq!(journal.predecessor(snapshot), None, "a snapshot has its own place");
    journal.committed(first, "42".into());
    journal.committed(snapshot, "43".into());
    assert_eq!(journal.bytes(), first.spec.data.len() + snapshot.spec.data.len());
    let second = journal.lay_out(nothing_changed()).unwrap().remove(0);
    assert_eq!(journal.predecessor(&second), Some(("journal-3-001".into(), "42")));
    let found = |term| {
        let segment = altered(snapshot, |spec| (spec.term, spec.leader) = (term, 9));
        Some(Found { segment, version: "44".into() })
    };
    assert_eq!(journal.resolve(snapshot, found(1)), Resolution::Lost, "another leader of the same term");
    assert_eq!(journal.version(snapshot), Some("43"));
}

#[test]
fn segment_that_unpacks_too_large_is_refused() {
    let packed = |length: usize| STANDARD.encode(zstd::bulk::compress(&vec![b' '; length], 3).unwrap());
    assert_eq!(unpack(&packed(MAX_TEXT)).unwrap().len(), MAX_TEXT);
    let bomb = packed(8 * MAX_TEXT);
    assert!(bomb.len() < 1 << 17, "{} characters", bomb.len());
    assert!(matches!(unpack(&bomb), Err(Unreadable::TooLong)));
    // A frame header that requests a window of 128 MiB: RFC 8878, 3.1.1.1.2.
    let greedy = STANDARD.encode([0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3, 1, 0, 0]);
    assert!(matches!(unpack(&greedy), Err(Unreadable::Zstd(_))));
}

#[test]
fn flush_is_split_by_its_uncompressed_size() {
    let long = "x".repeat(MAX_TEXT / 3);
    let events: Vec<EventEntry> = (1..=4).map(|number| event(number, &long)).collect();
    let (of_one, of_other): (Vec<_>, Vec<_>) =
        events.clone().into_iter().partition(|event| event.id.shard(SHAPE.shards) == 0);
    let snapshots = [of_one, of_other].map(|events| Contents { events, ..Contents::default() });
    let contents = Contents { events, watches: Some(watches()), ..Contents::default() };
    let kept = begun(contents, snapshots.into_iter().enumerate().collect());
    assert!(kept.0.values().all(|segment| unpack(&segment.spec.data).is_ok()));
    let (_, memory) = kept.open();
    assert_eq!(memory.events.len(), 4);
}
