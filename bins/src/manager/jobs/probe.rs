//! What a worker is asked from outside: an HTTP request, or a command that finds out in its own way. Both are bounded in time
//! and bytes, and neither holds up the manager.

use super::start::environment;
use super::{Job, tree};
use crate::config::job_values::{At, Place};
use crate::manager::hook::{Ended, Rest};
use crate::manager::keep::Keep;
use crate::privileges;
use crate::suite;
use engine::net::Stream;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;
use supervisor::spawn::{Spec, spawn};

/// A longer head is no answer.
const HEAD: usize = 16 << 10;
/// Of the rest so much is read, and so long, so that who answers isn't cut off.
const REST: usize = 64 << 10;
const REST_TIME: Duration = Duration::from_millis(100);

/// Is the answer there 2xx or 3xx? It takes as long as it takes: the caller has a limit.
pub(super) async fn http(place: &Place) -> bool {
    match fetch(place).await {
        Ok(code) => (200..400).contains(&code),
        Err(e) => {
            log::debug!("event=probe-failed place={place:?}: {e}");
            false
        }
    }
}

async fn fetch(place: &Place) -> io::Result<u16> {
    let (mut stream, host) = match &place.to {
        At::Tcp(addr) => (Stream::connect_tcp(*addr).await?, addr.to_string()),
        At::Unix(path) => (Stream::connect_unix(path).await?, "localhost".to_owned()),
    };
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: traffic_manager\r\nConnection: close\r\n\r\n",
        place.path
    );
    stream.write_all(request.as_bytes()).await?;
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    let code = loop {
        if let Some(code) = status_of(&answer)? {
            break code;
        }
        match stream.read(&mut part).await? {
            0 => return Err(bad("it ends within its head")),
            n if answer.len() + n > HEAD => return Err(bad("its head is too long")),
            n => answer.extend_from_slice(&part[..n]),
        }
    };
    let rest = async {
        let mut left = REST;
        while let Ok(n) = stream.read(&mut part).await {
            match left.checked_sub(n.max(1)) {
                Some(less) if n > 0 => left = less,
                _ => break,
            }
        }
    };
    let _ = engine::time::timeout(REST_TIME, rest).await;
    Ok(code)
}

/// The status code, when the whole head is there.
fn status_of(answer: &[u8]) -> io::Result<Option<u16>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    match head.parse(answer) {
        Ok(httparse::Status::Complete(_)) => Ok(head.code),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(e) => Err(bad(&e.to_string())),
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the answer to a probe: {what}"))
}

/// Does this command end with code 0 in time? It runs as the job does, and is killed with its group when the time is over,
/// also if nobody waits any more.
pub(super) async fn exec(keep: &Rc<Keep>, job: &Job, worker: usize, command: &[String]) -> bool {
    let spawned = {
        let c = job.config.borrow();
        let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") else {
            return false;
        };
        // one that outlives its manager is found by its mark, and ended with the worker
        let mut env = environment(&c, worker);
        let (name, whose) = tree::mark(keep);
        env.push((name.into(), whose));
        let spec = privileges::job(&c).map_err(anyhow::Error::from).map(|credentials| Spec {
            stdio: [Some(null.as_fd()); 3],
            cwd: Some(c.cwd.clone().unwrap_or_else(|| "/".into())),
            umask: c.umask,
            oom_score_adj: Some(c.oom()),
            credentials,
            ..Spec::new(suite::find_program(&command[0]), command.iter().map(OsString::from).collect(), env)
        });
        spec.and_then(|spec| Ok(spawn(&spec)?)).map(|spawned| (spawned, c.probe_timeout))
    };
    let (spawned, limit) = match spawned {
        Ok(both) => both,
        Err(e) => {
            log::warn!("event=probe-failed job={}: {e:#}", job.name);
            return false;
        }
    };
    let (keep, name, program) = (keep.clone(), job.name.clone(), command[0].clone());
    let task = engine::spawn(async move {
        match keep.finish(spawned, limit, Rest::Goes).await {
            Ended::Itself(status) => status.and_then(|s| s.code()) == Some(0),
            Ended::Killed => {
                log::warn!("event=probe-killed job={name} command={program:?}: it took {limit:?}");
                false
            }
        }
    });
    task.await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_known_when_the_head_is_whole() {
        assert_eq!(status_of(b"").unwrap(), None);
        assert_eq!(status_of(b"HTTP/1.1 204 No Content\r\nA: b\r\n").unwrap(), None);
        assert_eq!(status_of(b"HTTP/1.0 301 Moved\r\nA: b\r\n\r\nrest").unwrap(), Some(301));
        assert!(status_of(b"SSH-2.0-x\r\n").is_err());
    }

    #[test]
    fn two_and_three_hundred_are_good_and_all_else_is_not() {
        let endless = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(2 * HEAD));
        let cases = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", true),
            ("HTTP/1.1 302 Found\r\n\r\n", true),
            ("HTTP/1.1 404 Not Found\r\n\r\n", false),
            ("HTTP/1.1 503 Busy\r\n\r\n", false),
            ("HTTP/1.1 200", false),
            ("+PONG\r\n", false),
            (&endless, false),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let place = Place { to: At::Unix(path), path: "/x".into() };
        for (answer, good) in cases {
            std::thread::scope(|s| {
                s.spawn(|| {
                    let (mut peer, _) = listener.accept().unwrap();
                    let mut request = [0; 16];
                    io::Read::read_exact(&mut peer, &mut request).unwrap();
                    assert_eq!(&request, b"GET /x HTTP/1.1\r");
                    // who has seen enough closes early
                    let _ = io::Write::write_all(&mut peer, answer.as_bytes());
                });
                assert_eq!(engine::block_on(http(&place)), good, "{:.40}", answer);
            });
        }
    }
}
