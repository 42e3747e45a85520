package weave

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
)

// Client is a connection to a daemon. Its methods may be called concurrently.
//
// A call returns an [*Error] if the daemon refuses or fails the request, the context's error if the context is done
// first, and [ErrClosed] if the connection is lost.
type Client struct {
	path   string
	closed chan struct{}

	dialing sync.Mutex // held while a connection is established
	mu      sync.Mutex
	current *connection
	isOver  bool // Close was called
}

// Dial connects to the socket at path; an empty path means [DefaultSocketPath].
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

// Close closes the connection; the daemon cancels the requests in flight on it. A closed client cannot be reopened.
// Received images remain valid until they are closed.
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

// Reconnect establishes a new connection if the current one is lost, and does nothing otherwise. Requests that were in
// flight have failed and are not sent again. Reconnect fails if no daemon answers, and returns ErrClosed after Close.
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

// Generate starts a job, which is cancelled when the context is done. Generate returns before the request's images are
// sent; if the daemon refuses the request, [Job.Wait] returns the error. For a daemon that is too old for the request's
// images the error wraps [errors.ErrUnsupported], and nothing is sent.
func (c *Client) Generate(ctx context.Context, request GenerateRequest) (*Job, error) {
	uploads := request.uploads()
	if err := checkUploads(uploads); err != nil {
		return nil, err
	}
	if err := checkSendable(&request); err != nil {
		return nil, err
	}
	connected := c.connection()
	var images []*InputImage
	for _, one := range uploads {
		features, version, err := connected.features(ctx)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(features, one.feature) {
			return nil, fmt.Errorf("weave: %s: %w: the daemon, version %s, does not have the feature %s",
				one.field, errors.ErrUnsupported, version, one.feature)
		}
		images = append(images, one.image)
	}
	started, err := connected.start(ctx, opGenerate, generateMessage{opGenerate, request}, images...)
	if err != nil {
		return nil, err
	}
	return &Job{call: started, ctx: ctx, closed: c.closed}, nil
}

// Status returns the daemon's state.
func (c *Client) Status(ctx context.Context) (StatusReport, error) {
	return ask[StatusReport](ctx, c, message{Op: opStatus})
}

// ListModels returns the models that the daemon offers, with their bounds and defaults.
func (c *Client) ListModels(ctx context.Context) (Models, error) {
	return ask[Models](ctx, c, message{Op: opListModels})
}

// LoadModel loads a model, so that its next job starts without delay, and returns when it is loaded. If the context is
// done first, loading is cancelled.
func (c *Client) LoadModel(ctx context.Context, id string) (Done, error) {
	return ask[Done](ctx, c, message{Op: opLoadModel, Model: &id})
}

// Unload ends the daemon's worker, after a running job, and returns when its memory is freed.
func (c *Client) Unload(ctx context.Context) error {
	_, err := ask[Done](ctx, c, message{Op: opUnload})
	return err
}

// Cancel cancels a job of any of the user's connections, by the number in [Queued] and [JobStatus]. The job fails with
// the error code [Cancelled]. To cancel a job of this client, cancel its context instead.
func (c *Client) Cancel(ctx context.Context, job uint64) error {
	_, err := ask[Done](ctx, c, message{Op: opCancel, Job: &job})
	return err
}

func (c *Client) connection() *connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// ask sends a request and waits for its last answer, which is of type Last: the connection rejects any other.
func ask[Last any](ctx context.Context, c *Client, asked message) (Last, error) {
	return askOn[Last](ctx, c.connection(), asked)
}

func askOn[Last any](ctx context.Context, connected *connection, asked message) (Last, error) {
	var none Last
	started, err := connected.start(ctx, asked.Op, asked)
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
