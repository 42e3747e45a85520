package weave_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	weave "weave-compute/clients/go"
	"weave-compute/clients/go/internal/testdaemon"
)

const prompt = "a red circle on a blue background"

var (
	background = context.Background()
	daemon     *testdaemon.Daemon
)

func TestMain(m *testing.M) { testdaemon.Main(m, &daemon) }

func TestSameSeedGivesTheSamePixelsInEveryFormatAndDelivery(t *testing.T) {
	client := connect(t)
	var pictures []*image.RGBA
	for _, request := range []weave.GenerateRequest{
		{Format: weave.PNG, Deliver: weave.Inline},
		{Format: weave.Raw, Deliver: weave.Inline},
		{Format: weave.PNG, Deliver: weave.FD},
		{Format: weave.Raw, Deliver: weave.FD},
	} {
		request.Prompt, request.Steps, request.Seed = prompt, 4, weave.Seed(0)
		picture := draw(t, client, request)
		defer picture.Close()
		if isFD := request.Deliver == weave.FD; isFD != (picture.File() != nil) {
			t.Errorf("%s: another delivery", request.Deliver)
		}
		if picture.Seed != 0 || picture.Format != request.Format || picture.Width != 128 || picture.Height != 128 {
			t.Errorf("got %+v", picture)
		}
		if request.Format == weave.Raw && picture.Size != 128*128*3 {
			t.Errorf("a raw image of %d bytes", picture.Size)
		}
		decoded, err := picture.Decode()
		must(t, err)
		pictures = append(pictures, decoded.(*image.RGBA))
	}
	for _, other := range pictures[1:] {
		if !bytes.Equal(other.Pix, pictures[0].Pix) {
			t.Error("the pixels differ")
		}
	}
	middle, corner := pictures[0].RGBAAt(64, 64), pictures[0].RGBAAt(2, 2)
	if middle.R < 128 || middle.B > 128 || corner.B < 128 || corner.R > 128 {
		t.Errorf("not %s: %v in the middle, %v in the corner", prompt, middle, corner)
	}
}

func TestMemfdCannotBeChanged(t *testing.T) {
	picture := draw(t, connect(t), weave.GenerateRequest{Prompt: prompt, Steps: 1, Deliver: weave.FD})
	defer picture.Close()
	if _, err := picture.File().WriteAt([]byte("x"), 0); err == nil {
		t.Error("the memfd can be written to")
	}
	if err := picture.File().Truncate(0); err == nil {
		t.Error("the memfd can be truncated")
	}
}

func TestEventsArriveInOrder(t *testing.T) {
	const steps, images = 4, 2
	job := start(t, connect(t), weave.GenerateRequest{
		Prompt: prompt, Steps: steps, Images: images, Seed: weave.Seed(1<<64 - 1), PreviewEvery: 2,
	})
	step, drawn := 0, 0
	for event := range job.Events() {
		switch event := event.(type) {
		case weave.Queued:
			if event.Job == 0 || step+drawn > 0 {
				t.Errorf("%+v at step %d", event, step)
			}
		case weave.Progress:
			step++
			if event != (weave.Progress{Image: drawn, Step: step, Steps: steps}) {
				t.Errorf("step %d is %+v", step, event)
			}
		case weave.Preview:
			if _, err := event.Decode(); err != nil || event.Image != drawn {
				t.Errorf("the preview of image %d at step %d: %v", event.Image, event.Step, err)
			}
		case *weave.Image:
			if event.Index != drawn || step != steps || event.Seed != uint64(drawn)-1 {
				t.Errorf("image %+v after step %d", event, step)
			}
			step, drawn = 0, drawn+1
		}
	}
	pictures, done, err := job.Wait()
	must(t, err)
	if drawn != images || len(pictures) != images || done.Seed != 1<<64-1 || done.Model != "shapes" {
		t.Errorf("%d events and %d images, %+v", drawn, len(pictures), done)
	}
	if done.Timings.Generating <= 0 {
		t.Errorf("it took %v", done.Timings.Generating)
	}
}

func TestDaemonsErrorNamesTheFieldAndItsBound(t *testing.T) {
	_, _, err := start(t, connect(t), weave.GenerateRequest{Prompt: prompt, Steps: 101}).Wait()
	var refused *weave.Error
	if !errors.As(err, &refused) || !errors.Is(err, weave.OutOfBounds) || errors.Is(err, weave.ErrClosed) {
		t.Fatalf("got %v", err)
	}
	if got := fmt.Sprintln(refused.Field, refused.Value, refused.Min, refused.Max); got != "steps 101 1 100\n" {
		t.Errorf("got %s", got)
	}
}

func TestStatusAndModels(t *testing.T) {
	client := connect(t)
	models, err := client.ListModels(background)
	must(t, err)
	if len(models.Models) != 1 || models.Default != "shapes" {
		t.Fatalf("got %+v", models)
	}
	if bounds := models.Models[0].Bounds; bounds.Steps != (weave.Range{Min: 1, Max: 100, Multiple: 1}) {
		t.Errorf("got %+v", bounds)
	}
	_, err = client.LoadModel(background, "none such")
	if !errors.Is(err, weave.UnknownModel) {
		t.Errorf("got %v", err)
	}
	loaded, err := client.LoadModel(background, "shapes")
	must(t, err)
	status, err := client.Status(background)
	must(t, err)
	if !slices.Contains(status.Features, "previews") || !slices.Contains(models.Models[0].Tasks, "text-to-image") {
		t.Errorf("got %v and %v", status.Features, models.Models[0].Tasks)
	}
	if loaded.Model != "shapes" || status.Model != "shapes" || status.Worker != "idle" || status.MemoryUsed == nil {
		t.Errorf("got %+v and %+v", loaded, status)
	}
	must(t, client.Unload(background))
	status, err = client.Status(background)
	must(t, err)
	if status.Model != "" || status.Worker != "none" || status.Uptime <= 0 {
		t.Errorf("got %+v", status)
	}
}

func TestCancelledContextEndsARunningJob(t *testing.T) {
	client := connect(t)
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	job, err := client.Generate(ctx, weave.GenerateRequest{Prompt: prompt, Model: "shapes", Steps: 100, Images: 8})
	must(t, err)
	for event := range job.Events() {
		if _, running := event.(weave.Progress); running {
			cancel()
		}
	}
	if _, _, err := job.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	eventually(t, "the daemon has cancelled it", func() bool {
		status, err := client.Status(background)
		must(t, err)
		return len(status.Jobs) == 0
	})
	request := weave.GenerateRequest{Prompt: prompt, Steps: 4, Seed: weave.Seed(5), Format: weave.Raw}
	if !bytes.Equal(pixels(t, draw(t, client, request)), pixels(t, draw(t, connect(t), request))) {
		t.Error("the next image differs")
	}
}

func TestJobCanBeCancelledFromAnotherConnection(t *testing.T) {
	job := start(t, connect(t), weave.GenerateRequest{Prompt: prompt, Steps: 100, Images: 8})
	queued := (<-job.Events()).(weave.Queued)
	other := connect(t)
	must(t, other.Cancel(background, queued.Job))
	for range job.Events() {
	}
	if _, _, err := job.Wait(); !errors.Is(err, weave.Cancelled) {
		t.Errorf("got %v", err)
	}
	eventually(t, "the job is gone", func() bool {
		return errors.Is(other.Cancel(background, queued.Job), weave.InvalidRequest)
	})
}

func TestManyJobsOnOneConnectionEachGetTheirOwnImage(t *testing.T) {
	const goroutines, jobsEach = 8, 4
	client := connect(t)
	request := func(seed uint64) weave.GenerateRequest {
		return weave.GenerateRequest{Prompt: prompt, Model: "shapes", Steps: 1, Seed: weave.Seed(seed), Format: weave.Raw}
	}
	drawn := make([][]byte, goroutines*jobsEach)
	var drawing sync.WaitGroup
	for worker := 0; worker < goroutines; worker++ {
		drawing.Add(1)
		go func() {
			defer drawing.Done()
			var jobs [jobsEach]*weave.Job
			for i := range jobs {
				jobs[i], _ = client.Generate(background, request(uint64(worker*jobsEach+i)))
			}
			for i, job := range jobs {
				seed := worker*jobsEach + i
				images, done, err := job.Wait()
				if err != nil || len(images) != 1 || done.Seed != uint64(seed) || images[0].Seed != uint64(seed) {
					t.Errorf("seed %d: %d images, %+v, %v", seed, len(images), done, err)
					return
				}
				drawn[seed], _ = images[0].Bytes()
			}
		}()
	}
	drawing.Wait()
	unique := make(map[string]bool)
	for _, picture := range drawn {
		unique[string(picture)] = true
	}
	if len(unique) != len(drawn) {
		t.Errorf("%d different images of %d seeds", len(unique), len(drawn))
	}
	for _, seed := range []uint64{0, 13, 31} {
		if !bytes.Equal(drawn[seed], pixels(t, draw(t, client, request(seed)))) {
			t.Errorf("seed %d alone gives another image", seed)
		}
	}
}

func TestSlowReaderOfEventsDelaysNoOtherJob(t *testing.T) {
	client := connect(t)
	slow := start(t, client, weave.GenerateRequest{Prompt: prompt, Steps: 50, PreviewEvery: 1})
	if _, isQueued := (<-slow.Events()).(weave.Queued); !isQueued {
		t.Error("the first event is not Queued")
	}
	draw(t, client, weave.GenerateRequest{Prompt: prompt, Steps: 1}) // the other job's events are not read meanwhile
	_, _, err := slow.Wait()
	must(t, err)
	steps, previews := 0, 0
	for event := range slow.Events() {
		switch event.(type) {
		case weave.Progress:
			steps++
		case weave.Preview:
			previews++
		}
	}
	if steps != 50 || previews < 49 {
		t.Errorf("%d steps and %d previews were kept", steps, previews)
	}
}

func TestReconnectAfterTheDaemonWasKilled(t *testing.T) {
	own, err := testdaemon.New()
	must(t, err)
	defer own.Remove()
	must(t, own.Start())
	client, err := weave.Dial(background, own.Socket)
	must(t, err)
	defer client.Close()
	job := start(t, client, weave.GenerateRequest{Prompt: prompt, Steps: 100, Images: 8})
	<-job.Events()
	own.Kill()
	// The broker of a killed daemon may still have sent that it is stopping.
	if _, _, err := job.Wait(); !errors.Is(err, weave.ErrClosed) && !errors.Is(err, weave.ShuttingDown) {
		t.Errorf("the job got %v", err)
	}
	if _, err := client.Status(background); !errors.Is(err, weave.ErrClosed) {
		t.Errorf("a later call got %v", err)
	}
	if err := client.Reconnect(background); err == nil {
		t.Error("reconnected without a daemon")
	}
	must(t, own.Start())
	if _, err := client.Status(background); !errors.Is(err, weave.ErrClosed) {
		t.Errorf("reconnected without Reconnect: %v", err)
	}
	must(t, client.Reconnect(background))
	_, err = client.Status(background)
	must(t, err)
}

func TestNoDescriptorOrGoroutineLeaks(t *testing.T) {
	count := func() (int, int) {
		runtime.GC()
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(entries), runtime.NumGoroutine()
	}
	descriptors, goroutines := count()
	client, err := weave.Dial(background, daemon.Socket)
	must(t, err)
	request := weave.GenerateRequest{Prompt: prompt, Model: "shapes", Steps: 1, Images: 4, Deliver: weave.FD}
	for round := 0; round < 3; round++ {
		closed, dropped := start(t, client, request), start(t, client, request)
		ctx, cancel := context.WithCancel(background)
		cancelled, err := client.Generate(ctx, request)
		must(t, err)
		for event := range cancelled.Events() {
			if _, isImage := event.(*weave.Image); isImage {
				break
			}
		}
		cancel()
		for _, job := range []*weave.Job{closed, dropped} {
			images, _, err := job.Wait()
			must(t, err)
			if job == closed {
				for _, picture := range images {
					must(t, picture.Close())
				}
			}
		}
	}
	unread := start(t, client, request)
	<-unread.Events()
	must(t, client.Close())
	eventually(t, "nothing is left", func() bool {
		descriptorsNow, goroutinesNow := count()
		return descriptorsNow <= descriptors && goroutinesNow <= goroutines
	})
}

func TestDefaultSocketPath(t *testing.T) {
	t.Setenv("WEAVE_SOCKET", "/some/where")
	if path := weave.DefaultSocketPath(); path != "/some/where" {
		t.Errorf("got %s", path)
	}
	os.Unsetenv("WEAVE_SOCKET") // t.Setenv restores it
	t.Setenv("XDG_RUNTIME_DIR", daemon.Folder)
	if path := weave.DefaultSocketPath(); path != daemon.Socket {
		t.Errorf("got %s", path)
	}
	client, err := weave.Dial(background, "")
	must(t, err)
	must(t, client.Close())
}

func connect(t *testing.T) *weave.Client {
	t.Helper()
	client, err := weave.Dial(background, daemon.Socket)
	must(t, err)
	t.Cleanup(func() { client.Close() })
	return client
}

func start(t *testing.T, client *weave.Client, request weave.GenerateRequest) *weave.Job {
	t.Helper()
	request.Model = "shapes"
	job, err := client.Generate(background, request)
	must(t, err)
	return job
}

func draw(t *testing.T, client *weave.Client, request weave.GenerateRequest) *weave.Image {
	t.Helper()
	images, _, err := start(t, client, request).Wait()
	must(t, err)
	return images[0]
}

func pixels(t *testing.T, picture *weave.Image) []byte {
	t.Helper()
	data, err := picture.Bytes()
	must(t, err)
	return data
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestImageToImageAndInpainting(t *testing.T) {
	client := connect(t)
	source := image.NewNRGBA(image.Rect(0, 0, 128, 128))
	raw := make([]byte, 0, 3*128*128)
	for at := range 128 * 128 {
		shade := color.NRGBA{byte(at % 128), byte(at / 128), 99, 255}
		source.SetNRGBA(at%128, at/128, shade)
		raw = append(raw, shade.R, shade.G, shade.B)
	}
	mask := image.NewAlpha(image.Rect(0, 0, 128, 128)) // white where it is not transparent
	for at := range mask.Pix {
		mask.Pix[at] = byte(255 * (at % 128 / 64))
	}
	request := weave.GenerateRequest{
		Prompt: prompt, Model: "shapes", Steps: 2, Seed: weave.Seed(1), Strength: weave.Strength(0.5), Format: weave.Raw,
	}
	request.Image = weave.FromImage(source)
	first := pixels(t, draw(t, client, request))
	request.Image = weave.FromPixels(128, 128, 3, raw)
	if !bytes.Equal(first, pixels(t, draw(t, client, request))) {
		t.Error("an image and its pixels give different results")
	}
	request.Mask = weave.MaskFromImage(mask)
	repainted := pixels(t, draw(t, client, request))
	for y := range 128 {
		kept, changed := 3*128*y, 3*(128*y+64)
		if !bytes.Equal(repainted[kept:changed], raw[kept:changed]) {
			t.Fatalf("row %d has changed where the mask is black", y)
		}
	}
	if bytes.Equal(repainted, raw) {
		t.Error("nothing is repainted")
	}
}

func TestRefusedUploadsLeaveTheConnectionUsable(t *testing.T) {
	client := connect(t)
	large := weave.FromPixels(2048, 2048, 3, make([]byte, 3*2048*2048))
	var drawing sync.WaitGroup
	for range 4 {
		drawing.Add(1)
		go func() {
			defer drawing.Done()
			job, err := client.Generate(background, weave.GenerateRequest{
				Prompt: prompt, Model: "shapes", Image: large, Mask: weave.FromPixels(1, 1, 1, []byte{0}), Width: 128, Height: 128,
			})
			if err == nil {
				_, _, err = job.Wait()
			}
			if !errors.Is(err, weave.InvalidRequest) && !errors.Is(err, weave.QueueFull) {
				t.Errorf("got %v", err)
			}
			ctx, cancel := context.WithCancel(background)
			job, err = client.Generate(ctx, weave.GenerateRequest{Prompt: prompt, Model: "shapes", Image: large, Width: 128, Height: 128})
			cancel()
			if err == nil {
				_, _, err = job.Wait()
			}
			if !errors.Is(err, context.Canceled) && !errors.Is(err, weave.QueueFull) {
				t.Errorf("got %v", err)
			}
		}()
	}
	drawing.Wait()
	eventually(t, "nothing is left in the daemon", func() bool {
		status, err := client.Status(background)
		must(t, err)
		return len(status.Jobs) == 0
	})
	draw(t, client, weave.GenerateRequest{Prompt: prompt, Steps: 1})
}
