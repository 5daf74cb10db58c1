//! Measures the cost of one event in each of the operator's pure modules, in process with criterion.

use crate::{
    Bench,
    criterion::{Estimates, Routine, Unit},
    page::Page,
};

const ROUTINES: [Routine; 17] = [
    Routine { path: "observe/parse", name: "a watch's line of 3 kB, parsed into an object", unit: Unit::Micros },
    Routine { path: "observe/observe", name: "an object, observed, with one subscriber", unit: Unit::Micros },
    Routine { path: "body/open", name: "an event's body, built", unit: Unit::Micros },
    Routine { path: "body/close", name: "a body, completed for an attempt", unit: Unit::Micros },
    Routine { path: "signature/sign", name: "a body, signed", unit: Unit::Micros },
    Routine { path: "expression/document", name: "an object of 5 kB, read for expressions", unit: Unit::Micros },
    Routine { path: "expression/stage", name: "the expression of a stage, on five conditions", unit: Unit::Micros },
    Routine { path: "expression/filter", name: "a filter of two comparisons", unit: Unit::Micros },
    Routine { path: "expression/compile", name: "the expression of a stage, compiled", unit: Unit::Micros },
    Routine { path: "expression/bound_steps", name: "an expression stopped at its bound: steps", unit: Unit::Millis },
    Routine { path: "expression/bound_keys", name: "the same: keys looked up", unit: Unit::Millis },
    Routine { path: "expression/bound_strings", name: "the same: strings compared", unit: Unit::Millis },
    Routine { path: "expression/bound_simulation", name: "the same: a pattern of many states", unit: Unit::Millis },
    Routine { path: "expression/bound_json", name: "the same: a result made into JSON", unit: Unit::Millis },
    Routine {
        path: "flush/changes",
        name: "a flush of 50 changed records and 50 deliveries, laid out",
        unit: Unit::Micros,
    },
    Routine {
        path: "flush/snapshot",
        name: "the same with 100,000 records, and one of 64 parts of the snapshot",
        unit: Unit::Micros,
    },
    Routine { path: "recovery/recover", name: "a ledger of 100,000 records, opened and recovered", unit: Unit::Millis },
];

pub fn run(bench: &Bench) -> Result<Page, String> {
    let estimates = tokio::task::block_in_place(|| Estimates::measure(bench, "micro", &[]))?;
    let mut page = Page::new(
        "
In one process without apiserver, ledger or network: the functions that the operator itself calls, one after the other,
measured by criterion (`tests/micro/benches/micro.rs`). Objects have 2 kB of annotations; a flush is what
`Engine::flush` and `Journal::lay_out` do before the first PUT. Where a step changes the engine, what prepares it is not
counted.
",
    );
    estimates.table(&mut page, &ROUTINES)?;
    Ok(page)
}
