"""Takes port 15008 of a pod that no agent serves: `silent` accepts and never says a word, `full` lets SYNs go unanswered.
Prints "ready", and stays."""
import socket
import sys
import time

server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("0.0.0.0", 15008))
held = []
if sys.argv[1] == "full":
    server.listen(0)
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex((sys.argv[2], 15008))
        held.append(filler)
    time.sleep(0.3)
    print("ready", flush=True)
    time.sleep(600)
server.listen(64)
print("ready", flush=True)
while True:
    held.append(server.accept())
