//! The ledger's text and its ring: what is written comes back, also through the hands of a later release.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    contents::{Contents, DeliveryEntry, EventEntry, Group, RecordEntry, WatchEntry, unpack},
    journal::{Flush, Found, Journal, Judgement, Kind, Memory, Nothing, Opened, Segment, Shape, open},
    record::{Lifecycle, Record},
};
use crate::event::{
    Event, EventType,
    body::Opened as Body,
    id::{EventId, OccurrenceName},
    object::{Facts, Object, ServingFacts, ServingStage, TrainingFacts, TrainingStage, Uid},
    unknown::Unknown,
};

const HOME: Uid = Uid::from_u128(99);
const SHAPE: Shape = Shape { ring: 16, shards: 2, limit: 4096 };

/// The segments as an apiserver would keep them.
#[derive(Default)]
struct Kept(BTreeMap<String, Segment>);

impl Kept {
    fn write(&mut self, journal: &mut Journal, segments: Vec<Segment>) {
        for segment in segments {
            journal.landed(&segment, "1".into());
            self.0.insert(segment.name.clone(), segment);
        }
    }

    fn found(&self) -> Vec<Found> {
        self.0.values().map(|segment| Found { segment: segment.clone(), version: "1".into() }).collect()
    }

    fn open(&self) -> (Journal, Memory) {
        match open(&self.found(), HOME, SHAPE, 8) {
            Opened::Ours(journal, memory) => (*journal, *memory),
            Opened::Nothing { why, .. } => panic!("{why}"),
        }
    }

    fn doctor(&mut self, edit: impl Fn(&mut Value)) {
        for segment in self.0.values_mut() {
            let mut value: Value = serde_json::from_slice(&unpack(&segment.data).unwrap()).unwrap();
            edit(&mut value);
            let json = serde_json::to_vec(&value).unwrap();
            segment.data = STANDARD.encode(zstd::bulk::compress(&json, 3).unwrap());
        }
    }
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
        labels: [("team".to_owned(), "nlp".to_owned())].into(),
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
        listing: 0,
        muted: false,
        missed: true,
        dirty: false,
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
    let id = EventId::new("s", uid, event_type, OccurrenceName::Generation(1), 1, 1);
    let object = Arc::new(event_type.outline(uid, "research".into(), format!("object-{number}")));
    let event = Event {
        id,
        event_type,
        object,
        observed_at: at(number as i64),
        sequence: 1,
        body: Body::kept(format!("{{\"id\":\"{id}\",\"text\":\"{body}\",\"deliveredAt\":\"")),
    };
    let waiting =
        DeliveryEntry { failed: 2, due: Some(at(60)), wait_millis: 25_000, ..DeliveryEntry::new(Uid::from_u128(50)) };
    let deliveries = vec![waiting, DeliveryEntry::new(Uid::from_u128(51))];
    EventEntry { id, event: Some(Arc::new(event)), deliveries, unknown: Unknown::NONE }
}

fn watches() -> Vec<WatchEntry> {
    vec![WatchEntry { watch: "w".into(), epoch: 5, position: 40, absent: false, unknown: Unknown::NONE }]
}

fn begun(contents: Contents, snapshots: Vec<(usize, Contents)>) -> Kept {
    let mut journal = Journal::found(HOME, 1, SHAPE, 7);
    let mut kept = Kept::default();
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
        assert_eq!((found.version, found.generation, found.sequence, found.missed), (7, 3, 2, true));
    }
    let bodies: Vec<&str> = memory.events.iter().map(|known| known.event.body.as_str()).collect();
    assert!(bodies[0].contains("\"a\"") && bodies[1].contains("\"b\""), "in the order in which they occurred");
    assert_eq!(memory.events[0].deliveries, event(1, "a").deliveries);
}

#[test]
fn what_a_later_release_added_to_records_events_deliveries_and_watches_is_kept() {
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
        let value: Value = serde_json::from_slice(&unpack(&segment.data).unwrap()).unwrap();
        later += value.to_string().matches("\"later\"").count();
    }
    // One event, one delivery, two records with a lifecycle each, one watch.
    assert_eq!(later, 7, "{segments:#?}");
}

#[test]
fn a_flush_too_large_for_one_segment_is_split_with_the_positions_in_the_last() {
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
    let journal: Vec<&Segment> = kept.0.values().filter(|segment| segment.kind == Kind::Journal).collect();
    assert!(journal.len() > 2 && kept.0.values().all(|segment| segment.data.len() <= SHAPE.limit), "{}", journal.len());
    let with_positions: Vec<u64> = journal
        .iter()
        .filter(|segment| String::from_utf8(unpack(&segment.data).unwrap()).unwrap().contains("\"position\""))
        .map(|segment| segment.sequence)
        .collect();
    assert_eq!(with_positions, [journal.len() as u64]);
    let (_, memory) = kept.open();
    assert_eq!(memory.events.len(), events.len(), "what the snapshot had no room for is in the journal");
}

#[test]
fn a_ring_that_turns_many_times_stays_readable_because_snapshots_go_ahead_of_it() {
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
fn a_missing_or_unreadable_segment_and_anothers_ledger_begin_a_new_epoch() {
    let kept = || {
        begun(
            Contents { records: vec![entry(training(1))], watches: Some(watches()), ..Contents::default() },
            Vec::new(),
        )
    };
    let opened = |kept: &Kept| match open(&kept.found(), HOME, SHAPE, 8) {
        Opened::Nothing { why, newest } => (why, newest),
        Opened::Ours(..) => panic!("it must not be gone on with"),
    };
    let mut garbled = kept();
    garbled.0.get_mut("journal-1-002").unwrap().data = "AAAA".into();
    assert!(matches!(opened(&garbled), (Nothing::Unreadable(name, _), 1) if name == "journal-1-002"));
    let mut torn = kept();
    torn.0.remove("journal-1-001");
    assert!(matches!(opened(&torn), (Nothing::Missing(1), 1)));
    let mut foreign = kept();
    foreign.doctor(|text| text["home"] = json!(Uid::from_u128(1).to_string()));
    assert!(matches!(opened(&foreign), (Nothing::Foreign, 1)));
    assert!(matches!(opened(&Kept::default()), (Nothing::Fresh, 0)));
}

#[test]
fn a_conflict_is_judged_by_what_is_in_the_place() {
    let kept = begun(Contents { watches: Some(watches()), ..Contents::default() }, vec![(0, Contents::default())]);
    let (mut journal, _) = kept.open();
    let claim = journal.claim().unwrap();
    let found = |segment: &Segment| Some(Found { segment: segment.clone(), version: "9".into() });
    assert_eq!(journal.judge(&claim, found(&claim)), Judgement::Landed);
    assert_eq!(journal.version(&claim), Some("9"));
    assert_eq!(journal.judge(&claim, found(&Segment { term: 9, ..claim.clone() })), Judgement::Lost);
    assert_eq!(journal.judge(&claim, None), Judgement::Lost);
    let flush = Flush {
        contents: Contents { watches: Some(watches()), ..Contents::default() },
        snapshots: vec![(0, Contents::default())],
    };
    let segments = journal.lay_out(flush).unwrap();
    let snapshot = segments.iter().find(|segment| segment.kind == Kind::Snapshot).unwrap();
    let late = Segment { term: 1, data: "older".into(), ..snapshot.clone() };
    assert_eq!(journal.judge(snapshot, found(&late)), Judgement::Again);
    assert_eq!(journal.version(snapshot), Some("9"));
    let newer = Segment { term: 3, data: "newer".into(), ..snapshot.clone() };
    assert_eq!(journal.judge(snapshot, found(&newer)), Judgement::Lost);
}

#[test]
fn what_a_leader_that_outlived_a_restore_wrote_behind_a_newer_claim_is_overwritten() {
    let mut kept = begun(
        Contents { records: vec![entry(training(1))], watches: Some(watches()), ..Contents::default() },
        Vec::new(),
    );
    let (mut newer, _) = kept.open();
    let claim = newer.claim().unwrap();
    kept.write(&mut newer, vec![claim.clone()]);
    let stray = Segment {
        name: "journal-1-005".into(),
        sequence: 5,
        term: 1,
        leader: 7,
        after: 7,
        ..kept.0["journal-1-002"].clone()
    };
    kept.0.insert(stray.name.clone(), stray);
    let (mut next, memory) = kept.open();
    assert_eq!(memory.watches[0].records.iter().flatten().count(), 1);
    assert_eq!(next.claim().unwrap().sequence, claim.sequence + 1);
}
