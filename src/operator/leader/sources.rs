//! The watches. The engine gets them first. They start once all Webhooks and WebhookSources are listed, and change with
//! them.
//!
//! 1. While the spec of a WebhookSource is invalid, the last valid one stays in force, also after a restart
//!    (`status.inForce`).
//! 2. The records of a source are deleted when its rules change, or when it is deleted and not created again within
//!    [`GRACE`]. Until then, and while there is no valid spec, its watch is dormant: no task runs, and the ledger keeps
//!    its name.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use tracing::info;

use super::{Leader, usage};
use crate::{
    report::sources::{Fault, Note, State},
    source::{
        Source,
        catalog::{Applied, SourceRef},
        custom_source::{CustomSource, Failures, Mapping, MappingError, WatchName},
        deployment::Deployments,
        health::WatchHealth,
        namespaces::NamespaceBarrier,
        owners::WatchedKinds,
        training_job::TrainingJobs,
        watch::Watcher,
    },
};
use llmtune_api::webhook_source::{MappingInForce, WebhookSourceStatus};
use llmtune_core::event::{
    object::{Uid, WatchId},
    observation::Observation,
};

/// How long the leader waits for WebhookSources or `ClusterWebhooks` that cannot be listed, if the ledger has no
/// records of theirs.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// The same if the ledger may have records of theirs.
pub const LONG_PATIENCE: Duration = Duration::from_secs(15);

/// How long records of a deleted source wait for a source with the same name and rules: `kubectl replace --force`
/// deletes and creates.
const GRACE: Duration = Duration::from_secs(60);

/// The watches.
pub struct Sources {
    /// The tasks of the watches.
    pub tasks: JoinSet<()>,
    pub observe: mpsc::Sender<Observation>,
    notes: mpsc::UnboundedSender<Note>,
    kinds: WatchedKinds,
    /// The Namespaces that the engine knows.
    pub namespaces: NamespaceBarrier,
    built_in: Vec<BuiltIn>,
    mapped: HashMap<Uid, MappedWatch>,
    /// Watches of sources that are deleted or have no valid spec, by their names in the ledger.
    dormant: HashMap<String, Dormant>,
    /// The names of WebhookSources without a valid spec, by uid.
    broken: HashMap<Uid, String>,
    /// The number of the next watch.
    next: u16,
    webhooks_listed: bool,
    all_listed: bool,
}

/// A watch of a built-in source.
#[derive(Clone)]
struct BuiltIn {
    id: WatchId,
    kind: SourceKind,
    health: Arc<WatchHealth>,
}

#[derive(Clone, Copy)]
enum SourceKind {
    TrainingJob,
    Deployment,
}

/// A watch without a task.
struct Dormant {
    id: WatchId,
    /// When its records are deleted; `None` if its source exists and waits for a valid spec.
    until: Option<Instant>,
}

/// The watch of a `WebhookSource`.
struct MappedWatch {
    source: SourceRef,
    id: WatchId,
    mapping: Arc<Mapping>,
    /// The generation of the mapping.
    generation: i64,
    health: Arc<WatchHealth>,
    failures: Arc<Failures>,
    task: Option<AbortHandle>,
}

impl MappedWatch {
    fn state(&self, fault: Option<Fault>) -> State {
        State::Watched { health: Arc::clone(&self.health), failures: Arc::clone(&self.failures), fault }
    }

    fn in_force(&self) -> Box<MappingInForce> {
        let spec = self.mapping.spec().clone();
        Box::new(MappingInForce { generation: self.generation, spec })
    }

    fn mapped(&self, kinds: &WatchedKinds) -> CustomSource {
        CustomSource::new(Arc::clone(&self.mapping), kinds.clone(), Arc::clone(&self.failures))
    }
}

impl Sources {
    /// Creates the state before the watches start. `mapped`: whether WebhookSources are served.
    pub fn new(
        observe: mpsc::Sender<Observation>,
        notes: mpsc::UnboundedSender<Note>,
        namespaces: NamespaceBarrier,
        mapped: bool,
    ) -> Self {
        Self {
            tasks: JoinSet::new(),
            observe,
            notes,
            kinds: WatchedKinds::default(),
            namespaces,
            built_in: Vec::new(),
            mapped: HashMap::new(),
            dormant: HashMap::new(),
            broken: HashMap::new(),
            next: 0,
            webhooks_listed: false,
            all_listed: !mapped,
        }
    }

    /// Reports whether the watches have started. No source is observed before all Webhooks are listed, which decide who
    /// gets its events, and all WebhookSources, which decide which objects are owned.
    pub const fn are_begun(&self) -> bool {
        self.webhooks_listed && self.all_listed
    }

    fn next_id(&mut self) -> WatchId {
        loop {
            let id = WatchId(self.next);
            self.next = self.next.wrapping_add(1);
            let is_free = (self.built_in.len()..usize::from(usage::FIRST_ID)).contains(&usize::from(id.0));
            let mapped = self.mapped.values().map(|watch| watch.id);
            let mut taken = mapped.chain(self.dormant.values().map(|watch| watch.id));
            if is_free && taken.all(|other| other != id) {
                return id;
            }
        }
    }

    fn note(&self, note: Note) {
        // The status writer lives until this sender is dropped.
        let _ = self.notes.send(note);
    }

    /// Informs all sources of the kinds that report instead of the objects that they own.
    fn update_kinds(&self) {
        let dormant = self.dormant.keys().filter_map(|name| WatchName::read(name));
        let mapped = self.mapped.values().map(|watch| watch.mapping.group_kind());
        self.kinds.set(mapped.chain(dormant.map(|name| name.group_kind())));
    }
}

impl Leader {
    /// Returns the scopes of all built-in watches: namespaces, or all of them.
    pub(super) fn scopes(&self) -> Vec<Option<String>> {
        let namespaces = &self.context.args.watch_namespaces;
        if namespaces.is_empty() { vec![None] } else { namespaces.iter().cloned().map(Some).collect() }
    }

    /// Registers the built-in watches with the engine. Returns how long to wait for WebhookSources, because the other
    /// records in the ledger may be theirs.
    pub(super) fn add_watches(&mut self) -> Duration {
        let kinds = self.sources.kinds.clone();
        for scope in self.scopes() {
            self.add_built_in(scope.clone(), SourceKind::TrainingJob, &TrainingJobs::new(kinds.clone()));
            self.add_built_in(scope, SourceKind::Deployment, &Deployments::new(kinds.clone()));
        }
        if self.engine.awaits_watches() { LONG_PATIENCE } else { PATIENCE }
    }

    fn add_built_in(&mut self, scope: Option<String>, kind: SourceKind, source: &impl Source) {
        let id = self.sources.next_id();
        self.add_watch(id, scope.as_deref(), source);
        let health = Arc::new(WatchHealth::new(source.kind(), scope, None));
        self.sources.built_in.push(BuiltIn { id, kind, health });
    }

    fn add_watch(&mut self, id: WatchId, scope: Option<&str>, source: &impl Source) {
        self.engine.add_watch(id, source.name(), &source.watch_name(scope), source.selector().is_some());
    }

    /// Handles that all Webhooks are listed.
    pub(super) fn webhooks_listed(&mut self) {
        self.sources.webhooks_listed = true;
        self.recovered_orphans();
        self.begin_sources();
    }

    /// Handles that all WebhookSources are listed.
    pub(super) fn sources_listed(&mut self) {
        self.sources.all_listed = true;
        self.begin_sources();
    }

    /// Starts all watches at their positions.
    fn begin_sources(&mut self) {
        if !self.sources.are_begun() {
            return;
        }
        let kinds = self.sources.kinds.clone();
        for BuiltIn { id, kind, health } in self.sources.built_in.clone() {
            match kind {
                SourceKind::TrainingJob => self.start_watch(id, health, TrainingJobs::new(kinds.clone())),
                SourceKind::Deployment => self.start_watch(id, health, Deployments::new(kinds.clone())),
            };
        }
        for uid in self.sources.mapped.keys().copied().collect::<Vec<_>>() {
            self.begin_mapped(uid);
        }
        self.add_dormant_watches();
        for watch in self.engine.forget_other_watches() {
            info!(watch, "the records of this watch are deleted: it is no longer configured");
        }
        self.show_watches();
        self.start_usage();
        for check in self.engine.open_checks() {
            self.ask(check);
        }
    }

    fn start_watch(&mut self, id: WatchId, health: Arc<WatchHealth>, source: impl Source) -> AbortHandle {
        let watcher = Watcher {
            id,
            namespace: health.namespace.clone(),
            client: self.context.client.clone(),
            observations: self.sources.observe.clone(),
            health,
            malformed: self.context.metrics.malformed.with_label_values(&[source.kind()]),
            keep_annotations: Arc::clone(&self.keep_annotations),
            namespaces: self.sources.namespaces.clone(),
            newest: AtomicU64::new(0),
            source,
        };
        let (ask, asked) = mpsc::unbounded_channel();
        self.existence_checks.insert(id, ask);
        let position = Some(self.engine.position(id)).filter(|position| *position > 0);
        self.sources.tasks.spawn(Arc::new(watcher).follow(position, asked))
    }

    fn begin_mapped(&mut self, uid: Uid) {
        let Some(watch) = self.sources.mapped.get(&uid) else { return };
        let (id, health, mapped) = (watch.id, Arc::clone(&watch.health), watch.mapped(&self.sources.kinds));
        self.add_watch(id, None, &mapped);
        let task = self.start_watch(id, health, mapped);
        if let Some(watch) = self.sources.mapped.get_mut(&uid) {
            watch.task = Some(task);
        }
    }

    fn show_watches(&self) {
        let built_in = self.sources.built_in.iter().map(|watch| &watch.health);
        let mapped = self.sources.mapped.values().map(|watch| &watch.health);
        self.context.health.set_watches(built_in.chain(mapped).cloned().collect());
    }

    /// Makes watches in the ledger dormant if their source has no valid spec or does not exist.
    fn add_dormant_watches(&mut self) {
        let names: Vec<String> = self.engine.remembered_watches().map(str::to_owned).collect();
        for name in names {
            let Some(WatchName { webhook_source, source, selective }) = WatchName::read(&name) else { continue };
            let is_broken = self.sources.broken.values().any(|broken| broken == webhook_source);
            let until = (!is_broken).then(|| Instant::now() + GRACE);
            let id = self.sources.next_id();
            self.engine.add_watch(id, source, &name, selective);
            info!(watch = name, "there is no valid WebhookSource for this watch; its records wait for one");
            self.sources.dormant.insert(name, Dormant { id, until });
        }
        self.sources.update_kinds();
    }

    /// Handles a new WebhookSource or a change of its spec. If its rules are unchanged, its watch continues.
    pub(super) fn source_applied(&mut self, applied: Applied) {
        let Applied { source, generation, mapping, recorded, found } = applied;
        let uid = source.uid;
        // A source that was deleted and created again under its name.
        let namesakes = self.sources.mapped.values().filter(|watch| watch.source.name == source.name);
        let namesakes: Vec<Uid> = namesakes.map(|watch| watch.source.uid).filter(|other| *other != uid).collect();
        for namesake in namesakes {
            self.source_removed(namesake);
        }
        let (mapping, of, fault) = match mapping {
            Ok(mapping) => (mapping, generation, None),
            Err(error) => {
                if let Some(watch) = self.sources.mapped.get(&uid) {
                    let (state, in_force) =
                        (watch.state(Some(fault(&error, watch.generation))), Some(watch.in_force()));
                    return self.sources.note(Note::Changed { source, generation, state, in_force, found });
                }
                let recorded = recorded.filter(|(_, mapping)| self.may_go_on(&source.name, mapping));
                let Some((of, mapping)) = recorded else {
                    return self.source_broken(source, generation, &error, found);
                };
                (mapping, of, Some(fault(&error, of)))
            }
        };
        let health = Arc::new(WatchHealth::new(&mapping.group_kind().1, None, Some(source.name.clone())));
        let metric = self.context.metrics.source_errors.with_label_values(&[&source.name]);
        let mut watch = MappedWatch {
            source: source.clone(),
            id: WatchId(0),
            mapping,
            generation: of,
            health,
            failures: Arc::new(Failures::new(metric)),
            task: None,
        };
        let name = watch.mapping.watch_name();
        let known = self.sources.mapped.get(&uid).filter(|known| known.mapping.watch_name() == name);
        watch.id = if let Some(known) = known {
            if let Some(task) = &known.task {
                task.abort();
            }
            known.id
        } else {
            if let Some(other) = self.stop_mapped(uid) {
                info!(webhook_source = source.name, "the rules have changed; the records of its objects are deleted");
                self.engine.remove_watch(other.id);
            }
            self.wake_dormant(&source.name, &name).unwrap_or_else(|| self.sources.next_id())
        };
        self.sources.broken.remove(&uid);
        let (state, in_force) = (watch.state(fault), Some(watch.in_force()));
        self.sources.mapped.insert(uid, watch);
        self.sources.update_kinds();
        self.sources.note(Note::Changed { source, generation, state, in_force, found });
        if self.sources.are_begun() {
            self.begin_mapped(uid);
            // Requests to the previous task ended with it.
            let id = self.sources.mapped.get(&uid).map(|watch| watch.id);
            for check in self.engine.open_checks().into_iter().filter(|check| Some(check.watch) == id) {
                self.ask(check);
            }
            self.show_watches();
        }
    }

    /// Handles a WebhookSource without a valid spec, current or recorded. Its records wait.
    fn source_broken(
        &mut self,
        source: SourceRef,
        generation: i64,
        error: &MappingError,
        found: Box<WebhookSourceStatus>,
    ) {
        for (name, dormant) in &mut self.sources.dormant {
            if WatchName::read(name).is_some_and(|name| name.webhook_source == source.name) {
                dormant.until = None;
            }
        }
        self.sources.broken.insert(source.uid, source.name.clone());
        let message = format!(
            "{error}\nno earlier spec of this WebhookSource was valid, so it watches nothing until the spec is corrected"
        );
        let state = State::Broken(Fault { reason: error.reason(), message });
        self.sources.note(Note::Changed { source, generation, state, in_force: None, found });
    }

    /// Reports whether a recorded mapping continues existing records. If the only records have other rules, a crash
    /// came before the status recorded these: the records wait for a correct spec, and the older rules must not delete
    /// them.
    fn may_go_on(&self, source: &str, mapping: &Arc<Mapping>) -> bool {
        let is_of_source = |name: &&str| WatchName::read(name).is_some_and(|name| name.webhook_source == source);
        let name = mapping.watch_name();
        let dormant = self.sources.dormant.keys().map(String::as_str);
        let mut remembered = self.engine.remembered_watches().chain(dormant).filter(is_of_source).peekable();
        remembered.peek().is_none() || remembered.any(|remembered| remembered == name)
    }

    /// Returns the id of the dormant watch with this name, and deletes watches of the same source with other rules.
    fn wake_dormant(&mut self, source: &str, name: &str) -> Option<WatchId> {
        let of_source = self
            .sources
            .dormant
            .extract_if(|name, _| WatchName::read(name).is_some_and(|name| name.webhook_source == source));
        let mut woken = None;
        for (other, Dormant { id, .. }) in of_source.collect::<Vec<_>>() {
            if other == name {
                woken = Some(id);
            } else {
                info!(watch = other, "the rules have changed; the records of its objects are deleted");
                self.engine.remove_watch(id);
            }
        }
        woken
    }

    /// Deletes records of deleted sources that were not created again.
    pub(super) fn drop_expired_watches(&mut self) {
        let now = Instant::now();
        let is_over = |dormant: &mut Dormant| dormant.until.is_some_and(|until| until <= now);
        let expired: Vec<_> = self.sources.dormant.extract_if(|_, dormant| is_over(dormant)).collect();
        for (watch, Dormant { id, .. }) in &expired {
            info!(watch, "the records of this watch are deleted: its WebhookSource is deleted");
            self.engine.remove_watch(*id);
        }
        if !expired.is_empty() {
            self.sources.update_kinds();
        }
    }

    /// Handles a deleted WebhookSource.
    pub(super) fn source_removed(&mut self, uid: Uid) {
        let until = Some(Instant::now() + GRACE);
        if let Some(watch) = self.stop_mapped(uid) {
            let name = watch.mapping.watch_name();
            let source = &watch.source.name;
            info!(
                webhook_source = source,
                "the source is deleted; the records of its objects are kept for a minute, in case it is created again"
            );
            self.sources.dormant.insert(name, Dormant { id: watch.id, until });
            // The metric is removed with the source.
            let _ = self.context.metrics.source_errors.remove_label_values(&[source]);
            self.sources.update_kinds();
        }
        if let Some(source) = self.sources.broken.remove(&uid) {
            for (name, dormant) in &mut self.sources.dormant {
                if WatchName::read(name).is_some_and(|name| name.webhook_source == source) {
                    dormant.until = until;
                }
            }
        }
        self.sources.note(Note::Removed(uid));
    }

    /// Ends the task of a WebhookSource's watch.
    fn stop_mapped(&mut self, uid: Uid) -> Option<MappedWatch> {
        let watch = self.sources.mapped.remove(&uid)?;
        if let Some(task) = &watch.task {
            task.abort();
        }
        self.existence_checks.remove(&watch.id);
        self.sources.update_kinds();
        if self.sources.are_begun() {
            self.show_watches();
        }
        Some(watch)
    }
}

/// Describes what is wrong with a spec while an older generation is in force.
fn fault(error: &MappingError, in_force: i64) -> Fault {
    let message = format!("{error}\nuntil the spec is corrected, the mapping of generation {in_force} stays in force");
    Fault { reason: error.reason(), message }
}
