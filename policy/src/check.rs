//! Cop's check of the two programs, in the order of `check_programs` in Traffic Server's `traffic_cop`.
//!
//! ```text
//!  1. manager lock free            -> adopt: spawn a manager (it adopts the server); kill: safe-kill the server first
//!  2. manager lock held by a dead pid (its keeper hasn't let go, or a stray shares its fds) -> kill strays, look again
//!  3. manager's heartbeat failed   -> kill the manager
//!  4. is the server meant to be up? no -> done
//!  5. server lock free twice in a row  -> the manager isn't doing its job: kill the manager's group
//!  6. server's heartbeat failed    -> kill the server; the manager respawns it
//! ```
//!
//! Invariants: one verdict a check; no verdict against a process that is within its start grace; no verdict names a
//! process on other evidence than its own lock or its own heartbeat.

/// Who holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Nobody.
    Free,
    /// A process that lives.
    Held,
    /// A pid that is no more: a shared fd table keeps the lock.
    HeldByDead,
    /// It could not be asked; no verdict rests on it.
    Unknown,
}

/// What the heartbeat of a process has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulse {
    /// It answers, or it has not failed often enough, or it isn't asked.
    Fine,
    /// The verdict of its heartbeat.
    Failed,
}

/// What to do when the manager is gone while the server lives (`cop.on_manager_death`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnManagerDeath {
    /// The server goes on; the next manager adopts it.
    Adopt,
    /// As Traffic Server does: the server dies too.
    Kill,
}

/// All that a check looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// The manager's lock.
    pub manager: Lock,
    /// A spawned manager has not become ready yet, or its respawn is braked: it may hold no lock.
    pub manager_starting: bool,
    /// The manager's heartbeat.
    pub manager_pulse: Pulse,
    /// Is the server meant to be up (as the manager says)?
    pub server_wanted: bool,
    /// The server's lock.
    pub server: Lock,
    /// The server's heartbeat.
    pub server_pulse: Pulse,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// All is as it should be, or it is too early to say.
    Nothing,
    /// Start a manager.
    SpawnManager,
    /// Make sure that the server is dead, then start a manager.
    KillServerThenSpawnManager,
    /// End what still holds the manager's lock for a dead pid.
    KillManagerStrays,
    /// Kill the manager: it doesn't answer.
    KillManager,
    /// Kill the manager and its group: there's no server, and it doesn't mind.
    KillManagerGroup,
    /// Kill the server: it doesn't answer.
    KillServer,
}

/// The check's memory: only what "twice in a row" needs.
#[derive(Debug, Clone, Default)]
pub struct Check {
    server_free_before: bool,
    manager_dead_before: bool,
}

impl Check {
    /// There is another server since the last check: what was seen of the one before says nothing of it.
    pub fn another_server(&mut self) {
        self.server_free_before = false;
    }

    /// One check.
    pub fn programs(&mut self, o: &Observation, on_manager_death: OnManagerDeath) -> Verdict {
        let server_free_before = std::mem::take(&mut self.server_free_before);
        let manager_dead_before = std::mem::take(&mut self.manager_dead_before);
        if o.manager_starting {
            return Verdict::Nothing;
        }
        match o.manager {
            Lock::Unknown => return Verdict::Nothing,
            Lock::Free if on_manager_death == OnManagerDeath::Kill && o.server == Lock::Held => {
                return Verdict::KillServerThenSpawnManager;
            }
            Lock::Free => return Verdict::SpawnManager,
            Lock::HeldByDead if manager_dead_before => return Verdict::KillManagerStrays,
            Lock::HeldByDead => {
                self.manager_dead_before = true;
                return Verdict::Nothing;
            }
            Lock::Held => {}
        }
        if o.manager_pulse == Pulse::Failed {
            return Verdict::KillManager;
        }
        if !o.server_wanted {
            return Verdict::Nothing;
        }
        match o.server {
            Lock::Free if server_free_before => Verdict::KillManagerGroup,
            Lock::Free => {
                self.server_free_before = true;
                Verdict::Nothing
            }
            Lock::Held if o.server_pulse == Pulse::Failed => Verdict::KillServer,
            Lock::Held | Lock::HeldByDead | Lock::Unknown => Verdict::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Observation = Observation {
        manager: Lock::Held,
        manager_starting: false,
        manager_pulse: Pulse::Fine,
        server_wanted: true,
        server: Lock::Held,
        server_pulse: Pulse::Fine,
    };

    /// The verdicts of two checks in a row with the same observation.
    fn twice(o: Observation, how: OnManagerDeath) -> [Verdict; 2] {
        let mut c = Check::default();
        [c.programs(&o, how), c.programs(&o, how)]
    }

    #[test]
    fn each_row_of_the_table() {
        use Verdict::*;
        let adopt = |o| twice(o, OnManagerDeath::Adopt);
        assert_eq!(adopt(GOOD), [Nothing, Nothing]);
        assert_eq!(adopt(Observation { manager: Lock::Free, ..GOOD }), [SpawnManager; 2]);
        assert_eq!(adopt(Observation { manager: Lock::HeldByDead, ..GOOD }), [Nothing, KillManagerStrays]);
        assert_eq!(adopt(Observation { manager: Lock::Unknown, ..GOOD }), [Nothing; 2]);
        assert_eq!(adopt(Observation { manager_pulse: Pulse::Failed, ..GOOD }), [KillManager; 2]);
        assert_eq!(adopt(Observation { server: Lock::Free, ..GOOD }), [Nothing, KillManagerGroup]);
        assert_eq!(adopt(Observation { server_pulse: Pulse::Failed, ..GOOD }), [KillServer; 2]);
        let unwanted = Observation { server_wanted: false, server: Lock::Free, ..GOOD };
        assert_eq!(adopt(unwanted), [Nothing; 2]);
        let starting = Observation { manager_starting: true, manager: Lock::Free, ..GOOD };
        assert_eq!(adopt(starting), [Nothing; 2]);
    }

    #[test]
    fn the_classic_way_kills_the_server_first_if_there_is_one() {
        let gone = Observation { manager: Lock::Free, ..GOOD };
        assert_eq!(twice(gone, OnManagerDeath::Kill), [Verdict::KillServerThenSpawnManager; 2]);
        let both = Observation { server: Lock::Free, ..gone };
        assert_eq!(twice(both, OnManagerDeath::Kill), [Verdict::SpawnManager; 2]);
    }

    #[test]
    fn twice_in_a_row_means_in_a_row() {
        let mut c = Check::default();
        let free = Observation { server: Lock::Free, ..GOOD };
        let how = OnManagerDeath::Adopt;
        assert_eq!(c.programs(&free, how), Verdict::Nothing);
        assert_eq!(c.programs(&GOOD, how), Verdict::Nothing);
        assert_eq!(c.programs(&free, how), Verdict::Nothing);
        assert_eq!(c.programs(&free, how), Verdict::KillManagerGroup);
        // a look at each of two replacements that were under way is none at a manager that doesn't mind
        assert_eq!(c.programs(&free, how), Verdict::Nothing);
        c.another_server();
        assert_eq!(c.programs(&free, how), Verdict::Nothing);
    }

    #[test]
    fn every_observation_obeys_the_invariants() {
        use Lock::*;
        let bools = [false, true];
        let pulses = [Pulse::Fine, Pulse::Failed];
        let locks = [Free, Held, HeldByDead, Unknown];
        for manager in locks {
            for server in locks {
                for manager_starting in bools {
                    for server_wanted in bools {
                        for manager_pulse in pulses {
                            for server_pulse in pulses {
                                let o = Observation {
                                    manager,
                                    manager_starting,
                                    manager_pulse,
                                    server_wanted,
                                    server,
                                    server_pulse,
                                };
                                for how in [OnManagerDeath::Adopt, OnManagerDeath::Kill] {
                                    for v in twice(o, how) {
                                        invariants(&o, v);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn invariants(o: &Observation, v: Verdict) {
        match v {
            Verdict::Nothing => {}
            Verdict::SpawnManager => assert_eq!(o.manager, Lock::Free, "{o:?}"),
            Verdict::KillServerThenSpawnManager => {
                assert_eq!((o.manager, o.server), (Lock::Free, Lock::Held), "{o:?}");
            }
            Verdict::KillManagerStrays => assert_eq!(o.manager, Lock::HeldByDead, "{o:?}"),
            Verdict::KillManager => {
                assert_eq!((o.manager, o.manager_pulse), (Lock::Held, Pulse::Failed), "{o:?}")
            }
            Verdict::KillManagerGroup => assert!(o.server == Lock::Free && o.server_wanted, "{o:?}"),
            Verdict::KillServer => {
                assert_eq!((o.server, o.server_pulse), (Lock::Held, Pulse::Failed), "{o:?}")
            }
        }
        if o.manager_starting {
            assert_eq!(v, Verdict::Nothing, "no verdict during start grace: {o:?}");
        }
    }
}
