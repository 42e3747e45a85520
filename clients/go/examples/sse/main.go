// Command sse streams the progress of a generation to a browser: it serves server-sent events on a Unix socket or a
// loopback address. Try it with: curl -N 'http://127.0.0.1:8080/generate?model=shapes&prompt=a+red+circle'
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
	socket := flag.String("socket", "", "the `path` of the daemon's socket, instead of the default")
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

// listen refuses addresses that other machines could reach.
func listen(address string) (net.Listener, error) {
	if path, isUnix := strings.CutPrefix(address, "unix:"); isUnix {
		return net.Listen("unix", path)
	}
	if !isLocal(address) {
		return nil, fmt.Errorf("%s is not a loopback address", address)
	}
	return net.Listen("tcp", address)
}
