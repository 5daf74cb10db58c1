//! The commands that need no cluster. `tests/integration/plugin.rs` covers the others, with the binary that Cargo builds
//! for this test.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn plugin(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kubectl-llmtune")).args(arguments).env("KUBECONFIG", "/nowhere").output().unwrap()
}

#[test]
fn help_lists_every_command() {
    let output = plugin(&["--help"]);
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for command in
        ["test", "deliveries", "redeliver", "status", "dashboard", "verify", "listen", "create", "completion"]
    {
        assert!(help.contains(&format!("  {command} ")), "{command}: {help}");
    }
}

#[test]
fn create_prints_manifests_without_a_cluster() {
    let output = plugin(&["create", "ci", "--url", "https://ci.example.com/hooks", "--events", "training.*"]);
    let manifests = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in ["kind: Secret", "kind: Webhook", "url: https://ci.example.com/hooks", "training.*"] {
        assert!(manifests.contains(part), "{part}: {manifests}");
    }
}

#[test]
fn misspelled_commands_get_a_suggestion() {
    let output = plugin(&["statsu"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(message.contains("'status'"), "{message}");
}
