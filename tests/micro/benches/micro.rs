//! What one event costs in each of the operator's pure rooms, and what a flush and a recovery cost.

#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::{cell::RefCell, collections::BTreeMap, hint::black_box};

use criterion::{BatchSize, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use llmtune_webhooks::{
    delivery::sign::signature,
    engine::Engine,
    event::{
        EventType,
        body::{self, Envelope},
        id::{EventId, OccurrenceName},
        lifecycle::Occurrence,
        payload,
    },
    ledger::journal::{self, Found, Opened, Shape},
    source::{Source, training_job::TrainingJobs},
};
use secrecy::SecretSlice;

use scene::{HOME, Place, WATCH, World, flush, journal, read};

const RESEARCH: Place = Place { namespace: "research", number: 1, jobs: 1000 };
const MANY: Place = Place { jobs: 100_000, ..RESEARCH };
/// Changes of one flush: what comes between two flushes at 100/s.
const CHANGES: u32 = 50;

/// One subscriber, and nothing that the ledger does not know.
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
    let occurrence = Occurrence { event, name, count: 1, status: Some("completed"), run: 7 };
    let id = EventId::new(TrainingJobs::NAME, object.uid, event, name, 1, 1);
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
    group.bench_function("sign", |bencher| bencher.iter(|| signature(&key, black_box(text.as_bytes()))));
    group.finish();
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

/// A ledger in the middle of its life: every part of the snapshot is written, and the journal goes on.
fn ledger(world: &mut World, place: Place) -> Vec<Found> {
    let (mut journal, mut kept) = (journal(), BTreeMap::new());
    let shape = Shape::default();
    while kept.len() < 3 * shape.shards {
        let wanted = journal.wanted();
        for segment in flush(&mut world.engine, &mut journal, &wanted) {
            journal.landed(&segment, "1".into());
            kept.insert(segment.name.clone(), Found { segment, version: "1".into() });
        }
        world.engine.landed();
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
    let recover = || match journal::open(black_box(&found), HOME, Shape::default(), 2) {
        Opened::Ours(journal, memory) => {
            (journal, Engine::recover(None, 2, Shape::default().shards, *memory, world.now))
        }
        Opened::Nothing { why, .. } => panic!("{why}"),
    };
    let (_, mut engine) = recover();
    engine.add_watch(WATCH, TrainingJobs::NAME, &TrainingJobs::default().watch_name(None), false);
    assert_eq!(engine.records(), MANY.jobs as usize);
    let mut group = criterion.benchmark_group("recovery");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.bench_function("recover", |bencher| bencher.iter_with_large_drop(recover));
    group.finish();
}

criterion_group!(benches, observe, body_and_signature, flushes, recovery);
criterion_main!(benches);
