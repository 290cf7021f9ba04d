//! Named crash points: places between an input and its last effect where a test kills the node.
//!
//! In a debug build, or with the cargo feature `crash-points`, `LEGION_CRASH_AT=<point>[:<kind>[:<n>]]` makes the process end as if by
//! `kill -9` when the point is passed for the n-th time (default 1). Points, in the order of a batch: `received handled
//! committed dispatched sealed published`. Where a kind is named only batches count that journal it; at `received`, where
//! nothing is decided yet, batches that bring it ([`super::order::Mail::names`]). Sealing and publishing have left the batch
//! behind: there the first pass counts after a batch of that kind was committed.

/// Whether this build has crash points.
pub const ACTIVE: bool = cfg!(any(feature = "crash-points", debug_assertions));

/// Passes a point. `kinds` are the journal kinds of the batch.
#[cfg(any(feature = "crash-points", debug_assertions))]
pub fn point(name: &str, kinds: &[String]) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    static PLAN: OnceLock<Option<(String, Option<String>, u32)>> = OnceLock::new();
    static PASSED: AtomicU32 = AtomicU32::new(0);
    static ARMED: AtomicBool = AtomicBool::new(false);
    let plan = PLAN.get_or_init(|| {
        let text = std::env::var("LEGION_CRASH_AT").ok()?;
        let mut parts = text.split(':');
        let point = parts.next()?.to_owned();
        let kind = parts.next().filter(|k| !k.is_empty()).map(str::to_owned);
        let nth = parts.next().and_then(|n| n.parse().ok()).unwrap_or(1);
        Some((point, kind, nth))
    });
    let Some((at, kind, nth)) = plan else { return };
    let of_kind = kind.as_ref().is_none_or(|kind| kinds.contains(kind));
    if of_kind && name == "committed" {
        ARMED.store(true, Ordering::SeqCst);
    }
    let counts = of_kind || matches!(name, "sealed" | "published") && ARMED.load(Ordering::SeqCst);
    if at == name && counts && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *nth {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

/// Passes a point: nothing, without the feature.
#[cfg(not(any(feature = "crash-points", debug_assertions)))]
pub fn point(_name: &str, _kinds: &[String]) {}
