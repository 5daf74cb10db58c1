//! `kubectl llmtune deliveries`: lists the deliveries of a Webhook and their results.

use std::process::ExitCode;

use jiff::Timestamp;

use super::{
    cli::{ClusterArgs, DeliveriesArgs},
    connection::Cluster,
    failure::Failure,
    output::{self, Format, Screen, note, print},
    selection::{self, Delivery, Selection},
    webhooks,
};

pub async fn run(args: &ClusterArgs, asked: &DeliveriesArgs) -> Result<ExitCode, Failure> {
    let cluster = Cluster::connect(args).await?;
    let hook = webhooks::find(&cluster, &asked.target).await?;
    let objects = hook.dead_letters(&cluster).await?;
    let now = Timestamp::now();
    let selection = Selection { failed: asked.failed, since: asked.since };
    if let Some(format) = asked.output.filter(|format| *format != Format::Wide) {
        let chosen: Vec<_> =
            objects.into_iter().filter(|object| selection.admits(&Delivery::of(object), now)).collect();
        print(&output::list(&chosen, format)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let all = selection::all(&objects, &hook.status.recent);
    let chosen = all.iter().filter(|delivery| selection.admits(delivery, now));
    let table = selection::table(chosen, asked.output == Some(Format::Wide), now);
    if table.is_empty() {
        let which = if all.is_empty() { "deliveries" } else { "matching deliveries" };
        note(&format!("No {which} of {} found.", hook.target));
    } else {
        print(&table.text(Screen::of_stdout().paint, None))?;
    }
    Ok(ExitCode::SUCCESS)
}
