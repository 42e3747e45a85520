// Package version1 holds tests only. They speak version 1 of the protocol byte by byte, written from docs/protocol.md
// alone, like a client that does not know version 2.
package version1

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"weave-compute/clients/go/internal/testdaemon"
)

const prompt = "a red circle on a blue background"

var daemon *testdaemon.Daemon

func TestMain(m *testing.M) { testdaemon.Main(m, &daemon) }

// request holds every field of a request's payload.
type request struct {
	id                          [8]byte
	model, width, height, steps uint32
	cfgScale                    float32
	seed                        uint64
	slices                      [6]uint32 // offset and length for clip_l, clip_g and t5
	promptData                  []byte
}

func good() request {
	return request{
		id: [8]byte{0, 1, 2, 3, 0xff, 'W', 0, 9}, width: 64, height: 64, steps: 2, cfgScale: 3, seed: 1,
		slices:     [6]uint32{0, uint32(len(prompt)), 0, uint32(len(prompt)), 0, uint32(len(prompt))},
		promptData: []byte(prompt),
	}
}

func (r request) payload() []byte {
	out := append([]byte(nil), r.id[:]...)
	for _, field := range []uint32{r.model, r.width, r.height, r.steps, math.Float32bits(r.cfgScale)} {
		out = binary.BigEndian.AppendUint32(out, field)
	}
	out = binary.BigEndian.AppendUint64(out, r.seed)
	for _, field := range r.slices {
		out = binary.BigEndian.AppendUint32(out, field)
	}
	return append(out, r.promptData...)
}

func (r request) frame() []byte { return frame(0x0001, r.payload()) }

func frame(kind uint16, payload []byte) []byte {
	return append(header("WEVE", 1, kind, uint32(len(payload)), 0), payload...)
}

func header(magic string, version, kind uint16, length, reserved uint32) []byte {
	out := []byte(magic)
	out = binary.BigEndian.AppendUint16(out, version)
	out = binary.BigEndian.AppendUint16(out, kind)
	out = binary.BigEndian.AppendUint32(out, length)
	return binary.BigEndian.AppendUint32(out, reserved)
}

// reply is an image, or an error if code is not 0.
type reply struct {
	id                      [8]byte
	status, milliseconds    uint32
	width, height, channels uint32
	pixels                  []byte
	code                    uint32
	message                 string
}

func read(from io.Reader) (reply, error) {
	var head [16]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return reply{}, err
	}
	if string(head[:4]) != "WEVE" || binary.BigEndian.Uint16(head[4:]) != 1 || binary.BigEndian.Uint32(head[12:]) != 0 {
		return reply{}, fmt.Errorf("a header % x", head)
	}
	length := binary.BigEndian.Uint32(head[8:])
	if length < 1 || length > 10*1024*1024 {
		return reply{}, fmt.Errorf("a length of %d", length)
	}
	payload := make([]byte, length)
	if _, err := io.ReadFull(from, payload); err != nil {
		return reply{}, err
	}
	word := func(offset int) uint32 { return binary.BigEndian.Uint32(payload[offset:]) }
	var got reply
	switch kind := binary.BigEndian.Uint16(head[6:]); {
	case kind == 0x0002 && len(payload) >= 32:
		got = reply{status: word(8), milliseconds: word(12), width: word(16), height: word(20), channels: word(24)}
		got.pixels = payload[32:]
		if word(28) != uint32(len(got.pixels)) || word(28) != got.width*got.height*got.channels || got.status != 200 {
			return reply{}, fmt.Errorf("an inconsistent image: % x", payload[:32])
		}
	case kind == 0x00ff && len(payload) >= 18:
		got = reply{status: word(8), code: word(12), message: string(payload[18:])}
		if int(binary.BigEndian.Uint16(payload[16:])) != len(got.message) {
			return reply{}, fmt.Errorf("a message with a wrong length: % x", payload)
		}
	default:
		return reply{}, fmt.Errorf("type %#x with %d bytes", kind, len(payload))
	}
	copy(got.id[:], payload)
	return got, nil
}

func connect(t *testing.T) net.Conn {
	t.Helper()
	connection, err := net.Dial("unix", daemon.Socket)
	must(t, err)
	t.Cleanup(func() { connection.Close() })
	must(t, connection.SetDeadline(time.Now().Add(60*time.Second)))
	return connection
}

func ask(t *testing.T, connection net.Conn, frame []byte) reply {
	t.Helper()
	_, err := connection.Write(frame)
	must(t, err)
	got, err := read(connection)
	must(t, err)
	return got
}

func draw(t *testing.T, connection net.Conn, wanted request) []byte {
	t.Helper()
	got := ask(t, connection, wanted.frame())
	if got.code != 0 || got.id != wanted.id || got.width != 64 || got.height != 64 || got.channels != 3 {
		t.Fatalf("got %v %d %s", got.id, got.code, got.message)
	}
	return got.pixels
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestASeedRepeatsItsImageAndSeedZeroDoesNot(t *testing.T) {
	connection, wanted := connect(t), good()
	if !bytes.Equal(draw(t, connection, wanted), draw(t, connection, wanted)) {
		t.Error("the same request gave another image")
	}
	wanted.seed = 0
	if bytes.Equal(draw(t, connection, wanted), draw(t, connection, wanted)) {
		t.Error("seed 0 gave the same image twice")
	}
}

func TestSlicesMayOverlapAndTheFirstEncoderGetsClipL(t *testing.T) {
	connection, apart, over := connect(t), good(), good()
	apart.promptData = []byte("red circle" + "a red circle" + "x")
	apart.slices = [6]uint32{0, 10, 10, 12, 22, 1}
	over.promptData = []byte("a red circle")
	over.slices = [6]uint32{2, 10, 0, 12, 0, 1}
	if !bytes.Equal(draw(t, connection, apart), draw(t, connection, over)) {
		t.Error("the same prompts in other slices gave another image")
	}
}

func TestRepliesAreMatchedByRequestID(t *testing.T) {
	connection, alone := connect(t), map[[8]byte][]byte{}
	for seed := uint64(1); seed <= 12; seed++ {
		wanted := good()
		wanted.seed = seed
		binary.LittleEndian.PutUint64(wanted.id[:], seed<<32)
		alone[wanted.id] = draw(t, connection, wanted)
	}
	if len(alone) != 12 {
		t.Fatal("identifiers are not echoed")
	}
	for seed := uint64(1); seed <= 12; seed++ {
		wanted := good()
		wanted.seed = seed
		binary.LittleEndian.PutUint64(wanted.id[:], seed<<32)
		_, err := connection.Write(wanted.frame())
		must(t, err)
	}
	for range alone {
		got, err := read(connection)
		must(t, err)
		if got.code != 0 || !bytes.Equal(got.pixels, alone[got.id]) {
			t.Errorf("request %v got another request's image, or error %d", got.id, got.code)
		}
	}
}

func TestTheSupportedVersionsAreNamed(t *testing.T) {
	got := ask(t, connect(t), header("WEVE", 9, 1, 4, 0))
	if got.code != 2 || got.status != 400 || !strings.Contains(got.message, "1") {
		t.Errorf("got %d %d %q", got.status, got.code, got.message)
	}
}

// golden is tests/golden/version1.json.
type golden struct {
	Frames []struct {
		Name, From, Hex string
		Message         struct {
			RequestID    string   `json:"request_id"`
			ModelID      uint32   `json:"model_id"`
			Width        uint32   `json:"width"`
			Height       uint32   `json:"height"`
			Steps        uint32   `json:"steps"`
			CFGScale     float32  `json:"cfg_scale"`
			Seed         uint64   `json:"seed"`
			Prompts      []string `json:"prompts"`
			Status       uint32   `json:"status"`
			Milliseconds uint32   `json:"milliseconds"`
			Pixels       string   `json:"pixels"`
			Code         uint32   `json:"code"`
			Text         string   `json:"text"`
		}
	}
	Bad []struct {
		Name, Hex string
		Code      uint32
		Closes    bool
		Skipped   bool
	}
}

func readGolden(t *testing.T) golden {
	t.Helper()
	data, err := os.ReadFile("../../../tests/golden/version1.json")
	must(t, err)
	var found golden
	must(t, json.Unmarshal(data, &found))
	if len(found.Frames) < 10 || len(found.Bad) < 30 {
		t.Fatal("the file has too few frames")
	}
	return found
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	data, err := hex.DecodeString(text)
	must(t, err)
	return data
}

func TestGoldenFrames(t *testing.T) {
	for _, entry := range readGolden(t).Frames {
		t.Run(entry.Name, func(t *testing.T) {
			data, message := unhex(t, entry.Hex), entry.Message
			var id [8]byte
			copy(id[:], unhex(t, message.RequestID))
			if entry.From == "daemon" {
				got, err := read(bytes.NewReader(data))
				must(t, err)
				same := got.id == id && got.status == message.Status && got.code == message.Code
				same = same && got.message == message.Text && bytes.Equal(got.pixels, unhex(t, message.Pixels))
				if !same || got.milliseconds != message.Milliseconds || got.width != message.Width {
					t.Errorf("got %+v", got)
				}
				return
			}
			wanted := request{id, message.ModelID, message.Width, message.Height, message.Steps, message.CFGScale,
				message.Seed, [6]uint32{}, data[16+60:]}
			for number := range wanted.slices {
				wanted.slices[number] = binary.BigEndian.Uint32(data[16+36+4*number:])
			}
			if !bytes.Equal(wanted.frame(), data) {
				t.Errorf("sent %x", wanted.frame())
			}
			for number, text := range message.Prompts {
				offset, length := wanted.slices[2*number], wanted.slices[2*number+1]
				if string(wanted.promptData[offset:offset+length]) != text {
					t.Errorf("prompt %d", number)
				}
			}
		})
	}
}

func TestGoldenBadFrames(t *testing.T) {
	for _, entry := range readGolden(t).Bad {
		t.Run(entry.Name, func(t *testing.T) {
			connection, data := connect(t), unhex(t, entry.Hex)
			got := ask(t, connection, data)
			if got.code != entry.Code || got.message == "" || (got.status == 400) != (entry.Code <= 7) {
				t.Errorf("got %d %d %q", got.status, got.code, got.message)
			}
			var id [8]byte
			if !entry.Closes && !entry.Skipped && len(data) >= 24 {
				copy(id[:], data[16:24])
			}
			if got.id != id {
				t.Errorf("request_id %v, not %v", got.id, id)
			}
			if !entry.Closes {
				draw(t, connection, good())
			} else if rest, err := io.ReadAll(connection); len(rest) > 0 || err != nil {
				t.Errorf("%d more bytes, %v", len(rest), err)
			}
		})
	}
}
