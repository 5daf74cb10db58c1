//! Ledgers that released operators wrote, read by this one. `tests/recorded/ledger/` has one file per release.

use std::{collections::BTreeSet, fs};

use llmtune_api::ledger_segment::LedgerSegment;
use llmtune_core::{
    event::object::Uid,
    ledger::journal::{Found, LedgerLayout, Recovered, RecoveredState, Segment, open},
};
use llmtune_webhooks_harness::{eventually, receiver::Closed, root};
use serde_json::{Value, json};

use super::{Jobs, SOON, Scene, patient, run};
use crate::sources::{deployment, rolled_out};

/// Checks the content of a ledger that [`written_ledger_is_read_as_a_recorded_one`] recorded.
fn expect(memory: &RecoveredState) {
    let records: Vec<_> =
        memory.watches.iter().flat_map(|watch| &watch.records).flat_map(|shard| shard.values()).collect();
    assert_eq!(records.len(), 3, "two jobs and a deployment: {records:#?}");
    assert!(records.iter().all(|record| record.sequence > 0));
    let events: BTreeSet<(String, &str)> = memory
        .events
        .iter()
        .map(|remembered| (remembered.event.event_type.to_string(), remembered.event.object.name.as_str()))
        .collect();
    let expected = [
        ("deployment.created", "serves"),
        ("model.deployed", "serves"),
        ("training.completed", "done"),
        ("training.started", "done"),
        ("training.started", "runs"),
    ];
    assert_eq!(events, expected.map(|(event, name)| (event.to_owned(), name)).into());
    assert_eq!(memory.unknown_events, 0);
    for remembered in &memory.events {
        let [delivery] = &remembered.deliveries[..] else { panic!("{:#?}", remembered.deliveries) };
        assert!(delivery.failed > 0 && delivery.due.is_some(), "{delivery:#?}");
    }
}

/// Opens a recorded ledger: `home` is the uid of its namespace.
fn opened(recorded: &Value) -> RecoveredState {
    let home = Uid::parse(recorded["home"].as_str().unwrap()).unwrap();
    let found: Vec<Found> = recorded["segments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            let LedgerSegment { metadata, spec } = serde_json::from_value(object.clone()).unwrap();
            Found {
                segment: Segment { name: metadata.name.unwrap(), spec },
                version: metadata.resource_version.unwrap(),
            }
        })
        .collect();
    match open(&found, home, LedgerLayout::default(), 1) {
        Recovered::Ledger(_, memory) => *memory,
        Recovered::NoLedger { why, .. } => panic!("{why}"),
    }
}

#[test]
fn ledgers_of_releases_are_read() {
    let mut read = 0;
    for file in fs::read_dir(root().join("tests/recorded/ledger")).unwrap() {
        let path = file.unwrap().path();
        println!("{}", path.display());
        expect(&opened(&serde_json::from_slice(&fs::read(path).unwrap()).unwrap()));
        read += 1;
    }
    assert!(read > 0);
}

/// Before a release, `LLMTUNE_TEST_RECORD=FILE` records the ledger that it writes.
#[test]
fn written_ledger_is_read_as_a_recorded_one() {
    run(async {
        let scene = Scene::new("recorded").await;
        scene.webhook("ci", &Closed::reserve().url(), &patient());
        let mut operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");
        let jobs = Jobs::new(&scene).await;
        for name in ["runs", "done"] {
            jobs.create(name).await;
            jobs.start(name).await;
        }
        jobs.complete("done").await;
        scene.apply(&deployment("serves", 1, "1"));
        rolled_out(&scene, "serves");
        eventually("each event was tried", SOON, || async {
            let labels = [("webhook", "ci"), ("outcome", "connect")];
            (operator.metric("llmtune_webhooks_attempts_total", &labels) as u64 >= 10).then_some(())
        })
        .await;
        // A graceful stop flushes the outcomes of the last attempts.
        operator.stop();
        let list: Value = serde_json::from_str(&scene.kubectl(&["get", "ledgersegments", "-o", "json"])).unwrap();
        let segments: Vec<Value> = list["items"].as_array().unwrap().iter().map(stripped).collect();
        let home = scene.kubectl(&["get", "namespace", &scene.namespace, "-o", "jsonpath={.metadata.uid}"]);
        let recorded = json!({"home": home, "segments": segments});
        expect(&opened(&recorded));
        if let Ok(file) = std::env::var("LLMTUNE_TEST_RECORD") {
            fs::write(file, format!("{recorded:#}\n")).unwrap();
        }
    });
}

/// A segment without the fields that the apiserver adds.
fn stripped(segment: &Value) -> Value {
    let metadata = &segment["metadata"];
    json!({
        "apiVersion": segment["apiVersion"], "kind": segment["kind"], "spec": segment["spec"],
        "metadata": {"name": metadata["name"], "resourceVersion": metadata["resourceVersion"]},
    })
}
