//! Draws the last hour of a Webhook: deliveries above a line, failed attempts below it, health in a strip at the
//! bottom. Shapes carry the meaning, not colors alone. Pure.

use std::fmt::Write;

use maud::{Markup, html};

use super::history::{Health, Hour, MINUTES, Minute};

/// Width of a minute, and of the bar in it.
const STEP: usize = 4;
const BAR: usize = 3;
/// Position of the line, and the maximum height of bars above and below it.
const LINE: u64 = 24;
const ABOVE: u64 = 23;
const BELOW: u64 = 11;
/// Position of the strip. A failing minute fills it; a healthy minute is a thin stroke.
const STRIP: u64 = 40;
const FAILING: u64 = 6;
const HEALTHY: u64 = 2;

/// Draws the hour. `label` names its Webhook.
pub fn chart(hour: &Hour, label: &str) -> Markup {
    let most = |count: fn(&Minute) -> u64| hour.minutes.iter().map(count).max().unwrap_or_default();
    let above = bars(hour, most(|minute| minute.delivered), ABOVE, |minute| minute.delivered, |height| LINE - height);
    let below = bars(hour, most(|minute| minute.failed), BELOW, |minute| minute.failed, |_| LINE + 1);
    let strip = |health: Health, height: u64| {
        path(
            hour.minutes
                .iter()
                .enumerate()
                .filter(|(_, minute)| minute.health == health)
                .map(|(place, _)| (place * STEP, STRIP + FAILING - height, STEP, height)),
        )
    };
    html! {
        svg.chart viewBox={ "0 0 " (MINUTES * STEP) " 46" } preserveAspectRatio="none" role="img" aria-label={ (label) ", last hour: " (told(hour)) } {
            path.line d={ "M0 " (LINE) "h" (MINUTES * STEP) "v1H0z" } {}
            path.good d=(above) {}
            path.bad d=(below) {}
            path.good d=(strip(Health::Healthy, HEALTHY)) {}
            path.bad d=(strip(Health::Failing, FAILING)) {}
        }
    }
}

/// Describes the hour in words.
pub fn told(hour: &Hour) -> String {
    let sum = |count: fn(&Minute) -> u64| hour.minutes.iter().map(count).fold(0, u64::saturating_add);
    let failing = hour.minutes.iter().filter(|minute| minute.health == Health::Failing).count();
    let failed = match sum(|minute| minute.failed) {
        1 => "1 failed attempt".to_owned(),
        number => format!("{number} failed attempts"),
    };
    let failing = match failing {
        0 => String::new(),
        1 => ", failing during 1 minute".to_owned(),
        number => format!(", failing during {number} minutes"),
    };
    format!("{} delivered, {failed}{failing}", sum(|minute| minute.delivered))
}

fn bars(hour: &Hour, most: u64, space: u64, count: impl Fn(&Minute) -> u64, top: impl Fn(u64) -> u64) -> String {
    path(hour.minutes.iter().enumerate().filter(|(_, minute)| count(minute) > 0).map(|(place, minute)| {
        // A count of one stays visible, however large the maximum is.
        let height = (u128::from(count(minute)) * u128::from(space) / u128::from(most)) as u64;
        let height = height.max(2);
        (place * STEP, top(height), BAR, height)
    }))
}

/// A path of rectangles, each with its left and top edges, width and height.
fn path(rectangles: impl Iterator<Item = (usize, u64, usize, u64)>) -> String {
    rectangles.fold(String::new(), |mut path, (left, top, width, height)| {
        let _ = write!(path, "M{left} {top}h{width}v{height}h-{width}z");
        path
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn hour(newest: &[Minute]) -> Hour {
        let mut minutes = [Minute::default(); MINUTES];
        minutes[MINUTES - newest.len()..].copy_from_slice(newest);
        Hour { minutes, since: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn label_describes_the_hour_in_words() {
        let quiet = hour(&[]);
        assert_eq!(told(&quiet), "0 delivered, 0 failed attempts");
        let busy = [
            Minute { delivered: 7, failed: 0, health: Health::Healthy },
            Minute { delivered: 0, failed: 1, health: Health::Failing },
        ];
        let drawn = chart(&hour(&busy), "ci").into_string();
        assert!(
            drawn.contains("aria-label=\"ci, last hour: 7 delivered, 1 failed attempt, failing during 1 minute\""),
            "{drawn}"
        );
        for bar in ["M232 1h3v23h-3z", "M236 25h3v11h-3z", "M232 44h4v2h-4z", "M236 40h4v6h-4z"] {
            assert!(drawn.contains(bar), "{bar}: {drawn}");
        }
    }

    #[test]
    fn bars_stay_within_the_chart() {
        for (delivered, failed) in [(u64::MAX, 1), (1, u64::MAX), (0, 0)] {
            let minutes = [
                Minute { delivered, failed, health: Health::Unknown },
                Minute { delivered: 1, failed: 1, health: Health::Unknown },
            ];
            let drawn = chart(&hour(&minutes), "ci").into_string();
            assert!(drawn.contains("M236 22h3v2h-3z") || delivered < u64::MAX, "a bar of one stays visible: {drawn}");
        }
    }
}
