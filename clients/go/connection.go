package weave

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	readBytes = 64 * 1024
	// How many frames may wait for a daemon that does not read; further senders block.
	outgoingFrames = 64
	// After a failed write, the time to read what the daemon sent before it closed the connection.
	lastWords = time.Second
)

// connection is one connected socket, until it is lost. Two goroutines serve it.
type connection struct {
	socket   *net.UnixConn
	outgoing chan []byte
	lost     chan struct{} // closed once err is set
	serving  sync.WaitGroup

	mu    sync.Mutex
	calls map[uint32]*call // by request number; cancelled ones stay until the daemon's last answer
	last  uint32           // the latest request number
	err   error            // why it is lost
}

func newConnection(socket *net.UnixConn) *connection {
	c := &connection{
		socket:   socket,
		outgoing: make(chan []byte, outgoingFrames),
		lost:     make(chan struct{}),
		calls:    make(map[uint32]*call),
	}
	c.serving.Add(2)
	go c.write()
	go c.read()
	return c
}

// close fails the calls in flight with ErrClosed, and returns when both goroutines have ended.
func (c *connection) close() {
	c.fail(nil)
	c.serving.Wait()
}

// start sends a request. If the context is done before the last answer, the call ends, and a job is cancelled in the
// daemon too.
func (c *connection) start(ctx context.Context, op string, message any) (*call, error) {
	payload, err := encode(message)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, contextError(op, ctx)
	}
	started := newCall(op)
	number, err := c.register(started)
	if err != nil {
		return nil, err
	}
	select {
	case c.outgoing <- controlFrame(number, payload):
	case <-c.lost:
		return nil, c.err
	case <-ctx.Done():
		c.forget(number)
		return nil, contextError(op, ctx)
	}
	started.endWith(ctx, func() {
		if op == opGenerate || op == opLoadModel {
			c.cancel(number)
		}
	})
	return started, nil
}

// cancel asks the daemon to cancel a request. The answer is ignored: the request may have finished by then.
func (c *connection) cancel(number uint32) {
	_, _ = c.start(context.Background(), opCancel, message{Op: opCancel, Request: &number})
}

func (c *connection) register(started *call) (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	for {
		c.last++
		if _, inFlight := c.calls[c.last]; !inFlight && c.last != 0 { // 0 is the connection
			c.calls[c.last] = started
			return c.last, nil
		}
	}
}

func (c *connection) forget(number uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.calls, number)
}

// fail ends the connection and all calls in flight. Only the first cause is kept.
func (c *connection) fail(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = lostError(cause)
	close(c.lost)
	c.socket.Close()
	for _, started := range c.calls {
		started.end(nil, c.err)
	}
	clear(c.calls)
}

func (c *connection) write() {
	defer c.serving.Done()
	for {
		select {
		case frame := <-c.outgoing:
			if _, err := c.socket.Write(frame); err != nil {
				select {
				case <-c.lost:
				case <-time.After(lastWords):
					c.fail(err)
				}
				return
			}
		case <-c.lost:
			return
		}
	}
}

func (c *connection) read() {
	defer c.serving.Done()
	var incoming decoder
	defer incoming.close()
	buffer, ancillary := make([]byte, readBytes), make([]byte, descriptorRoom)
	for {
		n, descriptors, err := readWithDescriptors(c.socket, buffer, ancillary)
		if err != nil {
			closeAll(descriptors)
		} else if n == 0 {
			err = io.EOF
		} else {
			err = incoming.feed(buffer[:n], descriptors, c.deliver)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// deliver passes an answer to its call.
func (c *connection) deliver(whole answer) error {
	failure, failed := whole.event.(*Error)
	if whole.request == 0 && failed {
		return failure
	}
	c.mu.Lock()
	asked, inFlight := c.calls[whole.request]
	event, isEvent := whole.event.(Event)
	if !isEvent {
		delete(c.calls, whole.request)
	}
	c.mu.Unlock()
	switch {
	case !inFlight || !answers(asked.op, whole.event):
		if image, isImage := whole.event.(*Image); isImage {
			image.Close()
		}
		if inFlight {
			asked.end(nil, lostError(protocolError("%T does not answer %s", whole.event, asked.op)))
		}
		return protocolError("%T does not answer any request in flight", whole.event)
	case isEvent:
		asked.push(event)
	case failed:
		asked.end(nil, failure)
	default:
		asked.end(whole.event, nil)
	}
	return nil
}

func closeAll(files []*os.File) {
	for _, file := range files {
		file.Close()
	}
}
