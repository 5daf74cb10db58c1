//! Reads Webhooks and `ClusterWebhooks` for commands.

use kube::api::DynamicObject;

use super::{
    connection::Cluster,
    failure::Failure,
    nearest::{either, nearest},
    objects::{self, name, part},
    target::Target,
};
use llmtune_api::{
    ClusterWebhook, Webhook, WebhookDelivery,
    webhook::{WebhookSpec, WebhookStatus},
    webhook_delivery::{KIND_LABEL, WEBHOOK_LABEL, WebhookKind},
};
use llmtune_client::error_chain::is_unknown_kind;

/// A Webhook that exists in the cluster.
pub struct Hook {
    pub target: Target,
    /// The namespace of its deliveries: its own, or the operator's for a `ClusterWebhook`.
    pub home: String,
    pub spec: Option<WebhookSpec>,
    pub status: WebhookStatus,
}

impl Hook {
    /// Reads a Webhook from its object.
    pub fn read(object: &DynamicObject, target: Target, home: String) -> Self {
        Self { target, home, spec: part(object, "spec"), status: part(object, "status").unwrap_or_default() }
    }

    /// Its deliveries that have objects.
    pub async fn dead_letters(&self, cluster: &Cluster) -> Result<Vec<DynamicObject>, Failure> {
        let api = cluster.api::<WebhookDelivery>(Some(&self.home));
        objects::list(&api, Some(&self.selector())).await.map_err(|error| cluster.failed(&error))
    }

    /// The label selector of these objects.
    pub fn selector(&self) -> String {
        format!("{WEBHOOK_LABEL}={},{KIND_LABEL}={}", self.target.name, self.target.kind)
    }

    pub fn is_suspended(&self) -> bool {
        self.spec.as_ref().is_some_and(|spec| spec.suspend)
    }
}

/// Finds the Webhook of this name. The error suggests similar ones.
pub async fn find(cluster: &Cluster, target: &Target) -> Result<Hook, Failure> {
    let api = match target.kind {
        WebhookKind::Webhook => cluster.api::<Webhook>(Some(&cluster.namespace)),
        WebhookKind::ClusterWebhook => cluster.api::<ClusterWebhook>(None),
    };
    let found = match api.get(&target.name).await {
        Ok(found) => found,
        Err(kube::Error::Api(status)) if status.code == 404 && !is_unknown_kind(404, &status.message) => {
            return Err(missing(cluster, target).await);
        }
        Err(error) => return Err(cluster.failed(&error)),
    };
    let home = match target.kind {
        WebhookKind::Webhook => cluster.namespace.clone(),
        WebhookKind::ClusterWebhook => cluster.operator_namespace().await?,
    };
    Ok(Hook::read(&found, target.clone(), home))
}

/// The error for a Webhook that does not exist, with suggestions from what the user may list.
async fn missing(cluster: &Cluster, target: &Target) -> Failure {
    let of_cluster = objects::list(&cluster.api::<ClusterWebhook>(None), None).await.unwrap_or_default();
    let of_cluster: Vec<&str> = of_cluster.iter().map(name).collect();
    if target.kind == WebhookKind::ClusterWebhook {
        return absent(target, None, &of_cluster, &[], &[]);
    }
    let here = objects::list(&cluster.api::<Webhook>(Some(&cluster.namespace)), None).await.unwrap_or_default();
    let everywhere = objects::list(&cluster.api::<Webhook>(None), None).await.unwrap_or_default();
    let elsewhere = everywhere.iter().filter(|object| name(object) == target.name);
    let elsewhere: Vec<&str> = elsewhere.filter_map(|object| object.metadata.namespace.as_deref()).collect();
    absent(target, Some(&cluster.namespace), &here.iter().map(name).collect::<Vec<_>>(), &elsewhere, &of_cluster)
}

/// `names` holds the candidates, `elsewhere` the namespaces that have a Webhook of this exact name, `of_cluster` the
/// names of `ClusterWebhooks`.
fn absent(
    target: &Target,
    namespace: Option<&str>,
    names: &[&str],
    elsewhere: &[&str],
    of_cluster: &[&str],
) -> Failure {
    let (kind, wanted) = (target.kind, target.name.as_str());
    let place = namespace.map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
    let failure = Failure::new(format!("there is no {kind} {wanted}{place}"));
    let prefix = if kind == WebhookKind::ClusterWebhook { "clusterwebhook/" } else { "" };
    if !elsewhere.is_empty() {
        return failure.next(format!("another namespace has one: use -n {}", either(elsewhere)));
    }
    if of_cluster.contains(&wanted) {
        return failure.next(format!("there is a ClusterWebhook with this name: use clusterwebhook/{wanted}"));
    }
    let alike = nearest(wanted, names.iter().copied());
    if !alike.is_empty() {
        let alike: Vec<String> = alike.iter().map(|name| format!("{prefix}{name}")).collect();
        return failure
            .next(format!("did you mean {}?", either(&alike.iter().map(String::as_str).collect::<Vec<_>>())));
    }
    if names.is_empty() {
        return failure.next(format!(
            "no {kind} exists there yet; to create one, run kubectl llmtune create {prefix}{wanted} --url https://…"
        ));
    }
    let shown: Vec<String> = names.iter().take(5).map(|name| format!("{prefix}{name}")).collect();
    let more = if names.len() > shown.len() { ", …" } else { "" };
    failure.next(format!("these exist: {}{more}", shown.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_name_suggests_existing_webhooks() {
        let ci: Target = "cii".parse().unwrap();
        let text = |names: &[&str], elsewhere: &[&str], of_cluster: &[&str]| {
            absent(&ci, Some("research"), names, elsewhere, of_cluster).to_string()
        };
        for (text, says) in [
            (text(&["ci", "cd", "grafana"], &[], &[]), "did you mean ci?"),
            (text(&["grafana", "slack"], &[], &[]), "these exist: grafana, slack"),
            (
                text(
                    &["a", "b", "c", "d", "e", "f"]
                        .map(|name| ["grafana-", name].concat())
                        .each_ref()
                        .map(String::as_str),
                    &[],
                    &[],
                ),
                ", …",
            ),
            (text(&["ci"], &["prod", "staging"], &[]), "use -n prod or staging"),
            (text(&["ci"], &[], &["cii"]), "use clusterwebhook/cii"),
            (text(&[], &[], &[]), "kubectl llmtune create cii"),
        ] {
            assert!(
                text.starts_with("there is no Webhook cii in namespace research\n") && text.contains(says),
                "{text}"
            );
        }
        let platform: Target = "cwh/platfrm".parse().unwrap();
        let text = absent(&platform, None, &["platform"], &[], &[]).to_string();
        assert_eq!(text, "there is no ClusterWebhook platfrm\ndid you mean clusterwebhook/platform?");
    }
}
