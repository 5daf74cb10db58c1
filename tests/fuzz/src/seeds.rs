//! The seeds of the fuzz targets, from the fuzzer's directory, and mutations of them.

use std::{fs, path::Path};

use bytes::Bytes;
use proptest::{prelude::*, sample::Index};

/// Runs `count` cases, or the number in `PROPTEST_CASES`.
pub(super) fn cases(count: u32) -> ProptestConfig {
    let given = std::env::var("PROPTEST_CASES").ok().and_then(|given| given.parse().ok());
    ProptestConfig::with_cases(given.unwrap_or(count))
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Returns a seed with random cuts, repetitions, moves, insertions and overwrites.
pub(super) fn mutated(target: &str) -> impl Strategy<Value = Bytes> + use<> {
    let seeds = seeds(target);
    let edit = (0..6_u8, any::<Index>(), any::<Index>(), prop::collection::vec(any::<u8>(), 1..8));
    (prop::sample::select(seeds.clone()), prop::sample::select(seeds), prop::collection::vec(edit, 0..6)).prop_map(
        |(mut bytes, other, edits)| {
            for (kind, at, length, noise) in edits {
                let at = at.index(bytes.len() + 1);
                let end = at + length.index(bytes.len() - at + 1).min(64);
                let piece = bytes[at..end].to_vec();
                match kind {
                    0 => drop(bytes.drain(at..end)),
                    1 => bytes.truncate(at),
                    2 => drop(bytes.splice(at..at, piece.repeat(usize::from(noise[0] % 8)))),
                    3 => drop(bytes.splice(at..at, noise)),
                    4 => bytes.iter_mut().skip(at).zip(noise).for_each(|(byte, new)| *byte = new),
                    _ => drop(bytes.splice(at..end, other.iter().copied().skip(at).take(end - at + 16))),
                }
            }
            Bytes::from(bytes)
        },
    )
}

type Target = (&'static str, fn(&[u8]));

#[test]
fn every_seed_is_taken_as_its_target_promises() {
    let targets: [Target; 6] = [
        ("address", super::address),
        ("body", super::body),
        ("expression", super::expression),
        ("ledger", super::ledger),
        ("retry_after", super::retry_after),
        ("watch", super::watch),
    ];
    for (target, take) in targets {
        for seed in seeds(target) {
            take(&seed);
        }
    }
}
