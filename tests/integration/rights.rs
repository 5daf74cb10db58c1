//! The shipped roles, compared with the apiserver's audit log: no right is missing, and no right is unused.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use llmtune_webhooks_harness::{
    control_plane::ControlPlane,
    eventually,
    operator::Operator,
    receiver::{Answer, Receiver},
    root,
};
use serde_json::{Value, json};

use crate::{
    chart::{documents, render},
    custom_resources::of_cluster,
    sources::{deployment, rolled_out},
    support::{Jobs, SOON, Scene, run, webhook},
};

/// The ledger's ring takes about seventy seconds to reach its first slot again.
const LONG: Duration = Duration::from_secs(300);

/// Verb, API group, resource with its subresource.
type Right = (String, String, String);

/// A request of the operator.
struct Request {
    right: Right,
    uri: String,
    code: u64,
}

/// The operator's requests so far, in order.
fn requests(plane: &ControlPlane, namespace: &str) -> Vec<Request> {
    let log = std::fs::read_to_string(plane.audit_log()).unwrap();
    let user = format!("system:serviceaccount:{namespace}:llmtune-webhooks");
    // The last line may be incomplete.
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let own = events.filter(|event| event["user"]["username"] == user && !event["objectRef"].is_null());
    own.map(|event| {
        let object = &event["objectRef"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let subresource = object["subresource"].as_str().map(|name| format!("/{name}")).unwrap_or_default();
        let right = (text(&event["verb"]), text(&object["apiGroup"]), text(&object["resource"]) + &subresource);
        Request {
            right,
            uri: text(&event["requestURI"]),
            code: event["responseStatus"]["code"].as_u64().unwrap_or_default(),
        }
    })
    .collect()
}

/// The rights that the operator used, and its requests that were refused for lack of a right.
fn asked(plane: &ControlPlane, namespace: &str) -> (BTreeSet<Right>, Vec<String>) {
    let requests = requests(plane, namespace);
    let refused = requests.iter().filter(|request| request.code == 403).map(|request| request.uri.clone()).collect();
    (requests.into_iter().map(|request| request.right).collect(), refused)
}

/// A single rule of a role: role, API group, resource, verb.
type Rule = (String, String, String, String);

/// The rules of the roles in a shipped file.
fn shipped(file: &str) -> BTreeSet<Rule> {
    rules(&std::fs::read_to_string(root().join("charts/kustomize").join(file)).unwrap())
}

/// The rules of the roles among manifests.
fn rules(manifests: &str) -> BTreeSet<Rule> {
    let mut rules = BTreeSet::new();
    for object in documents(manifests) {
        let role = format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
        for rule in object["rules"].as_array().into_iter().flatten() {
            let words = |key: &str| {
                let words = rule[key].as_array().unwrap().iter();
                words.map(|word| word.as_str().unwrap().to_owned()).collect::<Vec<String>>()
            };
            for (group, resource) in words("apiGroups")
                .into_iter()
                .flat_map(|group| words("resources").into_iter().map(move |resource| (group.clone(), resource)))
            {
                for verb in words("verbs") {
                    assert!(![&group, &resource, &verb].contains(&&"*".to_owned()), "a wildcard in {role}");
                    rules.insert((role.clone(), group.clone(), resource.clone(), verb));
                }
            }
        }
    }
    rules
}

#[test]
fn idle_operator_only_renews_lease_and_watches() {
    const REST: Duration = Duration::from_secs(40);
    run(async {
        let plane = ControlPlane::start_audited().await;
        plane.install_crds();
        let scene = Scene::on(Arc::new(plane), "rest").await;
        let receiver = Receiver::start().await;
        scene.secret("ci", "s3cret");
        scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci"}}));
        let _operator = Operator::start_ready(&scene.plane, &scene.options().cluster_wide()).await;
        scene.wait("webhook/ci", "condition=Ready");
        scene.job("a");
        scene.phase("a", "Running");
        receiver.wait_for("training.started", "a", SOON).await;
        eventually("the delivery is in the status", SOON, || async {
            scene.get("webhook", "ci")["status"]["lastSuccess"].is_object().then_some(())
        })
        .await;
        // The last changes are flushed within a second. A bookmark comes within a minute and moves a position, which is
        // flushed too.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = requests(&scene.plane, &scene.namespace).len();
        tokio::time::sleep(REST).await;
        let mut counts: BTreeMap<Right, usize> = BTreeMap::new();
        for Request { right, uri, .. } in requests(&scene.plane, &scene.namespace).drain(before..) {
            assert!(right.0 != "list" || uri.contains("limit=1&") || uri.ends_with("limit=1"), "{uri}");
            *counts.entry(right).or_default() += 1;
        }
        println!("in {REST:?} at rest, after {before} requests: {counts:?}");
        for ((verb, group, resource), count) in counts {
            let most = match (verb.as_str(), resource.as_str()) {
                ("update", "leases") => REST.as_secs() as usize,
                // Watches end regularly, so that silence differs from a broken connection. The audit log has two
                // entries for each: its beginning and its end.
                ("watch", _) => 4,
                // Before a watch resumes, the operator checks whether the store was restored. A bookmark moves a
                // position.
                ("list", "trainingjobs" | "deployments") | ("create" | "update", "ledgersegments") => 2,
                _ => 0,
            };
            assert!(count <= most, "{verb} {resource}.{group}: {count} in {REST:?}");
        }
    });
}

/// The rights that these rules grant.
fn granted(rules: BTreeSet<Rule>) -> BTreeSet<Right> {
    rules.into_iter().map(|(_, group, resource, verb)| (verb, group, resource)).collect()
}

#[test]
fn every_right_that_ships_is_used_and_none_is_missing() {
    run(async {
        let plane = ControlPlane::start_audited().await;
        plane.install_crds();
        let scene = Scene::on(Arc::new(plane), "rights").await;
        let receiver = Receiver::start().await;
        let broken = Receiver::answering(|_| Answer::status(500)).await;
        scene.secret("ci", "s3cret");
        scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci"}}));
        scene.apply(&json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": {"ca.crt": "no certificate"}
        }));
        let tls = json!({"tls": {"caBundleRef": {"kind": "ConfigMap", "name": "ca", "key": "ca.crt"}}});
        scene.webhook("internal", "https://receiver.internal/hooks", &tls);
        scene.webhook("broken", &broken.url(), &json!({"delivery": {"maxRetries": 0}}));
        let selecting = json!({"namespaceSelector": {"matchLabels": {"team": "none"}}});
        scene.apply(&of_cluster(&webhook("platform", &receiver.url(), &selecting)));
        scene.apply(&json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"}, "spec": {"hard": {"pods": "10"}}
        }));
        scene.apply(&json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "UsageThreshold", "metadata": {"name": "pods"},
            "spec": {"resourceQuota": {"name": "team", "resource": "pods"}, "thresholds": ["50%"]}
        }));
        scene.apply(&json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookSource", "metadata": {"name": "jobs"},
            "spec": {
                "resource": {"apiVersion": "example.com/v1", "kind": "Absent"}, "lifecycle": "Training",
                "stages": [{"stage": "Running", "when": "object.status.ready > 0"}]
            }
        }));
        let mut operator = Operator::start_ready(&scene.plane, &scene.options().cluster_wide()).await;
        scene.job("a");
        scene.phase("a", "Running");
        receiver.wait_for("training.started", "a", SOON).await;
        scene.apply(&deployment("d", 1, "1"));
        rolled_out(&scene, "d");
        receiver.wait_for("model.deployed", "d", SOON).await;
        scene.kubectl(&["label", "deployment", "d", "llmtune.io/model-endpoint-"]);
        // A test that finishes by itself, and a redelivery.
        scene.apply(&json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery", "metadata": {"name": "test"},
            "spec": {"webhookRef": {"name": "ci"}, "test": {"event": "model.deployed"}, "ttl": "1s"}
        }));
        eventually("the test is gone", Duration::from_secs(60), || async {
            (!scene.kubectl(&["get", "whd", "-o", "name"]).contains("/test")).then_some(())
        })
        .await;
        scene.wait_event("Webhook", "broken", "DeliveryExhausted").await;
        eventually("what was given up is kept", SOON, || async {
            let kept = scene.list("whd", "llmtune.io/webhook=broken");
            kept.iter().any(|object| object["status"]["finishedAt"].is_string()).then_some(())
        })
        .await;
        scene.kubectl(&[
            "annotate",
            "whd",
            "-l",
            "llmtune.io/webhook=broken",
            "llmtune.io/redeliver-requested-at=2026-01-01T00:00:00Z",
        ]);
        operator.restart();
        operator.wait_ready().await;
        // The standby waits for the Lease.
        let options = scene.options().cluster_wide().identity("operator-1");
        let _standby = Operator::start(&scene.plane, &options).await;
        scene.phase("a", "Completed");
        receiver.wait_for("training.completed", "a", SOON).await;

        // Slots of the ledger are rewritten once the whole snapshot has been written.
        let jobs = Jobs::new(&scene).await;
        let _driving = tokio::spawn(async move {
            for number in 0.. {
                jobs.start("a").await;
                tokio::time::sleep(Duration::from_millis(250)).await;
                assert!(number < 1000);
            }
        });
        let mut granted = granted(shipped("rbac.yaml"));
        // It is read only if it already exists, as after a crash between its creation and the flush.
        assert!(granted.remove(&("get".into(), "llmtune.io".into(), "webhookdeliveries".into())));
        let unused = eventually("every right is used", LONG, || async {
            let (asked, _) = asked(&scene.plane, &scene.namespace);
            granted.is_subset(&asked).then_some(())
        });
        let ended = tokio::time::timeout(LONG / 2, unused).await;
        let (asked, refused) = asked(&scene.plane, &scene.namespace);
        let left: Vec<_> = granted.difference(&asked).collect();
        assert!(ended.is_ok(), "granted and never used: {left:#?}");
        assert!(refused.is_empty(), "refused: {refused:#?}");
        println!("{} rights, each used; {} kinds of requests, none refused", granted.len(), asked.len());
    });
}

#[test]
fn where_namespaces_are_named_roles_there_are_enough() {
    run(async {
        let plane = Arc::new(ControlPlane::start_audited().await);
        plane.install_crds();
        let (own, scene) = (plane.namespace("own").await, Scene::on(Arc::clone(&plane), "served").await);
        let receiver = Receiver::start().await;
        let broken = Receiver::answering(|_| Answer::status(500)).await;
        scene.secret("ci", "s3cret");
        scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci"}}));
        scene.webhook("broken", &broken.url(), &json!({"delivery": {"maxRetries": 0}}));
        scene.apply(&json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"}, "spec": {"hard": {"pods": "10"}}
        }));
        scene.apply(&json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "UsageThreshold", "metadata": {"name": "pods"},
            "spec": {"resourceQuota": {"name": "team", "resource": "pods"}, "thresholds": ["50%"]}
        }));
        let mut options = scene.options().by_roles().argument("--owner=llmtune-webhooks-ledger");
        options.namespace = own.clone();
        let owner = Scene { plane: Arc::clone(&plane), namespace: own.clone() };
        owner.kubectl(&["create", "configmap", "llmtune-webhooks-ledger"]);
        let mut operator = Operator::start_ready(&plane, &options).await;
        scene.job("a");
        scene.phase("a", "Running");
        assert!(receiver.wait_for("training.started", "a", SOON).await.is_signed_with("s3cret"));
        scene.wait("webhook/ci", "condition=Healthy");
        scene.wait_event("Webhook", "broken", "DeliveryExhausted").await;
        let kept = eventually("what was given up is kept", SOON, || async {
            let kept = scene.kubectl(&["get", "whd", "-l", "llmtune.io/webhook=broken", "-o", "name"]);
            kept.lines().next().map(str::to_owned)
        })
        .await;
        scene.wait(&kept, "condition=Finished");
        scene.wait("ut/pods", "condition=Ready=False");
        operator.restart();
        operator.wait_ready().await;
        scene.phase("a", "Completed");
        receiver.wait_for("training.completed", "a", SOON).await;
        operator.stop();

        let (asked, refused) = asked(&plane, &own);
        assert!(refused.is_empty(), "refused: {refused:#?}");
        let lease = plane.kubectl(&["-n", &own, "get", "events.events.k8s.io", "-o", "name"]);
        assert!(!lease.stdout.is_empty(), "the ledger's beginning is told beside the Lease");
        println!("{} kinds of requests, none refused", asked.len());
    });
}

#[test]
fn namespaced_role_is_the_cluster_role_without_cluster_kinds() {
    let of = |rules: BTreeSet<Rule>, role: &str| -> BTreeSet<Right> {
        granted(rules.into_iter().filter(|rule| rule.0 == role).collect())
    };
    let mut cluster = of(shipped("rbac.yaml"), "ClusterRole llmtune-webhooks");
    cluster.retain(|(_, _, resource)| {
        let resource = resource.split('/').next().unwrap();
        !["clusterwebhooks", "webhooksources", "namespaces"].contains(&resource)
    });
    let rendered = render(&json!({"operator": {"watchNamespace": ["research"]}}));
    assert!(!rendered.contains("kind: ClusterRoleBinding"));
    assert_eq!(of(rules(&rendered), "Role release-llmtune-webhooks-served"), cluster);
}

const KINDS: [&str; 7] = [
    "webhooks",
    "webhookdeliveries",
    "trainingjobs",
    "usagethresholds",
    "clusterwebhooks",
    "webhooksources",
    "ledgersegments",
];
const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

/// Everything that this user may do in the namespace with the kinds of the group: verb and resource.
async fn allowed(plane: &ControlPlane, user: &str, namespace: &str) -> BTreeSet<(String, String)> {
    let client = plane.admin().await;
    let resources = KINDS.into_iter().flat_map(|kind| [(kind, ""), (kind, "status")]);
    let asked = resources.flat_map(|resource| VERBS.map(|verb| (verb, resource)));
    let answers = futures::stream::iter(asked).map(|(verb, (resource, subresource))| {
        let client = client.clone();
        async move {
            // The request of `kubectl auth can-i --as`.
            let review = json!({
                "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {
                    "group": "llmtune.io", "resource": resource, "subresource": subresource, "verb": verb,
                    "namespace": namespace
                }}
            });
            let request = http::Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
                .header("content-type", "application/json")
                .header("impersonate-user", user)
                .header("impersonate-group", "system:authenticated")
                .body(serde_json::to_vec(&review).unwrap())
                .unwrap();
            let answer: Value = client.request(request).await.unwrap();
            let resource =
                if subresource.is_empty() { resource.to_owned() } else { format!("{resource}/{subresource}") };
            (answer["status"]["allowed"] == true).then(|| (verb.to_owned(), resource))
        }
    });
    answers.buffer_unordered(16).filter_map(|allowed| async { allowed }).collect().await
}

#[test]
fn people_may_do_what_their_role_says_and_nothing_else() {
    run(async {
        let scene = Scene::new("people").await;
        scene.plane.start_role_aggregation();
        let roles = std::fs::read_to_string(root().join("charts/kustomize/rbac-people.yaml")).unwrap();
        scene.apply_text(&roles);
        for role in ["view", "edit", "admin", "llmtune-training-reporter"] {
            scene.apply(&json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": role},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": role}]
            }));
        }
        let of = |verbs: &[&str], resources: &[&str]| -> BTreeSet<(String, String)> {
            let verbs = verbs.iter();
            verbs.flat_map(|verb| resources.iter().map(move |on| ((*verb).to_owned(), (*on).to_owned()))).collect()
        };
        let view = of(&VERBS[..3], &KINDS[..4]);
        let edit = of(&VERBS, &KINDS[..4]);
        let reporter = [of(&["get"], &["trainingjobs"]), of(&["patch"], &["trainingjobs/status"])];
        for (role, expected) in [
            ("view", view),
            ("edit", edit.clone()),
            ("admin", edit),
            ("llmtune-training-reporter", reporter.into_iter().flatten().collect()),
            ("nobody", BTreeSet::new()),
        ] {
            // A controller aggregates the cluster roles.
            let what = format!("{role} may do {} things", expected.len());
            eventually(&what, SOON, || async {
                (allowed(&scene.plane, role, &scene.namespace).await == expected).then_some(())
            })
            .await;
            assert!(allowed(&scene.plane, role, "default").await.is_empty(), "{role} elsewhere");
            println!("{what}, of {}", 2 * KINDS.len() * VERBS.len());
        }

        // The messages that users see.
        let as_user = |user: &str, arguments: &[&str], input: &str| {
            let arguments = [&["-n", &scene.namespace, "--as", user], arguments].concat();
            let output = scene.plane.kubectl_with_input(&arguments, input);
            let text = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8(text).unwrap())
        };
        let ci = webhook("ci", "https://ci.example.com", &json!({}));
        let applied = |user, object: &Value| as_user(user, &["apply", "-f", "-"], &object.to_string());
        assert!(applied("edit", &ci).0);
        assert!(as_user("view", &["get", "wh", "ci"], "").0);
        for (user, done) in [
            ("view", applied("view", &webhook("other", "https://ci.example.com", &json!({})))),
            ("admin", applied("admin", &of_cluster(&ci))),
            (
                "admin",
                as_user(
                    "admin",
                    &["patch", "wh", "ci", "--subresource=status", "--type=merge", "-p", "{\"status\":{}}"],
                    "",
                ),
            ),
        ] {
            assert!(!done.0 && done.1.contains("cannot"), "{user}: {}", done.1);
        }
        let can =
            |user: &str, verb: &str, what: &str| as_user(user, &["auth", "can-i", verb, what], "").1.trim().to_owned();
        assert_eq!(can("edit", "create", "webhooks.llmtune.io"), "yes");
        assert_eq!(can("admin", "get", "ledgersegments.llmtune.io"), "no");
    });
}

/// The rules in the tables of docs/security.md: the first three columns name the role, its resources and its verbs.
fn documented() -> BTreeSet<Rule> {
    let text = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    let mut rules = BTreeSet::new();
    for row in text.lines().filter(|line| line.starts_with("| ClusterRole `") || line.starts_with("| Role `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, role, resources, verbs, why, _] = cells[..] else { panic!("a row of four columns: {row}") };
        assert!(!why.is_empty(), "no reason: {row}");
        for resource in resources.split(", ") {
            let resource = resource.trim_matches('`');
            // In kubectl's notation: resource.group/subresource.
            let (resource, subresource) =
                resource.split_once('/').map_or((resource, None), |(of, sub)| (of, Some(sub)));
            let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
            let resource = subresource.map_or(resource.to_owned(), |subresource| format!("{resource}/{subresource}"));
            for verb in verbs.split(", ") {
                let rule = (role.replace('`', ""), group.to_owned(), resource.clone(), verb.to_owned());
                assert!(rules.insert(rule), "twice: {row}");
            }
        }
    }
    rules
}

#[test]
fn every_shipped_right_has_a_documented_reason() {
    let all: BTreeSet<Rule> = [shipped("rbac.yaml"), shipped("rbac-people.yaml")].into_iter().flatten().collect();
    let documented = documented();
    let undocumented: Vec<_> = all.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&all).collect();
    assert!(undocumented.is_empty() && gone.is_empty(), "without a reason: {undocumented:#?}\nno such rule: {gone:#?}");
}

#[test]
fn every_test_that_the_threat_model_names_is_there() {
    let text = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    let model = text.split_once("\n## Threat model\n").unwrap().1;
    let named = model
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.starts_with(char::is_alphabetic) && word.matches('_').count() >= 2);
    let named: BTreeSet<&str> = named.collect();
    assert!(named.len() >= 20, "{named:#?}");
    let mut code = String::new();
    let mut folders = ["crates", "src", "tests"].map(|folder| root().join(folder)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                code.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let missing: Vec<_> = named.into_iter().filter(|name| !code.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "there are no such tests: {missing:#?}");
}
