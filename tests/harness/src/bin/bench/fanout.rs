//! One event for many Webhooks: the cost of a delivery, and the delay of the last POST. Fails if a Webhook misses an
//! event, gets it twice, or gets it unsigned.

use std::{
    collections::HashSet,
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};

use llmtune_webhooks_harness::{eventually, operator::Operator};
use serde_json::json;

use crate::{
    Bench, Stage, crowd,
    load::{Phase, TRAINING_JOB},
    page::Page,
    receiver::{self, Post},
    subject::{Memory, Scene, cpu, memory},
    tally::{self, percentile},
    transition::Transition,
    watch::{self, Sighting},
};

const JOBS: u32 = 1000;
const WEBHOOKS: [u32; 4] = [1, 10, 100, 1000];
/// Target number of deliveries for each number of Webhooks, and the bounds of the resulting number of events.
const DELIVERIES: u32 = 10_000;
const EVENTS: (u32, u32) = (20, 100);
/// Minimum interval between events.
const EVERY: Duration = Duration::from_millis(100);
/// After this time no further POST is expected, and the flush of the last event is complete.
const REST: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_mins(1);
/// The operator writes at most ten statuses a second.
const READY: Duration = Duration::from_mins(4);

/// The results for one number of Webhooks.
struct Spread {
    webhooks: u32,
    deliveries: usize,
    cpu: Duration,
    /// For each event, in milliseconds after its arrival at the bare watch: the first POST, and the last.
    first: Vec<f64>,
    last: Vec<f64>,
    before: Memory,
    after: Memory,
}

/// The observers outside of the operator.
struct Outside<'a> {
    sightings: &'a Receiver<Sighting>,
    posts: &'a Receiver<Post>,
    secret: &'a str,
}

pub async fn run(bench: &Bench) -> Result<Page, String> {
    let stage = bench.stage(JOBS, Phase::Pending).await;
    let scene = bench.scene(&stage);
    let sightings = watch::start(stage.plane.clone(), TRAINING_JOB.path(&stage.namespace), JOBS).await;
    let (port, posts) = receiver::start("receiver");
    scene.subscribe(port);
    let outside = Outside { sightings: &sightings, posts: &posts, secret: scene.secret };
    let numbers = &WEBHOOKS[..if bench.args.quick { 3 } else { WEBHOOKS.len() }];
    let (mut there, mut spreads) = (1, Vec::new());
    for webhooks in numbers {
        bench.say(&format!("{webhooks} Webhooks"));
        let collection = format!("/apis/llmtune.io/v1alpha1/namespaces/{}/webhooks", stage.namespace);
        let more = (there..*webhooks).map(|number| {
            let spec = json!({"url": format!("http://127.0.0.1:{port}/{number}"), "secretRef": {"name": "bench"}});
            (collection.clone(), scene.webhook(&format!("fan-{number:04}"), port, &spec).remove(1))
        });
        crowd::create(&stage.client, more).await?;
        there = *webhooks;
        let spread = measure(bench, &stage, &scene, &outside, *webhooks).await?;
        bench.say(&format!(
            "{} deliveries: {:.0} µs of CPU each, the last of an event after {:.2} ms, {} KiB",
            spread.deliveries,
            spread.cpu_per_delivery(),
            percentile(&spread.last, 0.5),
            spread.after.resident
        ));
        spreads.push(spread);
    }
    Ok(page(&spreads))
}

async fn measure(
    bench: &Bench,
    stage: &Stage,
    scene: &Scene<'_>,
    outside: &Outside<'_>,
    webhooks: u32,
) -> Result<Spread, String> {
    let (operator, _) = scene.start(&stage.client, &scene.options().await).await;
    eventually("all Webhooks are Ready", READY, || async {
        (crowd::ready(&stage.client, Some(&stage.namespace)).await == Ok(webhooks as usize)).then_some(())
    })
    .await;
    let complain = |error: String| format!("{webhooks} Webhooks: {error}\n{}", operator.process.log_tail());
    // The first event opens the connections.
    outside.event(stage, webhooks).await.map_err(complain)?;
    tokio::time::sleep(REST).await;
    let before = memory(&operator.process);
    let events = if bench.args.quick { 5 } else { (DELIVERIES / webhooks).clamp(EVENTS.0, EVENTS.1) };
    let (mut first, mut last) = (Vec::new(), Vec::new());
    let cpu_before = cpu(&operator.process);
    for _ in 0..events {
        let begun = Instant::now();
        let (earliest, latest) = outside.event(stage, webhooks).await.map_err(complain)?;
        first.push(earliest);
        last.push(latest);
        tokio::time::sleep(EVERY.saturating_sub(begun.elapsed())).await;
    }
    tokio::time::sleep(REST).await;
    outside.expect_nothing().map_err(complain)?;
    let deliveries = (events * webhooks) as usize;
    let cpu = cpu(&operator.process).saturating_sub(cpu_before);
    let after = memory(&operator.process);
    stop(operator);
    first.sort_by(f64::total_cmp);
    last.sort_by(f64::total_cmp);
    Ok(Spread { webhooks, deliveries, cpu, first, last, before, after })
}

fn stop(mut operator: Operator) {
    tokio::task::block_in_place(|| operator.stop());
}

impl Outside<'_> {
    /// Triggers one event. Returns when its first and its last POST arrived, in milliseconds after its arrival at the
    /// bare watch.
    async fn event(&self, stage: &Stage, webhooks: u32) -> Result<(f64, f64), String> {
        self.expect_nothing()?;
        let transition = stage.load.once().await;
        let begun = Instant::now();
        let mut posts = Vec::new();
        while posts.len() < webhooks as usize {
            if begun.elapsed() > SOON {
                return Err(format!("of {webhooks} POSTs of an event {} came", posts.len()));
            }
            // POSTs are examined afterwards: the machine has two cores.
            tokio::time::sleep(Duration::from_millis(2)).await;
            posts.extend(self.posts.try_iter());
        }
        let seen = loop {
            let seen = |sighting: Sighting| match sighting {
                Ok((seen, at)) => (seen == transition).then_some(Ok(at)),
                Err(ended) => Some(Err(ended)),
            };
            if let Some(at) = self.sightings.try_iter().find_map(seen) {
                break at?;
            }
            if begun.elapsed() > SOON {
                return Err("an event was not on the bare watch".into());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        self.check(&posts, transition, webhooks)?;
        let after = |at: Instant| {
            (at.saturating_duration_since(seen).as_secs_f64() - seen.saturating_duration_since(at).as_secs_f64()) * 1e3
        };
        let (first, last) = (posts.iter().map(|post| post.at).min(), posts.iter().map(|post| post.at).max());
        Ok((first.map_or(f64::NAN, after), last.map_or(f64::NAN, after)))
    }

    /// Each Webhook must have received the event exactly once.
    fn check(&self, posts: &[Post], transition: Transition, webhooks: u32) -> Result<(), String> {
        let mut paths = HashSet::new();
        for post in posts {
            if tally::read(post, self.secret, JOBS)? != transition {
                return Err(format!("a POST tells of another event: {}", String::from_utf8_lossy(&post.body)));
            }
            if !paths.insert(&post.path) {
                return Err(format!("{transition:?} was posted twice to {}", post.path));
            }
        }
        if paths.len() == webhooks as usize { Ok(()) } else { Err(format!("{} Webhooks got an event", paths.len())) }
    }

    fn expect_nothing(&self) -> Result<(), String> {
        match self.posts.try_iter().count() {
            0 => Ok(()),
            more => Err(format!("{more} POSTs more than Webhooks")),
        }
    }
}

impl Spread {
    fn cpu_per_delivery(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.deliveries as f64
    }
}

fn page(spreads: &[Spread]) -> Page {
    let mut page = Page::new(format!(
        "
One event after the other, at most ten a second, each for all Webhooks of its namespace; each Webhook has a path of its own at
one receiver. First and last POST are counted from the event's arrival at the bare watch, over {} to {} events. Each number
of Webhooks has a fresh operator, whose connections one event has opened. Each Webhook got each event exactly once with a
valid signature, or there were no figures.
",
        EVENTS.0, EVENTS.1
    ));
    let heads: Vec<String> = spreads.iter().map(|spread| spread.webhooks.to_string()).collect();
    let row = |name: &'static str, digits, of: &dyn Fn(&Spread) -> f64| {
        (name, digits, spreads.iter().map(of).collect::<Vec<f64>>())
    };
    let mib = |memory: &Memory| memory.resident as f64 / 1024.0;
    page.columns(
        "Webhooks",
        &heads,
        &[
            row("CPU per delivery, µs", 0, &Spread::cpu_per_delivery),
            row("bare watch → first POST, p50, ms", 2, &|spread| percentile(&spread.first, 0.5)),
            row("bare watch → last POST, p50, ms", 2, &|spread| percentile(&spread.last, 0.5)),
            row("bare watch → last POST, longest, ms", 2, &|spread| percentile(&spread.last, 1.0)),
            row("resident before, MiB", 1, &|spread| mib(&spread.before)),
            row("resident after, MiB", 1, &|spread| mib(&spread.after)),
            row("– most until then, MiB", 1, &|spread| spread.after.peak as f64 / 1024.0),
        ],
    );
    page
}
