// Package testdaemon starts the real daemon for tests, in its own runtime folder.
package testdaemon

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// The demo model, and limits that no test reaches by accident.
const config = `
default_model = "shapes"

[models.shapes]
path = %q
family = "sd1"
bounds.width = { min = 64, max = 128 }
bounds.height = { min = 64, max = 128 }
bounds.pixels = { min = 4096, max = 131072 }
defaults = { width = 128, height = 128, steps = 20, cfg_scale = 2.0, scheduler = "ddim" }

[limits]
requests_per_second = 10000.0
burst_per_uid = 10000
queue = 1000
queue_per_uid = 1000
`

// Command returns the daemon's program: $WEAVE_COMPUTE, or the one in the source tree's virtual environment.
func Command() string {
	if command, found := os.LookupEnv("WEAVE_COMPUTE"); found {
		return command
	}
	return filepath.Join(Tree(), ".venv", "bin", "weave-compute")
}

// Tree returns the root of the source tree.
func Tree() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "..", "..")
}

// Daemon is a daemon that serves Socket. After Stop or Kill it can be started again.
type Daemon struct {
	Folder  string // XDG_RUNTIME_DIR
	Socket  string
	process *exec.Cmd
}

// Main is the body of a TestMain: it starts a daemon, runs the tests, and stops the daemon.
func Main(m *testing.M, daemon **Daemon) {
	started, err := New()
	if err == nil {
		err = started.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	*daemon = started
	status := m.Run()
	started.Remove()
	os.Exit(status)
}

// New creates the folder of a daemon, which Start then starts.
func New() (*Daemon, error) { return WithLimits("") }

// WithLimits is like New, with additional lines for [limits] in the config.
func WithLimits(limits string) (*Daemon, error) {
	folder, err := os.MkdirTemp("", "weave-go-")
	if err != nil {
		return nil, err
	}
	configFolder := filepath.Join(folder, "config", "weave")
	if err := os.MkdirAll(configFolder, 0o700); err != nil {
		return nil, err
	}
	model, err := filepath.Abs(filepath.Join(Tree(), "models", "shapes"))
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf(config, model) + limits
	if err := os.WriteFile(filepath.Join(configFolder, "weave-compute.toml"), []byte(text), 0o600); err != nil {
		return nil, err
	}
	return &Daemon{Folder: folder, Socket: filepath.Join(folder, "weave", "weave.sock")}, nil
}

// Prepared returns the daemon's command, ready to start. Its output goes to the file log in the folder.
func (d *Daemon) Prepared(arguments ...string) (*exec.Cmd, error) {
	log, err := os.OpenFile(filepath.Join(d.Folder, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	command := exec.Command(Command(), arguments...)
	command.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+d.Folder, "XDG_CONFIG_HOME="+filepath.Join(d.Folder, "config"))
	command.Stdout, command.Stderr = log, log
	// The daemon exits with the tests, even if they are killed or panic.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return command, nil
}

// Start starts the daemon, and returns when it listens.
func (d *Daemon) Start() error {
	command, err := d.Prepared()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	d.process = command
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if socket, err := net.Dial("unix", d.Socket); err == nil {
			return socket.Close()
		}
	}
	d.Stop()
	return fmt.Errorf("the daemon does not listen:\n%s", d.Log())
}

// Signal sends the daemon a signal, without waiting.
func (d *Daemon) Signal(signal os.Signal) { _ = d.process.Process.Signal(signal) }

// Stop sends SIGTERM, and returns when the daemon has exited.
func (d *Daemon) Stop() { d.end(syscall.SIGTERM) }

// Kill kills the supervisor, and returns when the other processes have exited and the socket refuses connections.
func (d *Daemon) Kill() {
	d.end(syscall.SIGKILL)
	for socket, err := net.Dial("unix", d.Socket); err == nil; socket, err = net.Dial("unix", d.Socket) {
		socket.Close()
		time.Sleep(10 * time.Millisecond)
	}
}

// Remove stops the daemon and removes its folder.
func (d *Daemon) Remove() {
	d.Stop()
	os.RemoveAll(d.Folder)
}

// Log returns the daemon's output.
func (d *Daemon) Log() string {
	text, _ := os.ReadFile(filepath.Join(d.Folder, "log"))
	return string(text)
}

func (d *Daemon) end(signal syscall.Signal) {
	if d.process != nil {
		_ = d.process.Process.Signal(signal)
		_ = d.process.Wait()
		d.process = nil
	}
}
