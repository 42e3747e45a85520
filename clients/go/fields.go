package weave

import (
	"bytes"
	"encoding/json"
	"math"
	"time"
	"unicode/utf8"
)

// fields are the fields of one event. They are stricter than encoding/json, which accepts a missing field as zero,
// `Job` for `job`, and invalid UTF-8. err is the first error.
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

// need decodes a required field.
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

// count decodes a required number that must not be negative.
func (f *fields) count(name string, into *int) {
	f.need(name, into)
	if f.err == nil && *into < 0 {
		f.err = protocolError("the field %s is %d", name, *into)
	}
}

// text decodes a required string that must be one of allowed.
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

// number decodes an optional number.
func (f *fields) number(name string, into *json.Number) {
	var value any
	f.allow(name, &value)
	number, ok := value.(json.Number)
	if f.err == nil && value != nil && !ok {
		f.err = protocolError("the field %s is not a number", name)
	}
	*into = number
}

// seconds decodes an optional number of seconds.
func (f *fields) seconds(name string, into *time.Duration) {
	var seconds float64
	f.allow(name, &seconds)
	*into = duration(seconds)
}

func (f *fields) missing(name string) bool {
	value, found := f.raw[name]
	return !found || string(value) == "null"
}

// duration converts seconds, clamped to the range of time.Duration.
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
