//! The watches: made known to the engine first, started once all Webhooks are listed.

use std::sync::{Arc, atomic::AtomicU64};

use tokio::{sync::mpsc, task::JoinSet};
use tracing::info;

use super::Leader;
use crate::{
    engine::Observation,
    event::object::WatchId,
    source::{Source, deployment::Deployments, health::WatchHealth, training_job::TrainingJobs, watch::Watcher},
};

impl Leader {
    /// The ids of each scope's watches, of jobs and of deployments; a scope is a namespace, or all of them.
    fn scopes(&self) -> Vec<([WatchId; 2], Option<String>)> {
        let namespaces = &self.context.args.watch_namespaces;
        let scopes = if namespaces.is_empty() { vec![None] } else { namespaces.iter().cloned().map(Some).collect() };
        // Config bounds the number of namespaces.
        let ids = (0..).map(|at: u16| [WatchId(2 * at), WatchId(2 * at + 1)]);
        ids.zip(scopes).collect()
    }

    /// Makes all watches known to the engine.
    pub(super) fn add_watches(&mut self) {
        for ([jobs, deployments], scope) in self.scopes() {
            self.add_watch(jobs, scope.as_deref(), &TrainingJobs::default());
            self.add_watch(deployments, scope.as_deref(), &Deployments::default());
        }
        for watch in self.engine.forget_other_watches() {
            info!(watch, "what is remembered of this watch is forgotten: it is no longer configured");
        }
    }

    fn add_watch(&mut self, id: WatchId, scope: Option<&str>, source: &impl Source) {
        self.engine.add_watch(id, source.name(), &source.watch_name(scope), source.selector().is_some());
    }

    /// Starts all watches where the engine stands.
    pub(super) fn start_sources(&mut self, tasks: &mut JoinSet<()>, observations: &mpsc::Sender<Observation>) {
        let mut health = Vec::new();
        for ([jobs, deployments], scope) in self.scopes() {
            health.push(self.start_source(jobs, scope.clone(), TrainingJobs::default(), tasks, observations));
            health.push(self.start_source(deployments, scope, Deployments::default(), tasks, observations));
        }
        self.context.health.set_watches(health);
        for question in self.engine.open_questions() {
            self.ask(question);
        }
    }

    fn start_source(
        &mut self,
        id: WatchId,
        namespace: Option<String>,
        source: impl Source,
        tasks: &mut JoinSet<()>,
        observations: &mpsc::Sender<Observation>,
    ) -> Arc<WatchHealth> {
        let health = Arc::new(WatchHealth::new(source.kind(), namespace.clone(), None));
        let watcher = Arc::new(Watcher {
            id,
            namespace,
            client: self.context.client.clone(),
            observations: observations.clone(),
            health: Arc::clone(&health),
            malformed: self.context.metrics.malformed.with_label_values(&[source.kind()]),
            keep_annotations: Arc::clone(&self.keep_annotations),
            newest: AtomicU64::new(0),
            source,
        });
        let (ask, asked) = mpsc::unbounded_channel();
        self.questions.insert(id, ask);
        tasks.spawn(Arc::clone(&watcher).answer(asked));
        let position = Some(self.engine.position(id)).filter(|position| *position > 0);
        tasks.spawn(watcher.run(position));
        health
    }
}
