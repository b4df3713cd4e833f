//! `traffic_manager top`: the suite, live, on a terminal.
//!
//! One thread looks, as slowly as what it looks at answers; the other draws and hears keys, so that a manager that hangs
//! doesn't keep anybody from leaving. Read in this order: this file, [`snapshot`] (what is seen), [`view`] (how it is shown).

pub mod snapshot;
pub mod view;

use crate::cli::Common;
use crate::exit::Exit;
use crate::logging::Fatal;
use anyhow::Context;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::terminal::disable_raw_mode;
use rustix::event::{PollFd, PollFlags, poll};
use snapshot::{Snapshot, Watcher};
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use supervisor::signals::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, Signals};
use view::Choice;

/// How long a key or a signal waits at most.
const TICK: Duration = Duration::from_millis(100);
/// How long the terminal may take to be put back after a signal.
const PATIENCE: Duration = Duration::from_secs(1);
/// The shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(100);

/// Shows the suite until `q`, Ctrl-C or a signal.
///
/// # Errors
/// There is no terminal, or it fails; the configuration leaves it in doubt which suite is meant.
pub fn run(common: &Common, every: Duration) -> anyhow::Result<Exit> {
    let usage = |why: &str| Err(Fatal::new(Exit::Usage, why).into());
    let config = common.load_to_ask()?;
    if !std::io::stdout().is_terminal() || std::env::var_os("TERM").is_some_and(|t| t == "dumb") {
        return usage(
            "top needs a terminal; traffic_manager status says the same, and traffic_cop status in short",
        );
    }
    if every < SHORTEST {
        return usage("--every: at least 100ms");
    }
    let mut signals = Signals::catch(&[SIGTERM, SIGHUP, SIGINT, SIGQUIT])?;
    let (ours, theirs) = channel();
    let (ending, ended) = channel::<()>();
    let watcher = Watcher::new(config);
    std::thread::Builder::new().name("watch".into()).spawn(move || watch(watcher, every, &ours, &ended))?;
    let (leaving, left) = channel::<()>();
    let asked = signals.as_fd().try_clone_to_owned()?;
    std::thread::Builder::new().name("leave".into()).spawn(move || leave(&asked, &left))?;
    // from here on a panic, too, puts the terminal back
    let mut screen = Screen(ratatui::try_init().context("preparing the terminal")?);
    let shown = show(&mut screen.0, &theirs, &mut signals);
    drop(ending);
    // this may take as long as the terminal likes
    drop(screen);
    drop(leaving);
    shown
}

/// After a signal: a terminal that takes nothing (stopped by Ctrl-S, or of a connection that hangs) has no other way out, as
/// drawing waits for it.
fn leave(asked: &OwnedFd, left: &Receiver<()>) {
    let _ = poll(&mut [PollFd::new(asked, PollFlags::IN)], None);
    if left.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
        let _ = disable_raw_mode();
        std::process::exit(Exit::Done.code().into());
    }
}

/// Puts the terminal back as it was.
struct Screen(DefaultTerminal);

impl Drop for Screen {
    fn drop(&mut self) {
        // it may be gone
        let _ = ratatui::try_restore();
    }
}

/// Looks every so often, until nobody wants it any more.
fn watch(mut watcher: Watcher, every: Duration, to: &Sender<Snapshot>, ended: &Receiver<()>) {
    while to.send(watcher.look()).is_ok() {
        if ended.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

fn show(
    terminal: &mut DefaultTerminal,
    from: &Receiver<Snapshot>,
    signals: &mut Signals,
) -> anyhow::Result<Exit> {
    let mut choice = Choice::default();
    let mut last = Snapshot { state: "looking".into(), ..Snapshot::default() };
    let mut changed = true;
    loop {
        while let Ok(next) = from.try_recv() {
            choice.remember(&next);
            last = next;
            changed = true;
        }
        if changed {
            terminal.draw(|frame| view::draw(frame, &last, &choice)).context("drawing")?;
        }
        changed = event::poll(TICK).context("waiting for a key")?;
        if changed && !act(&event::read().context("reading a key")?, &mut choice) {
            return Ok(Exit::Done);
        }
        if !signals.pending().is_empty() {
            return Ok(Exit::Done);
        }
    }
}

/// Does what a key says; false: to leave.
fn act(event: &Event, choice: &mut Choice) -> bool {
    let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else { return true };
    match code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('t') => choice.threads = !choice.threads,
        KeyCode::Char('s') => choice.sort = choice.sort.next(),
        _ => {}
    }
    true
}
