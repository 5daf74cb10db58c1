//! Shared by the microbenchmarks: jobs as the apiserver sends them, Webhooks, and an engine with both.

#![allow(clippy::unwrap_used, dead_code)]

use std::{collections::HashMap, sync::LazyLock, time::Duration};

use jiff::{SignedDuration, Timestamp};
use llmtune_core::{
    attempt::{Attempt, AttemptResult, Outcome},
    engine::{Due, Engine},
    event::{
        EventSet,
        object::{Object, Uid, WatchId},
        observation::{Observation, WatchEvent},
    },
    ledger::journal::{Journal, LedgerLayout, Segment},
    schedule::Backoff,
    subscription::index::{Scope, Subscription},
};
use llmtune_webhooks::source::{Source, training_job::TrainingJobs};
use serde::Deserialize;
use serde_json::value::RawValue;

pub const HOME: Uid = Uid::from_u128(7);
pub const WATCH: WatchId = WatchId(0);
/// The size limit of a flush in the operator's loop.
pub const FLUSH_BYTES: usize = 2 << 20;

/// 2 kB, as in the rest of the benchmark.
static ANNOTATIONS: LazyLock<String> = LazyLock::new(|| {
    let value: String = ('a'..='z').cycle().take(256).collect();
    let notes = (0..8).map(|number| format!("\"training.example.com/note-{number}\":\"{value}\""));
    notes.collect::<Vec<_>>().join(",")
});

/// Jobs of one namespace.
#[derive(Clone, Copy)]
pub struct Place {
    pub namespace: &'static str,
    /// Part of its jobs' uids.
    pub number: u32,
    /// The number of jobs that take turns.
    pub jobs: u32,
}

/// An engine with its clock and transitions.
pub struct World {
    pub engine: Engine,
    pub now: Timestamp,
    version: u64,
    /// By place.
    transitions: HashMap<u32, u32>,
}

/// A line of a watch, parsed as in `source::watch`.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

impl Place {
    /// A watch's line about one of its jobs: the run has begun, or is completed.
    pub fn line(self, job: u32, version: u64, run: u32, completed: bool) -> String {
        let Self { namespace, number, .. } = self;
        let annotations = &*ANNOTATIONS;
        let started = Timestamp::from_second(1_767_225_600 + i64::from(run)).unwrap();
        let phase = if completed {
            let ended = started + SignedDuration::from_hours(1);
            format!(
                "\"artifact\":\"s3://models/llama-sft-{run}\",\"completedAt\":\"{ended}\",\"jobId\":\"ltj-{job:08}\",\
                 \"metrics\":{{\"epoch\":3,\"step\":1200,\"train_loss\":1.0625}},\"phase\":\"Completed\""
            )
        } else {
            format!("\"jobId\":\"ltj-{job:08}\",\"phase\":\"Running\"")
        };
        format!(
            "{{\"type\":\"MODIFIED\",\"object\":{{\"apiVersion\":\"llmtune.io/v1alpha1\",\"kind\":\"TrainingJob\",\
             \"metadata\":{{\"annotations\":{{{annotations}}},\"creationTimestamp\":\"2026-01-01T00:00:00Z\",\"generation\":1,\
             \"labels\":{{\"team\":\"research\"}},\"managedFields\":[{{\"apiVersion\":\"llmtune.io/v1alpha1\",\
             \"fieldsType\":\"FieldsV1\",\"fieldsV1\":{{\"f:status\":{{\"f:artifact\":{{}},\"f:completedAt\":{{}},\"f:jobId\":{{}},\
             \"f:metrics\":{{\"f:epoch\":{{}},\"f:step\":{{}},\"f:train_loss\":{{}}}},\"f:phase\":{{}},\"f:startedAt\":{{}}}}}},\
             \"manager\":\"trainer\",\"operation\":\"Update\",\"subresource\":\"status\",\"time\":\"2026-01-01T00:00:00Z\"}}],\
             \"name\":\"job-{job:06}\",\"namespace\":\"{namespace}\",\"resourceVersion\":\"{version}\",\
             \"uid\":\"{number:08x}-0000-4000-8000-{job:012x}\"}},\"spec\":{{\"baseModel\":\"meta-llama/Llama-3.1-8B\",\
             \"trainingMethod\":\"sft\"}},\"status\":{{{phase},\"startedAt\":\"{started}\"}}}}}}"
        )
    }
}

/// The object of a line.
pub fn read(line: &str) -> Object {
    let frame: Frame<'_> = serde_json::from_slice(line.as_bytes()).unwrap();
    assert_eq!(frame.kind, "MODIFIED");
    TrainingJobs::default().read(serde_json::from_str(frame.object.get()).unwrap()).unwrap()
}

impl World {
    /// An engine that has listed these jobs, all of them completed, and flushed its baseline.
    pub fn new(place: Place) -> Self {
        let mut engine = Engine::new(None, 1, LedgerLayout::default().shards);
        engine.add_watch(WATCH, TrainingJobs::NAME, &TrainingJobs::default().watch_name(None), false);
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let mut world = Self { engine, now, version: 1, transitions: HashMap::new() };
        world.observe(WatchEvent::ListBegun);
        for job in 0..place.jobs {
            world.version += 1;
            world.observe(WatchEvent::Seen(Box::new(read(&place.line(job, world.version, 0, true)))));
        }
        world.observe(WatchEvent::ListEnded(world.version));
        world
    }

    /// Adds a Webhook for every training event of this namespace.
    pub fn subscribe(&mut self, number: u32, namespace: &str, concurrency: usize) {
        let second = Duration::from_secs(1);
        self.engine.subscribe(Subscription {
            uid: webhook(number),
            scope: Scope::Namespace(namespace.into()),
            generation: 1,
            events: EventSet::parse(&["training.*"]).unwrap(),
            selector: kube::core::Selector::default(),
            filter: None,
            max_retries: 5,
            backoff: Backoff { initial: second * 5, factor: 5, max: second * 3600 },
            concurrency,
            held: false,
        });
    }

    fn observe(&mut self, change: WatchEvent) {
        self.take(Observation { watch: WATCH, change });
    }

    pub fn take(&mut self, observation: Observation) {
        self.engine.observe(observation, self.now);
    }

    /// The next transition of the place's jobs: each run begins and completes.
    pub fn transition(&mut self, place: Place) -> Observation {
        let done = self.transitions.entry(place.number).or_default();
        let (run, completed) = (*done / 2 + 1, *done % 2 == 1);
        *done += 1;
        self.version += 1;
        let line = place.line(run % place.jobs, self.version, run, completed);
        Observation { watch: WATCH, change: WatchEvent::Seen(Box::new(read(&line))) }
    }

    /// The next attempt.
    pub fn begin(&mut self) -> Option<Attempt> {
        match self.engine.due(self.now)? {
            Due::Attempt(attempt) => Some(attempt),
            other => unreachable!("nothing is given up here: {other:?}"),
        }
    }

    /// Acknowledges all deliveries that are due.
    pub fn deliver(&mut self) {
        while let Some(attempt) = self.begin() {
            self.end(&attempt, AttemptResult::Acknowledged);
        }
    }

    pub fn end(&mut self, attempt: &Attempt, result: AttemptResult) {
        self.engine.record_outcome(outcome(attempt, result), self.now, 0.5).unwrap();
    }

    /// Flushes all changes.
    pub fn write(&mut self) {
        drop(self.engine.flush(&[], usize::MAX));
        self.engine.flush_committed();
    }
}

/// The operator's work for a flush, without the PUT.
pub fn flush(engine: &mut Engine, journal: &mut Journal, wanted: &[usize]) -> Vec<Segment> {
    journal.lay_out(engine.flush(wanted, FLUSH_BYTES)).unwrap()
}

/// An empty journal.
pub fn journal() -> Journal {
    Journal::begin(HOME, 1, LedgerLayout::default(), 1)
}

/// The uid of a Webhook.
pub const fn webhook(number: u32) -> Uid {
    Uid::from_u128(1 << 100 | number as u128)
}

/// The outcome of an attempt.
pub fn outcome(attempt: &Attempt, result: AttemptResult) -> Outcome {
    let Attempt { webhook, delivery, generation, .. } = *attempt;
    Outcome { webhook, delivery, generation, result, exchange: None }
}
