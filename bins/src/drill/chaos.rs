//! Chaos: what is done to the suite, and when. Everything follows from one seed, so that a run can be repeated; what the
//! suite makes of it depends on the machine too.

use super::kills::Target;
use super::suite::Suite;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use supervisor::pidfd::PidFd;

/// One thing that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// All of these get this signal at once.
    Signal(Vec<Target>, i32),
    /// `traffic_manager` is run with this word.
    Command(&'static str),
    /// New connections wait for so long.
    Pause(Duration),
}

const SIGNALS: [(i32, &str); 4] = [
    (nix::libc::SIGKILL, "SIGKILL"),
    (nix::libc::SIGSTOP, "SIGSTOP"),
    (nix::libc::SIGSEGV, "SIGSEGV"),
    (nix::libc::SIGTERM, "SIGTERM"),
];

impl Action {
    /// Its kind, for the count.
    pub fn kind(&self) -> &'static str {
        match self {
            Action::Signal(_, signal) => {
                SIGNALS.iter().find(|(s, _)| s == signal).map_or("signal", |(_, n)| n)
            }
            Action::Command(word) => word,
            Action::Pause(_) => "pause",
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        match self {
            Action::Signal(who, _) => {
                let who: Vec<_> = who.iter().map(|t| t.name()).collect();
                format!("{} {}", self.kind(), who.join("+"))
            }
            Action::Command(word) => (*word).to_owned(),
            Action::Pause(d) => format!("pause for {} ms", d.as_millis()),
        }
    }
}

/// The choices of a seed (SplitMix64).
#[derive(Debug, Clone)]
pub struct Choices(u64);

impl Choices {
    /// From the beginning.
    pub fn new(seed: u64) -> Choices {
        Choices(seed)
    }

    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.number() % n.max(1)
    }

    /// The next thing to do, and how long after the last one: half of `every` to one and a half.
    pub fn next(&mut self, every: Duration) -> (Duration, Action) {
        let gap = every / 2 + every.mul_f64(self.below(1000) as f64 / 1000.0);
        let action = match self.below(10) {
            0 => Action::Command("reload"),
            1 => Action::Command("restart"),
            2 => Action::Pause(Duration::from_millis(50 + self.below(950))),
            _ => {
                let signal = SIGNALS[self.below(4) as usize].0;
                // SIGTERM asks cop to end the suite, and the others to be replaced
                let all = match signal {
                    nix::libc::SIGTERM => &[Target::Manager, Target::Server][..],
                    _ => &[Target::Manager, Target::Server, Target::Cop][..],
                };
                let set = 1 + self.below((1 << all.len()) - 1);
                let who = (0..all.len()).filter(|i| set & (1 << i) != 0).map(|i| all[i]).collect();
                Action::Signal(who, signal)
            }
        };
        (gap, action)
    }
}

/// A seed that nobody chose.
pub fn any_seed() -> u64 {
    let mut bytes = [0u8; 4];
    // without randomness it is the time that is random enough
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(_) => u64::from(u32::from_ne_bytes(bytes)),
        Err(_) => u64::from(supervisor::clock::now().subsec_nanos()),
    }
}

/// What is done, and what was.
#[derive(Debug)]
pub struct Chaos {
    /// Everything follows from it.
    pub seed: u64,
    choices: Choices,
    every: Duration,
    next: (Duration, Action),
    resume: Option<Duration>,
    /// How often each kind was done.
    pub done: BTreeMap<&'static str, u64>,
    /// Signals to each program.
    pub hit: BTreeMap<&'static str, usize>,
    /// The last things that were done, and when.
    pub acts: VecDeque<(Instant, String)>,
}

/// Acts that are remembered one by one.
const ACTS: usize = 500;

impl Chaos {
    /// Begins now.
    pub fn new(seed: u64, every: Duration) -> Chaos {
        let mut choices = Choices::new(seed);
        let next = choices.next(every);
        Chaos {
            seed,
            choices,
            every,
            next,
            resume: None,
            done: BTreeMap::new(),
            hit: BTreeMap::new(),
            acts: VecDeque::new(),
        }
    }

    /// When something is due, from the start.
    pub fn due(&self) -> Duration {
        self.resume.map_or(self.next.0, |at| at.min(self.next.0))
    }

    /// Does what is due at `now`, and says what it was.
    ///
    /// # Errors
    /// A command can't be run.
    pub fn step(&mut self, now: Duration, suite: &Suite) -> anyhow::Result<Option<String>> {
        if self.resume.is_some_and(|at| now >= at) {
            self.resume = None;
            suite.command("resume")?;
            return Ok(None);
        }
        if now < self.next.0 {
            return Ok(None);
        }
        let (_, action) = self.next.clone();
        let (gap, following) = self.choices.next(self.every);
        self.next = (now + gap, following);
        *self.done.entry(action.kind()).or_default() += 1;
        let mut nobody = "";
        match &action {
            Action::Command(word) => suite.command(word)?,
            Action::Pause(d) => {
                suite.command("pause")?;
                self.resume = Some(now + *d);
            }
            Action::Signal(who, signal) => {
                // held first, so that they are hit together
                let held: Vec<_> = who.iter().filter_map(|t| Some((t, hold(suite, *t)?))).collect();
                for (target, process) in &held {
                    let _ = process.signal(*signal);
                    *self.hit.entry(target.name()).or_default() += 1;
                }
                if held.len() < who.len() {
                    nobody = " (not all of them were there)";
                }
            }
        }
        let text = format!("{}{nobody}", action.text());
        self.acts.push_back((Instant::now(), text.clone()));
        if self.acts.len() > ACTS {
            self.acts.pop_front();
        }
        Ok(Some(text))
    }
}

/// Who holds a lock at the moment.
fn hold(suite: &Suite, target: Target) -> Option<PidFd> {
    let pid = suite.pid(target)?;
    let process = PidFd::open(pid).ok()?;
    (suite.pid(target) == Some(pid)).then_some(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_says_everything_and_another_says_something_else() {
        let of = |seed| {
            let mut c = Choices::new(seed);
            (0..500).map(|_| c.next(Duration::from_secs(1))).collect::<Vec<_>>()
        };
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        for (gap, action) in of(7) {
            assert!((500..1500).contains(&gap.as_millis()), "{gap:?}");
            if let Action::Signal(who, signal) = action {
                assert!(!who.is_empty());
                assert!(
                    signal != nix::libc::SIGTERM || !who.contains(&Target::Cop),
                    "that would end the suite"
                );
            }
        }
        let kinds: std::collections::BTreeSet<_> = of(7).iter().map(|(_, a)| a.kind()).collect();
        assert_eq!(kinds.len(), 7, "{kinds:?}");
    }
}
