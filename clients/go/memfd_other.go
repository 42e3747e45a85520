//go:build !linux

package weave

import (
	"net"
	"os"
)

// Other systems have no memfds. The daemon runs on Linux only, but its socket may be forwarded to another system.

func checkSealedMemfd(*os.File, int64) error {
	return protocolError("a memfd on a system without memfds")
}

var descriptorRoom = 0

func readWithDescriptors(socket *net.UnixConn, buffer, _ []byte) (int, []*os.File, error) {
	n, err := socket.Read(buffer)
	return n, nil, err
}
