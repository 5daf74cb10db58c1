//! The watches: made known to the engine first, started once all Webhooks and WebhookSources are listed, and changed with these.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tracing::info;

use super::{Leader, usage};
use crate::{
    event::{
        object::{Uid, WatchId},
        observation::Observation,
    },
    report::sources::{Note, State},
    source::{
        Source,
        catalog::{Applied, SourceRef},
        deployment::Deployments,
        health::WatchHealth,
        mapped::{Failures, Mapped, Mapping},
        namespaces::ToldNamespaces,
        owners::WatchedKinds,
        training_job::TrainingJobs,
        watch::Watcher,
    },
};

/// For how long WebhookSources, or `ClusterWebhooks`, that cannot be listed are waited for, where the ledger remembers nothing of theirs.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// The same where it may.
pub const LONG_PATIENCE: Duration = Duration::from_secs(15);

/// The watches.
pub struct Sources {
    /// Their tasks.
    pub tasks: JoinSet<()>,
    pub observe: mpsc::Sender<Observation>,
    notes: mpsc::UnboundedSender<Note>,
    kinds: WatchedKinds,
    /// The Namespaces that the engine has been told of.
    pub namespaces: ToldNamespaces,
    built_in: Vec<BuiltIn>,
    mapped: HashMap<Uid, MappedWatch>,
    /// The number that the next watch gets.
    next: u16,
    webhooks_listed: bool,
    all_listed: bool,
}

/// A watch that no `WebhookSource` asks for.
#[derive(Clone)]
struct BuiltIn {
    id: WatchId,
    kind: Kind,
    health: Arc<WatchHealth>,
}

#[derive(Clone, Copy)]
enum Kind {
    TrainingJob,
    Deployment,
}

/// The watch of a `WebhookSource`.
struct MappedWatch {
    source: SourceRef,
    id: WatchId,
    mapping: Arc<Mapping>,
    health: Arc<WatchHealth>,
    failures: Arc<Failures>,
    task: Option<AbortHandle>,
}

impl MappedWatch {
    fn mapped(&self, kinds: &WatchedKinds) -> Mapped {
        Mapped::new(Arc::clone(&self.mapping), kinds.clone(), Arc::clone(&self.failures))
    }
}

impl Sources {
    /// Watches that are not begun. `mapped`: whether WebhookSources are served.
    pub fn new(
        observe: mpsc::Sender<Observation>,
        notes: mpsc::UnboundedSender<Note>,
        namespaces: ToldNamespaces,
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
            if is_free && self.mapped.values().all(|watch| watch.id != id) {
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
        self.kinds.set(self.mapped.values().map(|watch| watch.mapping.group_kind()));
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
            self.add_built_in(scope.clone(), Kind::TrainingJob, &TrainingJobs::new(kinds.clone()));
            self.add_built_in(scope, Kind::Deployment, &Deployments::new(kinds.clone()));
        }
        if self.engine.awaits_watches() { LONG_PATIENCE } else { PATIENCE }
    }

    fn add_built_in(&mut self, scope: Option<String>, kind: Kind, source: &impl Source) {
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
        self.drop_orphans();
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
                Kind::TrainingJob => self.start_watch(id, health, TrainingJobs::new(kinds.clone())),
                Kind::Deployment => self.start_watch(id, health, Deployments::new(kinds.clone())),
            };
        }
        for uid in self.sources.mapped.keys().copied().collect::<Vec<_>>() {
            self.begin_mapped(uid);
        }
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

    /// A WebhookSource is new, or its spec has changed. One whose rules are what they were goes on where it was.
    pub(super) fn source_applied(&mut self, applied: Applied) {
        let Applied { source, generation, mapping, found } = applied;
        let uid = source.uid;
        // One that was deleted and created anew under its name.
        let namesakes = self.sources.mapped.values().filter(|watch| watch.source.name == source.name);
        let namesakes: Vec<Uid> = namesakes.map(|watch| watch.source.uid).filter(|other| *other != uid).collect();
        for namesake in namesakes {
            self.source_removed(namesake);
        }
        let mapping = match mapping {
            Ok(mapping) => mapping,
            Err(error) => {
                self.withdraw(uid);
                let state = State::Broken { reason: error.reason(), message: error.to_string() };
                return self.sources.note(Note::Standing { source, generation, state, found });
            }
        };
        let health = Arc::new(WatchHealth::new(&mapping.group_kind().1, None, Some(source.name.clone())));
        let metric = self.context.metrics.source_errors.with_label_values(&[&source.name]);
        let mut watch = MappedWatch {
            source: source.clone(),
            id: WatchId(0),
            mapping,
            health: Arc::clone(&health),
            failures: Arc::new(Failures::new(metric)),
            task: None,
        };
        let kinds = self.sources.kinds.clone();
        let name = |watch: &MappedWatch| watch.mapped(&kinds).watch_name(None);
        let known = self.sources.mapped.get(&uid).filter(|known| name(known) == name(&watch));
        watch.id = if let Some(known) = known {
            if let Some(task) = &known.task {
                task.abort();
            }
            known.id
        } else {
            self.withdraw(uid);
            self.sources.next_id()
        };
        let state = State::Watched { health, failures: Arc::clone(&watch.failures) };
        self.sources.mapped.insert(uid, watch);
        self.sources.tell_kinds();
        self.sources.note(Note::Standing { source, generation, state, found });
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

    /// A WebhookSource is deleted.
    pub(super) fn source_removed(&mut self, uid: Uid) {
        if let Some(watch) = self.withdraw(uid) {
            // The metric goes with the source.
            let _ = self.context.metrics.source_errors.remove_label_values(&[&watch.source.name]);
        }
        self.sources.note(Note::Removed(uid));
    }

    /// Ends the watch of a WebhookSource; its records are forgotten in silence.
    fn withdraw(&mut self, uid: Uid) -> Option<MappedWatch> {
        let watch = self.sources.mapped.remove(&uid)?;
        if let Some(task) = &watch.task {
            task.abort();
        }
        self.questions.remove(&watch.id);
        self.engine.remove_watch(watch.id);
        self.sources.tell_kinds();
        if self.sources.are_begun() {
            self.show_watches();
        }
        info!(
            webhook_source = watch.source.name,
            "the source is withdrawn; what was remembered of its objects is forgotten"
        );
        Some(watch)
    }
}
