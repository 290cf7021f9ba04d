//! Exponential delays with jitter. Knows no clock.

use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Backoff {
    first_ms: u64,
    cap_ms: u64,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(first_ms: u64, cap_ms: u64) -> Self {
        Self {
            first_ms,
            cap_ms,
            failures: 0,
        }
    }

    /// Between half and all of `first * 2^failures`, at most the cap: nodes cut off together must not come back together.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let full_ms = self
            .first_ms
            .saturating_mul(1 << self.failures.min(20))
            .min(self.cap_ms)
            .max(1);
        self.failures = self.failures.saturating_add(1);
        let random = getrandom::u32().unwrap_or(u32::MAX / 2);
        Duration::from_millis(
            full_ms / 2 + (full_ms - full_ms / 2) * u64::from(random) / u64::from(u32::MAX),
        )
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: delays grow from the first to the cap and stay within it; a success starts over.
    #[test]
    fn grows_to_the_cap_and_resets() {
        let mut backoff = Backoff::new(500, 60_000);
        let delays: Vec<u128> = (0..40).map(|_| backoff.next_delay().as_millis()).collect();
        assert!((250..=500).contains(&delays[0]), "{delays:?}");
        assert!((500..=1_000).contains(&delays[1]), "{delays:?}");
        assert!(
            delays[7..].iter().all(|ms| (30_000..=60_000).contains(ms)),
            "{delays:?}"
        );
        backoff.reset();
        assert!(backoff.next_delay().as_millis() <= 500);
    }
}
