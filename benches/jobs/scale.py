"""Many jobs under one manager: start, memory, wake-ups, list, a crash-looping neighbour, a killed manager, stop.

Usage: scale.py PROGRAMS [JOBS]. Prints one line a measure; exits 1 if a bound is missed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

PROGRAMS, JOBS = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1000
MISSED = []


def say(what, value, bound=None, good=True):
    print(f"{what:58} {value:>12}" + (f"   (bound {bound})" if bound else ""), flush=True)
    if not good:
        MISSED.append(what)


class Suite:
    """A private suite with so many jobs of `sleep`."""

    def __init__(self, jobs, more=""):
        self.dir = tempfile.mkdtemp(prefix="traffic-jobs-")
        self.config = f"{self.dir}/traffic.toml"
        head = (
            f'[suite]\nallow_root = true\nruntime_dir = "{self.dir}/run"\nstate_dir = "{self.dir}/state"\n'
            '[server]\nlisten = ["127.0.0.1:0"]\nthreads = 1\nstandby = false\n'
        )
        job = '[[job]]\nname = "sleep-{}"\ncommand = ["sleep", "100000"]\nready = "running 0s"\n'
        with open(self.config, "w") as f:
            f.write(head + more + "".join(job.format(n) for n in range(jobs)))
        self.log = open(f"{self.dir}/log", "wb")
        self.cop = subprocess.Popen(
            [f"{PROGRAMS}/traffic_cop", "start", "-f", "-c", self.config],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
        )
        self.until(lambda: "event=serving" in self.text(), "the suite serves")

    def text(self):
        with open(f"{self.dir}/log", errors="replace") as f:
            return f.read()

    def until(self, what, name, limit=60):
        end = time.monotonic() + limit
        while not what():
            if time.monotonic() > end or self.cop.poll() is not None:
                sys.exit(f"not within {limit} s: {name}; see {self.dir}/log")
            time.sleep(0.02)

    def run(self, *args):
        done = subprocess.run(
            [f"{PROGRAMS}/traffic_manager", *args, "-c", self.config],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )
        return done.stdout

    def manager(self):
        with open(f"{self.dir}/run/manager.lock") as f:
            return int(f.read())

    def workers(self):
        return [w for j in json.loads(self.run("status"))["jobs"] for w in j["workers"]]

    def ready(self):
        return sum(w["state"] == "ready" for w in self.workers())

    def stop(self):
        begun = time.monotonic()
        self.cop.send_signal(signal.SIGTERM)
        self.cop.wait(60)
        return time.monotonic() - begun


def status(pid, key):
    with open(f"/proc/{pid}/status") as f:
        return int(next(line for line in f if line.startswith(key)).split()[1])


def wakeups(pid, seconds=10):
    before = status(pid, "voluntary_ctxt")
    time.sleep(seconds)
    return (status(pid, "voluntary_ctxt") - before) / seconds


def settled(seconds=35):
    """Timers of the start (a start grace of 30 s) are over."""
    time.sleep(seconds)


def main():
    empty = Suite(0)
    settled()
    base, idle = status(empty.manager(), "VmRSS"), wakeups(empty.manager())
    empty.stop()

    begun = time.monotonic()
    s = Suite(JOBS)
    s.until(lambda: s.text().count("event=ready of=job") >= JOBS, "all jobs are ready")
    took = time.monotonic() - begun
    say(f"start of the suite until {JOBS} jobs are ready, s", f"{took:.2f}", "5", took <= 5)
    settled()
    rss, busy = status(s.manager(), "VmRSS"), wakeups(s.manager())
    each = (rss - base) / JOBS
    say(f"resident memory, manager without jobs and with {JOBS}, KiB", f"{base} {rss}")
    say("each job, KiB", f"{each:.2f}", "8", each <= 8)
    say("wake-ups a second of the manager, without and with", f"{idle:.1f} {busy:.1f}", "+0.2", busy <= idle + 0.2)
    begun = time.monotonic()
    s.run("list")
    took = time.monotonic() - begun
    say("list, ms", f"{took * 1000:.0f}", "100", took <= 0.1)

    pids = sorted(w["pid"] for w in s.workers())
    old = s.manager()
    begun = time.monotonic()
    os.kill(old, signal.SIGKILL)
    s.until(lambda: s.text().count("event=adopted of=job") >= JOBS, "all jobs are adopted")
    took = time.monotonic() - begun
    say("SIGKILL of the manager until all are adopted, s", f"{took:.2f}", "5", took <= 5)
    s.until(lambda: s.ready() == JOBS, "all jobs are ready")
    same = sorted(w["pid"] for w in s.workers()) == pids
    say("and they are the same processes", str(same), "True", same)
    time.sleep(3)
    os.kill(s.manager(), signal.SIGKILL)
    s.until(lambda: s.text().count("event=adopted of=job") >= 2 * JOBS, "all jobs are adopted again")
    same = sorted(w["pid"] for w in s.workers()) == pids
    say("and again", str(same), "True", same)
    took = s.stop()
    say("stop, s", f"{took:.2f}", "5", took <= 5)
    if MISSED:
        sys.exit(f"missed: {', '.join(MISSED)}; see {s.dir}/log")


main()
