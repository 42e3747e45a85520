package weave

import (
	"encoding/json"
	"fmt"
	"math"
	"unicode/utf8"
)

// Format is how an image comes.
type Format string

// The formats. Raw is RGB, 8 bits a channel, rows from top to bottom, no padding.
const (
	PNG Format = "png"
	Raw Format = "raw"
)

// Delivery is the way an image comes.
type Delivery string

// The deliveries. FD is a sealed memfd, which can be read or mapped without a copy through the socket.
const (
	Inline Delivery = "inline"
	FD     Delivery = "fd"
)

// GenerateRequest asks for pictures. Whatever has its zero value is left out, and takes the model's default.
type GenerateRequest struct {
	Prompt         string `json:"prompt"`
	NegativePrompt string `json:"negative_prompt,omitempty"`
	// Model is a model's ID; left out it is the one that is loaded, else the daemon's default.
	Model string `json:"model,omitempty"`
	// Width and Height are in pixels.
	Width  int `json:"width,omitempty"`
	Height int `json:"height,omitempty"`
	Steps  int `json:"steps,omitempty"`
	// CFGScale may be 0, so it is a pointer: see [CFGScale].
	CFGScale *float64 `json:"cfg_scale,omitempty"`
	// Seed of the first image; image i is drawn from Seed + i. Left out it is random. It may be 0: see [Seed].
	Seed      *uint64 `json:"seed,omitempty"`
	Scheduler string  `json:"scheduler,omitempty"`
	// Images is how many to draw; left out it is 1.
	Images int `json:"images,omitempty"`
	// Format is PNG where it is left out.
	Format Format `json:"format,omitempty"`
	// PreviewEvery is the steps between previews; 0 is never.
	PreviewEvery int `json:"preview_every,omitempty"`
	// Deliver is Inline where it is left out.
	Deliver Delivery `json:"deliver,omitempty"`
}

// Seed is for GenerateRequest.Seed.
func Seed(seed uint64) *uint64 { return &seed }

// CFGScale is for GenerateRequest.CFGScale.
func CFGScale(scale float64) *float64 { return &scale }

// The operations.
const (
	opStatus     = "status"
	opListModels = "list_models"
	opLoadModel  = "load_model"
	opUnload     = "unload"
	opGenerate   = "generate"
	opCancel     = "cancel"
)

// message is what any operation but generate sends.
type message struct {
	Op      string  `json:"op"`
	Model   *string `json:"model,omitempty"`   // load_model
	Request *uint32 `json:"request,omitempty"` // cancel, of this connection
	Job     *uint64 `json:"job,omitempty"`     // cancel, of any of the user's connections
}

type generateMessage struct {
	Op string `json:"op"`
	GenerateRequest
}

// encode is a control frame's payload. It fails for what JSON cannot say (NaN, the infinities), for text that is not
// UTF-8, which encoding/json would change without a word, and for what is too long for a frame.
func encode(message any) ([]byte, error) {
	if generate, ok := message.(generateMessage); ok {
		for field, text := range map[string]string{
			"prompt": generate.Prompt, "negative_prompt": generate.NegativePrompt,
			"model": generate.Model, "scheduler": generate.Scheduler,
		} {
			if !utf8.ValidString(text) {
				return nil, fmt.Errorf("weave: %s is not valid UTF-8", field)
			}
		}
		if scale := generate.CFGScale; scale != nil && (math.IsNaN(*scale) || math.IsInf(*scale, 0)) {
			return nil, fmt.Errorf("weave: cfg_scale is %v; it must be a finite number", *scale)
		}
	}
	payload, err := json.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("weave: %w", err)
	}
	if len(payload) > MaxControlBytes {
		return nil, fmt.Errorf("weave: a request of %d bytes; it must be at most %d", len(payload), MaxControlBytes)
	}
	return payload, nil
}
