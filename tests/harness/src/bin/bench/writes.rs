//! Measures the operator's cost for the apiserver and etcd in steady state.

use std::{collections::BTreeSet, fmt::Write, time::Duration};

use llmtune_webhooks_harness::operator::Operator;

use crate::{
    Bench, Stage, WARM_UP,
    counters::{Counted, Counters},
    load::{Phase, TRAINING_JOB},
    page::{Page, Row},
    receiver,
    tally::Tally,
    watch,
};

/// Rates, each with the length of its load relative to the steady load.
const RATES: [(u32, f64); 3] = [(1, 4.0 / 3.0), (50, 1.0), (500, 2.0 / 3.0)];
/// After a sync the operator still writes the rest of the baseline and statuses.
const QUIET: Duration = Duration::from_secs(6);

/// The same load with and without the operator.
pub struct Pair {
    pub rate: u32,
    pub deliveries: usize,
    pub with: Counted,
    pub alone: Alone,
}

/// The load without the operator.
pub struct Alone {
    counted: Counted,
    transitions: usize,
}

impl Pair {
    pub fn writes_per_delivery(&self) -> f64 {
        self.with.all_writes() as f64 / self.deliveries as f64
    }

    /// Bytes that etcd received for the load itself, scaled from the run without the operator.
    fn loads_bytes(&self) -> f64 {
        self.alone.counted.etcd_bytes * self.deliveries as f64 / self.alone.transitions as f64
    }

    fn operators_bytes(&self) -> f64 {
        self.with.etcd_bytes - self.loads_bytes()
    }

    fn kilobytes_per_second(&self, bytes: f64) -> f64 {
        bytes / 1e3 / self.with.elapsed.as_secs_f64()
    }

    /// The operator's share of the bytes that etcd received, in KB/s.
    pub fn etcd_rate(&self) -> f64 {
        self.kilobytes_per_second(self.operators_bytes())
    }

    /// The figures of this rate, compared with those of the apiserver and etcd under the load alone.
    pub fn rows(&self, jobs: u32, writes: Option<f64>, bytes: Option<f64>) -> Vec<Row> {
        let rate = self.rate;
        let at = if jobs >= 100_000 { format!("at {rate}/s with {jobs} jobs") } else { format!("at {rate}/s") };
        let per_delivery = Row::new(format!("writes per delivery {at}"), 4, self.writes_per_delivery());
        let per_second = Row::new(format!("bytes to etcd {at}, KB/s"), 1, self.etcd_rate());
        vec![
            per_delivery.at_most(writes.unwrap_or_default(), writes.is_some()),
            per_second
                .at_most(bytes.unwrap_or_default(), bytes.is_some())
                .beside(self.kilobytes_per_second(self.loads_bytes())),
            Row::new(format!("bytes to etcd per delivery {at}"), 0, self.operators_bytes() / self.deliveries as f64)
                .beside(self.loads_bytes() / self.deliveries as f64),
        ]
    }
}

/// The load alone: only the apiserver and the load write.
pub async fn alone(stage: &Stage, rate: u32, length: Duration) -> Result<Alone, String> {
    let before = Counters::read(&stage.plane, None).await?;
    let transitions = stage.load.steady(rate, length).await.transitions.len();
    Ok(Alone { counted: before.until(&Counters::read(&stage.plane, None).await?), transitions })
}

/// The same load with an operator that delivers it.
pub async fn with(
    stage: &Stage,
    operator: &Operator,
    tally: &mut Tally<'_>,
    rate: u32,
    length: Duration,
) -> Result<(Counted, usize), String> {
    let before = Counters::read(&stage.plane, Some(operator.metrics())).await?;
    let driven = stage.load.steady(rate, length).await;
    // Read without a pause: later writes do not belong to the period of the load.
    let counted = before.until(&Counters::read(&stage.plane, Some(operator.metrics())).await?);
    tally.wait_for(&driven.transitions).await?;
    counted.check()?;
    Ok((counted, driven.transitions.len()))
}

pub async fn run(bench: &Bench) -> Result<Page, String> {
    let args = &bench.args;
    let stage = bench.stage(args.jobs, Phase::Pending).await;
    let scene = bench.scene(&stage);
    let length = |share: f64| Duration::from_secs_f64(args.seconds as f64 * share);
    let mut alones = Vec::new();
    for (rate, share) in RATES {
        bench.say(&format!("{rate}/s without the operator"));
        alones.push(alone(&stage, rate, length(share / 2.0)).await?);
    }
    let sightings = watch::start(stage.plane.clone(), TRAINING_JOB.path(&stage.namespace), args.jobs).await;
    let (port, posts) = receiver::start("receiver");
    scene.subscribe(port);
    let (operator, _) = scene.start(&stage.client, &scene.options().await).await;
    let mut tally = Tally::new(&sightings, &posts, scene.secret, args.jobs);
    tally.wait_for(&stage.load.steady(50, WARM_UP).await.transitions).await?;
    tokio::time::sleep(QUIET).await;
    let mut pairs = Vec::new();
    for ((rate, share), alone) in RATES.into_iter().zip(alones) {
        let (with, deliveries) = with(&stage, &operator, &mut tally, rate, length(share))
            .await
            .map_err(|error| format!("{rate}/s: {error}\n{}", operator.process.log_tail()))?;
        let pair = Pair { rate, deliveries, with, alone };
        let reached = deliveries as f64 / pair.with.elapsed.as_secs_f64();
        bench.say(&format!(
            "{reached:.1}/s: {:.4} writes per delivery, {:.1} KB/s to etcd",
            pair.writes_per_delivery(),
            pair.etcd_rate()
        ));
        pairs.push(pair);
    }
    Ok(page(args.jobs, &pairs))
}

fn page(jobs: u32, pairs: &[Pair]) -> Page {
    let mut page = Page::new(format!(
        "
Writes of the operator with {jobs} TrainingJobs, as it counts them itself; what the apiserver counts of ledger segments,
statuses and delivery objects agrees, or there are no figures. Bytes to etcd are what etcd received from the apiserver
(`etcd_network_client_grpc_received_bytes_total`), less what it receives for as many transitions without the operator (in
the column beside it). Flush durations are from the operator's histogram; of the 99th percentile the upper bound of its bucket.
"
    ));
    let mut rows = Vec::new();
    for pair in pairs {
        let Pair { rate, deliveries, with, .. } = pair;
        rows.push(Row::new(format!("rate reached of {rate}/s"), 1, *deliveries as f64 / with.elapsed.as_secs_f64()));
        rows.extend(pair.rows(jobs, (*rate == 500).then_some(0.02), None));
        rows.push(Row::new(format!("flush at {rate}/s, mean, ms"), 1, with.flushes.mean_millis()));
        rows.push(Row::new(format!("flush at {rate}/s, p99, ms"), 1, with.flushes.p99_millis()));
    }
    page.table("load alone", &rows);
    by_resource(&mut page, pairs);
    page
}

/// Adds the written resources to the page.
pub fn by_resource(page: &mut Page, pairs: &[Pair]) {
    let text = &mut page.text;
    text.push_str("\n| writes per delivery |");
    for pair in pairs {
        let _ = write!(text, " at {}/s |", pair.rate);
    }
    let _ = writeln!(text, "\n|---|{}", "---|".repeat(pairs.len()));
    let resources: BTreeSet<&String> = pairs.iter().flat_map(|pair| pair.with.writes.keys()).collect();
    for resource in resources {
        let _ = write!(text, "| {resource} |");
        for pair in pairs {
            let count = pair.with.writes.get(resource).copied().unwrap_or_default();
            let per_delivery = count as f64 / pair.deliveries as f64;
            let _ = write!(text, " {per_delivery:.4} ({count} for {}) |", pair.deliveries);
        }
        text.push('\n');
    }
}
