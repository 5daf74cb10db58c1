//! The watches: made known to the engine first, started once all Webhooks and WebhookSources are listed, and changed with these.
//!
//! 1. While the spec of a WebhookSource is invalid, the newest valid one stays in force, over restarts by `status.inForce`.
//! 2. Records of a source are forgotten when its rules change, or when it is deleted and not created again within [`GRACE`]. Until
//!    then, and while there is no valid spec to watch by, its watch is dormant: no task runs, and the ledger goes on naming it.

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

/// For how long WebhookSources, or `ClusterWebhooks`, that cannot be listed are waited for, where the ledger remembers nothing of theirs.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// The same where it may.
pub const LONG_PATIENCE: Duration = Duration::from_secs(15);

/// How long what is remembered of a deleted source's objects waits for one of the same name and rules: `kubectl replace --force` deletes and
/// creates.
const GRACE: Duration = Duration::from_secs(60);

/// The watches.
pub struct Sources {
    /// Their tasks.
    pub tasks: JoinSet<()>,
    pub observe: mpsc::Sender<Observation>,
    notes: mpsc::UnboundedSender<Note>,
    kinds: WatchedKinds,
    /// The Namespaces that the engine has been told of.
    pub namespaces: NamespaceBarrier,
    built_in: Vec<BuiltIn>,
    mapped: HashMap<Uid, MappedWatch>,
    /// Watches of sources that are deleted, or have no valid spec, by the names that the ledger calls them.
    dormant: HashMap<String, Dormant>,
    /// WebhookSources that have no valid spec, by uid; the names.
    broken: HashMap<Uid, String>,
    /// The number that the next watch gets.
    next: u16,
    webhooks_listed: bool,
    all_listed: bool,
}

/// A watch that no `WebhookSource` asks for.
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

/// A watch that nobody follows.
struct Dormant {
    id: WatchId,
    /// When its records are forgotten; `None`: its source is there, and waits for a valid spec.
    until: Option<Instant>,
}

/// The watch of a `WebhookSource`.
struct MappedWatch {
    source: SourceRef,
    id: WatchId,
    mapping: Arc<Mapping>,
    /// The generation that the mapping is from.
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
    /// Watches that are not begun. `mapped`: whether WebhookSources are served.
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

    /// Whether the watches are begun: no source is observed before all Webhooks are listed, since they decide who gets its
    /// events, and all WebhookSources, since they decide which objects are owned.
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
        // The writer of their statuses lives until this sender goes.
        let _ = self.notes.send(note);
    }

    /// Tells all sources which kinds speak for the objects that they own.
    fn tell_kinds(&self) {
        let dormant = self.dormant.keys().filter_map(|name| WatchName::read(name));
        let mapped = self.mapped.values().map(|watch| watch.mapping.group_kind());
        self.kinds.set(mapped.chain(dormant.map(|name| name.group_kind())));
    }
}

impl Leader {
    /// The scopes of all watches that no WebhookSource asks for: namespaces, or all of them.
    pub(super) fn scopes(&self) -> Vec<Option<String>> {
        let namespaces = &self.context.args.watch_namespaces;
        if namespaces.is_empty() { vec![None] } else { namespaces.iter().cloned().map(Some).collect() }
    }

    /// Makes the built-in watches known to the engine. Tells how long WebhookSources are to be waited for: what the ledger
    /// remembers beside these watches may be theirs.
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

    /// All Webhooks are listed.
    pub(super) fn webhooks_listed(&mut self) {
        self.sources.webhooks_listed = true;
        self.recovered_orphans();
        self.begin_sources();
    }

    /// All WebhookSources are listed.
    pub(super) fn sources_listed(&mut self) {
        self.sources.all_listed = true;
        self.begin_sources();
    }

    /// Starts all watches where the engine stands.
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
        self.keep_remembered();
        for watch in self.engine.forget_other_watches() {
            info!(watch, "what is remembered of this watch is forgotten: it is no longer configured");
        }
        self.show_watches();
        self.start_usage();
        for question in self.engine.open_questions() {
            self.ask(question);
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
        self.questions.insert(id, ask);
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

    /// Lets the watches that the ledger remembers of sources without a valid spec, or without a source, wait.
    fn keep_remembered(&mut self) {
        let names: Vec<String> = self.engine.remembered_watches().map(str::to_owned).collect();
        for name in names {
            let Some(WatchName { webhook_source, source, selective }) = WatchName::read(&name) else { continue };
            let is_broken = self.sources.broken.values().any(|broken| broken == webhook_source);
            let until = (!is_broken).then(|| Instant::now() + GRACE);
            let id = self.sources.next_id();
            self.engine.add_watch(id, source, &name, selective);
            info!(
                watch = name,
                "there is no valid WebhookSource for this watch; what is remembered of it waits for one"
            );
            self.sources.dormant.insert(name, Dormant { id, until });
        }
        self.sources.tell_kinds();
    }

    /// A WebhookSource is new, or its spec has changed. One whose rules are what they were goes on where it was.
    pub(super) fn source_applied(&mut self, applied: Applied) {
        let Applied { source, generation, mapping, recorded, found } = applied;
        let uid = source.uid;
        // One that was deleted and created again under its name.
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
                    return self.sources.note(Note::Standing { source, generation, state, in_force, found });
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
                info!(
                    webhook_source = source.name,
                    "the rules have changed; what was remembered of its objects is forgotten"
                );
                self.engine.remove_watch(other.id);
            }
            self.wake_dormant(&source.name, &name).unwrap_or_else(|| self.sources.next_id())
        };
        self.sources.broken.remove(&uid);
        let (state, in_force) = (watch.state(fault), Some(watch.in_force()));
        self.sources.mapped.insert(uid, watch);
        self.sources.tell_kinds();
        self.sources.note(Note::Standing { source, generation, state, in_force, found });
        if self.sources.are_begun() {
            self.begin_mapped(uid);
            // What the task before was asked has gone with it.
            let id = self.sources.mapped.get(&uid).map(|watch| watch.id);
            for question in self.engine.open_questions().into_iter().filter(|question| Some(question.watch) == id) {
                self.ask(question);
            }
            self.show_watches();
        }
    }

    /// A WebhookSource has no valid spec, and none is recorded that could go on. What is remembered of its objects waits.
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
            "{error}\nno valid spec of this WebhookSource is known, so nothing is watched for it until this one is corrected"
        );
        let state = State::Broken(Fault { reason: error.reason(), message });
        self.sources.note(Note::Standing { source, generation, state, in_force: None, found });
    }

    /// Whether a recorded mapping goes on from what is remembered. Where only records under other rules are, a crash came before the status
    /// named these: they wait for the spec to be corrected, rather than be forgotten for the sake of an older one.
    fn may_go_on(&self, source: &str, mapping: &Arc<Mapping>) -> bool {
        let is_of_source = |name: &&str| WatchName::read(name).is_some_and(|name| name.webhook_source == source);
        let name = mapping.watch_name();
        let dormant = self.sources.dormant.keys().map(String::as_str);
        let mut remembered = self.engine.remembered_watches().chain(dormant).filter(is_of_source).peekable();
        remembered.peek().is_none() || remembered.any(|remembered| remembered == name)
    }

    /// The id of the dormant watch of this name. Those of other rules of the same source are forgotten.
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
                info!(watch = other, "the rules have changed; what was remembered of its objects is forgotten");
                self.engine.remove_watch(id);
            }
        }
        woken
    }

    /// Forgets what is remembered of deleted sources that nobody created again.
    pub(super) fn drop_expired_watches(&mut self) {
        let now = Instant::now();
        let is_over = |dormant: &mut Dormant| dormant.until.is_some_and(|until| until <= now);
        let expired: Vec<_> = self.sources.dormant.extract_if(|_, dormant| is_over(dormant)).collect();
        for (watch, Dormant { id, .. }) in &expired {
            info!(watch, "what is remembered of this watch is forgotten: its WebhookSource is deleted");
            self.engine.remove_watch(*id);
        }
        if !expired.is_empty() {
            self.sources.tell_kinds();
        }
    }

    /// A WebhookSource is deleted.
    pub(super) fn source_removed(&mut self, uid: Uid) {
        let until = Some(Instant::now() + GRACE);
        if let Some(watch) = self.stop_mapped(uid) {
            let name = watch.mapping.watch_name();
            let source = &watch.source.name;
            info!(
                webhook_source = source,
                "the source is withdrawn; what is remembered of its objects waits a minute for another of its name"
            );
            self.sources.dormant.insert(name, Dormant { id: watch.id, until });
            // The metric goes with the source.
            let _ = self.context.metrics.source_errors.remove_label_values(&[source]);
            self.sources.tell_kinds();
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
        self.questions.remove(&watch.id);
        self.sources.tell_kinds();
        if self.sources.are_begun() {
            self.show_watches();
        }
        Some(watch)
    }
}

/// What is wrong with a spec while that of an older generation is in force.
fn fault(error: &MappingError, in_force: i64) -> Fault {
    let message = format!("{error}\nuntil it is corrected, the mapping of generation {in_force} stays in force");
    Fault { reason: error.reason(), message }
}
