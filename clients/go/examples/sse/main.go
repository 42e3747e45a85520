// Command sse lets a browser follow a generation: it serves server-sent events on a Unix socket or on a loopback
// address. Try it with: curl -N 'http://127.0.0.1:8080/generate?model=shapes&prompt=a+red+circle'
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	weave "weave-compute/clients/go"
)

func main() {
	socket := flag.String("socket", "", "the daemon's `path`, instead of the usual one")
	address := flag.String("listen", "127.0.0.1:8080", "unix:PATH, or a loopback `address` with its port")
	flag.Parse()
	client, err := weave.Dial(context.Background(), *socket)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	listener, err := listen(*address)
	if err != nil {
		log.Fatal(err)
	}
	server := http.Server{Handler: handler{client}, ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(server.Serve(listener))
}

// listen refuses every address that another machine could reach.
func listen(address string) (net.Listener, error) {
	if path, isUnix := strings.CutPrefix(address, "unix:"); isUnix {
		return net.Listen("unix", path)
	}
	if !isLocal(address) {
		return nil, fmt.Errorf("%s is not a loopback address", address)
	}
	return net.Listen("tcp", address)
}
