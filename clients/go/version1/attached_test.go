package version1

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"weave-compute/clients/go/internal/testdaemon"
)

// Long enough for a busy machine; an idle one needs a hundredth of it.
const (
	untilAttached = 30 * time.Second
	untilGone     = 15 * time.Second
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
			t.Error("the program's socket was removed")
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

// expectGone fails the test unless the daemon and all of its processes exit in time.
func expectGone(t *testing.T, command *exec.Cmd, processes []int) {
	t.Helper()
	deadline := time.Now().Add(untilGone)
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	select {
	case <-ended:
	case <-time.After(untilGone):
		t.Error("the daemon is still running")
		_ = command.Process.Kill()
		<-ended
	}
	for _, process := range processes {
		for isRunning(process) && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
		if isRunning(process) {
			t.Errorf("process %d of the daemon is still running", process)
		}
	}
}

func TestAttachedEndsWithItsConnectionOrItsStandardInput(t *testing.T) {
	type closing func(*net.UnixConn, io.Closer) error
	connection := func(connection *net.UnixConn, _ io.Closer) error { return connection.Close() }
	standardInput := func(_ *net.UnixConn, stdin io.Closer) error { return stdin.Close() }
	atOnce := func(*testing.T, *net.UnixConn) {}
	idle := func(t *testing.T, connection *net.UnixConn) { draw(t, connection, good()) } // this is early: the daemon waits
	inAJob := func(t *testing.T, connection *net.UnixConn) {
		idle(t, connection)
		long := good()
		long.steps = 100
		for range 4 {
			_, err := connection.Write(long.frame())
			must(t, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	for name, ending := range map[string]struct {
		reach func(*testing.T, *net.UnixConn)
		close closing
	}{
		"the connection, at once":  {atOnce, connection},
		"the connection, idle":     {idle, connection},
		"the connection, in a job": {inAJob, connection},
		"standard input, at once":  {atOnce, standardInput},
		"standard input, in a job": {inAJob, standardInput},
	} {
		t.Run(name, func(t *testing.T) {
			connection, stdin, command := attach(t)
			ending.reach(t, connection)
			processes := descendants(command.Process.Pid)
			must(t, ending.close(connection, stdin))
			expectGone(t, command, processes)
		})
	}
}

// descendants returns the child processes of pid, and theirs (proc_pid_task(5)).
func descendants(pid int) []int {
	var found []int
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		children, _ := os.ReadFile(list)
		for _, child := range strings.Fields(string(children)) {
			if number, err := strconv.Atoi(child); err == nil {
				found = append(append(found, number), descendants(number)...)
			}
		}
	}
	return found
}

// isRunning is also false for a zombie, which its new parent has not reaped yet.
func isRunning(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, found := strings.Cut(string(status), ") ")
	return err == nil && found && !strings.HasPrefix(state, "Z")
}
