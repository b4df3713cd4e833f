//! The fenced part of a spawn: what happens between fork and exec.
//!
//! Everything the child touches was allocated before the fork. It calls only async-signal-safe functions, takes no lock,
//! allocates nothing, never returns: it execs or `_exit`s.

use super::{LISTEN_PID, PID_DIGITS, Prepared, Stage};
use nix::libc;
use std::ffi::{CStr, c_char};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

/// Forks and execs. Returns the pid, and the (stage, errno) at which the child gave up, if it did.
pub(super) fn fork_exec(p: &Prepared) -> io::Result<(i32, Option<(u8, i32)>)> {
    let argv = pointers(&p.argv, None);
    // the child writes the digits of its pid into its own copy of this
    let mut listen_pid = p.listen_pid.clone();
    let at = (!listen_pid.is_empty()).then(|| listen_pid.as_mut_ptr().cast::<c_char>());
    let env = pointers(&p.env, at.map(|p| p.cast_const()));
    let digits = at.map(|p| p.wrapping_add(LISTEN_PID.len()));
    // room for the dance of the fds
    let mut fds = p.fds.clone();
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (mut all, mut before) = (empty_set(), empty_set());
    // SAFETY: both sets are valid; no handler of ours may run in the child before it has reset them.
    unsafe {
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
    }
    // SAFETY: the child only runs `child_main`, which is async-signal-safe.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let e = child_main(p, &argv, &env, digits, &mut fds, write.as_raw_fd());
        let mut bytes = [e.0 as u8, 0, 0, 0, 0];
        bytes[1..].copy_from_slice(&e.1.to_ne_bytes());
        // SAFETY: write(2) of a local buffer, then the end.
        unsafe {
            libc::write(write.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
            libc::_exit(127)
        }
    }
    let fork_error = io::Error::last_os_error();
    // SAFETY: restores the mask read above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut()) };
    if pid < 0 {
        return Err(fork_error);
    }
    drop(write);
    let mut report = [0u8; 5];
    // EOF: the exec closed the pipe
    let failed = File::from(read).read_exact(&mut report).is_ok();
    let errno = i32::from_ne_bytes([report[1], report[2], report[3], report[4]]);
    Ok((pid, failed.then_some((report[0], errno))))
}

fn pointers(list: &[std::ffi::CString], last: Option<*const c_char>) -> Vec<*const c_char> {
    list.iter().map(|s| s.as_ptr()).chain(last).chain([ptr::null()]).collect()
}

fn empty_set() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises what it is given.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// The errno of a failed call, with its stage.
fn failed(stage: Stage) -> (Stage, i32) {
    // SAFETY: the thread's errno is always readable.
    (stage, unsafe { *libc::__errno_location() })
}

/// Returns only on failure.
fn child_main(
    p: &Prepared,
    argv: &[*const c_char],
    env: &[*const c_char],
    digits: Option<*mut c_char>,
    fds: &mut [RawFd],
    mut report: RawFd,
) -> (Stage, i32) {
    // SAFETY: plain system calls on memory that lives until exec; see each line.
    unsafe {
        reset_signals();
        // a group of its own: signals for our terminal or group are not for it
        if libc::setpgid(0, 0) < 0 {
            return failed(Stage::Group);
        }
        if p.cgroup.as_ref().is_some_and(|procs| !write_file(procs, c"0")) {
            return failed(Stage::Cgroup);
        }
        libc::umask(p.umask);
        if let Err(e) = place_fds(p, fds, &mut report) {
            return e;
        }
        if p.cwd.as_ref().is_some_and(|d| libc::chdir(d.as_ptr()) < 0) {
            return failed(Stage::Chdir);
        }
        if let Some((soft, hard)) = p.nofile {
            let lim = libc::rlimit { rlim_cur: soft, rlim_max: hard };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &lim) < 0 {
                return failed(Stage::Limits);
            }
        }
        if let Some(text) = &p.oom_score_adj {
            // lowering it needs a privilege: not having it is no reason not to start
            write_file(c"/proc/self/oom_score_adj", text);
        }
        if p.nice != 0 {
            // added to ours, as nice(2) does; the same goes for a negative one
            let ours = libc::getpriority(libc::PRIO_PROCESS, 0);
            libc::setpriority(libc::PRIO_PROCESS, 0, ours.saturating_add(p.nice));
        }
        if let Some((uid, gid, groups)) = &p.credentials
            && !become_user(*uid, *gid, groups)
        {
            return failed(Stage::Credentials);
        }
        if let Some(at) = digits {
            write_pid(at);
        }
        libc::execve(p.program.as_ptr(), argv.as_ptr(), env.as_ptr());
        failed(Stage::Exec)
    }
}

/// Groups, bounding set, ids, capabilities, and the door shut behind it. False: errno says why.
unsafe fn become_user(uid: libc::uid_t, gid: libc::gid_t, groups: &[libc::gid_t]) -> bool {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    // _LINUX_CAPABILITY_VERSION_3: two words for each of effective, permitted, inheritable
    let (header, none) = (Header { version: 0x2008_0522, pid: 0 }, [0u32; 6]);
    // SAFETY: plain system calls; the C library's own set*id would signal threads, which a child of fork doesn't have.
    unsafe {
        if libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) < 0 {
            return false;
        }
        // numbers beyond the last capability just fail; so does everything where a sandbox took CAP_SETPCAP, and then
        // the two steps at the end have to do
        for capability in 0..64 {
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
        libc::syscall(libc::SYS_setresgid, gid, gid, gid) == 0
            && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
            && libc::syscall(libc::SYS_capset, &header, none.as_ptr()) == 0
            && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    }
}

/// Every signal to its default, none blocked.
unsafe fn reset_signals() {
    // SAFETY: signal(2) and the mask calls are async-signal-safe; numbers that can't be set just fail.
    unsafe {
        for sig in 1..=64 {
            if sig != libc::SIGKILL && sig != libc::SIGSTOP {
                libc::signal(sig, libc::SIG_DFL);
            }
        }
        let none = empty_set();
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
}

/// Moves the fds to 3, 4, … and the stdio to 0, 1, 2; everything else closes at exec.
///
/// In two rounds, since a source may sit where another has to go: first all sources are duplicated above the target
/// range, then down into their places (which clears close-on-exec there).
unsafe fn place_fds(p: &Prepared, fds: &mut [RawFd], report: &mut RawFd) -> Result<(), (Stage, i32)> {
    let top = 3 + fds.len() as RawFd;
    // SAFETY: fcntl, dup2 and close_range take plain numbers; all are open fds of this process's own table copy.
    unsafe {
        let up = |fd: RawFd| match libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, top) {
            n if n < 0 => Err(failed(Stage::Fds)),
            n => Ok(n),
        };
        *report = up(*report)?;
        let mut stdio = p.stdio;
        for fd in stdio.iter_mut().flatten() {
            *fd = up(*fd)?;
        }
        for fd in fds.iter_mut() {
            *fd = up(*fd)?;
        }
        for (target, source) in stdio.iter().enumerate().filter_map(|(i, f)| f.map(|f| (i, f))) {
            if libc::dup2(source, target as RawFd) < 0 {
                return Err(failed(Stage::Fds));
            }
        }
        for (i, &source) in fds.iter().enumerate() {
            if libc::dup2(source, 3 + i as RawFd) < 0 {
                return Err(failed(Stage::Fds));
            }
        }
        // whatever a library opened without close-on-exec goes no further; kernels before 5.11 keep our own discipline
        libc::syscall(libc::SYS_close_range, top, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
    Ok(())
}

/// False: errno says why.
unsafe fn write_file(path: &CStr, text: &CStr) -> bool {
    // SAFETY: open, write and close on memory that outlives them.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return false;
        }
        // not closed: that could change errno, and the fd ends at exec
        libc::write(fd, text.as_ptr().cast(), text.count_bytes()) >= 0
    }
}

/// Writes our pid over the zeros of `LISTEN_PID=`: leading zeros would be fine for a reader, but not for all; so the text
/// is written from the left and ended.
unsafe fn write_pid(at: *mut c_char) {
    // SAFETY: `at` points to PID_DIGITS bytes and a NUL, in this process's own copy of the memory.
    unsafe {
        let mut n = libc::getpid();
        let mut text = [0u8; PID_DIGITS];
        let mut len = 0;
        while n > 0 && len < PID_DIGITS {
            text[len] = b'0' + (n % 10) as u8;
            n /= 10;
            len += 1;
        }
        for i in 0..len {
            *at.add(i) = text[len - 1 - i] as c_char;
        }
        *at.add(len) = 0;
    }
}
