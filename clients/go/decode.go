package weave

import "encoding/json"

// decodeEvent decodes a control message from a daemon into a Queued, Loading, Progress, Preview, *Image, Done, *Error,
// StatusReport or Models; for an unknown event, of a newer daemon, it returns nil. For an image or preview it also
// returns the number of bytes, which arrive separately. Unknown fields are skipped.
func decodeEvent(payload []byte) (event any, size int64, err error) {
	f := parseFields(payload)
	var kind string
	f.need("event", &kind)
	switch kind {
	case "queued":
		var e Queued
		f.need("job", &e.Job)
		f.count("position", &e.Position)
		event = e
	case "loading":
		var e Loading
		f.need("model", &e.Model)
		f.matching("model", modelID, e.Model)
		f.allow("plan", &e.Plan)
		f.matchingOrEmpty("plan", plainName, e.Plan)
		event = e
	case "progress":
		var e Progress
		f.count("image", &e.Image)
		f.count("step", &e.Step)
		f.count("steps", &e.Steps)
		event = e
	case "preview":
		event, size = decodePreview(f)
	case "image":
		image := decodeImage(f)
		event, size = image, image.Size
	case "done":
		var e Done
		f.allow("model", &e.Model)
		f.matchingOrEmpty("model", modelID, e.Model)
		f.allow("seed", &e.Seed)
		e.Timings = decodeTimings(f)
		e.Tokens = decodeTokens(f)
		f.allow("fallback", &e.Fallback)
		f.matchingOrEmpty("fallback", plainName, e.Fallback)
		event = e
	case "error":
		event = decodeError(f)
	case "status":
		event = decodeStatus(f)
	case "models":
		event = decodeModels(f)
	default:
		return nil, 0, f.err
	}
	return event, size, f.err
}

func decodeModels(f *fields) Models {
	var e Models
	f.need("models", &e.Models)
	f.allow("default", &e.Default)
	f.allow("loaded", &e.Loaded)
	f.matchingOrEmpty("default", modelID, e.Default)
	f.matchingOrEmpty("loaded", modelID, e.Loaded)
	for _, model := range e.Models {
		f.matching("id", modelID, model.ID)
		f.matchingOrEmpty("family", plainName, model.Family)
		f.matching("title", title, model.Title)
		f.matchingOrEmpty("scheduler", plainName, model.Defaults.Scheduler)
		f.matching("schedulers", plainName, model.Schedulers...)
		f.matching("tasks", plainName, model.Tasks...)
		f.matching("caches", plainName, model.Caches...)
		f.matchingOrEmpty("cache", plainName, model.Defaults.Cache)
	}
	f.allow("loras", &e.Loras)
	for _, lora := range e.Loras {
		f.matching("id", modelID, lora.ID)
		f.matchingOrEmpty("family", plainName, lora.Family)
		f.matching("title", title, lora.Title)
	}
	f.allow("embeddings", &e.Embeddings)
	for _, embedding := range e.Embeddings {
		f.matching("id", modelID, embedding.ID)
		f.matchingOrEmpty("family", plainName, embedding.Family)
		f.matching("title", title, embedding.Title)
	}
	f.allow("controls", &e.Controls)
	for _, control := range e.Controls {
		f.matching("id", modelID, control.ID)
		f.matchingOrEmpty("family", plainName, control.Family)
		f.matching("title", title, control.Title)
	}
	return e
}

func decodePreview(f *fields) (Preview, int64) {
	var e Preview
	f.count("image", &e.Image)
	f.count("step", &e.Step)
	f.count("width", &e.Width)
	f.count("height", &e.Height)
	return e, decodeSize(f)
}

func decodeImage(f *fields) *Image {
	e := &Image{}
	f.count("image", &e.Index)
	f.need("seed", &e.Seed)
	f.text("format", (*string)(&e.Format), string(PNG), string(Raw))
	f.text("deliver", (*string)(&e.Deliver), string(Inline), string(FD))
	f.count("width", &e.Width)
	f.count("height", &e.Height)
	f.count("channels", &e.Channels)
	e.Size = decodeSize(f)
	return e
}

func decodeSize(f *fields) (size int64) {
	f.need("size", &size)
	if f.err == nil && (size < 1 || size > MaxImageBytes) {
		f.err = protocolError("an image of %d bytes, expected 1 to %d", size, MaxImageBytes)
	}
	return size
}

func decodeTimings(f *fields) Timings {
	var timings Timings
	inner := &fields{err: f.err}
	f.allow("timings", &inner.raw)
	inner.seconds("queued", &timings.Queued)
	inner.seconds("loading", &timings.Loading)
	inner.seconds("generating", &timings.Generating)
	if f.err == nil {
		f.err = inner.err
	}
	return timings
}

func decodeTokens(f *fields) *Tokens {
	var tokens *Tokens
	f.allow("tokens", &tokens)
	if tokens == nil {
		return nil
	}
	for _, encoders := range [][]EncoderTokens{tokens.Prompt, tokens.NegativePrompt} {
		for _, one := range encoders {
			f.matching("encoder", plainName, one.Encoder)
		}
	}
	return tokens
}

func decodeError(f *fields) *Error {
	e := &Error{}
	f.need("code", &e.Code)
	f.matching("code", plainName, string(e.Code))
	f.need("message", &e.Message)
	f.allow("field", &e.Field)
	f.allow("value", &e.Value)
	switch e.Value.(type) {
	case nil, string, json.Number:
	default:
		f.err = protocolError("the field value is neither a number nor a string")
	}
	f.number("min", &e.Min)
	f.number("max", &e.Max)
	f.seconds("retry_after", &e.RetryAfter)
	return e
}

func decodeStatus(f *fields) StatusReport {
	var e StatusReport
	var uptime float64
	f.need("version", &e.Version)
	f.allow("features", &e.Features)
	f.need("uptime", &uptime)
	f.need("mode", &e.Mode)
	f.need("worker", &e.Worker)
	f.allow("model", &e.Model)
	f.allow("device", &e.Device)
	f.allow("dtype", &e.Dtype)
	f.allow("memory_used", &e.MemoryUsed)
	f.allow("memory_total", &e.MemoryTotal)
	f.count("queue_length", &e.QueueLength)
	f.count("queue_limit", &e.QueueLimit)
	f.count("connections", &e.Connections)
	f.need("jobs", &e.Jobs)
	f.need("sandbox", &e.Sandbox)
	f.count("worker_restarts", &e.WorkerRestarts)
	f.count("images_made", &e.ImagesMade)
	f.need("metrics", &e.Metrics)
	f.allow("devices", &e.Devices)
	for _, device := range e.Devices {
		f.matching("devices", plainName, device.Device, device.State)
		f.matchingOrEmpty("devices", modelID, device.Model)
		f.matchingOrEmpty("devices", plainName, device.Dtype)
		f.matching("devices", title, device.Problem)
	}
	f.matching("version", plainName, e.Version)
	f.matching("features", plainName, e.Features...)
	f.matching("mode", plainName, e.Mode)
	f.matching("worker", plainName, e.Worker)
	f.matchingOrEmpty("model", modelID, e.Model)
	f.matchingOrEmpty("device", plainName, e.Device)
	f.matchingOrEmpty("dtype", plainName, e.Dtype)
	for _, job := range e.Jobs {
		f.matching("jobs", modelID, job.Model)
		f.matching("jobs", plainName, job.State)
	}
	for process, layers := range e.Sandbox {
		f.matching("sandbox", plainName, process)
		f.matching("sandbox", plainName, layers...)
	}
	for code := range e.Metrics.Errors {
		f.matching("errors", plainName, code)
	}
	e.Uptime = duration(uptime)
	return e
}
