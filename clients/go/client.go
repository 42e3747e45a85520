package weave

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// Client is a connection to a daemon. All of its methods may be called by any number of goroutines.
//
// Each call fails with an [*Error] where the daemon refuses or fails the request, with the context's error where the
// context is done first, and with [ErrClosed] where the connection is lost.
type Client struct {
	path   string
	closed chan struct{}

	dialing sync.Mutex // held while a connection is being made
	mu      sync.Mutex
	current *connection
	isOver  bool // Close was called
}

// Dial connects to the socket at path; "" is [DefaultSocketPath].
func Dial(ctx context.Context, path string) (*Client, error) {
	if path == "" {
		path = DefaultSocketPath()
	}
	connected, err := dial(ctx, path)
	if err != nil {
		return nil, err
	}
	return &Client{path: path, closed: make(chan struct{}), current: connected}, nil
}

// Close ends the connection; the daemon cancels what is still in flight on it. A closed client stays closed.
// Images that were received stay good until they are closed themselves.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.isOver {
		c.isOver = true
		close(c.closed)
		c.current.close()
	}
	return nil
}

// Reconnect makes a new connection where the one there was is lost; where it still stands, nothing happens. What was
// in flight when it was lost has failed, and is not sent again. Fails where no daemon answers, and with ErrClosed
// after Close.
func (c *Client) Reconnect(ctx context.Context) error {
	c.dialing.Lock()
	defer c.dialing.Unlock()
	select {
	case <-c.connection().lost:
	default:
		return nil
	}
	select {
	case <-c.closed:
		return ErrClosed
	default:
	}
	connected, err := dial(ctx, c.path)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isOver {
		connected.close()
		return ErrClosed
	}
	c.current.close()
	c.current = connected
	return nil
}

// Generate starts a job, which lasts no longer than the context. It returns as soon as the request is on its way:
// that the daemon refuses it comes from [Job.Wait].
func (c *Client) Generate(ctx context.Context, request GenerateRequest) (*Job, error) {
	started, err := c.connection().start(ctx, opGenerate, generateMessage{opGenerate, request})
	if err != nil {
		return nil, err
	}
	return &Job{call: started, ctx: ctx, closed: c.closed}, nil
}

// Status asks what the daemon is doing.
func (c *Client) Status(ctx context.Context) (StatusReport, error) {
	return ask[StatusReport](ctx, c, message{Op: opStatus})
}

// ListModels asks which models there are, with their bounds and defaults.
func (c *Client) ListModels(ctx context.Context) (Models, error) {
	return ask[Models](ctx, c, message{Op: opListModels})
}

// LoadModel returns when the model is loaded, so that its next picture starts at once. When the context is done
// before that, the loading is cancelled.
func (c *Client) LoadModel(ctx context.Context, id string) (Done, error) {
	return ask[Done](ctx, c, message{Op: opLoadModel, Model: &id})
}

// Unload returns when the daemon's worker and all of its memory are gone; a running job is finished first.
func (c *Client) Unload(ctx context.Context) error {
	_, err := ask[Done](ctx, c, message{Op: opUnload})
	return err
}

// Cancel cancels a job, of whichever of the user's connections, by the number that [Queued] and [JobStatus] tell.
// The job ends with the error code [Cancelled]. To cancel one's own job, cancel its context.
func (c *Client) Cancel(ctx context.Context, job uint64) error {
	_, err := ask[Done](ctx, c, message{Op: opCancel, Job: &job})
	return err
}

func (c *Client) connection() *connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// ask sends a request and waits for its last answer; the connection lets no other kind through.
func ask[Last any](ctx context.Context, c *Client, asked message) (Last, error) {
	var none Last
	started, err := c.connection().start(ctx, asked.Op, asked)
	if err != nil {
		return none, err
	}
	last, err := started.wait()
	if err != nil {
		return none, err
	}
	return last.(Last), nil
}

func dial(ctx context.Context, path string) (*connection, error) {
	socket, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("weave: %w", err)
	}
	return newConnection(socket.(*net.UnixConn)), nil
}
