"""Our manager beside other supervisors: the same small program under each, killed in the same ways.

Usage: compare.py PROGRAMS WORKER [NAME …]   (PROGRAMS: where ours are; NAME: only those). Prints a table in Markdown.
"""

import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

PROGRAMS, WORKER, ONLY = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]), sys.argv[3:]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def parent(pid):
    with open(f"/proc/{pid}/stat") as f:
        return int(f.read().rsplit(")", 1)[1].split()[1])


def name(pid):
    with open(f"/proc/{pid}/comm") as f:
        return f.read().strip()


def rss(pids):
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/status") as f:
            total += int(next(line for line in f if line.startswith("VmRSS")).split()[1])
    return total


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Supervisor:
    """One in a directory of its own. `env` is what the worker is to have."""

    def __init__(self, **env):
        self.dir = tempfile.mkdtemp(prefix="compare-")
        self.inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.inbox.bind(f"{self.dir}/inbox")
        self.env = {"ADDR": f"{self.dir}/inbox", **env}
        self.held = "PORT" in env and self.holds
        self.log = open(f"{self.dir}/log", "ab")
        self.begun = []
        self.known = set()
        self.configure()
        self.launch()

    holds = False

    def launch(self):
        env = {"PATH": os.environ["PATH"], "HOME": "/root", **(self.env if not self.held else {"ADDR": self.env["ADDR"]})}
        self.main = subprocess.Popen(
            self.command(), cwd=self.dir, env=env, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            start_new_session=True,
        )
        self.begun.append(self.main)

    def write(self, file, text, mode=0o644):
        path = f"{self.dir}/{file}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as f:
            f.write(text)
        os.chmod(path, mode)

    def said(self, what="start", limit=15.0):
        """The next word of a worker: pid and nanoseconds; None if none comes."""
        end = time.monotonic() + limit
        while (left := end - time.monotonic()) > 0:
            self.inbox.settimeout(left)
            try:
                word, pid, ns = self.inbox.recv(200).decode().split()
            except socket.timeout:
                return None
            self.known.add(int(pid))
            if word == what:
                return int(pid), int(ns)
        return None

    def drain(self):
        self.inbox.setblocking(False)
        try:
            while True:
                self.known.add(int(self.inbox.recv(200).split()[1]))
        except BlockingIOError:
            pass

    def killed(self, pid, limit=15.0):
        """SIGKILL of a worker: the next one's pid, and milliseconds until it runs."""
        self.drain()
        begun = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        next_one = self.said(limit=limit)
        return (None, None) if next_one is None else (next_one[0], (next_one[1] - begun) / 1e6)

    def supervisor_of(self, pid):
        return parent(pid)

    def stop_worker(self):
        """As its manual says; returns when that returns."""
        raise NotImplementedError

    def relaunch(self):
        """After a SIGKILL of who supervises: what an operator's init would do."""
        self.launch()

    def end(self):
        self.drain()
        for p in self.begun:
            if p.poll() is None:
                p.send_signal(signal.SIGTERM)
        for p in self.begun:
            try:
                p.wait(15)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
        for pid in self.known:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.inbox.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def run(self, *command):
        subprocess.run(command, cwd=self.dir, timeout=30, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)


class Ours(Supervisor):
    title = "traffic_manager"
    holds = True

    def configure(self):
        env = {k: v for k, v in self.env.items() if not (self.held and k == "PORT")}
        listen = f'listen = ["127.0.0.1:{self.env["PORT"]}"]\n' if self.held else ""
        pairs = ", ".join(f'"{k}={v}"' for k, v in env.items())
        self.write(
            "traffic.toml",
            f'[suite]\nallow_root = true\nruntime_dir = "{self.dir}/run"\nstate_dir = "{self.dir}/state"\n'
            '[server]\nlisten = ["127.0.0.1:0"]\nthreads = 1\n'
            f'[[job]]\nname = "w"\ncommand = ["{WORKER}"]\nenv = [{pairs}]\nready = "running 0s"\n'
            f'stable_after = "1s"\n{listen}',
        )

    def command(self):
        return [f"{PROGRAMS}/traffic_cop", "start", "-f", "-c", f"{self.dir}/traffic.toml"]

    def stop_worker(self):
        self.run(f"{PROGRAMS}/traffic_manager", "stop", "w", "-c", f"{self.dir}/traffic.toml")

    def relaunch(self):
        pass


class Runit(Supervisor):
    title = "runit"

    def configure(self):
        shutil.copy(WORKER, self.make("services/w") + "/run")

    def make(self, path):
        os.makedirs(f"{self.dir}/{path}")
        return f"{self.dir}/{path}"

    def command(self):
        return ["runsvdir", f"{self.dir}/services"]

    def stop_worker(self):
        self.run("sv", "stop", f"{self.dir}/services/w")

    def relaunch(self):
        pass

    def end(self):
        self.run("sv", "exit", f"{self.dir}/services/w")
        super().end()


class S6(Runit):
    title = "s6"

    def command(self):
        return ["s6-svscan", f"{self.dir}/services"]

    def stop_worker(self):
        self.run("s6-svc", "-wD", "-d", f"{self.dir}/services/w")

    def end(self):
        self.run("s6-svscanctl", "-t", f"{self.dir}/services")
        Supervisor.end(self)


class Supervisord(Supervisor):
    title = "supervisord"
    holds = True

    def configure(self):
        env = ",".join(f'{k}="{v}"' for k, v in self.env.items() if not (self.held and k == "PORT"))
        head = "[program:w]\n"
        if self.held:
            head = f"[fcgi-program:w]\nsocket=tcp://127.0.0.1:{self.env['PORT']}\n"
            env += ',FD="0"'
        self.write(
            "supervisord.conf",
            f"[supervisord]\nnodaemon=true\nuser=root\nlogfile={self.dir}/s.log\npidfile={self.dir}/s.pid\n"
            f"[unix_http_server]\nfile={self.dir}/s.sock\n[supervisorctl]\nserverurl=unix://{self.dir}/s.sock\n"
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n"
            f"{head}command={WORKER}\nenvironment={env}\nautorestart=true\nstdout_logfile=NONE\nstderr_logfile=NONE\n",
        )

    def command(self):
        return ["supervisord", "-c", f"{self.dir}/supervisord.conf"]

    def stop_worker(self):
        self.run("supervisorctl", "-c", f"{self.dir}/supervisord.conf", "stop", "w")


class Circus(Supervisor):
    title = "circus"
    holds = True

    def configure(self):
        base = free_port()
        sockets = f"[socket:web]\nhost = 127.0.0.1\nport = {self.env['PORT']}\n" if self.held else ""
        use = "use_sockets = True\nargs = $(circus.sockets.web)\n" if self.held else ""
        env = "".join(f"{k} = {v}\n" for k, v in self.env.items() if not (self.held and k == "PORT"))
        self.ctl = f"tcp://127.0.0.1:{base}"
        self.write(
            "circus.ini",
            f"[circus]\nendpoint = {self.ctl}\npubsub_endpoint = tcp://127.0.0.1:{free_port()}\n"
            f"[watcher:w]\ncmd = {WORKER}\n{use}[env:w]\n{env}{sockets}",
        )

    def command(self):
        return [shutil.which("circusd"), f"{self.dir}/circus.ini"]

    def stop_worker(self):
        self.run(shutil.which("circusctl"), "--endpoint", self.ctl, "stop", "w", "--waiting")


class Systemd(Supervisor):
    """Where it is the first process: see benches/comparison/systemd."""

    title = "systemd"
    holds = True

    def configure(self):
        env = {k: v for k, v in self.env.items() if not (self.held and k == "PORT")}
        lines = "".join(f"Environment={k}={v}\n" for k, v in env.items())
        self.units = {"w.service": f"[Service]\nExecStart={WORKER}\nRestart=always\nRestartSec=0\n{lines}"}
        if self.held:
            self.units["w.socket"] = f"[Socket]\nListenStream=127.0.0.1:{self.env['PORT']}\n"
        for file, text in self.units.items():
            with open(f"/run/systemd/system/{file}", "w") as f:
                f.write(text)

    def launch(self):
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "reset-failed")
        self.run("systemctl", "start", *reversed(self.units))

    def stop_worker(self):
        self.run("systemctl", "stop", "w.service")

    def end(self):
        self.run("systemctl", "stop", *reversed(self.units))
        super().end()
        for file in self.units:
            os.remove(f"/run/systemd/system/{file}")


def median(list_):
    return f"{statistics.median(list_):.1f}" if list_ else "-"


def respawn(kind, count=10):
    """Killed after it has run for two seconds, again and again."""
    s = kind()
    pid, _ = s.said(limit=30)
    times = []
    for _ in range(count):
        time.sleep(2)
        pid, ms = s.killed(pid)
        if pid is None:
            break
        times.append(ms)
    s.end()
    return f"{median(times)} ms" + ("" if len(times) == count else f", then none came within 15 s")


def storm(kind, count=10):
    """Killed as soon as it runs, ten times."""
    s = kind()
    pid, _ = s.said(limit=30)
    time.sleep(2)
    times = []
    for _ in range(count):
        pid, ms = s.killed(pid)
        if pid is None:
            break
        times.append(ms)
    s.end()
    gave_up = f"; dead after kill {len(times) + 1}" if len(times) < count else ""
    first = f"{times[0]:.1f} ms, " if times else ""
    return f"{first}{max(times, default=0):.0f} ms at most{gave_up}"


def refused(kind, kills=5):
    """Connections while a server is killed: two seconds after each start."""
    port = free_port()
    s = kind(PORT=str(port))
    first = s.said("listens", limit=30)
    if first is None:
        s.end()
        return "it doesn't start"
    pid, counts, go_on = first[0], {"ok": 0, "refused": 0, "lost": 0}, [True]

    def clients():
        while go_on[0]:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=10) as c:
                    counts["ok" if c.recv(10) == b"ok\n" else "lost"] += 1
            except ConnectionRefusedError:
                counts["refused"] += 1
            except OSError:
                counts["lost"] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=clients)
    thread.start()
    for _ in range(kills):
        time.sleep(2)
        pid, _ = s.killed(pid)
        if pid is None:
            break
    time.sleep(0.5)
    go_on[0] = False
    thread.join()
    s.end()
    return f"{counts['refused'] / kills:.0f} of about {counts['ok'] // (2 * kills)} a second"


def escapee(kind):
    """A descendant in a session of its own, when its worker is stopped in order."""
    s = kind(ESCAPE="1")
    found = s.said("escaped", limit=30)
    if found is None:
        s.end()
        return "?"
    time.sleep(1)
    s.stop_worker()
    time.sleep(0.5)
    left = alive(found[0])
    s.end()
    return "goes on" if left else "ended"


def orphan(kind):
    """SIGKILL of who supervises; who is there after five seconds."""
    if kind is Systemd:
        return "can't be: it is the first process"
    s = kind()
    pid, _ = s.said(limit=30)
    time.sleep(2)
    os.kill(s.supervisor_of(pid), signal.SIGKILL)
    s.relaunch()
    other = s.said(limit=5)
    if other is None:
        verdict = "goes on, and is supervised again" if alive(pid) else "dies with it"
        if alive(pid):
            again, _ = s.killed(pid, limit=5)
            verdict = verdict if again else "goes on, supervised by nobody"
    else:
        verdict = "goes on, and a second copy is started beside it" if alive(pid) else "is started anew"
    s.end()
    return verdict


def memory(kind):
    """Of all processes between the first one and the worker."""
    s = kind()
    pid, _ = s.said(limit=30)
    time.sleep(3)
    top = s.begun[0].pid if s.begun else 1
    of_chain, at = [], parent(pid)
    while at != top and at > 1:
        of_chain.append(at)
        at = parent(at)
    of_chain.append(top)
    size = rss(of_chain)
    names = ", ".join(name(p) for p in of_chain)
    s.end()
    return f"{size / 1024:.1f} MiB ({names})"


def own_start(count=50):
    """From posix_spawn(3) to the program's first lines: what no supervisor can save."""
    where = tempfile.mkdtemp(prefix="compare-")
    inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    inbox.bind(f"{where}/inbox")
    times = []
    for _ in range(count):
        begun = time.monotonic_ns()
        pid = os.posix_spawn(WORKER, [WORKER], {"ADDR": f"{where}/inbox"})
        times.append((int(inbox.recv(200).split()[2]) - begun) / 1e6)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    inbox.close()
    shutil.rmtree(where)
    return statistics.median(times)


ROWS = [
    ("SIGKILL of the worker, every 2 s: until the next one runs, median of 10", respawn),
    ("killed again as soon as it runs, 10 times: first, longest", storm),
    ("connections refused per SIGKILL of a server", refused),
    ("a descendant that has left its session, when its worker is stopped", escapee),
    ("SIGKILL of the supervisor of a worker: the worker", orphan),
    ("resident memory with one worker", memory),
]


def main():
    everybody = (Ours, Runit, S6, Supervisord, Circus)
    kinds = [k for k in (*everybody, Systemd) if k.title in ONLY or (not ONLY and k in everybody)]
    first = dict(zip(everybody, [f"{PROGRAMS}/traffic_cop", "runsvdir", "s6-svscan", "supervisord", "circusd"]))
    first[Systemd] = "systemctl"
    missing = [k.title for k in kinds if not shutil.which(first[k])]
    kinds = [k for k in kinds if k.title not in missing]
    if missing:
        print(f"not here: {', '.join(missing)}", file=sys.stderr)
    print("| | " + " | ".join(k.title for k in kinds) + " |")
    print("|---" * (len(kinds) + 1) + "|")
    for what, how in ROWS:
        cells = []
        for kind in kinds:
            try:
                cells.append(how(kind))
            except Exception as e:
                cells.append(f"failed: {e!r}")
        print(f"| {what} | " + " | ".join(cells) + " |", flush=True)
    print(f"\nThe program itself takes {own_start():.1f} ms to start (posix_spawn, median of 50).")


main()
