# Connects to HOST PORT and prints what it sees of both ends, and what the server answered.
import json
import socket
import sys

connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)


def text(address):
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{host}:{address[1]}"


own, peer = text(connection.getsockname()), text(connection.getpeername())
answer = b""
while chunk := connection.recv(4096):
    answer += chunk
print(json.dumps({"getsockname": own, "getpeername": peer, "server": json.loads(answer)}))
