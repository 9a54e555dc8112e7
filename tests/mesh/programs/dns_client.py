"""Asks a name server over UDP: as resolvers do, from a fresh socket each time, every other one connected. Prints how many
queries were answered."""
import json
import socket
import struct
import sys
import time

server, count = (sys.argv[1], int(sys.argv[2])), int(sys.argv[3])
answered, lost = 0, []
for number in range(count):
    name = b"".join(bytes([len(part)]) + part for part in (b"q%d" % number, b"shop", b"svc")) + b"\0"
    query = struct.pack(">HHHHHH", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + name + b"\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(5)
        try:
            if number % 2:
                asking.connect(server)
                asking.send(query)
                answer, sender = asking.recv(512), asking.getpeername()
            else:
                asking.sendto(query, server)
                answer, sender = asking.recvfrom(512)
        except OSError as error:
            lost.append(f"{number}: {error}")
            continue
    good = answer[:2] == query[:2] and answer[-4:] == b"\xc0\x00\x02\x07" and sender == server
    answered += good
    if not good:
        lost.append(f"{number}: {answer!r} from {sender}")
    time.sleep(0.001)
print(json.dumps({"asked": count, "answered": answered, "lost": lost[:5]}))
