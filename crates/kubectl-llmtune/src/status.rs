//! `kubectl llmtune status`: shows the health of Webhooks, one per line.

use std::process::ExitCode;

use jiff::Timestamp;
use kube::api::DynamicObject;

use super::{
    age::age,
    cli::{ClusterArgs, StatusArgs},
    connection::Cluster,
    failure::Failure,
    live,
    objects::{self, name, part},
    output::{self, Format, Screen, note, print},
    table::{Cell, Table, Tone},
};
use llmtune_api::{
    ClusterWebhook, Webhook, conditions,
    webhook::{WebhookSpec, WebhookStatus},
    webhook_delivery::WebhookKind,
};

pub async fn run(args: &ClusterArgs, asked: &StatusArgs) -> Result<ExitCode, Failure> {
    let cluster = Cluster::connect(args).await?;
    let namespace = (!asked.all_namespaces).then_some(cluster.namespace.as_str());
    if asked.watch {
        return live::watch(&cluster, namespace).await;
    }
    let failed = |error: kube::Error| cluster.failed(&error);
    let mut all = objects::list(&cluster.api::<Webhook>(namespace), None).await.map_err(failed)?;
    if asked.all_namespaces {
        match objects::list(&cluster.api::<ClusterWebhook>(None), None).await {
            Ok(of_cluster) => all.extend(of_cluster),
            // Only the platform team may list ClusterWebhooks.
            Err(kube::Error::Api(status)) if status.code == 403 => {}
            Err(error) => return Err(failed(error)),
        }
    }
    if let Some(format) = asked.output.filter(|format| *format != Format::Wide) {
        print(&output::list(&all, format)?)?;
    } else if all.is_empty() {
        note(&none(namespace));
    } else {
        let screen = Screen::of_stdout();
        let wide = asked.output == Some(Format::Wide);
        // `wide` output is never cut.
        let width = screen.width().filter(|_| !wide);
        print(&table(&all, asked.all_namespaces, wide, Timestamp::now()).text(screen.paint, width))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The message if there are no Webhooks.
pub fn none(namespace: Option<&str>) -> String {
    namespace
        .map_or_else(|| "No Webhooks found.".into(), |namespace| format!("No Webhooks found in namespace {namespace}."))
}

/// Webhooks and `ClusterWebhooks` as a table. `all` adds the namespace column.
pub fn table(webhooks: &[DynamicObject], all: bool, wide: bool, now: Timestamp) -> Table {
    let mut header = vec!["NAME", "ENDPOINT", "READY", "HEALTHY", "PENDING", "FAILED", "LAST"];
    if all {
        header.insert(0, "NAMESPACE");
    }
    if wide {
        header.extend(["SUCCEEDED", "RETRIES", "DROPPED", "EVENTS"]);
    }
    header.push("WHY");
    let mut table = Table::new(&header);
    for webhook in webhooks {
        let mut row = row(webhook, wide, now);
        if all {
            row.insert(0, webhook.metadata.namespace.clone().into());
        }
        table.row(row);
    }
    table
}

fn row(webhook: &DynamicObject, wide: bool, now: Timestamp) -> Vec<Cell> {
    let status: WebhookStatus = part(webhook, "status").unwrap_or_default();
    let spec: Option<WebhookSpec> = part(webhook, "spec");
    let counts = status.deliveries.unwrap_or_default();
    let kind = webhook.types.as_ref().map(|types| types.kind.as_str());
    let prefix = if kind == Some(&WebhookKind::ClusterWebhook.to_string()) { "clusterwebhook/" } else { "" };
    let condition = |kind| {
        let text = conditions::get(&status.conditions, kind).map_or("Unknown", |condition| condition.status.as_str());
        let tone = match text {
            "True" => Tone::Good,
            "False" => Tone::Bad,
            _ => Tone::Faint,
        };
        Cell::new(text).toned(tone)
    };
    let count = |count: i64, bad: bool| {
        let tone = if bad && count > 0 { Tone::Bad } else { Tone::Plain };
        Cell::new(count.to_string()).toned(tone)
    };
    let last = status.last_success.as_ref().map(|last| age(last.time.0, now));
    let mut row = vec![
        Cell::new(format!("{prefix}{}", name(webhook))),
        Cell::from(status.endpoint.clone()),
        condition("Ready"),
        condition("Healthy"),
        count(counts.pending, false),
        count(counts.failed, true),
        Cell::from(last),
    ];
    if wide {
        row.extend([count(counts.succeeded, false), count(counts.retries, false), count(counts.dropped, true)]);
        row.push(Cell::from(spec.as_ref().map(|spec| spec.events.join(","))));
    }
    row.push(Cell::from(why(&status, spec.as_ref())));
    row
}

/// The reason why a Webhook does not deliver, as the operator reports it; the most severe one.
pub fn why(status: &WebhookStatus, spec: Option<&WebhookSpec>) -> Option<String> {
    if status.conditions.is_empty() {
        return Some("waiting for the operator; check that it is running and watches this namespace".into());
    }
    let problem = |kind: &str, bad: &str| {
        let condition = conditions::get(&status.conditions, kind)?;
        (condition.status == bad).then(|| format!("{}: {}", condition.reason, condition.message))
    };
    let suspended = || spec.filter(|spec| spec.suspend).map(|_| "Suspended: deliveries wait".to_owned());
    let not_ready = || problem("Ready", "False").or_else(|| problem("Ready", "Unknown"));
    problem("Stalled", "True").or_else(not_ready).or_else(suspended).or_else(|| problem("Healthy", "False"))
}

/// Counts Webhooks, and those that need attention: healthy, failing, not ready.
pub fn summary(statuses: impl IntoIterator<Item = WebhookStatus>) -> String {
    let (mut all, mut not_ready, mut failing) = (0, 0, 0);
    for status in statuses {
        all += 1;
        let says = |kind: &str, word: &str| {
            conditions::get(&status.conditions, kind).is_some_and(|condition| condition.status == word)
        };
        if !says("Ready", "True") {
            not_ready += 1;
        } else if says("Healthy", "False") {
            failing += 1;
        }
    }
    let mut text = match all {
        1 => "1 webhook".to_owned(),
        number => format!("{number} webhooks"),
    };
    for (number, what) in [(failing, "failing"), (not_ready, "not ready")] {
        if number > 0 {
            text.extend([format!(", {number} {what}")]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::table::Paint;

    const NOW: i64 = 1_700_000_000;

    fn ago(seconds: i64) -> String {
        Timestamp::from_second(NOW - seconds).unwrap().to_string()
    }

    fn conditions(all: &[(&str, &str, &str, &str)]) -> Value {
        let all = all.iter().map(|(kind, status, reason, message)| {
            json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": ago(0)})
        });
        all.collect()
    }

    fn webhook(kind: &str, name: &str, spec: &Value, status: &Value) -> DynamicObject {
        let mut merged = json!({"url": "https://ci.example.com/hooks", "events": ["training.*", "model.deployed"]});
        merged.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let namespace = if kind == "Webhook" { Some("research") } else { None };
        serde_json::from_value(json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": namespace},
            "spec": merged, "status": status
        }))
        .unwrap()
    }

    fn some() -> Vec<DynamicObject> {
        let ready = ("Ready", "True", "Subscribed", "matching events are delivered");
        let pending = ("Ready", "Unknown", "Pending", "waiting for the operator");
        let failing = ("Healthy", "False", "NotAcknowledged", "HTTP 500: look at the receiver's log");
        let counts = json!({"succeeded": 118, "failed": 1, "retries": 7, "pending": 2, "dropped": 0});
        vec![
            webhook(
                "Webhook",
                "ci",
                &json!({}),
                &json!({
                    "endpoint": "https://ci.example.com", "deliveries": counts,
                    "conditions": conditions(&[ready, ("Healthy", "True", "Acknowledged", "")]),
                    "lastSuccess": {"time": ago(6), "event": "training.started", "eventId": "evt_1", "attempt": 1}
                }),
            ),
            webhook(
                "Webhook",
                "slack",
                &json!({}),
                &json!({
                    "endpoint": "(Secret slack)", "conditions": conditions(&[ready, failing])
                }),
            ),
            webhook("Webhook", "held", &json!({"suspend": true}), &json!({"conditions": conditions(&[ready])})),
            webhook("Webhook", "new", &json!({"suspend": true}), &json!({"conditions": conditions(&[pending])})),
            webhook(
                "ClusterWebhook",
                "platform",
                &json!({}),
                &json!({"conditions": conditions(&[
                    ("Ready", "False", "SecretNotFound", "there is no Secret platform"),
                    ("Stalled", "True", "SecretNotFound", "create the Secret platform")
                ])}),
            ),
        ]
    }

    #[test]
    fn each_line_shows_why_a_webhook_does_not_deliver() {
        let now = Timestamp::from_second(NOW).unwrap();
        let expected = "\
NAMESPACE   NAME                      ENDPOINT                 READY     HEALTHY   PENDING   FAILED   LAST     WHY
research    ci                        https://ci.example.com   True      True      2         1        6s       <none>
research    slack                     (Secret slack)           True      False     0         0        <none>   NotAcknowledged: HTTP 500: look at the receiver's log
research    held                      <none>                   True      Unknown   0         0        <none>   Suspended: deliveries wait
research    new                       <none>                   Unknown   Unknown   0         0        <none>   Pending: waiting for the operator
<none>      clusterwebhook/platform   <none>                   False     Unknown   0         0        <none>   SecretNotFound: create the Secret platform
";
        assert_eq!(table(&some(), true, false, now).text(Paint(false), None), expected);
        let wide = table(&some(), false, true, now).text(Paint(false), None);
        let line: Vec<&str> = wide.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(line[6..], ["6s", "118", "7", "0", "training.*,model.deployed", "<none>"]);
    }

    #[test]
    fn summary_counts_webhooks_that_need_attention() {
        let statuses = some().into_iter().map(|webhook| part(&webhook, "status").unwrap_or_default());
        let statuses: Vec<WebhookStatus> = statuses.collect();
        assert_eq!(summary(statuses.clone()), "5 webhooks, 1 failing, 2 not ready");
        assert_eq!(summary(statuses.into_iter().take(1)), "1 webhook");
    }
}
