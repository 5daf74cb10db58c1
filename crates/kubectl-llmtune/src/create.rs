//! `kubectl llmtune create`: writes the manifests of a Webhook and of a Secret with a strong key, for `kubectl apply`
//! and similar tools.

use std::process::ExitCode;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    cli::{ClusterArgs, CreateArgs, format_name},
    failure::Failure,
    output::{print, yaml},
};
use llmtune_api::{signature::hexadecimal, webhook::Format, webhook_delivery::WebhookKind};

/// The output length of HMAC-SHA256, in bytes: a longer key adds hardly any strength (RFC 2104, 3).
const KEY_BYTES: usize = 32;

const ABOUT_SECRETS: &str = "\
# This key signs deliveries. It was just generated at random; give the receiver the same key. Do not commit it in clear text: seal
# or encrypt it first (Sealed Secrets, SOPS), or let an operator create the Secret from your vault (External Secrets).
";

pub fn run(args: &ClusterArgs, asked: &CreateArgs) -> Result<ExitCode, Failure> {
    let key: [u8; KEY_BYTES] = random()?;
    print(&manifests(args.namespace.as_deref(), asked, &key)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Cryptographically secure random bytes.
pub fn random<const LENGTH: usize>() -> Result<[u8; LENGTH], Failure> {
    let mut bytes = [0; LENGTH];
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| Failure::new("the random number generator of this machine failed"))?;
    Ok(bytes)
}

fn manifests(namespace: Option<&str>, asked: &CreateArgs, key: &[u8]) -> Result<String, Failure> {
    let name = &asked.target.name;
    let secret_name = asked.existing_secret.clone().unwrap_or_else(|| format!("{name}-hook"));
    let of_cluster = asked.target.kind == WebhookKind::ClusterWebhook;
    let mut text = String::new();
    if asked.existing_secret.is_none() {
        let mut metadata = json!({"name": secret_name});
        // A ClusterWebhook's Secret is in the operator's namespace.
        if let Some(namespace) = namespace.or(of_cluster.then_some("llmtune-system")) {
            metadata["namespace"] = namespace.into();
        }
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"secret": written(asked.format, key)}
        });
        text.push_str(ABOUT_SECRETS);
        text.push_str(&yaml(&ordered(&secret))?);
        text.push_str("---\n");
    }
    let mut metadata = json!({"name": name});
    if let Some(namespace) = namespace.filter(|_| !of_cluster) {
        metadata["namespace"] = namespace.into();
    }
    let mut spec = json!({
        "url": asked.url.as_str(), "secretRef": {"name": secret_name}, "events": asked.events
    });
    if asked.format != Format::LLMTune {
        spec["format"] = format_name(asked.format).into();
    }
    let webhook = json!({
        "apiVersion": "llmtune.io/v1alpha1", "kind": asked.target.kind.to_string(), "metadata": metadata, "spec": spec
    });
    text.push_str(&yaml(&ordered(&webhook))?);
    Ok(text)
}

/// The key as the Secret stores it.
fn written(format: Format, key: &[u8]) -> String {
    match format {
        Format::StandardWebhooks => format!("whsec_{}", STANDARD.encode(key)),
        Format::LLMTune | Format::CloudEvents => hexadecimal(key),
    }
}

/// Orders the fields of a manifest as people write them.
fn ordered(manifest: &Value) -> Ordered<'_> {
    Ordered(manifest)
}

/// An object that serializes some fields first.
struct Ordered<'a>(&'a Value);

const FIRST: [&str; 9] =
    ["apiVersion", "kind", "metadata", "name", "namespace", "url", "format", "secretRef", "events"];

impl serde::Serialize for Ordered<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Value::Object(members) = self.0 else { return self.0.serialize(serializer) };
        let place = |name: &str| FIRST.iter().position(|first| *first == name).unwrap_or(FIRST.len());
        let mut members: Vec<_> = members.iter().collect();
        members.sort_by_key(|(name, _)| place(name));
        serializer.collect_map(members.into_iter().map(|(name, value)| (name, Ordered(value))))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn printed(line: &[&str]) -> String {
        let cli = Cli::try_parse_from(["kubectl-llmtune", "create"].iter().chain(line)).unwrap();
        let Command::Create(asked) = cli.command else { panic!("{line:?}") };
        manifests(cli.cluster.namespace.as_deref(), &asked, &[0xa5; 32]).unwrap()
    }

    #[test]
    fn prints_manifests_of_webhook_and_secret() {
        let text = printed(&["ci", "--url", "https://ci.example.com/hooks", "--events", "training.*,model.deployed"]);
        let expected = format!(
            "apiVersion: v1\nkind: Secret\nmetadata:\n  name: ci-hook\nstringData:\n  secret: {}\n---\n",
            "a5".repeat(32)
        );
        assert!(text.contains(&expected), "{text}");
        assert!(
            text.ends_with(
                "\
---
apiVersion: llmtune.io/v1alpha1
kind: Webhook
metadata:
  name: ci
spec:
  url: https://ci.example.com/hooks
  secretRef:
    name: ci-hook
  events:
  - training.*
  - model.deployed
"
            ),
            "{text}"
        );
        assert!(text.starts_with("# This key"), "{text}");
    }

    #[test]
    fn secret_has_the_form_that_its_format_requires() {
        let text =
            printed(&["ci", "--url", "https://ci.example.com", "--format", "StandardWebhooks", "-n", "research"]);
        assert!(text.contains(&format!("  secret: whsec_{}\n", STANDARD.encode([0xa5; 32]))), "{text}");
        assert!(text.contains("  format: StandardWebhooks\n"), "{text}");
        assert_eq!(text.matches("  namespace: research\n").count(), 2, "{text}");
    }

    #[test]
    fn key_that_looks_like_a_number_stays_a_string() {
        let line = ["kubectl-llmtune", "create", "ci", "--url", "https://ci.example.com"];
        let Command::Create(asked) = Cli::try_parse_from(line).unwrap().command else { panic!() };
        for key in [vec![0x12; 32], [vec![0x1e], vec![0x11; 31]].concat(), [vec![0x0b], vec![0x10; 31]].concat()] {
            let text = manifests(None, &asked, &key).unwrap();
            let secret: Value = serde_saphyr::from_str(text.split("---").next().unwrap()).unwrap();
            assert_eq!(secret["stringData"]["secret"], written(Format::LLMTune, &key));
        }
    }

    #[test]
    fn secret_of_cluster_webhook_is_in_operator_namespace() {
        let text = printed(&["cwh/platform", "--url", "https://ci.example.com"]);
        assert!(text.contains("kind: ClusterWebhook\nmetadata:\n  name: platform\nspec:"), "{text}");
        assert!(text.contains("name: platform-hook\n  namespace: llmtune-system\n"), "{text}");
    }

    #[test]
    fn existing_secret_is_not_generated() {
        let text = printed(&["ci", "--url", "https://ci.example.com", "--existing-secret", "vault-ci"]);
        assert!(!text.contains("stringData") && !text.contains('#') && text.contains("    name: vault-ci\n"), "{text}");
    }
}
