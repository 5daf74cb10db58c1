//! Shell completion: `kubectl llmtune completion SHELL`, and the helper that kubectl calls for a plugin.
//!
//! kubectl runs `kubectl_complete-llmtune` with the words so far, the last of which is to be completed, and reads
//! output in the format of cobra's `__complete`: one candidate per line, with its description after a tab, and a
//! directive as the last line. This binary acts as that helper if it runs under that name.

use std::{ffi::OsString, process::ExitCode, time::Duration};

use clap::{Arg, CommandFactory};
use clap_complete::Shell;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::ListParams};
use tokio::time::timeout;

use super::{
    cli::{Cli, ClusterArgs},
    connection::{Cluster, contexts},
    failure::Failure,
    objects::{self, name},
    output::print,
};
use llmtune_api::{ClusterWebhook, Webhook};

/// The name of the helper that kubectl looks for.
pub const HELPER: &str = "kubectl_complete-llmtune";
/// The name of this program.
const NAME: &str = "kubectl-llmtune";
/// The hidden command that completes.
pub const COMMAND: &str = "__complete";
/// Cobra's directives: let the shell complete files; do not complete files.
const FILES: &str = ":0";
const NO_FILES: &str = ":4";
/// Time limit for the cluster's answer: the user waits at the prompt.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Prints the completion script of this shell.
pub fn script(shell: Shell) -> Result<ExitCode, Failure> {
    // The bash script of clap_complete does not find its own functions if the name contains a hyphen or a space.
    let name = if shell == Shell::Bash { "kubectl_llmtune" } else { NAME };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command().bin_name(name), name, &mut script);
    let script = String::from_utf8_lossy(&script);
    print(&script.replace(&format!(" {name}\n"), &format!(" {NAME}\n")))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the candidates for the last of these words.
pub async fn complete(words: &[OsString]) -> Result<ExitCode, Failure> {
    let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let Some((partial, before)) = words.split_last() else { return Ok(ExitCode::SUCCESS) };
    let Line { cluster, expected } = Line::read(before, partial);
    let (candidates, directive) = match expected {
        Expected::Words(words) => (words, NO_FILES),
        Expected::Files => (Vec::new(), FILES),
        Expected::Contexts => (plain(contexts(&cluster)), NO_FILES),
        Expected::Webhooks => (plain(in_time(webhooks(&cluster)).await), NO_FILES),
        Expected::Namespaces => (plain(in_time(namespaces(&cluster)).await), NO_FILES),
    };
    let matching = candidates.into_iter().filter(|(word, _)| word.starts_with(partial));
    let lines: String = matching
        .map(|(word, help)| if help.is_empty() { format!("{word}\n") } else { format!("{word}\t{help}\n") })
        .collect();
    print(&format!("{lines}{directive}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn plain(words: Vec<String>) -> Vec<(String, String)> {
    words.into_iter().map(|word| (word, String::new())).collect()
}

/// No candidates if the cluster does not answer in time or refuses the request.
async fn in_time(names: impl Future<Output = Option<Vec<String>>>) -> Vec<String> {
    timeout(TIMEOUT, names).await.ok().flatten().unwrap_or_default()
}

async fn webhooks(args: &ClusterArgs) -> Option<Vec<String>> {
    let cluster = Cluster::connect(args).await.ok()?;
    let here = objects::list(&cluster.api::<Webhook>(Some(&cluster.namespace)), None).await.unwrap_or_default();
    let of_cluster = objects::list(&cluster.api::<ClusterWebhook>(None), None).await.unwrap_or_default();
    let of_cluster = of_cluster.iter().map(|object| format!("clusterwebhook/{}", name(object)));
    Some(here.iter().map(|object| name(object).to_owned()).chain(of_cluster).collect())
}

async fn namespaces(args: &ClusterArgs) -> Option<Vec<String>> {
    let cluster = Cluster::connect(args).await.ok()?;
    let all = Api::<Namespace>::all(cluster.client).list_metadata(&ListParams::default()).await.ok()?;
    Some(all.items.into_iter().filter_map(|namespace| namespace.metadata.name).collect())
}

/// The kind of value that is expected at a position.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    /// One of these words, each with its description.
    Words(Vec<(String, String)>),
    Files,
    Contexts,
    Webhooks,
    Namespaces,
}

/// The command line so far.
struct Line {
    cluster: ClusterArgs,
    expected: Expected,
}

impl Line {
    fn read(before: &[String], partial: &str) -> Self {
        let mut root = Cli::command();
        root.build();
        let mut command = &root;
        let mut cluster = ClusterArgs::default();
        let mut places = 0;
        let mut words = before.iter();
        while let Some(word) = words.next() {
            if word.starts_with('-') {
                let (flag, joined) =
                    word.split_once('=').map_or((word.as_str(), None), |(flag, value)| (flag, Some(value)));
                let Some(arg) = command.get_arguments().find(|arg| is_named(arg, flag)) else { continue };
                if !arg.get_action().takes_values() {
                    continue;
                }
                match joined.or_else(|| words.next().map(String::as_str)) {
                    Some(value) => set_cluster_flag(&mut cluster, arg, value),
                    None => return Self { expected: values(arg), cluster },
                }
            } else if let Some(sub) = command.find_subcommand(word) {
                command = sub;
            } else {
                places += 1;
            }
        }
        let expected = if partial.starts_with('-') {
            let flags = command.get_arguments().filter(|arg| !arg.is_hide_set());
            Expected::Words(
                flags.filter_map(|arg| Some((format!("--{}", arg.get_long()?), first_line(arg.get_help())))).collect(),
            )
        } else if command.has_subcommands() {
            let commands = command.get_subcommands().filter(|sub| !sub.is_hide_set());
            Expected::Words(commands.map(|sub| (sub.get_name().to_owned(), first_line(sub.get_about()))).collect())
        } else {
            command.get_positionals().nth(places).map_or(Expected::Words(Vec::new()), values)
        };
        Self { cluster, expected }
    }
}

fn first_line(help: Option<&clap::builder::StyledStr>) -> String {
    help.map(ToString::to_string).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

fn is_named(arg: &Arg, flag: &str) -> bool {
    let short = |letter: char| flag.strip_prefix('-') == Some(letter.to_string().as_str());
    arg.get_short().is_some_and(short) || arg.get_long().is_some_and(|long| flag.strip_prefix("--") == Some(long))
}

fn set_cluster_flag(cluster: &mut ClusterArgs, arg: &Arg, value: &str) {
    let value = Some(value.to_owned());
    match arg.get_id().as_str() {
        "namespace" => cluster.namespace = value,
        "kubeconfig" => cluster.kubeconfig = value.map(Into::into),
        "context" => cluster.context = value,
        "cluster" => cluster.cluster = value,
        "user" => cluster.user = value,
        "impersonate" => cluster.impersonate = value,
        _ => {}
    }
}

/// The possible values of an argument.
fn values(arg: &Arg) -> Expected {
    match arg.get_id().as_str() {
        "target" => Expected::Webhooks,
        "namespace" => Expected::Namespaces,
        "context" => Expected::Contexts,
        "kubeconfig" | "secret_file" => Expected::Files,
        _ => {
            let known = arg.get_possible_values();
            Expected::Words(
                known.iter().map(|value| (value.get_name().to_owned(), first_line(value.get_help()))).collect(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(line: &str) -> Expected {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let (partial, before) = words.split_last().unwrap();
        Line::read(before, partial).expected
    }

    fn words(line: &str) -> Vec<String> {
        let Expected::Words(words) = expected(line) else { panic!("{line}") };
        words.into_iter().map(|(word, _)| word).collect()
    }

    #[test]
    fn offers_candidates_for_each_position() {
        assert!(
            ["test", "deliveries", "redeliver", "status", "dashboard", "verify", "listen", "create", "completion"]
                .iter()
                .all(|name| words("").contains(&(*name).to_owned()))
        );
        assert_eq!(expected("test "), Expected::Webhooks);
        assert_eq!(expected("-n research redeliver --failed "), Expected::Webhooks);
        assert_eq!(words("test ci "), [""; 0]);
        assert_eq!(expected("test ci -n "), Expected::Namespaces);
        assert_eq!(expected("status --context "), Expected::Contexts);
        assert_eq!(expected("verify --secret-file "), Expected::Files);
        assert!(words("test ci --event ").contains(&"model.deployed".to_owned()));
        assert_eq!(words("deliveries ci -o "), ["wide", "json", "yaml", "name"]);
        assert!(words("completion ").contains(&"zsh".to_owned()));
        assert!(
            ["--event", "--namespace", "--timeout"]
                .iter()
                .all(|flag| words("test ci --").contains(&(*flag).to_owned()))
        );
    }

    #[test]
    fn reads_cluster_flags_of_the_line() {
        let before = ["-n", "research", "--context=staging", "test"].map(str::to_owned);
        let line = Line::read(&before, "");
        assert_eq!(line.cluster.namespace.as_deref(), Some("research"));
        assert_eq!(line.cluster.context.as_deref(), Some("staging"));
    }
}
