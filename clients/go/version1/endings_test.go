package version1

import (
	"encoding/binary"
	"io"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"

	"weave-compute/clients/go/internal/testdaemon"
)

// ownDaemon returns a daemon that the test may stop, and a connection to it.
func ownDaemon(t *testing.T, limits string) (*testdaemon.Daemon, net.Conn) {
	t.Helper()
	own, err := testdaemon.WithLimits(limits)
	must(t, err)
	t.Cleanup(own.Remove)
	must(t, own.Start())
	connection, err := net.Dial("unix", own.Socket)
	must(t, err)
	t.Cleanup(func() { connection.Close() })
	must(t, connection.SetDeadline(time.Now().Add(60*time.Second)))
	return own, connection
}

func TestJobTimeoutGetsCode10(t *testing.T) {
	_, connection := ownDaemon(t, "v1_seconds = 0.05\n")
	began := time.Now()
	if got := ask(t, connection, good().frame()); got.code != 10 || got.status != 500 || got.id != good().id {
		t.Errorf("code %d, status %d: %s", got.code, got.status, got.message)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the error took %v", took)
	}
}

func TestAStoppingDaemonAnswersWhatIsInFlight(t *testing.T) {
	own, connection := ownDaemon(t, "")
	draw(t, connection, good()) // starts the worker
	long := good()
	long.steps = 100
	_, err := connection.Write(long.frame())
	must(t, err)
	time.Sleep(100 * time.Millisecond)
	own.Signal(syscall.SIGTERM)
	if got, err := read(connection); err != nil || got.code != 99 || got.status != 500 || got.id != long.id {
		t.Errorf("code %d, status %d: %s, %v", got.code, got.status, got.message, err)
	}
	if rest, err := io.ReadAll(connection); len(rest) > 0 || err != nil {
		t.Errorf("%d more bytes, %v", len(rest), err)
	}
}

func TestVersion2IsAnsweredInVersion2(t *testing.T) {
	const status = `{"op":"status"}`
	connection := connect(t)
	draw(t, connection, good())
	_, err := connection.Write(append(header("WEVE", 2, 0x0010, uint32(len(status)), 7), status...))
	must(t, err)
	var head [16]byte
	_, err = io.ReadFull(connection, head[:])
	must(t, err)
	if binary.BigEndian.Uint16(head[4:]) != 2 || binary.BigEndian.Uint32(head[12:]) != 7 {
		t.Errorf("answered by %x", head)
	}
	_, err = io.CopyN(io.Discard, connection, int64(binary.BigEndian.Uint32(head[8:])))
	must(t, err)
	draw(t, connection, good())
}

func number(value uint32) string { return strconv.FormatUint(uint64(value), 10) }
