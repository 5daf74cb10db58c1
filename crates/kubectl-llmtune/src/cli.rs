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

/// The cluster and the user.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub struct ClusterArgs {
    /// The namespace [default: the context's]. For a `ClusterWebhook`, the operator's namespace.
    #[arg(short, long, global = true, value_name = "NS")]
    pub namespace: Option<String>,
    /// The kubeconfig file [default: KUBECONFIG, or else ~/.kube/config].
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
    /// The user to impersonate.
    #[arg(long = "as", global = true, value_name = "USER")]
    pub impersonate: Option<String>,
    /// A group to impersonate; can be repeated.
    #[arg(long = "as-group", global = true, value_name = "GROUP", requires = "impersonate")]
    pub groups: Vec<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Send a test event to a Webhook's endpoint, and print the answer.
    Test(TestArgs),
    /// List a Webhook's deliveries: the newest ones and the dead letters.
    Deliveries(DeliveriesArgs),
    /// Resend dead letters, and wait for the outcome.
    Redeliver(RedeliverArgs),
    /// Show the health of Webhooks.
    Status(StatusArgs),
    /// Serve a local web page that shows the health of Webhooks, sends tests and resends deliveries.
    Dashboard(DashboardArgs),
    /// Verify a recorded request from standard input; if verification fails, find the cause.
    Verify(VerifyArgs),
    /// Receive deliveries on this machine; verify, print and forward them.
    Listen(ListenArgs),
    /// Print the manifests of a Webhook and of a Secret with a strong key.
    Create(CreateArgs),
    /// Print the completion script for a shell.
    Completion(CompletionArgs),
}

#[derive(Args, Debug)]
pub struct TestArgs {
    /// The Webhook: NAME, or clusterwebhook/NAME.
    #[arg(value_name = "WEBHOOK")]
    pub target: Target,
    /// The event to send [default: the first event that the Webhook subscribes to].
    #[arg(long, value_parser = events(), value_name = "EVENT")]
    pub event: Option<EventType>,
    /// How long to wait for the outcome.
    #[arg(long, default_value = "90s", value_parser = age::read, value_name = "DURATION")]
    pub timeout: Duration,
    /// Print the `WebhookDelivery` object in this format.
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Format>,
}

#[derive(Args, Debug)]
pub struct DeliveriesArgs {
    /// The Webhook: NAME, or clusterwebhook/NAME.
    #[arg(value_name = "WEBHOOK")]
    pub target: Target,
    /// Only deliveries that the endpoint has not acknowledged.
    #[arg(long)]
    pub failed: bool,
    /// Only deliveries that finished within this time, such as 2h.
    #[arg(long, value_parser = age::read, value_name = "DURATION")]
    pub since: Option<Duration>,
    /// The output format; json, yaml and name print only the `WebhookDelivery` objects.
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Format>,
}

#[derive(Args, Debug)]
pub struct RedeliverArgs {
    /// The Webhook: NAME, or clusterwebhook/NAME.
    #[arg(value_name = "WEBHOOK")]
    pub target: Target,
    /// Only deliveries that the endpoint has not acknowledged.
    #[arg(long)]
    pub failed: bool,
    /// Only deliveries that finished within this time, such as 2h.
    #[arg(long, value_parser = age::read, value_name = "DURATION")]
    pub since: Option<Duration>,
    /// List the deliveries without sending them.
    #[arg(long)]
    pub dry_run: bool,
    /// How long to wait for the outcome; the deliveries continue with their retries.
    #[arg(long, default_value = "2m", value_parser = age::read, value_name = "DURATION")]
    pub timeout: Duration,
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Show all namespaces and the `ClusterWebhooks`, and ignore -n.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Follow changes: a terminal shows one table, a pipe gets a line for each change.
    #[arg(short, long)]
    pub watch: bool,
    /// The output format.
    #[arg(short, long, value_name = "FORMAT", conflicts_with = "watch")]
    pub output: Option<Format>,
}

#[derive(Args, Debug)]
pub struct DashboardArgs {
    /// Show all namespaces and the `ClusterWebhooks`; -n then names the operator's namespace.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// The port at 127.0.0.1; 0 selects a free port.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
}

#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// A file with the same bytes as the receiver's secret.
    #[arg(long, value_name = "FILE")]
    pub secret_file: PathBuf,
    /// A header, as with curl, if standard input is only the body; can be repeated.
    #[arg(short = 'H', long = "header", value_parser = header, value_name = "'NAME: VALUE'")]
    pub headers: Vec<(String, String)>,
    /// The format [default: determined by the headers].
    #[arg(long, value_parser = formats(), value_name = "FORMAT")]
    pub format: Option<BodyFormat>,
}

#[derive(Args, Debug)]
pub struct ListenArgs {
    /// The port at 127.0.0.1; 0 selects a free port.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// A file with the same bytes as the Secret in the cluster. Without it, nothing is verified.
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Forward deliveries to this URL, and return its answer. Deliveries that do not verify are not forwarded.
    #[arg(long, value_parser = http_url, value_name = "URL")]
    pub forward: Option<reqwest::Url>,
    /// The status code to answer with, to see how the operator handles a failing endpoint.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(200..600), conflicts_with = "forward")]
    pub answer: u16,
}

#[derive(Args, Debug)]
pub struct CreateArgs {
    /// The Webhook: NAME, or clusterwebhook/NAME.
    #[arg(value_name = "WEBHOOK")]
    pub target: Target,
    /// The URL of the endpoint.
    #[arg(long, value_parser = http_url)]
    pub url: reqwest::Url,
    /// The events to send, separated by commas: names, patterns such as training.*, or "*".
    #[arg(long, value_delimiter = ',', default_value = "*", value_parser = patterns(), value_name = "EVENTS")]
    pub events: Vec<String>,
    /// The format of the events.
    #[arg(long, value_parser = formats(), default_value = "LLMTune", value_name = "FORMAT")]
    pub format: BodyFormat,
    /// Refer to this existing Secret instead of generating one.
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

/// The names of events, and patterns.
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

/// The format's name in `spec.format`.
pub const fn format_name(format: BodyFormat) -> &'static str {
    match format {
        BodyFormat::LLMTune => "LLMTune",
        BodyFormat::StandardWebhooks => "StandardWebhooks",
        BodyFormat::CloudEvents => "CloudEvents",
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("use the form 'Name: value'")?;
    Ok((name.trim().to_lowercase(), value.trim().to_owned()))
}

fn http_url(text: &str) -> Result<reqwest::Url, String> {
    let url = reqwest::Url::parse(text).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
    url.ok_or_else(|| "use an absolute http:// or https:// URL, such as http://127.0.0.1:3000/hooks".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn accepts_flags_before_and_after_the_command() {
        for line in ["-n research test ci", "test -n research ci", "test ci --namespace=research", "test ci -nresearch"]
        {
            let cli = Cli::try_parse_from(std::iter::once("kubectl-llmtune").chain(line.split(' '))).unwrap();
            assert_eq!(cli.cluster.namespace.as_deref(), Some("research"), "{line}");
        }
    }

    #[test]
    fn mistyped_event_gets_a_suggestion() {
        let error = Cli::try_parse_from(["kubectl-llmtune", "test", "ci", "--event", "training.complete"]).unwrap_err();
        assert!(error.to_string().contains("training.completed"), "{error}");
    }
}
