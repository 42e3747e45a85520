package version1

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"strings"
	"testing"
)

// of returns a valid request whose prompts follow each other in prompt_data, as existing clients send them.
func of(seed uint64, clipL, clipG, t5 string) request {
	wanted := good()
	wanted.seed = seed
	wanted.promptData = []byte(clipL + clipG + t5)
	l, g, t := uint32(len(clipL)), uint32(len(clipG)), uint32(len(t5))
	wanted.slices = [6]uint32{0, l, l, g, l + g, t}
	return wanted
}

func TestAnImageHasEveryField(t *testing.T) {
	wanted := of(7, prompt, prompt, prompt)
	wanted.steps = 4
	got := ask(t, connect(t), wanted.frame())
	if got.code != 0 || got.id != wanted.id || got.width != 64 || got.height != 64 || len(got.pixels) != 64*64*3 {
		t.Fatalf("got %dx%d, code %d %s", got.width, got.height, got.code, got.message)
	}
	if got.milliseconds < 1 || got.milliseconds > 60_000 {
		t.Errorf("it took %d ms", got.milliseconds)
	}
	at := func(x, y int) []byte { return got.pixels[3*(64*y+x):][:3] }
	if middle, corner := at(32, 32), at(2, 2); middle[0] < 128 || middle[2] > 128 || corner[2] < 128 || corner[0] > 128 {
		t.Errorf("%v in the middle and %v in the corner", middle, corner)
	}
}

func TestTheLimitsOfTheRangesAreAccepted(t *testing.T) {
	connection := connect(t)
	long, wide := strings.Repeat("x", 2000), strings.Repeat("é", 1024)
	for name, change := range map[string]func(*request){
		"one step":             func(r *request) { r.steps = 1 },
		"a hundred steps":      func(r *request) { r.steps = 100 },
		"cfg_scale 0":          func(r *request) { r.cfgScale = 0 },
		"cfg_scale 20":         func(r *request) { r.cfgScale = 20 },
		"the largest seed":     func(r *request) { r.seed = math.MaxUint64 },
		"prompts of one byte":  func(r *request) { *r = of(1, "x", "y", "z") },
		"long prompts":         func(r *request) { *r = of(1, long, long, long) },
		"prompts of 2048 byte": func(r *request) { *r = of(1, wide, wide, wide) },
		"request_id of zeros":  func(r *request) { r.id = [8]byte{} },
	} {
		wanted := good()
		wanted.steps = 1
		change(&wanted)
		if got := ask(t, connection, wanted.frame()); got.code != 0 || got.id != wanted.id {
			t.Errorf("%s: %v, code %d, %s", name, got.id, got.code, got.message)
		}
	}
}

func TestPromptsMayBeAnywhereInTheData(t *testing.T) {
	connection, length := connect(t), uint32(len(prompt))
	want := draw(t, connection, of(9, prompt, prompt, prompt))
	for name, layout := range map[string]struct {
		slices [6]uint32
		data   string
	}{
		"all the same":    {[6]uint32{0, length, 0, length, 0, length}, prompt},
		"overlapping":     {[6]uint32{0, length, 2, 9, 4, 9}, prompt},
		"with gaps":       {[6]uint32{5, length, 5, length, 0, 3}, "abc--" + prompt + "..."},
		"backwards":       {[6]uint32{2 * length, length, length, length, 0, length}, prompt + prompt + prompt},
		"beside bad UTF8": {[6]uint32{1, length, 1, length, 1, length}, "\xff" + prompt + "\xfe"},
	} {
		wanted := good()
		wanted.seed, wanted.slices, wanted.promptData = 9, layout.slices, []byte(layout.data)
		if !bytes.Equal(draw(t, connection, wanted), want) {
			t.Errorf("%s: another image", name)
		}
	}
}

func TestThreeDifferentPromptsGoToTheirEncoders(t *testing.T) {
	// The demo model has one encoder, which uses the first prompt.
	connection := connect(t)
	const other, third = "a green square on a black background", "a yellow triangle"
	mixed := draw(t, connection, of(4, prompt, other, third))
	if !bytes.Equal(mixed, draw(t, connection, of(4, prompt, prompt, prompt))) {
		t.Error("the first encoder did not get the first prompt")
	}
	if bytes.Equal(mixed, draw(t, connection, of(4, other, other, other))) {
		t.Error("the prompt makes no difference")
	}
}

func TestEveryInvalidFieldGetsItsCodeOnAnOpenConnection(t *testing.T) {
	length := uint32(len(prompt))
	type mistake struct {
		code   uint32
		change func(*request)
	}
	mistakes := map[string]mistake{
		"unknown model":        {3, func(r *request) { r.model = 4711 }},
		"largest model":        {3, func(r *request) { r.model = math.MaxUint32 }},
		"cfg_scale -0.5":       {7, func(r *request) { r.cfgScale = -0.5 }},
		"cfg_scale 20.5":       {7, func(r *request) { r.cfgScale = 20.5 }},
		"cfg_scale infinite":   {7, func(r *request) { r.cfgScale = float32(math.Inf(1)) }},
		"cfg_scale -infinite":  {7, func(r *request) { r.cfgScale = float32(math.Inf(-1)) }},
		"cfg_scale NaN":        {7, func(r *request) { r.cfgScale = float32(math.NaN()) }},
		"more than 10 MiB":     {5, func(r *request) { r.width, r.height = 2048, 2048 }},
		"prompt data too long": {4, func(r *request) { r.promptData = bytes.Repeat([]byte("x"), 3*2048+1) }},
		"prompt data of 9 MiB": {4, func(r *request) { r.promptData = bytes.Repeat([]byte("x"), 9<<20) }},
		"no prompt data":       {4, func(r *request) { r.promptData = nil }},
	}
	for _, side := range []uint32{0, 1, 63, 65, 96, 192, 2048, 2112, math.MaxUint32} { // the demo model supports 64 and 128
		mistakes["width "+number(side)] = mistake{5, func(r *request) { r.width = side }}
		mistakes["height "+number(side)] = mistake{5, func(r *request) { r.height = side }}
	}
	for _, steps := range []uint32{0, 101, math.MaxUint32} {
		mistakes["steps "+number(steps)] = mistake{6, func(r *request) { r.steps = steps }}
	}
	for i, encoder := range []string{"clip_l", "clip_g", "t5"} {
		for what, bad := range map[string]struct {
			offset, length uint32
			data           string
		}{
			"empty":             {0, 0, prompt},
			"too long":          {0, 2049, prompt + strings.Repeat("x", 2048)},
			"beyond the end":    {1, length, prompt},
			"behind the end":    {length, 1, prompt},
			"far away":          {math.MaxUint32, 1, prompt},
			"around 2**32":      {math.MaxUint32, 2, prompt},
			"from 2**32 back":   {math.MaxUint32 - 1, length, prompt},
			"of 2**32":          {0, math.MaxUint32, prompt},
			"not UTF-8":         {length, 2, prompt + "\xff\xfe"},
			"half a character":  {length, 1, prompt + "é"},
			"another half":      {length + 1, 1, prompt + "é"},
			"a surrogate":       {length, 3, prompt + "\xed\xa0\x80"},
			"not shortest":      {length, 2, prompt + "\xc0\xaf"},
			"beyond U+10FFFF":   {length, 4, prompt + "\xf4\x90\x80\x80"},
			"one byte too many": {0, length + 1, prompt},
		} {
			mistakes[encoder+" "+what] = mistake{4, func(r *request) {
				r.slices[2*i], r.slices[2*i+1], r.promptData = bad.offset, bad.length, []byte(bad.data)
			}}
		}
	}
	connection, id := connect(t), uint64(0xA0B0_C0D0_0000_0000)
	for name, wrong := range mistakes {
		id++
		wanted := good()
		wrong.change(&wanted)
		binary.BigEndian.PutUint64(wanted.id[:], id)
		got := ask(t, connection, wanted.frame())
		if got.code != wrong.code || got.status != 400 || got.id != wanted.id || got.message == "" {
			t.Errorf("%s: code %d, not %d, status %d, %q", name, got.code, wrong.code, got.status, got.message)
		}
	}
	draw(t, connection, good())
}

func TestAPayloadThatIsTooShortGetsCode4(t *testing.T) {
	connection, whole := connect(t), good().payload()
	for _, size := range []int{1, 7, 8, 9, 35, 36, 59, 60, len(whole) - 1} {
		var id [8]byte
		if size >= len(id) { // without a complete ID the answer's ID is zero
			id = good().id
		}
		if got := ask(t, connection, frame(0x0001, whole[:size])); got.code != 4 || got.id != id {
			t.Errorf("%d bytes: code %d for %v: %s", size, got.code, got.id, got.message)
		}
	}
	draw(t, connection, good())
}

func TestBadHeadersAreSkippedOrCloseTheConnectionFirstAndLater(t *testing.T) {
	const tooLong = 10*1024*1024 + 1
	for name, bad := range map[string]struct {
		code   uint32
		header []byte
	}{
		"magic":               {1, header("HTTP", 1, 1, 60, 0)},
		"magic in lower case": {1, header("weve", 1, 1, 60, 0)},
		"version 0":           {2, header("WEVE", 0, 1, 60, 0)},
		"version 3":           {2, header("WEVE", 3, 1, 60, 0)},
		"version 256":         {2, header("WEVE", 256, 1, 60, 0)},
		"type 0":              {99, header("WEVE", 1, 0, 60, 0)},
		"response":            {99, header("WEVE", 1, 2, 60, 0)},
		"error":               {99, header("WEVE", 1, 0xFF, 60, 0)},
		"version 2's type":    {99, header("WEVE", 1, 0x10, 60, 0)},
		"no payload":          {99, header("WEVE", 1, 1, 0, 0)},
		"more than 10 MiB":    {99, header("WEVE", 1, 1, tooLong, 0)},
		"largest payload":     {99, header("WEVE", 1, 1, math.MaxUint32, 0)},
		"reserved":            {99, header("WEVE", 1, 1, 60, 1)},
		"reserved's top bit":  {99, header("WEVE", 1, 1, 60, 1<<31)},
	} {
		for _, later := range []bool{false, true} {
			connection := connect(t)
			if later {
				ask(t, connection, frame(0x0001, []byte("too short")))
			}
			got := ask(t, connection, bad.header)
			if got.code != bad.code || got.id != [8]byte{} {
				t.Errorf("%s, later %v: code %d for %v: %s", name, later, got.code, got.id, got.message)
			}
			if length := binary.BigEndian.Uint32(bad.header[8:]); string(bad.header[:4]) == "WEVE" && length == 60 {
				if _, err := connection.Write(make([]byte, length)); err != nil {
					t.Fatal(err)
				}
				draw(t, connection, good())
				continue
			}
			if rest, err := io.ReadAll(connection); len(rest) > 0 || err != nil {
				t.Errorf("%s, later %v: %d more bytes, %v", name, later, len(rest), err)
			}
		}
	}
}

func TestErrorsAndImagesAreMatchedByRequestID(t *testing.T) {
	const count = 24
	connection := connect(t)
	id := func(seed uint64) (id [8]byte) {
		binary.BigEndian.PutUint64(id[:], seed*0x0101_0203_0405_0607)
		return id
	}
	var all []byte
	for seed := uint64(1); seed <= count; seed++ {
		wanted := of(seed, prompt, prompt, prompt)
		wanted.id = id(seed)
		if seed%6 == 0 {
			wanted.steps = 0
		}
		all = append(all, wanted.frame()...)
	}
	_, err := connection.Write(all) // several frames in one write
	must(t, err)
	replies, unique := make(map[[8]byte]reply), make(map[string]bool)
	for range count {
		got, err := read(connection)
		must(t, err)
		replies[got.id] = got
		unique[string(got.pixels)] = true
	}
	for seed := uint64(1); seed <= count; seed++ {
		if got, found := replies[id(seed)]; !found || (got.code == 6) != (seed%6 == 0) || got.code != 0 && got.code != 6 {
			t.Errorf("seed %d: %v, code %d, %s", seed, found, got.code, got.message)
		}
	}
	if len(unique) != count-count/6+1 { // the errors have no pixels
		t.Errorf("%d different images", len(unique))
	}
}

func TestARequestIDMayBeInFlightTwice(t *testing.T) {
	connection, wanted := connect(t), good()
	_, err := connection.Write(append(wanted.frame(), wanted.frame()...))
	must(t, err)
	for range 2 {
		if got, err := read(connection); err != nil || got.code != 0 || got.id != wanted.id {
			t.Errorf("got %v, code %d, %v", got.id, got.code, err)
		}
	}
}

func TestARequestMayArriveByteByByte(t *testing.T) {
	connection := connect(t)
	for _, one := range good().frame() {
		_, err := connection.Write([]byte{one})
		must(t, err)
	}
	if got, err := read(connection); err != nil || got.code != 0 || got.id != good().id {
		t.Errorf("got %v, code %d, %v", got.id, got.code, err)
	}
}
