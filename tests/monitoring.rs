//! What people and their tools see of a suite: the status page, and that dashboard and alerts name metrics that there are.

mod common;

use common::*;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

fn with_admin() -> (Suite, SocketAddr) {
    let s = Suite::serving("[manager]\nadmin = \"127.0.0.1:0\"\n");
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
