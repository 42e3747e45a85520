package weave

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// mostPreviewBytes is how much of a job's previews may wait for somebody to take them.
const mostPreviewBytes = 16 * 1024 * 1024

// call is one request, from when it is sent until its last answer. The connection's reader fills it and never waits
// for whoever reads it.
type call struct {
	op   string
	over chan struct{} // closed once last or err is there
	more chan struct{} // has an element where there is something new for take

	mu     sync.Mutex
	events []Event  // that nobody took yet; see dropPreviews
	images []*Image // all of them
	ended  bool
	last   any // Done, StatusReport or Models
	err    error
	stop   func() bool // stops the watch over the context
}

func newCall(op string) *call {
	return &call{op: op, over: make(chan struct{}), more: make(chan struct{}, 1)}
}

// push adds an event. Once the call is over, as where the caller has cancelled it, events are dropped.
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
	c.tellMore()
}

// dropPreviews keeps the newest of the previews that nobody took.
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

// take gives the events that nobody took yet, and whether they are the last ones.
func (c *call) take() (events []Event, last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	events, c.events = c.events, nil
	return events, c.ended
}

// end ends the call, and says whether it was not over before.
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
	c.tellMore()
	return true
}

// endWith ends the call when the context does, if it is not over by then, and runs cancel.
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

func (c *call) tellMore() {
	select {
	case c.more <- struct{}{}:
	default:
	}
}

// contextError is the end of a request whose context is done: errors.Is knows context.Canceled and
// context.DeadlineExceeded in it.
func contextError(op string, ctx context.Context) error {
	return fmt.Errorf("weave: %s: %w", op, ctx.Err())
}

// answers says whether an event can be an answer to an operation.
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
