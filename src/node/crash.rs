//! Named crash points: places between an input and its last effect where a test kills the node.
//!
//! In a debug build, or with the cargo feature `crash-points`, `LEGION_CRASH_AT=<point>[:<kind>[:<n>]]` makes the process end as if by
//! `kill -9` when the point is passed for the n-th time (default 1), counting only batches that journal `kind` if one is
//! named. Points, in the order of a batch: `received handled committed dispatched sealed published`.

/// Passes a point. `kinds` are the journal kinds of the batch.
#[cfg(any(feature = "crash-points", debug_assertions))]
pub fn point(name: &str, kinds: &[String]) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    static PLAN: OnceLock<Option<(String, Option<String>, u32)>> = OnceLock::new();
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let plan = PLAN.get_or_init(|| {
        let text = std::env::var("LEGION_CRASH_AT").ok()?;
        let mut parts = text.split(':');
        let point = parts.next()?.to_owned();
        let kind = parts.next().filter(|k| !k.is_empty()).map(str::to_owned);
        let nth = parts.next().and_then(|n| n.parse().ok()).unwrap_or(1);
        Some((point, kind, nth))
    });
    let Some((at, kind, nth)) = plan else { return };
    let meant = at == name && kind.as_ref().is_none_or(|kind| kinds.contains(kind));
    if meant && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *nth {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

/// Passes a point: nothing, without the feature.
#[cfg(not(any(feature = "crash-points", debug_assertions)))]
pub fn point(_name: &str, _kinds: &[String]) {}
