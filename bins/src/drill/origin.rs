//! The origin behind the drilled suite: one of our own, or a given one.
//!
//! Our own answers `/drill/N` with N bytes that follow from N, so that a client can tell a wrong body from a right one.
//! It is a thread a connection (the suite keeps few), and closes nothing by itself.

use super::client::Page;
use super::kills;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Sizes of the pages that are asked for.
const SIZES: [usize; 4] = [100, 1_000, 4_000, 10_000];
/// Size of the page that takes more than one write.
const LARGE: usize = 1 << 20;
/// How long a slow page takes.
const SLOW: Duration = Duration::from_millis(20);
/// Connections served at once; the others wait.
const MAX_CONNECTIONS: usize = 1024;

/// What the suite's route points to.
#[derive(Debug)]
pub struct Origin {
    /// `http://host:port`, for the route.
    pub base: String,
    pages: Vec<Page>,
    posts: Posts,
}

/// The POSTs that have come.
type Posts = Arc<Mutex<Seen>>;

/// POSTs by their numbers, which only grow: of those long ago, how many came twice is all that is kept.
#[derive(Debug, Default)]
struct Seen {
    recent: BTreeMap<u64, u32>,
    twice: u64,
}

/// POSTs that are remembered one by one: minutes of them.
const MAX_POSTS: usize = 100_000;

impl Seen {
    fn count(&mut self, id: u64) {
        let times = self.recent.entry(id).or_default();
        *times += 1;
        self.twice += u64::from(*times == 2);
        if self.recent.len() > MAX_POSTS {
            self.recent.pop_first();
        }
    }
}

/// What a URL stands for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Where it leads.
    pub addr: SocketAddr,
    /// `host:port`.
    pub host: String,
    path: String,
}

impl Asked {
    /// Of `http://host:port/path`.
    ///
    /// # Errors
    /// It is no such URL, or the host has no address.
    pub fn parse(url: &str) -> anyhow::Result<Asked> {
        let uri: http::Uri = url.parse()?;
        anyhow::ensure!(uri.scheme_str() == Some("http"), "only http:// is supported");
        let host = uri.host().unwrap_or("");
        let port = uri.port_u16().unwrap_or(80);
        let addr = (host.trim_matches(['[', ']']), port).to_socket_addrs()?.next();
        let addr = addr.ok_or_else(|| anyhow::anyhow!("{host} has no address"))?;
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        Ok(Asked { addr, host: format!("{host}:{port}"), path })
    }

    /// The page: fetched twice, to see whether it changes.
    ///
    /// # Errors
    /// It isn't answered with 200.
    pub fn page(&self) -> io::Result<Page> {
        let get = || kills::get(self.addr, &self.host, &self.path, Duration::from_secs(10));
        let first = get()?;
        let body = get().is_ok_and(|second| second == first).then_some(first);
        Ok(Page { path: self.path.clone(), host: self.host.clone(), body, post: false })
    }
}

impl Origin {
    /// Starts our own. Its threads end with the process.
    ///
    /// # Errors
    /// No port or no thread.
    pub fn built_in(mix: bool) -> io::Result<Origin> {
        let posts = Posts::default();
        let seen = posts.clone();
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let base = format!("http://{}", listener.local_addr()?);
        std::thread::Builder::new().name("origin".into()).spawn(move || accept(&listener, &seen))?;
        let mut pages: Vec<_> = SIZES.iter().map(|&n| Page::get(format!("/drill/{n}"), body(n))).collect();
        if mix {
            pages.extend(SIZES.iter().map(|&n| Page::get(format!("/drill/cached/{n}"), body(n))));
            pages.extend(SIZES.iter().map(|&n| Page::get(format!("/drill/slow/{n}"), body(n))));
            let post = Page { post: true, ..Page::get("/drill/post/", *b"done ") };
            pages.extend([post.clone(), post.clone(), post]);
            pages.push(Page::get(format!("/drill/cached/{LARGE}"), body(LARGE)));
        }
        Ok(Origin { base, pages, posts })
    }

    /// Takes a given one: `http://host:port/path`. The page is fetched twice, to see that it doesn't change.
    ///
    /// # Errors
    /// It doesn't answer with 200, or the page changes.
    pub fn given(url: &str) -> anyhow::Result<Origin> {
        let asked = Asked::parse(url).map_err(|e| anyhow::anyhow!("--origin {url}: {e:#}"))?;
        let page = asked.page().map_err(|e| anyhow::anyhow!("--origin {url}: {e:#}"))?;
        anyhow::ensure!(
            page.body.is_some(),
            "--origin {url}: the page changes from one fetch to the next, so it can't be compared"
        );
        Ok(Origin {
            base: format!("http://{}", asked.host),
            pages: vec![Page { host: "drill".into(), ..page }],
            posts: Posts::default(),
        })
    }

    /// Takes a page of the suite that runs, through that suite.
    ///
    /// # Errors
    /// It doesn't answer with 200.
    pub fn behind(asked: &Asked) -> anyhow::Result<Origin> {
        let base = format!("http://{}", asked.host);
        let page = asked.page().map_err(|e| anyhow::anyhow!("{base}{}: {e}", asked.path))?;
        Ok(Origin { base, pages: vec![page], posts: Posts::default() })
    }

    /// POSTs that came more than once.
    pub fn posts_twice(&self) -> u64 {
        self.posts.lock().expect("nobody panics with it").twice
    }

    /// The pages to ask for.
    pub fn paths(&self) -> Vec<Page> {
        self.pages.clone()
    }
}

fn page(body: &[u8], more: &str) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\n{more}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// N bytes that follow from N.
fn body(n: usize) -> Vec<u8> {
    let mut x = n as u32 | 1;
    (0..n)
        .map(|_| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b'a' + (x >> 24) as u8 % 26
        })
        .collect()
}

fn accept(listener: &TcpListener, posts: &Posts) {
    let live = std::sync::Arc::new(());
    for stream in listener.incoming().flatten() {
        // after a long outage all who have waited come at once; they wait, as they would for any origin
        while std::sync::Arc::strong_count(&live) > MAX_CONNECTIONS {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (guard, posts) = (live.clone(), posts.clone());
        let spawned =
            std::thread::Builder::new().name("origin-conn".into()).stack_size(128 << 10).spawn(move || {
                let _ = serve(stream, &posts);
                drop(guard);
            });
        if spawned.is_err() {
            return;
        }
    }
}

/// Answers GETs on one connection until it ends.
fn serve(mut stream: TcpStream, posts: &Posts) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buf = Vec::new();
    loop {
        let end = loop {
            if let Some(i) = buf.windows(4).position(|w| w == b"\r\n\r\n") {
                break i + 4;
            }
            let mut chunk = [0u8; 4096];
            match stream.read(&mut chunk)? {
                0 => return Ok(()),
                n if buf.len() + n > 64 << 10 => return Ok(()),
                n => buf.extend_from_slice(&chunk[..n]),
            }
        };
        let head = String::from_utf8_lossy(&buf[..end]).into_owned();
        buf.drain(..end);
        let path = head.split_whitespace().nth(1).unwrap_or("/");
        if let Some(id) = path.strip_prefix("/drill/post/").and_then(|n| n.parse::<u64>().ok()) {
            while buf.len() < 5 {
                let mut chunk = [0u8; 16];
                match stream.read(&mut chunk)? {
                    0 => return Ok(()),
                    n => buf.extend_from_slice(&chunk[..n]),
                }
            }
            buf.drain(..5);
            posts.lock().expect("nobody panics with it").count(id);
            stream.write_all(&page(&format!("done {id}").into_bytes(), "Cache-Control: no-store\r\n"))?;
            continue;
        }
        let (rest, more) = match path.strip_prefix("/drill/") {
            Some(rest) => match (rest.strip_prefix("cached/"), rest.strip_prefix("slow/")) {
                (Some(n), _) => (n, "Cache-Control: max-age=3600\r\nETag: \"drill\"\r\n"),
                (_, Some(n)) => {
                    std::thread::sleep(SLOW);
                    (n, "Cache-Control: no-store\r\n")
                }
                _ => (rest, "Cache-Control: no-store\r\n"),
            },
            None => ("", ""),
        };
        let answer = match rest.parse::<usize>() {
            Ok(n) if n <= LARGE => page(&body(n), more),
            _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
        };
        stream.write_all(&answer)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_as_promised_and_differ() {
        let o = Origin::built_in(true).unwrap();
        let addr: SocketAddr = o.base.trim_start_matches("http://").parse().unwrap();
        for p in o.paths().into_iter().filter(|p| !p.post) {
            assert_eq!(kills::get(addr, "x", &p.path, Duration::from_secs(10)).unwrap(), p.body.unwrap());
        }
        assert_ne!(body(100), body(1000)[..100]);
    }

    #[test]
    fn posts_that_come_twice_are_counted_once_each_and_memory_is_bounded() {
        let mut seen = Seen::default();
        for id in [1, 2, 2, 2, 3, 3] {
            seen.count(id);
        }
        assert_eq!(seen.twice, 2);
        (10..10 + 2 * MAX_POSTS as u64).for_each(|id| seen.count(id));
        assert_eq!((seen.twice, seen.recent.len()), (2, MAX_POSTS));
    }

    #[test]
    fn a_given_origin_must_be_there_and_hold_still() {
        let o = Origin::built_in(true).unwrap();
        assert!(Origin::given(&format!("{}/drill/100", o.base)).is_ok());
        assert!(Origin::given(&format!("{}/nothing", o.base)).unwrap_err().to_string().contains("404"));
        assert!(Origin::given("https://localhost/").unwrap_err().to_string().contains("only http"));
    }
}
