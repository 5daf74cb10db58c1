//! `kubectl llmtune dashboard`: a page on loopback that shows the health of Webhooks, tests them, and sends deliveries
//! again. It acts with the user's own rights.

mod chart;
mod guard;
mod history;
mod page;
mod watched;

use std::{convert::Infallible, process::ExitCode, sync::Arc, time::Duration};

use axum::{
    Form, Router,
    extract::{DefaultBodyLimit, Path, Query, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{
        Html, IntoResponse, Redirect, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::{get, post},
};
use futures::{Stream, stream};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::sleep;

use super::{
    cli::{ClusterArgs, DashboardArgs},
    connection::Cluster,
    create::random,
    failure::Failure,
    listen::on_loopback,
    objects::name,
    output::note,
    redeliver,
    selection::{Delivery, Selection, Standing},
    target::Target,
    test,
    webhooks::Hook,
};
use guard::Guard;
use llmtune_api::{WebhookDelivery, webhook_delivery::WebhookKind};
use llmtune_core::event::EventType;
use page::{Frame, News};
use watched::Watched;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
/// Upper bound for the body of a form, in bytes.
const MAX_FORM: usize = 4 << 10;
/// Most endpoints answer within this time, so that the page that follows a form already shows the answer.
const RESULT_TIMEOUT: Duration = Duration::from_secs(2);
/// Changes within this time are shown together.
const SETTLE: Duration = Duration::from_millis(250);

/// The state that all request handlers share.
struct Dashboard {
    guard: Guard,
    watched: Watched,
}

pub async fn run(args: &ClusterArgs, asked: &DashboardArgs) -> Result<ExitCode, Failure> {
    let cluster = Cluster::connect(args).await?;
    let namespace = (!asked.all_namespaces).then(|| cluster.namespace.clone());
    let (listener, address) = on_loopback(asked.port).await?;
    let guard = Guard::new(address.port(), random()?);
    let (watched, news) = Watched::new(cluster, namespace).await?;
    let dashboard = Arc::new(Dashboard { guard, watched });
    let url = dashboard.guard.url();
    let answered = || {
        note(&format!(
            "Open {url} (press Ctrl-C to stop). Keep this URL secret: while the dashboard runs, anyone who has the URL can act with your permissions."
        ));
    };
    tokio::select! {
        served = async { axum::serve(listener, router(&dashboard)).await } => {
            served.map_err(|error| Failure::new(format!("stopped listening: {error}")))?;
            Ok(ExitCode::SUCCESS)
        }
        failure = dashboard.watched.follow(news, answered) => Err(failure),
    }
}

fn router(dashboard: &Arc<Dashboard>) -> Router {
    let style = || async { ([(header::CONTENT_TYPE, "text/css")], STYLE) };
    let script = || async { ([(header::CONTENT_TYPE, "text/javascript")], SCRIPT) };
    let mut routes = Router::new()
        .route("/{key}/", get(overview))
        .route("/{key}/style.css", get(style))
        .route("/{key}/script.js", get(script))
        .route("/{key}/changes", get(changes));
    for hook in ["/{key}/webhook/{namespace}/{name}", "/{key}/clusterwebhook/{name}"] {
        routes = routes
            .route(hook, get(detail))
            .route(&format!("{hook}/test"), post(send_test))
            .route(&format!("{hook}/redeliver"), post(send_again));
    }
    routes
        .fallback(|| async { (StatusCode::NOT_FOUND, "page not found\n") })
        .layer(DefaultBodyLimit::max(MAX_FORM))
        .layer(middleware::from_fn_with_state(Arc::clone(dashboard), guarded))
        .with_state(Arc::clone(dashboard))
}

/// Rejects requests that the guard refuses, and adds the guard's headers to every response.
async fn guarded(State(dashboard): State<Arc<Dashboard>>, request: Request, next: Next) -> Response {
    let mut response = match dashboard.guard.judge(request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.answer().into_response(),
    };
    response.headers_mut().extend(guard::HEADERS);
    response
}

/// The path parameters of a Webhook's page.
#[derive(Deserialize)]
struct Place {
    /// `None` for a `ClusterWebhook`.
    namespace: Option<String>,
    name: String,
}

impl Place {
    fn hook(&self, watched: &Watched) -> Option<Hook> {
        let kind = if self.namespace.is_some() { WebhookKind::Webhook } else { WebhookKind::ClusterWebhook };
        watched.hook(&Target { kind, name: self.name.clone() }, self.namespace.as_deref())
    }
}

/// The query parameters of the page that follows a form.
#[derive(Default, Deserialize)]
struct FormResult {
    /// The delivery that the form requested.
    of: Option<String>,
    /// How many deliveries the form requested.
    asked: Option<String>,
}

#[derive(Deserialize)]
struct TestForm {
    event: String,
}

#[derive(Deserialize)]
struct RedeliverForm {
    /// The name of the object. If it is absent, all failed deliveries.
    delivery: Option<String>,
}

async fn overview(State(dashboard): State<Arc<Dashboard>>) -> Response {
    let now = Timestamp::now();
    let watched = &dashboard.watched;
    let hooks: Vec<_> = watched
        .hooks()
        .into_iter()
        .map(|hook| {
            let hour = watched.hour(&hook, &watched.deliveries(&hook), now);
            (hook, hour)
        })
        .collect();
    let base = dashboard.guard.base();
    Html(page::overview(&dashboard.frame(&base, now), &hooks)).into_response()
}

async fn detail(
    State(dashboard): State<Arc<Dashboard>>,
    Path(place): Path<Place>,
    Query(result): Query<FormResult>,
) -> Response {
    match place.hook(&dashboard.watched) {
        Some(hook) => dashboard.detail(&hook, &result, None).into_response(),
        None => dashboard.gone(&place),
    }
}

async fn send_test(
    State(dashboard): State<Arc<Dashboard>>,
    Path(place): Path<Place>,
    Form(form): Form<TestForm>,
) -> Response {
    let watched = &dashboard.watched;
    let Some(hook) = place.hook(watched) else { return dashboard.gone(&place) };
    let Some(event) = EventType::parse(&form.event) else {
        return dashboard.failed(&hook, &Failure::new("there is no such event").next("choose one from the list"));
    };
    match test::ask(&watched.cluster, &hook, event).await {
        Ok(created) => {
            let name = name(&created);
            watched
                .until(RESULT_TIMEOUT, || {
                    let deliveries = watched.deliveries(&hook);
                    named(&deliveries, name).is_some_and(|delivery| delivery.standing != Standing::Pending)
                })
                .await;
            dashboard.back(&hook, &format!("of={name}"))
        }
        Err(failure) => dashboard.failed(&hook, &failure),
    }
}

async fn send_again(
    State(dashboard): State<Arc<Dashboard>>,
    Path(place): Path<Place>,
    Form(form): Form<RedeliverForm>,
) -> Response {
    let watched = &dashboard.watched;
    let Some(hook) = place.hook(watched) else { return dashboard.gone(&place) };
    let failed = Selection { failed: true, since: None };
    let all = watched.deliveries(&hook);
    let names: Vec<String> = all
        .into_iter()
        .filter(|delivery| failed.redelivers(delivery, Timestamp::now()))
        .filter_map(|delivery| delivery.name)
        .filter(|name| form.delivery.as_ref().is_none_or(|wanted| wanted == name))
        .collect();
    if names.is_empty() {
        let failure = Failure::new("there is no failed delivery to resend").next("see the current results in the list");
        return dashboard.failed(&hook, &failure);
    }
    let api = watched.cluster.api::<WebhookDelivery>(Some(&hook.home));
    let request = Timestamp::now().to_string();
    match redeliver::ask(&watched.cluster, &api, names, &request).await {
        Ok(asked) => {
            watched
                .until(RESULT_TIMEOUT, || {
                    let deliveries = watched.deliveries(&hook);
                    let answered = |name: &String| {
                        named(&deliveries, name).is_none_or(|delivery| delivery.handled.as_deref() == Some(&request))
                    };
                    asked.iter().all(answered)
                })
                .await;
            let query = form.delivery.map_or_else(|| format!("asked={}", asked.len()), |name| format!("of={name}"));
            dashboard.back(&hook, &query)
        }
        Err(failure) => dashboard.failed(&hook, &failure),
    }
}

/// Sends an event for each change. The first event is sent immediately, for changes from before the page subscribed.
async fn changes(State(dashboard): State<Arc<Dashboard>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let events = stream::unfold(dashboard.watched.changes(), |mut changes| async move {
        if !changes.next().await {
            return None;
        }
        sleep(SETTLE).await;
        Some((Ok(Event::default().data("changed")), changes))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

fn named<'a>(deliveries: &'a [Delivery], name: &str) -> Option<&'a Delivery> {
    deliveries.iter().find(|delivery| delivery.name.as_deref() == Some(name))
}

impl Dashboard {
    fn frame<'a>(&'a self, base: &'a str, now: Timestamp) -> Frame<'a> {
        let (server, namespace) = (&self.watched.cluster.server, self.watched.namespace.as_deref());
        Frame { base, server, namespace, amiss: self.watched.amiss(), now }
    }

    fn detail(&self, hook: &Hook, result: &FormResult, failure: Option<&Failure>) -> Html<String> {
        let now = Timestamp::now();
        let deliveries = self.watched.deliveries(hook);
        let hour = self.watched.hour(hook, &deliveries, now);
        let of = result.of.as_deref().and_then(|name| named(&deliveries, name));
        let failure = failure.map(ToString::to_string);
        let asked = result.asked.as_deref().and_then(|number| number.parse().ok());
        let news = match (&failure, of, asked) {
            (Some(text), ..) => News::Failed(text),
            (None, Some(delivery), _) => News::Of(delivery),
            (None, None, Some(number)) => News::Asked(number),
            (None, None, None) => News::Nothing,
        };
        let base = self.guard.base();
        let mut url = page::path(&base, hook);
        match news {
            News::Of(_) => url.extend(["?of=", result.of.as_deref().unwrap_or_default()]),
            News::Asked(number) => url.extend([format!("?asked={number}")]),
            News::Failed(_) | News::Nothing => {}
        }
        Html(page::detail(&self.frame(&base, now), hook, &hour, &deliveries, &url, &news))
    }

    /// Redirects to the Webhook's page, so that a reload does not submit the form again.
    fn back(&self, hook: &Hook, query: &str) -> Response {
        Redirect::to(&format!("{}?{query}#told", page::path(&self.guard.base(), hook))).into_response()
    }

    /// The Webhook's page, with the refusal of the cluster or the error in the form.
    fn failed(&self, hook: &Hook, failure: &Failure) -> Response {
        (StatusCode::BAD_GATEWAY, self.detail(hook, &FormResult::default(), Some(failure))).into_response()
    }

    fn gone(&self, place: &Place) -> Response {
        let base = self.guard.base();
        let url = page::path_of(&base, place.namespace.as_deref(), &place.name);
        let text = "It was deleted, is in another namespace, or never existed.";
        let page = page::message(&self.frame(&base, Timestamp::now()), &url, "There is no such webhook", text);
        (StatusCode::NOT_FOUND, Html(page)).into_response()
    }
}
