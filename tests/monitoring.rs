//! What people and their tools see of a suite: the status page, and that dashboard and alerts name metrics that there are.

mod common;

use common::jobs::{pid, told};
use common::*;
use common::{lint, origin};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

fn with_admin() -> (Suite, SocketAddr) {
    with_jobs("[[job]]\nname = \"one\"\ncommand = [\"sleep\", \"1000\"]\n")
}

fn with_jobs(jobs: &str) -> (Suite, SocketAddr) {
    let s = Suite::serving(&format!("[manager]\nadmin = \"127.0.0.1:0\"\n{jobs}"));
    let line = s.wait(0, &["event=admin listen="]);
    let addr = line.rsplit("listen=").next().unwrap().parse().unwrap();
    (s, addr)
}

fn ask(addr: SocketAddr, path: &str) -> Answer {
    Client::connect(addr).unwrap().get(path).unwrap()
}

#[test]
fn the_status_page_needs_nothing_from_elsewhere_and_may_get_nothing() {
    let (mut s, admin) = with_admin();
    let page = ask(admin, "/");
    assert_eq!(page.code, 200);
    let head = page.head.to_ascii_lowercase();
    assert!(head.contains("content-type: text/html") && head.contains("default-src 'none'"), "{head}");
    let text = page.text();
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!text.contains(outside), "the page has {outside}");
    }
    // and every field that it shows is one of /status
    let status: serde_json::Value = serde_json::from_str(&ask(admin, "/status").text()).unwrap();
    for (object, name) in [("s", "server"), ("m", "manager"), ("q", "queue")] {
        let dot = format!("{object}.");
        let fields = text.split(&dot).skip(1).zip(text.split(&dot));
        for (after, before) in fields {
            let word_before = before.chars().last().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
            let field: String =
                after.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            if !word_before && !field.is_empty() {
                assert!(status[name].get(&field).is_some(), "/status has no {name}.{field}");
            }
        }
    }
    s.stop();
}

#[test]
fn dashboard_and_alerts_name_metrics_that_there_are() {
    let (mut s, admin) = with_admin();
    assert_eq!(s.get("/").code, 200);
    let metrics = ask(admin, "/metrics").text();
    let there: BTreeSet<&str> =
        metrics.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring");
    for file in ["grafana.json", "alerts.yml"] {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let named: BTreeSet<&str> = words
            .filter(|w| w.starts_with("traffic_"))
            .filter(|w| !["traffic_cop", "traffic_manager"].contains(w))
            .collect();
        assert!(named.len() >= 7, "{file}: {named:?}");
        for name in named {
            let name = name.strip_suffix("_bucket").unwrap_or(name);
            assert!(there.contains(name), "{file} names {name}; there are {there:?}");
        }
    }
    let dashboard = std::fs::read_to_string(root.join("grafana.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() >= 10);
    s.stop();
}

/// Update with `BLESS=1 cargo test -p traffic --test monitoring page`.
#[test]
fn every_metric_is_on_its_page() {
    let origin = origin::Origin::start();
    let mut s = Suite::new("");
    let (cache, log) = (s.path("cache"), s.path("access.log"));
    s.write_config(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\naccess_log = \"json\"\naccess_log_file = {log:?}\n\
         [server.cache]\ndisk = \"1GiB\"\npath = {cache:?}\n[server.forward]\nclients = [\"127.0.0.0/8\"]\n\
         [manager]\nadmin = \"127.0.0.1:0\"\n{}[[job]]\nname = \"one\"\ncommand = [\"sleep\", \"1000\"]\n",
        origin.route()
    ));
    s.start();
    let admin = s.wait(0, &["event=admin listen="]).rsplit("listen=").next().unwrap().parse().unwrap();
    // an account of a death has its connections
    let mut kept = Client::connect(s.addr()).unwrap();
    assert_eq!(kept.get("/cacheable").unwrap().code, 200);
    s.kill("server", SIGKILL);
    assert_eq!(kept.get("/cacheable").unwrap().code, 200);
    let mut text = String::new();
    s.until("the next server is ready, and told of", || {
        text = ask(admin, "/metrics").text();
        let there =
            ["traffic_inherited_connections_total{", "traffic_takeover_seconds ", "traffic_server_told 1\n"];
        there.iter().all(|name| text.contains(name))
    });
    let of = |what: &str| -> BTreeMap<String, String> {
        let lines = text.lines().filter_map(|l| l.strip_prefix(what)?.split_once(' '));
        lines.map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
    };
    let (helps, types) = (of("# HELP "), of("# TYPE "));
    assert!(helps.len() > 30 && helps.keys().eq(types.keys()), "{text}");
    let mut page = "# Metrics\n\nWhat `/metrics` of `manager.admin` and `traffic_manager metrics` say, in Prometheus' text format. Written by a \
        test from what a suite\nanswers that has a job, origins, a cache on disk, an access log and the forward proxy. The server's own \
        begin anew with every server.\n\n| name | type | |\n|---|---|---|\n"
        .to_owned();
    for (name, help) in &helps {
        page += &format!("| `{name}` | {} | {} |\n", types[name], help.replace('|', "\\|"));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/monitoring/metrics.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(path).unwrap_or_default(),
        page,
        "BLESS=1 updates docs/monitoring/metrics.md"
    );
    s.stop();
}

#[test]
fn the_metrics_are_as_promtool_wants_them() {
    let origin = origin::Origin::start();
    let mut s = Suite::serving(&format!("[manager]\nadmin = \"127.0.0.1:0\"\n{}", origin.route()));
    let admin = s.wait(0, &["event=admin listen="]).rsplit("listen=").next().unwrap().parse().unwrap();
    // counts of more than one outcome, and an incident with its account
    assert_eq!(s.get("/small").code, 200);
    s.get("/none");
    s.wait(0, &["event=standby-ready"]);
    let mark = s.mark();
    s.kill("server", SIGKILL);
    s.wait(mark, &["event=incident of=server"]);
    assert_eq!(s.get("/small").code, 200);
    let text = ask(admin, "/metrics").text();
    assert_eq!(lint::complaints(&text), [""; 0], "{text}");
    for name in [
        "traffic_takeover_seconds ",
        "traffic_request_duration_seconds_bucket{",
        "traffic_client_connections ",
    ] {
        assert!(text.contains(name), "{name} in\n{text}");
    }
    s.stop();
}

#[test]
fn jobs_are_counted_by_what_they_are_and_how_they_end() {
    let (mut s, admin) = with_jobs(
        "[[job]]\nname = \"two\"\nworkers = 2\ncommand = [\"sleep\", \"1000\"]\n\
         [[job]]\nname = \"done\"\nrestart = \"on-failure\"\ncommand = [\"true\"]\n\
         [[job]]\nname = \"fails\"\ngive_up_after = 2\ncommand = [\"false\"]\n\
         [[job]]\nname = \"hangs\"\ngive_up_after = 1\nready = \"fd\"\nstart_grace = \"100ms\"\ncommand = [\"sleep\", \"1000\"]\n\
         [[job]]\nname = \"later\"\nschedule = \"every 300d\"\ncommand = [\"true\"]\n\
         [[job]]\nname = \"not.now\"\nautostart = false\ncommand = [\"true\"]\n",
    );
    told(&s, &["wait-ready", "two"]);
    told(&s, &["wait-ready", "done"]);
    let mark = s.mark();
    supervisor::pidfd::PidFd::open(pid(&s, "two")).unwrap().signal(SIGKILL).unwrap();
    s.wait(mark, &["event=ready of=job job=two "]);
    for name in ["fails", "hangs"] {
        s.wait(0, &["event=gave-up of=job", &format!("job={name} ")]);
    }
    // being replaced by command isn't an end that somebody should hear of
    told(&s, &["restart", "two"]);
    let text = ask(admin, "/metrics").text();
    assert_eq!(lint::complaints(&text), [""; 0], "{text}");
    let all = traffic::exposition::Exposition::parse(&text).unwrap();
    let gauges = ["wanted", "ready", "asleep", "workers_wanted", "workers_ready", "workers_failed"];
    let ends = ["success", "failure", "hang"];
    for (name, is, ended) in [
        ("two", [1, 1, 0, 2, 2, 0], [0, 1, 0]),
        ("done", [1, 1, 0, 1, 0, 0], [1, 0, 0]),
        ("fails", [1, 0, 0, 1, 0, 1], [0, 3, 0]),
        ("hangs", [1, 0, 0, 1, 0, 1], [0, 0, 2]),
        ("later", [1, 1, 1, 1, 0, 0], [0, 0, 0]),
        ("not.now", [0, 0, 0, 1, 0, 0], [0, 0, 0]),
    ] {
        let of = |metric: &str, result: Option<&str>| {
            let fits = |l: &std::collections::BTreeMap<String, String>| {
                l["name"] == name && result.is_none_or(|r| l["result"] == r)
            };
            all.sum_where(&format!("traffic_job_{metric}"), fits).unwrap() as i32
        };
        assert_eq!(gauges.map(|g| of(g, None)), is, "{name}: {gauges:?}\n{text}");
        assert_eq!(ends.map(|r| of("exits_total", Some(r))), ended, "{name}: {ends:?}\n{text}");
    }
    s.stop();
}

#[test]
fn what_promtool_would_not_take_is_complained_about() {
    let head = "# HELP a_total All.\n# TYPE a_total counter\n";
    let histogram = "# HELP h_seconds H.\n# TYPE h_seconds histogram\n";
    assert_eq!(lint::complaints(&format!("{head}a_total 1\n")), [""; 0]);
    for (text, why) in [
        (format!("{head}a_total 1"), "the last line"),
        (format!("{head}a_total{{k=\"x\"}} 1\na_total{{k=\"x\"}} 2\n"), "there twice"),
        ("a_total 1\n".into(), "has no type"),
        ("# TYPE a_total counter\na_total 1\n".into(), "no help text"),
        ("# HELP a A.\n# TYPE a counter\na 1\n".into(), "end in _total"),
        ("# HELP a_total A.\n# TYPE a_total gauge\na_total 1\n".into(), "end in _total"),
        ("# HELP a_ms A.\n# TYPE a_ms gauge\na_ms 1\n".into(), "base units"),
        (format!("{head}# HELP b B.\n# TYPE b gauge\na_total 1\nb 1\na_total{{k=\"x\"}} 1\n"), "one place"),
        (format!("{histogram}h_seconds_bucket{{le=\"1\"}} 1\nh_seconds_sum 1\nh_seconds_count 1\n"), "+Inf"),
        (
            format!(
                "{histogram}h_seconds_bucket{{le=\"1\"}} 2\nh_seconds_bucket{{le=\"+Inf\"}} 1\nh_seconds_count 1\n"
            ),
            "don't grow",
        ),
    ] {
        let found = lint::complaints(&text);
        assert!(found.iter().any(|c| c.contains(why)), "{text}: {found:?}");
    }
}
