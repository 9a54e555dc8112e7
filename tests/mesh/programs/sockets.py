"""Tries one thing with a socket and prints one JSON object with what came of each step.

bind HOST PORT [reuse]: binds and listens. Any other word is a kind of socket, which connects to HOST PORT, says hello and
reads the answer. device HOST PORT NAME: a TCP socket that is bound to the interface NAME.
Any connecting kind, patient: each step may take a minute, not three seconds.
"""
import errno
import json
import socket
import sys

KINDS = {
    "tcp": (socket.SOCK_STREAM, 0),
    "fastopen": (socket.SOCK_STREAM, 0),
    "device": (socket.SOCK_STREAM, 0),
    "mptcp": (socket.SOCK_STREAM, 262),
    "udp": (socket.SOCK_DGRAM, 0),
    "udplite": (socket.SOCK_DGRAM, 136),
    "sctp": (socket.SOCK_STREAM, 132),
    "sctp-packets": (socket.SOCK_SEQPACKET, 132),
    "raw": (socket.SOCK_RAW, 255),
    "raw-icmp": (socket.SOCK_RAW, 1),
    "raw-tcp": (socket.SOCK_RAW, 6),
}
told = {}


def step(name, work):
    try:
        answer = work()
        told[name] = "ok" if answer is None else answer
        return answer if answer is not None else True
    except OSError as error:
        told[name] = errno.errorcode.get(error.errno, str(error))
        return None


def main():
    kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if kind == "bind":
        own = socket.socket(family, socket.SOCK_STREAM)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if "reuse" in sys.argv:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if step("bind", lambda: own.bind((host, port))):
            step("listen", own.listen)
        return
    number, protocol = KINDS[kind]
    try:
        own = socket.socket(family, number, protocol)
    except OSError as error:
        told["socket"] = errno.errorcode.get(error.errno, str(error))
        return
    told["socket"] = "ok"
    own.settimeout(60 if "patient" in sys.argv else 3)
    if kind == "device":
        device = sys.argv[4].encode() + b"\0"
        step("device", lambda: own.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device))
    if kind == "fastopen":
        # Without blocking, the first one asks for a cookie only.
        own.settimeout(None)
        step("connect", lambda: None if own.sendto(b"hello", socket.MSG_FASTOPEN, (host, port)) else None)
        own.settimeout(3)
    elif step("connect", lambda: own.connect((host, port))):
        step("send", lambda: None if own.send(b"hello") else None)
    step("getpeername", lambda: "%s:%s" % own.getpeername()[:2])
    step("getsockname", lambda: own.getsockname()[0])
    step("received", lambda: own.recv(100).decode())


main()
print(json.dumps(told))
