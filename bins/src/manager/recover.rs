//! Listeners that nobody has kept for us: cop and manager were killed together, and no init had a store of cop's. The server
//! that goes on serving has them, and is asked for them; from one that isn't ours they are taken (pidfd_getfd(2)).

use super::listeners::{is_bound_to, stored_name};
use crate::config::{Config, Listen};
use crate::suite::Runtime;
use crate::ward::Ward;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::getsockname;
use rustix::net::sockopt::socket_acceptconn;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;
use supervisor::clock;
use supervisor::listen_fds::Inherited;
use supervisor::notify::NotifySocket;
use supervisor::signals::SIGHUP;

/// A server that hasn't answered after this long hangs.
const PATIENCE: Duration = Duration::from_secs(2);

/// Gets what is missing from the server that runs, if one of ours does. One that doesn't answer is killed: it hangs, and the
/// ports couldn't be had while it lives.
pub fn listeners(config: &Config, runtime: &Runtime, notify: &NotifySocket, inherited: &mut Vec<Inherited>) {
    let wanted: Vec<String> = config.server.listen.iter().map(stored_name).collect();
    let missing = |inherited: &[Inherited]| wanted.iter().any(|w| !inherited.iter().any(|i| i.name == *w));
    if !missing(inherited) {
        return;
    }
    let Ok(Some(server)) = Ward::of_server(config, runtime, 0) else { return };
    if !config.server.is_ours() {
        inherited.extend(taken(config, &server, inherited));
        if missing(inherited) {
            log::warn!(
                "event=kill of=server pid={}: it has our listeners, and we can't have them",
                server.pid
            );
            end(&server);
        }
        return log::info!("event=recovered listeners={} from={}", inherited.len(), server.pid);
    }
    if let Err(e) = server.signal(SIGHUP) {
        return log::warn!("event=recover-failed pid={}: {e}", server.pid);
    }
    let until = clock::now() + PATIENCE;
    while missing(inherited) && !server.has_ended() {
        match notify.recv() {
            Ok(Some(d)) if d.pid == server.pid => {
                let name = d.message.fd_name().map(str::to_owned).filter(|n| wanted.contains(n));
                // whatever else it says, it says again to who adopts it
                inherited.extend(name.zip(d.fds.into_iter().next()).map(|(name, fd)| Inherited { name, fd }));
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                let left = until.saturating_sub(clock::now());
                if left.is_zero() {
                    log::warn!("event=kill of=server pid={}: it hangs, and has our listeners", server.pid);
                    return end(&server);
                }
                let time = clock::timespec(left);
                let _ = poll(&mut [PollFd::new(notify, PollFlags::IN)], Some(&time));
            }
            Err(e) => return log::warn!("event=recover-failed pid={}: {e}", server.pid),
        }
    }
    log::info!("event=recovered listeners={} from={}", inherited.len(), server.pid);
}

/// The listeners that we lack, from among all that the process has open.
fn taken(config: &Config, server: &Ward, have: &[Inherited]) -> Vec<Inherited> {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", server.pid)).into_iter().flatten().flatten();
    let is_socket = |path: &Path| {
        std::fs::read_link(path).is_ok_and(|to| to.as_os_str().as_bytes().starts_with(b"socket:"))
    };
    let numbers =
        fds.filter(|fd| is_socket(&fd.path())).filter_map(|fd| fd.file_name().to_str()?.parse().ok());
    let mut sockets: Vec<OwnedFd> = numbers.filter_map(|fd| server.duplicate(fd).ok()).collect();
    sockets.retain(|fd| socket_acceptconn(fd).unwrap_or(false));
    let lacking = config.server.listen.iter().map(|l| (l, stored_name(l)));
    let lacking = lacking.filter(|(_, name)| !have.iter().any(|i| i.name == *name));
    let found = lacking.filter_map(|(l, name)| {
        let at = sockets.iter().position(|fd| is_bound_to(fd, l) || is_any_port_of(fd, l))?;
        Some(Inherited { name, fd: sockets.swap_remove(at) })
    });
    found.collect()
}

fn is_any_port_of(fd: &OwnedFd, wanted: &Listen) -> bool {
    let bound = getsockname(fd).ok().and_then(|a| SocketAddr::try_from(a).ok());
    matches!((wanted, bound), (Listen::Tcp(w), Some(b)) if w.port() == 0 && w.ip() == b.ip())
}

/// Its ports can't be had before it has ended.
fn end(server: &Ward) {
    let _ = server.signal(nix::libc::SIGKILL);
    let _ = server.pidfd().poll_exit(PATIENCE);
}
