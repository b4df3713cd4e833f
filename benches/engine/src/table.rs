//! What is printed: one row for each number, with its goal and with what it is compared to.

/// Median, least and greatest of several rounds.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Sample {
    pub fn of(mut all: Vec<f64>) -> Self {
        all.sort_by(f64::total_cmp);
        let (least, most) = (all[0], all[all.len() - 1]);
        Sample { median: all[all.len() / 2], least, most }
    }
}

/// Measures both in turns, so that what disturbs one disturbs the other.
pub fn in_turns(rounds: usize, mut a: impl FnMut() -> f64, mut b: impl FnMut() -> f64) -> (Sample, Sample) {
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    for n in 0..rounds {
        if n % 2 == 0 {
            of_a.push(a());
            of_b.push(b());
        } else {
            of_b.push(b());
            of_a.push(a());
        }
    }
    (Sample::of(of_a), Sample::of(of_b))
}

pub fn rounds(n: usize, mut f: impl FnMut() -> f64) -> Sample {
    Sample::of((0..n).map(|_| f()).collect())
}

/// What a number should be.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
    None,
}

impl Goal {
    fn text(self, value: f64) -> String {
        let (sign, goal, met) = match self {
            Goal::AtLeast(goal) => ("≥", goal, value >= goal),
            Goal::AtMost(goal) => ("≤", goal, value <= goal),
            Goal::None => return "-".into(),
        };
        format!("{sign} {goal} {}", if met { "met" } else { "MISSED" })
    }
}

/// Prints rows as they come, as Markdown.
pub struct Table {
    missed: usize,
}

impl Table {
    pub fn new() -> Self {
        println!("| what | engine | least – most | goal | compared to | | engine / that |");
        println!("|---|---|---|---|---|---|---|");
        Table { missed: 0 }
    }

    pub fn row(&mut self, what: &str, unit: &str, value: Sample, goal: Goal, other: Option<(&str, Sample)>) {
        let goal = goal.text(value.median);
        self.missed += usize::from(goal.ends_with("MISSED"));
        let digits = if value.median < 100.0 { 2 } else { 0 };
        let (name, theirs, ratio) = match other {
            None => ("-".to_owned(), "-".to_owned(), "-".to_owned()),
            Some((name, s)) => (
                name.to_owned(),
                format!("{:.digits$} ({:.digits$} – {:.digits$})", s.median, s.least, s.most),
                format!("{:.2}", value.median / s.median),
            ),
        };
        println!(
            "| {what} | {:.digits$} {unit} | {:.digits$} – {:.digits$} | {goal} | {name} | {theirs} | {ratio} |",
            value.median, value.least, value.most
        );
    }

    pub fn end(self) {
        println!("\n{} goal(s) missed; {} CPUs", self.missed, super::cpus());
    }
}
