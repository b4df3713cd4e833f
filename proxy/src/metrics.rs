//! The numbers of a proxy as Prometheus reads them.

use crate::route::RouteConfig;
use crate::stats::{BOUNDS, Histogram, Outcome, Stats};
use std::fmt::Write;

const DURATION: &str = "traffic_request_duration_seconds";

/// The text. `routes` are those the numbers are about, in their order.
pub fn text(stats: &Stats, routes: &[RouteConfig]) -> String {
    let mut out = String::new();
    let route = |i: usize| match routes.get(i) {
        Some(r) => escape(&format!("{}{}", r.host, r.prefix)),
        None => String::new(),
    };
    begin(&mut out, "traffic_requests_total", "counter", "Requests, by what they came to.");
    each(stats, |i, outcome, h| {
        let (route, outcome, n) = (route(i), outcome.name(), h.count());
        let _ = writeln!(out, "traffic_requests_total{{route=\"{route}\",outcome=\"{outcome}\"}} {n}");
    });
    begin(&mut out, DURATION, "histogram", "From a request's head to the head of its answer.");
    each(stats, |i, outcome, h| {
        let labels = format!("route=\"{}\",outcome=\"{}\"", route(i), outcome.name());
        let mut below = 0;
        for (bound, n) in BOUNDS.iter().zip(h.buckets) {
            below += n;
            let le = *bound as f64 / 1e6;
            let _ = writeln!(out, "{DURATION}_bucket{{{labels},le=\"{le}\"}} {below}");
        }
        let (n, sum) = (h.count(), h.sum as f64 / 1e6);
        let _ = writeln!(out, "{DURATION}_bucket{{{labels},le=\"+Inf\"}} {n}");
        let _ = writeln!(out, "{DURATION}_sum{{{labels}}} {sum}\n{DURATION}_count{{{labels}}} {n}");
    });
    for (name, help) in [
        ("traffic_origin_up", "0 while an origin is left out."),
        ("traffic_origin_requests_in_progress", "Requests in progress at an origin."),
    ] {
        begin(&mut out, name, "gauge", help);
        for o in &stats.origins {
            let n = if name.ends_with("up") { usize::from(!o.ejected) } else { o.in_flight };
            let _ =
                writeln!(out, "{name}{{route=\"{}\",origin=\"{}\"}} {n}", route(o.route), escape(&o.name));
        }
    }
    let d = &stats.disk;
    for (name, kind, help, n) in [
        (
            "traffic_client_connections",
            "gauge",
            "Client connections that are open.",
            stats.connections as u64,
        ),
        ("traffic_cache_bytes", "gauge", "Bytes of answers kept in memory.", stats.cache_bytes),
        ("traffic_cache_objects", "gauge", "Answers kept in memory.", stats.cache_objects as u64),
        ("traffic_cache_disk_bytes", "gauge", "Bytes of answers kept on disk.", d.bytes),
        ("traffic_cache_disk_files", "gauge", "Answers kept on disk.", d.files as u64),
        ("traffic_cache_disk_damaged_total", "counter", "Files that were damaged, and dropped.", d.damaged),
        ("traffic_cache_disk_refused_total", "counter", "Answers there was no room for on disk.", d.refused),
        (
            "traffic_requests_plain_total",
            "counter",
            "Requests answered without the HTTP library.",
            stats.fast,
        ),
        ("traffic_access_log_dropped_total", "counter", "Lines that couldn't be written.", stats.log_dropped),
    ] {
        begin(&mut out, name, kind, help);
        let _ = writeln!(out, "{name} {n}");
    }
    out
}

/// Those that there have been.
fn each(stats: &Stats, mut f: impl FnMut(usize, Outcome, &Histogram)) {
    for (i, row) in stats.requests.iter().enumerate() {
        for outcome in Outcome::ALL {
            let h = &row[outcome as usize];
            if h.count() > 0 {
                f(i, outcome, h);
            }
        }
    }
}

/// The lines before the values of a metric; `kind` is `counter`, `gauge` or `histogram`.
pub fn begin(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

/// The value of a metric that says yes (1) or no (0).
pub fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::disk::DiskStats;
    use crate::stats::{Counters, OriginStats};
    use std::time::Duration;

    #[test]
    fn buckets_grow_up_to_the_count() {
        let c = Counters::new(1);
        for micros in [50, 300, 300, 20_000_000] {
            c.count(Some(0), Outcome::Hit, Duration::from_micros(micros));
        }
        let stats = Stats {
            fast: 2,
            requests: c.sum(),
            connections: 2,
            cache_bytes: 7,
            cache_objects: 1,
            disk: DiskStats::default(),
            log_dropped: 0,
            origins: vec![OriginStats { route: 0, name: "a:80".into(), ejected: true, in_flight: 3 }],
        };
        let route = RouteConfig { host: "*".into(), prefix: "/a\"".into(), ..RouteConfig::default() };
        let text = text(&stats, &[route]);
        let labels = "route=\"*/a\\\"\",outcome=\"hit\"";
        for line in [
            format!("traffic_requests_total{{{labels}}} 4"),
            format!("{DURATION}_bucket{{{labels},le=\"0.0001\"}} 1"),
            format!("{DURATION}_bucket{{{labels},le=\"0.0005\"}} 3"),
            format!("{DURATION}_bucket{{{labels},le=\"10\"}} 3"),
            format!("{DURATION}_bucket{{{labels},le=\"+Inf\"}} 4"),
            format!("{DURATION}_count{{{labels}}} 4"),
            "traffic_client_connections 2".to_owned(),
            "traffic_requests_plain_total 2".to_owned(),
            "traffic_cache_bytes 7".to_owned(),
            "traffic_origin_up{route=\"*/a\\\"\",origin=\"a:80\"} 0".to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("outcome=\"miss\""), "what there hasn't been isn't listed");
    }
}
