//! `WebhookDelivery` objects, as users and the operator write them.

use super::*;

fn invalid_deliveries() -> Vec<(Value, &'static str, &'static str)> {
    const NAME: &str = "name must be a webhook's name: 1 to 63 lowercase letters, digits, '-' and '.', such as ci";
    const KINDS: &str = "supported values: \"Webhook\", \"ClusterWebhook\"";
    const EVENT: &str = "event must be one event and no pattern: training.started, training.completed";
    const ID: &str = "eventId must be an event's id, evt_ and 32 digits from 0 to 9 and a to f";
    const TTL: &str = "ttl must be a duration of more than 0 and at most 8760h, in whole h, m, s or ms, such as 168h";
    const NEITHER: &str = "for a test, set test, such as test: {event: training.completed}";
    const BOTH: &str = "spec can have only one of test and eventId: remove eventId to send a test";

    let reference = |reference: Value| whd(json!({"webhookRef": reference}));
    let name = |name: &str| whd(json!({"webhookRef": {"name": name}}));
    let kind = |kind: &str| whd(json!({"webhookRef": {"name": "ci", "kind": kind}}));
    let event = |event: &str| whd(json!({"test": {"event": event}}));
    let id = |id: &str| whd(json!({"test": null, "eventId": id}));
    let ttl = |ttl: Value| whd(json!({"ttl": ttl}));
    let long = |count: usize| "a".repeat(count);
    let two_faults = whd(json!({"webhookRef": {"name": "CI"}, "ttl": "7d"}));
    vec![
        (over(whd(json!({})), json!({"spec": null})), "spec", "Required value"),
        (reference(json!(null)), "spec.webhookRef", "Required value"),
        (reference(json!("ci")), "spec.webhookRef", "must be of type object"),
        (reference(json!({})), "spec.webhookRef.name", "Required value"),
        (reference(json!({"name": "ci", "namespace": "other"})), "spec.webhookRef.namespace", "unknown field"),
        (name(""), "spec.webhookRef.name", NAME),
        (name("CI"), "spec.webhookRef.name", NAME),
        (name("-ci"), "spec.webhookRef.name", NAME),
        (name("ci_hook"), "spec.webhookRef.name", NAME),
        (name("team/ci"), "spec.webhookRef.name", NAME),
        (name(&long(64)), "spec.webhookRef.name", "Too long: may not be more than 63"),
        (kind("webhook"), "spec.webhookRef.kind", KINDS),
        (kind("Service"), "spec.webhookRef.kind", KINDS),
        (kind(""), "spec.webhookRef.kind", KINDS),
        (whd(json!({"test": null})), "spec", NEITHER),
        (whd(json!({"eventId": EVENT_ID})), "spec", BOTH),
        (whd(json!({"test": {}})), "spec.test.event", "Required value"),
        (whd(json!({"test": "training.completed"})), "spec.test", "must be of type object"),
        (whd(json!({"test": {"event": "*", "data": {}}})), "spec.test.data", "unknown field"),
        (event("training.*"), "spec.test.event", EVENT),
        (event("*"), "spec.test.event", EVENT),
        (event("training.complete"), "spec.test.event", EVENT),
        (event("Training.Completed"), "spec.test.event", EVENT),
        (event(" training.completed"), "spec.test.event", EVENT),
        (event(""), "spec.test.event", EVENT),
        (event(&long(65)), "spec.test.event", "Too long: may not be more than 64"),
        (id(""), "spec.eventId", ID),
        (id("evt_1"), "spec.eventId", ID),
        (id(&EVENT_ID.replace("evt", "dlv")), "spec.eventId", ID),
        (id(&EVENT_ID.to_uppercase()), "spec.eventId", ID),
        (id(&EVENT_ID[..35]), "spec.eventId", ID),
        (id(&format!("{EVENT_ID}0")), "spec.eventId", ID),
        (id(&format!("{EVENT_ID}\n")), "spec.eventId", ID),
        (id(&long(65)), "spec.eventId", "Too long: may not be more than 64"),
        (whd(json!({"test": null, "eventId": 7})), "spec.eventId", "must be of type string"),
        (ttl(json!("0s")), "spec.ttl", TTL),
        (ttl(json!("0h0m")), "spec.ttl", TTL),
        (ttl(json!("-1h")), "spec.ttl", TTL),
        (ttl(json!("8761h")), "spec.ttl", TTL),
        (ttl(json!("8760h1ms")), "spec.ttl", TTL),
        (ttl(json!("99999h99999h99999h99999h")), "spec.ttl", TTL),
        (ttl(json!("7d")), "spec.ttl", TTL),
        (ttl(json!("168")), "spec.ttl", TTL),
        (ttl(json!("1.5h")), "spec.ttl", TTL),
        (ttl(json!("")), "spec.ttl", TTL),
        (ttl(json!("forever")), "spec.ttl", TTL),
        (ttl(json!("168h\n")), "spec.ttl", TTL),
        (ttl(json!(168)), "spec.ttl", "must be of type string"),
        (whd(json!({"body": "{}"})), "spec.body", "unknown field"),
        (whd(json!({"event": "training.completed"})), "spec.event", "unknown field"),
        (two_faults.clone(), "spec.webhookRef.name", NAME),
        (two_faults, "spec.ttl", TTL),
    ]
}

fn valid_deliveries() -> Vec<Value> {
    let reference = |reference: Value| whd(json!({"webhookRef": reference}));
    let ttls = ["1ms", "1s", "24h", "1h30m", "8760h", "8759h59m59s1000ms", "00168h"];
    let mut manifests = vec![
        whd(json!({})),
        whd(json!({"eventId": null})),
        whd(json!({"test": null, "eventId": EVENT_ID})),
        given_up("dlv-0123456789abcdef0123456789abcdef"),
        reference(json!({"name": "ci", "kind": "Webhook"})),
        reference(json!({"name": "ci", "kind": null})),
        reference(json!({"name": "ci", "kind": "ClusterWebhook"})),
        reference(json!({"name": "ci.team-a"})),
        reference(json!({"name": "a".repeat(63)})),
    ];
    manifests.extend(EventType::ALL.iter().map(|event| whd(json!({"test": {"event": event.name()}}))));
    manifests.extend(ttls.iter().map(|ttl| whd(json!({"ttl": ttl}))));
    manifests
}

#[test]
fn an_invalid_delivery_is_refused_with_what_to_write_instead() {
    run(async {
        let apiserver = Apiserver::new().await;
        let mut failures = Vec::new();
        for (manifest, field, says) in invalid_deliveries() {
            let result = apiserver.try_out(&manifest).await;
            failures.extend(complaint(&manifest, field, says, result));
        }
        no_failures(&failures);
        let message = apiserver.try_out(&whd(json!({"test": {"event": "training.stopped"}}))).await.unwrap_err();
        for event in EventType::ALL {
            assert!(message.contains(event.name()), "{event} is missing: {message}");
        }
    });
}

#[test]
fn a_valid_delivery_is_taken_and_can_be_read() {
    run(async {
        let apiserver = Apiserver::new().await;
        for manifest in valid_deliveries() {
            let taken = apiserver.try_out(&manifest).await.unwrap_or_else(|error| panic!("{error}\n{manifest:#}"));
            let read: WebhookDelivery = serde_json::from_value(taken.clone()).unwrap();
            assert_eq!(serde_json::to_value(read.spec).unwrap(), taken["spec"], "{manifest:#}");
        }
    });
}

#[test]
fn what_a_delivery_leaves_out_is_filled_in() {
    run(async {
        let apiserver = Apiserver::new().await;
        let taken = apiserver.try_out(&whd(json!({}))).await.unwrap();
        let expected = json!({
            "webhookRef": {"kind": "Webhook", "name": "ci"}, "test": {"event": "training.completed"}, "ttl": "168h"
        });
        assert_eq!(taken["spec"], expected);
        assert_eq!(DEFAULT_TTL, "168h", "the default of the type is that of the schema");
        let nulls = json!({"webhookRef": {"name": "ci", "kind": null}, "eventId": null, "ttl": null});
        let taken = apiserver.try_out(&whd(nulls)).await.unwrap();
        assert_eq!(taken["spec"], expected, "a null counts as absent");
    });
}

#[test]
fn delivery_spec_is_immutable_and_annotation_redelivers() {
    run(async {
        const MESSAGE: &str = "spec is immutable: create another WebhookDelivery, or set the annotation llmtune.io/redeliver-requested-at";
        let scene = Scene::new("immutable").await;
        let apiserver = Apiserver::of(&scene).await;
        let stored = apiserver.create(&given_up("lost")).await;
        let mut failures = Vec::new();
        for change in [
            json!({"ttl": "1h"}),
            json!({"ttl": null, "webhookRef": {"name": "other"}}),
            json!({"webhookRef": {"kind": "ClusterWebhook"}}),
            json!({"eventId": EVENT_ID.replace('0', "1")}),
            json!({"eventId": null, "test": {"event": "training.completed"}}),
        ] {
            let result = apiserver.merge(&stored, "", &json!({"spec": change})).await;
            failures.extend(complaint(&change, "spec", MESSAGE, result));
        }
        no_failures(&failures);
        assert!(MESSAGE.ends_with(REDELIVER_ANNOTATION));

        let same = apiserver.apply("gitops&force=true", "", &given_up("lost")).await;
        assert!(same.is_ok(), "the same manifest may be applied again: {same:?}");
        let request = format!("{REDELIVER_ANNOTATION}={TIME}");
        scene.kubectl(&["annotate", "whd", "-l", "llmtune.io/webhook=ci", &request]);
        let asked = scene.get("whd", "lost");
        assert_eq!(asked["metadata"]["annotations"][REDELIVER_ANNOTATION], TIME);
        assert_eq!(asked["spec"], stored["spec"]);
        assert_eq!(asked["metadata"]["generation"], 1);
    });
}

#[test]
fn who_may_only_write_deliveries_cannot_have_a_body_signed() {
    run(async {
        let scene = Scene::new("forgery").await;
        let apiserver = Apiserver::of(&scene).await;
        let status = given_up_status();
        let mut manifest = given_up("forged");
        manifest["status"] = status.clone();
        let created = apiserver.create(&manifest).await;
        assert!(created.get("status").is_none(), "a status cannot be created: {created:#}");
        let merged = apiserver.merge(&created, "", &json!({"status": status})).await.unwrap();
        assert!(merged.get("status").is_none(), "a status cannot be merged in: {merged:#}");
        let applied = apiserver.apply("forger&force=true", "", &manifest).await.unwrap();
        assert!(applied.get("status").is_none(), "a status cannot be applied: {applied:#}");

        let both = json!({"spec": {"ttl": "1h"}, "status": status});
        let through_status = apiserver.merge(&created, "/status", &both).await.unwrap();
        assert_eq!(through_status["status"], status);
        assert_eq!(through_status["spec"], created["spec"]);
        assert_eq!(through_status["metadata"]["generation"], 1, "a status is no new generation");
        let mut other = status.clone();
        other["event"]["body"] = json!("{\"id\":\"forged");
        let merged = apiserver.merge(&created, "", &json!({"status": other})).await.unwrap();
        assert_eq!(merged["status"], status, "a status that is there stays");
    });
}

#[test]
fn delivery_status_has_the_event_to_send_again() {
    run(async {
        let scene = Scene::new("delivery-status").await;
        let apiserver = Apiserver::of(&scene).await;
        apiserver.create(&given_up("lost")).await;
        let event = |fields: Value| json!({"event": over(given_up_status()["event"].clone(), fields)});
        let attempt = |fields: Value| json!({"lastAttempt": over(json!({"time": TIME, "attempt": 1}), fields)});
        let test = json!({"test": true, "sequence": 0, "object": {}});
        for status in [
            json!({}),
            given_up_status(),
            event(test),
            event(json!({"body": "a".repeat(262_144)})),
            attempt(json!({"error": "\u{e9}".repeat(256)})),
            json!({"attempts": 0}),
        ] {
            let taken = apiserver.replace_status(scene.get("whd", "lost"), &status).await;
            let taken = taken.unwrap_or_else(|error| panic!("{error}\n{status:#}"));
            let read: WebhookDelivery = serde_json::from_value(taken).unwrap();
            assert_eq!(serde_json::to_value(read.status.unwrap_or_default()).unwrap(), status);
        }
        let long = |count: usize| "a".repeat(count);
        let stored = scene.get("whd", "lost");
        let mut failures = Vec::new();
        for (status, field, says) in [
            (event(json!({"body": long(262_145)})), "status.event.body", "may not be more than 262144"),
            (event(json!({"body": null})), "status.event.body", "Required value"),
            (event(json!({"id": null})), "status.event.id", "Required value"),
            (event(json!({"type": long(65)})), "status.event.type", "may not be more than 64"),
            (event(json!({"sequence": -1})), "status.event.sequence", "greater than or equal to 0"),
            (event(json!({"sequence": 1.5})), "status.event.sequence", "must be of type integer"),
            (event(json!({"occurredAt": "yesterday"})), "status.event.occurredAt", "must be of type date-time"),
            (event(json!({"object": {"name": long(254)}})), "status.event.object.name", "may not be more than 253"),
            (event(json!({"object": {"namespace": long(64)}})), "event.object.namespace", "may not be more than 63"),
            (event(json!({"data": {}})), "status.event.data", "unknown field"),
            (attempt(json!({"attempt": 0})), "status.lastAttempt.attempt", "greater than or equal to 1"),
            (attempt(json!({"time": null})), "status.lastAttempt.time", "Required value"),
            (attempt(json!({"error": long(257)})), "status.lastAttempt.error", "may not be more than 256"),
            (json!({"attempts": -1}), "status.attempts", "greater than or equal to 0"),
            (json!({"finishedAt": ""}), "status.finishedAt", "must be of type date-time"),
            (json!({"lastHandledRedeliverAt": long(65)}), "status.lastHandledRedeliverAt", "more than 64"),
        ] {
            let result = apiserver.replace_status(stored.clone(), &status).await;
            failures.extend(complaint(&status, field, says, result));
        }
        no_failures(&failures);
    });
}
