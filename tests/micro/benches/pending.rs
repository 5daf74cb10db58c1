//! A million pending deliveries: the memory of one, and the duration of the engine's steps with them. The memory is
//! printed to standard output before anything is timed.

#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::{cell::RefCell, fs, iter};

use criterion::{BatchSize, Criterion};
use llmtune_core::attempt::{Attempt, AttemptResult};

use scene::{Place, World, flush, journal, outcome};

/// Webhooks that all get every event of one namespace. The events are stored once each, and so stay far below the bound
/// on their bytes.
const WEBHOOKS: u32 = 1000;
const SHARED: Place = Place { namespace: "shared", number: 1, jobs: 20_000 };
/// One additional Webhook, in its own namespace.
const ALONE: Place = Place { namespace: "alone", number: 2, jobs: 1000 };
/// One of this many deliveries waits for a retry.
const RETRIES: u32 = 10;
/// Changes in one flush: the number between two flushes at 100/s.
const CHANGES: usize = 50;

fn main() {
    let deliveries = std::env::var("PENDING_DELIVERIES").map_or(1_000_000, |text| text.parse().unwrap());
    let mut criterion = Criterion::default().configure_from_args();
    let mut world = World::new(ALONE);
    // Slow endpoints: each may have only one attempt in flight.
    (0..WEBHOOKS).for_each(|number| world.subscribe(number, SHARED.namespace, 1));
    world.subscribe(WEBHOOKS, ALONE.namespace, 8);
    world.write();
    let before = resident_kib();
    fill(&mut world, deliveries);
    let after = resident_kib();
    let pending: usize = world.engine.backlogs().map(|backlog| backlog.pending).sum();
    println!("pending: {pending} deliveries, {before} KiB before, {after} KiB after");

    let bench = Bench { world: RefCell::new(world), acknowledged: RefCell::new(0) };
    bench.due(&mut criterion);
    bench.record_outcome(&mut criterion);
    let mut under_way: Vec<Attempt> = iter::from_fn(|| bench.world.borrow_mut().begin()).collect();
    bench.observe(&mut criterion);
    bench.flush(&mut criterion, &mut under_way);
    criterion.final_summary();
}

/// Adds this many pending deliveries, a tenth of them waiting for a retry, and flushes from time to time, as the
/// operator does.
fn fill(world: &mut World, deliveries: u32) {
    for event in 0..deliveries / WEBHOOKS {
        let observation = world.transition(SHARED);
        world.take(observation);
        if (event as usize).is_multiple_of(CHANGES) {
            world.write();
        }
    }
    for _ in 0..deliveries / RETRIES {
        let attempt = world.begin().unwrap();
        world.end(&attempt, AttemptResult::Failed { retry_after: None });
    }
    world.write();
}

struct Bench {
    world: RefCell<World>,
    acknowledged: RefCell<u32>,
}

impl Bench {
    fn acknowledge(&self, attempt: &Attempt) {
        self.world.borrow_mut().end(attempt, AttemptResult::Acknowledged);
        self.top_up();
    }

    /// Replaces acknowledged deliveries: after one for each Webhook, it adds an event.
    fn top_up(&self) {
        let mut acknowledged = self.acknowledged.borrow_mut();
        *acknowledged += 1;
        if *acknowledged == WEBHOOKS {
            *acknowledged = 0;
            let mut world = self.world.borrow_mut();
            let observation = world.transition(SHARED);
            world.take(observation);
            world.write();
        }
    }

    fn due(&self, criterion: &mut Criterion) {
        let begun = RefCell::new(None::<Attempt>);
        let end = || {
            if let Some(attempt) = begun.take() {
                self.acknowledge(&attempt);
            }
        };
        let begin = |()| *begun.borrow_mut() = self.world.borrow_mut().begin();
        let mut group = criterion.benchmark_group("pending");
        group.bench_function("due", |bencher| bencher.iter_batched(end, begin, BatchSize::PerIteration));
        end();
    }

    fn record_outcome(&self, criterion: &mut Criterion) {
        let begin = || {
            self.top_up();
            let attempt = self.world.borrow_mut().begin().unwrap();
            outcome(&attempt, AttemptResult::Acknowledged)
        };
        let end = |outcome| {
            let World { engine, now, .. } = &mut *self.world.borrow_mut();
            engine.record_outcome(outcome, *now, 0.5).unwrap()
        };
        let mut group = criterion.benchmark_group("pending");
        group.bench_function("settle", |bencher| bencher.iter_batched(begin, end, BatchSize::PerIteration));
    }

    /// An event for one Webhook. All others have their attempt in flight, so only its delivery is due.
    fn observe(&self, criterion: &mut Criterion) {
        let next = || {
            let mut world = self.world.borrow_mut();
            if world.engine.pending(scene::webhook(WEBHOOKS)) >= CHANGES {
                world.deliver();
                world.write();
            }
            world.transition(ALONE)
        };
        let take = |observation| {
            let World { engine, now, .. } = &mut *self.world.borrow_mut();
            let observed = engine.observe(observation, *now);
            assert_eq!(observed.enqueued.len(), 1);
            observed
        };
        let mut group = criterion.benchmark_group("pending");
        group.bench_function("observe", |bencher| bencher.iter_batched(next, take, BatchSize::PerIteration));
    }

    /// A flush with the events of one Webhook, the same number of acknowledged deliveries of others, and one part of
    /// the snapshot.
    fn flush(&self, criterion: &mut Criterion, under_way: &mut [Attempt]) {
        let mut turn = (0..under_way.len()).cycle();
        let mut change = || {
            let mut world = self.world.borrow_mut();
            world.deliver();
            world.write();
            drop(world);
            for _ in 0..CHANGES {
                let place = turn.next().unwrap();
                self.acknowledge(&under_way[place]);
                let mut world = self.world.borrow_mut();
                under_way[place] = world.begin().unwrap();
                assert!(world.begin().is_none());
            }
            let mut world = self.world.borrow_mut();
            for _ in 0..CHANGES {
                let observation = world.transition(ALONE);
                world.take(observation);
            }
            journal()
        };
        let flush = |mut journal| flush(&mut self.world.borrow_mut().engine, &mut journal, &[5]);
        let mut group = criterion.benchmark_group("pending");
        group.sample_size(20);
        group.bench_function("flush", |bencher| bencher.iter_batched(&mut change, flush, BatchSize::PerIteration));
    }
}

/// Resident memory of this process (Linux).
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or_default()
}
