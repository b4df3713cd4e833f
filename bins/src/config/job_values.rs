//! Values that only a job's keys take: probes, and what keys say together.

use super::job::{Alive, Job, Ready};
use super::value::{self, Raw, Wrong};
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
    Ok(list)
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

impl Job {
    /// What its keys say together that can't be, each with the key that it is about.
    pub fn contradictions(&self) -> Vec<(&'static str, Wrong)> {
        let mut all = Vec::new();
        if let Err(why) = self.may_have(self.workers) {
            all.push(("alive", why));
        }
        all
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
    fn one_address_for_several_workers_would_blame_the_wrong_one() {
        let job = |url: &str| Job { alive: Alive::Http(Url::parse(url).unwrap()), ..Job::default() };
        let shared = job("http://127.0.0.1:80/");
        assert!(shared.may_have(1).is_ok() && shared.contradictions().is_empty());
        assert!(shared.may_have(2).unwrap_err().contains("{worker}"));
        assert_eq!(Job { workers: 2, ..shared }.contradictions()[0].0, "alive");
        assert!(job("http://127.0.0.1:80{worker}/").may_have(9).is_ok());
    }
}
