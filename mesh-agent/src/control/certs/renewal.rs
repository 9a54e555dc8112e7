//! When a certificate is renewed: at half of its life, or soon after the authority began to sign under another certificate;
//! each with jitter, so that certificates that were signed together are not all renewed together.

use std::time::{Duration, SystemTime};

use rand::Rng;

/// Even a certificate of a few seconds is not renewed more often than this.
const SHORTEST: Duration = Duration::from_millis(500);

/// How long to wait from `now` until the certificate is renewed. `obtained` is when this agent got it: a controller may
/// date the beginning back against clocks that are behind, and that time is not part of the life it has here.
pub(super) fn wait(
    obtained: SystemTime,
    not_before: SystemTime,
    not_after: SystemTime,
    now: SystemTime,
) -> Duration {
    let begin = obtained.max(not_before);
    let life = not_after.duration_since(begin).unwrap_or_default();
    let due = begin + life.mul_f64(rand::rng().random_range(0.45..=0.55));
    due.duration_since(now).unwrap_or_default().max(SHORTEST)
}

/// How long to wait from `now` when the authority signs under another certificate since: all nodes learn that at once, and
/// ask within a hundredth of what is left of the life (a quarter of an hour of a day).
pub(super) fn soon(not_after: SystemTime, now: SystemTime) -> Duration {
    let left = not_after.duration_since(now).unwrap_or_default();
    left.mul_f64(rand::rng().random_range(0.0..=0.01)).max(SHORTEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_the_issuer_is_followed_soon_and_not_by_all_at_once() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let waits: Vec<_> = (0..200).map(|_| soon(now + Duration::from_secs(86_400), now)).collect();
        let (first, last) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
        assert!(*last <= Duration::from_secs(864), "{last:?}");
        assert!(*last - *first > Duration::from_secs(400), "spread: {first:?} to {last:?}");
        assert_eq!(soon(now - Duration::from_secs(1), now), SHORTEST);
    }

    #[test]
    fn the_half_of_what_is_left_counts_not_a_beginning_dated_back() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let (before, after) = (now - Duration::from_secs(300), now + Duration::from_secs(60));
        for _ in 0..100 {
            let wait = wait(now, before, after, now).as_secs_f64();
            assert!((27.0..=33.0).contains(&wait), "{wait} s");
        }
    }

    #[test]
    fn an_expired_one_is_due_now_but_not_in_a_busy_loop() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let past = now - Duration::from_secs(60);
        assert_eq!(wait(past - Duration::from_secs(60), past, past, now), SHORTEST);
    }
}
