package weave

import (
	"errors"
	"fmt"
	"image"
	"image/color"
)

// The largest image that can be sent; the model's own bound is [Bounds].InputPixels.
const (
	MaxInputSide   = 16384
	MaxInputPixels = 64 * 1024 * 1024
)

// pieceBytes is about how much of an image is converted at a time.
const pieceBytes = 1024 * 1024

// InputImage is an image that goes with a request, as the daemon takes it: RGB (3 channels) or grey (1), 8 bits per
// channel, rows from top to bottom. Create it with [FromImage], [MaskFromImage] or [FromPixels]. Nothing is copied: the
// pixels are read while the request is sent, and must not change before its first event.
type InputImage struct {
	Width    int `json:"width"`
	Height   int `json:"height"`
	Channels int `json:"channels"`

	pixels     []byte      // all of them, or nil
	source     image.Image // what they are converted from, or nil
	background uint32      // in place of transparency: 0 to 0xffff
}

// FromImage returns an image of any type of package image; grey types have 1 channel. Transparent parts become white,
// and 16 bits per channel become 8. Decoding files is up to the caller: see [image.Decode], which does not rotate
// photos according to their EXIF data.
func FromImage(source image.Image) *InputImage {
	channels := 3
	switch source.(type) {
	case *image.Gray, *image.Gray16:
		channels = 1
	}
	size := source.Bounds().Size()
	return &InputImage{Width: size.X, Height: size.Y, Channels: channels, source: source, background: 0xffff}
}

// MaskFromImage returns an image for GenerateRequest.Mask: grey. Transparent parts become black: they are kept.
func MaskFromImage(source image.Image) *InputImage {
	size := source.Bounds().Size()
	return &InputImage{Width: size.X, Height: size.Y, Channels: 1, source: source}
}

// FromPixels returns an image of raw pixels: channels is 3 for RGB or 1 for grey, rows are not padded.
func FromPixels(width, height, channels int, pixels []byte) *InputImage {
	return &InputImage{Width: width, Height: height, Channels: channels, pixels: pixels}
}

// size returns the number of bytes of a checked image.
func (i *InputImage) size() int { return i.Width * i.Height * i.Channels }

func (i *InputImage) check() error {
	switch {
	case i.Width < 1 || i.Width > MaxInputSide || i.Height < 1 || i.Height > MaxInputSide ||
		i.Width*i.Height > MaxInputPixels:
		return fmt.Errorf("%dx%d pixels; each side must be from 1 to %d, and all pixels at most %d",
			i.Width, i.Height, MaxInputSide, MaxInputPixels)
	case i.Channels != 1 && i.Channels != 3:
		return fmt.Errorf("%d channels; there must be 1 or 3", i.Channels)
	case i.source == nil && i.pixels == nil:
		return errors.New("no pixels; FromImage, MaskFromImage or FromPixels returns an image with pixels")
	case i.source == nil && len(i.pixels) != i.size():
		return fmt.Errorf("%d bytes of pixels; %dx%dx%d are %d", len(i.pixels), i.Width, i.Height, i.Channels, i.size())
	case i.source != nil && i.source.Bounds().Size() != image.Pt(i.Width, i.Height):
		return errors.New("another size than the image that it was made of")
	}
	return nil
}

// eachPiece calls send with the pixels in order, in pieces that are valid only during the call. It stops at an error.
func (i *InputImage) eachPiece(send func(piece []byte) error) error {
	rows := max(pieceBytes/(i.Width*i.Channels), 1)
	var buffer []byte
	for top := 0; top < i.Height; top += rows {
		bottom := min(top+rows, i.Height)
		piece := buffer[:0]
		if i.source == nil {
			piece = i.pixels[top*i.Width*i.Channels : bottom*i.Width*i.Channels]
		} else {
			for y := top; y < bottom; y++ {
				piece = i.appendRow(piece, y)
			}
			buffer = piece
		}
		if err := send(piece); err != nil {
			return err
		}
	}
	return nil
}

// appendRow appends row y (from 0) of the source. The types that image.Decode returns most often need no interface
// calls for each pixel.
func (i *InputImage) appendRow(row []byte, y int) []byte {
	bounds := i.source.Bounds()
	y += bounds.Min.Y
	switch source := i.source.(type) {
	case *image.Gray:
		start := source.PixOffset(bounds.Min.X, y)
		return append(row, source.Pix[start:start+i.Width]...)
	case *image.YCbCr:
		if i.Channels == 3 {
			for x := bounds.Min.X; x < bounds.Max.X; x++ {
				at, chroma := source.YOffset(x, y), source.COffset(x, y)
				r, g, b := color.YCbCrToRGB(source.Y[at], source.Cb[chroma], source.Cr[chroma])
				row = append(row, r, g, b)
			}
			return row
		}
	}
	wide, isWide := i.source.(image.RGBA64Image) // as all types of package image, without an allocation for each pixel
	for x := bounds.Min.X; x < bounds.Max.X; x++ {
		var r, g, b, a uint32
		if isWide {
			r, g, b, a = wide.RGBA64At(x, y).RGBA()
		} else {
			r, g, b, a = i.source.At(x, y).RGBA()
		}
		// The colours are multiplied by a already.
		behind := i.background * (0xffff - a) / 0xffff
		r, g, b = r+behind, g+behind, b+behind
		if i.Channels == 3 {
			row = append(row, to8Bits(r), to8Bits(g), to8Bits(b))
		} else {
			row = append(row, to8Bits((19595*r+38470*g+7471*b+1<<15)>>16)) // as color.GrayModel
		}
	}
	return row
}

// to8Bits rounds: 0xffff is 0xff, and for every 8-bit value v, v*0x101 is v.
func to8Bits(value uint32) byte { return byte((min(value, 0xffff) + 128) / 257) }

// upload is an image, the field that it is for, and the feature that a daemon needs to take it.
type upload struct {
	field, feature string
	image          *InputImage
}

// uploads returns the images in the order in which the daemon expects them.
func (r *GenerateRequest) uploads() []upload {
	var found []upload
	if r.Image != nil {
		found = append(found, upload{"image", "input-images", r.Image})
	}
	if r.Mask != nil {
		found = append(found, upload{"mask", "input-images", r.Mask})
	}
	for _, control := range r.Control {
		found = append(found, upload{"control", "control", control.Image})
	}
	for _, reference := range r.References {
		found = append(found, upload{"references", "references", reference})
	}
	return found
}

func checkUploads(uploads []upload) error {
	for _, one := range uploads {
		if one.image == nil {
			return fmt.Errorf("weave: %s has no image", one.field)
		}
		if err := one.image.check(); err != nil {
			return fmt.Errorf("weave: %s has %w", one.field, err)
		}
	}
	return nil
}
