//! Renders the page's HTML. Pure: all content comes from arguments, and maud escapes all of it.

use jiff::Timestamp;
use maud::{DOCTYPE, Markup, html};

use super::{
    chart::{chart, told},
    history::{Hour, MINUTES},
};
use crate::{
    age::age,
    redeliver::count,
    selection::{Delivery, Selection, Standing},
    status,
    table::{Tone, printable},
    test::subscribed,
    webhooks::Hook,
};
use llmtune_api::{conditions, webhook::WebhookStatus, webhook_delivery::WebhookKind};
use llmtune_core::event::EventType;

/// The data around the content of every page.
pub struct Frame<'a> {
    /// The path prefix of all pages, such as `/0123`.
    pub base: &'a str,
    /// The apiserver's address.
    pub server: &'a str,
    /// The namespace of the Webhooks. `None` means all namespaces.
    pub namespace: Option<&'a str>,
    /// Problems with the data that is shown.
    pub amiss: Vec<String>,
    pub now: Timestamp,
}

/// The result of a form.
pub enum News<'a> {
    Nothing,
    /// This many deliveries were requested again.
    Asked(usize),
    /// This delivery was requested.
    Of(&'a Delivery),
    /// The request failed.
    Failed(&'a str),
}

/// The list of all Webhooks.
pub fn overview(frame: &Frame, hooks: &[(Hook, Hour)]) -> String {
    let place = frame.namespace.map_or("in all namespaces".into(), |namespace| format!("in namespace {namespace}"));
    let summary = status::summary(hooks.iter().map(|(hook, _)| hook.status.clone()));
    let content = html! {
        h1 { "Webhooks " (place) }
        p.quiet { (summary) }
        @if hooks.is_empty() && frame.amiss.is_empty() {
            p { (status::none(frame.namespace)) " To create one, run " code { "kubectl llmtune create NAME --url https://…" } "." }
        }
        ul { @for (hook, hour) in hooks { li.sheet.hook { (card(frame, hook, hour)) } } }
    };
    document(frame, &format!("Webhooks {place}"), &summary, &format!("{}/", frame.base), &News::Nothing, &content)
}

fn card(frame: &Frame, hook: &Hook, hour: &Hour) -> Markup {
    let counts = hook.status.deliveries.unwrap_or_default();
    html! {
        div {
            h2 {
                a id={ "hook-" (hook.target.kind) "-" (hook.home) "-" (hook.target.name) } href=(path(frame.base, hook)) {
                    @if frame.namespace.is_none() && hook.target.kind == WebhookKind::Webhook { (hook.home) "/" }
                    (hook.target.name)
                }
                @if hook.target.kind == WebhookKind::ClusterWebhook { span.quiet { " ClusterWebhook" } }
            }
            (marks(hook))
            p.quiet { (endpoint(hook)) }
            @if let Some(why) = status::why(&hook.status, hook.spec.as_ref()) { p { (why) } }
        }
        div {
            (chart(hour, &hook.target.name))
            p.quiet {
                (told(hour)) "; " (counts.pending) " pending, " (counts.failed) " given up"
                @if let Some(last) = &hook.status.last_success { ", last acknowledged " (age(last.time.0, frame.now)) " ago" }
            }
        }
    }
}

/// One Webhook with its conditions and deliveries.
pub fn detail(frame: &Frame, hook: &Hook, hour: &Hour, deliveries: &[Delivery], url: &str, news: &News) -> String {
    let failed = Selection { failed: true, since: None };
    let again = deliveries.iter().filter(|delivery| failed.redelivers(delivery, frame.now)).count();
    let path = path(frame.base, hook);
    let content = html! {
        nav { p { a id="all" href={ (frame.base) "/" } { "All webhooks" } } }
        h1 { (hook.target.name) }
        (marks(hook))
        p.quiet {
            (endpoint(hook)) " · "
            @match hook.target.kind {
                WebhookKind::Webhook => { "Webhook in namespace " (hook.home) },
                WebhookKind::ClusterWebhook => { "ClusterWebhook, its deliveries in namespace " (hook.home) },
            }
            @if let Some(spec) = &hook.spec { " · " (spec.events.join(", ")) }
        }
        (outcome(news))
        section.sheet.wide { (last_hour(hook, hour)) }
        section.sheet { (conditions_of(&hook.status, frame.now)) }
        section.sheet {
            div.bar {
                h2 #deliveries { "Deliveries" }
                @if again > 0 {
                    form method="post" action={ (path) "/redeliver" } {
                        button #again { "Redeliver all " (again) " that failed" }
                    }
                }
                form method="post" action={ (path) "/test" } {
                    label for="event" { "Event" }
                    select #event name="event" { @for event in events(hook) { option { (event) } } }
                    button #test { "Send a test" }
                }
            }
            (table(frame, hook, deliveries))
        }
    };
    let healthy = conditions::get(&hook.status.conditions, "Healthy").map_or("Unknown", |known| &known.status);
    let summary = format!("{} Healthy: {healthy}, {again} to redeliver", hook.target.name);
    document(frame, &hook.target.to_string(), &summary, url, news, &content)
}

/// A page at this path that shows only a message.
pub fn message(frame: &Frame, url: &str, title: &str, text: &str) -> String {
    let content = html! {
        h1 { (title) }
        p { (text) }
        p { a #all href={ (frame.base) "/" } { "All webhooks" } }
    };
    document(frame, title, title, url, &News::Nothing, &content)
}

/// The path of a Webhook's page.
pub fn path(base: &str, hook: &Hook) -> String {
    let namespace = (hook.target.kind == WebhookKind::Webhook).then_some(hook.home.as_str());
    path_of(base, namespace, &hook.target.name)
}

/// The path of a Webhook that need not exist. A `ClusterWebhook` has no namespace.
pub fn path_of(base: &str, namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{base}/webhook/{namespace}/{name}"),
        None => format!("{base}/clusterwebhook/{name}"),
    }
}

/// `url` is where the content is reloaded from. `summary` is announced when it changes.
fn document(frame: &Frame, title: &str, summary: &str, url: &str, news: &News, content: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { (title) " · llmtune" }
                link rel="icon" href="data:,";
                link rel="stylesheet" href={ (frame.base) "/style.css" };
                script defer src={ (frame.base) "/script.js" } {}
            }
            body {
                a.skip #skip href="#content" { "Skip to content" }
                header {
                    p { "llmtune webhooks" }
                    p #live role="status" data-changes={ (frame.base) "/changes" } data-lost="Not connected: kubectl llmtune dashboard has stopped or cannot be reached" {}
                    noscript { p { "JavaScript is off: " a href=(url) { "reload" } " to update the page" } }
                }
                main #content tabindex="-1" {
                    @if let News::Failed(text) = news { p.sheet.told.bad #told role="alert" { (text) } }
                    div #now tabindex="-1" data-url=(url) data-summary=(summary) {
                        @for text in &frame.amiss { p.sheet.told.bad { (text) } }
                        (content)
                    }
                }
                footer { p { (frame.server) " · kubectl llmtune " (env!("CARGO_PKG_VERSION")) " · at " (frame.now.strftime("%H:%M:%SZ").to_string()) } }
            }
        }
    };
    // Names and texts may contain bidirectional control characters that reorder the page around them.
    page.into_string().split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Describes the result of a form.
fn outcome(news: &News) -> Markup {
    let text = match news {
        News::Nothing | News::Failed(_) => return html! {},
        News::Asked(number) => format!("{} requested again.", count(*number)),
        News::Of(delivery) => {
            let what = if delivery.test { "The test" } else { "The delivery" };
            let name = delivery.name.as_deref().unwrap_or_default();
            let state = match delivery.standing {
                Standing::Pending => "is pending".to_owned(),
                Standing::Delivered => {
                    let code = delivery.status_code.map(|code| format!(" with HTTP {code}"));
                    format!("was acknowledged{}", code.unwrap_or_default())
                }
                Standing::Failed => format!("was not acknowledged: {}", why_not(delivery)),
            };
            format!("{what} {name} {state}.")
        }
    };
    html! { p.sheet.told #told { (text) } }
}

fn why_not(delivery: &Delivery) -> String {
    let code = delivery.status_code.map(|code| format!("HTTP {code}"));
    match (code, delivery.error.as_str()) {
        (Some(code), "") => code,
        (None, "") => "no answer".to_owned(),
        (_, error) => error.to_owned(),
    }
}

fn marks(hook: &Hook) -> Markup {
    let says = |kind: &str| conditions::get(&hook.status.conditions, kind).map(|condition| condition.status.as_str());
    let word = |kind: &str, good: &'static str, bad: &'static str, unknown: &'static str| match says(kind) {
        Some("True") => mark(Tone::Good, good),
        Some("False") => mark(Tone::Bad, bad),
        _ => mark(Tone::Faint, unknown),
    };
    html! {
        div.marks {
            (word("Ready", "Ready", "Not ready", "Readiness unknown"))
            (word("Healthy", "Healthy", "Failing", "Health unknown"))
            @if says("Stalled") == Some("True") { (mark(Tone::Bad, "Stalled")) }
            @if hook.is_suspended() { (mark(Tone::Faint, "Suspended")) }
        }
    }
}

fn mark(tone: Tone, text: &str) -> Markup {
    let class = match tone {
        Tone::Good => "good",
        Tone::Bad => "bad",
        Tone::Plain | Tone::Faint => "wait",
    };
    html! { span class={ "mark " (class) } { (text) } }
}

fn endpoint(hook: &Hook) -> &str {
    hook.status.endpoint.as_deref().unwrap_or("endpoint not known yet")
}

fn last_hour(hook: &Hook, hour: &Hour) -> Markup {
    let counts = hook.status.deliveries.unwrap_or_default();
    let all = [
        ("Delivered", counts.succeeded),
        ("Given up", counts.failed),
        ("Retries", counts.retries),
        ("Pending", counts.pending),
        ("Dropped", counts.dropped),
    ];
    html! {
        h2 #hour { "Last hour" }
        (chart(hour, &hook.target.name))
        p.quiet {
            (told(hour)) ". Each of the " (MINUTES) " columns is one minute: acknowledged deliveries above the line, failed attempts "
            "below it. The strip is thick where the endpoint was failing. The counts are complete since "
            (hour.since.strftime("%H:%MZ").to_string()) "; before that, the chart shows the data that the API still has."
        }
        dl { @for (name, number) in all { div { dt { (name) " in total" } dd { (number) } } } }
    }
}

fn conditions_of(status: &WebhookStatus, now: Timestamp) -> Markup {
    html! {
        h2 #conditions { "Conditions" }
        div.scroll #conditions-table role="region" aria-labelledby="conditions" tabindex="0" {
            table {
                caption { "As reported by the operator" }
                thead { tr { th scope="col" { "Condition" } th scope="col" { "Status" } th scope="col" { "Since" } th scope="col" { "Why" } } }
                tbody {
                    @for condition in &status.conditions {
                        tr {
                            th scope="row" { (condition.type_) }
                            td { (condition.status) }
                            td { (age(condition.last_transition_time.0, now)) }
                            td.text { (condition.reason) ": " (condition.message) }
                        }
                    }
                    @if status.conditions.is_empty() { tr { td colspan="4" { "Waiting for the operator." } } }
                }
            }
        }
    }
}

/// The events that a test may use: those that the Webhook subscribes to, or else all.
fn events(hook: &Hook) -> Vec<EventType> {
    let subscribed: Vec<EventType> = subscribed(hook).collect();
    if subscribed.is_empty() { EventType::ALL.into() } else { subscribed }
}

/// Maximum number of rows on a page; a Webhook may have a thousand deliveries.
const ROWS: usize = 100;

fn table(frame: &Frame, hook: &Hook, deliveries: &[Delivery]) -> Markup {
    html! {
        div.scroll #deliveries-table role="region" aria-labelledby="deliveries" tabindex="0" {
            table {
                caption { "Newest first: dead letters, tests, and the ten newest deliveries" }
                thead { tr { @for name in ["Event", "Result", "Answer", "Age", "Delivery", "Action"] { th scope="col" { (name) } } } }
                tbody {
                    @for delivery in deliveries.iter().take(ROWS) { tr { (row(frame, hook, delivery)) } }
                    @if deliveries.is_empty() { tr { td colspan="6" { "None yet. Send a test to create one." } } }
                }
            }
        }
        @if deliveries.len() > ROWS {
            p.quiet { "and " (deliveries.len() - ROWS) " older ones: " code { "kubectl llmtune -n " (hook.home) " deliveries " (hook.target) } }
        }
    }
}

fn row(frame: &Frame, hook: &Hook, delivery: &Delivery) -> Markup {
    let failed = Selection { failed: true, since: None };
    let name = delivery.name.as_deref();
    let label = format!("{} {}", delivery.event, delivery.object);
    html! {
        td { (delivery.event) span.quiet { (delivery.object) } }
        td { (result(delivery)) }
        td.text {
            @if delivery.standing == Standing::Failed { (why_not(delivery)) }
            @else if let Some(code) = delivery.status_code { "HTTP " (code) }
            @match delivery.attempts {
                None => {},
                Some(1) => { span.quiet { "1 attempt" } },
                Some(attempts) => { span.quiet { (attempts) " attempts" } },
            }
        }
        td { @if let Some(at) = delivery.at { (age(at, frame.now)) } }
        td.id { (name.unwrap_or(&delivery.event_id)) }
        td {
            @if let Some(name) = name.filter(|_| failed.redelivers(delivery, frame.now)) {
                form method="post" action={ (path(frame.base, hook)) "/redeliver" } {
                    input type="hidden" name="delivery" value=(name);
                    button id={ "again-" (name) } aria-label={ "Redeliver " (label) } { "Redeliver" }
                }
            }
        }
    }
}

fn result(delivery: &Delivery) -> Markup {
    let tone = match delivery.standing {
        Standing::Delivered => Tone::Good,
        Standing::Failed => Tone::Bad,
        Standing::Pending => Tone::Faint,
    };
    mark(tone, &delivery.result)
}

#[cfg(test)]
mod tests;
