//! The record of each interruption: what died and how, how long nobody served, and what became of the connections.

use super::keep::Keep;
use policy::Time;
use proxy::metrics::{begin, flag};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use supervisor::clock;

/// Records that are remembered.
const REMEMBERED: usize = 50;

/// The interruptions so far.
#[derive(Default)]
pub struct Incidents {
    open: Option<Open>,
    closed: VecDeque<Value>,
    count: u64,
    /// What became of connections, over all of them.
    pub(super) totals: BTreeMap<String, u64>,
    pub(super) last_ms: Option<f64>,
    /// Why the server that is being ended was found to hang.
    hang: Option<String>,
}

struct Open {
    pid: i32,
    how: String,
    noticed_by: String,
    since: Time,
    account: BTreeMap<String, u64>,
}

impl Incidents {
    /// For status.
    pub fn status(&self) -> Value {
        json!({ "count": self.count, "totals": self.totals, "last": self.closed })
    }

    /// The server hangs, and is ended for that.
    pub(super) fn noticed_by(&mut self, why: &str) {
        self.hang = Some(why.to_owned());
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }
}

impl Keep {
    /// A server is gone that was wanted. One that follows before it is replaced belongs to the same interruption.
    pub(super) fn incident(&self, pid: i32, how: &str, noticed_by: &str) {
        let mut i = self.incidents.borrow_mut();
        let noticed_by = i.hang.take().unwrap_or_else(|| noticed_by.to_owned());
        if i.open.is_none() {
            let (how, since) = (how.to_owned(), clock::now());
            let open = Open { pid, how, noticed_by, since, account: BTreeMap::new() };
            i.open = Some(open);
        }
    }

    /// How that server has ended, which wasn't known when its death was noticed.
    pub(super) fn learned(&self, pid: i32, how: &str) {
        let mut i = self.incidents.borrow_mut();
        if let Some(open) = i.open.as_mut().filter(|o| o.pid == pid) {
            how.clone_into(&mut open.how);
        }
        if let Some(closed) = i.closed.iter_mut().rev().find(|c| c["pid"] == pid) {
            closed["how"] = how.into();
        }
    }

    /// The next server's account of the connections: `resumed=44 replayed=8`.
    pub(super) fn account(&self, text: &str) {
        let mut i = self.incidents.borrow_mut();
        let parts = text.split_whitespace().filter_map(|p| p.split_once('='));
        for (what, n) in parts.filter_map(|(k, n)| Some((k.to_owned(), n.parse::<u64>().ok()?))).take(16) {
            *i.totals.entry(what.clone()).or_default() += n;
            if let Some(open) = &mut i.open {
                *open.account.entry(what).or_default() += n;
            }
        }
    }

    /// A server serves again.
    pub(super) fn incident_over(&self) {
        let (queued, longest) = self.queue.borrow_mut().take_marks();
        let mut i = self.incidents.borrow_mut();
        let Some(open) = i.open.take() else { return };
        let took = clock::now().saturating_sub(open.since);
        let ms = took.as_secs_f64() * 1000.0;
        let account: Vec<String> = open.account.iter().map(|(k, n)| format!("{k}={n}")).collect();
        log::info!(
            "event=incident of=server pid={} how={:?} noticed_by={:?} takeover_ms={ms:.2} queued={queued} \
             longest_wait_ms={} {}",
            open.pid,
            open.how,
            open.noticed_by,
            longest.as_millis(),
            account.join(" ")
        );
        i.count += 1;
        i.last_ms = Some(ms);
        i.closed.push_back(json!({
            "of": "server", "pid": open.pid, "how": open.how, "noticed_by": open.noticed_by,
            "uptime_s": open.since.saturating_sub(self.started).as_secs(),
            "takeover_ms": (ms * 100.0).round() / 100.0,
            "queued": queued, "longest_wait_ms": longest.as_millis() as u64,
            "connections": open.account,
        }));
        if i.closed.len() > REMEMBERED {
            i.closed.pop_front();
        }
    }

    /// Everything that can be counted, as Prometheus reads it.
    pub fn metrics(&self) -> String {
        let mut out = String::new();
        let mut put = |name: &str, kind: &str, help: &str, labels: &str, value: f64| {
            if !out.contains(&format!("# TYPE {name} ")) {
                begin(&mut out, name, kind, help);
            }
            out += &format!("{name}{labels} {value}\n");
        };
        let up = flag(self.is_ready());
        put("traffic_server_up", "gauge", "1 while a server serves.", "", up);
        {
            let s = self.server.borrow();
            let generation = s.machine.generation() as f64;
            put("traffic_server_generation", "gauge", "Servers since the manager began.", "", generation);
            let restarts = s.machine.restarts() as f64;
            put("traffic_server_restarts_total", "counter", "Servers that replaced one.", "", restarts);
        }
        let gave_up = flag(self.has_given_up());
        put("traffic_server_gave_up", "gauge", "1 when a crash loop has used up give_up_after.", "", gave_up);
        let standby = flag(self.has_standby());
        put("traffic_standby_ready", "gauge", "1 while a standby waits to take over.", "", standby);
        let q = self.queue.borrow().status(clock::now());
        for (key, name, kind, help) in [
            ("depth", "traffic_queue_depth", "gauge", "Connections that wait in the manager."),
            ("total", "traffic_queue_connections_total", "counter", "Connections that were queued."),
            ("expired", "traffic_queue_expired_total", "counter", "Told 503 after max_wait."),
            ("gone", "traffic_queue_gone_total", "counter", "Given up by their clients."),
            ("full", "traffic_queue_full_total", "counter", "Times the queue was full."),
        ] {
            put(name, kind, help, "", q[key].as_u64().unwrap_or(0) as f64);
        }
        let oldest = q["oldest_ms"].as_u64().unwrap_or(0) as f64 / 1000.0;
        put("traffic_queue_oldest_seconds", "gauge", "How long the oldest has waited.", "", oldest);
        let paused = flag(q["paused"] == true);
        put("traffic_paused", "gauge", "1 while serving is paused by command.", "", paused);
        let i = self.incidents.borrow();
        put("traffic_incidents_total", "counter", "Interruptions by a server's death.", "", i.count() as f64);
        if let Some(ms) = i.last_ms {
            let help = "From the last death to the next server's readiness.";
            put("traffic_takeover_seconds", "gauge", help, "", ms / 1000.0);
        }
        for (what, n) in &i.totals {
            let help = "What became of the connections of dead servers.";
            let labels = format!("{{outcome=\"{what}\"}}");
            put("traffic_inherited_connections_total", "counter", help, &labels, *n as f64);
        }
        out + &self.jobs_metrics()
    }
}
