//! The columns that kubectl prints.

use super::*;

/// kubectl's output as cells. Columns are at least three spaces apart.
fn table(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect()).collect()
}

#[test]
fn kubectl_shows_how_subscriptions_and_jobs_stand() {
    run(async {
        let scene = Scene::new("columns").await;
        let apiserver = Apiserver::of(&scene).await;
        let events = json!({"events": ["training.*", "model.deployed"]});
        let stored = apiserver.create(&webhook("ci", URL, &events)).await;
        let time = "2025-11-08T14:22:31Z";
        let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": time});
        let attempt = json!({"time": time, "event": "model.deployed", "eventId": "evt_1", "attempt": 1});
        let mut failure = attempt.clone();
        failure["error"] = json!("502 Bad Gateway");
        let status = json!({
            "endpoint": "https://ci.example.com",
            "conditions": [condition("Ready", "True", "Subscribed"), condition("Healthy", "False", "DeliveriesFailing")],
            "deliveries": {"succeeded": 118, "failed": 4, "retries": 7, "pending": 2, "dropped": 3},
            "lastSuccess": attempt, "lastFailure": failure
        });
        apiserver.merge(&stored, "/status", &json!({"status": status})).await.unwrap();
        let stored = apiserver.create(&job(json!({"baseModel": "llama", "trainingMethod": "sft"}))).await;
        let status = json!({"phase": "Running", "startedAt": time, "reason": "Started"});
        apiserver.merge(&stored, "/status", &json!({"status": status})).await.unwrap();

        let narrow = scene.kubectl(&["get", "wh"]);
        let rows = table(&narrow);
        assert_eq!(rows[0], ["NAME", "ENDPOINT", "READY", "HEALTHY", "PENDING", "FAILED", "LAST", "AGE"]);
        assert_eq!(rows[1][..6], ["ci", "https://ci.example.com", "True", "False", "2", "4"]);
        assert_eq!(rows[1].len(), 8, "{narrow}");

        let wide = scene.kubectl(&["get", "wh", "-o", "wide"]);
        let rows = table(&wide);
        let expected = ["SUCCEEDED", "RETRIES", "DROPPED", "EVENTS", "SUSPENDED", "REASON", "LAST ERROR", "AGE"];
        assert_eq!(rows[0][7..], expected);
        let events = r#"["training.*","model.deployed"]"#;
        assert_eq!(rows[1][7..14], ["118", "7", "3", events, "false", "Subscribed", "502 Bad Gateway"]);

        let jobs = scene.kubectl(&["get", "ltj", "-o", "wide"]);
        let rows = table(&jobs);
        assert_eq!(rows[0], ["NAME", "PHASE", "BASE MODEL", "METHOD", "STARTED", "COMPLETED", "REASON", "AGE"]);
        assert_eq!(rows[1][..4], ["llama", "Running", "llama", "sft"]);

        let category = scene.kubectl(&["get", "llmtune", "-o", "name"]);
        let mut names: Vec<&str> = category.lines().collect();
        names.sort_unstable();
        assert_eq!(names, ["trainingjob.llmtune.io/llama", "webhook.llmtune.io/ci"]);
    });
}

#[test]
fn kubectl_shows_how_deliveries_and_the_ledger_stand() {
    run(async {
        let scene = Scene::new("delivery-columns").await;
        let apiserver = Apiserver::of(&scene).await;
        let stored = apiserver.create(&given_up("lost")).await;
        apiserver.merge(&stored, "/status", &json!({"status": given_up_status()})).await.unwrap();
        apiserver.create(&whd(json!({}))).await;
        apiserver.create(&segment(json!({}))).await;

        let narrow = scene.kubectl(&["get", "whd"]);
        let rows = table(&narrow);
        assert_eq!(rows[0], ["NAME", "WEBHOOK", "EVENT", "OBJECT", "DELIVERED", "ATTEMPTS", "AGE"]);
        assert_eq!(rows[1][..6], ["lost", "ci", "training.completed", "llama", "False", "6"]);
        assert_eq!(rows[1].len(), 7, "{narrow}");
        assert_eq!(rows[2][..2], ["try", "ci"]);

        let wide = scene.kubectl(&["get", "whd", "-o", "wide"]);
        let rows = table(&wide);
        assert_eq!(rows[0][5..], ["ATTEMPTS", "FINISHED", "REASON", "EVENT-ID", "LAST ERROR", "AGE"]);
        assert_eq!(rows[1][7..10], ["RetriesExhausted", EVENT_ID, "502 Bad Gateway"]);
        assert_eq!(rows[1].len(), 11, "{wide}");
        scene.wait("whd/lost", "condition=Finished");

        let narrow = scene.kubectl(&["get", "lseg"]);
        let rows = table(&narrow);
        assert_eq!(rows[0], ["NAME", "KIND", "TERM", "SEQUENCE", "RECORDS", "BYTES", "AGE"]);
        assert_eq!(rows[1][..6], ["journal-1-002", "Journal", "3", "258", "12", "8"]);
        let wide = scene.kubectl(&["get", "lseg", "-o", "wide"]);
        let rows = table(&wide);
        assert_eq!(rows[0], ["NAME", "KIND", "TERM", "SEQUENCE", "RECORDS", "BYTES", "EPOCH", "AGE"]);
        assert_eq!(rows[1][6], "1");

        let category = scene.kubectl(&["get", "llmtune", "-o", "name"]);
        let names: Vec<&str> = category.lines().collect();
        let expected = ["webhookdelivery.llmtune.io/lost", "webhookdelivery.llmtune.io/try"];
        assert_eq!(names, expected, "the ledger is nothing that users look for");
    });
}
