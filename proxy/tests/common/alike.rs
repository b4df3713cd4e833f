//! Two ways to answer, and whether anybody can tell which one it was.

use super::{Client, Origin, Reply, Suite, config};
use proxy::RouteConfig;
use proxy::stats::{Outcome, Stats};

/// So that a failure can be repeated.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    pub fn one<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }

    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// But for what is a different number each time.
fn normal(reply: &Reply) -> (String, String, bool) {
    let head = reply.head.lines().map(|line| {
        let name = line.split(':').next().unwrap_or("").to_ascii_lowercase();
        match &*name {
            "age" | "x-request-id" => name,
            // an answer made in another second
            "date" if !line.contains("2033") => name,
            "cache-status" => match line.rsplit_once("ttl=") {
                Some((rest, _)) => rest.to_owned(),
                None => line.to_owned(),
            },
            _ => line.to_owned(),
        }
    });
    let head = sorted(&head.collect::<Vec<_>>().join("\n"));
    let body = match reply.body.split_once("request ") {
        Some((before, _)) => before.to_owned(),
        None => reply.body.clone(),
    };
    (head.join("\n"), body, reply.whole)
}

/// A head's lines; in which order different fields come has no meaning (RFC 9110, 5.3).
fn sorted(head: &str) -> Vec<String> {
    let mut lines: Vec<String> = head.lines().map(str::to_owned).collect();
    lines[1..].sort_by_key(|line| line.split(':').next().unwrap_or("").to_owned());
    lines
}

/// One way: its suite, and the connection that is open now.
pub struct Way {
    pub suite: Suite,
    pub origin: Origin,
    client: Option<Client>,
}

impl Way {
    /// To an origin by these routes, with or without what is answered before hyper sees it.
    pub fn new(origin: Origin, routes: Vec<RouteConfig>, fast: bool, continuity: bool) -> Way {
        let mut c = config(routes);
        c.limits.fast = fast;
        let suite = if continuity { Suite::continuous(c) } else { Suite::new(c) };
        Way { suite, origin, client: None }
    }

    /// What comes of it; None if nothing does.
    fn ask(&mut self, request: &str) -> Option<(String, String, bool)> {
        let client = self.client.get_or_insert_with(|| self.suite.client());
        client.send(request);
        let reply = client.try_reply()?;
        if reply.field("connection").is_some_and(|v| v == "close") {
            assert!(client.closes(), "it said so: {request:?}");
            self.client = None;
        }
        Some(normal(&reply))
    }

    /// What the origin was asked, in order; its address is another one for each way. What was asked for twice in a row is
    /// there once if it `breaks` connections: on one that was idle, a request is sent again.
    fn asked(&self, breaks: bool) -> Vec<Vec<String>> {
        let addr = self.origin.addr.to_string();
        let mut all: Vec<_> =
            self.origin.seen().iter().map(|q| sorted(&q.head.replace(&addr, "ADDRESS"))).collect();
        if breaks {
            all.dedup();
        }
        all
    }
}

/// Asks both ways for the same, so many times, and compares all there is. Returns how many were answered without hyper.
/// `breaks`: the origin breaks connections.
pub fn alike(
    mut fast: Way,
    mut slow: Way,
    seed: u64,
    (rounds, breaks): (usize, bool),
    request: impl Fn(&mut Random) -> String,
) -> u64 {
    let mut r = Random(seed);
    for n in 0..rounds {
        let text = request(&mut r);
        let (a, b) = (fast.ask(&text), slow.ask(&text));
        assert_eq!(a, b, "request {n} of seed {seed}: {text:?}");
        // a refused one may have left something behind
        let whole = a
            .as_ref()
            .is_some_and(|a| a.2 && (a.0.starts_with("HTTP/1.1 2") || a.0.starts_with("HTTP/1.1 304")));
        if !whole || r.once_in(20) {
            (fast.client, slow.client) = (None, None);
        }
    }
    let (asked, want) = (fast.asked(breaks), slow.asked(breaks));
    for (n, (a, b)) in asked.iter().zip(&want).enumerate() {
        let before = &asked[n.saturating_sub(2)..n];
        assert_eq!(a, b, "and ask the origin for the same: request {n} of seed {seed}, after {before:?}");
    }
    assert_eq!(asked.len(), want.len());
    let (f, s) = (fast.suite.proxy.stats(), slow.suite.proxy.stats());
    let counted = |s: &Stats| Outcome::ALL.map(|o| (o, s.total(o)));
    assert_eq!(counted(&f), counted(&s), "and both are counted alike, seed {seed}");
    assert_eq!(s.fast, 0);
    f.fast
}
