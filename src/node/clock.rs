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

/// Compares wall and monotonic time, to notice sleep, suspension and clock changes.
#[derive(Debug)]
pub struct JumpWatch {
    wall_ms: u64,
    steady: Instant,
    tolerance: Duration,
}

/// A stretch of time in which the node could not see what went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// How far wall time ran ahead of the monotonic clock (or fell behind), milliseconds.
    pub ahead_ms: i64,
    /// How long nobody looked, milliseconds.
    pub away_ms: u64,
}

impl JumpWatch {
    /// A difference above `tolerance` since the last look is a gap.
    pub fn new(tolerance: Duration) -> Self {
        Self {
            wall_ms: now_ms(),
            steady: Instant::now(),
            tolerance,
        }
    }

    /// To be called at least every `expected`. A gap is a clock that moved, or a look that comes late (SIGSTOP, a suspended
    /// machine), by more than the tolerance.
    pub fn look(&mut self, expected: Duration) -> Option<Gap> {
        let (wall_ms, steady) = (now_ms(), Instant::now());
        let away = steady.duration_since(self.steady);
        let away_ms = u64::try_from(away.as_millis()).unwrap_or(u64::MAX);
        let ahead_ms = wall_ms as i64 - self.wall_ms as i64 - away_ms as i64;
        (self.wall_ms, self.steady) = (wall_ms, steady);
        let moved = ahead_ms.unsigned_abs() > self.tolerance.as_millis() as u64;
        (moved || away > expected + self.tolerance).then_some(Gap { ahead_ms, away_ms })
    }
}
