//! Everything at once: many clients, few targets, a cache too small for them, an origin that misbehaves by a seeded
//! dice. Whatever happens, nobody gets what belongs to another target or variant, and whoever gets all of a body gets the
//! right one.

mod common;
use common::*;
use proxy::stats::Outcome;
use std::time::Duration;

/// A small generator (xorshift): the same numbers in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % n
    }
}

fn body(path: &str, lang: &str) -> String {
    let len = 10 + path.bytes().map(usize::from).sum::<usize>() * 37 % 20_000;
    format!("{path} {lang} ").chars().cycle().take(len).collect()
}

fn origin() -> Origin {
    Origin::new(|q| {
        let mut dice = Dice(0x9e37_79b9 ^ ((q.number as u64 + 1) * 0x1234_5678_9abc));
        let lang = q.field("accept-language").unwrap_or_default();
        let text = body(q.path(), &lang);
        let tag = format!("\"{}-{lang}\"", q.path().trim_start_matches('/'));
        let control = match dice.roll(5) {
            0 => "max-age=60",
            1 => "max-age=60, stale-while-revalidate=60\r\nAge: 70",
            2 => "max-age=60, stale-if-error=60\r\nAge: 70",
            3 => "no-cache",
            _ => "private",
        };
        let fields = format!("Cache-Control: {control}\r\nVary: Accept-Language\r\nETag: {tag}\r\n");
        if q.field("if-none-match").is_some_and(|t| t.contains(&tag)) && dice.roll(3) > 0 {
            return Do::Send(format!("HTTP/1.1 304 Not Modified\r\n{fields}\r\n").into_bytes());
        }
        let whole = if q.line().starts_with("HEAD") {
            format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n", text.len()).into_bytes()
        } else if dice.roll(2) == 0 {
            ok(&fields, &text)
        } else {
            let (a, b) = text.split_at(text.len() / 2);
            let chunks = format!("{:x}\r\n{a}\r\n{:x}\r\n{b}\r\n0\r\n\r\n", a.len(), b.len());
            format!("HTTP/1.1 200 OK\r\n{fields}Transfer-Encoding: chunked\r\n\r\n{chunks}").into_bytes()
        };
        match dice.roll(12) {
            0 => Do::Reset,
            1 => Do::Close(whole[..whole.len() / 2].to_vec()),
            2 => Do::Send(b"HTTP/1.1 503 Down\r\nContent-Length: 0\r\n\r\n".to_vec()),
            3 => Do::Close(whole),
            _ => Do::Send(whole),
        }
    })
}

fn one(c: &mut Client, dice: &mut Dice) -> bool {
    let path = format!("/{}", dice.roll(30));
    let lang = ["de", "en", "fr"][dice.roll(3) as usize];
    let mut fields = format!("Accept-Language: {lang}\r\n");
    let mut method = "GET";
    let mut part = false;
    match dice.roll(12) {
        0 => method = "HEAD",
        1 => fields += "Cache-Control: no-cache\r\n",
        2 => {
            fields += "Range: bytes=3-8\r\n";
            part = true;
        }
        3 => fields += &format!("If-None-Match: \"{}-{lang}\"\r\n", &path[1..]),
        4 => method = "POST",
        _ => {}
    }
    c.send(format!("{method} {path} HTTP/1.1\r\nHost: example.org\r\n{fields}\r\n"));
    let Some(r) = c.try_reply() else { return false };
    let want = body(&path, lang);
    match r.status {
        200 if method == "HEAD" => {
            let n = r.field("content-length");
            assert!(n.is_none_or(|n| n == want.len().to_string()), "{path} {lang}");
        }
        200 if r.whole => assert!(r.body == want, "{path} {lang}: {}", &r.body[..r.body.len().min(80)]),
        // cut short, and seen to be
        200 => {}
        206 => assert!(part && r.body == want[3..9], "{path} {lang} {}", r.body),
        304 => assert!(fields.contains("If-None-Match"), "{path}"),
        502..=504 => {}
        other => panic!("{other} for {method} {path}"),
    }
    r.whole && r.field("connection").is_none_or(|v| v != "close")
}

#[test]
fn nobody_gets_what_belongs_to_another() {
    let o = origin();
    let mut c = config(vec![to(&[&o])]);
    c.cache.memory = 256 << 10;
    c.cache.coalesce = Duration::from_millis(200);
    let s = Suite::new(c);
    let threads: Vec<_> = (0..8u64)
        .map(|n| {
            let addr = s.addr;
            std::thread::spawn(move || {
                let mut dice = Dice(n * 7919 + 1);
                let mut c = Client::new(addr);
                for _ in 0..250 {
                    if !one(&mut c, &mut dice) {
                        c = Client::new(addr);
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    let stats = s.proxy.stats();
    for o in
        [Outcome::Hit, Outcome::Miss, Outcome::Revalidated, Outcome::Stale, Outcome::Bypass, Outcome::Broken]
    {
        assert!(stats.total(o) > 0, "no {}: {stats:?}", o.name());
    }
}
