//! Asking again: what was refused as `overloaded` was not done, and may be asked for again, ever later. Touches nothing but the clock.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::{Code, Fault};

/// The first wait, at most.
const FIRST: Duration = Duration::from_millis(20);
/// The longest.
const LONGEST: Duration = Duration::from_secs(2);

/// Does `work`, which is told how long it may take, again and again until it fails with something else than `overloaded`, or the next try would come
/// after the deadline; each time after twice the wait, of which a part is left to chance, so that those who were refused together do not come together.
/// All that `work` does before the call that is refused is done again as well.
pub async fn retry<T>(deadline: Duration, mut work: impl AsyncFnMut(Duration) -> Result<T, Fault>) -> Result<T, Fault> {
    let limit = Instant::now() + deadline;
    let mut wait = FIRST;
    loop {
        match work(limit.saturating_duration_since(Instant::now())).await {
            Err(fault) if fault.code == Code::Overloaded => {
                let next = Instant::now() + part(wait);
                if next >= limit {
                    return Err(fault);
                }
                tokio::time::sleep_until(next).await;
                wait = wait.saturating_mul(2).min(LONGEST);
            }
            done => return done,
        }
    }
}

/// Between a half and all of it, by the nanosecond in which this is asked: no system call and no secret.
fn part(wait: Duration) -> Duration {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    let half = wait / 2;
    half.saturating_add(half.mul_f64(f64::from(nanos % 1000) / 1000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(code: Code) -> Fault {
        Fault::new(code, "a", "b", "c")
    }

    /// How often it was tried, and how it ended.
    fn tried(deadline: Duration, answers: impl Fn(u32) -> Result<u8, Code>) -> (u32, Result<u8, Code>) {
        let mut count = 0;
        let ended = crate::run(async {
            retry(deadline, async |_| {
                count += 1;
                answers(count).map_err(fault)
            })
            .await
        });
        (count, ended.unwrap().map_err(|fault| fault.code))
    }

    #[test]
    fn what_is_overloaded_is_asked_again_until_it_is_not() {
        let minute = Duration::from_secs(60);
        let thrice = |count| if count < 4 { Err(Code::Overloaded) } else { Ok(7) };
        assert_eq!(tried(minute, thrice), (4, Ok(7)));
        let refused = |count| if count < 3 { Err(Code::Overloaded) } else { Err(Code::BadImage) };
        assert_eq!(tried(minute, refused), (3, Err(Code::BadImage)));
    }

    #[test]
    fn every_other_failure_is_final_and_so_is_the_deadline() {
        for code in [Code::Exhausted, Code::Unavailable, Code::Internal] {
            assert_eq!(tried(Duration::from_secs(60), |_| Err(code)), (1, Err(code)));
        }
        assert_eq!(tried(Duration::ZERO, |_| Err(Code::Overloaded)), (1, Err(Code::Overloaded)));
        let (count, ended) = tried(Duration::from_secs(2), |_| Err(Code::Overloaded));
        assert!((2..100).contains(&count) && ended == Err(Code::Overloaded), "{count}");
    }

    #[test]
    fn waits_differ_and_stay_between_a_half_and_all() {
        for wait in [FIRST, LONGEST] {
            assert!((0..1000).map(|_| part(wait)).all(|part| part >= wait / 2 && part <= wait));
        }
    }
}
