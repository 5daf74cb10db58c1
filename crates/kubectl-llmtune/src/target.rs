//! Parses the Webhook argument of a command.

use std::{fmt, str::FromStr};

use super::nearest::{either, nearest};
use llmtune_api::webhook_delivery::WebhookKind;

/// A Webhook as users name it: `ci`, `webhook/ci`, `wh/ci`, `clusterwebhook/platform`, `cwh/platform`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub kind: WebhookKind,
    pub name: String,
}

/// The names of the kinds that kubectl accepts.
const KINDS: [(&str, WebhookKind); 6] = [
    ("webhook", WebhookKind::Webhook),
    ("webhooks", WebhookKind::Webhook),
    ("wh", WebhookKind::Webhook),
    ("clusterwebhook", WebhookKind::ClusterWebhook),
    ("clusterwebhooks", WebhookKind::ClusterWebhook),
    ("cwh", WebhookKind::ClusterWebhook),
];

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = match text.split_once('/') {
            None => (WebhookKind::Webhook, text),
            Some((kind, name)) => {
                let lower = kind.to_lowercase();
                let short = lower.strip_suffix(".llmtune.io").unwrap_or(&lower);
                let short = short.strip_suffix(".v1alpha1").unwrap_or(short);
                let known = KINDS.iter().find(|(known, _)| *known == short).map(|(_, kind)| *kind);
                (known.ok_or_else(|| unknown_kind(short))?, name)
            }
        };
        let inside = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-.".contains(letter);
        if name.is_empty() || name.len() > 63 || !name.chars().all(inside) {
            return Err("use the name of a Webhook, such as ci, or clusterwebhook/NAME".into());
        }
        Ok(Self { kind, name: name.to_owned() })
    }
}

fn unknown_kind(kind: &str) -> String {
    match nearest(kind, KINDS.map(|(name, _)| name)).as_slice() {
        [] => "use webhook/NAME or clusterwebhook/NAME".into(),
        alike => format!("there is no kind {kind}; did you mean {}?", either(alike)),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            WebhookKind::Webhook => "webhook",
            WebhookKind::ClusterWebhook => "clusterwebhook",
        };
        write!(f, "{kind}/{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_kinds_that_kubectl_accepts() {
        for (text, shown) in [
            ("ci", "webhook/ci"),
            ("webhook/ci", "webhook/ci"),
            ("Webhooks/ci", "webhook/ci"),
            ("wh/ci", "webhook/ci"),
            ("webhooks.llmtune.io/ci", "webhook/ci"),
            ("webhooks.v1alpha1.llmtune.io/ci", "webhook/ci"),
            ("clusterwebhook/platform", "clusterwebhook/platform"),
            ("cwh/platform", "clusterwebhook/platform"),
            ("clusterwebhooks.llmtune.io/platform", "clusterwebhook/platform"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn invalid_argument_suggests_a_valid_one() {
        for (text, says) in [
            ("", "such as ci"),
            ("webhook/", "such as ci"),
            ("CI", "such as ci"),
            ("webhok/ci", "did you mean webhook or webhooks?"),
            ("pod/ci", "use webhook/NAME"),
            ("wh/a/b", "such as ci"),
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
