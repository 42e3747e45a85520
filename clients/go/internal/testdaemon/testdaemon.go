// Package testdaemon starts the real daemon for tests, in a runtime folder of its own.
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

// The demo model, and no limit on how many requests a second there may be.
const config = `
default_model = "shapes"

[models.shapes]
path = %q
family = "sd1"
bounds.width = { min = 64, max = 64 }
bounds.height = { min = 64, max = 64 }
bounds.pixels = { min = 4096, max = 32768 }
defaults = { width = 64, height = 64, steps = 20, cfg_scale = 3.0, scheduler = "ddim" }

[limits]
requests_per_second = 10000.0
burst_per_uid = 10000
queue = 1000
queue_per_uid = 1000
`

// Command is the daemon's program: $WEAVE_COMPUTE, else the one in the source tree's virtual environment.
func Command() string {
	if command, found := os.LookupEnv("WEAVE_COMPUTE"); found {
		return command
	}
	return filepath.Join(Tree(), ".venv", "bin", "weave-compute")
}

// Tree is the source tree that this module is a part of.
func Tree() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "..", "..")
}

// Daemon is a daemon that serves Socket, or one that was stopped or killed and can be started again.
type Daemon struct {
	Folder  string // XDG_RUNTIME_DIR
	Socket  string
	process *exec.Cmd
}

// Main is for TestMain: it runs the tests with a daemon that is started before them and stopped after them.
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

// New makes the folder of a daemon.
func New() (*Daemon, error) { return WithLimits("") }

// WithLimits is New with more lines for the [limits] of the config.
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

// Prepared is the daemon's command in its environment, not started, which writes to the folder's file log.
func (d *Daemon) Prepared(arguments ...string) (*exec.Cmd, error) {
	log, err := os.OpenFile(filepath.Join(d.Folder, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	command := exec.Command(Command(), arguments...)
	command.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+d.Folder, "XDG_CONFIG_HOME="+filepath.Join(d.Folder, "config"))
	command.Stdout, command.Stderr = log, log
	// It ends with the tests, even where they are killed or panic.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return command, nil
}

// Start returns when the daemon listens.
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

// Signal sends the daemon a signal, and does not wait.
func (d *Daemon) Signal(signal os.Signal) { _ = d.process.Process.Signal(signal) }

// Stop asks the daemon to end, and returns when it has.
func (d *Daemon) Stop() { d.end(syscall.SIGTERM) }

// Kill ends the daemon without asking, and returns when its other processes have noticed and nobody listens.
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

// Log is what the daemon wrote.
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
