//! The definitions themselves: their files, their reference, their schemas.

use super::*;

#[test]
fn the_definitions_in_crds_are_those_that_the_binary_prints() {
    let printed = Command::new(BINARY).arg("crds").output().unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/llmtune.io.yaml");
    let kept = fs::read_to_string(path).unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    let difference = kept.lines().zip(printed.lines()).position(|(kept, printed)| kept != printed);
    let line = difference.map_or("their lengths differ".into(), |line| format!("line {} differs", line + 1));
    assert!(
        kept == printed,
        "crds/llmtune.io.yaml is not what `llmtune-webhooks crds` prints ({line}): run `make generate`"
    );
}

#[test]
fn the_api_reference_is_what_the_definitions_say() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let written = markdown(&read("crds/llmtune.io.yaml"));
    assert!(read("docs/api.md") == written, "docs/api.md is not what the definitions say: run `make generate`");
}

/// Every definition of the group as the apiserver serves it.
async fn served_definitions(client: &Client) -> Vec<Value> {
    let request =
        http::Request::get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").body(Vec::new()).unwrap();
    let list: Value = client.request(request).await.unwrap();
    let definitions = list["items"].as_array().unwrap().iter();
    definitions.filter(|definition| definition["spec"]["group"] == "llmtune.io").cloned().collect()
}

#[test]
fn the_apiserver_serves_the_definitions_without_reservation() {
    run(async {
        let plane = plane().await;
        let definitions = served_definitions(&plane.admin().await).await;
        let kinds: Vec<&Value> = definitions.iter().map(|definition| &definition["spec"]["names"]["kind"]).collect();
        let expected = [
            "ClusterWebhook",
            "LedgerSegment",
            "TrainingJob",
            "UsageThreshold",
            "WebhookDelivery",
            "Webhook",
            "WebhookSource",
        ];
        assert_eq!(kinds, expected);
        for definition in &definitions {
            let internal = definition["spec"]["names"]["kind"] == "LedgerSegment";
            let subresources = if internal { Value::Null } else { json!({"status": {}}) };
            for condition in definition["status"]["conditions"].as_array().unwrap() {
                let expected = matches!(condition["type"].as_str().unwrap(), "NamesAccepted" | "Established");
                assert!(expected && condition["status"] == "True", "{condition:#}");
            }
            for version in definition["spec"]["versions"].as_array().unwrap() {
                assert_eq!(version["subresources"], subresources);
            }
        }
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/crds");
        let output = plane.kubectl(&["apply", "--server-side", "--dry-run=server", "--force-conflicts", "-f", folder]);
        assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    });
}

/// Faults of a schema, by path, and the paths that accept arbitrary content.
#[derive(Default)]
struct Findings {
    faults: Vec<String>,
    open: Vec<String>,
}

impl Findings {
    fn check(&mut self, holds: bool, path: &str, fault: &str) {
        if !holds {
            self.faults.push(format!("{path}: {fault}"));
        }
    }

    fn walk(&mut self, path: &str, schema: &Value) {
        let has = |key: &str| schema.get(key).is_some();
        self.check(has("description") || path.ends_with("[]"), path, "has no description for kubectl explain");
        self.check(!has("nullable"), path, "is nullable, so that a null would be stored");
        self.check(!has("x-kubernetes-int-or-string"), path, "has no single type");
        for key in ["oneOf", "anyOf", "allOf", "not"] {
            self.check(!has(key), path, &format!("has {key}, whose refusals name no cause"));
        }
        if schema["x-kubernetes-preserve-unknown-fields"] == true {
            self.open.push(path.to_owned());
        }
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            self.check(rule.get("message").is_some(), path, &format!("refuses without a message: {rule}"));
        }
        match schema["type"].as_str().unwrap_or_default() {
            "string" => {
                let bounded = has("maxLength") || has("enum") || schema["format"] == "date-time";
                self.check(bounded, path, "is a string without maxLength, enum or date-time");
            }
            "array" => {
                self.check(has("maxItems"), path, "is a list without maxItems");
                let list_type = schema["x-kubernetes-list-type"].as_str().unwrap_or_default();
                let known = matches!(list_type, "atomic" | "set" | "map");
                self.check(known, path, "is a list without x-kubernetes-list-type");
                self.check(list_type != "map" || has("x-kubernetes-list-map-keys"), path, "is a map without keys");
                self.walk(&format!("{path}[]"), &schema["items"]);
            }
            "object" => {
                for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                    self.walk(&format!("{path}.{name}"), property);
                }
                if has("additionalProperties") {
                    self.check(has("maxProperties"), path, "is a map without maxProperties");
                    self.walk(&format!("{path}[]"), &schema["additionalProperties"]);
                }
            }
            "integer" => {
                let sized = matches!(schema["format"].as_str(), Some("int32" | "int64"));
                self.check(sized, path, "is an integer of neither int32 nor int64");
            }
            "boolean" => {}
            other => self.faults.push(format!("{path}: is of type {other:?}; floats differ between languages")),
        }
    }
}

#[test]
fn the_schemas_bound_and_describe_every_string_list_and_map() {
    run(async {
        let definitions = served_definitions(&plane().await.admin().await).await;
        let mut findings = Findings::default();
        for definition in definitions {
            let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
            for version in definition["spec"]["versions"].as_array().unwrap() {
                findings.walk(kind, &version["schema"]["openAPIV3Schema"]);
            }
        }
        no_failures(&findings.faults);
        findings.open.sort();
        assert_eq!(findings.open, ["TrainingJob.spec", "TrainingJob.status.metrics"], "only these hold unknown fields");
    });
}
