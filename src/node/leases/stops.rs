//! Stops of running work: at the end of a unit, after a checkpoint, or to go on with other cores.

use super::{Job, Leases};
use crate::domain::step::LaborNews;

impl Leases {
    pub(super) fn soft_stop(&mut self, key: &str, after_checkpoint: bool) {
        if after_checkpoint {
            self.stop_after.push(key.to_owned());
            return;
        }
        let deadline_ms = self.settings.soft_stop_ms;
        let stations = self.foreign.iter_mut().chain(self.own.as_mut());
        for station in stations {
            for (number, job) in &mut station.jobs {
                if let Job::Work { key: k, run, .. } = job
                    && k == key
                {
                    // One that is stopping already only loses its wish to go on.
                    if !std::mem::take(&mut run.again) {
                        let _ = station.handle.soft_stop(*number, deadline_ms);
                    }
                    return;
                }
            }
        }
        // It was never started, or has ended in the meantime.
        self.news(
            key.to_owned(),
            LaborNews::Lost {
                code: "worker_idle".into(),
            },
        );
    }

    /// Foreign work gets another number of cores: what runs stops at the end of its unit and goes on from there.
    pub(super) fn set_foreign_threads(&mut self, threads: u32) {
        if threads == self.foreign_threads {
            return;
        }
        tracing::info!(threads, "foreign work has another number of cores");
        self.foreign_threads = threads;
        let deadline_ms = self.settings.soft_stop_ms;
        let Some(station) = &mut self.foreign else {
            return;
        };
        for (number, job) in &mut station.jobs {
            if let Job::Work { run, .. } = job
                && !run.again
            {
                run.again = station.handle.soft_stop(*number, deadline_ms).is_ok();
            }
        }
    }
}
