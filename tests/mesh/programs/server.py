# Answers each connection with the peer as accept() and as getpeername() give it.
import socket
import sys

listener = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    connection, accepted = listener.accept()
    peer = connection.getpeername()
    connection.sendall(f"{accepted[0]} {accepted[1]} {peer[0]} {peer[1]}\n".encode())
    connection.close()
