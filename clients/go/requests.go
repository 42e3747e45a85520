package weave

import (
	"encoding/json"
	"fmt"
	"math"
	"unicode/utf8"
)

// Format is an image's format.
type Format string

// The formats. Raw is RGB, 8 bits per channel, rows from top to bottom, no padding.
const (
	PNG Format = "png"
	Raw Format = "raw"
)

// Delivery is how an image is delivered.
type Delivery string

// The deliveries. Inline sends the bytes over the socket; FD sends a sealed memfd, which can be read or mapped.
const (
	Inline Delivery = "inline"
	FD     Delivery = "fd"
)

// GenerateRequest is a request for images. A field with its zero value is not sent, and the model's default applies.
type GenerateRequest struct {
	Prompt         string `json:"prompt"`
	NegativePrompt string `json:"negative_prompt,omitempty"`
	// Model is a model's ID. If empty, the loaded model is used, or else the daemon's default.
	Model string `json:"model,omitempty"`
	// Width and Height are in pixels.
	Width  int `json:"width,omitempty"`
	Height int `json:"height,omitempty"`
	Steps  int `json:"steps,omitempty"`
	// CFGScale is a pointer because 0 is a valid value; see [CFGScale].
	CFGScale *float64 `json:"cfg_scale,omitempty"`
	// Seed is the seed of the first image; image i has seed Seed + i. If nil, it is random. See [Seed].
	Seed      *uint64 `json:"seed,omitempty"`
	Scheduler string  `json:"scheduler,omitempty"`
	// Cache is "none" or one of the model's step caches, which make other pixels in less time.
	Cache string `json:"cache,omitempty"`
	// Loras are applied together, each at most once.
	Loras []RequestedLora `json:"loras,omitempty"`
	// Embeddings are IDs, each of which must be in a prompt as a word; there it stands for the embedding's vectors.
	Embeddings []string `json:"embeddings,omitempty"`
	// Image is the image to start from. Strength is how much of it to change; if nil, 0.75. See [Strength].
	Image    *InputImage `json:"image,omitempty"`
	Strength *float64    `json:"strength,omitempty"`
	// Mask is what to repaint of the image: white is repainted, black is kept exactly. With MaskPadding only the masked
	// part is generated, at full resolution, with a margin of that many pixels.
	Mask        *InputImage `json:"mask,omitempty"`
	MaskPadding *int        `json:"mask_padding,omitempty"`
	// Control are ControlNets, each with the image that it sees.
	Control []RequestedControl `json:"control,omitempty"`
	// References are images that the prompt refers to.
	References []*InputImage `json:"references,omitempty"`
	// Enlarge is a second pass on a larger image.
	Enlarge *Enlarge `json:"enlarge,omitempty"`
	// Images is the number of images. If 0, it is 1.
	Images int `json:"images,omitempty"`
	// Batch is the number of images that one pass generates together. If 0, it is 1.
	Batch int `json:"batch,omitempty"`
	// Format is PNG if empty.
	Format Format `json:"format,omitempty"`
	// PreviewEvery is the number of steps between previews. If 0, there are none.
	PreviewEvery int `json:"preview_every,omitempty"`
	// Deliver is Inline if empty.
	Deliver Delivery `json:"deliver,omitempty"`
}

// RequestedLora is a LoRA that the daemon offers for the model's family, and how strongly to apply it: 1 is as it was
// trained, 0 not at all.
type RequestedLora struct {
	ID     string  `json:"id"`
	Weight float64 `json:"weight"`
}

// RequestedControl is a ControlNet that the daemon offers for the model's family, and the image that it sees. It is
// applied with the weight Scale from the fraction Start of the steps to the fraction End; if 0, Scale and End are 1.
type RequestedControl struct {
	ID    string      `json:"id"`
	Image *InputImage `json:"image"`
	Scale float64     `json:"scale,omitempty"`
	Start float64     `json:"start,omitempty"`
	End   float64     `json:"end,omitempty"`
}

// Enlarge is a pass on an image that is Scale times as wide and high; if 0, 2. Strength is how much that pass may
// change; if 0, 0.5.
type Enlarge struct {
	Scale    float64 `json:"scale,omitempty"`
	Strength float64 `json:"strength,omitempty"`
}

// Seed returns a pointer for GenerateRequest.Seed.
func Seed(seed uint64) *uint64 { return &seed }

// CFGScale returns a pointer for GenerateRequest.CFGScale.
func CFGScale(scale float64) *float64 { return &scale }

// Strength returns a pointer for GenerateRequest.Strength.
func Strength(strength float64) *float64 { return &strength }

// MaskPadding returns a pointer for GenerateRequest.MaskPadding.
func MaskPadding(pixels int) *int { return &pixels }

// The operations.
const (
	opStatus     = "status"
	opListModels = "list_models"
	opLoadModel  = "load_model"
	opUnload     = "unload"
	opGenerate   = "generate"
	opCancel     = "cancel"
)

// message is the request of every operation except generate.
type message struct {
	Op      string  `json:"op"`
	Model   *string `json:"model,omitempty"`   // load_model
	Request *uint32 `json:"request,omitempty"` // cancel: a request of this connection
	Job     *uint64 `json:"job,omitempty"`     // cancel: a job of any of the user's connections
}

type generateMessage struct {
	Op string `json:"op"`
	GenerateRequest
}

// encode returns a control frame's payload. It fails for a request that is too long for a frame.
func encode(message any) ([]byte, error) {
	payload, err := json.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("weave: %w", err)
	}
	if len(payload) > MaxControlBytes {
		return nil, fmt.Errorf("weave: a request of %d bytes, expected at most %d", len(payload), MaxControlBytes)
	}
	return payload, nil
}

// checkSendable fails for numbers that JSON cannot express (NaN and infinities), and for invalid UTF-8, which
// encoding/json would silently replace.
func checkSendable(request *GenerateRequest) error {
	texts := map[string][]string{
		"prompt": {request.Prompt}, "negative_prompt": {request.NegativePrompt}, "model": {request.Model},
		"scheduler": {request.Scheduler}, "cache": {request.Cache}, "embeddings": request.Embeddings,
	}
	numbers := map[string][]float64{}
	for field, number := range map[string]*float64{"cfg_scale": request.CFGScale, "strength": request.Strength} {
		if number != nil {
			numbers[field] = []float64{*number}
		}
	}
	for _, lora := range request.Loras {
		texts["loras"] = append(texts["loras"], lora.ID)
		numbers["loras"] = append(numbers["loras"], lora.Weight)
	}
	for _, control := range request.Control {
		texts["control"] = append(texts["control"], control.ID)
		numbers["control"] = append(numbers["control"], control.Scale, control.Start, control.End)
	}
	if enlarge := request.Enlarge; enlarge != nil {
		numbers["enlarge"] = []float64{enlarge.Scale, enlarge.Strength}
	}
	for field, all := range texts {
		for _, text := range all {
			if !utf8.ValidString(text) {
				return fmt.Errorf("weave: %s is not valid UTF-8", field)
			}
		}
	}
	for field, all := range numbers {
		for _, number := range all {
			if math.IsNaN(number) || math.IsInf(number, 0) {
				return fmt.Errorf("weave: %s is %v; it must be a finite number", field, number)
			}
		}
	}
	return nil
}
