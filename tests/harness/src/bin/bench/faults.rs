//! Counts lost and repeated deliveries under faults: the operator killed under load, and a failing endpoint.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    Bench, Stage, WARM_UP,
    load::Phase,
    page::{Page, Row},
    receiver::{self, Post},
    subject::{Scene, Subject},
    tally::{Reckoning, Tally},
    watch::Sighting,
};

const JOBS: u32 = 1000;
const RATE: u32 = 50;
const DOWN: Duration = Duration::from_secs(3);
/// Percentage of responses that are 500.
const FAILING: u64 = 30;
/// A delivery counts as lost if it is still missing after this time without any arrival.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the operator or the floor sends to: a port, and the POSTs that arrive there.
struct End {
    port: u16,
    posts: mpsc::Receiver<Post>,
}

#[derive(Default)]
struct Sums {
    killed: Reckoning,
    failing: Reckoning,
    /// From the new process's start to the first POST, in milliseconds.
    back: f64,
}

pub async fn run(bench: &Bench) -> Result<Page, String> {
    let stage = bench.stage(JOBS, Phase::Pending).await;
    let scene = bench.scene(&stage);
    let (_unwatched, sightings) = mpsc::channel();
    let end = |name: &str, percent| {
        let (port, posts) = receiver::start_failing(name, percent);
        End { port, posts }
    };
    let (sound, failing) = (end("sound", 0), end("failing", FAILING));
    let (mut operator, mut floor) = (Sums::default(), Sums::default());
    for round in 1..=bench.args.rounds {
        for is_operator in [true, false] {
            let sums = if is_operator { &mut operator } else { &mut floor };
            let name = if is_operator { "operator" } else { "floor" };
            let subscribe = |end: &End, spec| {
                if is_operator {
                    scene.apply(&scene.webhook("bench", end.port, &spec));
                }
            };
            bench.say(&format!("{name} {round}: killed and down for {} s", DOWN.as_secs()));
            subscribe(&sound, json!({}));
            let (reckoning, back) = killed(bench, &stage, &scene, is_operator, &sound, &sightings).await?;
            bench.say(&format!("{name} {round}: {reckoning:?}, back after {back:.0} ms"));
            sums.killed += reckoning;
            sums.back = sums.back.max(back);
            bench.say(&format!("{name} {round}: {FAILING}% of answers are 500"));
            let backoff = json!({"initial": "100ms", "factor": 2, "max": "1s"});
            subscribe(&failing, json!({"delivery": {"maxRetries": 12, "backoff": backoff}}));
            let reckoning = failed(bench, &stage, &scene, is_operator, &failing, &sightings).await?;
            bench.say(&format!("{name} {round}: {reckoning:?}"));
            sums.failing += reckoning;
        }
    }
    Ok(page(&operator, &floor))
}

async fn start(stage: &Stage, scene: &Scene<'_>, is_operator: bool, port: u16) -> Subject {
    if is_operator { scene.start_operator(&stage.client).await.0 } else { scene.start_floor(port).await.0 }
}

async fn killed(
    bench: &Bench,
    stage: &Stage,
    scene: &Scene<'_>,
    is_operator: bool,
    end: &End,
    sightings: &mpsc::Receiver<Sighting>,
) -> Result<(Reckoning, f64), String> {
    let mut subject = start(stage, scene, is_operator, end.port).await;
    let mut tally = Tally::new(sightings, &end.posts, scene.secret, JOBS);
    tally.reckon(&stage.load.steady(RATE, WARM_UP).await.transitions, PATIENCE).await?;
    let length = Duration::from_secs(bench.args.seconds) * 2 / 3;
    let load = stage.load.clone();
    let driven = tokio::spawn(async move { load.steady(RATE, length).await });
    tokio::time::sleep(length / 3).await;
    subject.kill();
    tokio::time::sleep(DOWN).await;
    let again = Instant::now();
    subject = match subject {
        Subject::Operator(mut operator) => {
            operator.restart();
            Subject::Operator(operator)
        }
        Subject::Floor(_) => scene.start_floor(end.port).await.0,
    };
    let driven = driven.await.map_err(|error| error.to_string())?;
    let reckoning = tally.reckon(&driven.transitions, PATIENCE).await?;
    let back = tally.first_since(again).map_or(f64::NAN, |at| at.duration_since(again).as_secs_f64() * 1e3);
    subject.stop();
    Ok((reckoning, back))
}

async fn failed(
    bench: &Bench,
    stage: &Stage,
    scene: &Scene<'_>,
    is_operator: bool,
    end: &End,
    sightings: &mpsc::Receiver<Sighting>,
) -> Result<Reckoning, String> {
    let subject = start(stage, scene, is_operator, end.port).await;
    let mut tally = Tally::new(sightings, &end.posts, scene.secret, JOBS);
    let driven = stage.load.steady(RATE, Duration::from_secs(bench.args.seconds) / 2).await;
    let reckoning = tally.reckon(&driven.transitions, PATIENCE).await?;
    subject.stop();
    Ok(reckoning)
}

fn page(operator: &Sums, floor: &Sums) -> Page {
    let transitions = operator.killed.transitions;
    let mut page = Page::new(format!(
        "
Under {RATE} transitions a second the process is killed with -9, is down for {} s, and is started again: lost is what was
never acknowledged ({transitions} transitions in all), repeated what was acknowledged more than once. The endpoint that
fails answers {FAILING}% of all requests with 500; the Webhook retries after 100 ms, doubling up to 1 s.
",
        DOWN.as_secs()
    ));
    let count =
        |figure: &str, of: fn(&Sums) -> usize| Row::new(figure, 0, of(operator) as f64).beside(of(floor) as f64);
    page.table(
        "floor",
        &[
            count("lost over kill -9 and 3 s down", |sums| sums.killed.lost).at_most(0.0, true),
            count("repeated over kill -9 and 3 s down", |sums| sums.killed.repeats),
            Row::new("from the new process to its first POST, longest, ms", 0, operator.back).beside(floor.back),
            count("lost when 30% of answers are 500", |sums| sums.failing.lost).at_most(0.0, true),
            count("repeated when 30% of answers are 500", |sums| sums.failing.repeats),
        ],
    );
    page
}
