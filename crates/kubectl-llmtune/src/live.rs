//! `kubectl llmtune status --watch`: shows the table as it changes. A terminal shows one table, redrawn in place; a
//! pipe gets a line for each change, as with `kubectl get --watch`.

use std::{collections::BTreeMap, pin::Pin, process::ExitCode, time::Duration};

use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use kube::{
    Api,
    api::DynamicObject,
    runtime::{WatchStreamExt, watcher},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{
    connection::Cluster,
    failure::{Failure, refusal},
    objects::{name, part},
    output::{Screen, note, print},
    status,
    table::cut,
    trouble::Trouble,
};
use llmtune_api::{ClusterWebhook, Webhook};

/// Ages grow by the second.
const TICK: Duration = Duration::from_secs(1);
/// Changes within this time are shown together.
const SETTLE: Duration = Duration::from_millis(50);

/// Sort key of the table: the watch, the namespace and the name. Webhooks come first, then `ClusterWebhooks`.
type Key = (usize, Option<String>, String);

/// An event of the watch with this number.
type Heard = (usize, watcher::Result<watcher::Event<DynamicObject>>);

/// Shows the Webhooks of this namespace, or all with the `ClusterWebhooks`, until the user stops it.
pub async fn watch(cluster: &Cluster, namespace: Option<&str>) -> Result<ExitCode, Failure> {
    let mut watches = vec![follow(0, cluster.api::<Webhook>(namespace))];
    if namespace.is_none() {
        watches.push(follow(1, cluster.api::<ClusterWebhook>(None)));
    }
    let mut view = View::new(Screen::of_stdout(), namespace.map(str::to_owned), watches.len());
    let mut changes = stream::select_all(watches);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut due: Option<Instant> = None;
    loop {
        tokio::select! {
            heard = changes.next() => {
                let Some(heard) = heard else { return Ok(ExitCode::SUCCESS) };
                view.hear(heard, cluster)?;
                due = due.or_else(|| Some(Instant::now() + SETTLE));
            }
            () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                due = None;
                view.show(Timestamp::now())?;
            }
            _ = ticks.tick(), if view.screen.size.is_some() => view.show(Timestamp::now())?,
        }
    }
}

fn follow(number: usize, api: Api<DynamicObject>) -> Pin<Box<dyn Stream<Item = Heard>>> {
    Box::pin(watcher(api, watcher::Config::default()).default_backoff().map(move |heard| (number, heard)))
}

/// The known objects and the state of the display.
struct View {
    screen: Screen,
    namespace: Option<String>,
    webhooks: BTreeMap<Key, DynamicObject>,
    /// Objects of a list that is in progress. When it ends, all others are gone.
    listed: Vec<BTreeMap<Key, DynamicObject>>,
    /// Watches whose first list is not complete.
    missing: Vec<bool>,
    /// Objects that changed since the last output; `None` if deleted.
    changed: BTreeMap<Key, Option<DynamicObject>>,
    header_shown: bool,
    trouble: Trouble,
}

impl View {
    fn new(screen: Screen, namespace: Option<String>, watches: usize) -> Self {
        Self {
            screen,
            namespace,
            webhooks: BTreeMap::new(),
            listed: vec![BTreeMap::new(); watches],
            missing: vec![true; watches],
            changed: BTreeMap::new(),
            header_shown: false,
            trouble: Trouble::default(),
        }
    }

    fn hear(&mut self, (number, heard): Heard, cluster: &Cluster) -> Result<(), Failure> {
        let key = |object: &DynamicObject| (number, object.metadata.namespace.clone(), name(object).to_owned());
        match heard {
            Ok(watcher::Event::Init) => self.listed[number].clear(),
            Ok(watcher::Event::InitApply(object)) => {
                self.listed[number].insert(key(&object), object);
            }
            Ok(watcher::Event::InitDone) => {
                let listed = std::mem::take(&mut self.listed[number]);
                let gone: Vec<Key> =
                    self.webhooks.keys().filter(|key| key.0 == number && !listed.contains_key(*key)).cloned().collect();
                for key in gone {
                    self.put(key, None);
                }
                for (key, object) in listed {
                    self.put(key, Some(object));
                }
                self.missing[number] = false;
                self.trouble.ended();
            }
            Ok(watcher::Event::Apply(object)) => {
                self.put(key(&object), Some(object));
                self.trouble.ended();
            }
            Ok(watcher::Event::Delete(object)) => {
                self.put(key(&object), None);
                self.trouble.ended();
            }
            Err(error) => match refusal(&error) {
                // Only the platform team may list ClusterWebhooks.
                Some(_) if number > 0 => self.missing[number] = false,
                Some(refused) => return Err(cluster.failed(refused)),
                None => {
                    let before = self.trouble.told().map(str::to_owned);
                    let message = self.trouble.began(&error);
                    if self.screen.size.is_none() && before.as_ref() != Some(&message) {
                        note(&message);
                    }
                }
            },
        }
        Ok(())
    }

    fn put(&mut self, key: Key, object: Option<DynamicObject>) {
        let version =
            |object: Option<&DynamicObject>| object.and_then(|object| object.metadata.resource_version.clone());
        if version(self.webhooks.get(&key)) == version(object.as_ref()) {
            return;
        }
        match &object {
            Some(object) => self.webhooks.insert(key.clone(), object.clone()),
            None => self.webhooks.remove(&key),
        };
        self.changed.insert(key, object);
    }

    fn show(&mut self, now: Timestamp) -> Result<(), Failure> {
        if self.missing.contains(&true) && self.trouble.told().is_none() {
            return Ok(());
        }
        match self.screen.size {
            Some((columns, lines)) => print(&self.frame(columns, lines, now)),
            None => print(&self.news(now)),
        }
    }

    /// Redraws the whole screen in place (ECMA-48: CUP, EL, ED).
    fn frame(&self, columns: usize, lines: usize, now: Timestamp) -> String {
        let webhooks: Vec<DynamicObject> = self.webhooks.values().cloned().collect();
        let time = now.strftime("%H:%M:%SZ");
        let place = self.namespace.as_deref().map_or("in all namespaces".into(), |name| format!("in namespace {name}"));
        let statuses = webhooks.iter().map(|webhook| part(webhook, "status").unwrap_or_default());
        let head = format!("{time}  {} {place}  (press Ctrl-C to stop)", status::summary(statuses));
        let mut shown = vec![cut(&head, columns)];
        shown.extend(self.trouble.told().map(|trouble| cut(trouble, columns)));
        shown.push(String::new());
        if webhooks.is_empty() {
            shown.push(cut(&status::none(self.namespace.as_deref()), columns));
        } else {
            let table = status::table(&webhooks, self.namespace.is_none(), false, now);
            shown.extend(table.lines(self.screen.paint, Some(columns)));
        }
        let height = lines.saturating_sub(1).max(1);
        if shown.len() > height {
            let more = shown.len() - height + 1;
            shown.truncate(height - 1);
            shown.push(cut(&format!("… {more} more"), columns));
        }
        format!("\x1b[H{}\x1b[K\n\x1b[J", shown.join("\x1b[K\n"))
    }

    /// One line for each object that changed since the last call.
    fn news(&mut self, now: Timestamp) -> String {
        let changed = std::mem::take(&mut self.changed);
        let still_there: Vec<DynamicObject> = changed.into_values().flatten().collect();
        if still_there.is_empty() {
            return String::new();
        }
        let table = status::table(&still_there, self.namespace.is_none(), false, now);
        let header = usize::from(std::mem::replace(&mut self.header_shown, true));
        table.lines(self.screen.paint, None).into_iter().skip(header).map(|line| line + "\n").collect()
    }
}
