package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"image/png"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	weave "weave-compute/clients/go"
	"weave-compute/clients/go/internal/testdaemon"
)

var daemon *testdaemon.Daemon

func TestMain(m *testing.M) { testdaemon.Main(m, &daemon) }

// serve gives the handler's address and the client that it uses.
func serve(t *testing.T) (string, *weave.Client) {
	t.Helper()
	client, err := weave.Dial(context.Background(), daemon.Socket)
	must(t, err)
	server := httptest.NewServer(handler{client})
	t.Cleanup(func() {
		server.Close()
		client.Close()
	})
	return server.URL, client
}

func get(t *testing.T, ctx context.Context, address, query string) *http.Response {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"/generate?"+query, nil)
	must(t, err)
	response, err := http.DefaultClient.Do(request)
	must(t, err)
	t.Cleanup(func() { response.Body.Close() })
	return response
}

type sent struct {
	name string
	data map[string]any
}

func readEvent(t *testing.T, lines *bufio.Reader) (sent, bool) {
	t.Helper()
	var event sent
	for {
		line, err := lines.ReadString('\n')
		if err == io.EOF {
			return event, false
		}
		must(t, err)
		if line == "\n" {
			return event, true
		}
		if name, found := strings.CutPrefix(line, "event: "); found {
			event.name = strings.TrimSpace(name)
		}
		if data, found := strings.CutPrefix(line, "data: "); found {
			must(t, json.Unmarshal([]byte(data), &event.data))
		}
	}
}

func TestProgressAndThenTheImageAreStreamed(t *testing.T) {
	address, _ := serve(t)
	query := url.Values{"prompt": {"a red circle"}, "model": {"shapes"}, "steps": {"3"}, "seed": {"18446744073709551615"}}
	response := get(t, context.Background(), address, query.Encode())
	if kind := response.Header.Get("Content-Type"); kind != "text/event-stream" {
		t.Fatalf("got %s", kind)
	}
	var names []string
	lines := bufio.NewReader(response.Body)
	for event, more := readEvent(t, lines); more; event, more = readEvent(t, lines) {
		if event.name != "loading" && event.name != "queued" {
			names = append(names, event.name)
		}
		if event.name == "image" {
			checkImage(t, event.data)
		}
	}
	if got := strings.Join(names, " "); got != "progress progress progress image done" {
		t.Errorf("got %s", got)
	}
}

func checkImage(t *testing.T, data map[string]any) {
	t.Helper()
	encoded, found := strings.CutPrefix(data["url"].(string), "data:image/png;base64,")
	if !found || data["seed"] != "18446744073709551615" {
		t.Errorf("got %.80v", data)
	}
	decoded, err := base64.StdEncoding.DecodeString(encoded)
	must(t, err)
	picture, err := png.Decode(bytes.NewReader(decoded))
	must(t, err)
	if picture.Bounds().Dx() != 128 {
		t.Errorf("got %v", picture.Bounds())
	}
}

func TestDisconnectedClientCancelsItsJob(t *testing.T) {
	address, client := serve(t)
	ctx, leave := context.WithCancel(context.Background())
	response := get(t, ctx, address, "model=shapes&prompt=x&steps=100&images=8")
	lines := bufio.NewReader(response.Body)
	for event, _ := readEvent(t, lines); event.name != "progress"; event, _ = readEvent(t, lines) {
	}
	leave()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		status, err := client.Status(context.Background())
		must(t, err)
		if len(status.Jobs) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the job goes on")
		}
	}
}

func TestDaemonsErrorIsAnEvent(t *testing.T) {
	address, _ := serve(t)
	response := get(t, context.Background(), address, "model=shapes&prompt=x&steps=101")
	event, _ := readEvent(t, bufio.NewReader(response.Body))
	if event.name != "error" || event.data["code"] != "out_of_bounds" || event.data["field"] != "steps" {
		t.Errorf("got %+v", event)
	}
}

func TestBadRequestsAndOtherSitesAreRefused(t *testing.T) {
	address, _ := serve(t)
	if response := get(t, context.Background(), address, "prompt=x&seed=-1"); response.StatusCode != http.StatusBadRequest {
		t.Errorf("a bad seed got %s", response.Status)
	}
	request, err := http.NewRequest(http.MethodGet, address+"/generate?prompt=x", nil)
	must(t, err)
	request.Host = "rebound.example"
	response, err := http.DefaultClient.Do(request)
	must(t, err)
	response.Body.Close()
	if response.StatusCode != http.StatusForbidden {
		t.Errorf("another host got %s", response.Status)
	}
}

func TestOnlyLocalAddressesAreListenedOn(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", ":0", "192.0.2.1:0", "example.com:0", "[::]:0"} {
		if listener, err := listen(address); err == nil {
			listener.Close()
			t.Errorf("listens on %s", address)
		}
	}
	for _, address := range []string{"127.0.0.1:0", "unix:" + t.TempDir() + "/socket"} {
		listener, err := listen(address)
		must(t, err)
		listener.Close()
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
