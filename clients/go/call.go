package weave

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// mostPreviewBytes limits the memory of a job's previews that the caller has not read.
const mostPreviewBytes = 16 * 1024 * 1024

// call is one request, from sending it to its last answer. The connection's reader adds the events, and never waits
// for the caller to read them.
type call struct {
	op   string
	over chan struct{} // closed once last or err is set
	more chan struct{} // holds an element if there is something new to take

	mu     sync.Mutex
	events []Event  // not taken yet; see dropPreviews
	images []*Image // all of them
	ended  bool
	last   any // Done, StatusReport or Models
	err    error
	stop   func() bool // stops watching the context
}

func newCall(op string) *call {
	return &call{op: op, over: make(chan struct{}), more: make(chan struct{}, 1)}
}

// push adds an event. After the end of the call, for example when the caller has cancelled it, events are dropped.
func (c *call) push(event Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	image, isImage := event.(*Image)
	if c.ended {
		if isImage {
			image.Close()
		}
		return
	}
	if isImage {
		c.images = append(c.images, image)
	}
	c.events = append(c.events, event)
	if _, isPreview := event.(Preview); isPreview {
		c.dropPreviews()
	}
	c.signalMore()
}

// dropPreviews drops the oldest previews that were not taken, down to mostPreviewBytes; the newest one always stays.
func (c *call) dropPreviews() {
	held, newest := 0, true
	for i := len(c.events) - 1; i >= 0; i-- {
		preview, isPreview := c.events[i].(Preview)
		if !isPreview {
			continue
		}
		if held += len(preview.PNG); held > mostPreviewBytes && !newest {
			c.events = slices.Delete(c.events, i, i+1)
			held -= len(preview.PNG)
		}
		newest = false
	}
}

// take returns the events since the last take, and whether they are the last ones.
func (c *call) take() (events []Event, last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	events, c.events = c.events, nil
	return events, c.ended
}

// end ends the call. It reports whether the call was still in flight.
func (c *call) end(last any, err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return false
	}
	c.ended, c.last, c.err = true, last, err
	if c.stop != nil {
		c.stop()
	}
	close(c.over)
	c.signalMore()
	return true
}

func (c *call) hasEnded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// endWith ends the call when the context is done, unless it has ended before, and then runs cancel.
func (c *call) endWith(ctx context.Context, cancel func()) {
	stop := context.AfterFunc(ctx, func() {
		if c.end(nil, contextError(c.op, ctx)) {
			cancel()
		}
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stop = stop
	if c.ended {
		stop()
	}
}

// wait waits for the last answer.
func (c *call) wait() (any, error) {
	<-c.over
	return c.last, c.err
}

func (c *call) signalMore() {
	select {
	case c.more <- struct{}{}:
	default:
	}
}

// contextError is the error of a request whose context is done. It wraps context.Canceled or
// context.DeadlineExceeded.
func contextError(op string, ctx context.Context) error {
	return fmt.Errorf("weave: %s: %w", op, ctx.Err())
}

// answers reports whether an event can answer an operation.
func answers(op string, event any) bool {
	switch event.(type) {
	case Queued, Loading:
		return op == opGenerate || op == opLoadModel
	case Progress, Preview, *Image:
		return op == opGenerate
	case Done:
		return op != opStatus && op != opListModels
	case StatusReport:
		return op == opStatus
	case Models:
		return op == opListModels
	case *Error:
		return true
	}
	return false
}
