//! Many Webhooks in many namespaces with a single operator: startup time, memory, calls to the apiserver at rest, and
//! how soon an edit takes effect.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use llmtune_webhooks_harness::operator::{Operator, OperatorOptions};
use serde_json::json;

use crate::{
    Bench, Stage,
    behaviour::{self, Inbox},
    counters::{Calls, calls},
    crowd,
    load::{Phase, TRAINING_JOB},
    page::{Page, Row},
    subject::{self, Memory, Scene, memory},
};

const JOBS: u32 = 500;
const WEBHOOKS: u32 = 2000;
const NAMESPACES: u32 = 200;
/// Cold starts per round, and edits back and forth.
const COLD_STARTS: u32 = 3;
const EDITS: u32 = 2;
/// After its start the operator still writes statuses and the ledger.
const QUIET: Duration = Duration::from_secs(10);
const READY: Duration = Duration::from_mins(6);

/// The measured values.
struct Figures {
    webhooks: u32,
    namespaces: u32,
    /// In milliseconds.
    cold: Vec<f64>,
    edit_first: Vec<f64>,
    edit_last: Vec<f64>,
    begun: Begun,
    without: Memory,
    with: Memory,
    calls: Calls,
    rest: Duration,
}

/// The times from the process's start until every Webhook's key was read, and until all Webhooks were Ready.
struct Begun {
    keys: Duration,
    ready: Duration,
}

pub async fn run(bench: &Bench) -> Result<Page, String> {
    let args = &bench.args;
    let (webhooks, namespaces) = if args.quick { (100, 10) } else { (WEBHOOKS, NAMESPACES) };
    let plane = bench.plane().await;
    let mut cold = Vec::new();
    for _ in 0..COLD_STARTS * args.rounds {
        cold.push(subject::cold_start(&plane, &everywhere(bench, &plane.namespace("operator").await)).await?);
    }
    bench.say(&format!("cold starts: {cold:.1?} ms"));

    let stage = bench.fill(plane, JOBS, Phase::Pending, TRAINING_JOB).await;
    let scene = bench.scene(&stage);
    let (mut operator, _) = start(bench, &stage, 0).await?;
    tokio::time::sleep(QUIET).await;
    let without = memory(&operator.process);
    tokio::task::block_in_place(|| operator.stop());

    bench.say(&format!("creating {webhooks} Webhooks in {namespaces} namespaces, each with its Secret"));
    let (here, there) = (Inbox::open("here"), Inbox::open("there"));
    scene.subscribe(here.port);
    populate(&stage, &scene, webhooks, namespaces, here.port).await?;
    // The edited Webhook is an additional one, in a namespace with load.
    let (operator, begun) = start(bench, &stage, webhooks as usize + 1).await?;
    let [keys, ready] = [begun.keys, begun.ready].map(|time| time.as_secs_f64());
    bench.say(&format!("all keys read after {keys:.2} s, all Ready after {ready:.2} s"));

    tokio::time::sleep(QUIET).await;
    let before = calls(&operator.metrics());
    let resting = Instant::now();
    tokio::time::sleep(Duration::from_secs(args.seconds * 2)).await;
    let (after, rest) = (calls(&operator.metrics()), resting.elapsed());
    let calls = subtract(after, &before);
    let with = memory(&operator.process);
    bench.say(&format!(
        "{} calls at rest; {without:?} without Webhooks, {with:?} with them",
        calls.values().sum::<u64>()
    ));

    let (mut edit_first, mut edit_last) = (Vec::new(), Vec::new());
    for _ in 0..EDITS * args.rounds {
        for (from, to) in [(&here, &there), (&there, &here)] {
            let (first, last) = behaviour::edit(&stage, from, to)
                .await
                .map_err(|error| format!("{error}\n{}", operator.process.log_tail()))?;
            edit_first.push(first);
            edit_last.push(last);
        }
    }
    Ok(page(&Figures { webhooks, namespaces, cold, edit_first, edit_last, begun, without, with, calls, rest }))
}

/// An operator for all namespaces.
fn everywhere(bench: &Bench, home: &str) -> OperatorOptions {
    OperatorOptions::new(&bench.operator.display().to_string(), home).log("info").cluster_wide()
}

/// Starts an operator without a ledger, and waits until this many Webhooks are Ready.
async fn start(bench: &Bench, stage: &Stage, webhooks: usize) -> Result<(Operator, Begun), String> {
    let options = everywhere(bench, &stage.plane.namespace("operator").await);
    let mut operator = Operator::start(&stage.plane, &options).await;
    operator.wait_readyz("leader", READY).await;
    let secrets = ("get".to_owned(), "secrets".to_owned());
    let keys = loop {
        let read = calls(&operator.metrics()).get(&secrets).copied().unwrap_or_default();
        if read >= webhooks as u64 {
            break operator.launched.elapsed();
        }
        if operator.launched.elapsed() > READY {
            return Err(format!("of {webhooks} keys {read} are read\n{}", operator.process.log_tail()));
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    };
    loop {
        let ready = crowd::ready(&stage.client, None).await?;
        if ready == webhooks {
            let begun = Begun { keys, ready: operator.launched.elapsed() };
            return Ok((operator, begun));
        }
        if operator.launched.elapsed() > READY {
            return Err(format!("of {webhooks} Webhooks {ready} are Ready\n{}", operator.process.log_tail()));
        }
        // Each poll costs the apiserver a list.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn populate(stage: &Stage, scene: &Scene<'_>, webhooks: u32, namespaces: u32, port: u16) -> Result<(), String> {
    let namespace = |number: u32| format!("team-{:03}", number % namespaces);
    let spaces = (0..namespaces).map(|number| {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace(number)}});
        ("/api/v1/namespaces".to_owned(), object)
    });
    crowd::create(&stage.client, spaces).await?;
    let objects = (0..webhooks).flat_map(|number| {
        let paths = ["/api/v1/namespaces/{}/secrets", "/apis/llmtune.io/v1alpha1/namespaces/{}/webhooks"];
        let paths = paths.map(|path| path.replace("{}", &namespace(number)));
        paths.into_iter().zip(scene.webhook(&format!("hook-{number:04}"), port, &json!({})))
    });
    crowd::create(&stage.client, objects).await
}

/// The calls since `before`.
fn subtract(mut calls: Calls, before: &Calls) -> Calls {
    for (call, count) in &mut calls {
        *count -= before.get(call).copied().unwrap_or_default();
    }
    calls.retain(|_, count| *count > 0);
    calls
}

fn page(figures: &Figures) -> Page {
    let Figures { webhooks, namespaces, cold, edit_first, edit_last, begun, without, with, calls, rest } = figures;
    let mut page = Page::new(format!(
        "
{webhooks} Webhooks in {namespaces} namespaces, each with a Secret of its own, one operator for all namespaces, and one Webhook more
where {JOBS} jobs run. A cold start is from the process's start to 200 at `/readyz`, in a cluster with none of it. A Webhook is
served once its key is read from its Secret; all are Ready when their statuses say so, of which the operator writes at most fifty
a second. Memory per Webhook is what a fresh operator has more than one without Webhooks, both at rest. Edits of the one
Webhook's URL are under load, as in the section on behaviour.
"
    ));
    let kib = |memory: &Memory| memory.resident as f64;
    page.values(&[
        Row::new("from the process's start to the last Webhook's key, s", 2, begun.keys.as_secs_f64()),
        Row::new("from the process's start to all Ready, s", 2, begun.ready.as_secs_f64()),
        Row::new("resident without Webhooks, MiB", 1, kib(without) / 1024.0),
        Row::new(format!("resident with {webhooks} Webhooks, MiB"), 1, kib(with) / 1024.0),
        Row::new("– per Webhook, KiB", 1, (kib(with) - kib(without)) / f64::from(webhooks + 1)),
    ]);
    page.spread(&[
        Row::highest("cold start to Ready, ms", 1, cold.clone()),
        Row::highest("edit → first POST at the new URL, ms", 1, edit_first.clone()).at_most(1000.0, true),
        Row::highest("edit → last POST at the old URL, ms", 1, edit_last.clone()).at_most(1000.0, true),
    ]);
    at_rest(&mut page, calls, *rest);
    page
}

/// The operator's calls to the apiserver at rest.
fn at_rest(page: &mut Page, calls: &Calls, rest: Duration) {
    let per_minute = |count: u64| count as f64 * 60.0 / rest.as_secs_f64();
    let head = format!(
        "\nCalls of the operator to the apiserver at rest, as it counts them, over {:.0} s:\n",
        rest.as_secs_f64()
    );
    page.text.push_str(&head);
    page.text.push_str("\n| verb | resource | per minute |\n|---|---|---|\n");
    for ((verb, resource), count) in calls {
        let _ = writeln!(page.text, "| {verb} | {resource} | {:.1} |", per_minute(*count));
    }
    let _ = writeln!(page.text, "| all | | {:.1} |", per_minute(calls.values().sum()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_at_rest_are_told_by_the_minute() {
        let call = |verb: &str, resource: &str, count| ((verb.to_owned(), resource.to_owned()), count);
        let before = Calls::from([call("get", "secrets", 2000), call("update", "leases", 5)]);
        let after = Calls::from([call("get", "secrets", 2000), call("update", "leases", 11)]);
        let mut page = Page::new("");
        at_rest(&mut page, &subtract(after, &before), Duration::from_secs(30));
        assert!(page.text.contains("| update | leases | 12.0 |\n| all | | 12.0 |\n"), "{}", page.text);
        assert!(!page.text.contains("secrets"));
    }
}
