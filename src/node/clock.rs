//! The wall clock, and whether it jumped. The only place of the node that asks for the time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Unix time, milliseconds.
pub fn now_ms() -> u64 {
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
    ms.saturating_add_signed(offset_ms())
}

/// Tests move the clock of a running node through a file that holds milliseconds.
#[cfg(any(feature = "crash-points", debug_assertions))]
fn offset_ms() -> i64 {
    use std::sync::OnceLock;
    static FILE: OnceLock<Option<std::path::PathBuf>> = OnceLock::new();
    let file = FILE.get_or_init(|| std::env::var_os("LEGION_CLOCK_FILE").map(Into::into));
    file.as_ref()
        .and_then(|f| std::fs::read_to_string(f).ok())
        .and_then(|t| t.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(not(any(feature = "crash-points", debug_assertions)))]
fn offset_ms() -> i64 {
    0
}

/// Compares wall and monotonic time, to notice sleep and clock changes.
#[derive(Debug)]
pub struct JumpWatch {
    wall_ms: u64,
    steady: Instant,
    tolerance: Duration,
}

impl JumpWatch {
    /// A difference above `tolerance` since the last look is a jump.
    pub fn new(tolerance: Duration) -> Self {
        Self {
            wall_ms: now_ms(),
            steady: Instant::now(),
            tolerance,
        }
    }

    /// How far wall time ran ahead (or fell behind) since the last look, if that is a jump. Milliseconds.
    pub fn jumped_ms(&mut self) -> Option<i64> {
        let (wall_ms, steady) = (now_ms(), Instant::now());
        let expected =
            u64::try_from(steady.duration_since(self.steady).as_millis()).unwrap_or(u64::MAX);
        let moved = wall_ms as i64 - self.wall_ms as i64;
        (self.wall_ms, self.steady) = (wall_ms, steady);
        let ahead = moved - expected as i64;
        (ahead.unsigned_abs() > self.tolerance.as_millis() as u64).then_some(ahead)
    }
}
