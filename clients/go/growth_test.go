package weave

import (
	"errors"
	"reflect"
	"testing"
	"time"
)

// docs/protocol.md, "How the protocol grows": messages of a daemon that is newer or older than the client.

func TestUnknownFieldsAreIgnored(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	job, err := client.Generate(background, GenerateRequest{Prompt: "x"})
	must(t, err)
	number := daemon.expect("generate")
	daemon.say(number, `{"event":"queued","job":5,"position":0,"eta":3,"Job":6}`)
	daemon.say(number, `{"event":"done","model":"m","seed":1,"timings":{"queued":0.5,"resting":1},"mood":["good"]}`)
	if event := <-job.Events(); event != (Queued{Job: 5}) {
		t.Errorf("got %v", event)
	}
	_, done, err := job.Wait()
	must(t, err)
	if done != (Done{Model: "m", Seed: 1, Timings: Timings{Queued: 500 * time.Millisecond}}) {
		t.Errorf("got %v", done)
	}
}

func TestUnknownEventsAreSkipped(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	job, err := client.Generate(background, GenerateRequest{Prompt: "x"})
	must(t, err)
	number := daemon.expect("generate")
	for _, request := range []uint32{number, 0, number + 1} { // also without a request in flight
		daemon.say(request, `{"event":"audio","size":5,"deliver":"fd"}`)
		daemon.say(request, `{"event":"failed","code":"internal","message":"no error of the request"}`)
	}
	daemon.say(number, `{"event":"done","model":"m","seed":1}`)
	for event := range job.Events() {
		t.Errorf("got %v", event)
	}
	_, done, err := job.Wait()
	must(t, err)
	if done != (Done{Model: "m", Seed: 1}) {
		t.Errorf("got %v", done)
	}
	expectListing(t, client, daemon)
}

func TestUnknownErrorCodeEndsOnlyItsRequest(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	job, err := client.Generate(background, GenerateRequest{Prompt: "x"})
	must(t, err)
	daemon.say(daemon.expect("generate"), `{"event":"error","code":"quota_used_up","message":"no more today","quota":{}}`)
	var refused *Error
	if _, _, err := job.Wait(); !errors.As(err, &refused) || errors.Is(err, ErrClosed) {
		t.Fatalf("got %v", err)
	}
	if refused.Code != "quota_used_up" || refused.Message != "no more today" {
		t.Errorf("got %+v", refused)
	}
	expectListing(t, client, daemon)
}

const statusStart = `{"event":"status","version":"1","uptime":1,"mode":"user","queue_length":0,"queue_limit":1,` +
	`"connections":1,"sandbox":{},"worker_restarts":0,"images_made":0,`

func TestStatusOfANewerDaemon(t *testing.T) {
	event, _, err := decodeEvent([]byte(statusStart + `"worker":"draining","features":["raw","video"],"gpus":[],` +
		`"jobs":[{"job":1,"model":"m","state":"paused","position":0,"share":1}],` +
		`"metrics":{"errors":{"quota_used_up":2},"uploads":1}}`))
	must(t, err)
	status := event.(StatusReport)
	if status.Worker != "draining" || status.Jobs[0].State != "paused" || status.Metrics.Errors["quota_used_up"] != 2 {
		t.Errorf("got %+v", status)
	}
	if !reflect.DeepEqual(status.Features, []string{"raw", "video"}) {
		t.Errorf("got %v", status.Features)
	}
}

func TestOlderDaemonHasNoFeaturesAndItsModelsNoTasks(t *testing.T) {
	event, _, err := decodeEvent([]byte(statusStart + `"worker":"none","jobs":[],"metrics":{}}`))
	must(t, err)
	if features := event.(StatusReport).Features; len(features) != 0 {
		t.Errorf("got %v", features)
	}
	event, _, err = decodeEvent([]byte(`{"event":"models","models":[{"id":"m","title":"M"}]}`))
	must(t, err)
	if tasks := event.(Models).Models[0].Tasks; len(tasks) != 0 {
		t.Errorf("got %v", tasks)
	}
}
