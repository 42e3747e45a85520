package weave

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
)

const imageOfFD = `{"event":"image","image":0,"seed":7,"format":"raw","deliver":"fd","width":2,"height":1,"channels":3,"size":6}`

const noModels = `{"event":"models","models":[],"default":null,"loaded":null}`

// expectListing fails the test unless a request is answered.
func expectListing(t *testing.T, client *Client, daemon *fakeDaemon) {
	t.Helper()
	listed := make(chan error)
	go func() {
		_, err := client.ListModels(background)
		listed <- err
	}()
	daemon.say(daemon.expect("list_models"), noModels)
	must(t, <-listed)
}

var background = context.Background()

func TestErrorOfTheConnectionFailsEveryRequestInFlight(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	first, err := client.Generate(background, GenerateRequest{Prompt: "one"})
	must(t, err)
	second, err := client.Generate(background, GenerateRequest{Prompt: "two"})
	must(t, err)
	daemon.expect("generate")
	daemon.expect("generate")
	daemon.say(0, `{"event":"error","code":"rate_limited","message":"too many","retry_after":1.5}`)
	for _, job := range []*Job{first, second} {
		_, _, err := job.Wait()
		var refused *Error
		if !errors.As(err, &refused) || refused.RetryAfter != 1500*time.Millisecond {
			t.Errorf("got %v", err)
		}
		if !errors.Is(err, ErrClosed) || !errors.Is(err, RateLimited) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := client.Status(background); !errors.Is(err, RateLimited) || !errors.Is(err, ErrClosed) {
		t.Errorf("a later call got %v", err)
	}
}

func TestErrorSentBeforeCloseIsReported(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	daemon.say(0, `{"event":"error","code":"shutting_down","message":"bye"}`)
	daemon.socket.Close()
	if _, err := client.Status(background); !errors.Is(err, ShuttingDown) {
		t.Errorf("got %v", err)
	}
}

func TestProtocolViolationsCloseTheConnection(t *testing.T) {
	frame := func(text string) []byte { return controlFrame(1, []byte(text)) }
	announce := frame(strings.Replace(imageOfFD, `"fd"`, `"inline"`, 1))
	for name, sent := range map[string][]byte{
		"no event":                    frame(`{"job":1}`),
		"bytes of an unknown event":   append(frame(`{"event":"audio","size":6}`), imageFrame(1, []byte("123456"))...),
		"unknown event before bytes":  append(announce, frame(`{"event":"surprise"}`)...),
		"missing field":               frame(`{"event":"queued","job":1}`),
		"field in another case":       frame(`{"event":"queued","job":1,"Position":0}`),
		"null field":                  frame(`{"event":"queued","job":1,"position":null}`),
		"negative count":              frame(`{"event":"queued","job":1,"position":-1}`),
		"not JSON":                    frame(`{"event":`),
		"not an object":               frame(`[]`),
		"not UTF-8":                   frame("{\"event\":\"loading\",\"model\":\"\xff\"}"),
		"answer of another operation": frame(noModels),
		"answer without a request":    controlFrame(9, []byte(`{"event":"done"}`)),
		"done of the connection":      controlFrame(0, []byte(`{"event":"done"}`)),
		"image not announced":         imageFrame(1, []byte("123456")),
		"image of another size":       append(announce, imageFrame(1, []byte("12345"))...),
		"image of another request":    append(announce, imageFrame(2, []byte("123456"))...),
		"something before the image":  append(announce, frame(`{"event":"loading","model":"m"}`)...),
		"image without its memfd":     frame(imageOfFD),
		"image of no bytes":           frame(strings.Replace(imageOfFD, `"size":6`, `"size":0`, 1)),
		"image too large":             frame(strings.Replace(imageOfFD, `"size":6`, `"size":268435457`, 1)),
		"version 1":                   append([]byte("WEVE\x00\x01\x00\xff"), make([]byte, 8)...),
		"bad magic":                   []byte("HTTP/1.1 200 OK\r\n\r\n"),
		"control frame too long":      controlFrame(1, bytes.Repeat([]byte(" "), MaxControlBytes+1)),
		"empty frame":                 controlFrame(1, nil),
	} {
		t.Run(name, func(t *testing.T) {
			client, daemon := withFakeDaemon(t)
			job, err := client.Generate(background, GenerateRequest{Prompt: "x"})
			must(t, err)
			daemon.expect("generate")
			go daemon.socket.Write(sent) // the client may close the connection first
			if _, _, err := job.Wait(); !errors.Is(err, ErrProtocol) || !errors.Is(err, ErrClosed) {
				t.Errorf("got %v", err)
			}
			if n, err := daemon.socket.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Error("the connection is still open")
			}
		})
	}
}

func TestMemfdsAreCheckedAndKeptInOrder(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	job, err := client.Generate(background, GenerateRequest{Prompt: "x", Images: 2, Deliver: FD})
	must(t, err)
	number := daemon.expect("generate")
	event := controlFrame(number, []byte(imageOfFD))
	for _, pixels := range []string{"abcdef", "ghijkl"} {
		// Only the first piece has the descriptor, as when the socket splits a write.
		daemon.send(event[:20], newMemfd(t, []byte(pixels), allSeals))
		daemon.send(event[20:])
	}
	daemon.say(number, `{"event":"done"}`)
	images, _, err := job.Wait()
	must(t, err)
	for i, pixels := range []string{"abcdef", "ghijkl"} {
		got, err := images[i].Bytes()
		must(t, err)
		fromFile, err := io.ReadAll(images[i].File())
		must(t, err)
		if string(got) != pixels || string(fromFile) != pixels {
			t.Errorf("image %d is %q and %q", i, got, fromFile)
		}
		must(t, images[i].Close())
		must(t, images[i].Close())
		if _, err := images[i].Bytes(); err == nil {
			t.Error("a closed image was read")
		}
	}
}

func TestBadDescriptorsCloseTheConnectionAndDoNotLeak(t *testing.T) {
	whole, loading := controlFrame(1, []byte(imageOfFD)), controlFrame(1, []byte(`{"event":"loading","model":"m"}`))
	const noSeal, notWrite, ofAllSizes = 0, allSeals &^ 0x8, "abcdef"
	for name, send := range map[string]func(t *testing.T, daemon *fakeDaemon){
		"not sealed":    func(t *testing.T, d *fakeDaemon) { d.send(whole, newMemfd(t, []byte(ofAllSizes), noSeal)) },
		"writable":      func(t *testing.T, d *fakeDaemon) { d.send(whole, newMemfd(t, []byte(ofAllSizes), notWrite)) },
		"another size":  func(t *testing.T, d *fakeDaemon) { d.send(whole, newMemfd(t, []byte("abc"), allSeals)) },
		"not announced": func(t *testing.T, d *fakeDaemon) { d.send(loading, newMemfd(t, []byte("abc"), allSeals)) },
		"too many": func(t *testing.T, d *fakeDaemon) {
			f := newMemfd(t, nil, allSeals)
			d.send(whole, f, f, f, f, f, f, f, f, f)
		},
		"not a memfd": func(t *testing.T, d *fakeDaemon) { f, _ := d.socket.File(); defer f.Close(); d.send(whole, f) },
		"while in parts": func(t *testing.T, d *fakeDaemon) {
			f := newMemfd(t, nil, allSeals)
			d.send(loading[:9], f, f)
			d.socket.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			client, daemon := withFakeDaemon(t)
			job, err := client.Generate(background, GenerateRequest{Prompt: "x"})
			must(t, err)
			daemon.expect("generate")
			send(t, daemon)
			if _, _, err := job.Wait(); !errors.Is(err, ErrClosed) {
				t.Errorf("got %v", err)
			}
			client.Close()
		})
	}
}

func TestCancelledJobEndsWithoutTheDaemonsAnswer(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	ctx, cancel := context.WithCancel(background)
	job, err := client.Generate(ctx, GenerateRequest{Prompt: "x"})
	must(t, err)
	number := daemon.expect("generate")
	cancel()
	if _, _, err := job.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	for range job.Events() {
	}
	cancelNumber, asked := daemon.read()
	if asked["op"] != "cancel" || asked["request"] != float64(number) {
		t.Errorf("got %v", asked)
	}

	// A late answer is dropped, and the connection stays open.
	before := openDescriptors(t)
	memfd := newMemfd(t, []byte("abcdef"), allSeals)
	daemon.send(controlFrame(number, []byte(imageOfFD)), memfd)
	daemon.say(number, `{"event":"error","code":"cancelled","message":"cancelled"}`)
	daemon.say(cancelNumber, `{"event":"done"}`)
	expectListing(t, client, daemon)
	memfd.Close()
	eventually(t, "the descriptor is closed", func() bool { return openDescriptors(t) == before })
}

func TestDeadlineEndsEveryRequest(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	ctx, cancel := context.WithTimeout(background, 200*time.Millisecond)
	defer cancel()
	job, err := client.Generate(ctx, GenerateRequest{Prompt: "x"})
	must(t, err)
	_, _, jobErr := job.Wait()
	daemon.expect("generate")
	daemon.expect("cancel")
	statusCtx, cancelStatus := context.WithTimeout(background, 200*time.Millisecond)
	defer cancelStatus()
	_, statusErr := client.Status(statusCtx)
	_, loadErr := client.LoadModel(ctx, "m")
	for _, err := range []error{jobErr, statusErr, loadErr} {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	}
	daemon.expect("status")
}

func TestCancelledLoadIsCancelledInTheDaemon(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	ctx, cancel := context.WithCancel(background)
	loaded := make(chan error)
	go func() {
		_, err := client.LoadModel(ctx, "")
		loaded <- err
	}()
	daemon.expect("load_model")
	cancel()
	if err := <-loaded; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	daemon.expect("cancel")
}

func TestContextEndsACallToADaemonThatDoesNotRead(t *testing.T) {
	client, _ := withFakeDaemon(t)
	ctx, cancel := context.WithTimeout(background, 100*time.Millisecond)
	defer cancel()
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		_, err = client.Generate(ctx, GenerateRequest{Prompt: strings.Repeat("x", 60_000)})
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestRequestNumbersInFlightAreNotReused(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	first, err := client.Generate(background, GenerateRequest{Prompt: "x"})
	must(t, err)
	if number := daemon.expect("generate"); number != 1 {
		t.Fatalf("the first is %d", number)
	}
	client.current.mu.Lock()
	client.current.last = 1<<32 - 1
	client.current.mu.Unlock()
	_, err = client.Generate(background, GenerateRequest{Prompt: "x"})
	must(t, err)
	if number := daemon.expect("generate"); number != 2 {
		t.Errorf("got %d: 0 is the connection, 1 is in flight", number)
	}
	daemon.say(1, `{"event":"done"}`)
	_, _, err = first.Wait()
	must(t, err)
}

func TestInvalidRequestsAreNotSent(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	zero := 0.0
	for _, request := range []GenerateRequest{
		{Prompt: "\xff"},
		{Prompt: strings.Repeat("x", MaxControlBytes)},
		{Prompt: "x", CFGScale: CFGScale(zero / zero)},
	} {
		if _, err := client.Generate(background, request); err == nil {
			t.Error("the request was sent")
		}
	}
	_, err := client.Generate(background, GenerateRequest{Prompt: "x", Seed: Seed(0), CFGScale: CFGScale(0)})
	must(t, err)
	_, asked := daemon.read()
	if len(asked) != 4 || asked["seed"] != 0.0 || asked["cfg_scale"] != 0.0 {
		t.Errorf("sent %v", asked)
	}
}

func TestReconnectNeedsALostConnectionAndAnOpenClient(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	must(t, client.Reconnect(background)) // the connection is not lost: nothing happens
	expectListing(t, client, daemon)
	daemon.socket.Close()
	eventually(t, "the loss is noticed", func() bool {
		_, err := client.Status(background)
		return errors.Is(err, ErrClosed) && errors.Is(err, io.EOF)
	})
	must(t, client.Reconnect(background))
	daemon.accept()
	expectListing(t, client, daemon)

	daemon.listener.Close()
	daemon.socket.Close()
	eventually(t, "nobody answers", func() bool {
		var failed *net.OpError
		return errors.As(client.Reconnect(background), &failed)
	})
	must(t, client.Close())
	must(t, client.Close())
	if err := client.Reconnect(background); err != ErrClosed {
		t.Errorf("got %v", err)
	}
	if _, err := client.Status(background); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestClosedClientLeaksNothing(t *testing.T) {
	goroutines, descriptors := runtime.NumGoroutine(), openDescriptors(t)
	client, daemon := withFakeDaemon(t)
	job, err := client.Generate(background, GenerateRequest{Prompt: "x"})
	must(t, err)
	number := daemon.expect("generate")
	for step := 1; step < 5; step++ {
		daemon.say(number, `{"event":"progress","image":0,"step":1,"steps":5}`)
	}
	<-job.Events() // and no more
	daemon.send(controlFrame(number, []byte(imageOfFD)), newMemfd(t, []byte("abcdef"), allSeals))
	eventually(t, "the image is there", func() bool {
		job.call.mu.Lock()
		defer job.call.mu.Unlock()
		return len(job.call.images) == 1
	})
	client.Close()
	images, _, err := job.Wait()
	if !errors.Is(err, ErrClosed) || len(images) != 1 {
		t.Errorf("got %v and %d images", err, len(images))
	}
	if pixels, err := images[0].Bytes(); err != nil || string(pixels) != "abcdef" {
		t.Errorf("the image received before is %q, %v", pixels, err)
	}
	daemon.socket.Close()
	daemon.listener.Close()
	images, job = nil, nil // not closed, but unreachable
	eventually(t, "no goroutine and no descriptor is left but the test's own memfd", func() bool {
		runtime.GC()
		return runtime.NumGoroutine() <= goroutines && openDescriptors(t) <= descriptors+1
	})
}
