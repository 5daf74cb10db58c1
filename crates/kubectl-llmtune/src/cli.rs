//! The command line. Its flags are those of kubectl, where kubectl has them.

use std::{path::PathBuf, time::Duration};

use clap::{
    Args, Parser, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use clap_complete::Shell;

use super::{age, output::Format, target::Target};
use llmtune_api::webhook::Format as BodyFormat;
use llmtune_core::event::EventType;

/// Tests, watches and repairs webhook subscriptions of llmtune-webhooks.
#[derive(Debug, Parser)]
#[command(name = "kubectl-llmtune", bin_name = "kubectl llmtune", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster, and as whom.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Options of every command")]
pub struct ClusterArgs {
    /// The namespace [default: the context's]. Of a `ClusterWebhook`: the operator's.
    #[arg(short, long, global = true, value_name = "NS")]
    pub namespace: Option<String>,
    /// The kubeconfig file [default: KUBECONFIG, else ~/.kube/config].
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig to use.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The cluster of the kubeconfig to use.
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// The user of the kubeconfig to use.
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// Whom to impersonate.
    #[arg(long = "as", global = true, value_name = "USER")]
    pub impersonate: Option<String>,
    /// A group to impersonate; may be given several times.
    #[arg(long = "as-group", global = true, value_name = "GROUP", requires = "impersonate")]
    pub groups: Vec<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Send a test to a Webhook's endpoint and print its answer.
    Test(TestArgs),
    /// List a Webhook's deliveries: the newest ones and the dead letters.
    Deliveries(DeliveriesArgs),
    /// Send deliveries that were given up again, and wait until they are acknowledged.
    Redeliver(RedeliverArgs),
    /// Show the health of Webhooks.
    Status(StatusArgs),
    /// Serve a page on this machine that shows the health of Webhooks, tests them and redelivers.
    Dashboard(DashboardArgs),
    /// Verify a recorded request from standard input, and report the cause if it fails.
    Verify(VerifyArgs),
    /// Receive deliveries on this machine: verify them, show them, and hand them on.
    Listen(ListenArgs),
    /// Print the manifest of a Webhook and of a strong Secret for it.
    Create(CreateArgs),
    /// Print the script that completes commands in a shell.
    Completion(CompletionArgs),
}

#[derive(Args, Debug)]
pub struct TestArgs {
    /// The Webhook: NAME, or clusterwebhook/NAME.
    #[arg(value_name = "WEBHOOK")]
    pub target: Target,
    /// The event to make up [default: the first one that the Webhook subscribes to].
    #[arg(long, value_parser = events(), value_name = "EVENT")]
    pub event: Option<EventType>,
    /// How long to wait for the outcome.
    #[arg(long, default_value = "90s", value_parser = age::read, value_name = "DURATION")]
    pub timeout: Duration,
    /// Print the `WebhookDelivery`.
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Format>,
}

#[derive(Args, Debug)]
pub struct DeliveriesArgs {
    /// The Webhook: NAME, or clusterwebhook/NAME.
    #[arg(value_name = "WEBHOOK")]
    pub target: Target,
    /// Only what the endpoint has not acknowledged.
    #[arg(long)]
    pub failed: bool,
    /// Only what finished within this time, such as 2h.
    #[arg(long, value_parser = age::read, value_name = "DURATION")]
    pub since: Option<Duration>,
    /// Another form; json, yaml and name print the `WebhookDelivery` objects alone.
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Format>,
}

#[derive(Args, Debug)]
pub struct RedeliverArgs {
    /// The Webhook: NAME, or clusterwebhook/NAME.
    #[arg(value_name = "WEBHOOK")]
    pub target: Target,
    /// Only what the endpoint has not acknowledged, and nothing a second time.
    #[arg(long)]
    pub failed: bool,
    /// Only what finished within this time, such as 2h.
    #[arg(long, value_parser = age::read, value_name = "DURATION")]
    pub since: Option<Duration>,
    /// List what would be sent again, and send nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// How long to wait for the outcomes; deliveries go on after that.
    #[arg(long, default_value = "2m", value_parser = age::read, value_name = "DURATION")]
    pub timeout: Duration,
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Of all namespaces, whatever -n says, with the `ClusterWebhooks`.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Go on, and show changes: as a live table on a terminal, else a line for each.
    #[arg(short, long)]
    pub watch: bool,
    /// Another form.
    #[arg(short, long, value_name = "FORMAT", conflicts_with = "watch")]
    pub output: Option<Format>,
}

#[derive(Args, Debug)]
pub struct DashboardArgs {
    /// Of all namespaces, with the `ClusterWebhooks`; -n names the operator's then.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// The port of 127.0.0.1; 0: any that is free.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
}

#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// A file with the secret, byte for byte as the receiver has it.
    #[arg(long, value_name = "FILE")]
    pub secret_file: PathBuf,
    /// A header, as curl takes it, where standard input is the body alone; may be given several times.
    #[arg(short = 'H', long = "header", value_parser = header, value_name = "'NAME: VALUE'")]
    pub headers: Vec<(String, String)>,
    /// The format [default: what the headers say].
    #[arg(long, value_parser = formats(), value_name = "FORMAT")]
    pub format: Option<BodyFormat>,
}

#[derive(Args, Debug)]
pub struct ListenArgs {
    /// The port of 127.0.0.1; 0: any that is free.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// A file with the secret, byte for byte as in the cluster. Without it nothing is verified.
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Where to hand deliveries on to; what is answered there is the answer. What does not verify is not handed on.
    #[arg(long, value_parser = http_url, value_name = "URL")]
    pub forward: Option<reqwest::Url>,
    /// The status to answer, to see how an endpoint that fails is dealt with.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(200..600), conflicts_with = "forward")]
    pub answer: u16,
}

#[derive(Args, Debug)]
pub struct CreateArgs {
    /// The Webhook: NAME, or clusterwebhook/NAME.
    #[arg(value_name = "WEBHOOK")]
    pub target: Target,
    /// Where to send events.
    #[arg(long, value_parser = http_url)]
    pub url: reqwest::Url,
    /// What to send: events, training.* and the like, or "*"; comma-separated.
    #[arg(long, value_delimiter = ',', default_value = "*", value_parser = patterns(), value_name = "EVENTS")]
    pub events: Vec<String>,
    /// How events are written.
    #[arg(long, value_parser = formats(), default_value = "LLMTune", value_name = "FORMAT")]
    pub format: BodyFormat,
    /// A Secret that is there already: none is made.
    #[arg(long, value_name = "SECRET")]
    pub existing_secret: Option<String>,
}

#[derive(Args, Debug)]
pub struct CompletionArgs {
    #[arg(value_enum)]
    pub shell: Shell,
}

/// The names of events.
fn events() -> impl TypedValueParser<Value = EventType> {
    PossibleValuesParser::new(EventType::ALL.map(EventType::name))
        .try_map(|name| EventType::parse(&name).ok_or("there is no such event"))
}

/// The same, and patterns.
fn patterns() -> PossibleValuesParser {
    let patterns = ["*", "training.*", "model.*", "deployment.*", "usage.*"];
    PossibleValuesParser::new(patterns.into_iter().chain(EventType::ALL.map(EventType::name)))
}

fn formats() -> impl TypedValueParser<Value = BodyFormat> {
    let formats = [BodyFormat::LLMTune, BodyFormat::StandardWebhooks, BodyFormat::CloudEvents];
    PossibleValuesParser::new(formats.map(format_name)).try_map(move |name| {
        formats.into_iter().find(|format| format_name(*format) == name).ok_or("there is no such format")
    })
}

/// The format's name, as `spec.format` has it.
pub const fn format_name(format: BodyFormat) -> &'static str {
    match format {
        BodyFormat::LLMTune => "LLMTune",
        BodyFormat::StandardWebhooks => "StandardWebhooks",
        BodyFormat::CloudEvents => "CloudEvents",
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write 'Name: value'")?;
    Ok((name.trim().to_lowercase(), value.trim().to_owned()))
}

fn http_url(text: &str) -> Result<reqwest::Url, String> {
    let url = reqwest::Url::parse(text).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
    url.ok_or_else(|| "write an absolute http:// or https:// URL, such as http://127.0.0.1:3000/hooks".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_where_kubectls_may() {
        for line in ["-n research test ci", "test -n research ci", "test ci --namespace=research", "test ci -nresearch"]
        {
            let cli = Cli::try_parse_from(std::iter::once("kubectl-llmtune").chain(line.split(' '))).unwrap();
            assert_eq!(cli.cluster.namespace.as_deref(), Some("research"), "{line}");
        }
    }

    #[test]
    fn a_mistyped_event_is_told_with_what_was_meant() {
        let error = Cli::try_parse_from(["kubectl-llmtune", "test", "ci", "--event", "training.complete"]).unwrap_err();
        assert!(error.to_string().contains("training.completed"), "{error}");
    }
}
