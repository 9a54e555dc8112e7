// Answers each connection with the peer as Go's accept gives it, and as getpeername(2) gives it.
package main

import (
	"fmt"
	"net"
	"os"
	"syscall"
)

func main() {
	listener, err := net.Listen("tcp", ":"+os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			continue
		}
		accepted := connection.RemoteAddr().(*net.TCPAddr)
		raw, err := connection.(*net.TCPConn).SyscallConn()
		if err != nil {
			continue
		}
		var peer syscall.Sockaddr
		raw.Control(func(fd uintptr) { peer, _ = syscall.Getpeername(int(fd)) })
		if six, is := peer.(*syscall.SockaddrInet6); is {
			fmt.Fprintf(connection, "%s %d %s %d\n", accepted.IP, accepted.Port, net.IP(six.Addr[:]), six.Port)
		} else if four, is := peer.(*syscall.SockaddrInet4); is {
			fmt.Fprintf(connection, "%s %d %s %d\n", accepted.IP, accepted.Port, net.IP(four.Addr[:]), four.Port)
		}
		connection.Close()
	}
}
