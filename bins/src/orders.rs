//! What a manager says to its server over their channel: a word, with fds.

use crate::suite::take_named;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use supervisor::fd_pass::{self, Message};
use supervisor::listen_fds::Inherited;

/// The name of the server's end among the fds it inherits.
pub const CHANNEL: &str = "channel";

const INBOUND: &str = "inbound";

/// The name under which our end of the channel to a server is stored.
pub fn channel_name(server: i32) -> String {
    format!("{CHANNEL}-{server}")
}

/// The name under which the end is stored from which a retiring server's connections come.
pub fn inbound_name(server: i32) -> String {
    format!("{INBOUND}-{server}")
}

/// Those ends that an earlier manager had.
pub fn take_inbound(inherited: &mut Vec<Inherited>) -> Vec<(i32, OwnedFd)> {
    take_named(inherited, |name| name.strip_prefix(INBOUND)?.strip_prefix('-')?.parse().ok())
}

/// Our ends of channels that an earlier manager had: taken out of what was inherited, each with its server.
pub fn take_channels(inherited: &mut Vec<Inherited>) -> Vec<(i32, OwnedFd)> {
    take_named(inherited, |name| name.strip_prefix(CHANNEL)?.strip_prefix('-')?.parse().ok())
}

/// One order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Serve. Fds: estates to take over, two each.
    Promote,
    /// While serving: take over these estates too.
    Adopt,
    /// Connections that were accepted for you, in their order. [`Order::Promote`] or [`Order::GoOn`] ends a series of these.
    Queued,
    /// Accept nothing for now.
    Hold,
    /// Accept again.
    GoOn,
    /// Stop serving in order. Fd: to whom connections are passed on.
    Retire,
    /// Fd: from whom connections come.
    Heir,
    /// Announce once more what you will leave.
    Introduce,
    /// Say `X_TRAFFIC_PONG` with this number.
    Ping(u32),
}

/// The word of a ping, before its number.
const PING: &[u8] = b"PING ";

/// Those that are one word each.
const ALL: [(Order, &[u8]); 8] = [
    (Order::Promote, b"PROMOTE"),
    (Order::Adopt, b"ADOPT"),
    (Order::Queued, b"QUEUED"),
    (Order::Hold, b"HOLD"),
    (Order::GoOn, b"GO-ON"),
    (Order::Retire, b"RETIRE"),
    (Order::Heir, b"HEIR"),
    (Order::Introduce, b"INTRODUCE"),
];

impl Order {
    /// Gives the order.
    ///
    /// # Errors
    /// Nobody is at the other end, or it doesn't listen.
    pub fn send(self, channel: impl AsFd, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if let Order::Ping(n) = self {
            return fd_pass::send(channel, &[PING, n.to_string().as_bytes()].concat(), fds);
        }
        let word = ALL.iter().find(|(o, _)| *o == self).map_or(&b""[..], |(_, w)| w);
        fd_pass::send(channel, word, fds)
    }

    /// Takes the next order; `None` when nobody is there to give one any more. True: some of its fds are missing, since there was
    /// no room for them here; that happens to [`Order::Queued`] only.
    ///
    /// # Errors
    /// The channel fails, or says what isn't known, or another order is cut off.
    pub fn recv(channel: impl AsFd) -> io::Result<Option<(Order, Vec<OwnedFd>, bool)>> {
        let Some(Message { bytes: word, fds, is_cut }) = fd_pass::recv_what_fits(channel)? else {
            return Ok(None);
        };
        let ping = || std::str::from_utf8(word.strip_prefix(PING)?).ok()?.parse().ok().map(Order::Ping);
        let plain = ALL.iter().find(|(_, w)| *w == word).map(|(order, _)| *order);
        match plain.or_else(ping) {
            Some(order) if is_cut && order != Order::Queued => {
                let why = format!("{order:?} came without all of its fds: there is no room for them");
                Err(io::Error::new(io::ErrorKind::InvalidData, why))
            }
            Some(order) => Ok(Some((order, fds, is_cut))),
            None => {
                let why = format!("an unknown order: {:?}", String::from_utf8_lossy(&word));
                Err(io::Error::new(io::ErrorKind::InvalidData, why))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_arrives_and_others_are_named() {
        let (a, b) = fd_pass::pair().unwrap();
        for order in ALL.map(|(order, _)| order).into_iter().chain([Order::Ping(0), Order::Ping(u32::MAX)]) {
            order.send(&a, &[a.as_fd()]).unwrap();
            let (got, fds, is_cut) = Order::recv(&b).unwrap().unwrap();
            assert_eq!((got, fds.len(), is_cut), (order, 1, false));
        }
        for wrong in ["DANCE", "PING x", "PING"] {
            fd_pass::send(&a, wrong.as_bytes(), &[]).unwrap();
            assert!(Order::recv(&b).unwrap_err().to_string().contains(wrong));
        }
        drop(a);
        assert!(Order::recv(&b).unwrap().is_none());
    }
}
