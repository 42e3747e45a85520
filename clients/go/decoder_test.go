package weave

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand"
	"testing"
)

const announcement = `{"event":"image","image":0,"seed":7,"format":"raw","deliver":"inline","width":2,"height":1,"channels":3,"size":6}`

// conversation is what a daemon sends: every kind of frame.
var conversation = bytes.Join([][]byte{
	controlFrame(1, []byte(`{"event":"queued","job":5,"position":0}`)),
	controlFrame(1, []byte(`{"event":"loading","model":"shapes"}`)),
	controlFrame(1, []byte(`{"event":"progress","image":0,"step":1,"steps":4}`)),
	controlFrame(1, []byte(`{"event":"preview","image":0,"step":1,"width":8,"height":8,"size":4}`)),
	imageFrame(1, []byte("\x89PNG")),
	controlFrame(1, []byte(announcement)),
	imageFrame(1, []byte("abcdef")),
	controlFrame(1, []byte(`{"event":"done","model":"shapes","seed":7,"timings":{"queued":0.25}}`)),
	controlFrame(2, []byte(`{"event":"models","models":[{"id":"m","bounds":{"width":{"min":64}}}],"default":"m"}`)),
	controlFrame(3, []byte(`{"event":"error","code":"out_of_bounds","message":"m","field":"steps","value":0,"min":1,"max":100}`)),
}, nil)

// decodeInChunks feeds data in pieces of the sizes that next returns, and describes the answers. It fails the test if
// the decoder allocates more memory than the arrived data needs.
func decodeInChunks(t *testing.T, data []byte, next func() int) string {
	t.Helper()
	var incoming decoder
	defer incoming.close()
	var heard bytes.Buffer
	for len(data) > 0 {
		chunk := data[:min(next(), len(data))]
		data = data[len(chunk):]
		err := incoming.feed(chunk, nil, func(whole answer) error {
			fmt.Fprintf(&heard, "%d %+v\n", whole.request, whole.event)
			return nil
		})
		if err != nil {
			fmt.Fprintln(&heard, err)
			break
		}
		if held := cap(incoming.payload); held > 2*len(incoming.payload)+1024 {
			t.Fatalf("%d bytes are allocated for %d that arrived", held, len(incoming.payload))
		}
	}
	return heard.String()
}

func TestDecoderIsIndependentOfChunkSizes(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	for round := 0; round < 2000; round++ {
		data := bytes.Clone(conversation)
		for flips := random.Intn(4); flips > 0; flips-- {
			data[random.Intn(len(data))] ^= 1 << random.Intn(8)
		}
		data = data[:len(data)-random.Intn(2)*random.Intn(len(data))]
		whole := decodeInChunks(t, data, func() int { return len(data) })
		pieces := decodeInChunks(t, data, func() int { return 1 + random.Intn(1+random.Intn(200)) })
		if withoutAddresses(whole) != withoutAddresses(pieces) {
			t.Fatalf("whole:\n%s\nin pieces:\n%s", whole, pieces)
		}
	}
}

func TestDecoderSurvivesAnyBytes(t *testing.T) {
	random := rand.New(rand.NewSource(2))
	for round := 0; round < 2000; round++ {
		data := make([]byte, random.Intn(400))
		random.Read(data)
		if round%2 == 0 { // a valid header, so that the payload is decoded
			data = imageOrControl(random, data)
		}
		decodeInChunks(t, data, func() int { return 1 + random.Intn(64) })
	}
}

func TestAnnouncedSizeAllocatesNothing(t *testing.T) {
	large := bytes.Replace([]byte(announcement), []byte(`"size":6`), []byte(`"size":268435456`), 1)
	frame := imageFrame(1, []byte("abcdef"))
	binary.BigEndian.PutUint32(frame[8:], MaxImageBytes)
	data := append(controlFrame(1, large), frame...)
	decodeInChunks(t, data, func() int { return 100 })
}

func FuzzDecoder(f *testing.F) {
	f.Add(conversation, uint8(7))
	f.Add([]byte("WEVE\x00\x02\x00\x10\x00\x00\x00\x02\x00\x00\x00\x01{}"), uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, piece uint8) {
		decodeInChunks(t, data, func() int { return 1 + int(piece) })
	})
}

func imageOrControl(random *rand.Rand, payload []byte) []byte {
	if random.Intn(2) == 0 {
		return controlFrame(random.Uint32(), payload)
	}
	return append(controlFrame(1, []byte(announcement)), imageFrame(1, payload)...)
}

// withoutAddresses removes the memory addresses, which differ between equal answers.
func withoutAddresses(heard string) string {
	var kept bytes.Buffer
	for _, word := range bytes.Fields([]byte(heard)) {
		if !bytes.Contains(word, []byte("0x")) {
			kept.Write(word)
		}
	}
	return kept.String()
}
