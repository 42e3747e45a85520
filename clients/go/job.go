package weave

import (
	"context"
	"sync"
)

// Job is a generation in flight. Its events wait in a queue of its own: nobody needs to read them, and whoever reads
// them slowly holds up nobody else, but misses the older of many previews.
type Job struct {
	call   *call
	ctx    context.Context // the one that the job lasts no longer than
	closed chan struct{}   // the client's

	once   sync.Once
	events chan Event
}

// Events gives what the job tells, in order: Queued, Loading, Progress, Preview and *Image. The channel, the same at
// every call, is closed when the job is over and all is read, when its context is done, or when the client is closed.
// Whoever begins to read must go on until then, or cancel the context.
func (j *Job) Events() <-chan Event {
	j.once.Do(func() {
		j.events = make(chan Event)
		go j.pump()
	})
	return j.events
}

// Wait waits until the job is over, whether or not somebody reads its events, and can be called more than once. The
// images are those of the events: close them, or those that are memfds keep their descriptors. With an error come
// those that were finished before it.
func (j *Job) Wait() ([]*Image, Done, error) {
	last, err := j.call.wait()
	done, _ := last.(Done)
	return j.call.images, done, err
}

// pump brings the events from the queue to the channel.
func (j *Job) pump() {
	defer close(j.events)
	for {
		events, last := j.call.take()
		for _, event := range events {
			select {
			case j.events <- event:
			case <-j.ctx.Done():
				return
			case <-j.closed:
				return
			}
		}
		if last {
			return
		}
		<-j.call.more
	}
}
