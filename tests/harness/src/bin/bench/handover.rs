//! Ends a leader under load. Its successor is the same process, started again, or a standby.

use std::time::{Duration, Instant};

use llmtune_webhooks_harness::operator::{Operator, metric};

use crate::{
    load::Load,
    subject::{Memory, leading_since, memory},
    tally::{Reckoning, Tally},
};

/// How long the leader leads under load before it ends.
const BEFORE: Duration = Duration::from_secs(1);
const STOPPING: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(10);

/// How the leader ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// SIGKILL.
    Killed,
    /// SIGTERM.
    Told,
}

/// The measured handover.
#[derive(Clone, Copy)]
pub struct Handover {
    /// From the signal to the new leader's first POST.
    pub gap: Duration,
    /// From the new leader's log line about its leadership to its first POST.
    pub first_delivery: Duration,
    pub reckoning: Reckoning,
    pub memory: Memory,
    /// Lists of all TrainingJobs by the new leader.
    pub lists: u32,
}

/// Ends the leader under load. With a `standby`, that takes over; otherwise the same process is started again
/// immediately. In both cases the ended process is running again on return.
pub async fn end(
    leader: &mut Operator,
    standby: Option<&Operator>,
    end: End,
    load: &Load,
    (rate, length): (u32, Duration),
    tally: &mut Tally<'_>,
) -> Result<Handover, String> {
    let driven = tokio::spawn({
        let load = load.clone();
        async move { load.steady(rate, length).await }
    });
    tokio::time::sleep(BEFORE).await;
    let ended = Instant::now();
    match end {
        End::Killed => leader.process.kill(),
        End::Told => leader.process.signal("TERM"),
    }
    if standby.is_none() {
        if end == End::Told {
            tokio::task::block_in_place(|| leader.process.wait(STOPPING));
        }
        leader.restart();
    }
    let driven = driven.await.map_err(|error| error.to_string())?;
    let reckoning = tally.reckon(&driven.transitions, PATIENCE).await?;
    let new = standby.unwrap_or(leader);
    let complain = |problem: &str| format!("{problem}\n{}", new.process.log_tail());
    let leading = leading_since(new).ok_or_else(|| complain("nobody leads"))?;
    let first = tally.first_since(leading).ok_or_else(|| complain("the new leader posts nothing"))?;
    let log = new.log();
    if !log.contains("continuing from the ledger") {
        return Err(complain("the new leader did not go on from the ledger"));
    }
    let lists = metric(
        &new.metrics(),
        "llmtune_webhooks_api_requests_total",
        &[("verb", "list"), ("resource", "trainingjobs")],
    ) as u32;
    // A watch begins with a list of one object, which checks the store's version, and lasts half a minute.
    let checks = 1 + (leading.elapsed().as_secs() / 30) as u32;
    let (gap, first_delivery) = (first.duration_since(ended), first.duration_since(leading));
    let lists = if log.contains("; listing") { lists } else { lists.saturating_sub(checks) };
    let handover = Handover { gap, first_delivery, reckoning, memory: memory(&new.process), lists };
    if standby.is_some() {
        tokio::task::block_in_place(|| leader.process.wait(STOPPING));
        leader.restart();
        leader.wait_readyz("standby", STOPPING).await;
    }
    Ok(handover)
}
