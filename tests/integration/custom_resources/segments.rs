//! Segments of the ledger.

use super::*;

#[test]
fn an_invalid_ledger_segment_is_refused_with_what_is_wrong() {
    run(async {
        let apiserver = Apiserver::new().await;
        let mut failures = Vec::new();
        for (spec, field, says) in [
            (json!({"kind": "Log"}), "spec.kind", "supported values: \"Journal\", \"Snapshot\""),
            (json!({"kind": null}), "spec.kind", "Required value"),
            (json!({"data": null}), "spec.data", "Required value"),
            (json!({"data": 7}), "spec.data", "must be of type string"),
            (json!({"data": "A".repeat(1_500_001)}), "spec.data", "Too long: may not be more than 1500000"),
            (json!({"epoch": -1}), "spec.epoch", "greater than or equal to 0"),
            (json!({"term": -1}), "spec.term", "greater than or equal to 0"),
            (json!({"sequence": -1}), "spec.sequence", "greater than or equal to 0"),
            (json!({"records": -1}), "spec.records", "greater than or equal to 0"),
            (json!({"records": 2_147_483_648_i64}), "spec.records", "int32"),
            (json!({"bytes": -1}), "spec.bytes", "greater than or equal to 0"),
            (json!({"bytes": "8"}), "spec.bytes", "must be of type integer"),
            (json!({"records": null}), "spec.records", "Required value"),
            (json!({"number": 1}), "spec.number", "unknown field"),
        ] {
            let result = apiserver.try_out(&segment(spec.clone())).await;
            failures.extend(complaint(&spec, field, says, result));
        }
        no_failures(&failures);
    });
}

#[test]
fn a_ledger_segment_is_written_anew_in_place() {
    run(async {
        let scene = Scene::new("segments").await;
        let apiserver = Apiserver::of(&scene).await;
        let stored = apiserver.create(&segment(json!({}))).await;
        let most = i64::MAX;
        for (generation, change) in [
            json!({"kind": "Snapshot", "epoch": 0, "term": 0, "sequence": 0, "records": 0, "bytes": 0, "data": ""}),
            json!({"epoch": most, "term": most, "sequence": most, "records": i32::MAX, "bytes": most}),
            // etcd must accept all that the schema accepts.
            json!({"data": "A".repeat(1_500_000)}),
        ]
        .into_iter()
        .enumerate()
        {
            let written = apiserver.merge(&stored, "", &json!({"spec": change})).await.unwrap();
            assert_eq!(written["metadata"]["generation"], generation + 2);
            for (key, value) in change.as_object().unwrap() {
                assert_eq!(&written["spec"][key], value, "{key}");
            }
            let read: LedgerSegment = serde_json::from_value(written.clone()).unwrap();
            assert_eq!(serde_json::to_value(read.spec).unwrap(), written["spec"]);
        }
        let stale = apiserver.merge(&stored, "", &json!({"metadata": {"resourceVersion": "1"}})).await.unwrap_err();
        assert!(stale.contains("the object has been modified"), "{stale}");
        let status = apiserver.merge(&stored, "/status", &json!({"status": {}})).await.unwrap_err();
        assert!(status.contains("not found"), "a segment has no status: {status}");
    });
}
