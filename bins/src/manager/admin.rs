//! `manager.admin`: questions over TCP. Whoever has taken the address while a manager was dead has it: everything else goes on
//! without, and it is tried again every now and then.

use super::control::{MAX_CONNECTIONS, connection};
use super::keep::Keep;
use crate::exit::Exit;
use crate::logging::Fatal;
use engine::net::Listener;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

/// As the standard library's.
const BACKLOG: i32 = 128;
/// Between two attempts at an address that somebody else has, at first and at most.
const SOON: Duration = Duration::from_millis(500);
const SELDOM: Duration = Duration::from_secs(30);

/// A socket that listens on the admin address, or is to as soon as it can.
#[derive(Debug)]
pub struct Admin {
    addr: SocketAddr,
    socket: OwnedFd,
    listens: bool,
}

impl Admin {
    /// Listens on the address. Where the suite `goes_on`, its failure is said, and is no reason for no manager.
    ///
    /// # Errors
    /// The address can't be had at a start of the suite.
    pub fn take(addr: SocketAddr, goes_on: bool) -> Result<Admin, Fatal> {
        let failed =
            |e: io::Error| Fatal::new(Exit::Os, format!("cannot listen on manager.admin {addr}: {e}"));
        let mut admin = Admin { addr, socket: socket(addr).map_err(failed)?, listens: false };
        match admin.try_listen() {
            Err(e) if goes_on => {
                log::warn!("event=admin-failed listen={addr}: {e}; it is tried again every now and then");
                Ok(admin)
            }
            other => other.map(|()| admin).map_err(failed),
        }
    }

    fn try_listen(&mut self) -> io::Result<()> {
        match bind(&self.socket, &self.addr) {
            // bound by an earlier attempt, after which somebody else listened
            Err(Errno::INVAL) => {}
            other => other?,
        }
        listen(&self.socket, BACKLOG)?;
        self.listens = true;
        Ok(())
    }
}

impl AsFd for Admin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn socket(addr: SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    Ok(socket)
}

/// Answers read-only questions over TCP, for ever.
pub async fn serve(keep: Rc<Keep>, mut admin: Admin) {
    let mut pause = SOON;
    while !admin.listens {
        engine::time::sleep(pause).await;
        pause = (pause * 2).min(SELDOM);
        if let Err(e) = admin.try_listen() {
            log::debug!("event=admin-failed listen={}: {e}", admin.addr);
        }
    }
    let listener = match Listener::from_fd(admin.socket) {
        Ok(l) => l,
        Err(e) => return log::error!("event=admin-failed: {e}"),
    };
    if let Some(addr) = listener.local_addr() {
        log::info!("event=admin listen={addr}");
    }
    let live = Rc::new(());
    loop {
        match listener.accept().await {
            Ok((stream, _)) if Rc::strong_count(&live) > MAX_CONNECTIONS => drop(stream),
            Ok((stream, _)) => {
                let (keep, guard) = (keep.clone(), live.clone());
                drop(engine::spawn(async move {
                    connection(keep, stream, true).await;
                    drop(guard);
                }));
            }
            Err(e) => {
                log::warn!("event=admin-accept-failed: {e}");
                engine::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
