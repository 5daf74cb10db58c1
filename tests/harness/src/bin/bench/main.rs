//! `make bench`: the operator against the floor on a real apiserver, in one run, into `docs/performance.md`.
//!
//! It fails where a transition is not posted, is posted twice, or is not signed: a fast figure of a lossy run is worthless.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod load;
mod receiver;
mod report;
mod subject;
mod tally;
mod transition;
mod watch;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use llmtune_webhooks_harness::{control_plane::ControlPlane, root};

use load::{Driven, Load};
use report::{Round, Setting, Stretch};
use subject::{Memory, Scene, Subject, Synced};
use tally::Tally;

const SECRET: &str = "a secret of the benchmark's own";
/// Connections are opened and caches filled before anything is measured.
const WARM_UP: Duration = Duration::from_secs(1);

/// Measures the operator against the floor.
#[derive(Parser)]
struct Args {
    /// Training jobs that are there throughout.
    #[arg(long, default_value_t = 6000, value_parser = clap::value_parser!(u32).range(500..=1_000_000))]
    jobs: u32,
    /// Length of the steady load; two thirds of it as fast as it goes, a third without load.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Rounds of the operator and of the floor, by turns.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Transitions a second of the steady load.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Patches under way at once where it goes as fast as it can.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=32))]
    patchers: u32,
    /// A smoke run: 500 jobs, one round of 6 s, nothing written.
    #[arg(long)]
    quick: bool,
    /// The page that the figures are written into.
    #[arg(long, default_value = "docs/performance.md")]
    output: PathBuf,
    /// The operator's binary; else the one beside this one.
    #[arg(long)]
    operator: Option<PathBuf>,
    /// The floor's binary; else the one beside this one.
    #[arg(long)]
    floor: Option<PathBuf>,
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    if args.quick {
        (args.jobs, args.seconds, args.rounds) = (500, 6, 1);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match runtime.block_on(run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<(), String> {
    let beside = std::env::current_exe().map_err(|error| error.to_string())?;
    let binary = |given: &Option<PathBuf>, name: &str| {
        let path = given.clone().unwrap_or_else(|| beside.with_file_name(name));
        if path.is_file() { Ok(path) } else { Err(format!("{} is not built; run `make bench`", path.display())) }
    };
    let (operator, floor) = (binary(&args.operator, "llmtune-webhooks")?, binary(&args.floor, "floor")?);
    let begun = Instant::now();
    let say = |text: &str| println!("{:>5.1} s  {text}", begun.elapsed().as_secs_f64());

    say("starting etcd and kube-apiserver");
    let plane = Arc::new(ControlPlane::start().await);
    plane.install_crds();
    let namespace = plane.namespace("bench").await;
    let client = plane.admin().await;
    say(&format!("creating {} TrainingJobs", args.jobs));
    let load = Load::create(client.clone(), &namespace, args.jobs).await;
    let sightings = watch::start(Arc::clone(&plane), &namespace, args.jobs).await;
    let (operator_port, operator_posts) = receiver::start("operators-receiver");
    let (floor_port, floor_posts) = receiver::start("floors-receiver");
    let scene = Scene { plane: &plane, namespace: &namespace, jobs: args.jobs, secret: SECRET, operator, floor };
    scene.subscribe(operator_port);

    let (mut operators, mut floors) = (Vec::new(), Vec::new());
    for number in 1..=args.rounds {
        for is_operator in [true, false] {
            let name = format!("{} {number}", if is_operator { "operator" } else { "floor" });
            let say = |text: &str| say(&format!("{name}: {text}"));
            say("starting");
            let (subject, synced) =
                if is_operator { scene.start_operator(&client).await } else { scene.start_floor(floor_port).await };
            let posts = if is_operator { &operator_posts } else { &floor_posts };
            let mut tally = Tally::new(&sightings, posts, SECRET, args.jobs);
            let round = measure(args, &load, &subject, synced, &mut tally, &say)
                .await
                .map_err(|error| format!("{name}: {error}\n{}", subject.process().log_tail()))?;
            subject.stop();
            if is_operator { operators.push(round) } else { floors.push(round) }
        }
    }

    let command = if args.quick { "bench --quick".into() } else { command() };
    let Args { jobs, rate, patchers, seconds, .. } = *args;
    let setting = Setting { command, jobs, rate, patchers, seconds, debug: cfg!(debug_assertions) };
    let page = report::page(&setting, &operators, &floors);
    println!("{page}");
    if !args.quick {
        let path = root().join(&args.output);
        report::save(&path, &page).map_err(|error| format!("{}: {error}", path.display()))?;
        say(&format!("written to {}", path.display()));
    }
    Ok(())
}

/// What somebody else would type to measure the same.
fn command() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() { "make bench".into() } else { format!("make bench BENCH=\"{}\"", arguments.join(" ")) }
}

async fn measure(
    args: &Args,
    load: &Load,
    subject: &Subject,
    synced: Synced,
    tally: &mut Tally<'_>,
    say: &impl Fn(&str),
) -> Result<Round, String> {
    let Synced { cpu, wall, memory: Memory { resident, .. } } = synced;
    say(&format!("in sync after {} ms, {} ms of CPU, {resident} KiB", wall.as_millis(), cpu.as_millis()));
    tally.settle(&load.steady(args.rate, WARM_UP).await.transitions).await?;

    let quiet = Duration::from_secs(args.seconds.div_ceil(3));
    let before = subject.cpu();
    tokio::time::sleep(quiet).await;
    let idle = subject.cpu().saturating_sub(before).as_secs_f64() / quiet.as_secs_f64();
    say(&format!("{:.2} ms of CPU per second without load", idle * 1e3));

    let length = Duration::from_secs(args.seconds);
    let steady = stretch(subject, tally, load.steady(args.rate, length)).await?;
    say(&described(&steady));
    let flat_out = stretch(subject, tally, load.flat_out(args.patchers, length * 2 / 3)).await?;
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
    let latencies = tally.settle(&transitions).await?;
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
