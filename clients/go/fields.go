package weave

import (
	"bytes"
	"encoding/json"
	"math"
	"time"
	"unicode/utf8"
)

// fields are those of one event. encoding/json alone would take a missing field for a zero, `Job` for `job` and
// broken UTF-8 for text; here each of these is what it is. err is the first thing that was wrong.
type fields struct {
	raw map[string]json.RawMessage
	err error
}

func parseFields(payload []byte) *fields {
	parsed := &fields{}
	if !utf8.Valid(payload) {
		parsed.err = protocolError("a message is not UTF-8")
	} else if err := json.Unmarshal(payload, &parsed.raw); err != nil {
		parsed.err = protocolError("not a JSON message: %v", err)
	}
	return parsed
}

// need decodes a field that must be there.
func (f *fields) need(name string, into any) {
	if f.err == nil && f.missing(name) {
		f.err = protocolError("the field %s is missing", name)
	}
	f.allow(name, into)
}

// allow decodes a field that may be missing or null.
func (f *fields) allow(name string, into any) {
	if f.err != nil || f.missing(name) {
		return
	}
	decoder := json.NewDecoder(bytes.NewReader(f.raw[name]))
	decoder.UseNumber()
	if err := decoder.Decode(into); err != nil {
		f.err = protocolError("the field %s: %v", name, err)
	}
}

// count decodes a number that must be there and is not negative.
func (f *fields) count(name string, into *int) {
	f.need(name, into)
	if f.err == nil && *into < 0 {
		f.err = protocolError("the field %s is %d", name, *into)
	}
}

// text decodes a string that must be one of those.
func (f *fields) text(name string, into *string, allowed ...string) {
	f.need(name, into)
	for _, one := range allowed {
		if *into == one {
			return
		}
	}
	if f.err == nil {
		f.err = protocolError("the field %s is %.40q", name, *into)
	}
}

// number decodes a number that may be missing.
func (f *fields) number(name string, into *json.Number) {
	var value any
	f.allow(name, &value)
	number, ok := value.(json.Number)
	if f.err == nil && value != nil && !ok {
		f.err = protocolError("the field %s is no number", name)
	}
	*into = number
}

// seconds decodes a time, which the wire has as seconds and may leave out.
func (f *fields) seconds(name string, into *time.Duration) {
	var seconds float64
	f.allow(name, &seconds)
	*into = duration(seconds)
}

func (f *fields) missing(name string) bool {
	value, found := f.raw[name]
	return !found || string(value) == "null"
}

// duration is the nearest one there is: a float64 can hold more seconds than a Duration.
func duration(seconds float64) time.Duration {
	nanoseconds := math.Round(seconds * float64(time.Second))
	switch {
	case nanoseconds >= math.MaxInt64:
		return math.MaxInt64
	case nanoseconds <= math.MinInt64:
		return math.MinInt64
	}
	return time.Duration(nanoseconds)
}
