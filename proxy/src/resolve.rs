//! Names of origins to addresses: on a thread that may block, remembered for a while by each event thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long an answer is believed: getaddrinfo(3) doesn't tell a TTL.
const REMEMBER: Duration = Duration::from_secs(30);

/// Names that a thread remembers.
const MOST: usize = 4096;

/// Until when an answer is believed, and what it was.
type Remembered = (Instant, Rc<[SocketAddr]>);

thread_local! {
    static KNOWN: RefCell<HashMap<(String, u16), Remembered>> = RefCell::default();
}

/// All addresses of an origin, in the order the resolver gives them.
///
/// # Errors
/// The name is unknown, the resolver doesn't answer, or too many questions wait already.
pub async fn addresses(host: &str, port: u16) -> io::Result<Rc<[SocketAddr]>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(Rc::new([SocketAddr::new(ip, port)]));
    }
    let key = (host.to_owned(), port);
    let now = engine::time::now();
    let remembered =
        KNOWN.with_borrow(|k| k.get(&key).filter(|(until, _)| *until > now).map(|(_, a)| a.clone()));
    if let Some(list) = remembered {
        return Ok(list);
    }
    let question = key.clone();
    let asked =
        engine::blocking::run(move || question.to_socket_addrs().map(|a| a.collect::<Vec<_>>())).await;
    let list: Rc<[SocketAddr]> = asked.map_err(|e| io::Error::other(format!("{e:?}")))??.into();
    if list.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address")));
    }
    KNOWN.with_borrow_mut(|k| {
        // the origins of a configuration are few; the hosts of a forward proxy's clients are not
        if k.len() >= MOST {
            k.retain(|_, (until, _)| *until > now);
        }
        if k.len() < MOST {
            k.insert(key, (now + REMEMBER, list.clone()));
        }
    });
    Ok(list)
}
