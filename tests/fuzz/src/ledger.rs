//! A segment of the ledger: it is read within bounds or rejected.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::operator::{Operator, now};
use llmtune_api::ledger_segment::{LedgerSegmentSpec, SegmentKind};
use llmtune_core::{
    engine::Engine,
    event::{
        EventType,
        object::{Object, Uid, WatchId},
        observation::WatchEvent,
    },
    ledger::journal::{Found, LedgerLayout, Recovered, Segment, open},
};

const HOME: Uid = Uid::from_u128(99);
const SHAPE: LedgerLayout = LedgerLayout { ring: 16, shards: 2, limit: 1 << 16 };

/// Opens a ledger. The first byte selects the form: one segment in base64, one as zstd, or several as JSON, one per
/// line. The ledger is rejected, or a leader continues it and writes segments that the next leader can read.
pub fn ledger(input: &[u8]) {
    let Some((how, rest)) = input.split_first() else { return };
    let segments = match how % 3 {
        0 => vec![journal(1, String::from_utf8_lossy(rest).into_owned())],
        1 => vec![journal(1, STANDARD.encode(rest))],
        _ => texts(rest),
    };
    go_on(segments.into_iter().map(|segment| (segment.name.clone(), segment)).collect());
}

fn journal(sequence: u64, data: String) -> Segment {
    let (name, after) = (format!("journal-1-{sequence:03}"), if sequence == 1 { 0 } else { 7 });
    let (kind, bytes) = (SegmentKind::Journal, data.len() as u64);
    let spec = LedgerSegmentSpec { kind, epoch: 1, term: 1, leader: 7, after, sequence, records: 0, bytes, data };
    Segment { name, spec }
}

/// A line with a `shard` member is a snapshot as of the segment before it.
fn texts(lines: &[u8]) -> Vec<Segment> {
    let mut last = 0;
    let lines = lines.split(|byte| *byte == b'\n').take(SHAPE.ring as usize - 4);
    let segments = lines.map(|line| {
        let data = STANDARD.encode(zstd::bulk::compress(line, 1).unwrap());
        let text = String::from_utf8_lossy(line);
        if let Some((_, shard)) = text.split_once("\"shard\":") {
            let name = format!("snapshot-1-{:02}", u8::from(shard.starts_with('1')));
            let spec = LedgerSegmentSpec { kind: SegmentKind::Snapshot, after: 0, ..journal(last, data).spec };
            return Segment { name, spec };
        }
        last += 1;
        journal(last, data)
    });
    segments.collect()
}

fn go_on(mut kept: BTreeMap<String, Segment>) {
    let found = |kept: &BTreeMap<String, Segment>| -> Vec<Found> {
        kept.values().map(|segment| Found { segment: segment.clone(), version: "1".into() }).collect()
    };
    let (mut journal, memory) = match open(&found(&kept), HOME, SHAPE, 8) {
        Recovered::Ledger(journal, memory) => (*journal, *memory),
        Recovered::NoLedger { why, .. } => return assert!(!why.to_string().is_empty()),
    };
    let names: Vec<String> = memory.watches.iter().map(|watch| watch.entry.watch.clone()).collect();
    let mut operator = Operator(Engine::recover(None, 1, SHAPE.shards, memory, now()));
    for (number, name) in (0..).zip(&names) {
        operator.0.add_watch(WatchId(number), "source", name, false);
    }
    operator.0.forget_other_watches();
    operator.subscribe();
    operator.observe(WatchEvent::ListBegun);
    let job = Object::of_event(EventType::TrainingStarted, Uid::from_u128(7), "ns".into(), "a".into());
    operator.observe(WatchEvent::Seen(Box::new(job)));
    operator.observe(WatchEvent::ListEnded(1 << 60));
    for _ in 0..32 {
        if operator.attempt_all(|_| {}) == 0 {
            break;
        }
    }
    let claim = journal.claim().unwrap();
    let flush = operator.0.flush(&[0, 1], usize::MAX);
    let Ok(written) = journal.lay_out(flush) else { return };
    operator.0.flush_committed();
    for segment in std::iter::once(claim).chain(written) {
        kept.insert(segment.name.clone(), segment);
    }
    if let Recovered::NoLedger { why, .. } = open(&found(&kept), HOME, SHAPE, 9) {
        panic!("what was written cannot be read: {why}");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{body::job, seeds};
    use llmtune_core::ledger::journal::Journal;

    proptest! {
        #![proptest_config(seeds::cases(3000))]

        #[test]
        fn mutated_ledgers_are_refused_or_continue(input in seeds::mutated("ledger")) {
            ledger(&input);
        }
    }

    /// Returns printable, incompressible characters for a JSON string.
    fn noise(length: usize) -> String {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b'!' + ((state >> 33) % 94) as u8)
        };
        std::iter::repeat_with(next).filter(|sign| !matches!(sign, '"' | '\\')).take(length).collect()
    }

    #[test]
    fn largest_objects_fit_into_segments() {
        let metrics: Vec<String> =
            (0..7).map(|number| format!("\"m{number}\":\"{}\"", noise(221_000 + number))).collect();
        let of_metrics = format!(r#"{{"phase":"Running","metrics":{{{}}}}}"#, metrics.join(","));
        let of_message = format!(r#"{{"phase":"Running","message":"{}"}}"#, noise(1_548_000));
        for (status, truncated) in [(of_metrics, true), (of_message, false)] {
            let mut operator = Operator::new();
            operator.observe(WatchEvent::Seen(Box::new(job(2, r#"{"phase":"Pending"}"#).unwrap())));
            operator.observe(WatchEvent::Seen(Box::new(job(3, &status).unwrap())));
            operator.attempt_all(|attempt| assert_eq!(attempt.event.body.is_truncated(), truncated));
            let shape = LedgerLayout { shards: 2, ..LedgerLayout::default() };
            let mut journal = Journal::begin(HOME, 1, shape, 7);
            let segments = journal.lay_out(operator.0.flush(&[0, 1], usize::MAX)).unwrap();
            let largest = segments.iter().map(|segment| segment.spec.data.len()).max().unwrap();
            // The maximum of the custom resource definition; etcd's is 1.5 MiB.
            assert!(largest <= 1_500_000, "{largest}");
            let found: Vec<Found> =
                segments.into_iter().map(|segment| Found { segment, version: "1".into() }).collect();
            let Recovered::Ledger(_, memory) = open(&found, HOME, shape, 8) else { panic!("it is ours") };
            let mut records = memory.watches[0].records.iter().flat_map(HashMap::values);
            assert!(records.any(|record| record.last.is_some()), "its going can be told");
        }
    }
}
