// Connects to HOST PORT and prints what it sees of both ends, and what the server answered.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

func main() {
	connection, err := net.DialTimeout("tcp", net.JoinHostPort(os.Args[1], os.Args[2]), 10*time.Second)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	own, peer := connection.LocalAddr().String(), connection.RemoteAddr().String()
	answer, err := io.ReadAll(connection)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	told, err := json.Marshal(map[string]any{"getsockname": own, "getpeername": peer, "server": json.RawMessage(answer)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(string(told))
}
