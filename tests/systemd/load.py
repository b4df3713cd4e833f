#!/usr/bin/env python3
"""Load on the suite until SIGTERM: keep-alive connections and new ones. The last line says what went wrong, as JSON.

A connection that the server has announced to close is opened again; anything else that ends or is refused counts as lost.
"""
import http.client, json, signal, sys, threading, time

host, port, connections, rate = "127.0.0.1", int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
end = threading.Event()
count = {"ok": 0, "refused": 0, "lost": 0, "status": 0}
faults, lock = [], threading.Lock()
signal.signal(signal.SIGTERM, lambda *_: end.set())


def note(kind, why=""):
    with lock:
        count[kind] += 1
        if why and len(faults) < 10:
            faults.append(f"{kind}: {why}")


def ask(c):
    c.request("GET", "/", headers={"Host": "test"})
    r = c.getresponse()
    r.read()
    note("ok" if r.status == 200 else "status", "" if r.status == 200 else str(r.status))
    return not r.will_close


def keep_alive():
    c = None
    while not end.is_set():
        try:
            if c is None:
                c = http.client.HTTPConnection(host, port, timeout=30)
                c.connect()
            if not ask(c):
                c.close()
                c = None
        except ConnectionRefusedError as e:
            note("refused", repr(e))
            c = None
        except Exception as e:
            note("lost", repr(e))
            c = None
        end.wait(0.02)


def fresh():
    while not end.is_set():
        try:
            c = http.client.HTTPConnection(host, port, timeout=30)
            c.request("GET", "/", headers={"Host": "test", "Connection": "close"})
            c.getresponse().read()
            note("ok")
            c.close()
        except ConnectionRefusedError as e:
            note("refused", repr(e))
        except Exception as e:
            note("lost", repr(e))
        end.wait(1 / rate)


threads = [threading.Thread(target=keep_alive) for _ in range(connections)] + [threading.Thread(target=fresh)]
for t in threads:
    t.start()
for t in threads:
    t.join(40)
print(json.dumps({**count, "faults": faults}))
