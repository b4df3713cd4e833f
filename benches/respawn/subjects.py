"""What is struck: each subject with how it is configured and started, on the first core, and which of its processes serves.

Proxies (the suite, Traffic Server, nginx, HAProxy) are configured as in benches/proxy: one worker thread, one page of one
origin in their cache (HAProxy has it in its configuration). Supervisors of any program run one and the same worker, benches/proxy/bare.c. Times that decide how
soon somebody is replaced are the defaults, but for what `note` says.
"""
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "proxy"))
import peers  # noqa: E402

WORKER = "bare"  # the name by which the simple worker is known


def read(pid, file):
    """Nothing of one that is gone."""
    try:
        return Path(f"/proc/{pid}/{file}").read_text()
    except OSError:
        return ""


def comm(pid):
    return read(pid, "comm").strip()


def stat(pid):
    """What follows the name: its state, its parent, and so on."""
    return read(pid, "stat").rsplit(")", 1)[-1].split() or ["X", "0"]


def alive(pid):
    return stat(pid)[0] not in "ZX"


def living(one):
    return [p for p in one.pids() if alive(p)]


class Supervisor(peers.Server):
    """One of the simple worker, or of one of its own that answers by itself."""

    note = ""
    forgives = True
    path = "/100"

    def __init__(self, work, core, tools):
        super().__init__(type(self).__name__, work, core)
        self.worker = tools / WORKER
        self.start()
        self.wait()

    def workers(self):
        """Those that serve, the oldest first."""
        return [p for p in living(self) if comm(p) == WORKER]

    def at_rest(self):
        """Those that have to be there."""
        return living(self)

    def write(self, file, text, mode=0o644):
        path = self.dir / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def run_script(self, file="services/web/run"):
        """For those who start whatever is called `run`."""
        return self.write(file, f"#!/bin/sh\nexec {self.worker} {self.port}\n", 0o755)

    def ask(self, sig, wait=10):
        """Ends it as its init would; what then is left is killed."""
        self.process.send_signal(sig)
        try:
            self.process.wait(wait)
        except subprocess.TimeoutExpired:
            pass

    def stop(self):
        left = self.pids()
        self.ask(signal.SIGTERM)
        for pid in filter(alive, left):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        self.process.wait()


class Proxy:
    """As benches/proxy has it."""

    note = ""
    # has forgotten the last kill when the next one comes
    forgives = True
    path = "/100"

    def at_rest(self):
        return living(self)


class Suite(Proxy, peers.Ours):
    title = "traffic suite"
    program = None

    def workers(self):
        return [p for p in living(self) if read(p, "comm").startswith("traffic_server") and p == self.server_pid()]


class SuiteWorker(Supervisor):
    title = "traffic_manager, any worker"
    note = '`server.command`, `watchdog = "2s"`'
    program = None

    def start(self):
        conf = self.write("conf.toml", f"""[suite]
runtime_dir = "{self.dir}/run"
state_dir = "{self.dir}/state"
log = "warn"
allow_root = true
[server]
listen = ["127.0.0.1:{self.port}"]
command = ["{self.worker}"]
watchdog = "2s"
""")
        self.run(peers.PROGRAMS / "traffic_cop", "start", "-f", "-c", conf)


class TrafficServer(Proxy, peers.TrafficServer):
    title = "Traffic Server"
    program = "traffic_layout"
    note = "`traffic_manager`, one event thread; started anew for each kill, since its wait doubles with each one (1, 2, 4 … 85 s)"
    forgives = False

    def run(self, program, *args):
        super().run(Path(program).with_name("traffic_manager"), *args)

    def workers(self):
        return [p for p in living(self) if "/traffic_server" in read(p, "cmdline").split("\0")[0]]


class Nginx(Proxy, peers.Nginx):
    title = "nginx"
    program = "nginx"
    worker_connections = 1024

    def workers(self):
        return [p for p in living(self) if "worker process" in read(p, "cmdline")]


class Gunicorn(Supervisor):
    title = "gunicorn"
    program = "gunicorn"
    count = 1
    note = "`-k gthread`: its default worker knows no keep-alive"

    def start(self):
        self.write("app.py", 'def app(environ, start):\n    start("200 OK", [("Content-Length", "100")])\n    return [b"x" * 100]\n')
        self.run(shutil.which(self.program), "--chdir", self.dir, "-b", f"127.0.0.1:{self.port}", "-w", self.count, "-k", "gthread",
                 "--threads", "4", "--keep-alive", "75", "app:app", env={"PYTHONDONTWRITEBYTECODE": "1"})

    def workers(self):
        return [p for p in living(self) if p != self.process.pid]


class Gunicorn2(Gunicorn):
    title = "gunicorn, 2 workers"
    count = 2


class S6(Supervisor):
    title = "s6"
    program = "s6-svscan"

    def start(self):
        self.run_script()
        self.run("s6-svscan", self.dir / "services")


class Runit(Supervisor):
    title = "runit"
    program = "runsvdir"

    def start(self):
        self.run_script()
        self.run("runsvdir", self.dir / "services")

    def ask(self, sig, wait=10):
        super().ask(signal.SIGHUP, wait)


class Supervisord(Supervisor):
    title = "supervisord"
    program = "supervisord"
    note = "`autorestart=true`"

    def start(self):
        conf = self.write("conf", f"""[supervisord]
nodaemon=true
user=root
logfile={self.dir}/log
pidfile={self.dir}/pid
[program:web]
command={self.worker} {self.port}
autorestart=true
stdout_logfile=NONE
stderr_logfile=NONE
""")
        self.run("supervisord", "-c", conf)


class Circus(Supervisor):
    title = "circus"
    program = "circusd"

    def start(self):
        conf = self.write("circus.ini", f"""[circus]
endpoint = tcp://127.0.0.1:{peers.free_port()}
pubsub_endpoint = tcp://127.0.0.1:{peers.free_port()}
{self.watcher()}""")
        self.run(shutil.which("circusd"), conf)

    def watcher(self):
        return f"[watcher:web]\ncmd = {self.worker} {self.port}\n"


class CircusSocket(Circus):
    title = "circus, its socket"
    note = "`[socket]`, handed over as LISTEN_FDS"

    def watcher(self):
        # the number that it has at its own is the one that the worker inherits
        script = self.write("run", f"#!/bin/sh\nexec {self.worker} 3 3<&$1\n", 0o755)
        return (f"[watcher:web]\ncmd = {script} $(circus.sockets.web)\nuse_sockets = True\n[env:web]\nLISTEN_FDS = 1\n"
                f"[socket:web]\nhost = 127.0.0.1\nport = {self.port}\n")


class Booted(Supervisor):
    """Under systemd as the first process of a machine of systemd-nspawn: this machine's /usr, this machine's network."""

    program = "systemd-nspawn"
    units = {}

    def start(self):
        self.write("machine/bench.target", "[Unit]\nDefaultDependencies=no\n" + "".join(f"Wants={u}\n" for u in self.wanted()))
        for unit, text in self.unit_files().items():
            self.write(f"machine/{unit}", f"[Unit]\nDefaultDependencies=no\n{text}")
        self.run("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--volatile=yes", "--directory=/",
                 f"--machine=respawn-{self.port}", f"--bind={self.dir}/machine:/etc/systemd/system.control", f"--bind={self.dir}",
                 f"--bind-ro={self.worker.parent}", "--", "--unit=bench.target", env={"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"})

    def at_rest(self):
        """The machine's first process and what it supervises: not its journal, nor who boots it."""
        first = next(p for p in self.pids() if comm(p) == "systemd" and comm(stat(p)[1]) == "systemd-nspawn")
        return [first, *(p for p in living(self) if comm(p) in (WORKER, "haproxy"))]


class Systemd(Booted):
    title = "systemd, its socket"
    note = "`.socket`, `Restart=always`, `RestartSec=0`, `WatchdogSec=2`; in systemd-nspawn, its first process is counted"

    def wanted(self):
        return ["web.socket", "web.service"]

    def unit_files(self):
        return {
            "web.socket": f"[Socket]\nListenStream=127.0.0.1:{self.port}\n",
            "web.service": f"[Service]\nType=notify\nExecStart={self.worker} 3\nRestart=always\nRestartSec=0\nWatchdogSec=2\n",
        }


class Haproxy(Booted):
    title = "HAProxy"
    program = "haproxy"
    note = "`-Ws` under systemd with the unit of Debian: its master ends when its worker does; in systemd-nspawn"

    def wanted(self):
        return ["haproxy.service"]

    def unit_files(self):
        conf = self.write("machine/conf", f"""global
 nbthread 1
{peers.HAPROXY}frontend f
 bind 127.0.0.1:{self.port} backlog 4096
 http-request return status 200 content-type text/plain string {"x" * 100}
""")
        start = f"{shutil.which('haproxy')} -Ws -f /etc/systemd/system.control/{conf.name} -p /run/haproxy.pid"
        return {"haproxy.service": f"[Service]\nType=notify\nExecStart={start}\nKillMode=mixed\nRestart=always\nSuccessExitStatus=143\n"}

    def workers(self):
        return [p for p in living(self) if comm(p) == "haproxy" and comm(stat(p)[1]) == "haproxy"]


SUBJECTS = [Suite, SuiteWorker, TrafficServer, Nginx, Haproxy, Gunicorn, Gunicorn2, Systemd, S6, Runit, Supervisord, Circus, CircusSocket]


def missing(subject):
    """What it takes and isn't here."""
    programs = [subject.program] + (["systemd-nspawn"] if issubclass(subject, Booted) else [])
    return [p for p in programs if p and not shutil.which(p)]


def start(subject, work, cores, origin, tools):
    """A new one in a directory of its own. It has answered."""
    one = subject(work, cores[0], origin) if issubclass(subject, Proxy) else subject(work, cores[0], tools)
    deadline = time.monotonic() + 30
    while not one.workers():
        if time.monotonic() > deadline:
            raise SystemExit(f"{one.title} has no worker")
        time.sleep(0.05)
    return one
