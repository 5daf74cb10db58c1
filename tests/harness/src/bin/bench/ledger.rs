//! Measures the operator with many finished jobs: the first sync compared with a bare list, memory, flushes, the
//! ledger's size, and restarts.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use kube::{api::ListParams, core::Request};
use llmtune_webhooks_harness::{eventually, operator::Operator};
use serde_json::{Value, json};

use crate::{
    Bench, Stage,
    counters::Flushes,
    handover::{self, End, Handover},
    load::{Phase, TRAINING_JOB},
    page::{Page, Row},
    receiver::{self, Post},
    subject::{Memory, Scene, Synced, cpu, memory},
    tally::{Reckoning, Tally},
    watch,
    writes::{self, Pair},
};

const RATE: u32 = 50;
/// The baseline counts as flushed after this time without a flush.
const FLUSHED: Duration = Duration::from_millis(1500);
/// Load during a restart.
const AROUND: (u32, Duration) = (RATE, Duration::from_secs(4));
/// Restarts of each kind per round.
const RESTARTS: u32 = 1;
const SOON: Duration = Duration::from_mins(1);

/// The first sync of one round.
struct First {
    floor: Synced,
    operator: Synced,
    flushes: Flushes,
    posts: usize,
}

/// The contents of the ledger.
struct Size {
    reported: f64,
    segments: usize,
    bytes: u64,
}

#[derive(Default)]
struct Restarts {
    killed: Vec<Handover>,
    graceful: Vec<Handover>,
    standby: Vec<Handover>,
}

pub async fn run(bench: &Bench) -> Result<Page, String> {
    let args = &bench.args;
    let stage = bench.stage(args.finished, Phase::Completed).await;
    let scene = bench.scene(&stage);
    let length = Duration::from_secs(args.seconds);
    bench.say(&format!("{RATE}/s without the operator"));
    let alone = writes::alone(&stage, RATE, length / 2).await?;
    let (port, posts) = receiver::start("receiver");
    let (floor_port, _floor_posts) = receiver::start("floors-receiver");
    scene.subscribe(port);

    let mut firsts = Vec::new();
    let mut operator = loop {
        let (operator, first) = first_sync(bench, &stage, &scene, floor_port, &posts).await?;
        firsts.push(first);
        if firsts.len() as u32 == args.rounds {
            break operator;
        }
        drop(operator);
    };

    let sightings = watch::start(stage.plane.clone(), TRAINING_JOB.path(&stage.namespace), args.finished).await;
    bench.say(&format!("{RATE}/s with the operator, until every part of the snapshot has been rewritten"));
    // The snapshot has 64 parts; one is written with every second flush, at one flush every half second.
    let length = (length * 5 / 2).min(Duration::from_secs(75));
    let (pair, loaded, size) = {
        let mut tally = Tally::new(&sightings, &posts, scene.secret, args.finished);
        let (with, deliveries) = writes::with(&stage, &operator, &mut tally, RATE, length)
            .await
            .map_err(|error| format!("{error}\n{}", operator.process.log_tail()))?;
        let pair = Pair { rate: RATE, deliveries, with, alone };
        (pair, memory(&operator.process), measure_ledger(&stage, &operator).await?)
    };
    bench.say(&format!("{:.1} KB/s to etcd, {} bytes in {} segments", pair.etcd_rate(), size.bytes, size.segments));

    let (_unwatched, sightings) = mpsc::channel();
    let mut tally = Tally::new(&sightings, &posts, scene.secret, args.finished);
    let restarts = restart(bench, &stage, &scene, &mut operator, port, &mut tally).await?;
    let mut page = page(args.finished, args.webhooks, &firsts, &pair, loaded, &size, &restarts);
    writes::by_resource(&mut page, &[pair]);
    Ok(page)
}

/// Starts the floor, which lists and stops, and an operator without a ledger. Waits until the ledger is complete.
async fn first_sync(
    bench: &Bench,
    stage: &Stage,
    scene: &Scene<'_>,
    floor_port: u16,
    posts: &mpsc::Receiver<Post>,
) -> Result<(Operator, First), String> {
    let (subject, floor) = scene.start_floor(floor_port).await;
    subject.stop();
    bench.say(&format!("the floor has listed after {} ms of CPU", floor.cpu.as_millis()));
    let begun = Instant::now();
    let (operator, _) = scene.start(&stage.client, &scene.options().await).await;
    let mut flushes = Flushes::default();
    let mut since = Instant::now();
    loop {
        let now = Flushes::read(&operator.metrics());
        if now.count > flushes.count {
            since = Instant::now();
        }
        flushes = now;
        if flushes.count > 0.0 && since.elapsed() > FLUSHED {
            break;
        }
        if begun.elapsed() > Duration::from_mins(5) {
            return Err(format!("the baseline does not land\n{}", operator.process.log_tail()));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let synced =
        Synced { cpu: cpu(&operator.process), wall: since.duration_since(begun), memory: memory(&operator.process) };
    let posts = posts.try_iter().count();
    let Memory { resident, anonymous, peak } = synced.memory;
    bench.say(&format!(
        "the operator is in sync after {} ms of CPU and {} flushes, {resident} KiB ({anonymous} anonymous, peak {peak}), {posts} POSTs",
        synced.cpu.as_millis(),
        flushes.count
    ));
    Ok((operator, First { floor, operator: synced, flushes, posts }))
}

async fn measure_ledger(stage: &Stage, operator: &Operator) -> Result<Size, String> {
    let namespace = &operator.options.namespace;
    let segments = Request::new(format!("/apis/llmtune.io/v1alpha1/namespaces/{namespace}/ledgersegments"));
    let request = segments.list(&ListParams::default()).map_err(|error| error.to_string())?;
    let list: Value = stage.client.request(request).await.map_err(|error| error.to_string())?;
    let items = list["items"].as_array().ok_or("the segments cannot be listed")?;
    let bytes = items.iter().filter_map(|segment| segment["spec"]["bytes"].as_u64()).sum();
    Ok(Size { reported: operator.metric("llmtune_webhooks_ledger_bytes", &[]), segments: items.len(), bytes })
}

async fn restart(
    bench: &Bench,
    stage: &Stage,
    scene: &Scene<'_>,
    operator: &mut Operator,
    port: u16,
    tally: &mut Tally<'_>,
) -> Result<Restarts, String> {
    let names: Vec<String> = (1..bench.args.webhooks).map(|number| format!("team-{number:03}")).collect();
    bench.say(&format!("{} Webhooks more", names.len()));
    let others =
        names.iter().flat_map(|name| scene.webhook(name, port, &json!({"selector": {"matchLabels": {"team": name}}})));
    scene.apply(&others.collect::<Vec<_>>());
    for name in &names {
        eventually(&format!("Webhook {name} is Ready"), SOON, || scene.is_ready(&stage.client, name)).await;
    }
    let mut restarts = Restarts::default();
    let say = |what: &str, came: &Handover| {
        let first = came.first_delivery.as_millis();
        bench
            .say(&format!("{what}: first delivery {first} ms after it leads; {:?}, {:?}", came.reckoning, came.memory));
    };
    for _ in 0..RESTARTS * bench.args.rounds {
        let came = handover::end(operator, None, End::Killed, &stage.load, AROUND, tally).await?;
        say("kill -9", &came);
        restarts.killed.push(came);
        let came = handover::end(operator, None, End::Told, &stage.load, AROUND, tally).await?;
        say("restart", &came);
        restarts.graceful.push(came);
    }
    let options = operator.options.clone().identity("operator-1");
    let mut standby = Operator::start(&stage.plane, &options).await;
    standby.wait_readyz("standby", SOON).await;
    for _ in 0..RESTARTS * bench.args.rounds {
        let came = handover::end(operator, Some(&standby), End::Told, &stage.load, AROUND, tally).await?;
        std::mem::swap(operator, &mut standby);
        say("standby", &came);
        restarts.standby.push(came);
    }
    Ok(restarts)
}

fn page(
    jobs: u32,
    webhooks: u32,
    firsts: &[First],
    pair: &Pair,
    loaded: Memory,
    size: &Size,
    restarts: &Restarts,
) -> Page {
    let mut page = Page::new(format!(
        "
{jobs} finished TrainingJobs with 2 kB of annotations each. The first sync is over when everything is in the ledger; the
floor is a bare list of the same jobs in the same run. Memory is the highest of all rounds, CPU their mean. Then {RATE}
transitions a second, long enough for every part of the snapshot to be written; bytes to etcd are those of the operator
alone (beside them the load's), as in the section on writes. Restarts are under the same load, with {webhooks} Webhooks of which one
matches, each with a Secret: from the log line that says that the process leads to its first POST.
"
    ));
    let full = jobs == 100_000;
    let mean = |of: &dyn Fn(&First) -> f64| firsts.iter().map(of).sum::<f64>() / firsts.len() as f64;
    let highest = |of: &dyn Fn(&First) -> u64| firsts.iter().map(of).max().unwrap_or_default() as f64 / 1024.0;
    let mib = |figure: &str, of: fn(&Memory) -> u64| {
        let operator = highest(&|first| of(&first.operator.memory));
        Row::new(figure, 1, operator).beside(highest(&|first| of(&first.floor.memory)))
    };
    let resident = |memory: &Memory| memory.resident;
    let kib = |kib: u64| kib as f64 / 1024.0;
    page.table(
        "floor",
        &[
            Row::new(
                format!("CPU to be in sync with {jobs} jobs, s"),
                2,
                mean(&|first| first.operator.cpu.as_secs_f64()),
            )
            .at_most(9.0, full)
            .beside(mean(&|first| first.floor.cpu.as_secs_f64())),
            Row::new("time to be in sync, s", 2, mean(&|first| first.operator.wall.as_secs_f64()))
                .beside(mean(&|first| first.floor.wall.as_secs_f64())),
            Row::new("POSTs for the baseline", 0, mean(&|first| first.posts as f64)).at_most(0.0, true),
            mib("resident in sync, MiB", resident).at_most(64.0, full),
            mib("– of it anonymous, MiB", |memory| memory.anonymous),
            mib("– most until then, MiB", |memory| memory.peak),
            Row::new("resident after the load, MiB", 1, kib(loaded.resident)).at_most(64.0, full),
            Row::new("– of it anonymous, MiB", 1, kib(loaded.anonymous)),
            Row::new("– most until then, MiB", 1, kib(loaded.peak)),
            Row::new("flushes of the baseline", 0, mean(&|first| first.flushes.count)),
            Row::new("– duration, mean, ms", 1, mean(&|first| first.flushes.mean_millis())),
        ],
    );
    let mut rows = pair.rows(jobs, None, full.then_some(150.0));
    let flushes = &pair.with.flushes;
    rows.extend([
        Row::new(format!("flush at {RATE}/s, mean, ms"), 1, flushes.mean_millis()),
        Row::new(format!("flush at {RATE}/s, p99, ms"), 1, flushes.p99_millis()),
        Row::new("ledger, as the operator reports, KiB", 1, size.reported / 1024.0),
        Row::new(format!("– in its {} segments, KiB", size.segments), 1, size.bytes as f64 / 1024.0),
        Row::new("– per job, bytes", 1, size.bytes as f64 / f64::from(jobs)),
    ]);
    page.table("load alone", &rows);
    let of = |figure: &str, handovers: &[Handover]| {
        let times = handovers.iter().map(|came| came.first_delivery.as_secs_f64()).collect();
        Row::highest(figure, 3, times).at_most(1.0, true)
    };
    let all: Vec<&Handover> = [&restarts.killed, &restarts.graceful, &restarts.standby].into_iter().flatten().collect();
    let mut reckoning = Reckoning::default();
    for came in &all {
        reckoning += came.reckoning;
    }
    let highest = |of: fn(&Memory) -> u64| kib(all.iter().map(|came| of(&came.memory)).max().unwrap_or_default());
    page.spread(&[
        of("kill -9: leading → first delivery, s", &restarts.killed),
        of("restart: leading → first delivery, s", &restarts.graceful),
        of("standby: leading → first delivery, s", &restarts.standby),
        Row::new("lists of all jobs", 0, all.iter().map(|came| came.lists).sum::<u32>().into()).at_most(0.0, true),
        Row::new("lost", 0, reckoning.lost as f64).at_most(0.0, true),
        Row::new(format!("repeated of {}", reckoning.transitions), 0, reckoning.repeats as f64),
        Row::new("resident after a restart, MiB", 1, highest(resident)).at_most(64.0, full),
        Row::new("– of it anonymous, MiB", 1, highest(|memory| memory.anonymous)),
        Row::new("– most until then, MiB", 1, highest(|memory| memory.peak)),
    ]);
    page
}
