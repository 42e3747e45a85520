package weave

import (
	"bytes"
	"context"
	"errors"
	"image"
	"image/color"
	"image/color/palette"
	"math"
	"strings"
	"testing"
)

const allInputs = `"input-images","control","references"`

// filled returns an image of 2x1 pixels of one colour.
func filled(img interface {
	image.Image
	Set(x, y int, c color.Color)
}, c color.Color) image.Image {
	bounds := img.Bounds()
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			img.Set(x, y, c)
		}
	}
	return img
}

// plain hides all methods but those of image.Image.
type plain struct{ image.Image }

func pixelsOf(t *testing.T, input *InputImage) []byte {
	t.Helper()
	must(t, input.check())
	var all []byte
	must(t, input.eachPiece(func(piece []byte) error {
		all = append(all, piece...)
		return nil
	}))
	if len(all) != input.size() {
		t.Fatalf("%d bytes of an image of %d", len(all), input.size())
	}
	return all
}

func TestImagesOfEachTypeBecomePixels(t *testing.T) {
	two := image.Rect(3, 1, 5, 2)
	orange := color.NRGBA{200, 100, 50, 255}
	for name, expected := range map[string]struct {
		source       image.Image
		pixel, masks []byte
	}{
		"NRGBA":            {filled(image.NewNRGBA(two), orange), []byte{200, 100, 50}, []byte{124}},
		"RGBA":             {filled(image.NewRGBA(two), orange), []byte{200, 100, 50}, []byte{124}},
		"any type":         {plain{filled(image.NewRGBA(two), orange)}, []byte{200, 100, 50}, []byte{124}},
		"NRGBA64":          {filled(image.NewNRGBA64(two), orange), []byte{200, 100, 50}, []byte{124}},
		"transparent":      {filled(image.NewNRGBA(two), color.NRGBA{9, 9, 9, 0}), []byte{255, 255, 255}, []byte{0}},
		"half transparent": {filled(image.NewNRGBA(two), color.NRGBA{0, 0, 0, 128}), []byte{127, 127, 127}, []byte{0}},
		"Gray":             {filled(image.NewGray(two), color.Gray{77}), []byte{77}, []byte{77}},
		"Gray16":           {filled(image.NewGray16(two), color.Gray16{257 * 77}), []byte{77}, []byte{77}},
		"CMYK":             {filled(image.NewCMYK(two), color.CMYK{255, 0, 0, 0}), []byte{0, 255, 255}, []byte{179}},
		"Paletted":         {filled(image.NewPaletted(two, palette.Plan9), color.White), []byte{255, 255, 255}, []byte{255}},
		"YCbCr":            {image.NewYCbCr(two, image.YCbCrSubsampleRatio420), []byte{0, 135, 0}, []byte{79}},
		"part of another": {filled(image.NewGray(image.Rect(0, 0, 9, 9)), color.Gray{5}).(*image.Gray).SubImage(
			image.Rect(4, 4, 6, 5)), []byte{5}, []byte{5}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := pixelsOf(t, FromImage(expected.source)); !bytes.Equal(got, bytes.Repeat(expected.pixel, 2)) {
				t.Errorf("the pixels are %v", got)
			}
			if got := pixelsOf(t, MaskFromImage(expected.source)); !bytes.Equal(got, bytes.Repeat(expected.masks, 2)) {
				t.Errorf("as a mask they are %v", got)
			}
		})
	}
}

func TestLargeImagesGoInPieces(t *testing.T) {
	source := image.NewNRGBA(image.Rect(0, 0, 1500, 1000))
	for at := range source.Pix {
		source.Pix[at] = byte(at * 7 / 4)
		if at%4 == 3 {
			source.Pix[at] = 255
		}
	}
	var all []byte
	must(t, FromImage(source).eachPiece(func(piece []byte) error {
		if len(piece) > pieceBytes {
			t.Errorf("a piece of %d bytes", len(piece))
		}
		all = append(all, piece...)
		return nil
	}))
	if !bytes.Equal(all, pixelsOf(t, FromPixels(1500, 1000, 3, all))) || all[3*1499] != source.Pix[4*1499] {
		t.Error("other pixels")
	}
}

func TestBadImagesAreNamedByTheirField(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	good := FromPixels(1, 1, 3, make([]byte, 3))
	for message, request := range map[string]GenerateRequest{
		"image has 2 bytes of pixels; 1x1x3 are 3": {Image: FromPixels(1, 1, 3, make([]byte, 2))},
		"mask has 0x1 pixels":                      {Image: good, Mask: MaskFromImage(image.NewGray(image.Rect(0, 0, 0, 1)))},
		"references has 16385x1 pixels":            {References: []*InputImage{good, FromPixels(16385, 1, 1, make([]byte, 16385))}},
		"image has 16384x16384 pixels":             {Image: FromImage(image.NewUniform(color.Black))},
		"image has 4 channels":                     {Image: FromPixels(1, 1, 4, make([]byte, 4))},
		"image has no pixels":                      {Image: &InputImage{Width: 1, Height: 1, Channels: 3}},
		"control has no image":                     {Control: []RequestedControl{{ID: "canny"}}},
		"control is NaN":                           {Control: []RequestedControl{{ID: "canny", Image: good, Scale: math.NaN()}}},
		"strength is +Inf":                         {Strength: Strength(math.Inf(1))},
		"enlarge is NaN":                           {Enlarge: &Enlarge{Scale: math.NaN()}},
		"control is not valid UTF-8":               {Control: []RequestedControl{{ID: "\xff", Image: good}}},
	} {
		request.Prompt = "x"
		if request.Image != nil && request.Image.source != nil {
			request.Image.Width, request.Image.Height = 16384, 16384 // an image without bounds
		}
		if _, err := client.Generate(background, request); err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("expected %s, got %v", message, err)
		}
	}
	expectListing(t, client, daemon)
}

func TestImagesFollowTheirRequestInOrder(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	pixel := func(value byte) *InputImage { return FromPixels(1, 1, 1, []byte{value}) }
	go daemon.tellFeatures(allInputs)
	job, err := client.Generate(background, GenerateRequest{
		Prompt: "x", References: []*InputImage{pixel(5), pixel(6)}, Mask: pixel(2), Image: pixel(1),
		Control: []RequestedControl{{ID: "a", Image: pixel(3)}, {ID: "b", Image: pixel(4), Scale: 0.5, Start: 0.25, End: 0.75}},
		Enlarge: &Enlarge{Scale: 1.5}, Strength: Strength(0.5), MaskPadding: MaskPadding(0), Batch: 2,
	})
	must(t, err)
	number, sent := daemon.read()
	grey := map[string]any{"width": 1.0, "height": 1.0, "channels": 1.0}
	expected := map[string]any{
		"op": "generate", "prompt": "x", "image": grey, "mask": grey, "references": []any{grey, grey},
		"control": []any{
			map[string]any{"id": "a", "image": grey},
			map[string]any{"id": "b", "image": grey, "scale": 0.5, "start": 0.25, "end": 0.75},
		},
		"enlarge": map[string]any{"scale": 1.5}, "strength": 0.5, "mask_padding": 0.0, "batch": 2.0,
	}
	if !same(sent, expected) || !same(expected, sent) {
		t.Errorf("sent %v", sent)
	}
	for value := byte(1); value <= 6; value++ {
		if got := daemon.expectImage(number); !bytes.Equal(got, []byte{value}) {
			t.Errorf("image %d is %v", value, got)
		}
	}
	daemon.say(number, `{"event":"done","model":"m","seed":1}`)
	_, _, err = job.Wait()
	must(t, err)
	// Its features are known now.
	_, err = client.Generate(background, GenerateRequest{Prompt: "x", Image: pixel(1)})
	must(t, err)
	daemon.expectImage(daemon.expect("generate"))
}

func TestNoUploadGoesToADaemonWithoutTheFeature(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	image := FromPixels(1, 1, 1, []byte{1})
	go daemon.tellFeatures(`"input-images"`)
	for field, request := range map[string]GenerateRequest{
		"control":    {Prompt: "x", Control: []RequestedControl{{ID: "a", Image: image}}},
		"references": {Prompt: "x", Image: image, References: []*InputImage{image}},
	} {
		_, err := client.Generate(background, request)
		if !errors.Is(err, errors.ErrUnsupported) || !strings.HasPrefix(err.Error(), "weave: "+field+": ") {
			t.Errorf("got %v", err)
		}
	}
	expectListing(t, client, daemon)
}

// large is more than a socket holds.
var large = FromPixels(2048, 2048, 3, make([]byte, 3*2048*2048))

func TestCancelledUploadCompletesOnlyTheFrameThatHasBegun(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	ctx, cancel := context.WithCancel(background)
	go daemon.tellFeatures(allInputs)
	job, err := client.Generate(ctx, GenerateRequest{Prompt: "x", Image: large, Mask: large})
	must(t, err)
	number := daemon.expect("generate")
	eventually(t, "the first image has begun", func() bool { return len(client.connection().outgoing) == 1 })
	cancel()
	if _, _, err := job.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	daemon.expectImage(number)
	if _, sent := daemon.read(); sent["op"] != "cancel" || sent["request"] != float64(number) {
		t.Errorf("after it comes %v", sent)
	}
	daemon.say(number, `{"event":"error","code":"cancelled","message":"cancelled"}`)
	expectListing(t, client, daemon)
}

func TestRefusedRequestSendsNoMoreImages(t *testing.T) {
	client, daemon := withFakeDaemon(t)
	go daemon.tellFeatures(allInputs)
	job, err := client.Generate(background, GenerateRequest{Prompt: "x", Image: large, Mask: large})
	must(t, err)
	number := daemon.expect("generate")
	daemon.say(number, `{"event":"error","code":"out_of_bounds","message":"no"}`)
	if _, _, err := job.Wait(); !errors.Is(err, OutOfBounds) {
		t.Errorf("got %v", err)
	}
	listed := make(chan error)
	go func() {
		_, err := client.ListModels(background)
		listed <- err
	}()
	sent, _ := daemon.readFrame()
	if sent.kind == kindImage { // it had begun before the refusal arrived
		sent, _ = daemon.readFrame()
	}
	if sent.kind != kindControl {
		t.Fatal("the mask was sent too")
	}
	daemon.say(sent.request, noModels)
	must(t, <-listed)
}
