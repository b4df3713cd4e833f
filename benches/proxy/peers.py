"""The servers that are compared: how each is configured as a caching proxy for one origin, and started on one core.

Every one listens on a port of its own, has one worker thread, 256 MiB of memory for its cache, keeps connections to the
origin, caches everything but what begins with /pass, and logs no requests.
"""
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# where our programs are
PROGRAMS = Path(os.environ.get("TRAFFIC_BIN") or ROOT / "target/release").absolute()
MEMORY = 256 << 20


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def tree(pid):
    """A process and all that come of it."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rsplit(")", 1)[1].split()[1]), []).append(int(entry))
    all_, todo = [], [pid]
    while todo:
        pid = todo.pop()
        all_.append(pid)
        todo += children.get(pid, [])
    return all_


def memory(pids):
    """KiB, of those that are still there: resident, and with what is shared divided by those who share it."""
    total = Counter()
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total.update({k: int(n) for k, n in re.findall(r"^(Rss|Pss):\s+(\d+)", text, re.M)})
    return total["Rss"], total["Pss"]


class Server:
    """One that runs."""

    def __init__(self, name, work, core):
        self.name, self.core, self.port = name, core, free_port()
        self.dir = Path(work) / name
        self.dir.mkdir(parents=True)
        self.process = None

    def run(self, *command, env=None):
        log = open(self.dir / "output", "w")
        self.process = subprocess.Popen(
            ["taskset", "-c", str(self.core), *map(str, command)],
            stdout=log, stderr=log, start_new_session=True, env={**os.environ, **(env or {})},
        )

    def pids(self):
        return tree(self.process.pid)

    def wait(self):
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                if time.monotonic() > deadline:
                    self.stop()
                    raise SystemExit(f"{self.name} doesn't listen:\n{(self.dir / 'output').read_text()}")
                time.sleep(0.05)

    def stop(self):
        pids = self.pids()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        self.process.wait()


class Origin(Server):
    """nginx with files: cacheable for an hour, but for what is below /pass/. /fill/SIZE/anything is a file of that size."""

    def __init__(self, work, core):
        super().__init__("origin", work, core)
        files = self.dir / "files"
        (files / "pass").mkdir(parents=True)
        for name, size in [("100", 100), ("1k", 1024), ("10k", 10240), ("100k", 102400), ("1m", 1 << 20), ("pass/1k", 1024)]:
            (files / name).write_text("x" * size)
        conf = self.dir / "conf"
        conf.write_text(f"""worker_processes 1; daemon off; pid {self.dir}/pid; error_log {self.dir}/error; user root;
worker_rlimit_nofile 20000;
events {{ worker_connections 16000; }}
http {{ access_log off; sendfile on; keepalive_requests 1000000000; keepalive_timeout 600;
 client_body_temp_path {self.dir}/a; proxy_temp_path {self.dir}/b; fastcgi_temp_path {self.dir}/c; uwsgi_temp_path {self.dir}/d; scgi_temp_path {self.dir}/e;
 server {{ listen 127.0.0.1:{self.port} backlog=4096; root {files}; default_type text/plain;
  location / {{ add_header Cache-Control max-age=3600; }}
  location /pass/ {{ add_header Cache-Control no-store; }}
  location ~ ^/fill/([^/]*)/ {{ add_header Cache-Control max-age=3600; rewrite ^/fill/([^/]*)/ /$1 break; }} }} }}
""")
        self.run("nginx", "-p", self.dir, "-c", conf)
        self.wait()


class Ours(Server):
    """The whole suite, continuity and standby on."""

    def __init__(self, work, core, origin, memory=MEMORY, continuity=True):
        super().__init__("traffic_suite" if continuity else "no_continuity", work, core)
        self.conf = self.dir / "conf.toml"
        self.conf.write_text(f"""[suite]
runtime_dir = "{self.dir}/run"
state_dir = "{self.dir}/state"
log = "warn"
allow_root = true
[server]
listen = ["127.0.0.1:{self.port}"]
threads = 1
continuity = {str(continuity).lower()}
idle_timeout = "600s"
[server.cache]
memory = "{memory}"
[[route]]
origin = ["http://127.0.0.1:{origin.port}"]
""")
        self.cop = PROGRAMS / "traffic_cop"
        self.run(self.cop, "start", "-f", "-c", self.conf)
        self.wait()
        # the manager listens before there is a server
        with socket.create_connection(("127.0.0.1", self.port), 30) as s:
            s.sendall(b"GET /100 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while s.recv(1 << 16):
                pass

    def server_pid(self):
        return int((self.dir / "run/server.lock").read_text())

    def stop(self):
        subprocess.run([self.cop, "stop", "-c", self.conf], capture_output=True, timeout=60)
        super().stop()


class Nginx(Server):
    worker_connections = 16000

    def __init__(self, work, core, origin, memory=MEMORY):
        super().__init__("nginx", work, core)
        conf = self.dir / "conf"
        conf.write_text(f"""worker_processes 1; daemon off; pid {self.dir}/pid; error_log {self.dir}/error; user root;
worker_rlimit_nofile 20000;
events {{ worker_connections {self.worker_connections}; }}
http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; keepalive_timeout 600;
 client_body_temp_path {self.dir}/a; proxy_temp_path {self.dir}/b; fastcgi_temp_path {self.dir}/c; uwsgi_temp_path {self.dir}/d; scgi_temp_path {self.dir}/e;
 proxy_cache_path {self.dir}/cache keys_zone=z:32m max_size={memory} inactive=1h;
 upstream o {{ server 127.0.0.1:{origin.port}; keepalive 128; keepalive_requests 1000000000; }}
 server {{ listen 127.0.0.1:{self.port} backlog=4096; proxy_http_version 1.1; proxy_set_header Connection "";
  location / {{ proxy_pass http://o; proxy_cache z; proxy_cache_valid 200 1h; }}
  location /pass/ {{ proxy_pass http://o; }} }} }}
""")
        self.run("nginx", "-p", self.dir, "-c", conf)
        self.wait()


# of HAProxy, wherever it is measured
HAPROXY = """defaults
 mode http
 timeout client 600s
 timeout server 60s
 timeout connect 5s
 timeout http-keep-alive 600s
"""


class Haproxy(Server):
    def __init__(self, work, core, origin, memory=MEMORY):
        super().__init__("haproxy", work, core)
        conf = self.dir / "conf"
        conf.write_text(f"""global
 maxconn 8000
 nbthread 1
{HAPROXY} http-reuse always
cache c
 total-max-size {memory >> 20}
 max-object-size {2 << 20}
 max-age 3600
frontend f
 bind 127.0.0.1:{self.port} backlog 4096
 use_backend pass if {{ path_beg /pass/ }}
 default_backend o
backend o
 http-request cache-use c
 http-response cache-store c
 server s 127.0.0.1:{origin.port}
backend pass
 server s 127.0.0.1:{origin.port}
""")
        self.run("haproxy", "-W", "-f", conf)
        self.wait()


class Varnish(Server):
    def __init__(self, work, core, origin, memory=MEMORY):
        super().__init__("varnish", work, core)
        vcl = self.dir / "default.vcl"
        vcl.write_text(f"""vcl 4.1;
backend default {{ .host = "127.0.0.1"; .port = "{origin.port}"; }}
sub vcl_recv {{ if (req.url ~ "^/pass/") {{ return (pass); }} return (hash); }}
""")
        self.run("varnishd", "-F", "-j", "none", "-n", self.dir / "n", "-a", f"127.0.0.1:{self.port}", "-f", vcl,
                 "-s", f"malloc,{memory}", "-p", "thread_pools=1", "-p", "timeout_idle=600", "-p", "listen_depth=4096")
        self.wait()


class TrafficServer(Server):
    def __init__(self, work, core, origin, memory=MEMORY):
        super().__init__("trafficserver", work, core)
        # the program, not ours of the same name
        program = next(p for p in ["/usr/bin/traffic_server", "/usr/sbin/traffic_server"] if os.path.exists(p))
        root = self.dir / "root"
        etc, var = root / "etc", root / "var"
        etc.mkdir(parents=True), var.mkdir()
        shutil.copytree("/etc/trafficserver/body_factory", etc / "body_factory")
        (root / "runroot.yaml").write_text(
            "prefix: /usr\nexec_prefix: /usr\nbindir: /usr/bin\nsbindir: /usr/sbin\nincludedir: /usr/include\n"
            "libdir: /usr/lib/trafficserver\nlibexecdir: /usr/lib/trafficserver/modules\n"
            f"sysconfdir: {etc}\ndatadir: {var}\nlocalstatedir: {var}\nruntimedir: {var}\nlogdir: {var}\ncachedir: {var}\n")
        (etc / "ip_allow.yaml").write_text("ip_allow:\n  - apply: in\n    ip_addrs: 127.0.0.1\n    action: allow\n    methods: ALL\n")
        (etc / "remap.config").write_text(f"map / http://127.0.0.1:{origin.port}/\n")
        cache = self.dir / "cache"
        cache.mkdir()
        (etc / "storage.config").write_text(f"{cache} {max(memory, 256 << 20) >> 20}M\n")
        (etc / "records.config").write_text(f"""CONFIG proxy.config.http.server_ports STRING {self.port}:ip-in=127.0.0.1
CONFIG proxy.config.exec_thread.autoconfig INT 0
CONFIG proxy.config.exec_thread.limit INT 1
CONFIG proxy.config.accept_threads INT 0
CONFIG proxy.config.cache.ram_cache.size INT {memory}
CONFIG proxy.config.log.logging_enabled INT 0
CONFIG proxy.config.admin.user_id STRING #-1
CONFIG proxy.config.http.keep_alive_no_activity_timeout_in INT 600
CONFIG proxy.config.url_remap.remap_required INT 1
CONFIG proxy.config.http.cache.when_to_revalidate INT 0
CONFIG proxy.config.net.connections_throttle INT 30000
""")
        self.run(program, f"--run-root={root}/runroot.yaml")
        self.wait()


class Bare(Server):
    """benches/proxy/bare.c: what sockets cost, with nothing done for them."""

    def __init__(self, work, core, origin):
        super().__init__("bare loop", work, core)
        program = self.dir / "bare"
        subprocess.run(["cc", "-O2", "-o", program, Path(__file__).with_name("bare.c")], check=True)
        self.run(program, self.port)
        self.wait()


PEERS = {"nginx": Nginx, "haproxy": Haproxy, "trafficserver": TrafficServer, "varnish": Varnish}
PACKAGES = {"nginx": "nginx-light", "haproxy": "haproxy", "traffic_layout": "trafficserver", "varnishd": "varnish",
            "wrk": "wrk", "cc": "gcc"}


def install():
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if missing:
        done = subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", *missing], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"these are needed: {' '.join(missing)}\n{done.stderr}")
