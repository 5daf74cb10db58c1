//! Computes the figures of the operator and the floor, writes the page that compares them, and describes the machine.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path, process::Command, time::Duration};

use llmtune_webhooks_harness::{control_plane::tool, root};

use crate::{
    page::Page,
    subject::{Memory, Synced},
    tally::percentile,
};

/// One period of load on one subject.
#[derive(Default)]
pub struct Stretch {
    /// One latency per delivery, in milliseconds.
    pub latencies: Vec<f64>,
    pub cpu: Duration,
    /// The duration of the load.
    pub elapsed: Duration,
    /// The subject's writes to the apiserver, by resource.
    pub writes: BTreeMap<String, u64>,
}

/// One subject from its start to its end.
pub struct Round {
    pub synced: Synced,
    /// CPU time per second without load.
    pub idle: f64,
    pub steady: Stretch,
    pub flat_out: Stretch,
    pub loaded: Memory,
}

/// The parameters of the measurement.
pub struct Setting {
    pub jobs: u32,
    pub rate: u32,
    pub patchers: u32,
    pub seconds: u64,
}

struct Figure {
    name: String,
    target: Option<f64>,
    digits: usize,
    value: f64,
}

fn figures(setting: &Setting, rounds: &[Round]) -> Vec<Figure> {
    let Setting { jobs, rate, .. } = *setting;
    let sum = |of: &dyn Fn(&Round) -> f64| rounds.iter().map(of).sum::<f64>();
    let mean = |of: &dyn Fn(&Round) -> f64| sum(of) / rounds.len() as f64;
    let highest = |of: &dyn Fn(&Round) -> u64| rounds.iter().map(of).max().unwrap_or_default() as f64 / 1024.0;
    let deliveries = |of: fn(&Round) -> &Stretch| sum(&|round| of(round).latencies.len() as f64);
    let micros = |of: fn(&Round) -> &Stretch| sum(&|round| of(round).cpu.as_secs_f64()) / deliveries(of) * 1e6;
    let per_second = |of: fn(&Round) -> &Stretch| deliveries(of) / sum(&|round| of(round).elapsed.as_secs_f64());
    let latency = |share: f64, of: fn(&Round) -> &Stretch| {
        let mut all: Vec<f64> = rounds.iter().flat_map(|round| of(round).latencies.iter().copied()).collect();
        all.sort_by(f64::total_cmp);
        percentile(&all, share)
    };
    let steady: fn(&Round) -> &Stretch = |round| &round.steady;
    let flat_out: fn(&Round) -> &Stretch = |round| &round.flat_out;
    // The targets apply to these settings only.
    let (at_50, with_6000) = (rate == 50, jobs == 6000);
    let aim = |figure: Figure, applies: bool, target: f64| Figure { target: applies.then_some(target), ..figure };
    let figure = |name: String, digits, value| Figure { name, target: None, digits, value };
    let way = "bare watch → POST";
    let mib = |of: &dyn Fn(&Round) -> Memory, what: &str| {
        let all = figure(format!("resident with {jobs} jobs, {what}, MiB"), 1, highest(&|round| of(round).resident));
        let own = figure("– of it anonymous, MiB".into(), 1, highest(&|round| of(round).anonymous));
        [aim(all, with_6000, 16.0), own]
    };
    let [synced, synced_anonymous] = mib(&|round| round.synced.memory, "in sync");
    let [loaded, loaded_anonymous] = mib(&|round| round.loaded, "after the load");
    vec![
        aim(figure(format!("{way} at {rate}/s, p50, ms"), 2, latency(0.5, steady)), at_50, 0.25),
        aim(figure(format!("{way} at {rate}/s, p99, ms"), 2, latency(0.99, steady)), at_50, 0.8),
        aim(figure(format!("CPU per delivery at {rate}/s, µs"), 0, micros(steady)), at_50, 400.0),
        aim(figure("CPU per delivery as fast as it goes, µs".into(), 0, micros(flat_out)), true, 160.0),
        synced,
        synced_anonymous,
        loaded,
        loaded_anonymous,
        figure(
            format!("CPU to be in sync with {jobs} jobs, ms"),
            0,
            mean(&|round| round.synced.cpu.as_secs_f64() * 1e3),
        ),
        figure("time from start to in sync, ms".into(), 0, mean(&|round| round.synced.wall.as_secs_f64() * 1e3)),
        figure("CPU without load, ms per s".into(), 2, mean(&|round| round.idle * 1e3)),
        figure("rate reached as fast as it goes, per s".into(), 0, per_second(flat_out)),
        figure(format!("{way} as fast as it goes, p50, ms"), 2, latency(0.5, flat_out)),
        figure(format!("{way} as fast as it goes, p99, ms"), 2, latency(0.99, flat_out)),
    ]
}

/// The page, as Markdown.
pub fn page(setting: &Setting, operator: &[Round], floor: &[Round]) -> Page {
    let (mut page, mut missed) = (String::new(), Vec::new());
    method(&mut page, setting, operator.len());
    let (ours, lowest) = (figures(setting, operator), figures(setting, floor));
    page.push_str("\n| figure | target | operator | floor | operator ÷ floor |\n|---|---|---|---|---|\n");
    for (ours, lowest) in ours.iter().zip(&lowest) {
        let Figure { name, target, digits, value } = ours;
        let misses = target.is_some_and(|target| value.is_nan() || *value > target);
        if misses {
            missed.push(format!("{name}: {value:.digits$}"));
        }
        let word = if misses { ", missed" } else { "" };
        let target = target.map_or_else(|| "–".into(), |target| format!("≤ {target}{word}"));
        let ratio = if lowest.value > 0.0 { format!("{:.2}", value / lowest.value) } else { "–".into() };
        let _ = writeln!(page, "| {name} | {target} | {value:.digits$} | {:.digits$} | {ratio} |", lowest.value);
    }
    rounds(&mut page, setting, operator, floor);
    writes(&mut page, setting, operator);
    Page { text: page, missed }
}

/// The version of the measured operator.
pub fn version() -> String {
    let commit = output(Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=10"]));
    let build = if cfg!(debug_assertions) { "debug build: these are no figures to quote" } else { "release build" };
    format!("operator {} at {}, {build}", env!("CARGO_PKG_VERSION"), commit.trim())
}

fn output(command: &mut Command) -> String {
    let output = command.current_dir(root()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// The machine of the measurement.
pub fn machine(operator: &Path) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let memory: f64 = after(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
    let apiserver = output(Command::new(tool("kube-apiserver")).arg("--version"));
    let etcd = output(Command::new(tool("etcd")).arg("--version"));
    let rows = [
        ("processor", format!("{}, {cores} cores", after(&read("/proc/cpuinfo"), "model name"))),
        ("memory", format!("{:.1} GiB", memory / 1024.0 / 1024.0)),
        ("kernel", format!("Linux {}", read("/proc/sys/kernel/osrelease").trim())),
        ("compiler", first_line(output(Command::new("rustc").arg("--version")))),
        ("kube-apiserver", apiserver.trim().trim_start_matches("Kubernetes ").to_owned()),
        ("etcd", after(&etcd, "etcd Version")),
        ("operator's binary", binary(operator)),
    ];
    let mut page = String::from("\n| | |\n|---|---|\n");
    for (name, value) in rows {
        let _ = writeln!(page, "| {name} | {value} |");
    }
    page
}

/// The size of the binary, and of its code.
fn binary(path: &Path) -> String {
    let mib = |bytes: f64| format!("{:.1} MiB", bytes / 1024.0 / 1024.0);
    let file = fs::metadata(path).map_or(f64::NAN, |metadata| metadata.len() as f64);
    let sections = output(Command::new("size").args(["-A", "-d"]).arg(path));
    let code = text_section(&sections).map_or_else(String::new, |bytes| format!(", of it {} .text", mib(bytes)));
    format!("{}{code}", mib(file))
}

/// The size of `.text` in the output of `size -A -d`.
fn text_section(sections: &str) -> Option<f64> {
    let line = sections.lines().find(|line| line.starts_with(".text "))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn method(page: &mut String, setting: &Setting, rounds: usize) {
    let Setting { jobs, rate, patchers, seconds, .. } = setting;
    let _ = write!(
        page,
        "
kube-apiserver, etcd, the load and what is measured share the machine. {jobs} TrainingJobs with 2 kB of annotations each
are there throughout; the load patches their statuses to Running and to Completed, each run with a `startedAt` of its own,
so that every patch is one event for one Webhook with a secret. Operator and floor take turns, {rounds} rounds each; a round
is a fresh start, {} s without load, {seconds} s at {rate}/s, and {} s as fast as the apiserver answers {patchers} patches
at once. The floor is `tests/harness/src/bin/floor.rs`: the same crates in one loop that lists, watches, signs and posts,
and remembers and retries nothing.

The latency of an event is the time from the arrival of its line at a watch that does nothing else to the arrival of the
last byte of its POST at the receiver; watch and receiver are threads of one process with one clock. Below zero the
operator's watch was served first. CPU is user and system time of all threads over the whole stretch, idle time's work
included, divided by its deliveries. Every transition arrived exactly once with a valid signature, or there were no figures.
",
        seconds.div_ceil(6),
        seconds / 3,
    );
}

fn rounds(page: &mut String, setting: &Setting, operator: &[Round], floor: &[Round]) {
    page.push_str("\nRound by round:\n\n| figure |");
    let named = [("operator", operator), ("floor", floor)];
    let columns: Vec<(String, Vec<Figure>)> = named
        .into_iter()
        .flat_map(|(name, rounds)| {
            let numbered = rounds.iter().enumerate();
            numbered.map(move |(index, round)| {
                (format!("{name} {}", index + 1), figures(setting, std::slice::from_ref(round)))
            })
        })
        .collect();
    for (name, _) in &columns {
        let _ = write!(page, " {name} |");
    }
    let _ = writeln!(page, "\n|---|{}", "---|".repeat(columns.len()));
    for (index, Figure { name, digits, .. }) in columns[0].1.iter().enumerate() {
        let _ = write!(page, "| {name} |");
        for (_, figures) in &columns {
            let _ = write!(page, " {:.digits$} |", figures[index].value);
        }
        page.push('\n');
    }
}

fn writes(page: &mut String, setting: &Setting, operator: &[Round]) {
    let sum = |of: fn(&Round) -> &Stretch| {
        let deliveries: usize = operator.iter().map(|round| of(round).latencies.len()).sum();
        let mut writes = BTreeMap::<String, u64>::new();
        for (resource, count) in operator.iter().flat_map(|round| &of(round).writes) {
            *writes.entry(resource.clone()).or_default() += count;
        }
        (deliveries, writes)
    };
    let (steady, steady_writes) = sum(|round| &round.steady);
    let (flat_out, flat_out_writes) = sum(|round| &round.flat_out);
    let _ = writeln!(
        page,
        "\nWrites of the operator to the apiserver, per delivery (target: ≤ 0.02 at 500/s):\n\n\
         | resource | at {}/s | as fast as it goes |\n|---|---|---|",
        setting.rate
    );
    let mut row = |name: &str, one: u64, other: u64| {
        let per = |count: u64, all: usize| format!("{:.4} ({count} for {all})", count as f64 / all as f64);
        let _ = writeln!(page, "| {name} | {} | {} |", per(one, steady), per(other, flat_out));
    };
    for (resource, count) in &flat_out_writes {
        let other = steady_writes.get(resource).copied().unwrap_or_default();
        if *count + other > 0 {
            row(resource, other, *count);
        }
    }
    row("all", steady_writes.values().sum(), flat_out_writes.values().sum());
}
