//! What a manager says to its server over their channel: a word, with fds.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use supervisor::fd_pass;
use supervisor::listen_fds::Inherited;

/// The name of the server's end among the fds it inherits.
pub const CHANNEL: &str = "channel";

/// The name under which our end of the channel to a server is stored.
pub fn channel_name(server: i32) -> String {
    format!("{CHANNEL}-{server}")
}

/// Our ends of channels that an earlier manager had: taken out of what was inherited, each with its server.
pub fn take_channels(inherited: &mut Vec<Inherited>) -> Vec<(i32, OwnedFd)> {
    let server = |i: &Inherited| i.name.strip_prefix(CHANNEL)?.strip_prefix('-')?.parse::<i32>().ok();
    let (ours, others): (Vec<_>, Vec<_>) =
        std::mem::take(inherited).into_iter().partition(|i| server(i).is_some());
    *inherited = others;
    ours.into_iter().filter_map(|i| Some((server(&i)?, i.fd))).collect()
}

/// One order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Serve. Fds: estates to take over, two each.
    Promote,
    /// While serving: take over these estates too.
    Adopt,
    /// Connections that were accepted for you, in their order: before [`Order::Promote`] or while serving.
    Queued,
    /// Accept nothing for now.
    Hold,
    /// Accept again.
    GoOn,
    /// Stop serving in order. Fd: to whom connections are passed on.
    Retire,
    /// Fd: from whom connections come.
    Heir,
}

/// All of them, with their words.
const ALL: [(Order, &[u8]); 7] = [
    (Order::Promote, b"PROMOTE"),
    (Order::Adopt, b"ADOPT"),
    (Order::Queued, b"QUEUED"),
    (Order::Hold, b"HOLD"),
    (Order::GoOn, b"GO-ON"),
    (Order::Retire, b"RETIRE"),
    (Order::Heir, b"HEIR"),
];

impl Order {
    /// Gives the order.
    ///
    /// # Errors
    /// Nobody is at the other end, or it doesn't listen.
    pub fn send(self, channel: impl AsFd, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let word = ALL.iter().find(|(o, _)| *o == self).map_or(&b""[..], |(_, w)| w);
        fd_pass::send(channel, word, fds)
    }

    /// Takes the next order; `None` when nobody is there to give one any more.
    ///
    /// # Errors
    /// The channel fails, or says what isn't known.
    pub fn recv(channel: impl AsFd) -> io::Result<Option<(Order, Vec<OwnedFd>)>> {
        let Some((word, fds)) = fd_pass::recv(channel)? else { return Ok(None) };
        match ALL.iter().find(|(_, w)| *w == word) {
            Some((order, _)) => Ok(Some((*order, fds))),
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
        for (order, _) in ALL {
            order.send(&a, &[a.as_fd()]).unwrap();
            let (got, fds) = Order::recv(&b).unwrap().unwrap();
            assert_eq!((got, fds.len()), (order, 1));
        }
        fd_pass::send(&a, b"DANCE", &[]).unwrap();
        assert!(Order::recv(&b).unwrap_err().to_string().contains("DANCE"));
        drop(a);
        assert!(Order::recv(&b).unwrap().is_none());
    }
}
