//! Exit codes: one enum for all three programs, the units and the documentation.

/// How a program of the suite ends. The numbers above 63 are those of sysexits(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// What was asked for was done.
    Done = 0,
    /// It failed, and no better code says why.
    Failure = 1,
    /// `status`: nothing is running.
    NotRunning = 3,
    /// `status`: running, but not serving as configured.
    Degraded = 4,
    /// The command line is wrong.
    Usage = 64,
    /// Gave up after a crash loop (only if told to by `give_up_after`).
    GaveUp = 69,
    /// A bug of the suite.
    Bug = 70,
    /// The operating system refused something: a port in use, a permission, a limit.
    Os = 71,
    /// Another instance holds the lock.
    LockHeld = 75,
    /// The configuration is wrong.
    Config = 78,
}

impl Exit {
    /// Every code, in the order of their numbers.
    pub const ALL: [Exit; 10] = [
        Exit::Done,
        Exit::Failure,
        Exit::NotRunning,
        Exit::Degraded,
        Exit::Usage,
        Exit::GaveUp,
        Exit::Bug,
        Exit::Os,
        Exit::LockHeld,
        Exit::Config,
    ];

    /// The one that a process has ended with; `None`: it is none of ours.
    pub fn of_code(code: i32) -> Option<Exit> {
        Exit::ALL.into_iter().find(|e| i32::from(e.code()) == code)
    }

    /// The number as the operating system gets it.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// True for ends that the same command would meet again at once: retrying such a child in a storm helps nobody.
    pub fn is_permanent(code: i32) -> bool {
        [Exit::Usage, Exit::Config].iter().any(|e| i32::from(e.code()) == code)
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(e: Exit) -> Self {
        std::process::ExitCode::from(e.code())
    }
}
