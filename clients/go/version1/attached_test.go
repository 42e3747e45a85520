package version1

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"weave-compute/clients/go/internal/testdaemon"
)

// The times that a user interface counts on; the daemon takes a tenth of them.
const (
	untilAttached = 5 * time.Second
	untilGone     = 2 * time.Second
)

// attach listens, starts the daemon on it and returns the daemon's connection.
func attach(t *testing.T) (*net.UnixConn, io.Closer, *exec.Cmd) {
	t.Helper()
	folder, err := testdaemon.New()
	must(t, err)
	path := filepath.Join(folder.Folder, "ui.sock")
	listening, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	command, err := folder.Prepared("--socket-path", path)
	must(t, err)
	stdin, err := command.StdinPipe()
	must(t, err)
	must(t, command.Start())
	t.Cleanup(func() {
		if command.ProcessState == nil {
			_ = command.Process.Kill()
			_ = command.Wait()
		}
		if _, err := os.Lstat(path); err != nil {
			t.Error("the socket that is not the daemon's is gone")
		}
		listening.Close()
		folder.Remove()
	})
	must(t, listening.SetDeadline(time.Now().Add(untilAttached)))
	connection, err := listening.AcceptUnix()
	must(t, err)
	must(t, connection.SetDeadline(time.Now().Add(60*time.Second)))
	return connection, stdin, command
}

func gone(t *testing.T, command *exec.Cmd) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	select {
	case <-ended:
	case <-time.After(untilGone):
		t.Error("the daemon is still there")
		<-ended
	}
}

func TestAttachedServesAnEarlyRequestAndEndsWithTheConnection(t *testing.T) {
	connection, _, command := attach(t)
	draw(t, connection, good())
	long := good()
	long.steps = 100
	for range 4 {
		_, err := connection.Write(long.frame())
		must(t, err)
	}
	time.Sleep(100 * time.Millisecond)
	connection.Close()
	gone(t, command)
}

func TestAttachedEndsWithStandardInput(t *testing.T) {
	connection, stdin, command := attach(t)
	draw(t, connection, good())
	long := good()
	long.steps = 100
	_, err := connection.Write(long.frame())
	must(t, err)
	stdin.Close()
	gone(t, command)
}
