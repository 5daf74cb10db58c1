//! Measures one event in each of the operator's pure modules, a flush, and a recovery.

#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::{cell::RefCell, collections::BTreeMap, hint::black_box};

use cel::{Document, Expression};
use criterion::{
    BatchSize, BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};
use llmtune_api::signature::sign;
use llmtune_core::{
    engine::Engine,
    event::{
        EventType,
        body::{self, Envelope},
        id::{EventId, OccurrenceName},
        lifecycle::{Occurrence, Recalled},
        payload,
    },
    ledger::journal::{self, Found, LedgerLayout, Recovered},
};
use llmtune_webhooks::source::{Source, training_job::TrainingJobs};
use secrecy::{ExposeSecret, SecretSlice};

use scene::{HOME, Place, WATCH, World, flush, journal, read};

const RESEARCH: Place = Place { namespace: "research", number: 1, jobs: 1000 };
const MANY: Place = Place { jobs: 100_000, ..RESEARCH };
/// Changes in one flush: the number between two flushes at 100/s.
const CHANGES: u32 = 50;

/// One subscription, and an up-to-date ledger.
fn world(place: Place) -> World {
    let mut world = World::new(place);
    world.subscribe(0, place.namespace, 8);
    world.write();
    world
}

fn observe(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("observe");
    let line = RESEARCH.line(7, 1_234_567, 7, true);
    group.throughput(Throughput::Bytes(line.len() as u64));
    group.bench_function("parse", |bencher| bencher.iter(|| read(black_box(&line))));
    group.finish();

    let mut group = criterion.benchmark_group("observe");
    let world = RefCell::new(world(RESEARCH));
    let next = || {
        let mut world = world.borrow_mut();
        if world.engine.pending(scene::webhook(0)) >= CHANGES as usize {
            world.deliver();
            world.write();
        }
        world.transition(RESEARCH)
    };
    let take = |observation| {
        let World { engine, now, .. } = &mut *world.borrow_mut();
        let observed = engine.observe(observation, *now);
        assert_eq!(observed.enqueued.len(), 1);
        observed
    };
    group.bench_function("observe", |bencher| bencher.iter_batched(next, take, BatchSize::PerIteration));
    group.finish();
}

fn body_and_signature(criterion: &mut Criterion) {
    let object = read(&RESEARCH.line(7, 1_234_567, 7, true));
    let now = World::new(Place { jobs: 0, ..RESEARCH }).now;
    let name = OccurrenceName::Generation(1);
    let event = EventType::TrainingCompleted;
    let id = EventId::new(TrainingJobs::NAME, object.uid, event, &name, 1, 1);
    let (status, recalled) = (Some("completed"), Recalled::default());
    let occurrence = Occurrence { event, name, count: 1, status, run: 7, recalled };
    let open = || {
        let occurred_at = payload::occurred_at(&object, &occurrence, now);
        let envelope = Envelope { id, event, occurred_at, sequence: 14, cluster: None, test: false };
        body::open(envelope, payload::data(black_box(&object), &occurrence))
    };
    let mut group = criterion.benchmark_group("body");
    group.bench_function("open", |bencher| bencher.iter(open));
    let opened = open();
    group.bench_function("close", |bencher| bencher.iter(|| black_box(&opened).close(now)));
    group.finish();

    let mut group = criterion.benchmark_group("signature");
    let key: SecretSlice<u8> = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef".to_vec().into();
    let text = opened.close(now);
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("sign", |bencher| bencher.iter(|| sign(key.expose_secret(), black_box(text.as_bytes()))));
    group.finish();
}

/// A job as its own controller writes it: metadata, a spec with a pod template, and conditions.
fn custom_job() -> String {
    let condition = |kind: &str, status: &str| {
        format!(
            "{{\"type\":\"{kind}\",\"status\":\"{status}\",\"reason\":\"Job{kind}\",\"message\":\"the job is {kind}\",\"lastTransitionTime\":\"2025-11-08T14:22:31Z\"}}"
        )
    };
    let conditions = ["Suspended", "Created", "Running", "Failed"].map(|kind| condition(kind, "False")).join(",");
    let variables: Vec<String> = (0..40)
        .map(|n| format!("{{\"name\":\"VARIABLE_{n}\",\"value\":\"value of the variable number {n}\"}}"))
        .collect();
    let notes: Vec<String> = (0..10)
        .map(|n| format!("\"example.com/note-{n}\":\"{}\"", "what a tool has written there ".repeat(3)))
        .collect();
    format!(
        "{{\"metadata\":{{\"name\":\"llama\",\"namespace\":\"research\",\"labels\":{{\"team\":\"research\"}},\"annotations\":{{\"llmtune.io/base-model\":\"meta-llama/Llama-3.1-8B\",{}}}}},\"spec\":{{\"suspend\":false,\"template\":{{\"containers\":[{{\"name\":\"trainer\",\"env\":[{}]}}]}}}},\"status\":{{\"active\":1,\"conditions\":[{conditions},{}]}}}}",
        notes.join(","),
        variables.join(","),
        condition("Complete", "True"),
    )
}

fn expressions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("expression");
    let json = custom_job();
    assert!((4_000..8_000).contains(&json.len()), "{}", json.len());
    let read = || serde_json::from_str::<Document>(black_box(&json)).unwrap();
    group.bench_function("document", |bencher| bencher.iter_with_large_drop(read));
    let object = read();
    let when = "object.status.conditions.exists(c, c.type == 'Complete' && c.status == 'True')";
    let stage = Expression::compile(when, &["object"]).unwrap();
    let scope = [("object", &object)];
    group.bench_function("stage", |bencher| bencher.iter(|| assert!(stage.holds(black_box(&scope)).unwrap())));
    let data = "{\"baseModel\":\"meta-llama/Llama-3.1-8B\",\"status\":\"completed\",\"metrics\":{\"loss\":0.42}}";
    let data: Document = serde_json::from_str(data).unwrap();
    let filter = "data.baseModel.startsWith('meta-llama/') && data.metrics.loss < 0.5";
    let filter = Expression::compile(filter, &["data"]).unwrap();
    let scope = [("data", &data)];
    group.bench_function("filter", |bencher| bencher.iter(|| assert!(filter.holds(black_box(&scope)).unwrap())));
    group.bench_function("compile", |bencher| bencher.iter(|| Expression::compile(black_box(when), &["object"])));
    bounds(&mut group);
    group.finish();
}

/// Expressions that use up the work limit of one evaluation, with each kind of work in its most expensive form. An
/// evaluation takes a millisecond at most.
fn bounds(group: &mut BenchmarkGroup<'_, WallTime>) {
    let long = "k".repeat(100_000);
    let keys: Vec<String> = (0..40).map(|n| format!("\"{}{n}\":\"v\"", "k".repeat(5000))).collect();
    let list: Vec<u32> = (0..2000).collect();
    let random: String = (0..4000_u64).map(|n| if (n * n * 2_654_435_761) >> 7 & 1 == 0 { 'a' } else { 'b' }).collect();
    let json = format!(
        "{{\"list\":{list:?},\"long\":\"{long}\",\"random\":\"{random}\",\"key\":\"{}0\",\"keys\":{{{}}},\"words\":{:?}}}",
        "k".repeat(5000),
        keys.join(","),
        vec!["word word"; 2000],
    );
    let object: Document = serde_json::from_str(&json).unwrap();
    let scope = [("object", &object)];
    for (name, text) in [
        ("steps", "object.list.all(x, object.list.all(y, x + y >= 0))"),
        ("keys", "object.list.all(x, !(object.key + 'x' in object.keys))"),
        ("maps", "object.list.all(x, object.keys == object.keys)"),
        (
            "literals",
            "object.list.map(x, {'a': x, 'b': [x], 'c': {'d': x}}).size() < 0 || object.list.map(x, {'a': [x]}).size() < 0 || object.list.map(x, [[x]]).size() < 0",
        ),
        ("strings", "object.list.all(x, object.long <= object.long)"),
        ("concatenation", "object.list.all(x, object.long + object.long != '')"),
        ("split", "object.words.all(x, x.split('').join() != '')"),
        ("replace", "object.list.all(x, object.long.replace('k', 'kk') != '')"),
        ("characters", "object.list.all(x, object.long.charAt(99999) == 'k')"),
        ("index", "object.list.all(x, object.random.indexOf('ababababababababababababababababa' + string(x)) < 0)"),
        ("trim", "object.list.all(x, object.long.lowerAscii().trim() != '')"),
        ("table", "object.list.all(x, !object.long.matches('^(k|j|kj)*c'))"),
        ("simulation", "object.list.all(x, !object.random.substring(0, 60).matches('[ab]*a[ab]{50}c'))"),
        ("matches", "object.words.all(x, x.findAll('[a-z]').size() > 0)"),
        ("patterns", "object.list.all(x, !'a'.matches(string(x) + '(([a-z]|[^0-9]){3,9}x?)+'))"),
        ("format", "object.words.all(x, '%s %d %f %s'.format([x, 1, 2.5, [x, x]]) != '')"),
        ("sort", "object.list.all(x, object.list.map(y, -y).sort() != [])"),
        ("times", "object.list.all(x, timestamp('2025-11-08T14:00:00Z').getHours('Europe/Berlin') > 0)"),
        ("durations", "object.list.all(x, string(duration(string(x) + 'h1m')) != '')"),
        (
            "quantities",
            "object.list.all(x, quantity(string(x) + '.5Gi').add(quantity('0.001')).isGreaterThan(quantity('0')))",
        ),
        ("urls", "object.list.all(x, url('https://a.example/' + string(x) + '?a=b&c=d').getQuery().size() == 2)"),
        ("versions", "object.list.all(x, semver('1.2.' + string(x)).isLessThan(semver('2.0.0-rc.1')))"),
        ("addresses", "object.list.all(x, cidr('10.0.0.0/8').containsIP('10.1.2.3') && ip('fe80::1').family() == 6)"),
        ("formats", "object.words.all(x, format.dns1123Label().validate(x).hasValue())"),
        ("json", "object.list.map(x, {'a': x}) + object.list.map(x, {'b': object.words})"),
    ] {
        let costly = Expression::compile(text, &["object"]).unwrap();
        let error = costly.value(&scope).unwrap_err();
        assert!(error.to_string().contains("more work"), "{name}: {error}");
        group.bench_function(format!("bound/{name}"), |bencher| bencher.iter(|| costly.value(&scope).unwrap_err()));
    }
}

fn flushes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flush");
    for (name, place, wanted) in [("changes", RESEARCH, &[][..]), ("snapshot", MANY, &[5])] {
        let world = RefCell::new(world(place));
        let change = || {
            let mut world = world.borrow_mut();
            world.deliver();
            world.write();
            for _ in 0..CHANGES {
                let observation = world.transition(place);
                world.take(observation);
            }
            journal()
        };
        let flush = |mut journal| {
            let segments = flush(&mut world.borrow_mut().engine, &mut journal, wanted);
            assert_eq!(segments.len(), 1 + wanted.len());
            segments
        };
        group.bench_function(name, |bencher| bencher.iter_batched(change, flush, BatchSize::PerIteration));
    }
    group.finish();
}

/// A ledger with a complete snapshot and more journal segments.
fn ledger(world: &mut World, place: Place) -> Vec<Found> {
    let (mut journal, mut kept) = (journal(), BTreeMap::new());
    let shape = LedgerLayout::default();
    while kept.len() < 3 * shape.shards {
        let wanted = journal.wanted();
        for segment in flush(&mut world.engine, &mut journal, &wanted) {
            journal.committed(&segment, "1".into());
            kept.insert(segment.name.clone(), Found { segment, version: u64::MAX.to_string() });
        }
        world.engine.flush_committed();
        world.deliver();
        for _ in 0..CHANGES {
            let observation = world.transition(place);
            world.take(observation);
        }
    }
    kept.into_values().collect()
}

fn recovery(criterion: &mut Criterion) {
    let mut world = World::new(MANY);
    world.subscribe(0, MANY.namespace, 8);
    let found = ledger(&mut world, MANY);
    let recover = || match journal::open(black_box(&found), HOME, LedgerLayout::default(), 2) {
        Recovered::Ledger(journal, memory) => {
            (journal, Engine::recover(None, 2, LedgerLayout::default().shards, *memory, world.now))
        }
        Recovered::NoLedger { why, .. } => panic!("{why}"),
    };
    let (_, mut engine) = recover();
    engine.add_watch(WATCH, TrainingJobs::NAME, &TrainingJobs::default().watch_name(None), false);
    assert_eq!(engine.records(), MANY.jobs as usize);
    let mut group = criterion.benchmark_group("recovery");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.bench_function("recover", |bencher| bencher.iter_with_large_drop(recover));
    group.finish();
}

criterion_group!(benches, observe, body_and_signature, expressions, flushes, recovery);
criterion_main!(benches);
