//! A scenario's text: TOML, read by hand so that every fault has its line, its step and its key, and all are found at once.

use super::{Action, Expect, Rates, Scenario, Step, Word};
use crate::config::lines::Lines;
use crate::config::load::raw;
use crate::config::value::{self, Raw};
use crate::config::{Fault, Faults};
use crate::drill::kills::Target;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Larger files are refused.
const MAX_FILE: u64 = 256 << 10;
/// More steps are refused.
const MAX_STEPS: usize = 1000;

/// The keys of a step: what it is named by, and what else it takes.
pub const VERBS: [(&str, &[&str]); 9] = [
    ("load", &["connections", "keepalive_rate", "rate"]),
    ("wait", &[]),
    ("kill", &["times", "every"]),
    ("stop", &["for"]),
    ("hang", &["for"]),
    ("fill_disk", &["leave", "at_most", "for"]),
    ("limit_fds", &["to", "for"]),
    ("command", &[]),
    ("expect", &[]),
];

/// The keys of `expect`.
pub const EXPECTATIONS: [&str; 11] = [
    "serving", "failed", "refused", "lost", "answered", "p99", "longest", "takeover", "changed", "same",
    "within",
];

/// Reads a file.
///
/// # Errors
/// All its faults.
pub fn file(path: &Path) -> Result<Scenario, Faults> {
    let name = path.display().to_string();
    let fault = |what: String| Faults(vec![Fault { place: name.clone(), what }]);
    let size = std::fs::metadata(path).map_err(|e| fault(format!("cannot be opened: {e}")))?.len();
    if size > MAX_FILE {
        return Err(fault(format!("is larger than {MAX_FILE} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| fault(format!("cannot be read: {e}")))?;
    parse(&name, &text)
}

/// Reads a text; `name` is what its faults are said of.
///
/// # Errors
/// All its faults.
pub fn parse(name: &str, text: &str) -> Result<Scenario, Faults> {
    let mut r = Reader { name, lines: Lines::of(text), faults: Vec::new() };
    let (table, errors) = DeTable::parse_recoverable(text);
    for e in errors {
        r.fault(e.span().map_or(0, |s| s.start), "", e.message());
    }
    let scenario = r.scenario(table.get_ref());
    match r.faults.is_empty() {
        true => Ok(scenario),
        false => Err(Faults(r.faults)),
    }
}

struct Reader<'a> {
    name: &'a str,
    lines: Lines,
    faults: Vec<Fault>,
}

/// A step's keys with their values and places; taken out as they are read.
struct Keys {
    step: String,
    at: usize,
    all: BTreeMap<String, (usize, Raw)>,
}

impl Reader<'_> {
    fn place(&self, at: usize) -> String {
        let (line, column) = self.lines.at(at);
        format!("{}:{line}:{column}", self.name)
    }

    fn fault(&mut self, at: usize, step: &str, what: impl AsRef<str>) {
        let step = if step.is_empty() { String::new() } else { format!("{step}: ") };
        self.faults.push(Fault { place: self.place(at), what: format!("{step}{}", what.as_ref()) });
    }

    fn scenario(&mut self, table: &DeTable<'_>) -> Scenario {
        let mut s = Scenario::default();
        for (key, v) in table {
            let (at, v) = (v.span().start, v.get_ref());
            let done = match key.get_ref().as_ref() {
                "title" => value::text(&raw(v)).map(|t| s.title = t),
                "about" => value::text(&raw(v)).map(|t| s.about = t),
                "config" => value::text(&raw(v)).map(|t| s.config = t),
                "mix" => value::boolean(&raw(v)).map(|b| s.mix = b),
                "step" => {
                    s.steps = self.steps(at, v);
                    Ok(())
                }
                other => {
                    Err(format!("unknown key {other}; known are title, about, mix, config and [[step]]"))
                }
            };
            if let Err(why) = done {
                let named =
                    if why.starts_with("unknown") { why } else { format!("{}: {why}", key.get_ref()) };
                self.fault(at, "", named);
            }
        }
        if s.title.is_empty() {
            self.fault(0, "", "title: is missing");
        }
        let expects = |step: &Step| matches!(step.action, Action::Expect(_));
        if self.faults.is_empty() && !s.steps.iter().any(expects) {
            self.fault(0, "", "no step expects anything: it could not fail");
        }
        s
    }

    fn steps(&mut self, at: usize, v: &DeValue<'_>) -> Vec<Step> {
        let DeValue::Array(list) = v else {
            self.fault(at, "", "step: is an array of tables: write [[step]]");
            return Vec::new();
        };
        if list.len() > MAX_STEPS {
            self.fault(at, "", format!("step: more than {MAX_STEPS}"));
            return Vec::new();
        }
        list.iter().enumerate().filter_map(|(n, item)| self.step(n + 1, item)).collect()
    }

    fn step(&mut self, n: usize, item: &Spanned<DeValue<'_>>) -> Option<Step> {
        let (at, step) = (item.span().start, format!("step {n}"));
        let DeValue::Table(table) = item.get_ref() else {
            self.fault(at, &step, "expected a table: write [[step]]");
            return None;
        };
        let verbs: Vec<_> = VERBS.iter().filter(|(v, _)| table.contains_key(*v)).collect();
        let [(verb, more)] = verbs[..] else {
            let all = VERBS.map(|(v, _)| v).join(", ");
            let what = if verbs.is_empty() { "does nothing" } else { "does more than one thing" };
            self.fault(at, &step, format!("{what}: it needs one of {all}"));
            return None;
        };
        let step = format!("step {n} ({verb})");
        for (key, v) in
            table.iter().filter(|(k, _)| k.get_ref() != verb && !more.contains(&k.get_ref().as_ref()))
        {
            let known = if more.is_empty() { "nothing".to_owned() } else { more.join(", ") };
            let what = format!("unknown key {}; beside {verb} it takes {known}", key.get_ref());
            self.fault(v.span().start, &step, what);
        }
        let place = format!("{}: {step}", self.place(at));
        let before = self.faults.len();
        let action = match table.get(*verb).map(|v| (v.span().start, v.get_ref())) {
            Some((_, DeValue::Table(t))) if *verb == "expect" => {
                self.strangers(&step, t);
                let mut k = Keys::of(step, at, t);
                Action::Expect(self.expect(&mut k))
            }
            Some((at, _)) if *verb == "expect" => {
                self.fault(at, &step, "expect: expected a table such as { failed = 0 }");
                return None;
            }
            _ => self.action(verb, &mut Keys::of(step, at, table)),
        };
        (self.faults.len() == before).then_some(Step { place, action })
    }

    fn strangers(&mut self, step: &str, t: &DeTable<'_>) {
        for (key, v) in t.iter().filter(|(k, _)| !EXPECTATIONS.contains(&k.get_ref().as_ref())) {
            let what = format!("unknown key expect.{}; known are {}", key.get_ref(), EXPECTATIONS.join(", "));
            self.fault(v.span().start, step, what);
        }
    }

    fn action(&mut self, verb: &str, k: &mut Keys) -> Action {
        let lasts = self.optional(k, "for", value::positive);
        match verb {
            "load" => {
                let on = self.required(k, "load", |v| one_of(v, &["on", "off"]));
                let count = |max| move |v: &Raw| value::integer(v, 0, max).map(|n| n as u32);
                let r = Rates {
                    connections: self.optional(k, "connections", count(10_000)).unwrap_or(20),
                    keepalive_rate: self
                        .optional(k, "keepalive_rate", |v| value::integer(v, 1, 10_000).map(|n| n as u32))
                        .unwrap_or(10),
                    rate: self.optional(k, "rate", count(10_000)).unwrap_or(50),
                };
                if r.connections + r.rate == 0 {
                    self.fault(k.at, &k.step, "connections and rate: without both there is no load");
                }
                if on == 1 { Action::LoadOff } else { Action::Load(r) }
            }
            "wait" => Action::Wait(self.required(k, "wait", duration)),
            "kill" => Action::Kill {
                who: self.required(k, "kill", targets),
                times: self.optional(k, "times", |v| value::integer(v, 1, 10_000)).unwrap_or(1) as u32,
                every: self.optional(k, "every", value::positive).unwrap_or(Duration::from_secs(1)),
            },
            "stop" => Action::Stop { who: self.required(k, "stop", targets), lasts },
            "hang" => {
                self.required(k, "hang", |v| one_of(v, &["server"]));
                Action::Hang { lasts }
            }
            "fill_disk" => {
                if !self.required(k, "fill_disk", value::boolean) {
                    self.fault(k.at, &k.step, "fill_disk: can only be true");
                }
                let bytes = |v: &Raw| value::bytes(v);
                Action::FillDisk {
                    leave: self.optional(k, "leave", bytes).unwrap_or(0),
                    at_most: self.optional(k, "at_most", bytes).unwrap_or(1 << 30),
                    lasts,
                }
            }
            "limit_fds" => Action::LimitFds {
                who: self.required(k, "limit_fds", |v| targets(v).map(|t| t[0])),
                to: self.required(k, "to", |v| value::integer(v, 1, 1 << 30)),
                lasts,
            },
            _ => {
                let names = Word::ALL.map(Word::name);
                Action::Command(Word::ALL[self.required(k, "command", |v| one_of(v, &names))])
            }
        }
    }

    fn expect(&mut self, k: &mut Keys) -> Expect {
        let count = |v: &Raw| value::integer(v, 0, u64::MAX >> 1);
        let e = Expect {
            serving: self.optional(k, "serving", value::positive),
            failed: self.optional(k, "failed", count),
            refused: self.optional(k, "refused", count),
            lost: self.optional(k, "lost", count),
            answered: self.optional(k, "answered", count),
            p99: self.optional(k, "p99", value::positive),
            longest: self.optional(k, "longest", value::positive),
            takeover: self.optional(k, "takeover", value::positive),
            changed: self.optional(k, "changed", targets).unwrap_or_default(),
            same: self.optional(k, "same", targets).unwrap_or_default(),
            within: self.optional(k, "within", value::positive).unwrap_or(Duration::from_secs(10)),
        };
        if (Expect { within: e.within, ..Expect::default() }) == e {
            self.fault(k.at, &k.step, "expect: expects nothing");
        }
        e
    }

    fn optional<T>(
        &mut self,
        k: &mut Keys,
        key: &str,
        read: impl Fn(&Raw) -> Result<T, String>,
    ) -> Option<T> {
        let (at, v) = k.all.remove(key)?;
        read(&v).map_err(|why| self.fault(at, &k.step, format!("{key}: {why}"))).ok()
    }

    /// With something harmless where there is a fault: nothing is done with it.
    fn required<T: Default>(
        &mut self,
        k: &mut Keys,
        key: &str,
        read: impl Fn(&Raw) -> Result<T, String>,
    ) -> T {
        if !k.all.contains_key(key) {
            self.fault(k.at, &k.step, format!("{key}: is missing"));
        }
        self.optional(k, key, read).unwrap_or_default()
    }
}

impl Keys {
    fn of(step: String, at: usize, t: &DeTable<'_>) -> Keys {
        let all = t.iter().map(|(k, v)| (k.get_ref().to_string(), (v.span().start, raw(v.get_ref()))));
        Keys { step, at, all: all.collect() }
    }
}

fn duration(v: &Raw) -> Result<Duration, String> {
    match value::positive(v)? {
        d if d > Duration::from_secs(86_400) => Err("more than a day".into()),
        d => Ok(d),
    }
}

/// The number of the word.
fn one_of(v: &Raw, words: &[&str]) -> Result<usize, String> {
    let text = value::text(v)?;
    words.iter().position(|w| *w == text).ok_or_else(|| format!("{text:?} is none of {}", words.join(", ")))
}

const TARGETS: [Target; 3] = [Target::Server, Target::Manager, Target::Cop];

/// `"server"` or `["server", "cop"]`.
fn targets(v: &Raw) -> Result<Vec<Target>, String> {
    let names = TARGETS.map(Target::name);
    let list = match v {
        Raw::List(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let mut who = Vec::new();
    for item in list {
        let target = TARGETS[one_of(item, &names)?];
        if who.contains(&target) {
            return Err(format!("{} is there twice", target.name()));
        }
        who.push(target);
    }
    if who.is_empty() { Err("names nobody".into()) } else { Ok(who) }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
