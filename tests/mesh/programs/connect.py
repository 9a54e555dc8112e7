"""Connects as an application does and says how that ended, as JSON: `connect.py blocking|edge HOST PORT [TEXT]`.

`edge` connects without blocking and waits with an edge-triggered epoll, as event-driven runtimes do.
"""
import errno
import json
import select
import socket
import sys
import time


def blocking(sock, to):
    code = sock.connect_ex(to)
    return code, 1


def edge(sock, to):
    sock.setblocking(False)
    poll = select.epoll()
    poll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
    code = sock.connect_ex(to)
    assert code == errno.EINPROGRESS, code
    wakes = 0
    while True:
        events = poll.poll(60)
        wakes += 1
        assert events, "nothing happened"
        if events[0][1] & (select.EPOLLOUT | select.EPOLLERR):
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), wakes


mode, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
sock = socket.socket(family, socket.SOCK_STREAM)
start = time.monotonic()
code, wakes = {"blocking": blocking, "edge": edge}[mode](sock, (host, port))
told = {"connect": errno.errorcode.get(code, "ok"), "ms": (time.monotonic() - start) * 1000, "wakes": wakes}
if code == 0 and len(sys.argv) > 4:
    sock.setblocking(True)
    sock.settimeout(10)
    sock.sendall(sys.argv[4].encode())
    told["received"] = sock.recv(4096).decode()
    told["getpeername"] = sock.getpeername()[0]
    told["getsockname"] = sock.getsockname()[0]
print(json.dumps(told))
