//! Checks that memory does not grow over half an hour of constant load. Fails if an event is lost or delivered twice.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use crate::{
    Bench, WARM_UP,
    load::Phase,
    page::{Page, Row},
    receiver,
    subject::{cpu, memory},
    tally::Tally,
};

/// A record remembers its job's last 32 runs. With this few jobs, each has run that often before the end of the first
/// quarter.
const JOBS: u32 = 500;
const RATE: u32 = 100;
const EVERY: Duration = Duration::from_secs(10);
/// Number of samples in a shorter run.
const SAMPLES: u32 = 40;
const PATIENCE: Duration = Duration::from_secs(30);
/// Allowed ratio of the last quarter to the second, in addition to the variation within the second.
const TOLERANCE: f64 = 1.05;

/// Memory at one moment, in MiB.
struct Sample {
    /// Hours since the load began.
    at: f64,
    resident: f64,
    anonymous: f64,
}

/// Statistics of the samples of one quarter.
#[derive(Clone, Copy, Debug)]
struct Quarter {
    mean: f64,
    deviation: f64,
}

pub async fn run(bench: &Bench) -> Result<Page, String> {
    let args = &bench.args;
    let length = if args.quick { Duration::from_secs(args.seconds) } else { Duration::from_mins(args.soak_minutes) };
    let every = EVERY.min(length / SAMPLES);
    let stage = bench.stage(JOBS, Phase::Pending).await;
    let scene = bench.scene(&stage);
    let (port, posts) = receiver::start("receiver");
    scene.subscribe(port);
    let (operator, _) = scene.start(&stage.client, &scene.options().await).await;
    let (_unwatched, sightings) = mpsc::channel();
    let mut tally = Tally::new(&sightings, &posts, scene.secret, JOBS);
    tally.reckon(&stage.load.steady(RATE, WARM_UP).await.transitions, PATIENCE).await?;

    bench.say(&format!("{RATE}/s for {} s, a sample every {:.1} s", length.as_secs(), every.as_secs_f64()));
    let load = stage.load.clone();
    let (begun, cpu_before) = (Instant::now(), cpu(&operator.process));
    let driven = tokio::spawn(async move { load.steady(RATE, length).await });
    let mut samples = Vec::new();
    while !driven.is_finished() {
        tokio::time::sleep(every).await;
        let (at, memory) = (begun.elapsed().as_secs_f64() / 3600.0, memory(&operator.process));
        let [resident, anonymous] = [memory.resident, memory.anonymous].map(|kib| kib as f64 / 1024.0);
        samples.push(Sample { at, resident, anonymous });
        if samples.len() % 30 == 0 {
            bench.say(&format!("{resident:.1} MiB resident, {anonymous:.1} MiB anonymous"));
        }
        tally.drain()?;
    }
    let driven = driven.await.map_err(|error| error.to_string())?;
    let cpu = cpu(&operator.process).saturating_sub(cpu_before);
    let came = tally.reckon(&driven.transitions, PATIENCE).await?;
    if came.lost + came.repeats > 0 {
        return Err(format!("{came:?}\n{}", operator.process.log_tail()));
    }
    Ok(page(&samples, came.transitions, driven.elapsed, cpu))
}

fn page(samples: &[Sample], deliveries: usize, elapsed: Duration, cpu: Duration) -> Page {
    let mut page = Page::new(format!(
        "
{JOBS} jobs, one Webhook, and {:.1} minutes at {RATE}/s; a sample every ten seconds. Memory grows if the mean of the last quarter
exceeds that of the second by more than {:.0}% and twice the second's standard deviation: in the first quarter caches and
histories still fill. The slope is that of the straight line closest to the samples of the last three quarters. Every
transition arrived exactly once with a valid signature, or there were no figures.
",
        elapsed.as_secs_f64() / 60.0,
        (TOLERANCE - 1.0) * 100.0,
    ));
    let resident = quarters(samples, |sample| sample.resident);
    let anonymous = quarters(samples, |sample| sample.anonymous);
    let settled = &samples[samples.len() / 4..];
    page.values(&[
        Row::new("deliveries", 0, deliveries as f64),
        Row::new("rate reached, per s", 1, deliveries as f64 / elapsed.as_secs_f64()),
        Row::new("CPU per delivery, µs", 0, cpu.as_secs_f64() * 1e6 / deliveries as f64),
        Row::new("resident, mean of the first quarter, MiB", 2, resident[0].mean),
        Row::new("resident, mean of the second quarter, MiB", 2, resident[1].mean),
        Row::new("resident, mean of the last quarter, MiB", 2, resident[3].mean).at_most(limit(resident[1]), true),
        Row::new("– slope, MiB per hour", 2, slope(settled, |sample| sample.resident)),
        Row::new("anonymous, mean of the first quarter, MiB", 2, anonymous[0].mean),
        Row::new("anonymous, mean of the second quarter, MiB", 2, anonymous[1].mean),
        Row::new("anonymous, mean of the last quarter, MiB", 2, anonymous[3].mean).at_most(limit(anonymous[1]), true),
        Row::new("– slope, MiB per hour", 2, slope(settled, |sample| sample.anonymous)),
    ]);
    page
}

fn quarters(samples: &[Sample], of: fn(&Sample) -> f64) -> [Quarter; 4] {
    [0, 1, 2, 3].map(|number| {
        let [begin, end] = [number, number + 1].map(|quarter| quarter * samples.len() / 4);
        let values: Vec<f64> = samples[begin..end].iter().map(of).collect();
        let mean = mean(values.iter().copied());
        let deviation = self::mean(values.iter().map(|value| (value - mean).powi(2))).sqrt();
        Quarter { mean, deviation }
    })
}

/// The upper bound of the last quarter's mean, rounded as it is shown.
fn limit(second: Quarter) -> f64 {
    let limit = second.mean * TOLERANCE + 2.0 * second.deviation;
    (limit * 100.0).round() / 100.0
}

/// The slope of the least-squares line, per hour.
fn slope(samples: &[Sample], of: fn(&Sample) -> f64) -> f64 {
    let (at, value) = (mean(samples.iter().map(|sample| sample.at)), mean(samples.iter().map(of)));
    let product = mean(samples.iter().map(|sample| (sample.at - at) * (of(sample) - value)));
    product / mean(samples.iter().map(|sample| (sample.at - at).powi(2)))
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half an hour with a sample every ten seconds and this growth per hour.
    fn samples(growth: f64, noise: f64) -> Vec<Sample> {
        let sample = |number: u32| {
            let at = f64::from(number) / 360.0;
            let resident = 20.0 + growth * at + if number.is_multiple_of(2) { noise } else { -noise };
            Sample { at, resident, anonymous: resident }
        };
        (1..=180).map(sample).collect()
    }

    fn missed(samples: &[Sample]) -> usize {
        page(samples, 180_000, Duration::from_mins(30), Duration::from_secs(60)).missed.len()
    }

    #[test]
    fn memory_that_grows_misses_its_target_and_noise_does_not() {
        assert_eq!(missed(&samples(0.0, 0.5)), 0);
        assert_eq!(missed(&samples(-8.0, 0.0)), 0);
        assert_eq!(missed(&samples(20.0, 0.1)), 2);
    }

    #[test]
    fn the_slope_is_that_of_the_samples() {
        assert!((slope(&samples(3.0, 0.0), |sample| sample.resident) - 3.0).abs() < 1e-9);
        assert!(slope(&samples(0.0, 0.0), |sample| sample.resident).abs() < 1e-9);
    }

    #[test]
    fn what_was_not_sampled_reaches_nothing() {
        assert_eq!(missed(&[]), 2);
    }
}
