//! When a job that runs now and then is due: at an interval, or at times of the day.
//!
//! The wall clock may be set, and local time jumps twice a year; what is due is decided so that no time is dealt with twice
//! and none is forgotten:
//!
//! - a time of day that doesn't exist on a day (clocks go forward) is taken as much later as they go forward;
//! - one that exists twice (clocks go back) counts the first time;
//! - a clock that is set back by up to three hours repeats no time of day; by more, the plan begins anew;
//! - what was passed over while nobody looked (the suite was down, the machine slept, the clock was set forward) is one run at
//!   most, and none if it isn't wanted that late.

/// Seconds since 1970, UTC.
pub type Wall = i64;

const DAY: i64 = 86_400;
/// A clock that is set back by so much repeats nothing.
const BACK: i64 = 3 * 3600;
/// Later than this is missed.
const LATE: i64 = 60;

/// A plan's text, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// So many seconds from one start to the next, at least one.
    Every(u32),
    /// On these days of the week, Monday first, at these minutes after local midnight.
    At {
        /// Is it a day for it?
        days: [bool; 7],
        /// 0 to 1439.
        minutes: Vec<u16>,
    },
}

/// What becomes of a run that was missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missed {
    /// It is made up for, once.
    #[default]
    Run,
    /// It is left out.
    Skip,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Due {
    /// Nothing before this time.
    NotBefore(Wall),
    /// A run begins.
    Run,
    /// The last run goes on still: this one is left out.
    Overlaps,
    /// It was missed, and is left out.
    Missed,
}

/// Seconds that local time is ahead of UTC at a time.
pub type Offset<'a> = &'a dyn Fn(Wall) -> i64;

impl Schedule {
    /// The first time after `base`. `None`: there is none (no day, or no time of day).
    pub fn after(&self, base: Wall, offset: Offset<'_>) -> Option<Wall> {
        match self {
            Schedule::Every(seconds) => Some(base + i64::from(*seconds).max(1)),
            Schedule::At { days, minutes } => {
                let today = (base + offset(base)).div_euclid(DAY);
                // yesterday's may have been put off over midnight; in a week every day has come
                let possible = (today - 1..=today + 8).filter(|day| days[weekday(*day)]);
                let local =
                    possible.flat_map(|day| minutes.iter().map(move |m| day * DAY + i64::from(*m) * 60));
                local.map(|l| instant(l, offset)).filter(|at| *at > base).min()
            }
        }
    }
}

/// 0 is Monday. The first day of 1970 was a Thursday.
fn weekday(day: i64) -> usize {
    (day + 3).rem_euclid(7) as usize
}

/// The instant at which local clocks show `local` (as seconds since 1970 of their own).
fn instant(local: i64, offset: Offset<'_>) -> Wall {
    let (before, after) = (offset(local - DAY), offset(local + DAY));
    let first = local - before;
    // twice: the first; never: as much later as clocks have gone forward, which is the same sum
    if before == after || offset(first) == before || offset(local - after) != after {
        return first;
    }
    local - after
}

/// A schedule, and how far it is dealt with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    schedule: Schedule,
    dealt: Wall,
}

impl Plan {
    /// From now on, or from when an earlier one was dealt with last, if that can be.
    pub fn new(schedule: Schedule, dealt: Option<Wall>, now: Wall) -> Plan {
        let possible = |at: &Wall| (0..=now.saturating_add(BACK)).contains(at);
        Plan { schedule, dealt: dealt.filter(possible).unwrap_or(now) }
    }

    /// Up to when all is dealt with.
    pub fn dealt(&self) -> Wall {
        self.dealt
    }

    /// What it plans.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Looks at the clock; what is due is dealt with by that. `busy`: the last run goes on still.
    pub fn look(&mut self, now: Wall, busy: bool, missed: Missed, offset: Offset<'_>) -> Due {
        let back = match self.schedule {
            Schedule::Every(_) => 0,
            Schedule::At { .. } => BACK,
        };
        if self.dealt > now + back {
            self.dealt = now;
        }
        let next = self.schedule.after(self.dealt, offset).unwrap_or(Wall::MAX);
        if now < next {
            return Due::NotBefore(next);
        }
        self.dealt = now;
        match () {
            () if busy => Due::Overlaps,
            () if now - next > LATE && missed == Missed::Skip => Due::Missed,
            () => Due::Run,
        }
    }

    /// A run begins that nobody planned: the interval begins anew.
    pub fn started(&mut self, now: Wall) {
        if matches!(self.schedule, Schedule::Every(_)) {
            self.dealt = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Central Europe in 2026: clocks go forward on 29 March, back on 25 October, each at 01:00 UTC.
    fn cet(at: Wall) -> i64 {
        if (SPRING..AUTUMN).contains(&at) { 7200 } else { 3600 }
    }
    const SPRING: Wall = 1_774_746_000;
    const AUTUMN: Wall = 1_792_890_000;
    const HOUR: i64 = 3600;

    fn daily(minutes: &[u16]) -> Schedule {
        Schedule::At { days: [true; 7], minutes: minutes.to_vec() }
    }

    /// The next times, each after the one before.
    fn times(s: &Schedule, base: Wall, count: usize) -> Vec<Wall> {
        let mut at = base;
        let next = || {
            at = s.after(at, &cet).unwrap();
            at
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    #[test]
    fn a_time_of_day_comes_once_a_day_on_its_days() {
        let utc = |_| 0;
        // 1970-01-01 was a Thursday
        let only = |day: usize| {
            let mut days = [false; 7];
            days[day] = true;
            Schedule::At { days, minutes: vec![210] }
        };
        let on = |day: usize| only(day).after(0, &utc).unwrap();
        assert_eq!([on(3), on(4), on(2)], [12_600, DAY + 12_600, 6 * DAY + 12_600]);
        assert_eq!(only(3).after(12_600, &utc), Some(7 * DAY + 12_600), "that very second is dealt with");
        assert_eq!(daily(&[60, 120]).after(HOUR, &utc), Some(2 * HOUR));
        assert_eq!(Schedule::At { days: [false; 7], minutes: vec![1] }.after(0, &utc), None);
        assert_eq!(daily(&[]).after(0, &utc), None);
        assert_eq!(Schedule::Every(300).after(7, &utc), Some(307));
    }

    #[test]
    fn clocks_that_go_forward_leave_nothing_out() {
        // 02:30 doesn't exist on that day: 03:30 summer time is half an hour after the change
        let half_past_two = times(&daily(&[150]), SPRING - 12 * HOUR, 3);
        assert_eq!(half_past_two, [SPRING + 1800, SPRING + 1800 + 23 * HOUR, SPRING + 1800 + 47 * HOUR]);
        // the day has 23 hours
        let noon = times(&daily(&[720]), SPRING - 20 * HOUR, 2);
        assert_eq!(noon[1] - noon[0], 23 * HOUR);
    }

    #[test]
    fn clocks_that_go_back_repeat_nothing() {
        // 02:30 comes twice: an hour and a half before the end of the day's second hour, so to speak
        let half_past_two = times(&daily(&[150]), AUTUMN - 12 * HOUR, 2);
        assert_eq!(half_past_two, [AUTUMN - 1800, AUTUMN - 1800 + 25 * HOUR]);
        let noon = times(&daily(&[720]), AUTUMN - 20 * HOUR, 2);
        assert_eq!(noon[1] - noon[0], 25 * HOUR);
    }

    #[test]
    fn a_time_that_is_put_off_over_midnight_is_not_forgotten() {
        // clocks go forward at 23:00 of the tenth day, so that it has no 23:30
        let change = 10 * DAY + 23 * HOUR;
        let offset = |at| if at < change { 0 } else { HOUR };
        let put_off = change + 1800;
        assert_eq!(daily(&[1410]).after(change - 1, &offset), Some(put_off));
        assert_eq!(
            daily(&[1410]).after(change + 600, &offset),
            Some(put_off),
            "though it is the next day there"
        );
    }

    #[test]
    fn where_the_day_is_another_one_than_in_greenwich_a_week_is_a_week() {
        for ahead in [-12, -1, 0, 1, 14] {
            let offset = |_| ahead * HOUR;
            // a Sunday, local time
            let sunday = |hour: i64| (10 * DAY) + (hour - ahead) * HOUR;
            let days = [false, false, false, false, false, false, true];
            let s = Schedule::At { days, minutes: vec![60] };
            assert_eq!(s.after(sunday(0), &offset), Some(sunday(1)), "{ahead} hours ahead");
            assert_eq!(s.after(sunday(2), &offset), Some(sunday(1) + 7 * DAY), "{ahead} hours ahead");
        }
    }

    #[test]
    fn over_years_each_day_has_its_run_at_its_time() {
        for minute in [0, 1, 90, 119, 120, 150, 180, 181, 720, 1439] {
            let s = daily(&[minute]);
            let list = times(&s, SPRING - 100 * DAY, 400);
            for pair in list.windows(2) {
                let apart = pair[1] - pair[0];
                assert!((22 * HOUR..=26 * HOUR).contains(&apart), "minute {minute}: {apart} at {}", pair[0]);
                let shown = (pair[1] + cet(pair[1])).rem_euclid(DAY) / 60;
                let put_off = pair[1] >= SPRING && pair[1] < SPRING + HOUR;
                assert!(shown == i64::from(minute) || put_off, "minute {minute}: shown {shown}");
            }
        }
    }

    fn look(p: &mut Plan, now: Wall) -> Due {
        p.look(now, false, Missed::Run, &|_| 0)
    }

    #[test]
    fn a_run_is_due_once_and_never_beside_the_last_one() {
        let mut p = Plan::new(Schedule::Every(300), None, 1000);
        assert_eq!(look(&mut p, 1000), Due::NotBefore(1300));
        assert_eq!(look(&mut p, 1300), Due::Run);
        assert_eq!(look(&mut p, 1300), Due::NotBefore(1600));
        assert_eq!(p.look(1600, true, Missed::Run, &|_| 0), Due::Overlaps);
        assert_eq!(look(&mut p, 1700), Due::NotBefore(1900));
        // somebody has it run in between
        p.started(1800);
        assert_eq!(look(&mut p, 1900), Due::NotBefore(2100));
    }

    #[test]
    fn what_can_not_have_been_dealt_with_is_not_believed() {
        let noon = 720 * 60;
        let of = |dealt| Plan::new(daily(&[720]), Some(dealt), noon).dealt();
        assert_eq!([Wall::MIN, -1, noon + BACK + 1, Wall::MAX].map(of), [noon; 4]);
        assert_eq!([0, noon, noon + BACK].map(of), [0, noon, noon + BACK]);
    }

    #[test]
    fn what_was_missed_is_made_up_for_once_or_left_out() {
        let week = 7 * DAY;
        let mut p = Plan::new(daily(&[60]), Some(HOUR), week);
        assert_eq!(look(&mut p, week), Due::Run);
        assert_eq!(look(&mut p, week), Due::NotBefore(week + HOUR));
        let mut p = Plan::new(daily(&[60]), Some(HOUR), week);
        assert_eq!(p.look(week, false, Missed::Skip, &|_| 0), Due::Missed);
        assert_eq!(p.look(week + HOUR + LATE, false, Missed::Skip, &|_| 0), Due::Run, "that isn't late yet");
        assert_eq!(p.dealt(), week + HOUR + LATE);
        assert_eq!(p.look(week + DAY + HOUR + LATE + 1, false, Missed::Skip, &|_| 0), Due::Missed);
        // nothing is made up for that was never planned
        let mut p = Plan::new(daily(&[60]), None, week);
        assert_eq!(look(&mut p, week), Due::NotBefore(week + HOUR));
    }

    #[test]
    fn a_clock_that_is_set_back_repeats_no_time_of_day_unless_by_far() {
        let noon = 720 * 60;
        let mut p = Plan::new(daily(&[720]), None, 0);
        assert_eq!(look(&mut p, noon), Due::Run);
        assert_eq!(look(&mut p, noon - HOUR), Due::NotBefore(noon + DAY));
        assert_eq!(look(&mut p, noon - 3 * HOUR), Due::NotBefore(noon + DAY));
        assert_eq!(look(&mut p.clone(), noon - 3 * HOUR - 1), Due::NotBefore(noon));
        // ten days
        assert_eq!(look(&mut p, noon - HOUR - 10 * DAY), Due::NotBefore(noon - 10 * DAY));
        // and an interval doesn't wait for the old time
        let mut p = Plan::new(Schedule::Every(60), None, 10_000);
        assert_eq!(look(&mut p, 9_000), Due::NotBefore(9_060));
    }
}
