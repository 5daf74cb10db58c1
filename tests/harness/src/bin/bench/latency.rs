//! Compares the operator with the floor, by turns: latency, CPU and memory. Fails if a transition is not posted, posted
//! twice, or not signed, because fast figures of a lossy run are worthless.

use std::time::Duration;

use llmtune_webhooks_harness::operator::OperatorOptions;

use crate::{
    Args, Bench, Stage, WARM_UP,
    load::{Driven, Load, Phase, TRAINING_JOB},
    page::{Page, Row},
    receiver,
    report::{self, Round, Setting, Stretch},
    subject::{self, Memory, Subject, Synced},
    tally::{self, Tally},
    watch,
};

/// Cold starts per round.
const COLD_STARTS: u32 = 3;

pub async fn run(bench: &Bench) -> Result<Page, String> {
    let args = &bench.args;
    let stage = bench.stage(args.jobs, Phase::Pending).await;
    let (load, client, scene) = (&stage.load, &stage.client, bench.scene(&stage));
    let sightings = watch::start(stage.plane.clone(), TRAINING_JOB.path(&stage.namespace), args.jobs).await;
    let (operator_port, operator_posts) = receiver::start("operators-receiver");
    let (floor_port, floor_posts) = receiver::start("floors-receiver");
    scene.subscribe(operator_port);

    let cold = cold_starts(bench, &stage).await?;
    let (mut operators, mut floors) = (Vec::new(), Vec::new());
    // Several processes are measured: the latencies of a single one depend on luck with its pages and connections.
    for number in 1..=2 * args.rounds {
        for is_operator in [true, false] {
            let name = format!("{} {number}", if is_operator { "operator" } else { "floor" });
            let say = |text: &str| bench.say(&format!("{name}: {text}"));
            say("starting");
            let (subject, synced) =
                if is_operator { scene.start_operator(client).await } else { scene.start_floor(floor_port).await };
            let posts = if is_operator { &operator_posts } else { &floor_posts };
            let mut tally = Tally::new(&sightings, posts, scene.secret, args.jobs);
            let round = measure(args, load, &subject, synced, &mut tally, &say)
                .await
                .map_err(|error| format!("{name}: {error}\n{}", subject.process().log_tail()))?;
            subject.stop();
            if is_operator { operators.push(round) } else { floors.push(round) }
        }
    }
    let Args { jobs, rate, patchers, seconds, .. } = *args;
    let mut page = report::page(&Setting { jobs, rate, patchers, seconds }, &operators, &floors);
    page.text.push_str(
        "\nFrom the start of a process that watches a namespace without anything in it to 200 at `/readyz`:\n",
    );
    page.spread(&[Row::highest("cold start to Ready, ms", 1, cold)]);
    Ok(page)
}

async fn cold_starts(bench: &Bench, stage: &Stage) -> Result<Vec<f64>, String> {
    let mut starts = Vec::new();
    for _ in 0..COLD_STARTS * bench.args.rounds {
        let home = stage.plane.namespace("operator").await;
        let options = OperatorOptions::new(&bench.operator.display().to_string(), &home).log("info");
        starts.push(subject::cold_start(&stage.plane, &options).await?);
    }
    bench.say(&format!("cold starts: {starts:.1?} ms"));
    Ok(starts)
}

pub async fn measure(
    args: &Args,
    load: &Load,
    subject: &Subject,
    synced: Synced,
    tally: &mut Tally<'_>,
    say: &impl Fn(&str),
) -> Result<Round, String> {
    let Synced { cpu, wall, memory: Memory { resident, .. } } = synced;
    say(&format!("in sync after {} ms, {} ms of CPU, {resident} KiB", wall.as_millis(), cpu.as_millis()));
    tally.wait_for(&load.steady(args.rate, WARM_UP).await.transitions).await?;

    let quiet = Duration::from_secs(args.seconds.div_ceil(6));
    let before = subject.cpu();
    tokio::time::sleep(quiet).await;
    let idle = subject.cpu().saturating_sub(before).as_secs_f64() / quiet.as_secs_f64();
    say(&format!("{:.2} ms of CPU per second without load", idle * 1e3));

    let length = Duration::from_secs(args.seconds);
    let steady = stretch(subject, tally, load.steady(args.rate, length)).await?;
    say(&described(&steady));
    let flat_out = stretch(subject, tally, load.flat_out(args.patchers, length / 3)).await?;
    say(&described(&flat_out));
    Ok(Round { synced, idle, steady, flat_out, loaded: subject.memory() })
}

async fn stretch(
    subject: &Subject,
    tally: &mut Tally<'_>,
    load: impl Future<Output = Driven>,
) -> Result<Stretch, String> {
    let writes_before = subject.writes();
    let cpu_before = subject.cpu();
    let Driven { transitions, elapsed } = load.await;
    let latencies = tally.wait_for(&transitions).await?;
    let cpu = subject.cpu().saturating_sub(cpu_before);
    let mut writes = subject.writes();
    for (resource, count) in writes_before {
        *writes.entry(resource).or_default() -= count;
    }
    Ok(Stretch { latencies, cpu, elapsed, writes })
}

fn described(stretch: &Stretch) -> String {
    let mut sorted = stretch.latencies.clone();
    sorted.sort_by(f64::total_cmp);
    let deliveries = sorted.len() as f64;
    format!(
        "{deliveries} deliveries at {:.0}/s: p50 {:.2} ms, p99 {:.2} ms, {:.0} µs of CPU each",
        deliveries / stretch.elapsed.as_secs_f64(),
        tally::percentile(&sorted, 0.5),
        tally::percentile(&sorted, 0.99),
        stretch.cpu.as_secs_f64() * 1e6 / deliveries,
    )
}
