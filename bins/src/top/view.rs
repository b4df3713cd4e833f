//! A snapshot as a screen. Nothing here looks at anything but its arguments.

use super::snapshot::{Row, Snapshot, TakeOver, Traffic};
use crate::cop::status::span;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Sparkline, Table};
use std::collections::VecDeque;

/// In which order processes stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sort {
    /// Cop, manager, server, standby, jobs.
    #[default]
    Rank,
    /// Who takes most of the processor first.
    Cpu,
    /// Who takes most memory first.
    Memory,
}

impl Sort {
    /// The one that the key leads to.
    pub fn next(self) -> Sort {
        match self {
            Sort::Rank => Sort::Cpu,
            Sort::Cpu => Sort::Memory,
            Sort::Memory => Sort::Rank,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Sort::Rank => "rank",
            Sort::Cpu => "cpu",
            Sort::Memory => "memory",
        }
    }
}

/// What the user has chosen, and what was.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// The order.
    pub sort: Sort,
    /// A line for each thread.
    pub threads: bool,
    /// Requests a second, the newest last.
    pub history: VecDeque<u64>,
}

/// Moments that are remembered for the curve.
const HISTORY: usize = 300;

impl Choice {
    /// Remembers how much there was to do.
    pub fn remember(&mut self, s: &Snapshot) {
        let now = s.traffic.as_ref().map_or(0, |t| t.requests.round() as u64);
        self.history.push_back(now);
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
    }
}

const SOFT: Style = Style::new().fg(Color::DarkGray);
const HEAD: Style = Style::new().add_modifier(Modifier::BOLD);

/// Draws it all.
pub fn draw(frame: &mut Frame<'_>, s: &Snapshot, choice: &Choice) {
    let processes = process_rows(s, choice);
    // with its head, and an empty line below
    let wanted = u16::try_from(processes.len() + 2).unwrap_or(u16::MAX);
    // it gives way before the last take-over does
    let room = frame.area().height.saturating_sub(9).max(2);
    let [title, numbers, curve, table, events, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(2),
        Constraint::Length(2),
        Constraint::Length(wanted.min(room)),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(titles(s)), title);
    frame.render_widget(Paragraph::new(figures(s)), numbers);
    draw_curve(frame, curve, &choice.history);
    draw_processes(frame, table, processes);
    draw_takeovers(frame, events, s);
    let keys = format!(
        " q quit   t threads {}   s sort: {}",
        if choice.threads { "off" } else { "on" },
        choice.sort.name()
    );
    frame.render_widget(Paragraph::new(keys).style(SOFT), foot);
}

fn titles(s: &Snapshot) -> Vec<Line<'static>> {
    let mut first = vec![Span::styled(" traffic  ", HEAD), Span::styled(s.state.clone(), tint(&s.state))];
    if let Some(away) = s.away {
        let text = format!("  manager away for {}; what it said last is below", span(away.as_secs()));
        first.push(Span::styled(text, Style::new().fg(Color::Yellow)));
    }
    vec![Line::from(first), Line::from(format!(" {}", s.listen)).style(SOFT)]
}

fn figures(s: &Snapshot) -> Vec<Line<'static>> {
    let q = &s.queue;
    let first = match &s.traffic {
        Some(t) => traffic(t),
        None => " requests -   (the server doesn't tell its numbers)".to_owned(),
    };
    let queue = format!(
        " queue {} (oldest {} ms)   queued in all {}   told 503 {}   take-overs {}",
        q.depth, q.oldest_ms, q.total, q.expired, s.takeover_count
    );
    let busy = if q.depth > 0 { Style::new().fg(Color::Yellow) } else { Style::new() };
    vec![Line::from(first), Line::from(queue).style(busy)]
}

fn traffic(t: &Traffic) -> String {
    let hits = t.hit_ratio.map_or("-".to_owned(), |r| format!("{:.0}%", r * 100.0));
    format!(
        " requests {:.0}/s   failed {:.1}/s   hit ratio {hits}   connections {}",
        t.requests, t.failed, t.connections
    )
}

fn draw_curve(frame: &mut Frame<'_>, area: Rect, history: &VecDeque<u64>) {
    let [_, middle, _] =
        Layout::horizontal([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)]).areas(area);
    let width = usize::from(middle.width);
    let data: Vec<u64> = history.iter().skip(history.len().saturating_sub(width)).copied().collect();
    frame.render_widget(Sparkline::default().data(data).style(Style::new().fg(Color::Cyan)), middle);
}

/// A line of the table: the process, or with a depth of 1 a thread of the one above.
fn process_rows(s: &Snapshot, choice: &Choice) -> Vec<(Row, usize)> {
    let mut rows = s.rows.clone();
    let by_cpu = |a: &Row, b: &Row| b.cpu.unwrap_or(0.0).total_cmp(&a.cpu.unwrap_or(0.0));
    match choice.sort {
        Sort::Rank => {}
        Sort::Cpu => rows.sort_by(by_cpu),
        Sort::Memory => rows.sort_by_key(|r| std::cmp::Reverse(r.rss_kib)),
    }
    let mut lines = Vec::new();
    for row in rows {
        let mut threads = if choice.threads { row.threads.clone() } else { Vec::new() };
        if choice.sort == Sort::Cpu {
            threads.sort_by(by_cpu);
        }
        lines.push((row, 0));
        lines.extend(threads.into_iter().map(|t| (t, 1)));
    }
    lines
}

fn draw_processes(frame: &mut Frame<'_>, area: Rect, rows: Vec<(Row, usize)>) {
    let head = ["", "pid", "state", "since", "cpu", "thr", "MiB", "restarts", "last exit"];
    let widths = [11, 7, 8, 6, 5, 3, 6, 8].map(Constraint::Length).into_iter().chain([Constraint::Min(6)]);
    let lines = rows.into_iter().map(|(r, depth)| {
        let dash =
            |v: Option<String>| Cell::from(Line::from(v.unwrap_or_else(|| "-".into())).right_aligned());
        let name = format!("{}{}", " ".repeat(1 + depth * 2), r.name);
        let none_of_a_thread = |v: Option<String>| match depth {
            0 => dash(v),
            _ => Cell::from(""),
        };
        let line = ratatui::widgets::Row::new([
            Cell::from(name),
            dash(r.pid.map(|p| p.to_string())),
            Cell::from(r.state.clone()).style(tint(&r.state)),
            none_of_a_thread(r.since_s.map(span)),
            dash(r.cpu.map(|c| format!("{c:.1}"))),
            none_of_a_thread((!r.threads.is_empty()).then(|| r.threads.len().to_string())),
            none_of_a_thread(r.rss_kib.map(|k| format!("{:.1}", k as f64 / 1024.0))),
            none_of_a_thread(r.restarts.map(|n| n.to_string())),
            Cell::from(r.last_exit),
        ]);
        if depth > 0 { line.style(SOFT) } else { line }
    });
    // numbers and their heads stand at the right
    let head = head.map(|h| match ["", "state", "last exit"].contains(&h) {
        true => Line::from(h),
        false => Line::from(h).right_aligned(),
    });
    let table =
        Table::new(lines, widths).header(ratatui::widgets::Row::new(head).style(SOFT)).column_spacing(1);
    frame.render_widget(table, area);
}

fn draw_takeovers(frame: &mut Frame<'_>, area: Rect, s: &Snapshot) {
    let mut lines = vec![Line::from(" last take-overs").bold()];
    match s.takeovers.is_empty() {
        true => lines.push(Line::from(" none since the manager began").style(SOFT)),
        false => lines.extend(s.takeovers.iter().map(takeover)),
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn takeover(t: &TakeOver) -> Line<'static> {
    let ago = t.ago_s.map_or("-".to_owned(), |s| format!("{} ago", span(s)));
    Line::from(vec![
        Span::raw(format!(" {ago:>11}  ")),
        Span::styled(format!("{:>8.1} ms", t.took_ms), Style::new().fg(Color::Cyan)),
        Span::raw(format!("  pid {} {} (by {})  {}", t.pid, t.how, t.noticed_by, t.connections)),
    ])
}

/// The colour of what a state means.
fn tint(state: &str) -> Style {
    let colour = match state.split([':', ',', ' ']).next().unwrap_or("") {
        "serving" | "running" | "ready" | "finished" => Color::Green,
        "degraded" | "paused" | "starting" | "launching" | "stopping" | "backoff" => Color::Yellow,
        "waiting" | "asleep" | "disabled" => Color::DarkGray,
        _ => Color::Red,
    };
    Style::new().fg(colour)
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::Queue;
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use std::time::Duration;

    fn screen(s: &Snapshot, choice: &Choice, width: u16, height: u16) -> Vec<String> {
        let mut t = Terminal::new(TestBackend::new(width, height)).unwrap();
        t.draw(|f| draw(f, s, choice)).unwrap();
        let b = t.backend().buffer();
        let line = |y| (0..width).map(|x| b[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    fn row(name: &str, pid: i64, cpu: f64, mib: u64) -> Row {
        Row {
            name: name.into(),
            pid: Some(pid),
            state: "running".into(),
            since_s: Some(75),
            cpu: Some(cpu),
            rss_kib: Some(mib * 1024),
            restarts: Some(2),
            last_exit: "signal 9 (SIGKILL)".into(),
            threads: vec![Row {
                name: "net-0".into(),
                pid: Some(pid + 50),
                cpu: Some(cpu),
                ..Row::default()
            }],
        }
    }

    fn snapshot() -> Snapshot {
        Snapshot {
            state: "serving".into(),
            listen: "127.0.0.1:8080".into(),
            rows: vec![row("cop", 100, 0.1, 3), row("server", 300, 42.5, 9), row("mail.0", 400, 0.0, 50)],
            queue: Queue { depth: 3, oldest_ms: 12, total: 40, expired: 1 },
            traffic: Some(Traffic { connections: 17, requests: 1234.4, failed: 0.5, hit_ratio: Some(0.871) }),
            takeover_count: 5,
            takeovers: vec![TakeOver {
                ago_s: Some(70),
                pid: 299,
                how: "signal 9 (SIGKILL)".into(),
                noticed_by: "pidfd".into(),
                took_ms: 1.25,
                connections: "4 resumed".into(),
            }],
            ..Snapshot::default()
        }
    }

    #[test]
    fn everything_stands_on_a_terminal_of_80_by_24() {
        let choice = Choice { history: VecDeque::from([1, 5, 9]), ..Choice::default() };
        let lines = screen(&snapshot(), &choice, 80, 24);
        let want = [
            " traffic  serving",
            " 127.0.0.1:8080",
            " requests 1234/s   failed 0.5/s   hit ratio 87%   connections 17",
            " queue 3 (oldest 12 ms)   queued in all 40   told 503 1   take-overs 5",
        ];
        assert_eq!(&lines[..4], &want[..], "{lines:#?}");
        assert!(lines[5].contains('█'), "{lines:#?}");
        assert!(lines[6].contains("state") && lines[6].ends_with("last exit"), "{lines:#?}");
        assert_eq!(
            lines[8], " server         300 running   1m15s  42.5   1    9.0        2 signal 9 (SIGKILL)",
            "{lines:#?}"
        );
        assert!(
            lines
                .iter()
                .any(|l| l == "   1m10s ago       1.2 ms  pid 299 signal 9 (SIGKILL) (by pidfd)  4 resumed"),
            "{lines:#?}"
        );
        assert_eq!(lines[23], " q quit   t threads on   s sort: rank");
    }

    #[test]
    fn the_order_and_the_threads_are_the_users_choice() {
        let names = |sort: Sort, threads: bool| {
            let choice = Choice { sort, threads, ..Choice::default() };
            let lines = screen(&snapshot(), &choice, 80, 24);
            let table = lines[7..].iter().take_while(|l| !l.is_empty() && !l.contains("take-overs"));
            table.map(|l| l.split_whitespace().next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(Sort::Rank, false), ["cop", "server", "mail.0"]);
        assert_eq!(names(Sort::Rank.next(), false), ["server", "cop", "mail.0"]);
        assert_eq!(names(Sort::Cpu.next(), false), ["mail.0", "server", "cop"]);
        assert_eq!(names(Sort::Cpu, true), ["server", "net-0", "cop", "net-0", "mail.0", "net-0"]);
    }

    #[test]
    fn a_manager_that_is_away_is_said_and_what_is_not_known_is_no_number() {
        let s = Snapshot {
            state: "degraded".into(),
            away: Some(Duration::from_secs(3)),
            rows: vec![Row { name: "manager".into(), state: "down".into(), ..Row::default() }],
            ..Snapshot::default()
        };
        let lines = screen(&s, &Choice::default(), 100, 20);
        assert_eq!(lines[0], " traffic  degraded  manager away for 3s; what it said last is below");
        assert!(lines[2].starts_with(" requests -"), "{lines:#?}");
        assert!(
            lines[7].split_whitespace().eq(["manager", "-", "down", "-", "-", "-", "-", "-"]),
            "{lines:#?}"
        );
    }

    #[test]
    fn no_size_is_too_small_or_too_large() {
        let mut s = snapshot();
        s.rows = (0..200).map(|i| row(&format!("job.{i}"), i, 0.0, 1)).collect();
        let choice = Choice { threads: true, history: (0..1000).collect(), ..Choice::default() };
        for (width, height) in [(1, 1), (10, 3), (80, 24), (400, 120)] {
            assert_eq!(screen(&s, &choice, width, height).len(), usize::from(height));
        }
        // many processes leave the last take-over its place
        let lines = screen(&s, &choice, 80, 24);
        assert!(lines.iter().any(|l| l.contains("pid 299")), "{lines:#?}");
    }
}
