//! Who has a port: for the message that says that it can't be had.

use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{FDTarget, Process, all_processes};
use std::net::SocketAddr;

/// The process that listens on this address, or on all addresses of its port: pid and name. `None`: nobody does, or its
/// process isn't ours to look at.
pub fn listener_on(addr: SocketAddr) -> Option<(i32, String)> {
    // not /proc/net, which may be hidden (`ProcSubset=pid`)
    let me = Process::myself().ok()?;
    let entries = me.tcp().into_iter().chain(me.tcp6()).flatten();
    let in_the_way = |e: &TcpNetEntry| {
        let (theirs, ours) = (e.local_address, addr);
        e.state == TcpState::Listen
            && theirs.port() == ours.port()
            && (theirs.ip() == ours.ip() || theirs.ip().is_unspecified() || ours.ip().is_unspecified())
    };
    let inodes: Vec<u64> = entries.filter(in_the_way).map(|e| e.inode).collect();
    if inodes.is_empty() {
        return None;
    }
    let has = |p: &procfs::process::Process| {
        let mut fds = p.fd().into_iter().flatten().flatten();
        fds.any(|fd| matches!(fd.target, FDTarget::Socket(inode) if inodes.contains(&inode)))
    };
    let process = all_processes().ok()?.flatten().find(has)?;
    Some((process.pid, process.stat().map(|s| s.comm).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_port_has_a_name_while_somebody_listens() {
        let l = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = l.local_addr().unwrap();
        let me = std::process::id() as i32;
        assert_eq!(listener_on(addr).unwrap().0, me);
        assert_eq!(listener_on(format!("0.0.0.0:{}", addr.port()).parse().unwrap()).unwrap().0, me);
        drop(l);
        // a child that another test has just forked may have it for a moment
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while listener_on(addr).is_some() {
            assert!(std::time::Instant::now() < until);
            std::thread::yield_now();
        }
    }
}
