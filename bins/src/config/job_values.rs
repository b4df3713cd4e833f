//! Values that only a job's keys take: probes, and what keys say together.

use super::Listen;
use super::job::{Alive, Job, Ready};
use super::value::{self, Raw, Wrong};
use policy::schedule::{Missed, Schedule};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Stands for a worker's number in the address of a probe.
const WORKER: &str = "{worker}";

/// Where an HTTP probe asks, with `{worker}` for the worker's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url(String);

/// The same for one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where to connect.
    pub to: At,
    /// What to ask for: begins with a slash.
    pub path: String,
}

/// Where somebody accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl Url {
    /// `http://IP:PORT/path` or `http://unix:/path/of/socket:/path`.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Url, Wrong> {
        match place(&text.replace(WORKER, "0")) {
            Some(_) => Ok(Url(text.to_owned())),
            None => {
                Err(format!("{text:?} is neither \"http://IP:PORT/path\" nor \"http://unix:/SOCKET:/path\""))
            }
        }
    }

    /// For that worker; `None` if its number makes it impossible (a port past 65535).
    pub fn of(&self, worker: usize) -> Option<Place> {
        place(&self.0.replace(WORKER, &worker.to_string()))
    }

    /// Has each worker an address of its own?
    pub fn tells_workers_apart(&self) -> bool {
        self.0.contains(WORKER)
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn place(text: &str) -> Option<Place> {
    let rest = text.strip_prefix("http://")?;
    if rest.bytes().any(|b| b.is_ascii_control() || b == b' ') {
        return None;
    }
    if let Some(unix) = rest.strip_prefix("unix:") {
        let (socket, path) = unix.split_once(":/").unwrap_or((unix, ""));
        let fits = socket.starts_with('/') && socket.len() <= supervisor::dirs::MAX_SOCKET_PATH;
        return fits.then(|| Place { to: At::Unix(socket.into()), path: format!("/{path}") });
    }
    let (address, path) = rest.split_once('/').unwrap_or((rest, ""));
    Some(Place { to: At::Tcp(address.parse().ok()?), path: format!("/{path}") })
}

/// A program and its arguments.
pub(super) fn command(v: &Raw) -> Result<Vec<String>, Wrong> {
    let list = match v {
        Raw::List(_) => value::list(v, value::text)?,
        _ => return Err("expected an array: [\"program\", \"argument\"]".into()),
    };
    if list.first().is_none_or(String::is_empty) {
        return Err("needs at least a program".into());
    }
    match list.iter().any(|word| word.contains('\0')) {
        true => Err("no argument of a program can have a NUL in it".into()),
        false => Ok(list),
    }
}

/// When a job counts as ready.
pub(super) fn ready(v: &Raw) -> Result<Ready, Wrong> {
    if matches!(v, Raw::List(_)) {
        return command(v).map(Ready::Exec);
    }
    let text = value::text(v)?;
    let (kind, rest) = text.split_once(' ').unwrap_or((text.as_str(), ""));
    let raw = Raw::Text(rest.trim().to_owned());
    match (kind, rest.is_empty()) {
        (url, true) if url.starts_with("http") => Url::parse(url).map(Ready::Http),
        ("notify", true) => Ok(Ready::Notify),
        ("fd", true) => Ok(Ready::Fd),
        ("running", false) => value::duration(&raw).map(Ready::Running),
        ("tcp", false) => rest.trim().parse().map(Ready::Tcp).map_err(|_| format!("{rest:?} is no IP:PORT")),
        ("unix", false) => value::path(&raw).map(Ready::Unix),
        _ => Err(format!(
            "{text:?} is none of \"notify\", \"fd\", \"http://IP:PORT/path\", \"tcp IP:PORT\", \"unix /PATH\", \
             \"running 1s\", [\"command\"]"
        )),
    }
}

/// How a job that is ready shows that it goes on working.
pub(super) fn alive(v: &Raw) -> Result<Alive, Wrong> {
    if matches!(v, Raw::List(_)) {
        return command(v).map(Alive::Exec);
    }
    match value::text(v)?.as_str() {
        "none" => Ok(Alive::Unasked),
        "ping" => Ok(Alive::Ping),
        url if url.starts_with("http") => Url::parse(url).map(Alive::Http),
        other => Err(format!(
            "{other:?} is none of \"none\", \"ping\", \"http://IP:PORT/path\", [\"command\", \"argument\"]"
        )),
    }
}

/// When a job that runs now and then is due.
pub(super) fn schedule(v: &Raw) -> Result<Option<Schedule>, Wrong> {
    let text = value::text(v)?;
    if text == "none" {
        return Ok(None);
    }
    let wrong = |why: &str| {
        format!(
            "{text:?} is neither \"every 5m\" nor \"daily 03:30\" nor \"mon-fri 08:00,20:00\" nor \"none\"{why}"
        )
    };
    let (first, rest) = text.split_once(' ').ok_or_else(|| wrong(""))?;
    let rest = Raw::Text(rest.trim().to_owned());
    if first == "every" {
        let every = value::positive(&rest).map_err(|e| wrong(&format!(": {e}")))?;
        let fits = u32::try_from(every.as_secs()).ok().filter(|n| *n > 0 && every.subsec_nanos() == 0);
        return fits.map(|n| Some(Schedule::Every(n))).ok_or_else(|| wrong(": whole seconds, at least 1s"));
    }
    let minutes = |t: &str| value::time_of_day(&Raw::Text(t.trim().to_owned())).ok().flatten();
    let times = value::text(&rest)?;
    let minutes: Option<Vec<u16>> = times.split(',').map(|t| minutes(t).map(|s| (s / 60) as u16)).collect();
    match (days(first), minutes) {
        (Some(days), Some(minutes)) if minutes.len() <= MAX_TIMES => Ok(Some(Schedule::At { days, minutes })),
        (_, Some(minutes)) if minutes.len() > MAX_TIMES => Err(wrong(": too many times")),
        _ => Err(wrong("")),
    }
}

/// More times a day than these are an interval.
const MAX_TIMES: usize = 96;

/// `daily`, `sun`, `mon-fri,sun`.
fn days(text: &str) -> Option<[bool; 7]> {
    if text == "daily" {
        return Some([true; 7]);
    }
    let names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    let day = |name: &str| names.iter().position(|n| *n == name);
    let mut days = [false; 7];
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (day(from)?, day(to)?);
        // sat-mon goes over the end of the week
        (0..=(to + 7 - from) % 7).for_each(|n| days[(from + n) % 7] = true);
    }
    Some(days)
}

/// What becomes of a run that was missed.
pub(super) fn missed(v: &Raw) -> Result<Missed, Wrong> {
    match value::text(v)?.as_str() {
        "run" => Ok(Missed::Run),
        "skip" => Ok(Missed::Skip),
        other => Err(format!("{other:?} is neither \"run\" nor \"skip\"")),
    }
}

impl Job {
    /// Does it run only when something calls it: a connection, or the clock?
    pub fn is_called(&self) -> bool {
        self.on_demand || self.schedule.is_some()
    }

    /// How readily the kernel kills its processes. That of the manager, which is to be spared, is none of theirs.
    pub fn oom(&self) -> i32 {
        self.oom_score_adj.unwrap_or(0)
    }

    /// Is one that ended by itself started again?
    pub fn goes_on(&self, success: bool) -> bool {
        match (&self.schedule, self.restart) {
            // the clock does that
            (Some(_), policy::jobs::Restart::Always) => false,
            (_, restart) => restart.goes_on(success),
        }
    }

    /// What its keys say together that can't be, each with the key that it is about.
    pub fn contradictions(&self) -> Vec<(&'static str, Wrong)> {
        let mut all = Vec::new();
        if let Err(why) = self.may_have(self.workers) {
            all.push(("alive", why));
        }
        let mut wrong = |is: bool, key, why: &str| all.extend(is.then(|| (key, why.to_owned())));
        wrong(self.group.is_some() && self.user.is_none(), "group", "needs user");
        wrong(self.on_demand && self.listen.is_empty(), "on_demand", "needs an address in listen");
        wrong(self.reuseport && self.listen.is_empty(), "reuseport", "needs an address in listen");
        wrong(self.missed == Missed::Skip && self.schedule.is_none(), "missed", "needs schedule");
        wrong(self.on_demand && self.schedule.is_some(), "schedule", "excludes on_demand");
        wrong(!self.idle_stop.is_zero() && !self.on_demand, "idle_stop", "needs on_demand = true");
        wrong(
            !self.idle_stop.is_zero() && self.asks_its_own_sockets(),
            "idle_stop",
            "alive asks on an address of listen, and what is asked is never idle: use \"ping\" or a command",
        );
        let stranger = self.restart_with.iter().find(|j| !self.after.contains(j));
        if let Some(name) = stranger {
            all.push(("restart_with", format!("{name:?} isn't in after")));
        }
        all
    }

    fn asks_its_own_sockets(&self) -> bool {
        let Alive::Http(url) = &self.alive else { return false };
        let place = url.of(0).map(|p| match p.to {
            At::Tcp(addr) => Listen::Tcp(addr),
            At::Unix(path) => Listen::Unix(path),
        });
        place.is_some_and(|p| self.listen.contains(&p))
    }

    /// May it have so many workers?
    ///
    /// # Errors
    /// Why not.
    pub fn may_have(&self, workers: usize) -> Result<(), Wrong> {
        match &self.alive {
            Alive::Http(url) if workers > 1 && !url.tells_workers_apart() => Err(format!(
                "{url} doesn't tell its {workers} workers apart, and one that hangs would cost the others their lives: \
                 give each an address of its own with {WORKER} in it"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_probes() {
        let of = |text: &str| Url::parse(text).ok().and_then(|u| u.of(3));
        let tcp = |a: &str, path: &str| Some(Place { to: At::Tcp(a.parse().unwrap()), path: path.into() });
        assert_eq!(of("http://127.0.0.1:80/a?b=c"), tcp("127.0.0.1:80", "/a?b=c"));
        assert_eq!(of("http://[::1]:80"), tcp("[::1]:80", "/"));
        assert_eq!(of("http://127.0.0.1:900{worker}/{worker}"), tcp("127.0.0.1:9003", "/3"));
        let unix = |s: &str, path: &str| Some(Place { to: At::Unix(s.into()), path: path.into() });
        assert_eq!(of("http://unix:/run/a-{worker}.sock:/x"), unix("/run/a-3.sock", "/x"));
        assert_eq!(of("http://unix:/run/a.sock"), unix("/run/a.sock", "/"));
        for bad in [
            "https://127.0.0.1:80/",
            "http://localhost/",
            "http://127.0.0.1/",
            "http://unix:run/a:/",
            "http://",
            "http://127.0.0.1:80/a b",
            "http://127.0.0.1:80/a\r\nX: y",
            "ftp://127.0.0.1:1/",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
        // the number makes the port impossible
        assert_eq!(Url::parse("http://127.0.0.1:6000{worker}/").unwrap().of(10), None);
    }

    #[test]
    fn schedules() {
        let of = |text: &str| schedule(&Raw::Text(text.into()));
        assert_eq!((of("none"), of("every 5m")), (Ok(None), Ok(Some(Schedule::Every(300)))));
        let at = |days: &str, minutes: &[u16]| {
            let days: Vec<bool> = days.chars().map(|c| c == 'x').collect();
            Ok(Some(Schedule::At { days: days.try_into().unwrap(), minutes: minutes.into() }))
        };
        assert_eq!(of("daily 03:30"), at("xxxxxxx", &[210]));
        assert_eq!(of("mon-fri 08:00,20:00"), at("xxxxx--", &[480, 1200]));
        assert_eq!(of("sat-mon,wed 00:00"), at("x-x--xx", &[0]));
        for bad in [
            "",
            "daily",
            "every",
            "every soon",
            "every 10ms",
            "every 1500ms",
            "every 200years",
            "daily 24:00",
            "daily none",
            "someday 03:30",
            "mon- 03:30",
            "03:30",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
        assert!(of(&format!("daily {}", vec!["00:00"; 97].join(","))).unwrap_err().contains("too many"));
    }

    #[test]
    fn keys_that_need_or_exclude_each_other() {
        let about = |j: Job| j.contradictions().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        let listen = vec![Listen::Tcp("127.0.0.1:80".parse().unwrap())];
        let on_demand = Job { on_demand: true, listen, ..Job::default() };
        let second = std::time::Duration::from_secs(1);
        assert_eq!(about(Job { idle_stop: second, ..on_demand.clone() }), [""; 0]);
        assert_eq!(about(Job { listen: Vec::new(), ..on_demand.clone() }), ["on_demand"]);
        assert_eq!(about(Job { schedule: Some(Schedule::Every(1)), ..on_demand.clone() }), ["schedule"]);
        assert_eq!(about(Job { idle_stop: second, ..Job::default() }), ["idle_stop"]);
        let alive = |url| Alive::Http(Url::parse(url).unwrap());
        let asking = |url| Job { idle_stop: second, alive: alive(url), ..on_demand.clone() };
        assert_eq!(about(asking("http://127.0.0.1:80/x")), ["idle_stop"]);
        assert_eq!(about(asking("http://127.0.0.1:81/x")), [""; 0]);
        assert_eq!(about(Job { reuseport: true, ..Job::default() }), ["reuseport"]);
        assert_eq!(about(Job { missed: Missed::Skip, ..Job::default() }), ["missed"]);
        assert_eq!(about(Job { group: Some("a".into()), ..Job::default() }), ["group"]);
        let with = Job { restart_with: vec!["db".into()], ..Job::default() };
        assert_eq!(about(with.clone()), ["restart_with"]);
        assert_eq!(about(Job { after: vec!["db".into()], ..with }), [""; 0]);
    }

    #[test]
    fn one_address_for_several_workers_would_blame_the_wrong_one() {
        let job = |url: &str| Job { alive: Alive::Http(Url::parse(url).unwrap()), ..Job::default() };
        let shared = job("http://127.0.0.1:80/");
        assert!(shared.may_have(1).is_ok() && shared.contradictions().is_empty());
        assert!(shared.may_have(2).unwrap_err().contains("{worker}"));
        assert_eq!(Job { workers: 2, ..shared }.contradictions()[0].0, "alive");
        assert!(job("http://127.0.0.1:80{worker}/").may_have(9).is_ok());
    }
}
