//! Training jobs.

use super::*;

#[test]
fn an_invalid_training_job_is_refused_with_what_is_wrong() {
    run(async {
        let scene = Scene::new("invalid-job").await;
        let apiserver = Apiserver::of(&scene).await;
        let stored = apiserver.create(&job(json!({}))).await;
        let long = |count: usize| "a".repeat(count);
        let mut failures = Vec::new();
        for (spec, field, says) in [
            (json!(null), "spec", "Required value"),
            (json!([]), "spec", "must be of type object"),
            (json!({"baseModel": 8}), "spec.baseModel", "must be of type string"),
            (json!({"baseModel": long(513)}), "spec.baseModel", "Too long: may not be more than 512"),
            (json!({"trainingMethod": ["sft"]}), "spec.trainingMethod", "must be of type string"),
        ] {
            let result = apiserver.try_out(&job(spec.clone())).await;
            failures.extend(complaint(&spec, field, says, result));
        }
        let condition = json!({
            "type": "Done", "status": "True", "reason": "Done", "message": "", "lastTransitionTime": "2025-11-08T14:22:31Z"
        });
        let conditions = |changes: Value| {
            let mut condition = condition.clone();
            condition.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            json!({"conditions": [condition]})
        };
        for (status, field, says) in [
            (json!({"phase": 3}), "status.phase", "must be of type string"),
            (json!({"phase": long(65)}), "status.phase", "Too long: may not be more than 64"),
            (json!({"startedAt": "yesterday"}), "status.startedAt", "must be of type date-time"),
            (json!({"startedAt": ""}), "status.startedAt", "must be of type date-time"),
            (json!({"startedAt": 1_762_611_751}), "status.startedAt", "must be of type date-time"),
            (json!({"startedAt": "2025-11-08T14:22:31"}), "status.startedAt", "must be of type date-time"),
            (json!({"completedAt": "2025-11-08"}), "status.completedAt", "must be of type date-time"),
            (json!({"completedAt": "2025-02-30T14:22:31Z"}), "status.completedAt", "must be of type date-time"),
            (json!({"metrics": "loss=0.1"}), "status.metrics", "must be of type object"),
            (json!({"metrics": [{"loss": 0.1}]}), "status.metrics", "must be of type object"),
            (json!({"artifact": long(2049)}), "status.artifact", "Too long: may not be more than 2048"),
            (json!({"jobId": 7}), "status.jobId", "must be of type string"),
            (json!({"message": long(32769)}), "status.message", "Too long: may not be more than 32768"),
            (json!({"observedGeneration": "1"}), "status.observedGeneration", "must be of type integer"),
            (json!({"progress": 50}), "status.progress", "unknown field"),
            (conditions(json!({"status": "Maybe"})), "conditions[0].status", "\"True\", \"False\", \"Unknown\""),
            (conditions(json!({"reason": ""})), "conditions[0].reason", "at least 1 char"),
            (conditions(json!({"lastTransitionTime": null})), "conditions[0].lastTransitionTime", "Required value"),
            (json!({"conditions": [condition, condition]}), "conditions[1]", "Duplicate value"),
        ] {
            let result = apiserver.merge(&stored, "/status?dryRun=All", &json!({"status": status})).await;
            failures.extend(complaint(&status, field, says, result));
        }
        no_failures(&failures);
    });
}

#[test]
fn a_training_job_may_hold_whatever_its_platform_knows() {
    run(async {
        let scene = Scene::new("valid-job").await;
        let apiserver = Apiserver::of(&scene).await;
        let specs = [
            json!({}),
            json!({"baseModel": "meta-llama/Llama-3.1-8B", "trainingMethod": "sft"}),
            json!({"baseModel": "a".repeat(512), "trainingMethod": "a".repeat(256)}),
            json!({"epochs": 3, "lora": {"rank": 16, "alpha": 0.5, "targets": ["q", "v"]}, "resume": false, "seed": null}),
        ];
        for spec in specs {
            let taken = apiserver.try_out(&job(spec.clone())).await.unwrap_or_else(|error| panic!("{error}\n{spec:#}"));
            assert_eq!(taken["spec"], spec);
        }
        let phases = ["Pending", "Suspended", "Running", "Completed", "Failed", "Cancelled", "Warming up", ""];
        let metrics = [
            json!({}),
            json!({"loss": 0.125, "step": 12000, "perplexity": 1e21, "tiny": -1e-7}),
            json!({"loss": "NaN", "gradNorm": "Infinity"}),
            json!({"eval": {"mmlu": 0.5, "by subject": [{"name": "law", "score": 0.4}]}, "converged": true, "best": null}),
            (0..1000).map(|number| (format!("metric-{number}"), json!(number))).collect::<Map<_, _>>().into(),
        ];
        let times = ["2025-11-08T14:22:31Z", "2025-11-08T14:22:31.123456789+05:30", "2025-11-08t14:22:31z"];
        let phases = phases.iter().map(|phase| json!({"phase": phase}));
        let metrics = metrics.into_iter().map(|metrics| json!({"phase": "Failed", "metrics": metrics}));
        let times = times.iter().map(|time| json!({"phase": "Running", "startedAt": time, "completedAt": time}));
        let whole = json!({
            "phase": "Completed", "jobId": "job-7", "artifact": "s3://models/llama-sft-7", "reason": "Done",
            "message": "all epochs done", "observedGeneration": 1, "conditions": [{
                "type": "example.com/Done", "status": "True", "reason": "Done", "message": "",
                "lastTransitionTime": "2025-11-08T14:22:31Z", "observedGeneration": 1
            }]
        });
        let statuses = phases.chain(metrics).chain(times).chain([json!({}), whole]);
        for (number, status) in statuses.enumerate() {
            let mut manifest = job(json!({}));
            manifest["metadata"]["name"] = json!(format!("job-{number}"));
            let stored = apiserver.create(&manifest).await;
            let taken = apiserver.replace_status(stored, &status).await;
            let taken = taken.unwrap_or_else(|error| panic!("{error}\n{status:#}"));
            assert_eq!(taken.get("status").cloned().unwrap_or(json!({})), status);
            let slim = serde_json::from_value(taken).unwrap_or_else(|error| panic!("{error}\n{status:#}"));
            TrainingJobs::default()
                .read(slim)
                .unwrap_or_else(|error| panic!("the source cannot read it: {error}\n{status:#}"));
        }
        let stored = apiserver.create(&job(json!({}))).await;
        let replaced = apiserver.replace_status(stored, &Value::Null).await.unwrap();
        assert!(replaced.get("status").is_none(), "a null status is not stored: {replaced:#}");
    });
}
