package weave

import (
	"context"
	"sync"
)

// Job is a generation in flight. Its events wait in its own queue, so reading them is optional. A slow reader delays
// no other job, but misses older previews.
type Job struct {
	call   *call
	ctx    context.Context // cancels the job when it is done
	closed chan struct{}   // the client's

	once   sync.Once
	events chan Event
}

// Events returns the channel of the job's events, in order; every call returns the same channel. It is closed after the
// job's last event, when its context is done, or when the client is closed. A caller that starts to read must read
// until then, or cancel the context.
func (j *Job) Events() <-chan Event {
	j.once.Do(func() {
		j.events = make(chan Event)
		go j.pump()
	})
	return j.events
}

// Wait waits for the end of the job, whether or not its events are read. It may be called more than once. It returns
// the same images as the events; those in memfds keep their descriptors until they are closed. With an error it
// returns the images that were finished before it.
func (j *Job) Wait() ([]*Image, Done, error) {
	last, err := j.call.wait()
	done, _ := last.(Done)
	return j.call.images, done, err
}

// pump moves the events from the queue to the channel.
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
