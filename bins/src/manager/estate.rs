//! What dead servers have left, until the next one has taken it over: the way to the keeper that holds the connections,
//! and the connection table.

use crate::suite;
use proxy::continuity::Table;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use supervisor::identity;
use supervisor::keeper;
use supervisor::listen_fds::Inherited;
use supervisor::notify::Notifier;
use supervisor::pidfd::PidFd;

/// More than these of dead servers mean that servers die faster than the next one can take over; the oldest is given up.
const MAX: usize = 8;
/// Those of servers that live, and finish what they have, included.
const MAX_ALL: usize = 64;

/// How long a keeper may take to close what it has.
const PATIENCE: Duration = Duration::from_millis(500);

/// One server's.
#[derive(Debug)]
struct Estate {
    name: String,
    server: i32,
    keeper: PidFd,
    fds: Vec<OwnedFd>,
    /// Somebody waits for the keeper's word.
    watched: bool,
    /// The server that was told to take it over, 0 for none.
    offered: i32,
}

impl Estate {
    /// Its server, if that lives.
    fn living(&self) -> Option<PidFd> {
        let server = PidFd::open(self.server).ok()?;
        // its keeper began after it: a younger process has only got its number
        let started = |pid| identity::look(pid).map(|l| l.start_time).ok();
        let itself = started(self.server)? <= started(suite::estate_of(&self.name)?.1)?;
        (itself && server.is_alive()).then_some(server)
    }

    fn table(&self) -> Option<Table> {
        Table::open(self.fds.get(1)?.try_clone().ok()?).ok()
    }

    /// Does this server serve what it was offered of it?
    fn is_served_by(&self, server: i32) -> bool {
        self.offered == server && self.table().and_then(|t| t.taken_by()) == Some(server)
    }

    /// Is it a dead manager's?
    fn is_a_queue(&self) -> bool {
        self.table().is_some_and(|t| t.is_of_a_queue())
    }
}

/// All of them, that of the living server included.
#[derive(Debug, Default)]
pub struct Estates(Vec<Estate>);

impl Estates {
    /// What a cop has kept for us: taken out of what was inherited.
    pub fn take(inherited: &mut Vec<Inherited>, cop: &Notifier) -> Estates {
        let mut list = Estates::default();
        let (ours, others): (Vec<_>, Vec<_>) =
            std::mem::take(inherited).into_iter().partition(|i| suite::estate_of(&i.name).is_some());
        *inherited = others;
        for i in ours {
            list.add(&i.name, vec![i.fd], cop);
        }
        list
    }

    /// Keeps what a server has sent: the way to its keeper, and its table. Cop keeps them too. systemd, which keeps cop's, gives
    /// those of one name back in any order.
    pub fn add(&mut self, name: &str, fds: Vec<OwnedFd>, cop: &Notifier) {
        self.add_if(name, fds, cop, is_keeper);
    }

    fn add_if(
        &mut self,
        name: &str,
        mut fds: Vec<OwnedFd>,
        cop: &Notifier,
        is_keeper: impl Fn(i32, i32) -> bool,
    ) {
        if let Some(known) = self.0.iter_mut().find(|e| e.name == name) {
            // one that is announced again is the same
            known.fds.extend(fds.into_iter().take(2_usize.saturating_sub(known.fds.len())));
            return known.fds.sort_by_key(|fd| !is_socket(fd));
        }
        let Some((server, pid)) = suite::estate_of(name) else { return };
        // looked at once we hold it: a number that was kept for long may be another's by now
        let keeper = PidFd::open(pid).and_then(|keeper| match is_keeper(pid, server) {
            true => Ok(keeper),
            false => Err(std::io::Error::other("that is no keeper (any more)")),
        });
        let keeper = match keeper {
            Ok(keeper) => keeper,
            Err(e) => {
                log::info!("event=estate-lost server={server} keeper={pid}: {e}");
                return cop.forget_fds(name);
            }
        };
        fds.sort_by_key(|fd| !is_socket(fd));
        self.0.push(Estate { name: name.to_owned(), server, keeper, fds, watched: false, offered: 0 });
        let is_dead = |e: &Estate| e.living().is_none();
        if self.0.len() > MAX
            && (self.0.iter().filter(|e| is_dead(e)).count() > MAX || self.0.len() > MAX_ALL)
        {
            let oldest = self.0.iter().position(is_dead).unwrap_or(0);
            let oldest = self.0.remove(oldest);
            log::error!("event=estate-given-up server={}: its connections are closed", oldest.server);
            // nobody is told to close it in time: there may be no engine yet
            oldest.kill();
            cop.forget_fds(&oldest.name);
        }
    }

    /// Has cop keep them.
    pub fn store(&self, cop: &Notifier) {
        for e in &self.0 {
            let fds: Vec<_> = e.fds.iter().map(AsFd::as_fd).collect();
            cop.store_fds_first(&e.name, &fds);
        }
    }

    /// Has this server announced what it will leave?
    pub fn has(&self, server: i32) -> bool {
        self.0.iter().any(|e| e.server == server && e.fds.len() == 2)
    }

    /// The way to this server's keeper, for one who waits for its word; `None` if it isn't known, or somebody waits already.
    pub fn way_to_watch(&mut self, server: i32) -> Option<std::io::Result<OwnedFd>> {
        let e = self.0.iter_mut().find(|e| e.server == server && e.fds.len() == 2)?;
        (!std::mem::replace(&mut e.watched, true)).then(|| e.fds[0].try_clone())
    }

    /// Servers that have an estate and live.
    pub fn living(&self) -> Vec<(i32, PidFd)> {
        self.0.iter().filter_map(|e| Some((e.server, e.living()?))).collect()
    }

    /// What the server `heir` is to take over and wasn't offered yet: two fds each. Those of the `living` are no
    /// inheritance yet; while serving is `paused`, connections that have waited in a manager wait on.
    pub fn offer(&mut self, heir: i32, living: &[i32], paused: bool) -> Vec<BorrowedFd<'_>> {
        let mut fds = Vec::new();
        for e in &mut self.0 {
            let dead = e.server != heir && !living.contains(&e.server) && !(paused && e.is_a_queue());
            if dead && e.offered != heir && e.fds.len() == 2 && e.keeper.is_alive() {
                e.offered = heir;
                fds.extend(e.fds.iter().map(AsFd::as_fd));
            }
        }
        fds
    }

    /// Is there something that the server `heir` was offered and hasn't said to have taken over?
    pub fn is_offered(&self, heir: i32) -> bool {
        self.0.iter().any(|e| e.offered == heir)
    }

    /// The server `gone` has ended. In order, if its keeper is gone too: there is nothing to take over.
    pub fn ended(&mut self, gone: i32, cop: &Notifier) {
        self.end_where(cop, |e| e.server == gone && !e.keeper.is_alive());
    }

    /// The server `heir` has taken over everything that it was offered.
    pub fn settled(&mut self, heir: i32, cop: &Notifier) {
        self.end_where(cop, |e| e.offered == heir);
    }

    /// The server `gone` has died, and never said that it had taken over what it was offered: then it has left nothing that was used,
    /// unless it serves what it was offered all the same.
    pub fn unsettled(&mut self, gone: i32, cop: &Notifier) {
        match self.0.iter().any(|e| e.is_served_by(gone)) {
            true => self.end_where(cop, |e| e.is_served_by(gone)),
            false => self.end_where(cop, |e| e.server == gone),
        }
    }

    /// Nobody comes after; no keeper outlives us.
    pub fn end_all(&mut self, cop: &Notifier) {
        let all = std::mem::take(&mut self.0);
        all.iter().for_each(|e| e.close(cop));
        for e in all {
            if !matches!(e.keeper.poll_exit(PATIENCE), Ok(Some(()))) {
                e.kill();
                let _ = e.keeper.poll_exit(PATIENCE);
            }
            let _ = e.keeper.wait();
        }
    }

    fn end_where(&mut self, cop: &Notifier, which: impl Fn(&Estate) -> bool) {
        let (gone, left) = std::mem::take(&mut self.0).into_iter().partition(which);
        self.0 = left;
        let gone: Vec<Estate> = gone;
        gone.into_iter().for_each(|e| e.end(cop));
    }
}

/// Is that the keeper of this server? It is killed when it isn't needed any more, and it is the server that says its number:
/// one that says any other process of ours isn't believed. A keeper that hasn't had a processor yet still has the name of its
/// ward.
fn is_keeper(pid: i32, server: i32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let is_child = || identity::look(pid).is_ok_and(|look| look.parent == server);
    name.trim_end() == keeper::NAME || name.starts_with("traffic_") && is_child()
}

/// The way to a keeper is a socket, a table is none.
fn is_socket(fd: &OwnedFd) -> bool {
    let mode = rustix::fs::fstat(fd).map(|s| s.st_mode);
    mode.is_ok_and(|m| rustix::fs::FileType::from_raw_mode(m) == rustix::fs::FileType::Socket)
}

impl Estate {
    /// Ends the keeper, which closes what nobody has taken over. Nobody waits for that, least of all the next server, since
    /// hundreds of connections to origins take their time; the keeper is reaped with the orphans.
    fn end(self, cop: &Notifier) {
        self.close(cop);
        drop(engine::spawn(async move {
            // one that doesn't hear: it is stopped, or its server lives
            engine::time::sleep(PATIENCE).await;
            self.kill();
        }));
    }

    fn close(&self, cop: &Notifier) {
        // one that can't be told
        if self.fds.first().is_none_or(|way| keeper::end(way).is_err()) {
            self.kill();
        }
        cop.forget_fds(&self.name);
    }

    /// Harmless if the keeper has ended: it is held by pidfd.
    fn kill(&self) {
        let _ = self.keeper.signal(nix::libc::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};

    #[test]
    fn whatever_the_order_they_are_kept_in_the_way_to_the_keeper_comes_first() {
        let nobody = Notifier::from_env().unwrap();
        let me = std::process::id() as i32;
        let pair = || {
            let (socket, _) = supervisor::fd_pass::pair().unwrap();
            (socket, memfd_create("table", MemfdFlags::CLOEXEC).unwrap())
        };
        // a name by name: together, one after the other, and the same the other way round
        for (server, together, reversed) in
            [(1, true, false), (2, true, true), (3, false, false), (4, false, true)]
        {
            let mut list = Estates::default();
            let name = suite::estate_name(server, me);
            let (socket, table) = pair();
            let mut fds = vec![socket, table];
            if reversed {
                fds.reverse();
            }
            match together {
                true => list.add_if(&name, fds, &nobody, |_, _| true),
                false => fds.into_iter().for_each(|fd| list.add_if(&name, vec![fd], &nobody, |_, _| true)),
            }
            let offered = list.offer(99, &[], false);
            let kinds: Vec<bool> =
                offered.iter().map(|fd| is_socket(&fd.try_clone_to_owned().unwrap())).collect();
            assert_eq!(kinds, [true, false], "together {together}, reversed {reversed}");
        }
    }

    #[test]
    fn a_server_serves_what_it_says_it_has_taken_and_was_offered() {
        let (nobody, me) = (Notifier::from_env().unwrap(), std::process::id() as i32);
        let table = Table::create(proxy::continuity::Size { slots: 16, buffers: 1 }).unwrap();
        let (way, _) = supervisor::fd_pass::pair().unwrap();
        let mut list = Estates::default();
        let fds = vec![way, table.as_fd().try_clone_to_owned().unwrap()];
        list.add_if(&suite::estate_name(1, me), fds, &nobody, |_, _| true);
        assert_eq!(list.offer(99, &[], false).len(), 2);
        assert!(!list.0[0].is_served_by(99), "it hasn't begun");
        table.set_taken_by(98);
        assert!(!list.0[0].is_served_by(99) && !list.0[0].is_served_by(98));
        table.set_taken_by(99);
        assert!(list.0[0].is_served_by(99));
    }

    #[test]
    fn a_server_cant_have_anybody_killed_but_keepers() {
        let dir = tempfile::tempdir().unwrap();
        let me = std::process::id() as i32;
        let is = |name: &str, server| {
            let program = dir.path().join(name);
            std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
            let mut child = std::process::Command::new(&program).arg("60").spawn().unwrap();
            // spawn returns before the name has changed
            while !std::fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap().starts_with(name) {
                std::thread::yield_now();
            }
            let is = is_keeper(child.id() as i32, server);
            child.kill().unwrap();
            child.wait().unwrap();
            is
        };
        assert!(is(keeper::NAME, 1), "its ward is dead, and it is somebody else's child");
        assert!(is("traffic_new", me), "it hasn't got its name yet");
        assert!(!is("traffic_server", 1), "another server");
        assert!(!is("sleep", me));
        assert!(!is_keeper(i32::MAX, me));
    }

    #[test]
    fn of_too_many_the_oldest_is_given_up_before_there_is_an_engine_too() {
        let nobody = Notifier::from_env().unwrap();
        let mut keepers: Vec<_> =
            (0..=MAX).map(|_| std::process::Command::new("sleep").arg("60").spawn().unwrap()).collect();
        let mut list = Estates::default();
        for (server, keeper) in keepers.iter().enumerate() {
            let name = suite::estate_name(i32::MAX - server as i32, keeper.id() as i32);
            list.add(&name, Vec::new(), &nobody);
            assert!(!list.0.iter().any(|e| e.name == name), "a sleep is no keeper");
            list.add_if(&name, Vec::new(), &nobody, |_, _| true);
        }
        assert_eq!(list.0.len(), MAX);
        let ended = keepers[0].wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(nix::libc::SIGKILL));
        for keeper in &mut keepers[1..] {
            assert!(keeper.try_wait().unwrap().is_none());
            keeper.kill().unwrap();
            keeper.wait().unwrap();
        }
    }
}
