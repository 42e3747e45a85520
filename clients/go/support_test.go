package weave

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// fakeDaemon is the server's end of a client's connection.
type fakeDaemon struct {
	t        *testing.T
	listener *net.UnixListener
	socket   *net.UnixConn
}

// withFakeDaemon returns a client and the daemon that it is connected to. Both are closed at the end of the test.
func withFakeDaemon(t *testing.T) (*Client, *fakeDaemon) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	client, err := Dial(context.Background(), path)
	must(t, err)
	daemon := &fakeDaemon{t: t, listener: listener}
	daemon.accept()
	t.Cleanup(func() {
		client.Close()
		daemon.socket.Close()
		listener.Close()
	})
	return client, daemon
}

func (d *fakeDaemon) accept() {
	d.t.Helper()
	socket, err := d.listener.AcceptUnix()
	must(d.t, err)
	must(d.t, socket.SetDeadline(time.Now().Add(10*time.Second)))
	d.socket = socket
}

// expect reads a request with this operation and returns its number.
func (d *fakeDaemon) expect(op string) uint32 {
	d.t.Helper()
	number, fields := d.read()
	if fields["op"] != op {
		d.t.Fatalf("got %v, not %s", fields, op)
	}
	return number
}

func (d *fakeDaemon) read() (uint32, map[string]any) {
	d.t.Helper()
	sent, payload := d.readFrame()
	if sent.kind != kindControl {
		d.t.Fatalf("got a frame of kind %x", sent.kind)
	}
	var fields map[string]any
	must(d.t, json.Unmarshal(payload, &fields))
	return sent.request, fields
}

func (d *fakeDaemon) readFrame() (header, []byte) {
	d.t.Helper()
	head := make([]byte, headerBytes)
	_, err := io.ReadFull(d.socket, head)
	must(d.t, err)
	sent, err := parseHeader(head)
	must(d.t, err)
	payload := make([]byte, sent.length)
	_, err = io.ReadFull(d.socket, payload)
	must(d.t, err)
	return sent, payload
}

// expectImage reads an image's frame and returns its pixels.
func (d *fakeDaemon) expectImage(request uint32) []byte {
	d.t.Helper()
	sent, payload := d.readFrame()
	if sent.kind != kindImage || sent.request != request {
		d.t.Fatalf("got %+v, not an image of request %d", sent, request)
	}
	return payload
}

// tellFeatures answers the request for status that comes before the first image.
func (d *fakeDaemon) tellFeatures(names string) {
	d.t.Helper()
	d.say(d.expect("status"), statusStart+`"worker":"none","features":[`+names+`],"jobs":[],"metrics":{}}`)
}

func (d *fakeDaemon) say(request uint32, message string) {
	d.send(controlFrame(request, []byte(message)))
}

func (d *fakeDaemon) send(frame []byte, descriptors ...*os.File) {
	d.t.Helper()
	var rights []byte
	if len(descriptors) > 0 {
		var numbers []int
		for _, descriptor := range descriptors {
			numbers = append(numbers, int(descriptor.Fd()))
		}
		rights = syscall.UnixRights(numbers...)
	}
	_, _, err := d.socket.WriteMsgUnix(frame, rights, nil)
	must(d.t, err)
}

func imageFrame(request uint32, data []byte) []byte {
	frame := controlFrame(request, data)
	binary.BigEndian.PutUint16(frame[6:], uint16(kindImage))
	return frame
}

// newMemfd returns a memfd with these bytes and seals, which is closed at the end of the test.
func newMemfd(t *testing.T, data []byte, seals uintptr) *os.File {
	t.Helper()
	// package syscall has no SYS_MEMFD_CREATE; the numbers are from the kernel's system call tables.
	number, known := map[string]uintptr{"amd64": 319, "arm64": 279, "riscv64": 279}[runtime.GOARCH]
	if !known {
		t.Skip("the number of memfd_create is not known here")
	}
	name := []byte("test\x00")
	const closeOnExecAndSealable = 0x3
	descriptor, _, errno := syscall.Syscall(number, uintptr(unsafe.Pointer(&name[0])), closeOnExecAndSealable, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	file := os.NewFile(descriptor, "test")
	t.Cleanup(func() { file.Close() })
	_, err := file.Write(data)
	must(t, err)
	const addSeals = 1033 // F_ADD_SEALS
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, descriptor, addSeals, seals); errno != 0 {
		t.Fatal(errno)
	}
	return file
}

// openDescriptors returns the number of this process's descriptors.
func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// eventually waits for the condition, and fails the test if it stays false.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
