package weave

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"testing"
	"time"
)

// The frames that every client must encode and decode in the same way; tests/golden/README.md describes them.
var goldenPath = "../../tests/golden/version2.json"

type goldenFile struct {
	Frames []struct {
		Name       string          `json:"name"`
		From       string          `json:"from"`
		Hex        string          `json:"hex"`
		Request    uint32          `json:"request"`
		Kind       string          `json:"kind"`
		Message    json.RawMessage `json:"message"`
		PayloadHex string          `json:"payload_hex"`
	} `json:"frames"`
	Uploads []struct {
		Name        string          `json:"name"`
		Request     uint32          `json:"request"`
		Message     json.RawMessage `json:"message"`
		PayloadsHex []string        `json:"payloads_hex"`
		Hex         []string        `json:"hex"`
	} `json:"uploads"`
	Skipped []struct {
		Name string `json:"name"`
		Hex  string `json:"hex"`
	} `json:"skipped"`
	Bad []struct {
		Name string `json:"name"`
		From string `json:"from"`
		Hex  string `json:"hex"`
		Why  string `json:"why"`
	} `json:"bad"`
}

func readGolden(t *testing.T) goldenFile {
	t.Helper()
	data, err := os.ReadFile(goldenPath)
	must(t, err)
	var golden goldenFile
	must(t, json.Unmarshal(data, &golden))
	if len(golden.Frames) == 0 || len(golden.Uploads) == 0 || len(golden.Skipped) == 0 || len(golden.Bad) == 0 {
		t.Fatal("the file is empty")
	}
	return golden
}

func TestGoldenFramesFromClients(t *testing.T) {
	for _, golden := range readGolden(t).Frames {
		if golden.From != "client" {
			continue
		}
		t.Run(golden.Name, func(t *testing.T) {
			want := unhex(t, golden.Hex)
			payload, err := encode(goldenMessage(t, golden.Message))
			must(t, err)
			got := controlFrame(golden.Request, payload)
			if !bytes.Equal(got[:8], want[:8]) || !bytes.Equal(got[12:headerBytes], want[12:headerBytes]) {
				t.Errorf("the header is %x, not %x", got[:headerBytes], want[:headerBytes])
			}
			if int(got[10])<<8|int(got[11]) != len(payload) {
				t.Errorf("the header %x is not of %d bytes", got[:headerBytes], len(payload))
			}
			sent, expected := withoutDefaults(fieldsOf(t, payload)), withoutDefaults(fieldsOf(t, want[headerBytes:]))
			if !same(sent, expected) || !same(expected, withoutDefaults(fieldsOf(t, golden.Message))) {
				t.Errorf("sent %v, not %v", sent, expected)
			}
		})
	}
}

func TestGoldenUploadsFromClients(t *testing.T) {
	for _, golden := range readGolden(t).Uploads {
		t.Run(golden.Name, func(t *testing.T) {
			generate := goldenMessage(t, golden.Message).(generateMessage)
			payload, err := encode(generate)
			must(t, err)
			sent, expected := fieldsOf(t, payload), fieldsOf(t, unhex(t, golden.Hex[0])[headerBytes:])
			if !same(withoutDefaults(sent), withoutDefaults(expected)) {
				t.Errorf("sent %v, not %v", sent, expected)
			}
			images := generate.uploads()
			if len(images) != len(golden.PayloadsHex) {
				t.Fatalf("%d images, not %d", len(images), len(golden.PayloadsHex))
			}
			for number, upload := range images {
				upload.image.pixels = unhex(t, golden.PayloadsHex[number])
				frame := frameHeader(kindImage, golden.Request, upload.image.size())
				must(t, upload.image.eachPiece(func(piece []byte) error {
					frame = append(frame, piece...)
					return nil
				}))
				if !bytes.Equal(frame, unhex(t, golden.Hex[number+1])) {
					t.Errorf("image %d is sent as %x", number, frame)
				}
			}
			must(t, checkUploads(images))
		})
	}
}

func TestGoldenFramesFromTheDaemon(t *testing.T) {
	for _, golden := range readGolden(t).Frames {
		if golden.From != "daemon" {
			continue
		}
		t.Run(golden.Name, func(t *testing.T) {
			heard := hear(t, unhex(t, golden.Hex), golden.Message)
			if heard.request != golden.Request {
				t.Errorf("request %d", heard.request)
			}
			if golden.Kind == "image" {
				data, err := heard.event.(*Image).Bytes()
				must(t, err)
				if !bytes.Equal(data, unhex(t, golden.PayloadHex)) {
					t.Errorf("got %x", data)
				}
			}
			got, want := eventFields(t, heard.event), fieldsOf(t, golden.Message)
			if size, found := want["size"]; found {
				got["size"] = size // a preview's is the length of its bytes; the decoder has checked it
			}
			if !same(got, want) {
				t.Errorf("got %v, not %v", got, want)
			}
		})
	}
}

func TestGoldenUnknownEventsAreSkipped(t *testing.T) {
	const known = `{"event":"queued","job":5,"position":0}`
	for _, golden := range readGolden(t).Skipped {
		t.Run(golden.Name, func(t *testing.T) {
			frames := append(unhex(t, golden.Hex), controlFrame(7, []byte(known))...)
			var heard []any
			var incoming decoder
			must(t, incoming.feed(frames, nil, func(whole answer) error {
				heard = append(heard, whole.event)
				return nil
			}))
			if len(heard) != 1 || heard[0] != (Queued{Job: 5}) {
				t.Errorf("heard %v", heard)
			}
		})
	}
}

func TestGoldenBadFramesFromTheDaemon(t *testing.T) {
	for _, golden := range readGolden(t).Bad {
		if golden.From != "daemon" {
			continue
		}
		t.Run(golden.Name, func(t *testing.T) {
			var incoming decoder
			defer incoming.close()
			err := incoming.feed(unhex(t, golden.Hex), nil, func(answer) error { return nil })
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("accepted, with the error %v, though: %s", err, golden.Why)
			}
		})
	}
}

// hear decodes frames. It adds the bytes or the memfd to an announcement without them.
func hear(t *testing.T, frames []byte, message json.RawMessage) answer {
	t.Helper()
	var incoming decoder
	var heard answer
	deliver := func(whole answer) error { heard = whole; return nil }
	var descriptors []*os.File
	var described struct {
		Deliver string
		Size    int
	}
	_ = json.Unmarshal(message, &described)
	if described.Deliver == "fd" {
		descriptors = append(descriptors, newMemfd(t, make([]byte, described.Size), allSeals))
	}
	must(t, incoming.feed(frames, descriptors, deliver))
	if incoming.announced != nil {
		must(t, incoming.feed(imageFrame(incoming.announced.request, make([]byte, incoming.size)), nil, deliver))
	}
	return heard
}

// goldenMessage returns the client's own message with the same content.
func goldenMessage(t *testing.T, text json.RawMessage) any {
	t.Helper()
	var plain message
	must(t, json.Unmarshal(text, &plain))
	if plain.Op != opGenerate {
		return plain
	}
	var generate generateMessage
	must(t, json.Unmarshal(text, &generate))
	return generate
}

// eventFields returns an event's fields by their names in docs/protocol.md.
func eventFields(t *testing.T, event any) map[string]any {
	t.Helper()
	var found any
	switch e := event.(type) {
	case Queued:
		found = map[string]any{"event": "queued", "job": e.Job, "position": e.Position}
	case Loading:
		found = map[string]any{"event": "loading", "model": e.Model}
		if e.Plan != "" {
			found.(map[string]any)["plan"] = e.Plan
		}
	case Progress:
		found = map[string]any{"event": "progress", "image": e.Image, "step": e.Step, "steps": e.Steps}
	case Preview:
		found = map[string]any{"event": "preview", "image": e.Image, "step": e.Step, "width": e.Width, "height": e.Height}
	case *Image:
		found = map[string]any{
			"event": "image", "image": e.Index, "seed": e.Seed, "format": e.Format, "deliver": e.Deliver,
			"width": e.Width, "height": e.Height, "channels": e.Channels, "size": e.Size,
		}
	case Done:
		found = map[string]any{"event": "done", "model": e.Model, "seed": e.Seed, "timings": map[string]any{
			"queued": e.Timings.Queued.Seconds(), "loading": e.Timings.Loading.Seconds(),
			"generating": e.Timings.Generating.Seconds(),
		}}
		if e.Fallback != "" {
			found.(map[string]any)["fallback"] = e.Fallback
		}
		if e.Tokens != nil {
			found.(map[string]any)["tokens"] = e.Tokens
		}
	case *Error:
		found = map[string]any{
			"event": "error", "code": e.Code, "message": e.Message, "field": e.Field, "value": e.Value,
			"min": e.Min, "max": e.Max, "retry_after": e.RetryAfter.Seconds(),
		}
		if e.Min == "" { // encoding/json encodes an empty json.Number as 0
			found.(map[string]any)["min"], found.(map[string]any)["max"] = nil, nil
		}
	case StatusReport:
		found = map[string]any{
			"event": "status", "version": e.Version, "features": e.Features, "uptime": e.Uptime.Seconds(), "mode": e.Mode, "worker": e.Worker,
			"model": e.Model, "device": e.Device, "dtype": e.Dtype, "memory_used": e.MemoryUsed,
			"memory_total": e.MemoryTotal, "queue_length": e.QueueLength, "queue_limit": e.QueueLimit,
			"connections": e.Connections, "jobs": e.Jobs, "sandbox": e.Sandbox, "worker_restarts": e.WorkerRestarts,
			"images_made": e.ImagesMade, "metrics": e.Metrics, "devices": e.Devices,
		}
	case Models:
		found = map[string]any{
			"event": "models", "models": e.Models, "default": e.Default, "loaded": e.Loaded, "loras": e.Loras,
			"embeddings": e.Embeddings, "controls": e.Controls,
		}
	}
	text, err := json.Marshal(found)
	must(t, err)
	return fieldsOf(t, text)
}

func fieldsOf(t *testing.T, text []byte) map[string]any {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var fields map[string]any
	must(t, decoder.Decode(&fields))
	return fields
}

// withoutDefaults removes the fields that have their default (docs/protocol.md, "Operations").
func withoutDefaults(fields map[string]any) map[string]any {
	for name, usual := range map[string]any{
		"negative_prompt": "", "images": json.Number("1"), "format": "png", "deliver": "inline",
		"preview_every": json.Number("0"),
	} {
		if fields[name] == usual {
			delete(fields, name)
		}
	}
	return fields
}

// same compares JSON values. A missing field equals null, and, since this client's structs cannot distinguish them,
// an optional field's zero value.
func same(got, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		got, ok := got.(map[string]any)
		for name := range want {
			ok = ok && same(got[name], want[name])
		}
		for name := range got {
			_, said := want[name]
			ok = ok && (said || isZero(got[name]))
		}
		return ok
	case []any:
		got, ok := got.([]any)
		ok = ok && len(got) == len(want)
		for i := range want {
			ok = ok && same(got[i], want[i])
		}
		return ok
	case json.Number:
		got, ok := got.(json.Number)
		return ok && (got == want || sameFloat(got, want))
	case nil:
		return isZero(got)
	}
	return reflect.DeepEqual(got, want)
}

// sameFloat compares numbers: 1 equals 1.0, and seconds may differ by the client's rounding to nanoseconds.
func sameFloat(a, b json.Number) bool {
	x, _ := a.Float64()
	y, _ := b.Float64()
	_, notWhole := a.Int64()
	near := notWhole != nil || x < 1<<53
	return near && x-y < 1/float64(time.Second) && y-x < 1/float64(time.Second)
}

func isZero(value any) bool {
	switch value := value.(type) {
	case map[string]any:
		return same(value, map[string]any{})
	case json.Number:
		return value == "0"
	}
	return value == nil || value == ""
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	data, err := hex.DecodeString(text)
	must(t, err)
	return data
}
