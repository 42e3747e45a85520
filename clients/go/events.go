package weave

import (
	"bytes"
	"image"
	"time"
)

// Event is what a job tells before it is over: Queued, Loading, Progress, Preview or *Image.
type Event interface{ isEvent() }

// Queued says that the job was accepted. It comes again whenever Position changes.
type Queued struct {
	Job      uint64 // the daemon's number, for [Client.Cancel]
	Position int    // how many jobs start before it
}

// Loading says that the job waits for its model to be loaded.
type Loading struct {
	Model string
}

// Progress says that a step of an image is done.
type Progress struct {
	Image int // from 0
	Step  int // from 1
	Steps int
}

// Preview is an unfinished image.
type Preview struct {
	Image         int // from 0
	Step          int // from 1
	Width, Height int // pixels
	PNG           []byte
}

// Decode is the preview as an image.Image. It fails where the PNG is not one, or not of Width and Height.
func (p Preview) Decode() (image.Image, error) {
	return decodePNG(bytes.NewReader(p.PNG), p.Width, p.Height)
}

func (Queued) isEvent()   {}
func (Loading) isEvent()  {}
func (Progress) isEvent() {}
func (Preview) isEvent()  {}
func (*Image) isEvent()   {}

// Done says that a request is finished, and of a job where its time went and what was used of its prompts.
type Done struct {
	Model   string // "" where the request was no job
	Seed    uint64 // of the first image; 0 where nothing was drawn
	Timings Timings
	Tokens  *Tokens // nil where nothing was drawn, or by an older daemon
}

// Tokens says what the model's text encoders got of the prompts: what is beyond their tokens is cut.
type Tokens struct {
	Prompt         []EncoderTokens `json:"prompt"`
	NegativePrompt []EncoderTokens `json:"negative_prompt"` // none where it was not used
}

// EncoderTokens is of one text encoder; its tokens for start and end count too.
type EncoderTokens struct {
	Encoder string `json:"encoder"` // its folder in the model: text_encoder, text_encoder_2, ...
	Used    int    `json:"used"`
	Cut     int    `json:"cut"`
}

// Timings is how long a job was in each state.
type Timings struct {
	Queued, Loading, Generating time.Duration
}

// StatusReport is what the daemon is doing.
type StatusReport struct {
	Version        string
	Features       []string // docs/protocol.md, "Features"; none of an older daemon
	Uptime         time.Duration
	Mode           string
	Worker         string // none, starting, loading, idle, running or stopping; a newer daemon may have more
	Model          string // the one that is loaded, or ""
	Device, Dtype  string // of the worker, or ""
	MemoryUsed     *int64 // bytes; nil where there is no worker to ask
	MemoryTotal    *int64 // bytes
	QueueLength    int
	QueueLimit     int
	Connections    int
	Jobs           []JobStatus         // your own
	Sandbox        map[string][]string // the layers that each process has confirmed
	WorkerRestarts int
	ImagesMade     int
	Metrics        Metrics
}

// Metrics is what the daemon has counted since its broker started.
type Metrics struct {
	Connections        uint64            `json:"connections"`
	ConnectionsRefused uint64            `json:"connections_refused"`
	ClientsDropped     uint64            `json:"clients_dropped"`
	Requests           uint64            `json:"requests"`
	Errors             map[string]uint64 `json:"errors"` // by code
	Images             uint64            `json:"images"`
	ModelsLoaded       uint64            `json:"models_loaded"`
	WorkersLost        uint64            `json:"workers_lost"`
	QueuedSeconds      Histogram         `json:"queued_seconds"`
	LoadingSeconds     Histogram         `json:"loading_seconds"`
	GeneratingSeconds  Histogram         `json:"generating_seconds"`
}

// Histogram counts seconds up to 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300 and beyond, each by itself.
type Histogram struct {
	Counts []uint64 `json:"counts"`
	Sum    float64  `json:"sum"`
}

// JobStatus is one of your own jobs.
type JobStatus struct {
	Job      uint64 `json:"job"`
	Model    string `json:"model"`
	State    string `json:"state"` // queued, loading or running; a newer daemon may have more
	Position int    `json:"position"`
}

// Models is what can be asked for.
type Models struct {
	Models  []Model
	Default string // what a person who names none most likely wants, or ""
	Loaded  string // or ""
}

// Model is one model that the daemon offers.
type Model struct {
	ID         string   `json:"id"`
	Family     string   `json:"family"`
	Title      string   `json:"title"`
	Tasks      []string `json:"tasks"` // text-to-image; an older daemon, which can do nothing else, names none
	Bounds     Bounds   `json:"bounds"`
	Defaults   Defaults `json:"defaults"`
	Schedulers []string `json:"schedulers"`
}

// Bounds is what a model accepts, both ends included. Pixels bounds width * height * images; prompts are counted in
// bytes of UTF-8 and in characters.
type Bounds struct {
	Width            Range      `json:"width"`
	Height           Range      `json:"height"`
	Steps            Range      `json:"steps"`
	CFGScale         FloatRange `json:"cfg_scale"`
	Images           Range      `json:"images"`
	Pixels           Range      `json:"pixels"`
	PromptBytes      Range      `json:"prompt_bytes"`
	PromptCharacters Range      `json:"prompt_characters"`
}

// Range is a bound; Multiple is what the value must be divisible by.
type Range struct {
	Min      int64 `json:"min"`
	Max      int64 `json:"max"`
	Multiple int64 `json:"multiple"`
}

// FloatRange is a bound.
type FloatRange struct {
	Min float64 `json:"min"`
	Max float64 `json:"max"`
}

// Defaults is what a request that leaves a field out gets. Width and Height are in pixels.
type Defaults struct {
	Width     int     `json:"width"`
	Height    int     `json:"height"`
	Steps     int     `json:"steps"`
	CFGScale  float64 `json:"cfg_scale"`
	Scheduler string  `json:"scheduler"`
}
