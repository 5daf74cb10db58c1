//! `make bench`: measures the operator on a real apiserver, compares it with the floor, the load alone and its targets,
//! and writes `docs/performance.md`. Each part has its own control plane and its own section of the page.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod behaviour;
mod counters;
mod criterion;
mod crowd;
mod fanout;
mod faults;
mod handover;
mod latency;
mod ledger;
mod load;
mod mapped;
mod micro;
mod page;
mod pending;
mod receiver;
mod report;
mod scale;
mod soak;
mod subject;
mod tally;
mod transition;
mod watch;
mod writes;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use kube::Client;
use llmtune_webhooks_harness::{control_plane::ControlPlane, root};

use load::{JobKind, Load, Phase, TRAINING_JOB};
use page::Page;
use subject::Scene;

const SECRET: &str = "a secret of the benchmark's own";
/// Opens connections and fills caches before the measurement.
const WARM_UP: Duration = Duration::from_secs(1);

/// Measures the operator.
#[derive(Clone, Parser)]
struct Args {
    /// The parts to measure [default: all except `soak`].
    parts: Vec<Part>,
    /// Number of training jobs that exist during a measurement; `ledger` uses `--finished` instead.
    #[arg(long, default_value_t = 6000, value_parser = clap::value_parser!(u32).range(500..=1_000_000))]
    jobs: u32,
    /// Number of finished training jobs in `ledger`.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(500..=1_000_000))]
    finished: u32,
    /// Number of Webhooks in the measurement of restarts.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    webhooks: u32,
    /// Duration of the steady load, in seconds; other loads are proportional to it.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(3..))]
    seconds: u64,
    /// Number of rounds of repeated measurements; `latency` takes twice as many.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Transitions per second in the steady load of `latency`.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Maximum number of concurrent patches in measurements at full speed.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=32))]
    patchers: u32,
    /// Duration of `soak`, in minutes.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=1440))]
    soak_minutes: u64,
    /// Only check that the benchmark runs: 500 jobs, one round of 6 s, no output file.
    #[arg(long)]
    quick: bool,
    /// The page to write the results to.
    #[arg(long, default_value = "docs/performance.md")]
    output: PathBuf,
    /// The operator's binary [default: in the folder of this binary].
    #[arg(long)]
    operator: Option<PathBuf>,
    /// The floor's binary [default: in the folder of this binary].
    #[arg(long)]
    floor: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Latency, CPU and memory, compared with the floor.
    Latency,
    /// Writes to the apiserver and bytes to etcd at 1, 50 and 500 transitions a second.
    Writes,
    /// Lost and repeated deliveries after kill -9 and failing answers.
    Faults,
    /// Time until an edit, a handover, a takeover and a change of a Secret take effect.
    Behaviour,
    /// First sync, memory, flushes and restarts with 100,000 finished jobs.
    Ledger,
    /// One event for 1, 10, 100 and 1,000 Webhooks.
    Fanout,
    /// 2,000 Webhooks in 200 namespaces: start, memory, calls at rest, edits.
    Scale,
    /// Cost of one event, a flush and a recovery, in process.
    Micro,
    /// A million pending deliveries in process.
    Pending,
    /// The same jobs as a kind that a WebhookSource maps to events.
    Mapped,
    /// Memory over half an hour of load.
    Soak,
}

/// State that the parts share.
struct Bench {
    args: Args,
    operator: PathBuf,
    floor: PathBuf,
    begun: Instant,
}

/// A control plane with jobs.
struct Stage {
    plane: Arc<ControlPlane>,
    namespace: String,
    client: Client,
    load: Load,
    jobs: u32,
}

impl Part {
    const fn title(self) -> &'static str {
        match self {
            Self::Latency => "Beside the floor",
            Self::Writes => "Writes",
            Self::Faults => "Faults",
            Self::Behaviour => "Behaviour",
            Self::Ledger => "The ledger",
            Self::Fanout => "Fan-out",
            Self::Scale => "Many Webhooks",
            Self::Micro => "Microbenchmarks",
            Self::Pending => "A million pending deliveries",
            Self::Mapped => "Through a WebhookSource",
            Self::Soak => "Memory over time",
        }
    }
}

impl Bench {
    fn say(&self, text: &str) {
        println!("{:>6.1} s  {text}", self.begun.elapsed().as_secs_f64());
    }

    async fn plane(&self) -> Arc<ControlPlane> {
        self.say("starting etcd and kube-apiserver");
        let plane = Arc::new(ControlPlane::start().await);
        plane.install_crds();
        plane
    }

    async fn stage(&self, jobs: u32, phase: Phase) -> Stage {
        self.fill(self.plane().await, jobs, phase, TRAINING_JOB).await
    }

    async fn fill(&self, plane: Arc<ControlPlane>, jobs: u32, phase: Phase, kind: JobKind) -> Stage {
        let namespace = plane.namespace("bench").await;
        let client = plane.admin().await;
        self.say(&format!("creating {jobs} {}s", kind.name));
        let load = Load::create(&plane, client.clone(), &namespace, jobs, phase, kind).await;
        Stage { plane, namespace, client, load, jobs }
    }

    fn scene<'a>(&self, stage: &'a Stage) -> Scene<'a> {
        let (operator, floor) = (self.operator.clone(), self.floor.clone());
        Scene { plane: &stage.plane, namespace: &stage.namespace, jobs: stage.jobs, secret: SECRET, operator, floor }
    }

    async fn measure(&self, part: Part) -> Result<Page, String> {
        match part {
            Part::Latency => latency::run(self).await,
            Part::Writes => writes::run(self).await,
            Part::Faults => faults::run(self).await,
            Part::Behaviour => behaviour::run(self).await,
            Part::Ledger => ledger::run(self).await,
            Part::Fanout => fanout::run(self).await,
            Part::Scale => scale::run(self).await,
            Part::Micro => micro::run(self),
            Part::Pending => pending::run(self),
            Part::Mapped => mapped::run(self).await,
            Part::Soak => soak::run(self).await,
        }
    }

    fn save(&self, part: &str, text: &str) -> Result<(), String> {
        println!("{text}");
        if self.args.quick {
            return Ok(());
        }
        let path = root().join(&self.args.output);
        page::save(&path, part, text).map_err(|error| format!("{}: {error}", path.display()))?;
        self.say(&format!("written to {}", path.display()));
        Ok(())
    }

    /// Measures the parts, and returns the missed targets. The results of a part are kept if another part fails.
    async fn run(&self) -> Result<Vec<String>, String> {
        let all: Vec<Part> = Part::value_variants().iter().copied().filter(|part| *part != Part::Soak).collect();
        let parts = if self.args.parts.is_empty() { &all } else { &self.args.parts };
        let stamp = format!("`{}`, {}, {}", command(), jiff::Timestamp::now().strftime("%Y-%m-%d"), report::version());
        self.save("machine", &report::machine(&self.operator))?;
        let (mut missed, mut failed) = (Vec::new(), Vec::new());
        for part in parts {
            let name = part.to_possible_value().unwrap().get_name().to_owned();
            self.say(&format!("{name}: begins"));
            match self.measure(*part).await {
                Ok(page) => {
                    self.save(&name, &format!("\n## {}\n\n{stamp}\n{}", part.title(), page.text))?;
                    missed.extend(page.missed);
                }
                Err(error) => {
                    eprintln!("bench: {name}: {error}");
                    failed.push(name);
                }
            }
        }
        if failed.is_empty() { Ok(missed) } else { Err(format!("there are no figures of {}", failed.join(", "))) }
    }
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    if args.quick {
        (args.jobs, args.finished, args.webhooks, args.seconds, args.rounds) = (500, 2000, 10, 6, 1);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match runtime.block_on(run(args)) {
        Ok(missed) => {
            for row in missed {
                println!("target missed: {row}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<Vec<String>, String> {
    let current = std::env::current_exe().map_err(|error| error.to_string())?;
    let binary = |given: &Option<PathBuf>, name: &str| {
        let path = given.clone().unwrap_or_else(|| current.with_file_name(name));
        if path.is_file() { Ok(path) } else { Err(format!("{} is not built; run `make bench`", path.display())) }
    };
    let (operator, floor) = (binary(&args.operator, "llmtune-webhooks")?, binary(&args.floor, "floor")?);
    Bench { args, operator, floor, begun: Instant::now() }.run().await
}

/// The command that repeats this measurement.
fn command() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() { "make bench".into() } else { format!("make bench BENCH=\"{}\"", arguments.join(" ")) }
}
