//! What is due next: an index over times, so that an input costs no look at everything that waits.

use std::collections::{BTreeMap, BTreeSet};

use super::Node;
use super::step::{EngagementKey, Ms, TaskId};

/// When each of many things is due next, by name and by time.
#[derive(Debug, Default)]
pub(super) struct Wakes {
    by_name: BTreeMap<String, Ms>,
    by_time: BTreeSet<(Ms, String)>,
}

impl Wakes {
    /// Sets when `name` is due; never, if that is [`Ms::MAX`].
    fn set(&mut self, name: &str, at: Ms) {
        if self.by_name.get(name) == Some(&at) {
            return;
        }
        if let Some(before) = self.by_name.remove(name) {
            self.by_time.remove(&(before, name.to_owned()));
        }
        if at != Ms::MAX {
            self.by_name.insert(name.to_owned(), at);
            self.by_time.insert((at, name.to_owned()));
        }
    }

    fn due(&self, now: Ms) -> Vec<String> {
        let due = self.by_time.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, name)| name.clone()).collect()
    }

    fn next_ms(&self) -> Option<Ms> {
        self.by_time.first().map(|(at, _)| *at)
    }
}

impl Node {
    /// When [`super::step::Input::Tick`] is next needed, Unix milliseconds; none if only other inputs can change anything.
    pub fn wake_ms(&self) -> Option<Ms> {
        let pause = self.owner.paused.as_ref().and_then(|p| p.until_ms);
        let times = [
            self.job_wakes.next_ms(),
            self.work_wakes.next_ms(),
            self.marks.next_expiry_ms(),
            pause,
        ];
        let wake = times.into_iter().flatten().min();
        let wake = wake.filter(|at| !self.draining && *at != Ms::MAX);
        wake.into_iter().chain(self.recovery_wake_ms()).min()
    }

    /// Jobs that time has something to say to.
    pub(super) fn due_jobs(&mut self, now: Ms) -> Vec<TaskId> {
        self.rewake();
        self.job_wakes.due(now)
    }

    /// Engagements that time has something to say to.
    pub(super) fn due_work(&mut self, now: Ms) -> Vec<EngagementKey> {
        self.rewake();
        self.work_wakes.due(now)
    }

    pub(super) fn rewake_job(&mut self, task: &str) {
        let at = self.jobs.get(task).map_or(Ms::MAX, |j| self.job_wake_ms(j));
        self.job_wakes.set(task, at);
    }

    pub(super) fn rewake_work(&mut self, key: &str) {
        let at = self.work.get(key).map_or(Ms::MAX, |w| self.work_wake_ms(w));
        self.work_wakes.set(key, at);
    }

    /// Takes what this step has touched into the index.
    pub(super) fn rewake(&mut self) {
        for task in self.dirty.jobs.clone() {
            self.rewake_job(&task);
        }
        for key in self.dirty.work.clone() {
            self.rewake_work(&key);
        }
        debug_assert!(
            self.jobs.len() + self.work.len() > 16 || self.index_holds(),
            "something moved without being marked"
        );
    }

    /// Takes everything into the index: the node went online or offline.
    pub(super) fn rewake_all(&mut self) {
        for task in self.jobs.keys().cloned().collect::<Vec<_>>() {
            self.rewake_job(&task);
        }
        for key in self.work.keys().cloned().collect::<Vec<_>>() {
            self.rewake_work(&key);
        }
    }

    fn index_holds(&self) -> bool {
        let at = |wakes: &Wakes, name: &str| wakes.by_name.get(name).copied().unwrap_or(Ms::MAX);
        self.jobs
            .values()
            .all(|j| at(&self.job_wakes, &j.task) == self.job_wake_ms(j))
            && self
                .work
                .values()
                .all(|w| at(&self.work_wakes, &w.key) == self.work_wake_ms(w))
    }
}
