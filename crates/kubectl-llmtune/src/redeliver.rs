//! `kubectl llmtune redeliver`: sends dead letters again.

use std::{
    collections::HashMap,
    io::IsTerminal,
    pin::pin,
    process::ExitCode,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use tokio::time::timeout_at;

use super::{
    age::took,
    cli::{ClusterArgs, RedeliverArgs},
    connection::Cluster,
    failure::{Failure, OPERATOR_AWAY, refusal},
    objects::name,
    output::{Screen, note, print},
    selection::{self, Delivery, Selection, Standing},
    webhooks::{self, Hook},
};
use llmtune_api::{WebhookDelivery, webhook_delivery::REDELIVER_ANNOTATION};

/// Interval at which the progress bar is redrawn.
const TICK: Duration = Duration::from_millis(200);
/// Maximum number of concurrent requests.
const AT_ONCE: usize = 16;

pub async fn run(args: &ClusterArgs, asked: &RedeliverArgs) -> Result<ExitCode, Failure> {
    let cluster = Cluster::connect(args).await?;
    let hook = webhooks::find(&cluster, &asked.target).await?;
    let all = selection::all(&hook.dead_letters(&cluster).await?, &[]);
    let now = Timestamp::now();
    let selection = Selection { failed: asked.failed, since: asked.since };
    let chosen: Vec<&Delivery> = all.iter().filter(|delivery| selection.redelivers(delivery, now)).collect();
    if chosen.is_empty() {
        let reason = if all.is_empty() {
            format!("{} has no WebhookDelivery objects", hook.target)
        } else {
            format!("0 of {} WebhookDelivery objects of {} are selected", all.len(), hook.target)
        };
        note(&format!("Nothing to resend: {reason}."));
        return Ok(ExitCode::SUCCESS);
    }
    if asked.dry_run {
        let table = selection::table(chosen.iter().copied(), false, now).text(Screen::of_stdout().paint, None);
        print(&format!("{table}{} of {} would be sent again\n", count(chosen.len()), hook.target))?;
        return Ok(ExitCode::SUCCESS);
    }
    send_again(&cluster, &hook, &chosen, asked.timeout).await
}

async fn send_again(
    cluster: &Cluster,
    hook: &Hook,
    chosen: &[&Delivery],
    limit: Duration,
) -> Result<ExitCode, Failure> {
    let api = cluster.api::<WebhookDelivery>(Some(&hook.home));
    let request = Timestamp::now().to_string();
    let begun = Instant::now();
    let bar = bar(chosen.len());
    let names = chosen.iter().filter_map(|delivery| delivery.name.clone());
    let waiting = ask(cluster, &api, names.collect(), &request).await.inspect_err(|_| bar.finish_and_clear())?;
    if hook.is_suspended() {
        bar.finish_and_clear();
        let what = count(waiting.len());
        print(&format!("{what} of {} requested; they stay pending while spec.suspend is true\n", hook.target))?;
        return Ok(ExitCode::SUCCESS);
    }
    let outcome = wait(cluster, &api, hook, waiting, &request, begun + limit, &bar).await;
    bar.finish_and_clear();
    summarize(hook, &outcome?, chosen.len(), begun.elapsed())
}

/// Requests each redelivery by this value of the annotation. Returns the names of the objects that still exist.
pub async fn ask(
    cluster: &Cluster,
    api: &Api<DynamicObject>,
    names: Vec<String>,
    request: &str,
) -> Result<Vec<String>, Failure> {
    let patch = json!({"metadata": {"annotations": {REDELIVER_ANNOTATION: request}}});
    let asking = stream::iter(names).map(|name| {
        let patch = Patch::Merge(&patch);
        async move {
            match api.patch(&name, &PatchParams::default(), &patch).await {
                Ok(_) => Ok(Some(name)),
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
                Err(error) => Err(cluster.failed(&error)),
            }
        }
    });
    asking.buffer_unordered(AT_ONCE).try_filter_map(|name| async move { Ok(name) }).try_collect().await
}

/// Results by name; `None` if the delivery is still pending.
type Outcome = HashMap<String, Option<Delivery>>;

/// Waits until each delivery has a result or is deleted, or until the timeout.
async fn wait(
    cluster: &Cluster,
    api: &Api<DynamicObject>,
    hook: &Hook,
    names: Vec<String>,
    request: &str,
    until: Instant,
    bar: &ProgressBar,
) -> Result<Outcome, Failure> {
    let mut outcome: Outcome = names.into_iter().map(|name| (name, None)).collect();
    let config = watcher::Config::default().labels(&hook.selector());
    let mut changes = pin!(watcher(api.clone(), config).default_backoff());
    while outcome.values().any(Option::is_none) {
        let Ok(change) = timeout_at(until.into(), changes.next()).await else { break };
        match change {
            Some(Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object))) => {
                let delivery = Delivery::of(&object);
                if let Some(open @ None) = outcome.get_mut(name(&object))
                    && delivery.handled.as_deref() == Some(request)
                {
                    *open = Some(delivery);
                }
            }
            Some(Ok(watcher::Event::Delete(object))) => {
                outcome.remove(name(&object));
            }
            Some(Ok(watcher::Event::Init | watcher::Event::InitDone)) => {}
            Some(Err(error)) => {
                if let Some(refused) = refusal(&error) {
                    return Err(cluster.failed(refused));
                }
            }
            None => break,
        }
        bar.set_position(outcome.values().flatten().count() as u64);
        let failed = outcome.values().flatten().filter(|delivery| delivery.standing != Standing::Delivered).count();
        if failed > 0 {
            bar.set_message(format!("{failed} not acknowledged"));
        }
    }
    Ok(outcome)
}

fn summarize(hook: &Hook, outcome: &Outcome, chosen: usize, elapsed: Duration) -> Result<ExitCode, Failure> {
    let mut failed: Vec<&Delivery> =
        outcome.values().flatten().filter(|delivery| delivery.standing != Standing::Delivered).collect();
    failed.sort_by(|one, other| one.name.cmp(&other.name));
    let acknowledged = outcome.values().flatten().count() - failed.len();
    let open = outcome.values().filter(|delivery| delivery.is_none()).count();
    let mut text =
        format!("{} of {} sent again in {}: {acknowledged} acknowledged", count(chosen), hook.target, took(elapsed));
    for (number, what) in [(failed.len(), "not acknowledged"), (open, "pending"), (chosen - outcome.len(), "deleted")] {
        if number > 0 {
            text.extend([format!(", {number} {what}")]);
        }
    }
    text.push('\n');
    if !failed.is_empty() {
        text.push_str(
            &selection::table(failed.iter().copied(), true, Timestamp::now()).text(Screen::of_stdout().paint, None),
        );
    }
    print(&text)?;
    if open > 0 && open == outcome.len() {
        return Err(Failure::new("no delivery finished before the timeout").next(OPERATOR_AWAY));
    }
    if open > 0 {
        note(&format!(
            "Pending deliveries continue with their retries; to see them, run kubectl llmtune -n {} deliveries {}.",
            hook.home, hook.target
        ));
    }
    Ok(if failed.is_empty() && open == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The number of deliveries, in words.
pub fn count(number: usize) -> String {
    if number == 1 { "1 delivery".into() } else { format!("{number} deliveries") }
}

/// A progress bar on standard error, if that is a terminal.
fn bar(length: usize) -> ProgressBar {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(length as u64), target);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} answered  {elapsed}  {msg}") {
        bar.set_style(style.progress_chars("━━╌"));
    }
    if terminal {
        bar.enable_steady_tick(TICK);
    }
    bar
}
