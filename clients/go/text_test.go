package weave

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// Each affects a terminal, a shell or a web page that does not escape it.
var hostileTexts = []string{
	"$(id>file)", "`id`", "a b", "-rf", "a\x1b[31m", "a\u009b31m", "a\x7f", "a\u202e", "a\nb", "A'", `"`, "../a", strings.Repeat("a", 65),
}

func TestInvalidNamesCloseTheConnection(t *testing.T) {
	for field, event := range map[string]string{
		"model":     `{"event":"loading","model":%q}`,
		"done":      `{"event":"done","model":%q}`,
		"id":        `{"event":"models","models":[{"id":%q}]}`,
		"scheduler": `{"event":"models","models":[{"id":"m","schedulers":[%q]}]}`,
		"tasks":     `{"event":"models","models":[{"id":"m","tasks":[%q]}]}`,
		"encoder":   `{"event":"done","tokens":{"prompt":[{"encoder":%q,"used":1,"cut":0}]}}`,
		"code":      `{"event":"error","code":%q,"message":"m"}`,
		"default":   `{"event":"models","models":[],"default":%q}`,
		"loaded":    `{"event":"models","models":[],"loaded":%q}`,
	} {
		for _, text := range hostileTexts {
			message := fmt.Sprintf(event, "TEXT")
			message = strings.Replace(message, `"TEXT"`, quoteJSON(text), 1)
			if _, _, err := decodeEvent([]byte(message)); !errors.Is(err, ErrProtocol) {
				t.Errorf("%s: %q was accepted", field, text)
			}
		}
	}
}

func TestInvalidNamesInStatusAreRefused(t *testing.T) {
	for field, rest := range map[string]string{
		"features": `"worker":"none","jobs":[],"metrics":{},"features":[TEXT]}`,
		"errors":   `"worker":"none","jobs":[],"metrics":{"errors":{TEXT:1}}}`,
		"worker":   `"worker":TEXT,"jobs":[],"metrics":{}}`,
	} {
		for _, text := range hostileTexts {
			message := statusStart + strings.Replace(rest, "TEXT", quoteJSON(text), 1)
			if _, _, err := decodeEvent([]byte(message)); !errors.Is(err, ErrProtocol) {
				t.Errorf("%s: %q was accepted", field, text)
			}
		}
	}
}

func TestTitlesWithInvisibleCharactersAreRefused(t *testing.T) {
	decode := func(text string) error {
		_, _, err := decodeEvent([]byte(`{"event":"models","models":[{"id":"m","title":` + quoteJSON(text) + `}]}`))
		return err
	}
	for _, text := range []string{"a\x1b]0;x\a", "a\u009b1m", "a\x7f", "a\u202eb", "a\u2028b", "a\nb", strings.Repeat("a", 257)} {
		if err := decode(text); !errors.Is(err, ErrProtocol) {
			t.Errorf("%q was accepted", text)
		}
	}
	if err := decode("Coloured shapes, 64×64 (démo) 日本 'x' $(id)"); err != nil {
		t.Error(err)
	}
}

func TestNonFiniteNumbersAreRefusedByName(t *testing.T) {
	client, _ := withFakeDaemon(t)
	zero := 0.0
	for _, scale := range []float64{zero / zero, 1 / zero, -1 / zero} {
		_, err := client.Generate(background, GenerateRequest{Prompt: "x", CFGScale: CFGScale(scale)})
		if err == nil || !strings.Contains(err.Error(), "cfg_scale is ") {
			t.Errorf("got %v", err)
		}
	}
}

func TestUnreadOldPreviewsAreDropped(t *testing.T) {
	started := newCall(opGenerate)
	for step := 1; step <= 100; step++ {
		started.push(Progress{Step: step})
		started.push(Preview{Step: step, PNG: make([]byte, 1024*1024)})
	}
	events, _ := started.take()
	var steps []int
	progress := 0
	for _, event := range events {
		switch event := event.(type) {
		case Preview:
			steps = append(steps, event.Step)
		case Progress:
			progress++
		}
	}
	if len(steps) != 16 || steps[0] != 85 || steps[15] != 100 || progress != 100 {
		t.Errorf("%d of progress, previews of %v", progress, steps)
	}
}

func quoteJSON(text string) string {
	var quoted strings.Builder
	for _, char := range text {
		if char < 0x10000 {
			fmt.Fprintf(&quoted, `\u%04x`, char)
		} else {
			quoted.WriteRune(char)
		}
	}
	return `"` + quoted.String() + `"`
}
