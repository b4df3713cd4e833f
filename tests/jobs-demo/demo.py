"""Starts examples/jobs in a directory of its own, kills every program under load, and counts what clients saw."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

PROGRAMS = os.path.abspath(sys.argv[1])
EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../examples/jobs")
HELD = {"web": "8001", "node": "8002", "nginx": "8003"}
KILLS = 4
LIMIT = 30


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


class Load:
    """Clients of one address, a connection for each request."""

    def __init__(self, port):
        self.port, self.counts, self.go_on = port, {"ok": 0, "refused": 0, "lost": 0}, True
        self.threads = [threading.Thread(target=self.client) for _ in range(4)]
        for t in self.threads:
            t.start()

    def client(self):
        while self.go_on:
            try:
                with socket.create_connection(("127.0.0.1", int(self.port)), timeout=LIMIT) as s:
                    s.sendall(b"GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n")
                    answer = b""
                    while part := s.recv(4096):
                        answer += part
                good = answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"ok\n")
                self.counts["ok" if good else "lost"] += 1
            except ConnectionRefusedError:
                self.counts["refused"] += 1
            except OSError:
                self.counts["lost"] += 1
            time.sleep(0.002)

    def end(self):
        self.go_on = False
        for t in self.threads:
            t.join()
        return self.counts


class Demo:
    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="traffic-demo-")
        # nginx's workers are nobody's friends
        os.chmod(self.dir, 0o755)
        self.ports = {port: free_port() for port in ["6379", "8080", *HELD.values()]}
        for file in os.listdir(EXAMPLES):
            with open(f"{EXAMPLES}/{file}") as f:
                text = f.read().replace("/srv/demo", self.dir)
            for port, mine in self.ports.items():
                text = text.replace(port, mine)
            if file == "traffic.toml":
                head = f'[suite]\nallow_root = true\nruntime_dir = "{self.dir}/run"\nstate_dir = "{self.dir}/state"\n'
                text = head + text
            with open(f"{self.dir}/{file}", "w") as f:
                f.write(text)
        os.mkdir(f"{self.dir}/redis")
        self.log = open(f"{self.dir}/log", "wb")
        self.cop = subprocess.Popen(
            [f"{PROGRAMS}/traffic_cop", "start", "-f", "-c", f"{self.dir}/traffic.toml"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
        )

    def ask(self, *args):
        done = subprocess.run(
            [f"{PROGRAMS}/traffic_manager", *args, "-c", f"{self.dir}/traffic.toml"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )
        return done.stdout if done.returncode == 0 else None

    def until(self, what, is_so):
        end = time.monotonic() + LIMIT
        while not is_so():
            if time.monotonic() > end or self.cop.poll() is not None:
                with open(f"{self.dir}/log", errors="replace") as f:
                    print(f.read()[-6000:])
                raise SystemExit(f"not within {LIMIT} s: {what}")
            time.sleep(0.02)

    def pid(self, job):
        jobs = json.loads(self.ask("status") or '{"jobs": []}')["jobs"]
        found = [w for j in jobs if j["name"] == job for w in j["workers"]]
        return found[0]["pid"] if found and found[0]["state"] == "ready" else None

    def kill(self, job):
        before = self.pid(job)
        os.kill(before, signal.SIGKILL)
        self.until(f"another {job}", lambda: self.pid(job) not in (None, before))

    def end(self):
        self.cop.send_signal(signal.SIGTERM)
        self.cop.wait(60)
        left = [p for p in os.listdir("/proc") if p.isdigit() and self.is_mine(p)]
        shutil.rmtree(self.dir, ignore_errors=True)
        return left

    def is_mine(self, pid):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                return self.dir.encode() in f.read()
        except OSError:
            return False


def main():
    demo, wrong = Demo(), []
    try:
        demo.until("all are ready", lambda: all(demo.pid(j) for j in ["redis", *HELD]))
        events = [json.loads(line) for line in demo.ask("events").splitlines()]
        ready = {e["job"]: e["seq"] for e in reversed(events) if e["event"] == "ready"}
        begun = {e["job"]: e["seq"] for e in reversed(events) if e["event"] == "starting"}
        for job, after in [("web", "redis"), ("nginx", "web"), ("nginx", "node")]:
            if begun[job] < ready[after]:
                wrong.append(f"{job} was started before {after} was ready")
        print("started in order by readiness:", ", ".join(sorted(begun, key=begun.get)))
        for job, port in HELD.items():
            load = Load(demo.ports[port])
            for _ in range(KILLS):
                time.sleep(0.3)
                demo.kill(job)
            time.sleep(0.3)
            counts = load.end()
            print(f"{job}: killed {KILLS} times under load: {counts}")
            if counts["refused"] or counts["ok"] < 50:
                wrong.append(f"{job}: {counts}")
        demo.kill("redis")
        print("redis: killed, and ready again")
        load = Load(demo.ports[HELD["web"]])
        manager = int(open(f"{demo.dir}/run/manager.lock").read())
        before = {j: demo.pid(j) for j in HELD}
        os.kill(manager, signal.SIGKILL)
        demo.until("another manager has them all", lambda: {j: demo.pid(j) for j in HELD} == before)
        counts = load.end()
        print(f"the manager killed under load: the same processes go on: {counts}")
        if counts["refused"] or counts["lost"]:
            wrong.append(f"manager: {counts}")
        with open(f"{demo.dir}/tidied") as f:
            runs = f.read().split()
        print(f"the scheduled job has run {len(runs)} times")
        if len(runs) < 3:
            wrong.append("the scheduled job didn't run")
    finally:
        left = demo.end()
    if left:
        wrong.append(f"left behind: {left}")
    if wrong:
        raise SystemExit("FAILED: " + "; ".join(wrong))
    print("passed")


main()
