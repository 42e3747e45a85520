package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"

	weave "weave-compute/clients/go"
)

// handler answers GET /generate?prompt=...&steps=...&seed=... with a stream of server-sent events, named as in
// docs/protocol.md, with JSON data. The bytes of an image or preview are a data URL in `url`. A job is cancelled when
// its client disconnects.
type handler struct {
	client *weave.Client
}

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Any web page can send requests to a local server, under any host name that its DNS resolves to this machine.
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || !isLocal(r.Host) {
		http.Error(w, "requests from other sites are refused", http.StatusForbidden)
		return
	}
	if r.Method != http.MethodGet || r.URL.Path != "/generate" {
		http.NotFound(w, r)
		return
	}
	request, err := parseRequest(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	job, err := h.start(r.Context(), request)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	stream(w, job)
}

// start starts a job. It reconnects first if the connection was lost.
func (h handler) start(ctx context.Context, request weave.GenerateRequest) (*weave.Job, error) {
	job, err := h.client.Generate(ctx, request)
	if !errors.Is(err, weave.ErrClosed) {
		return job, err
	}
	if err := h.client.Reconnect(ctx); err != nil {
		return nil, err
	}
	return h.client.Generate(ctx, request)
}

// stream sends a job's events until it ends. A slow client delays only its own stream.
func stream(w http.ResponseWriter, job *weave.Job) {
	for event := range job.Events() {
		switch event := event.(type) {
		case weave.Queued:
			send(w, "queued", map[string]any{"job": event.Job, "position": event.Position})
		case weave.Loading:
			send(w, "loading", map[string]any{"model": event.Model})
		case weave.Progress:
			send(w, "progress", map[string]any{"image": event.Image, "step": event.Step, "steps": event.Steps})
		case weave.Preview:
			send(w, "preview", map[string]any{"image": event.Image, "step": event.Step, "url": dataURL(event.PNG)})
		case *weave.Image:
			data, _ := event.Bytes() // an inline image cannot fail
			// A JavaScript number cannot represent every seed.
			seed := strconv.FormatUint(event.Seed, 10)
			send(w, "image", map[string]any{"image": event.Index, "seed": seed, "url": dataURL(data)})
		}
	}
	_, done, err := job.Wait()
	var refused *weave.Error
	switch {
	case err == nil:
		send(w, "done", map[string]any{"model": done.Model, "generating": done.Timings.Generating.Seconds()})
	case errors.As(err, &refused):
		send(w, "error", map[string]any{"code": refused.Code, "message": refused.Message, "field": refused.Field})
	default:
		send(w, "error", map[string]any{"code": weave.Internal, "message": err.Error()})
	}
}

func send(w http.ResponseWriter, name string, data map[string]any) {
	text, err := json.Marshal(data)
	if err != nil {
		return
	}
	fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, text)
	_ = http.NewResponseController(w).Flush()
}

func dataURL(png []byte) string {
	return "data:image/png;base64," + base64.StdEncoding.EncodeToString(png)
}

// parseRequest reads the query; the model's defaults apply to parameters that are missing.
func parseRequest(r *http.Request) (weave.GenerateRequest, error) {
	query := r.URL.Query()
	request := weave.GenerateRequest{Prompt: query.Get("prompt"), Model: query.Get("model")}
	for name, into := range map[string]*int{
		"steps": &request.Steps, "width": &request.Width, "height": &request.Height,
		"images": &request.Images, "preview_every": &request.PreviewEvery,
	} {
		if !query.Has(name) {
			continue
		}
		number, err := strconv.Atoi(query.Get(name))
		if err != nil {
			return request, fmt.Errorf("%s is not a number", name)
		}
		*into = number
	}
	if query.Has("seed") {
		seed, err := strconv.ParseUint(query.Get("seed"), 10, 64)
		if err != nil {
			return request, errors.New("seed is not an unsigned 64-bit number")
		}
		request.Seed = weave.Seed(seed)
	}
	return request, nil
}

// isLocal reports whether host, with or without a port, is a loopback address or localhost: names that no DNS server
// can redirect to this machine.
func isLocal(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	address := net.ParseIP(host)
	return host == "localhost" || address != nil && address.IsLoopback()
}
