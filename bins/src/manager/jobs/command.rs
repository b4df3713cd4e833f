//! What may be asked of jobs over the control socket.
//!
//! | request | answer |
//! |---|---|
//! | `GET /jobs` | all of them, as JSON |
//! | `POST /jobs/NAME/start`, `stop`, `restart` | when it has happened, or why it hasn't; `restart` is one worker after the other |
//! | `POST /jobs/NAME/disable`, `enable` | it is down, and stays so over restarts of the suite; or it is ready again |
//! | `POST /jobs/NAME/want?n=N` | other workers are started or stopped |
//! | `POST /jobs/NAME/signal?signal=HUP` | how many got it |
//! | `POST /jobs/NAME/wait-ready` | when all its workers are ready |
//! | `GET /jobs/NAME/tail?from=N` | its last lines, from number N on, as soon as there is one; the first line is the next number |
//! | `GET /events?from=N` | transitions, one JSON object a line, in the same way |

use super::{Job, Worker};
use crate::config::job::MAX_WORKERS;
use crate::config::value::{self, Raw};
use crate::manager::keep::Keep;
use http::{Method, StatusCode};
use serde_json::Value;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// How long somebody who follows waits for something new.
const FOLLOW: Duration = Duration::from_secs(20);

/// An answer: status and text.
pub type Answer = (StatusCode, String);

const OK: StatusCode = StatusCode::OK;

/// Answers what is asked of jobs; `None`: it is about something else.
pub async fn answer(keep: &Rc<Keep>, method: &Method, path: &str, query: &str) -> Option<Answer> {
    let parameter = |name: &str| {
        query
            .split('&')
            .filter_map(|p| p.split_once('='))
            .find(|(k, _)| *k == name)
            .map(|(_, v)| v.to_owned())
    };
    let get = method == Method::GET;
    if path == "/jobs" {
        return Some(only(get).unwrap_or_else(|| (OK, format!("{}\n", Value::from(keep.jobs_status())))));
    }
    let from = || parameter("from").and_then(|n| n.parse().ok());
    if path == "/events" {
        return Some(match only(get) {
            Some(wrong) => wrong,
            None => events(keep, from()).await,
        });
    }
    let (name, verb) = path.strip_prefix("/jobs/")?.split_once('/')?;
    let Some(job) = keep.job(name) else {
        let known: Vec<String> = keep.jobs.borrow().list.iter().map(|j| j.name.clone()).collect();
        let why = format!("there is no job {name:?}; there are: {}\n", known.join(", "));
        return Some((StatusCode::NOT_FOUND, why));
    };
    if let Some(wrong) = only(get == (verb == "tail")) {
        return Some(wrong);
    }
    if keep.is_stopping() && verb != "tail" {
        return Some((StatusCode::CONFLICT, "the suite is being stopped\n".into()));
    }
    Some(match verb {
        "start" | "restart" | "wait-ready" if !job.enabled.get() => {
            (StatusCode::CONFLICT, format!("{name} is disabled: traffic_manager enable {name}\n"))
        }
        "enable" => enable(keep, &job).await,
        "disable" => disable(keep, &job).await,
        "start" if !job.call.is_awake() => {
            job.up.set(true);
            keep.wake_job(&job, "start");
            wait_started(keep, &job).await
        }
        "start" => {
            job.up.set(true);
            // one that has given up, or waits for its next try, tries again at once
            keep.begin_anew(&job);
            keep.settle_jobs();
            wait_started(keep, &job).await
        }
        "stop" => {
            stop(keep, &job);
            wait_down(keep, &job).await
        }
        "restart" => {
            job.up.set(true);
            keep.begin_anew(&job);
            match keep.roll_now(&job).await {
                Ok(()) => wait_started(keep, &job).await,
                Err(why) => (StatusCode::INTERNAL_SERVER_ERROR, why),
            }
        }
        "wait-ready" => wait_ready(keep, &job, Worker::is_over).await,
        "want" => match parameter("n").and_then(|n| n.parse().ok()).filter(|n| *n <= MAX_WORKERS as usize) {
            Some(n) => want(keep, &job, n),
            None => (StatusCode::BAD_REQUEST, format!("n has to be 0 to {MAX_WORKERS}\n")),
        },
        "signal" => signal(&job, parameter("signal").as_deref().unwrap_or("")),
        "tail" => tail(keep, &job, from()).await,
        _ => (StatusCode::NOT_FOUND, format!("{verb}: no such command for a job\n")),
    })
}

fn only(allowed: bool) -> Option<Answer> {
    (!allowed)
        .then(|| (StatusCode::METHOD_NOT_ALLOWED, "GET is for questions, POST for commands\n".to_owned()))
}

fn stop(keep: &Rc<Keep>, job: &Rc<Job>) {
    job.up.set(false);
    keep.sleep_job(job, "stopped");
    keep.settle_jobs();
}

async fn enable(keep: &Rc<Keep>, job: &Rc<Job>) -> Answer {
    let note = match keep.remember_disabled(job, false).await {
        Ok(note) => note,
        Err(why) => return (StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
    };
    if !job.enabled.replace(true) {
        job.up.set(job.config.borrow().autostart);
    }
    keep.settle_jobs();
    let (code, text) = match job.up.get() {
        true => wait_started(keep, job).await,
        false => (OK, format!("{} may be started\n", job.name)),
    };
    (code, format!("{note}{text}"))
}

async fn disable(keep: &Rc<Keep>, job: &Rc<Job>) -> Answer {
    let note = match keep.remember_disabled(job, true).await {
        Ok(note) => note,
        Err(why) => return (StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
    };
    job.enabled.set(false);
    stop(keep, job);
    let (code, text) = wait_down(keep, job).await;
    (code, format!("{note}{text}"))
}

fn want(keep: &Rc<Keep>, job: &Job, workers: usize) -> Answer {
    if let Err(why) = job.config.borrow().may_have(workers) {
        return (StatusCode::CONFLICT, format!("{why}\n"));
    }
    job.want.set(workers);
    keep.settle_jobs();
    // whoever is told so may rely on it
    keep.remember();
    (OK, format!("{} is to have {workers} workers\n", job.name))
}

fn signal(job: &Job, name: &str) -> Answer {
    let full = if name.starts_with("SIG") { name.to_owned() } else { format!("SIG{name}") };
    match value::signal(&Raw::Text(full)) {
        Ok(Some(signal)) => {
            let workers = job.workers.borrow();
            let sent = workers.iter().filter(|w| w.signal(signal).is_ok()).count();
            (OK, format!("{sent} workers of {} got it\n", job.name))
        }
        _ => (StatusCode::BAD_REQUEST, format!("{name:?} is no signal\n")),
    }
}

/// Waits until something is there, or the patience is over.
pub(super) async fn until<T>(
    keep: &Rc<Keep>,
    patience: Duration,
    what: impl FnMut() -> Option<T>,
) -> Option<T> {
    engine::time::timeout(patience, when(keep, what)).await.ok()
}

/// Waits until something is there.
pub(super) async fn when<T>(keep: &Keep, mut what: impl FnMut() -> Option<T>) -> T {
    poll_fn(|cx| match what() {
        Some(t) => Poll::Ready(t),
        None => {
            keep.changes.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        }
    })
    .await
}

/// Of a job that is started now.
async fn wait_started(keep: &Rc<Keep>, job: &Rc<Job>) -> Answer {
    wait_ready(keep, job, |w| w.is_over() || w.can_not_start()).await
}

/// Gives up when a worker is `in_vain`.
async fn wait_ready(keep: &Rc<Keep>, job: &Rc<Job>, in_vain: impl Fn(&Worker) -> bool) -> Answer {
    let patience = job.config.borrow().start_grace + Duration::from_secs(5);
    let done = until(keep, patience, || {
        if job.workers.borrow().iter().any(|w| in_vain(w)) {
            Some(false)
        } else {
            (job.is_ready() || job.want.get() == 0).then_some(true)
        }
    });
    match done.await {
        Some(true) => (OK, format!("{} is ready\n", job.name)),
        _ => {
            let others = keep.waits_for(job);
            let why = match others.is_empty() {
                true => of_workers(job, |w| !w.is_ready()),
                false => format!("it waits for {}", others.join(", ")),
            };
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{} isn't ready: {why}\n", job.name))
        }
    }
}

/// How those workers are.
fn of_workers(job: &Job, which: impl Fn(&Worker) -> bool) -> String {
    let of: Vec<String> = job.workers.borrow().iter().filter(|w| which(w)).map(|w| w.in_words()).collect();
    of.join("; ")
}

async fn wait_down(keep: &Rc<Keep>, job: &Rc<Job>) -> Answer {
    let patience = job.config.borrow().stop_timeout + Duration::from_secs(15);
    match until(keep, patience, || job.is_down().then_some(())).await {
        Some(()) => (OK, format!("{} is stopped\n", job.name)),
        None => {
            let why = of_workers(job, |w| w.exists());
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{} isn't down: {why}\n", job.name))
        }
    }
}

async fn tail(keep: &Rc<Keep>, job: &Rc<Job>, from: Option<u64>) -> Answer {
    let look = || {
        let tail = job.tail.borrow();
        let (lines, next) = tail.from(from.unwrap_or(0));
        (from.is_none() || !lines.is_empty()).then(|| format!("{next}\n{}\n", lines.join("\n")))
    };
    let text = until(keep, FOLLOW, look).await.unwrap_or_else(|| format!("{}\n", from.unwrap_or(0)));
    (OK, text)
}

async fn events(keep: &Rc<Keep>, from: Option<u64>) -> Answer {
    let look = || {
        let jobs = keep.jobs.borrow();
        let news = jobs.events.iter().filter(|(n, _)| *n >= from.unwrap_or(0));
        let lines: Vec<String> = news.map(|(_, line)| line.clone()).collect();
        (from.is_none() || !lines.is_empty()).then(|| format!("{}\n{}\n", jobs.next_event, lines.join("\n")))
    };
    let text = until(keep, FOLLOW, look).await.unwrap_or_else(|| format!("{}\n", from.unwrap_or(0)));
    (OK, text)
}
