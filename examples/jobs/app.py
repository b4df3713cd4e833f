"""A WSGI application that won't start without Redis."""

import os
import socket

HOST, PORT = os.environ["REDIS"].split(":")


def ask(words):
    with socket.create_connection((HOST, int(PORT)), timeout=5) as s:
        s.sendall(words + b"\r\n")
        return s.recv(100)


if ask(b"PING") != b"+PONG\r\n":
    raise SystemExit("Redis isn't ready")


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"ok\n"]
