//! One request as one line of the access log; pure.
//!
//! What comes from outside can't break a line: quotes, backslashes, control characters and bytes beyond ASCII are escaped
//! (`\xHH`, in JSON as JSON has it).

use crate::access::Format;
use crate::stats::Outcome;
use http::{HeaderValue, Method, Uri, Version};
use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// A request that is over.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// When it came.
    pub at: SystemTime,
    /// On its error page too.
    pub id: u64,
    /// Unknown for Unix sockets.
    pub client: Option<IpAddr>,
    /// As it came.
    pub method: &'a Method,
    /// As it was asked for; without dot segments.
    pub uri: &'a Uri,
    /// Of the request.
    pub version: Version,
    /// Of the target or the field.
    pub host: Option<&'a HeaderValue>,
    /// Of the request.
    pub referer: Option<&'a HeaderValue>,
    /// Of the request.
    pub agent: Option<&'a HeaderValue>,
    /// Of the answer.
    pub status: u16,
    /// Of the answer's body, as far as the client took it.
    pub bytes: u64,
    /// The answer broke off: the client or the origin went away.
    pub cut: bool,
    /// From the request's head to the answer's.
    pub head: Duration,
    /// To the answer's end.
    pub took: Duration,
    /// What became of it.
    pub outcome: Outcome,
    /// Its route's host and prefix.
    pub route: Option<(&'a str, &'a str)>,
}

/// Appends the line.
pub fn write(to: &mut Vec<u8>, format: Format, e: &Entry<'_>) {
    // a Vec takes everything
    let _ = match format {
        Format::Json => json(to, e),
        Format::Common | Format::Combined => ncsa(to, e, format == Format::Combined),
    };
}

fn ncsa(to: &mut Vec<u8>, e: &Entry<'_>, combined: bool) -> std::io::Result<()> {
    match e.client {
        Some(ip) => write!(to, "{}", ip.to_canonical())?,
        None => to.push(b'-'),
    }
    write!(to, " - - [{}] \"{} ", clf_time(e.at), e.method)?;
    escape(to, e.uri.to_string().as_bytes());
    write!(to, " {}\" {} {}", protocol(e.version), e.status, e.bytes)?;
    if combined {
        for field in [e.referer, e.agent] {
            to.extend_from_slice(b" \"");
            escape(to, field.map_or(b"-", HeaderValue::as_bytes));
            to.push(b'"');
        }
    }
    to.push(b'\n');
    Ok(())
}

fn json(to: &mut Vec<u8>, e: &Entry<'_>) -> std::io::Result<()> {
    let text = |to: &mut Vec<u8>, name: &str, value: &str| {
        write!(to, ",\"{name}\":")?;
        serde_json::to_writer(to, value).map_err(std::io::Error::from)
    };
    let field = |to: &mut Vec<u8>, name: &str, value: Option<&HeaderValue>| match value {
        Some(v) => text(to, name, &String::from_utf8_lossy(v.as_bytes())),
        None => Ok(()),
    };
    let millis = |d: Duration| d.as_micros() as f64 / 1000.0;
    write!(to, "{{\"time\":\"{}\",\"id\":\"{:016x}\"", humantime::format_rfc3339_millis(e.at), e.id)?;
    if let Some(ip) = e.client {
        write!(to, ",\"client\":\"{}\"", ip.to_canonical())?;
    }
    text(to, "method", e.method.as_str())?;
    field(to, "host", e.host)?;
    text(to, "target", &e.uri.to_string())?;
    text(to, "protocol", protocol(e.version))?;
    write!(to, ",\"status\":{},\"bytes\":{},\"cut\":{}", e.status, e.bytes, e.cut)?;
    write!(to, ",\"head_ms\":{},\"took_ms\":{}", millis(e.head), millis(e.took))?;
    text(to, "outcome", e.outcome.name())?;
    if let Some((host, prefix)) = e.route {
        text(to, "route", &format!("{host}{prefix}"))?;
    }
    field(to, "referer", e.referer)?;
    field(to, "agent", e.agent)?;
    to.extend_from_slice(b"}\n");
    Ok(())
}

fn protocol(version: Version) -> &'static str {
    if version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" }
}

/// `10/Oct/2000:13:55:36 +0000`
fn clf_time(at: SystemTime) -> String {
    // Sun, 06 Nov 1994 08:49:37 GMT
    let date = httpdate::fmt_http_date(at);
    format!("{}/{}/{}:{} +0000", &date[5..7], &date[8..11], &date[12..16], &date[17..25])
}

fn escape(to: &mut Vec<u8>, bytes: &[u8]) {
    for &b in bytes {
        match b {
            b' '..=b'~' if b != b'"' && b != b'\\' => to.push(b),
            _ => {
                let _ = write!(to, "\\x{b:02X}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: Format, agent: &[u8]) -> String {
        let (uri, agent) = ("/a?b=1".parse().unwrap(), HeaderValue::from_bytes(agent).unwrap());
        let e = Entry {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(784_111_777_250),
            id: 0xabc,
            client: Some("::ffff:10.0.0.1".parse().unwrap()),
            method: &Method::GET,
            uri: &uri,
            version: Version::HTTP_11,
            host: None,
            referer: None,
            agent: Some(&agent),
            status: 200,
            bytes: 5,
            cut: false,
            head: Duration::from_micros(1500),
            took: Duration::from_millis(2),
            outcome: Outcome::Hit,
            route: Some(("*", "/a")),
        };
        let mut out = Vec::new();
        write(&mut out, format, &e);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_as_tools_expect_them() {
        let common = "10.0.0.1 - - [06/Nov/1994:08:49:37 +0000] \"GET /a?b=1 HTTP/1.1\" 200 5\n";
        assert_eq!(line(Format::Common, b"x"), common);
        let combined = line(Format::Combined, b"a \"b\" \\ \xff\t");
        assert!(combined.ends_with(" 200 5 \"-\" \"a \\x22b\\x22 \\x5C \\xFF\\x09\"\n"), "{combined}");
        let json = line(Format::Json, b"a \"b\" \xff\t");
        let v: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(v["time"], "1994-11-06T08:49:37.250Z");
        assert_eq!((&v["target"], &v["agent"]), (&"/a?b=1".into(), &"a \"b\" \u{fffd}\t".into()));
        assert_eq!((&v["head_ms"], &v["took_ms"], &v["route"]), (&1.5.into(), &2.into(), &"*/a".into()));
        assert_eq!((&v["outcome"], &v["id"]), (&"hit".into(), &"0000000000000abc".into()));
        assert_eq!(json.matches('\n').count(), 1);
    }
}
