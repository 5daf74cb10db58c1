//! Deliveries that expire, are evicted, or exceed a bound: they are counted, without effect on other Webhooks.

use llmtune_webhooks_harness::operator::Operator;

use super::*;

#[test]
fn delivery_is_deleted_after_its_ttl() {
    run(async {
        let scene = Scene::new("ttl").await;
        let receiver = Receiver::answering(|post| {
            let slow = post.event() == "training.failed";
            Answer::status(200).after(Duration::from_secs(if slow { 6 } else { 0 }))
        })
        .await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let _operator = scene.operator().await;
        let brief = |event: &str| json!({"test": {"event": event}, "ttl": "1s"});
        scene.apply(&manifest("slow", "ci", &brief("training.failed")));
        receiver.wait(1, SOON).await;
        scene.apply(&manifest("quick", "ci", &brief("training.started")));
        scene.apply(&manifest("lasting", "ci", &test_of("training.completed")));
        receiver.wait(3, SOON).await;
        let begun = Instant::now();
        scene.kubectl(&["wait", "--for=delete", "whd/quick", "--timeout=30s"]);
        println!("gone {:?} after it was sent, with a ttl of 1 s", begun.elapsed());
        let slow = scene.get("whd", "slow");
        assert_eq!(condition(&slow, "Finished").0, "", "it is under way, and stays");
        scene.kubectl(&["wait", "--for=delete", "whd/slow", "--timeout=30s"]);
        assert_eq!(condition(&scene.get("whd", "lasting"), "Delivered").0, "True");
    });
}

#[test]
fn oldest_delivered_of_a_thousand_objects_is_deleted_first() {
    run(async {
        let scene = Scene::new("cap").await;
        let receiver = refused(&scene, 0).await;
        let webhook = scene.get("webhook", "ci");
        let owner = json!([{"apiVersion": "llmtune.io/v1alpha1", "kind": "Webhook", "name": "ci",
                            "uid": webhook["metadata"]["uid"]}]);
        let api = deliveries(&scene).await;
        let begun = Instant::now();
        let now = jiff::Timestamp::now();
        let create = |number: usize| {
            let id = format!("evt_{number:032x}");
            let name = format!("dlv-{number:032x}");
            let mut object = manifest(&name, "ci", &json!({"eventId": id}));
            object["metadata"]["labels"] = json!({"llmtune.io/webhook": "ci", "llmtune.io/event": "training.started"});
            object["metadata"]["ownerReferences"] = owner.clone();
            let delivered = if number < 2 { "True" } else { "False" };
            let at = now.checked_sub(jiff::SignedDuration::from_mins(2000 - number as i64)).unwrap();
            let at = jiff::Timestamp::from_second(at.as_second()).unwrap().to_string();
            let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "Exhausted", "message": "", "lastTransitionTime": at});
            let status = json!({
                "conditions": [condition("Delivered", delivered), condition("Finished", "True")],
                "event": {"id": id, "type": "training.started", "sequence": 1, "body": "{\"deliveredAt\":\"",
                          "object": {"kind": "TrainingJob", "name": "old", "uid": Uid::from_u128(7).to_string()}},
                "attempts": 1, "finishedAt": at
            });
            let object: WebhookDelivery = serde_json::from_value(object).unwrap();
            let api = api.clone();
            async move {
                api.create(&PostParams::default(), &object).await.unwrap();
                let patch = Patch::Merge(json!({"status": status}));
                api.patch_status(&name, &PatchParams::default(), &patch).await.unwrap();
            }
        };
        futures::stream::iter(0..1000).for_each_concurrent(32, create).await;
        println!("1,000 objects made within {:?}", begun.elapsed());
        let operator = scene.operator().await;
        operator.wait_log("all Webhooks are listed", SOON).await;
        let jobs = Jobs::new(&scene).await;
        let names = || -> HashSet<String> {
            let names = scene.kubectl(&["get", "whd", "-o", "name"]);
            names.lines().map(|name| name.rsplit('/').next().unwrap().to_owned()).collect()
        };
        for number in 0..2 {
            start_jobs(&jobs, std::iter::once(format!("job-{number}"))).await;
            receiver.wait(number + 1, SOON).await;
            eventually("the oldest delivered has made room", SOON, || async {
                let names = names();
                let gone = (0..=number).all(|old| !names.contains(&format!("dlv-{old:032x}")));
                (gone && names.len() == 1000).then_some(())
            })
            .await;
        }
        start_jobs(&jobs, std::iter::once("job-2".into())).await;
        let labels = [("webhook", "ci"), ("reason", "not_kept")];
        eventually("the third is dropped", SOON, || async {
            (operator.metric("llmtune_webhooks_dropped_total", &labels) as u64 == 1).then_some(())
        })
        .await;
        println!("{}", scene.wait_event("Webhook", "ci", "DeliveriesDropped").await);
        eventually("the status counts it", SOON, || async {
            (scene.get("webhook", "ci")["status"]["deliveries"]["dropped"] == 1).then_some(())
        })
        .await;
        let names = names();
        assert_eq!(names.len(), 1000);
        assert!((2..1000).all(|number| names.contains(&format!("dlv-{number:032x}"))), "what is not delivered stays");
    });
}

#[test]
fn a_deleted_webhook_takes_its_deliveries_with_it() {
    run(async {
        let scene = Scene::alone("owned").await;
        let _receiver = refused(&scene, 0).await;
        let _operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        start_jobs(&jobs, (0..3).map(|number| format!("job-{number}"))).await;
        kept(&scene, 3).await;
        test(&scene, "try", "ci", "model.deployed").await;
        test(&scene, "stays", "nobody", "model.deployed").await;
        eventually("the test is owned", SOON, || async { (scene.list("whd", OF_CI).len() == 4).then_some(()) }).await;
        scene.plane.start_controllers().await;
        scene.kubectl(&["delete", "webhook", "ci"]);
        let begun = Instant::now();
        eventually("its deliveries go", LATER, || async {
            (scene.kubectl(&["get", "whd", "-o", "name"]).trim() == "webhookdelivery.llmtune.io/stays").then_some(())
        })
        .await;
        println!("4 deliveries gone {:?} after their Webhook", begun.elapsed());
    });
}

#[test]
fn delivery_rejected_by_a_quota_is_dropped_and_counted() {
    run(async {
        let scene = Scene::new("quota").await;
        let receiver = refused(&scene, 0).await;
        let good = Receiver::start().await;
        scene.webhook("good", &good.url(), &json!({}));
        keep_nothing(&scene);
        let operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        start_jobs(&jobs, (0..3).map(|number| format!("job-{number}"))).await;
        eventually("three are dropped", SOON, || async {
            let labels = [("webhook", "ci"), ("reason", "not_kept")];
            (operator.metric("llmtune_webhooks_dropped_total", &labels) as u64 == 3).then_some(())
        })
        .await;
        scene.wait_event("Webhook", "ci", "DeliveriesDropped").await;
        eventually("the status counts them", SOON, || async {
            (scene.get("webhook", "ci")["status"]["deliveries"]["dropped"] == 3).then_some(())
        })
        .await;
        assert_eq!(receiver.count(), 3);
        good.wait(3, SOON).await;
        let refusal = operator.log().lines().find(|line| line.contains("was rejected")).unwrap().to_owned();
        println!("{refusal}");
        assert!(refusal.contains("exceeded quota"));

        scene.kubectl(&["delete", "resourcequota", "none"]);
        eventually("the next is kept", SOON, || async {
            let name = format!("job-{}", jiff::Timestamp::now().as_millisecond());
            start_jobs(&jobs, std::iter::once(name)).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            (!scene.list("whd", OF_CI).is_empty()).then_some(())
        })
        .await;
    });
}

/// Starts this many jobs for one run after another, `runs` times each.
async fn rerun(jobs: &Jobs, count: usize, runs: std::ops::Range<i64>) {
    let run = |number: usize| {
        let runs = runs.clone();
        async move {
            let name = format!("job-{number}");
            if runs.start == 0 {
                jobs.create(&name).await;
            }
            for run in runs {
                let at = jiff::Timestamp::from_second(1_750_000_000 + run).unwrap().to_string();
                jobs.status(&name, &json!({"phase": "Running", "startedAt": at})).await;
            }
        }
    };
    futures::stream::iter(0..count).for_each_concurrent(48, run).await;
}

#[test]
fn flood_to_a_dead_webhook_is_bounded_and_isolated() {
    run(async {
        const EVENTS: usize = 11_300;
        let scene = Scene::new("overload").await;
        let (held, good) = (Receiver::start().await, Receiver::start().await);
        scene.webhook("ci", &held.url(), &json!({"suspend": true}));
        scene.webhook("good", &good.url(), &json!({"delivery": {"concurrency": 32}}));
        let operator = Operator::start_ready(&scene.plane, &scene.options().log("warn")).await;
        scene.wait("webhook/ci", "condition=Ready");
        let pending = || operator.metric("llmtune_webhooks_pending_deliveries", &[("webhook", "ci")]) as usize;
        let dropped = || operator.metric("llmtune_webhooks_dropped_total", &[("webhook", "ci")]) as usize;
        let before = operator.process.resident_kib();
        let jobs = Jobs::new(&scene).await;
        let begun = Instant::now();
        rerun(&jobs, 113, 0..100).await;
        println!("{EVENTS} events driven in {:?}", begun.elapsed());
        good.wait(EVENTS, LATER).await;
        println!("all of them at the other webhook {:?} after the first", begun.elapsed());
        eventually("what does not fit is dropped and counted", LATER, || async {
            (dropped() == EVENTS - 10_000 - 1_000).then_some(())
        })
        .await;
        assert_eq!(pending(), 10_000);
        let grown = operator.process.resident_kib().saturating_sub(before) / 1024;
        let ledger = operator.metric("llmtune_webhooks_ledger_bytes", &[]) as u64;
        println!("10,000 pending, 300 dropped; memory grew by {grown} MiB, the ledger has {} KiB", ledger / 1024);
        assert!(grown < 128, "grew by {grown} MiB");
        println!("{}", scene.wait_event("Webhook", "ci", "DeliveriesDropped").await);
        eventually("the status counts them", LATER, || async {
            let counts = &scene.get("webhook", "ci")["status"]["deliveries"];
            (counts["dropped"] == 300 && counts["pending"] == 10_000).then_some(())
        })
        .await;
        assert_ne!(scene.condition("ci", "Healthy").unwrap().0, "False", "nobody has asked the endpoint");
        let objects = kept(&scene, 1_000).await;
        let bound_reached = ("False".into(), "BoundReached".into());
        assert!(objects.iter().all(|object| condition(object, "Delivered") == bound_reached));

        assert_eq!(held.count(), 0);
        let begun = Instant::now();
        scene.webhook("ci", &held.url(), &json!({"suspend": false, "delivery": {"concurrency": 32}}));
        held.wait(10_000, LATER).await;
        println!("10,000 delivered {:?} after the webhook goes on", begun.elapsed());
        let ids: HashSet<String> = held.received().iter().map(|post| post.event_id().to_owned()).collect();
        assert_eq!(ids.len(), 10_000);
        assert_eq!(good.count(), EVENTS);
    });
}
