//! Measures a million pending deliveries in process: memory, and the duration of the engine's steps with them.

use crate::{
    Bench,
    criterion::{Estimates, Routine, Unit},
    page::{Page, Row},
};

const ROUTINES: [Routine; 4] = [
    Routine { path: "pending/observe", name: "`observe`: an event for one Webhook", unit: Unit::Micros },
    Routine { path: "pending/due", name: "`due`: the next attempt", unit: Unit::Micros },
    Routine { path: "pending/settle", name: "`settle`: an acknowledged attempt", unit: Unit::Micros },
    Routine {
        path: "pending/flush",
        name: "`flush` and `lay_out`, with one of 64 parts of the snapshot",
        unit: Unit::Millis,
    },
];

/// The memory that the benchmark process reports.
#[derive(Debug, PartialEq)]
struct MemoryReport {
    deliveries: u64,
    before: u64,
    after: u64,
}

pub fn run(bench: &Bench) -> Result<Page, String> {
    let deliveries = if bench.args.quick { 20_000 } else { 1_000_000 };
    let variables = [("PENDING_DELIVERIES", deliveries.to_string())];
    let estimates = tokio::task::block_in_place(|| Estimates::measure(bench, "pending", &variables))?;
    let report =
        estimates.output.lines().find_map(MemoryReport::read).ok_or("the benchmark does not tell its memory")?;
    if report.deliveries != deliveries {
        return Err(format!("of {deliveries} deliveries {} are pending", report.deliveries));
    }
    let mut page = Page::new(
        "
In one process without apiserver, ledger or network (`tests/micro/benches/pending.rs`, measured by criterion): 1,000
Webhooks have deliveries of the same events, within the bound on stored events. Every tenth delivery has failed once and
waits for its retry. Memory is that of the process with the Webhooks, before and after the deliveries. A flush writes 50
events for one more Webhook, and 50 acknowledgments of shared events, each with all its deliveries.
",
    );
    let MemoryReport { before, after, .. } = report;
    let bytes = after.saturating_sub(before) as f64 * 1024.0 / deliveries as f64;
    page.values(&[
        Row::new("pending deliveries", 0, deliveries as f64),
        Row::new("resident without them, MiB", 1, before as f64 / 1024.0),
        Row::new("resident with them, MiB", 1, after as f64 / 1024.0),
        Row::new("– per delivery, bytes", 0, bytes),
    ]);
    estimates.table(&mut page, &ROUTINES)?;
    Ok(page)
}

impl MemoryReport {
    fn read(line: &str) -> Option<Self> {
        let mut numbers = line.strip_prefix("pending: ")?.split(", ").map(|part| part.split(' ').next()?.parse().ok());
        Some(Self { deliveries: numbers.next()??, before: numbers.next()??, after: numbers.next()?? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_process_tells_is_read() {
        let report = MemoryReport::read("pending: 1000000 deliveries, 6000 KiB before, 300000 KiB after");
        assert_eq!(report, Some(MemoryReport { deliveries: 1_000_000, before: 6000, after: 300_000 }));
        assert_eq!(MemoryReport::read("pending/due  time: [1 µs 2 µs 3 µs]"), None);
    }
}
