//! Scripts for the child machine.

use super::*;

const S: fn(u64) -> Duration = Duration::from_secs;

fn limits() -> Limits {
    Limits {
        start_grace: S(30),
        stop: Rungs { polite: S(20), core: None, kill: S(10) },
        respawn: backoff::Limits { jitter: 0.0, ..backoff::Limits::default() },
    }
}

/// A child, its clock, and a way to write scripts: `c.at(3, Event::Ready(1))`.
struct Script(Child);

impl Script {
    fn new() -> Self {
        Script(Child::new(limits()))
    }
    fn at(&mut self, s: u64, e: Event) -> Action {
        self.0.handle(e, S(s), 0.0)
    }
    /// Wanted, spawned and ready at second 0.
    fn serving() -> Self {
        let mut c = Self::new();
        assert_eq!(c.at(0, Event::WantUp), Action::Spawn);
        assert_eq!(c.at(0, Event::Spawned), Action::Nothing);
        assert_eq!(c.at(0, Event::Ready(1)), Action::Nothing);
        assert_eq!(*c.0.state(), State::Ready { since: S(0) });
        c
    }
}

#[test]
fn a_crash_is_answered_at_once_and_a_loop_is_braked() {
    let mut c = Script::serving();
    for g in 1..=u64::from(backoff::FREE) {
        assert_eq!(c.at(1, Event::Exited(g, false)), Action::Spawn);
        assert_eq!(c.at(1, Event::Spawned), Action::Nothing);
    }
    assert_eq!(c.at(1, Event::Exited(5, false)), Action::Nothing);
    assert_eq!(c.0.state().name(), "backoff");
    assert_eq!(c.at(1, Event::Tick), Action::Nothing);
    assert_eq!(c.at(2, Event::Tick), Action::Spawn);
    assert_eq!(c.0.restarts(), 4, "the sixth one isn't spawned yet");
}

#[test]
fn an_orderly_stop_climbs_the_ladder_and_ends_down() {
    let mut c = Script::serving();
    assert_eq!(c.at(5, Event::WantDown), Action::Send(Rung::Polite));
    assert_eq!(c.at(6, Event::WantDown), Action::Nothing, "a second stop changes nothing");
    assert_eq!(c.at(24, Event::Tick), Action::Nothing);
    assert_eq!(c.at(25, Event::Tick), Action::Send(Rung::Kill));
    assert_eq!(c.at(35, Event::Tick), Action::Send(Rung::Stuck));
    assert_eq!(c.at(99, Event::Exited(1, false)), Action::Nothing);
    assert_eq!(*c.0.state(), State::Down);
}

#[test]
fn start_during_stop_brings_it_back() {
    let mut c = Script::serving();
    assert_eq!(c.at(5, Event::WantDown), Action::Send(Rung::Polite));
    assert_eq!(c.at(6, Event::WantUp), Action::Nothing);
    assert_eq!(c.at(7, Event::Exited(1, false)), Action::Spawn);
    assert_eq!(c.0.crashes(), 0, "an end that was asked for is no crash");
}

#[test]
fn stop_during_launch_stops_what_comes_of_it() {
    let mut c = Script::new();
    assert_eq!(c.at(0, Event::WantUp), Action::Spawn);
    assert_eq!(c.at(0, Event::WantDown), Action::Nothing);
    assert_eq!(c.at(1, Event::Spawned), Action::Send(Rung::Polite));
}

#[test]
fn a_hang_is_killed_without_asking() {
    let mut c = Script::serving();
    assert_eq!(c.at(9, Event::Unhealthy(1)), Action::Send(Rung::Kill));
    assert_eq!(c.at(9, Event::Unhealthy(1)), Action::Nothing, "once");
    assert_eq!(c.at(9, Event::Exited(1, false)), Action::Spawn);
    assert_eq!(c.0.crashes(), 1);
}

#[test]
fn a_start_that_takes_too_long_is_a_hang_unless_it_asked_for_time() {
    let mut c = Script::new();
    assert_eq!(c.at(0, Event::WantUp), Action::Spawn);
    assert_eq!(c.at(0, Event::Spawned), Action::Nothing);
    assert_eq!(c.at(29, Event::Extend(1, S(60))), Action::Nothing);
    assert_eq!(c.at(31, Event::Tick), Action::Nothing);
    assert_eq!(c.0.deadline(), Some(S(89)));
    assert_eq!(c.at(89, Event::Tick), Action::Send(Rung::Kill));
}

#[test]
fn a_watcher_that_was_stopped_gives_the_start_grace_anew() {
    let mut c = Script::new();
    assert_eq!(c.at(0, Event::WantUp), Action::Spawn);
    assert_eq!(c.at(0, Event::Spawned), Action::Nothing);
    assert_eq!(c.at(90, Event::Tick), Action::Nothing, "due at 30: it slept, and blames nobody");
    assert_eq!(c.0.deadline(), Some(S(120)));
    assert_eq!(c.at(120, Event::Tick), Action::Send(Rung::Kill), "now it was there");
}

#[test]
fn a_short_start_grace_is_given_anew_after_a_tenth_of_it() {
    let starting = |grace| {
        let mut c = Child::new(Limits { start_grace: grace, ..limits() });
        assert_eq!(c.handle(Event::WantUp, S(0), 0.0), Action::Spawn);
        assert_eq!(c.handle(Event::Spawned, S(0), 0.0), Action::Nothing);
        c
    };
    let ms = Duration::from_millis;
    for (grace, late) in [(S(1), ms(100)), (S(30), LATE)] {
        let at = grace + late;
        assert_eq!(starting(grace).handle(Event::Tick, at, 0.0), Action::Send(Rung::Kill), "{at:?}");
        assert_eq!(starting(grace).handle(Event::Tick, at + ms(1), 0.0), Action::Nothing, "{at:?} and more");
    }
}

#[test]
fn permanent_errors_are_not_retried_in_a_storm() {
    let mut c = Script::new();
    assert_eq!(c.at(0, Event::WantUp), Action::Spawn);
    assert_eq!(c.at(0, Event::SpawnFailed { permanent: true }), Action::Nothing);
    assert_eq!(c.0.deadline(), Some(S(30)), "the longest wait, at once");
    assert_eq!(c.at(1, Event::WantUp), Action::Spawn, "an operator may ask at any time");
}

#[test]
fn what_an_old_process_did_changes_nothing() {
    let mut c = Script::serving();
    assert_eq!(c.at(1, Event::Exited(1, false)), Action::Spawn);
    assert_eq!(c.at(1, Event::Spawned), Action::Nothing);
    assert_eq!(c.at(2, Event::Ready(1)), Action::Nothing);
    assert_eq!(c.0.state().name(), "starting");
    assert_eq!(c.at(2, Event::Exited(1, false)), Action::Nothing);
    assert_eq!(c.at(2, Event::Unhealthy(1)), Action::Nothing);
    assert_eq!(c.at(2, Event::Extend(1, S(1000))), Action::Nothing);
    assert_eq!(*c.0.state(), State::Starting { since: S(1), until: S(31) });
}

#[test]
fn answers_that_nobody_waits_for_change_nothing() {
    let mut c = Script::serving();
    let adopted = Event::Adopted { ready: false };
    for event in [Event::SpawnFailed { permanent: true }, Event::Spawned, adopted, Event::Extend(1, S(9))] {
        assert_eq!(c.at(1, event), Action::Nothing, "{event:?}");
        assert_eq!((c.0.state(), c.0.generation()), (&State::Ready { since: S(0) }, 1), "{event:?}");
    }
}

#[test]
fn who_has_let_go_of_its_duty_is_followed_at_once_if_somebody_is_wanted() {
    let mut c = Script::serving();
    assert_eq!(c.at(1, Event::Displaced), Action::Spawn);
    assert_eq!(c.at(1, Event::Displaced), Action::Nothing, "the next one isn't there yet");
    assert_eq!(c.at(1, Event::Spawned), Action::Nothing);
    assert_eq!((c.0.generation(), c.0.restarts(), c.0.crashes()), (2, 1, 0));
    let mut c = Script::new();
    assert_eq!(c.at(0, Event::Adopted { ready: true }), Action::Nothing);
    assert!(!c.0.is_wanted());
    assert_eq!(c.at(1, Event::Displaced), Action::Nothing);
    assert_eq!(c.at(1, Event::WantUp), Action::Nothing);
    assert!(c.0.is_wanted());
}

#[test]
fn new_numbers_hold_for_what_is_not_under_way() {
    let mut c = Script::serving();
    c.0.set_limits(Limits { start_grace: S(7), ..limits() });
    assert_eq!(c.at(1, Event::Exited(1, false)), Action::Spawn);
    assert_eq!(c.at(2, Event::Spawned), Action::Nothing);
    c.0.set_limits(limits());
    assert_eq!((c.0.deadline(), c.0.limits().start_grace), (Some(S(9)), S(30)));
    let mut respawn = limits().respawn;
    respawn.max = S(3);
    c.0.set_limits(Limits { respawn, ..limits() });
    assert_eq!(c.at(3, Event::Exited(2, true)), Action::Nothing);
    assert_eq!(c.0.deadline(), Some(S(6)));
}

#[test]
fn a_hang_after_long_service_is_a_first_crash() {
    let mut c = Script::serving();
    for g in 1..=3 {
        assert_eq!(c.at(0, Event::Exited(g, false)), Action::Spawn);
        assert_eq!(c.at(0, Event::Spawned), Action::Nothing);
    }
    assert_eq!(c.at(0, Event::Ready(4)), Action::Nothing);
    assert_eq!(c.0.crashes(), 3);
    assert_eq!(c.at(60, Event::Unhealthy(4)), Action::Send(Rung::Kill));
    assert_eq!(c.at(60, Event::Exited(4, false)), Action::Spawn);
    assert_eq!(c.0.crashes(), 1);
}

#[test]
fn an_adopted_process_serves_and_its_death_is_a_crash() {
    let mut c = Script::new();
    assert_eq!(c.at(0, Event::Adopted { ready: true }), Action::Nothing);
    assert_eq!(c.at(0, Event::WantUp), Action::Nothing);
    assert_eq!(c.0.state().name(), "ready");
    assert_eq!(c.at(1, Event::Exited(1, false)), Action::Spawn);
    // one that isn't ready has its time to be
    let mut c = Script::new();
    assert_eq!(c.at(100, Event::Adopted { ready: false }), Action::Nothing);
    assert_eq!(c.0.deadline(), Some(S(130)));
    // and one that was seen starting before has what is left of it
    let mut c = Script::new();
    assert_eq!(c.at(100, Event::AdoptedStarting { since: S(80), until: S(110) }), Action::Nothing);
    assert_eq!(c.at(100, Event::WantUp), Action::Nothing);
    assert_eq!((c.0.state().name(), c.0.deadline()), ("starting", Some(S(110))));
    assert_eq!(c.at(110, Event::Tick), Action::Send(Rung::Kill));
}

#[test]
fn giving_up_is_said_once_and_an_operator_can_start_again() {
    let mut l = limits();
    l.respawn.give_up_after = 1;
    let mut c = Script(Child::new(l));
    assert_eq!(c.at(0, Event::WantUp), Action::Spawn);
    assert_eq!(c.at(0, Event::SpawnFailed { permanent: false }), Action::Spawn);
    assert_eq!(c.at(0, Event::SpawnFailed { permanent: false }), Action::AnnounceGaveUp);
    assert_eq!(c.at(9, Event::Tick), Action::Nothing);
    assert_eq!(c.at(9, Event::WantUp), Action::Spawn);
}

#[test]
fn restart_ends_in_order_and_starts_at_once() {
    let mut c = Script::serving();
    assert_eq!(c.at(1, Event::Restart), Action::Send(Rung::Polite));
    assert_eq!(c.at(2, Event::Exited(1, false)), Action::Spawn);
    assert_eq!(c.0.crashes(), 0);
}
