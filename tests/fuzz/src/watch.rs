//! A line of a watch, for each source.

use std::sync::{Arc, LazyLock};

use prometheus::IntCounter;
use serde_json::json;

use super::operator::{Operator, assert_well_formed};
use llmtune_core::event::observation::WatchEvent;
use llmtune_webhooks::source::{
    Source,
    custom_source::{CustomSource, Failures, Mapping},
    deployment::Deployments,
    frame::{Line, Lines, LongLine, read_line},
    owners::WatchedKinds,
    training_job::TrainingJobs,
};

/// The maximum length of a line in this target.
const LONGEST: usize = 4096;

static MAPPED: LazyLock<CustomSource> = LazyLock::new(|| {
    let spec = json!({
        "resource": {"apiVersion": "batch/v1", "kind": "Job"},
        "lifecycle": "Training",
        "stages": [
            {"stage": "Completed", "when": "object.status.phase == 'Completed'"},
            {"stage": "Running", "when": "has(object.status.phase) || object.spec.replicas > 0"},
        ],
        "data": {
            "jobId": "object.metadata.labels['id']", "baseModel": "object.spec.baseModel", "metrics": "object.status.metrics",
            "startedAt": "object.status.startedAt", "message": "object.status.message",
        },
    });
    let mapping = Mapping::compile("jobs", &serde_json::from_value(spec).unwrap()).unwrap();
    let failures = Arc::new(Failures::new(IntCounter::new("errors", "of a source").unwrap()));
    CustomSource::new(Arc::new(mapping), WatchedKinds::default(), failures)
});

/// The bytes of a watch, in pieces whose size the first byte determines. The lines do not depend on the pieces, the
/// buffer never exceeds the longest line, and the messages of the objects' events meet their contract.
pub fn watch(input: &[u8]) {
    let Some((length, rest)) = input.split_first() else { return };
    let pieces = rest.chunks(usize::from(*length) * 4 + 1);
    let cut = lines(pieces);
    let whole = lines(std::iter::once(rest));
    assert_eq!(cut, whole);
    for line in cut.iter().flatten() {
        follow(&TrainingJobs::default(), line);
        follow(&Deployments::default(), line);
        follow(&*MAPPED, line);
    }
}

/// Returns the lines up to the first one that is too long.
fn lines<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Result<Vec<u8>, LongLine>> {
    let mut lines = Lines::of(LONGEST);
    let mut found = Vec::new();
    for piece in pieces {
        lines.push(piece);
        loop {
            match lines.next_line() {
                Ok(Some(line)) => found.push(Ok(line.to_vec())),
                Ok(None) => break,
                Err(error) => {
                    found.push(Err(error));
                    return found;
                }
            }
        }
    }
    found
}

/// Observes the object of a line twice, and then its deletion.
fn follow(source: &impl Source, line: &[u8]) {
    let malformed = IntCounter::new("malformed", "objects").unwrap();
    let mut operator = Operator::new();
    match read_line(source, line, &malformed, true) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(Line::Bookmark(version)) => operator.observe(WatchEvent::Bookmark(version)),
        Ok(Line::Ended(_)) => {}
        Ok(Line::Seen(Err(unreadable)) | Line::Deleted(Err(unreadable))) => {
            assert_eq!(malformed.get(), 1);
            if let Some(unreadable) = unreadable {
                operator.observe(WatchEvent::Vanished(unreadable.uid));
            }
        }
        Ok(Line::Seen(Ok(object)) | Line::Deleted(Ok(object))) => {
            operator.observe(WatchEvent::Seen(Box::new(object.clone())));
            operator.observe(WatchEvent::Seen(Box::new(object.clone())));
            operator.observe(WatchEvent::Deleted(Box::new(object)));
        }
    }
    operator.attempt_all(assert_well_formed);
    let _ = operator.0.flush(&[0, 1], usize::MAX);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seeds;

    proptest! {
        #![proptest_config(seeds::cases(3000))]

        #[test]
        fn mutated_watches_are_read_as_far_as_possible(input in seeds::mutated("watch")) {
            watch(&input);
        }

        #[test]
        fn lines_do_not_depend_on_chunks(
            input in prop::collection::vec(prop_oneof![4 => any::<u8>(), 1 => Just(b'\n')], 0..300), pieces in 1..40_usize,
        ) {
            prop_assert_eq!(lines(input.chunks(pieces)), lines(std::iter::once(&input[..])));
        }
    }

    #[test]
    fn endless_line_is_bounded() {
        let mut lines = Lines::of(LONGEST);
        let mut pushed = 0;
        while lines.next_line() == Ok(None) {
            lines.push(&[b'x'; 100]);
            pushed += 100;
        }
        assert!(lines.next_line().is_err() && pushed <= LONGEST + 100, "{pushed}");
    }
}
