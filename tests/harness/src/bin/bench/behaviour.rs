//! Measures how soon a change takes effect: an edit, a graceful handover, a takeover, a new Secret.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use kube::{
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::Request,
};
use llmtune_webhooks_harness::operator::Operator;
use serde_json::json;

use crate::{
    Bench, Stage,
    handover::{self, End},
    load::Phase,
    page::{Page, Row},
    receiver::{self, Post},
    subject::Scene,
    tally::{Reckoning, Tally},
};

const JOBS: u32 = 1000;
const RATE: u32 = 100;
const LEASE: Duration = Duration::from_secs(6);
/// Edits per round.
const EDITS: u32 = 2;

/// A receiver of POSTs.
pub struct Inbox {
    pub port: u16,
    posts: mpsc::Receiver<Post>,
}

impl Inbox {
    pub fn open(name: &str) -> Self {
        let (port, posts) = receiver::start(name);
        Self { port, posts }
    }
}

/// Durations in milliseconds.
#[derive(Default)]
struct Times {
    edit_first: Vec<f64>,
    edit_last: Vec<f64>,
    heal: Vec<f64>,
    handover: Vec<f64>,
    takeover: Vec<f64>,
    handed_over: Reckoning,
    taken_over: Reckoning,
}

pub async fn run(bench: &Bench) -> Result<Page, String> {
    let stage = bench.stage(JOBS, Phase::Pending).await;
    let scene = bench.scene(&stage);
    let (here, there) = (Inbox::open("here"), Inbox::open("there"));
    scene.subscribe(here.port);
    let options = scene.options().await.argument(&format!("--lease-duration={}s", LEASE.as_secs()));
    let (mut one, _) = scene.start(&stage.client, &options.clone().identity("one")).await;
    let mut two = Operator::start(&stage.plane, &options.identity("two")).await;
    two.wait_readyz("standby", Duration::from_secs(30)).await;

    let mut times = Times::default();
    for round in 1..=bench.args.rounds {
        bench.say(&format!("edits {round}"));
        for _ in 0..EDITS {
            let (first, last) = edit(&stage, &here, &there).await?;
            times.edit_first.push(first);
            times.edit_last.push(last);
            edit(&stage, &there, &here).await?;
        }
        bench.say(&format!("a Secret that appears {round}"));
        times.heal.push(heal(&stage, &scene, &there, round).await?);
        here.posts.try_iter().for_each(drop);
        let (_unwatched, sightings) = mpsc::channel();
        let mut tally = Tally::new(&sightings, &here.posts, scene.secret, JOBS);
        for how in [End::Told, End::Killed] {
            bench.say(&format!("{} {round}", if how == End::Told { "graceful handover" } else { "kill -9" }));
            let length = if how == End::Told { Duration::from_secs(4) } else { LEASE + Duration::from_secs(6) };
            let came = handover::end(&mut one, Some(&two), how, &stage.load, (RATE, length), &mut tally).await?;
            std::mem::swap(&mut one, &mut two);
            let gap = came.gap.as_secs_f64() * 1e3;
            bench.say(&format!("first POST after {gap:.0} ms; {:?}", came.reckoning));
            let (gaps, sum) = match how {
                End::Told => (&mut times.handover, &mut times.handed_over),
                End::Killed => (&mut times.takeover, &mut times.taken_over),
            };
            gaps.push(gap);
            *sum += came.reckoning;
        }
    }
    Ok(page(&times))
}

/// Changes the Webhook's URL under load. Returns when the first POST reached the new URL and when the last one reached
/// the old URL, in milliseconds after the response to the edit.
pub async fn edit(stage: &Stage, from: &Inbox, to: &Inbox) -> Result<(f64, f64), String> {
    for end in [from, to] {
        end.posts.try_iter().for_each(drop);
    }
    let driven = tokio::spawn({
        let load = stage.load.clone();
        async move { load.steady(RATE, Duration::from_secs(2)).await }
    });
    tokio::time::sleep(Duration::from_millis(700)).await;
    let patch = Patch::Merge(json!({"spec": {"url": format!("http://127.0.0.1:{}/hook", to.port)}}));
    let webhooks = Request::new(format!("/apis/llmtune.io/v1alpha1/namespaces/{}/webhooks", stage.namespace));
    let request = webhooks.patch("bench", &PatchParams::default(), &patch).map_err(|error| error.to_string())?;
    stage.client.request_text(request).await.map_err(|error| error.to_string())?;
    let answered = Instant::now();
    let transitions = driven.await.map_err(|error| error.to_string())?.transitions.len();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let [old, new] = [from, to].map(|end| end.posts.try_iter().map(|post| post.at).collect::<Vec<_>>());
    if old.len() + new.len() != transitions {
        return Err(format!("{transitions} transitions, but {} and {} POSTs around an edit", old.len(), new.len()));
    }
    let after =
        |at: Option<&Instant>| at.map_or(f64::NAN, |at| at.saturating_duration_since(answered).as_secs_f64() * 1e3);
    Ok((after(new.iter().min()), after(old.iter().max())))
}

/// Creates a Secret that a Webhook waits for. Returns the milliseconds from the response to the first POST.
async fn heal(stage: &Stage, scene: &Scene<'_>, end: &Inbox, round: u32) -> Result<f64, String> {
    let name = format!("heal-{round}");
    scene.apply(&scene.webhook(&name, end.port, &json!({}))[1..]);
    end.posts.try_iter().for_each(drop);
    let driven = tokio::spawn({
        let load = stage.load.clone();
        async move { load.steady(RATE / 5, Duration::from_secs(8)).await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    if end.posts.try_iter().count() > 0 {
        return Err("a Webhook without its Secret does not hold its deliveries".into());
    }
    let secrets = Request::new(format!("/api/v1/namespaces/{}/secrets", stage.namespace));
    let body = serde_json::to_vec(&scene.signing_key(&name)).unwrap();
    let request = secrets.create(&PostParams::default(), body).map_err(|error| error.to_string())?;
    stage.client.request_text(request).await.map_err(|error| error.to_string())?;
    let answered = Instant::now();
    driven.await.map_err(|error| error.to_string())?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let first = end.posts.try_iter().map(|post| post.at).min().ok_or("a Webhook does not heal within 5 s")?;
    let webhooks = Request::new(format!("/apis/llmtune.io/v1alpha1/namespaces/{}/webhooks", stage.namespace));
    let request = webhooks.delete(&name, &DeleteParams::default()).map_err(|error| error.to_string())?;
    stage.client.request_text(request).await.map_err(|error| error.to_string())?;
    Ok(first.saturating_duration_since(answered).as_secs_f64() * 1e3)
}

fn page(times: &Times) -> Page {
    let lease = LEASE.as_secs();
    let mut page = Page::new(format!(
        "
Under load, from the answer to what was done (an edit of a Webhook's URL, a Secret) or from the signal, to the POST at
the receiver. Two replicas with a lease of {lease} s; a handover is SIGTERM, a takeover kill -9. Targets are those that
the project has set for its tests: an edit within a second, a handover within 2 s, a takeover within 2 s of the lease's
expiry.
"
    ));
    let row = |figure: &str, times: &[f64]| Row::highest(figure, 1, times.to_vec());
    let limit = (lease as f64 + 2.0) * 1e3;
    let Times { handed_over, taken_over, .. } = times;
    page.spread(&[
        row("edit → first POST at the new URL, ms", &times.edit_first).at_most(1000.0, true),
        row("edit → last POST at the old URL, ms", &times.edit_last).at_most(1000.0, true),
        row("Secret appears → first POST, ms", &times.heal).at_most(5000.0, true),
        row("handover: SIGTERM → first POST of the next leader, ms", &times.handover).at_most(2000.0, true),
        Row::new("– lost", 0, handed_over.lost as f64).at_most(0.0, true),
        Row::new("– repeated", 0, handed_over.repeats as f64).at_most(0.0, true),
        row("takeover: kill -9 → first POST of the next leader, ms", &times.takeover).at_most(limit, true),
        Row::new("– lost", 0, taken_over.lost as f64).at_most(0.0, true),
        Row::new("– repeated", 0, taken_over.repeats as f64),
    ]);
    page
}
