//! Models the watch loop of `source::watch`: it resumes at its position, lists if the position is too old, and checks
//! the existence of objects that lost their label. Its observations go through the process's queue.

use std::collections::VecDeque;

use jiff::Timestamp;
use llmtune_core::event::{
    object::{Object, Uid, WatchId},
    observation::WatchEvent,
};

use crate::{
    process::{Env, Item},
    store::KINDS,
};

#[derive(Debug)]
pub enum Stage {
    /// Before it resumes, it asks for the store's version.
    Checking,
    Listing {
        objects: VecDeque<Object>,
        version: u64,
        at: Timestamp,
    },
    Following,
}

#[derive(Debug)]
pub struct Watcher {
    pub id: WatchId,
    pub kind: usize,
    /// `None` if it must list.
    pub position: Option<u64>,
    /// The newest version that it has seen.
    pub newest: u64,
    pub stage: Stage,
}

impl Watcher {
    pub fn new(id: WatchId, kind: usize, position: u64) -> Self {
        Self { id, kind, position: (position > 1).then_some(position), newest: position, stage: Stage::Checking }
    }

    fn push(&self, queue: &mut VecDeque<Item>, change: WatchEvent, as_of: u64) {
        queue.push_back(Item { watch: self.id, kind: self.kind, change, as_of, outdated: false });
    }

    fn saw(&mut self, version: u64) {
        self.position = Some(version);
        self.newest = self.newest.max(version);
    }

    /// The connection breaks.
    pub fn interrupt(&mut self) {
        self.stage = Stage::Checking;
    }

    /// Asks for the store's version. If that is older than the newest known version, the store was restored.
    pub fn check(&mut self, env: &Env, queue: &mut VecDeque<Item>) {
        if env.store.version < self.newest {
            self.newest = 0;
            self.position = None;
            self.push(queue, WatchEvent::Restored, 0);
        }
    }

    pub fn step(&mut self, env: &mut Env, queue: &mut VecDeque<Item>) {
        match std::mem::replace(&mut self.stage, Stage::Checking) {
            Stage::Checking => {
                if !env.installed[self.kind] {
                    self.position = None;
                    self.push(queue, WatchEvent::NotInstalled(Some(env.time(0))), env.store.version);
                    return;
                }
                self.check(env, queue);
                match self.position {
                    Some(position) if position >= env.store.compacted[self.kind] => self.stage = Stage::Following,
                    known => {
                        env.met.compacted |= known.is_some();
                        self.position = None;
                        let version = env.store.version;
                        self.newest = self.newest.max(version);
                        let objects = env.store.list(self.kind).into();
                        self.push(queue, WatchEvent::ListBegun, version);
                        self.stage = Stage::Listing { objects, version, at: env.time(0) };
                    }
                }
            }
            Stage::Listing { mut objects, version, at } => {
                if env.breaks(6) {
                    return;
                }
                for _ in 0..3 {
                    if let Some(object) = objects.pop_front() {
                        self.push(queue, WatchEvent::Seen(Box::new(object)), version);
                    }
                }
                if objects.is_empty() {
                    self.push(queue, WatchEvent::ListEnded(version), version);
                    self.push(queue, WatchEvent::Current(at), 0);
                    self.saw(version);
                } else {
                    self.stage = Stage::Listing { objects, version, at };
                }
            }
            Stage::Following => {
                let position = self.position.unwrap_or_default();
                let served = env.installed[self.kind] || env.random.chance(60);
                if env.breaks(4) || !served || position < env.store.compacted[self.kind] {
                    return;
                }
                self.stage = Stage::Following;
                let Some(entry) = env.store.after(self.kind, position) else {
                    let version = env.store.version;
                    if version > position && env.random.chance(30) {
                        self.saw(version);
                        self.push(queue, WatchEvent::Bookmark(version), 0);
                        self.push(queue, WatchEvent::Current(env.time(0)), 0);
                    }
                    return;
                };
                let (object, deleted) = (entry.object.clone(), entry.deleted);
                self.saw(object.version);
                match deleted {
                    true if KINDS[self.kind].selective => self.push(queue, WatchEvent::Left(Box::new(object)), 0),
                    true => self.push(queue, WatchEvent::Deleted(Box::new(object)), 0),
                    false => self.push(queue, WatchEvent::Seen(Box::new(object)), 0),
                }
            }
        }
    }

    /// Whether it has passed on all changes.
    pub fn is_at_end(&self, env: &Env) -> bool {
        matches!(self.stage, Stage::Following)
            && env.store.after(self.kind, self.position.unwrap_or_default()).is_none()
    }
}

/// The object of a watch event.
pub fn subject(change: &WatchEvent) -> Option<(Uid, u64)> {
    match change {
        WatchEvent::Seen(object) | WatchEvent::Deleted(object) | WatchEvent::Left(object) => {
            Some((object.uid, object.version))
        }
        _ => None,
    }
}
