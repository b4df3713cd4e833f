//! The monotonic clock, in the form that `policy` takes.

use policy::Time;
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::time::Duration;

/// `CLOCK_MONOTONIC`: doesn't run while the machine is suspended, is never set.
pub fn now() -> Time {
    let t = clock_gettime(ClockId::Monotonic);
    Time::new(t.tv_sec as u64, t.tv_nsec as u32)
}

/// As system calls take it.
pub fn timespec(d: Duration) -> Timespec {
    Timespec { tv_sec: d.as_secs() as i64, tv_nsec: i64::from(d.subsec_nanos()) }
}

/// Seconds since 1970, for what people read.
pub fn wall_seconds() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs())
}

/// A number in `0.0..1.0` for jitter; not for secrets.
pub fn jitter() -> f64 {
    let t = clock_gettime(ClockId::Monotonic);
    // the nanoseconds of a wake-up are as good as dice here; a multiplicative hash spreads them
    let mixed = (t.tv_nsec as u64 ^ u64::from(std::process::id())).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    #[test]
    fn jitter_stays_in_its_range() {
        assert!((0..1000).map(|_| super::jitter()).all(|j| (0.0..1.0).contains(&j)));
    }
}
