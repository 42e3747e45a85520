package weave

import (
	"bytes"
	"image"
	"time"
)

// Event is an event of a job in flight: Queued, Loading, Progress, Preview or *Image.
type Event interface{ isEvent() }

// Queued reports that the job was accepted. It is sent again whenever Position changes.
type Queued struct {
	Job      uint64 // the daemon's number, for [Client.Cancel]
	Position int    // the number of jobs that start before it
}

// Loading reports that the job waits for its model to be loaded. It is sent again with Plan as soon as it is chosen.
type Loading struct {
	Model string
	Plan  string // where the weights will be: docs/operations.md, "Memory"; empty before it is chosen
}

// Progress reports that a step of an image is done.
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

// Decode decodes the preview. It fails if PNG is not a valid PNG of Width by Height pixels.
func (p Preview) Decode() (image.Image, error) {
	return decodePNG(bytes.NewReader(p.PNG), p.Width, p.Height)
}

func (Queued) isEvent()   {}
func (Loading) isEvent()  {}
func (Progress) isEvent() {}
func (Preview) isEvent()  {}
func (*Image) isEvent()   {}

// Done reports that a request has finished; for a job also its timings and how many tokens of its prompts were used.
type Done struct {
	Model   string // "" if the request was not a job
	Seed    uint64 // of the first image; 0 if none was generated
	Timings Timings
	Tokens  *Tokens // nil if no image was generated, or from an older daemon
	// The memory plan of the second attempt, if the job had run out of memory.
	Fallback string
}

// Tokens counts the prompts' tokens for each text encoder: those beyond the encoder's limit are cut.
type Tokens struct {
	Prompt         []EncoderTokens `json:"prompt"`
	NegativePrompt []EncoderTokens `json:"negative_prompt"` // empty if it was not used
}

// EncoderTokens counts the tokens for one text encoder, including its start and end tokens.
type EncoderTokens struct {
	Encoder string `json:"encoder"` // its folder in the model: text_encoder, text_encoder_2, ...
	Used    int    `json:"used"`
	Cut     int    `json:"cut"`
}

// Timings holds how long a job was in each state.
type Timings struct {
	Queued, Loading, Generating time.Duration
}

// StatusReport is the daemon's state.
type StatusReport struct {
	Version        string
	Features       []string // docs/protocol.md, "Features"; empty from an older daemon
	Uptime         time.Duration
	Mode           string
	Worker         string // none, starting, loading, idle, running or stopping; a newer daemon may have more
	Model          string // the loaded one, or ""
	Device, Dtype  string // of the worker, or ""
	MemoryUsed     *int64 // bytes; nil if there is no worker
	MemoryTotal    *int64 // bytes
	QueueLength    int
	QueueLimit     int
	Connections    int
	Jobs           []JobStatus         // the user's own
	Sandbox        map[string][]string // each process's layers, as confirmed by the daemon
	WorkerRestarts int
	ImagesMade     int
	Metrics        Metrics
	Devices        []DeviceStatus // none from an older daemon; the fields from Worker to MemoryTotal describe one of them
}

// DeviceStatus is one device, by its name in the daemon's config. What is empty or nil is not known, or not the user's.
type DeviceStatus struct {
	Device       string   `json:"device"`
	State        string   `json:"state"` // as StatusReport.Worker, or failed; a newer daemon may have more
	Model        string   `json:"model"`
	Dtype        string   `json:"dtype"`
	MemoryUsed   *int64   `json:"memory_used"`  // bytes
	MemoryTotal  *int64   `json:"memory_total"` // bytes
	Problem      string   `json:"problem"`      // why it failed
	RetrySeconds *float64 `json:"retry_seconds"`
}

// Metrics holds the daemon's counters since its broker started.
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

// Histogram counts durations in buckets of up to 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300 seconds, and more. The
// counts are not cumulative.
type Histogram struct {
	Counts []uint64 `json:"counts"`
	Sum    float64  `json:"sum"`
}

// JobStatus is one of the user's own jobs.
type JobStatus struct {
	Job      uint64 `json:"job"`
	Model    string `json:"model"`
	State    string `json:"state"` // queued, loading or running; a newer daemon may have more
	Position int    `json:"position"`
}

// Models lists the models that the daemon offers.
type Models struct {
	Models     []Model
	Default    string      // for requests without a model and with none loaded, or ""
	Loaded     string      // the loaded one, or ""
	Loras      []Lora      // none from an older daemon
	Embeddings []Embedding // none from an older daemon
	Controls   []Control   // none from an older daemon
}

// Lora is one LoRA that the daemon offers for models of its family, with weights from -MaxWeight to MaxWeight.
type Lora struct {
	ID        string  `json:"id"`
	Family    string  `json:"family"`
	Title     string  `json:"title"`
	MaxWeight float64 `json:"max_weight"`
}

// Embedding is one embedding that the daemon offers for models of its family.
type Embedding struct {
	ID     string `json:"id"`
	Family string `json:"family"`
	Title  string `json:"title"`
}

// Control is one ControlNet that the daemon offers for models of its family.
type Control struct {
	ID     string `json:"id"`
	Family string `json:"family"`
	Title  string `json:"title"`
}

// Model is one model that the daemon offers.
type Model struct {
	ID         string   `json:"id"`
	Family     string   `json:"family"`
	Title      string   `json:"title"`
	Tasks      []string `json:"tasks"` // text-to-image, ...; empty from an older daemon, which supports nothing else
	Bounds     Bounds   `json:"bounds"`
	Defaults   Defaults `json:"defaults"`
	Schedulers []string `json:"schedulers"`
	Caches     []string `json:"caches"` // step caches; empty from an older daemon
}

// Bounds holds a model's bounds, all inclusive. Pixels bounds width * height * images, InpaintingPixels width * height
// with a mask, InputPixels width * height of each image that a request comes with, References the number of reference
// images, Controls that of ControlNets, ControlStart and ControlEnd the Start and End of each. Prompts are bounded in
// bytes of UTF-8 and in characters. An older daemon does not send InpaintingPixels, InputPixels, References, Controls,
// ControlStart, ControlEnd and Batch, and they are zero.
type Bounds struct {
	Width            Range      `json:"width"`
	Height           Range      `json:"height"`
	Steps            Range      `json:"steps"`
	CFGScale         FloatRange `json:"cfg_scale"`
	Images           Range      `json:"images"`
	Pixels           Range      `json:"pixels"`
	PromptBytes      Range      `json:"prompt_bytes"`
	PromptCharacters Range      `json:"prompt_characters"`
	InpaintingPixels Range      `json:"inpainting_pixels"`
	InputPixels      Range      `json:"input_pixels"`
	References       Range      `json:"references"`
	Controls         Range      `json:"controls"`
	ControlStart     FloatRange `json:"control_start"`
	ControlEnd       FloatRange `json:"control_end"`
	Batch            Range      `json:"batch"`
}

// Range is an inclusive range; the value must be divisible by Multiple.
type Range struct {
	Min      int64 `json:"min"`
	Max      int64 `json:"max"`
	Multiple int64 `json:"multiple"`
}

// FloatRange is an inclusive range.
type FloatRange struct {
	Min float64 `json:"min"`
	Max float64 `json:"max"`
}

// Defaults holds the values for fields that a request leaves out. Width and Height are in pixels.
type Defaults struct {
	Width     int     `json:"width"`
	Height    int     `json:"height"`
	Steps     int     `json:"steps"`
	CFGScale  float64 `json:"cfg_scale"`
	Scheduler string  `json:"scheduler"`
	Cache     string  `json:"cache"` // "none", a step cache, or, from an older daemon, ""
}
