//! Jobs that wait for each other: which may start, and which may stop.
//!
//! A job starts when all that it comes after are ready, and stops when all that come after it are down. Who comes after
//! whom must not go round in a circle.

use std::collections::HashMap;
use std::time::Duration;

/// What is done when a worker ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Restart {
    /// It is started again.
    #[default]
    Always,
    /// It is started again unless it ended with code 0.
    OnFailure,
    /// It has done its work, whatever came of it.
    Never,
}

impl Restart {
    /// Is one that ended so to run again?
    pub fn goes_on(self, success: bool) -> bool {
        match self {
            Restart::Always => true,
            Restart::OnFailure => !success,
            Restart::Never => false,
        }
    }
}

/// Why a table of jobs can't be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mistake {
    /// A job comes after one that isn't there.
    Unknown {
        /// The job.
        job: usize,
        /// Whom it names.
        after: String,
    },
    /// These wait for each other, the last one for the first.
    Circle(Vec<usize>),
}

impl Mistake {
    /// The first job that it is about.
    pub fn job(&self) -> usize {
        match self {
            Mistake::Unknown { job, .. } => *job,
            Mistake::Circle(jobs) => jobs.first().copied().unwrap_or(0),
        }
    }

    /// In words, with the names of the jobs.
    pub fn with(&self, names: &[String]) -> String {
        match self {
            Mistake::Unknown { job, after } => {
                format!("{} comes after {after:?}, which is no job", names[*job])
            }
            Mistake::Circle(jobs) => {
                let first = jobs.first();
                let circle: Vec<&str> = jobs.iter().chain(first).map(|j| names[*j].as_str()).collect();
                format!("these wait for each other: {}", circle.join(" after "))
            }
        }
    }
}

/// Who comes after whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    after: Vec<Vec<usize>>,
    /// The same from the other end: who comes after each.
    before: Vec<Vec<usize>>,
}

impl Order {
    /// Of jobs with their names and the names of those that they come after.
    ///
    /// # Errors
    /// See [`Mistake`].
    pub fn new(jobs: &[(String, Vec<String>)]) -> Result<Order, Mistake> {
        let numbers: HashMap<&str, usize> =
            jobs.iter().enumerate().map(|(n, (name, _))| (&**name, n)).collect();
        let index = |name: &String| numbers.get(&**name).copied();
        let mut after = Vec::with_capacity(jobs.len());
        for (job, (_, names)) in jobs.iter().enumerate() {
            let list = names.iter().map(|n| index(n).ok_or(Mistake::Unknown { job, after: n.clone() }));
            after.push(list.collect::<Result<Vec<_>, _>>()?);
        }
        let order = Order::of(after);
        match order.circle() {
            Some(circle) => Err(Mistake::Circle(circle)),
            None => Ok(order),
        }
    }

    /// Of so many that don't wait for each other.
    pub fn of_strangers(jobs: usize) -> Order {
        Order::of(vec![Vec::new(); jobs])
    }

    fn of(after: Vec<Vec<usize>>) -> Order {
        let mut before = vec![Vec::new(); after.len()];
        for (job, list) in after.iter().enumerate() {
            list.iter().for_each(|first| before[*first].push(job));
        }
        Order { after, before }
    }

    /// Are all that it comes after ready?
    pub fn may_start(&self, job: usize, ready: impl Fn(usize) -> bool) -> bool {
        self.after[job].iter().all(|j| ready(*j))
    }

    /// Are all that come after it down?
    pub fn may_stop(&self, job: usize, down: impl Fn(usize) -> bool) -> bool {
        self.before[job].iter().all(|j| down(*j))
    }

    /// How long those take together that go one after the other, where each takes so long: the longest such row.
    pub fn longest(&self, each: impl Fn(usize) -> Duration) -> Duration {
        let mut awaits: Vec<usize> = self.after.iter().map(Vec::len).collect();
        let mut begins = vec![Duration::ZERO; self.after.len()];
        let mut next: Vec<usize> = (0..self.after.len()).filter(|j| awaits[*j] == 0).collect();
        let mut longest = Duration::ZERO;
        while let Some(job) = next.pop() {
            let end = begins[job] + each(job);
            longest = longest.max(end);
            for other in &self.before[job] {
                begins[*other] = begins[*other].max(end);
                awaits[*other] -= 1;
                if awaits[*other] == 0 {
                    next.push(*other);
                }
            }
        }
        longest
    }

    /// The jobs of a circle, if there is one. Iterative: a table may be long.
    fn circle(&self) -> Option<Vec<usize>> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; self.after.len()];
        for start in 0..self.after.len() {
            let mut path: Vec<(usize, usize)> = Vec::new();
            if marks[start] == Mark::New {
                marks[start] = Mark::Open;
                path.push((start, 0));
            }
            while let Some((job, next)) = path.last_mut() {
                let Some(&other) = self.after[*job].get(*next) else {
                    marks[*job] = Mark::Done;
                    path.pop();
                    continue;
                };
                *next += 1;
                match marks[other] {
                    Mark::New => {
                        marks[other] = Mark::Open;
                        path.push((other, 0));
                    }
                    Mark::Open => {
                        let from = path.iter().position(|(j, _)| *j == other).unwrap_or(0);
                        return Some(path[from..].iter().map(|(j, _)| *j).collect());
                    }
                    Mark::Done => {}
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(list: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
        let own = |s: &&str| (*s).to_owned();
        list.iter().map(|(n, after)| (own(n), after.iter().map(own).collect())).collect()
    }

    #[test]
    fn a_job_waits_for_those_before_it_and_goes_after_those_behind_it() {
        let order = Order::new(&jobs(&[("web", &["db", "queue"]), ("db", &[]), ("queue", &["db"])])).unwrap();
        let ready = |list: &'static [usize]| move |j: usize| list.contains(&j);
        let may = |list| (0..3).map(|j| order.may_start(j, ready(list))).collect::<Vec<_>>();
        assert_eq!(may(&[]), [false, true, false]);
        assert_eq!(may(&[1]), [false, true, true]);
        assert_eq!(may(&[1, 2]), [true, true, true]);
        let down = |list| (0..3).map(|j| order.may_stop(j, ready(list))).collect::<Vec<_>>();
        assert_eq!(down(&[]), [true, false, false]);
        assert_eq!(down(&[0]), [true, false, true]);
        assert_eq!(down(&[0, 2]), [true, true, true]);
    }

    #[test]
    fn strangers_wait_for_nobody() {
        let order = Order::of_strangers(2);
        assert!((0..2).all(|j| order.may_start(j, |_| false) && order.may_stop(j, |_| false)));
    }

    #[test]
    fn a_row_takes_as_long_as_its_members() {
        let table: &[(&str, &[&str])] =
            &[("web", &["db", "queue"]), ("db", &[]), ("queue", &["db"]), ("alone", &[])];
        let order = Order::new(&jobs(table)).unwrap();
        let seconds = [1, 10, 100, 50].map(Duration::from_secs);
        assert_eq!(order.longest(|j| seconds[j]), Duration::from_secs(111));
        assert_eq!(Order::default().longest(|_| Duration::MAX), Duration::ZERO);
    }

    #[test]
    fn what_can_not_be_is_named() {
        let said = |list: &[(&str, &[&str])]| {
            let jobs = jobs(list);
            let names: Vec<String> = jobs.iter().map(|(n, _)| n.clone()).collect();
            let mistake = Order::new(&jobs).unwrap_err();
            (mistake.job(), mistake.with(&names))
        };
        let is = |job: usize, text: &str| (job, text.to_owned());
        let unknown: &[(&str, &[&str])] = &[("x", &[]), ("y", &[]), ("a", &["b"])];
        assert_eq!(said(unknown), is(2, "a comes after \"b\", which is no job"));
        assert_eq!(said(&[("a", &["a"])]), is(0, "these wait for each other: a after a"));
        let three: &[(&str, &[&str])] = &[("x", &["a"]), ("a", &["b"]), ("b", &["c"]), ("c", &["a"])];
        assert_eq!(said(three), is(1, "these wait for each other: a after b after c after a"));
    }

    #[test]
    fn a_long_chain_is_no_circle_and_no_burden() {
        let name = |n: usize| format!("job-{n}");
        let chain: Vec<_> =
            (0..5000).map(|n| (name(n), (n > 0).then(|| name(n - 1)).into_iter().collect())).collect();
        assert!(Order::new(&chain).is_ok());
    }

    #[test]
    fn who_runs_again() {
        assert!(Restart::Always.goes_on(true) && Restart::Always.goes_on(false));
        assert!(!Restart::OnFailure.goes_on(true) && Restart::OnFailure.goes_on(false));
        assert!(!Restart::Never.goes_on(true) && !Restart::Never.goes_on(false));
    }
}
