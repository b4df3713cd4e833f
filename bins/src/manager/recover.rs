//! Listeners that nobody has kept for us: cop and manager were killed together, and no init had a store of cop's. The server
//! that goes on serving has them, and is asked for them.

use super::listeners::stored_name;
use crate::config::Config;
use crate::suite::Runtime;
use crate::ward::Ward;
use rustix::event::{PollFd, PollFlags, poll};
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
    if !config.server.command.is_empty() || !missing(inherited) {
        return;
    }
    let Ok(Some(server)) = Ward::of_lock(&runtime.lock("server"), 0) else { return };
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
                    let _ = server.signal(nix::libc::SIGKILL);
                    return;
                }
                let time = clock::timespec(left);
                let _ = poll(&mut [PollFd::new(notify, PollFlags::IN)], Some(&time));
            }
            Err(e) => return log::warn!("event=recover-failed pid={}: {e}", server.pid),
        }
    }
    log::info!("event=recovered listeners={} from={}", inherited.len(), server.pid);
}
