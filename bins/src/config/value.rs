//! Texts into values, each with an error that says what was expected.

use super::Listen;
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// A value as it was written, whatever the source.
#[derive(Debug, Clone, PartialEq)]
pub enum Raw {
    /// Text.
    Text(String),
    /// An integer.
    Int(i64),
    /// A number with a point.
    Float(f64),
    /// true or false.
    Bool(bool),
    /// An array.
    List(Vec<Raw>),
    /// Something no key takes: a table, a date.
    Other(&'static str),
}

impl Raw {
    /// Its type, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Raw::Text(_) => "text",
            Raw::Int(_) => "an integer",
            Raw::Float(_) => "a float",
            Raw::Bool(_) => "a boolean",
            Raw::List(_) => "an array",
            Raw::Other(kind) => kind,
        }
    }
}

impl std::fmt::Display for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Raw::Text(s) => write!(f, "{s:?}"),
            Raw::Int(n) => n.fmt(f),
            Raw::Float(n) => n.fmt(f),
            Raw::Bool(b) => b.fmt(f),
            Raw::List(l) => {
                write!(f, "[{}]", l.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
            }
            Raw::Other(kind) => f.write_str(kind),
        }
    }
}

/// What is wrong with a value.
pub type Wrong = String;

fn expected<T>(what: &str, got: &Raw) -> Result<T, Wrong> {
    match got {
        // there is no more to say of it
        Raw::Other(kind) => Err(format!("expected {what}, got {kind}")),
        _ => Err(format!("expected {what}, got {} ({got})", got.kind())),
    }
}

/// Bits of a file's mode, octal.
pub fn mode(v: &Raw) -> Result<u32, Wrong> {
    let text = text(v)?;
    let bits = u32::from_str_radix(&text, 8).ok().filter(|n| *n <= 0o777);
    bits.ok_or_else(|| format!("{text:?} is no octal number up to 777, such as \"022\""))
}

/// What is logged, as env_logger has it: a level, or levels of modules. A word that is no level would be a module, and switch
/// everything else off: it has to be one of ours.
pub fn log_filter(v: &Raw) -> Result<String, Wrong> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    const OURS: [&str; 6] = ["traffic", "engine", "lockfile", "policy", "proxy", "supervisor"];
    let is_level = |word: &str| LEVELS.iter().any(|l| l.eq_ignore_ascii_case(word));
    let filter = text(v)?;
    let modules = filter.split('/').next().unwrap_or("");
    for part in modules.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (module, level) = part.split_once('=').map_or((part, None), |(m, l)| (m, Some(l.trim())));
        let ours = OURS.contains(&module.split("::").next().unwrap_or(""));
        let wrong = match level {
            Some(level) => !is_level(level),
            None => !is_level(module) && !ours,
        };
        if wrong {
            return Err(format!("{:?} is none of {}", level.unwrap_or(module), LEVELS.join(", ")));
        }
    }
    Ok(filter)
}

/// Text.
pub fn text(v: &Raw) -> Result<String, Wrong> {
    match v {
        Raw::Text(s) => Ok(s.clone()),
        other => expected("text", other),
    }
}

/// No duration is longer: some hundred years from now times can't be counted any more.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);

/// `500ms`, `1s`, `1m 30s`.
pub fn duration_of(text: &str) -> Result<Duration, Wrong> {
    match humantime::parse_duration(text) {
        Ok(d) if d > LONGEST => Err(format!("{text:?} is more than 100 years")),
        Ok(d) => Ok(d),
        Err(e) => Err(format!("{text:?} is not a duration such as \"500ms\" or \"1m30s\": {e}")),
    }
}

/// The same as a value; `"0"` too.
pub fn duration(v: &Raw) -> Result<Duration, Wrong> {
    match v {
        Raw::Text(s) if s == "0" => Ok(Duration::ZERO),
        Raw::Text(s) => duration_of(s),
        Raw::Int(n) => Err(format!("a duration needs a unit: \"{n}s\" or \"{n}ms\"")),
        other => expected("a duration such as \"500ms\"", other),
    }
}

/// A duration above zero.
pub fn positive(v: &Raw) -> Result<Duration, Wrong> {
    duration(v).and_then(|d| if d.is_zero() { Err("must be more than zero".into()) } else { Ok(d) })
}

/// `true` or `false`.
pub fn boolean(v: &Raw) -> Result<bool, Wrong> {
    match v {
        Raw::Bool(b) => Ok(*b),
        other => expected("true or false", other),
    }
}

/// An integer within `min..=max`.
pub fn integer(v: &Raw, min: u64, max: u64) -> Result<u64, Wrong> {
    match v {
        Raw::Int(n) => u64::try_from(*n)
            .ok()
            .filter(|n| (min..=max).contains(n))
            .ok_or_else(|| format!("{n} is out of range {min}..{max}")),
        other => expected("an integer", other),
    }
}

/// An integer within `min..=max` that may be below zero.
pub fn signed(v: &Raw, min: i32, max: i32) -> Result<i32, Wrong> {
    match v {
        Raw::Int(n) => i32::try_from(*n)
            .ok()
            .filter(|n| (min..=max).contains(n))
            .ok_or_else(|| format!("{n} is out of range {min}..{max}")),
        other => expected("an integer", other),
    }
}

/// `"HH:MM"` as seconds after midnight, or `none`.
pub fn time_of_day(v: &Raw) -> Result<Option<u64>, Wrong> {
    let s = text(v)?;
    if s == "none" {
        return Ok(None);
    }
    let digits = |t: &str, limit: u64| t.parse::<u64>().ok().filter(|n| t.len() == 2 && *n < limit);
    let parsed = s.split_once(':').and_then(|(h, m)| Some(digits(h, 24)? * 3600 + digits(m, 60)? * 60));
    parsed.map(Some).ok_or_else(|| format!("{s:?} is neither a time of day such as \"03:30\" nor \"none\""))
}

/// A name, or `none`.
pub fn name_or_none(v: &Raw) -> Result<Option<String>, Wrong> {
    match text(v)? {
        s if s == "none" => Ok(None),
        s if s.is_empty() => Err("is empty; \"none\" is nobody".into()),
        s => Ok(Some(s)),
    }
}

/// A number within `min..=max`.
pub fn number(v: &Raw, min: f64, max: f64) -> Result<f64, Wrong> {
    let n = match v {
        Raw::Int(n) => *n as f64,
        Raw::Float(n) => *n,
        other => return expected("a number", other),
    };
    if (min..=max).contains(&n) { Ok(n) } else { Err(format!("{n} is out of range {min}..{max}")) }
}

/// Bytes: `"256MiB"`, `"10GB"`, `"0"`, or a number of them.
pub fn bytes(v: &Raw) -> Result<u64, Wrong> {
    let text = match v {
        Raw::Int(n) => n.to_string(),
        Raw::Text(s) => s.clone(),
        other => return expected("a size such as \"256MiB\"", other),
    };
    let (digits, unit) = text.trim().split_at(text.trim().bytes().take_while(u8::is_ascii_digit).count());
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1u64 << 40,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(format!("{text:?} is not a size such as \"256MiB\"")),
    };
    let n = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    n.ok_or_else(|| format!("{text:?} is not a size such as \"256MiB\""))
}

/// An absolute path.
pub fn path(v: &Raw) -> Result<PathBuf, Wrong> {
    let p = PathBuf::from(text(v)?);
    if p.as_os_str().as_encoded_bytes().contains(&0) {
        Err("no path can have a NUL in it".into())
    } else if p.is_absolute() {
        Ok(p)
    } else {
        Err(format!("{:?} is not an absolute path", p.display().to_string()))
    }
}

/// A list of something; a single value counts as a list of one.
pub fn list<T>(v: &Raw, item: impl Fn(&Raw) -> Result<T, Wrong>) -> Result<Vec<T>, Wrong> {
    match v {
        Raw::List(l) => l.iter().map(item).collect(),
        one => Ok(vec![item(one)?]),
    }
}

/// `host:port`, `:port`, `unix:/path`.
pub fn listen(v: &Raw) -> Result<Listen, Wrong> {
    let s = text(v)?;
    let form = "\"127.0.0.1:8080\", \"[::]:80\", \":8080\" or \"unix:/path\"";
    if let Some(p) = s.strip_prefix("unix:") {
        return match p.len() {
            _ if !p.starts_with('/') => Err(format!("{s:?}: the path of a Unix socket must be absolute")),
            n if n > supervisor::dirs::MAX_SOCKET_PATH => {
                Err(format!("{s:?}: {n} bytes; the path of a Unix socket has at most 107"))
            }
            _ => Ok(Listen::Unix(p.into())),
        };
    }
    let full = if s.starts_with(':') { format!("0.0.0.0{s}") } else { s.clone() };
    full.parse().map(Listen::Tcp).map_err(|_| format!("{s:?} is not an address such as {form}"))
}

/// An address, or `none`.
pub fn address_or_none(v: &Raw) -> Result<Option<SocketAddr>, Wrong> {
    match text(v)?.as_str() {
        "none" => Ok(None),
        s => s
            .parse()
            .map(Some)
            .map_err(|_| format!("{s:?} is neither an address such as \"127.0.0.1:8083\" nor \"none\"")),
    }
}

/// An IP address.
pub fn ip(v: &Raw) -> Result<IpAddr, Wrong> {
    let s = text(v)?;
    s.parse().map_err(|_| format!("{s:?} is not an address such as \"127.0.0.1\""))
}

/// An IP address, or a network of them.
pub fn network(v: &Raw) -> Result<IpNet, Wrong> {
    let s = text(v)?;
    let one = || s.parse::<IpAddr>().ok().map(IpNet::from);
    let good = s.parse::<IpNet>().ok().or_else(one).map(|net| net.trunc());
    good.ok_or_else(|| format!("{s:?} is neither an address nor a network such as \"10.0.0.0/8\""))
}

/// A signal's name or number, or `none`.
pub fn signal(v: &Raw) -> Result<Option<i32>, Wrong> {
    use nix::sys::signal::Signal;
    let s = match v {
        Raw::Int(n) => n.to_string(),
        other => text(other)?,
    };
    if s == "none" {
        return Ok(None);
    }
    let by_name = || format!("SIG{}", s.trim_start_matches("SIG")).parse::<Signal>().ok();
    let by_number = || s.parse::<i32>().ok().and_then(|n| Signal::try_from(n).ok());
    match by_number().or_else(by_name) {
        Some(n) => Ok(Some(n as i32)),
        None => Err(format!("{s:?} is no signal; a name such as \"SIGABRT\", a number, or \"none\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(s: &str) -> Raw {
        Raw::Text(s.into())
    }

    #[test]
    fn a_word_that_is_no_level_does_not_switch_the_log_off() {
        for good in
            ["info", "WARN", "off", "info,engine=debug", "policy::child=trace", "traffic", "debug/event"]
        {
            assert_eq!(log_filter(&t(good)), Ok(good.to_owned()));
        }
        for bad in ["warning", "verbose", "info=bogus", "info, bogus", "hyper=loud"] {
            assert!(log_filter(&t(bad)).unwrap_err().contains("is none of off, error"), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        let b = |s: &str| bytes(&t(s)).ok();
        assert_eq!([b("0"), b("256MiB"), b("10 GB")], [Some(0), Some(256 << 20), Some(10_000_000_000)]);
        assert_eq!([b("x"), b("-1"), b("1Xi"), b("99999999999TiB"), b("")], [None; 5]);
    }

    #[test]
    fn durations_need_units() {
        assert_eq!(duration(&t("1m30s")), Ok(Duration::from_secs(90)));
        assert_eq!(duration(&t("500ms")), Ok(Duration::from_millis(500)));
        assert!(duration(&Raw::Int(5)).unwrap_err().contains("\"5s\""));
        assert!(duration(&t("soon")).unwrap_err().contains("soon"));
        assert!(positive(&t("0s")).is_err());
        assert!(duration(&t("100years")).is_ok());
        let endless = format!("{}s", u64::MAX);
        assert_eq!(duration(&t(&endless)).unwrap_err(), format!("\"{endless}\" is more than 100 years"));
    }

    #[test]
    fn listen_forms() {
        assert_eq!(listen(&t(":8080")).unwrap().to_string(), "0.0.0.0:8080");
        assert_eq!(listen(&t("[::1]:80")).unwrap().to_string(), "[::1]:80");
        assert_eq!(listen(&t("unix:/run/x")).unwrap().to_string(), "unix:/run/x");
        for bad in ["", "localhost", "1.2.3.4", "1.2.3.4:99999", "unix:x"] {
            assert!(listen(&t(bad)).is_err(), "{bad}");
        }
        assert!(listen(&t(&format!("unix:/{}", "x".repeat(200)))).unwrap_err().contains("107"));
    }

    #[test]
    fn below_zero_and_nobody() {
        assert_eq!((signed(&Raw::Int(-5), -20, 19), signed(&Raw::Int(19), -20, 19)), (Ok(-5), Ok(19)));
        assert!(signed(&Raw::Int(-21), -20, 19).unwrap_err().contains("-20..19"));
        assert_eq!((name_or_none(&t("none")), name_or_none(&t("www"))), (Ok(None), Ok(Some("www".into()))));
        assert!(name_or_none(&t("")).is_err());
    }

    #[test]
    fn networks() {
        assert_eq!(network(&t("10.1.2.3/8")).unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(network(&t("::1")).unwrap().to_string(), "::1/128");
        assert!(network(&t("10.0.0.0/33")).is_err() && network(&t("localhost")).is_err());
    }

    #[test]
    fn times_of_day() {
        assert_eq!((time_of_day(&t("03:30")), time_of_day(&t("none"))), (Ok(Some(12_600)), Ok(None)));
        for bad in ["24:00", "3:30", "03:60", "0330", "aa:bb", ""] {
            assert!(time_of_day(&t(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn signals_by_name_and_number() {
        for s in ["SIGABRT", "ABRT", "6"] {
            assert_eq!(signal(&t(s)), Ok(Some(6)), "{s}");
        }
        assert_eq!((signal(&t("none")), signal(&Raw::Int(3))), (Ok(None), Ok(Some(3))));
        assert!(signal(&t("SIGNOPE")).is_err());
    }
}
