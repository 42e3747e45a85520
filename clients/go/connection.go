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
	outgoing chan outgoing
	lost     chan struct{} // closed once err is set
	serving  sync.WaitGroup

	asking sync.Mutex    // held while the daemon is asked for status
	status *StatusReport // its first answer, for its features; nil before

	mu    sync.Mutex
	calls map[uint32]*call // by request number; cancelled ones stay until the daemon's last answer
	last  uint32           // the latest request number
	err   error            // why it is lost
}

// outgoing is a frame to send: a complete one, or the header of an image's and the image, unless its call has ended.
type outgoing struct {
	frame []byte
	image *InputImage
	call  *call
}

func newConnection(socket *net.UnixConn) *connection {
	c := &connection{
		socket:   socket,
		outgoing: make(chan outgoing, outgoingFrames),
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

// start sends a request and its images. If the context is done before the last answer, the call ends, a job is
// cancelled in the daemon too, and images that have not begun are not sent.
func (c *connection) start(ctx context.Context, op string, message any, images ...*InputImage) (*call, error) {
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
	frames := []outgoing{{frame: controlFrame(number, payload)}}
	for _, image := range images {
		header := frameHeader(kindImage, number, image.size())
		frames = append(frames, outgoing{frame: header, image: image, call: started})
	}
	for sent, frame := range frames {
		select {
		case c.outgoing <- frame:
		case <-c.lost:
			return nil, c.err
		case <-ctx.Done():
			if sent == 0 {
				c.forget(number)
			} else if started.end(nil, contextError(op, ctx)) {
				go c.cancel(number) // what waits before it may take a while
			}
			return nil, contextError(op, ctx)
		}
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
		case next := <-c.outgoing:
			if err := c.send(next); err != nil {
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

// send writes a frame. A frame that has begun must be completed, or the daemon could not parse the next one.
func (c *connection) send(next outgoing) error {
	if next.image == nil {
		_, err := c.socket.Write(next.frame)
		return err
	}
	if next.call.hasEnded() {
		return nil
	}
	header := next.frame
	return next.image.eachPiece(func(piece []byte) error {
		buffers := net.Buffers{header, piece} // one writev(2)
		header = nil
		_, err := buffers.WriteTo(c.socket)
		return err
	})
}

// features returns what the daemon says that it can do, and its version. Only the first call asks the daemon.
func (c *connection) features(ctx context.Context) ([]string, string, error) {
	c.asking.Lock()
	defer c.asking.Unlock()
	if c.status == nil {
		status, err := askOn[StatusReport](ctx, c, message{Op: opStatus})
		if err != nil {
			return nil, "", err
		}
		c.status = &status
	}
	return c.status.Features, c.status.Version, nil
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
