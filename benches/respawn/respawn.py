#!/usr/bin/env python3
"""The respawn drill: who serves is killed under load, in the suite and in what else keeps servers running.

Called by benches/respawn/run, which see. Servers have the first core, the load the second. Memory and wake-ups are taken of
each subject alone; then all run, each round kills the one that serves in each subject in turn, and at the end all that
serve are stopped (SIGSTOP) at once, without a load.
"""
import argparse
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

sys.dont_write_bytecode = True
import subjects  # noqa: E402

CONNECTIONS = 50
KINDS = {"closed_early": "cut", "connect_error": "not connected"}
# between two kills of one subject: longer than any of them looks back for a loop of crashes
GAP = 12


def say(text):
    print(text, file=sys.stderr, flush=True)


class Field:
    """The subjects that run, by their class, and what all of them share."""

    def __init__(self, work, cores, tools):
        self.work, self.cores, self.tools = work, cores, tools
        self.origin = subjects.peers.Origin(work / "of", cores[1])
        self.running = {}
        self.begun = 0

    def start(self, subject):
        """False: it doesn't start, and is left out."""
        self.begun += 1
        try:
            self.running[subject] = subjects.start(subject, self.work / str(self.begun), self.cores, self.origin, self.tools)
        except SystemExit as e:
            say(f"{subject.title} is left out: {e}")
        return subject in self.running

    def stop(self, subject):
        self.running.pop(subject).stop()

    def end(self):
        for subject in list(self.running):
            self.stop(subject)
        self.origin.stop()

    def stroke(self, subject, *options):
        """A stroke at the process that serves; None where there's none."""
        one = self.running[subject]
        workers = one.workers()
        if not workers:
            return None
        command = ["taskset", "-c", self.cores[1], self.tools / "respawn-stroke", f"127.0.0.1:{one.port}", workers[0], "--path", one.path]
        return subprocess.Popen(list(map(str, [*command, *options])), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(subject, process):
    """What it came to; None: it couldn't be measured."""
    if process is None:
        return say(f"{subject.title}: nobody serves any more")
    out, err = process.communicate()
    if process.returncode:
        return say(f"{subject.title}: {err.strip()}")
    return json.loads(out)


def switches(pids):
    """How often all their threads have been run so far."""
    total = 0
    for status in itertools.chain.from_iterable(Path(f"/proc/{pid}/task").glob("*/status") for pid in pids):
        total += sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", status.read_text())))
    return total


def at_rest(one, seconds):
    """Memory and wake-ups a second of one that has nothing to do."""
    time.sleep(4)
    pids = one.at_rest()
    resident, proportional = (kib / 1024 for kib in subjects.peers.memory(pids))
    before = switches(pids)
    time.sleep(seconds)
    return {"rss": resident, "pss": proportional, "wakeups": (switches(pids) - before) / seconds, "processes": len(pids)}


def kill(field, rounds, results):
    """Outcomes by subject, of interleaved rounds."""
    last = dict.fromkeys(field.running, time.monotonic())
    for turn in range(rounds):
        for subject in list(field.running):
            time.sleep(max(0, last[subject] + GAP - time.monotonic()))
            result = outcome(subject, field.stroke(subject, "--connections", CONNECTIONS))
            last[subject] = time.monotonic()
            if result and result["failed_before"]:
                say(f"{subject.title}: {result['failed_before']} before the kill")
            results[subject].append(result)
            if not subject.forgives:
                field.stop(subject)
                field.start(subject)
        say(f"kill {turn + 1} of {rounds}")


def stop(field, rounds, patience, results):
    """The same for SIGSTOP: all at once, since most of them wait for it for ever."""
    for turn in range(rounds):
        time.sleep(GAP)
        strokes = {s: field.stroke(s, "--stop", "--patience", f"{patience}s") for s in field.running}
        for subject, process in strokes.items():
            results[subject].append(outcome(subject, process))
        say(f"stop {turn + 1} of {rounds}")


def quantile(values, q):
    """By nearest rank; those that never came last."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def ms(t):
    if t == math.inf:
        return "never"
    return f"{t:,.0f} ms" if t >= 100 else f"{t:.1f} ms"


def ratio(value, ours):
    if not ours or value == math.inf:
        return ""
    times = value / ours
    return f" (×{times:,.0f})" if times >= 10 else f" (×{times:.2g})"


def times(results, key):
    return [r[key] if r[key] is not None else math.inf for r in results if r]


def number(n):
    return f"{n:,.0f}" if n >= 10 or n == int(n) else f"{n:.1f}"


def failures(results):
    """Per kill, by kind."""
    results = [r for r in results if r]
    total = Counter()
    for r in results:
        total.update(r["failed"])
    if not total:
        return "0"
    return ", ".join(f"{number(n / len(results))} {KINDS.get(kind, kind)}" for kind, n in total.most_common())


def hung(results, patience):
    """The longest until another answered; and until the one that hung was ended, where that is another time."""
    answered, ended = max(times(results, "answered_ms")), max(times(results, "ended_ms"))
    if answered == math.inf:
        return f"never ({patience} s)"
    ended_text = f"{ended / 1000:.1f} s" if ended < math.inf else f"never ({patience} s)"
    if answered < 1000:
        return f"{ms(answered)} by another; replaced: {ended_text}"
    return f"{answered / 1000:.1f} s"


HEAD = ["", "failed per kill", f"of {CONNECTIONS} connections lost", "next answer, p50", "p99", "longest", "hung: next answer, longest", "PSS (RSS), MiB", "wake-ups/s"]


def rows(wanted, kills, stops, rest, patience):
    ours = times(kills[subjects.Suite], "answered_ms")
    base = quantile(ours, 0.5) if ours else None
    for subject in wanted:
        answers, hangs, r = times(kills[subject], "answered_ms"), [s for s in stops[subject] if s], rest.get(subject)
        row = [subject.title] + ["-"] * (len(HEAD) - 1)
        if answers:
            p50 = quantile(answers, 0.5)
            row[1] = failures(kills[subject])
            row[2] = number(sum(k["connections_lost"] for k in kills[subject] if k) / len(answers))
            row[3] = ms(p50) + ("" if subject is subjects.Suite else ratio(p50, base))
            row[4] = ms(quantile(answers, 0.99)) if len(answers) >= 100 else "-"
            row[5] = ms(max(answers))
        if hangs:
            row[6] = hung(hangs, patience)
        if r:
            row[7], row[8] = f"{r['pss']:.1f} ({r['rss']:.1f})", f"{r['wakeups']:.1f}"
        yield row


def table(lines, markdown):
    if not any(row[4] != "-" for row in lines[1:]):
        lines = [row[:4] + row[5:] for row in lines]
    if markdown:
        print("\n".join("| " + " | ".join(row) + " |" for row in [lines[0], ["---"] * len(lines[0]), *lines[1:]]))
        return
    widths = [max(len(row[i]) for row in lines) for i in range(len(lines[0]))]
    for row in lines:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip())


def main():
    names = {s.__name__.lower(): s for s in subjects.SUBJECTS}
    p = argparse.ArgumentParser(prog="benches/respawn/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="*", metavar="NAME", help=f"only those of: {', '.join(names)}")
    p.add_argument("--kills", type=int, default=5, help="rounds of kills; from 100 on there's a p99 (5)")
    p.add_argument("--stops", type=int, default=1, help="rounds of SIGSTOP (1)")
    p.add_argument("--patience", type=int, default=40, help="seconds after which a stopped one is never found (40)")
    p.add_argument("--rest", type=int, default=10, help="seconds over which wake-ups are counted; 0: neither they nor memory (10)")
    p.add_argument("--cores", default="0,1", help="of the servers, of the load (0,1)")
    p.add_argument("--ahead", action="store_true", help="all of it runs ahead of whatever else the machine does (SCHED_RR)")
    p.add_argument("--markdown", action="store_true", help="the table as in docs/comparison.md")
    p.add_argument("--tools", type=Path, required=True, help=argparse.SUPPRESS)
    a = p.parse_args()
    if wrong := [n for n in a.names if n not in names]:
        p.error(f"no such subject: {', '.join(wrong)}; there are {', '.join(names)}")
    wanted = [s for s in subjects.SUBJECTS if not a.names or s.__name__.lower() in a.names]
    for s in wanted:
        if gone := subjects.missing(s):
            say(f"{s.title} is left out: there's no {', '.join(gone)} here")
    wanted = [s for s in wanted if not subjects.missing(s)]
    cores = a.cores.split(",")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if a.ahead:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))
    kills, stops, rest = defaultdict(list), defaultdict(list), {}
    with tempfile.TemporaryDirectory(prefix="respawn-") as work:
        os.chmod(work, 0o755)
        field = Field(Path(work), cores, a.tools)
        try:
            for s in wanted if a.rest else []:
                if field.start(s):
                    rest[s] = at_rest(field.running[s], a.rest)
                    field.stop(s)
                    say(f"{s.title} at rest: {rest[s]}")
            for s in wanted:
                field.start(s)
            kill(field, a.kills, kills)
            stop(field, a.stops, a.patience, stops)
        finally:
            field.end()
            # also what there is when it was interrupted
            table([HEAD, *rows(wanted, kills, stops, rest, a.patience)], a.markdown)
            for s in wanted:
                if s.note:
                    print(f"{'- ' if a.markdown else ''}{s.title}: {s.note}")


if __name__ == "__main__":
    main()
