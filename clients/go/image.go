package weave

import (
	"bytes"
	"fmt"
	"image"
	"image/png"
	"io"
	"os"
)

// Image is a finished image. An image that arrived as a memfd holds a descriptor until it is closed; without Close, the
// garbage collector closes it.
type Image struct {
	Index         int    // from 0; the field Image of other events
	Seed          uint64 // generates this image again
	Format        Format
	Deliver       Delivery
	Width, Height int   // pixels
	Channels      int   // 3: RGB
	Size          int64 // bytes, as received

	data []byte
	file *os.File
}

// File returns the sealed memfd of an image that was delivered as FD, or nil. The image owns it; Close closes it.
func (i *Image) File() *os.File { return i.file }

// Bytes returns the PNG or the raw pixels, as received. For a memfd they are a copy, and Bytes fails after Close.
func (i *Image) Bytes() ([]byte, error) {
	if i.file == nil {
		return i.data, nil
	}
	data := make([]byte, i.Size)
	if _, err := i.file.ReadAt(data, 0); err != nil {
		return nil, fmt.Errorf("weave: %w", err)
	}
	return data, nil
}

// Decode decodes the image. It fails if the bytes do not match the announced format and size.
func (i *Image) Decode() (image.Image, error) {
	data, err := i.Bytes()
	if err != nil {
		return nil, err
	}
	if i.Format == PNG {
		return decodePNG(bytes.NewReader(data), i.Width, i.Height)
	}
	if i.Channels != 3 || !isProduct(len(data), i.Width, i.Height, i.Channels) {
		return nil, fmt.Errorf("weave: %d bytes are not a raw image of %dx%dx%d", len(data), i.Width, i.Height, i.Channels)
	}
	img := image.NewRGBA(image.Rect(0, 0, i.Width, i.Height))
	for pixel := 0; pixel < i.Width*i.Height; pixel++ {
		copy(img.Pix[4*pixel:], data[3*pixel:3*pixel+3])
		img.Pix[4*pixel+3] = 0xff
	}
	return img, nil
}

// Close closes the memfd, if there is one. It may be called more than once.
func (i *Image) Close() error {
	if i.file != nil {
		i.file.Close()
	}
	return nil
}

// decodePNG checks the size before it allocates memory for the pixels.
func decodePNG(data io.ReadSeeker, width, height int) (image.Image, error) {
	config, err := png.DecodeConfig(data)
	if err != nil {
		return nil, fmt.Errorf("weave: %w", err)
	}
	if config.Width != width || config.Height != height {
		return nil, fmt.Errorf("weave: a PNG of %dx%d, expected %dx%d", config.Width, config.Height, width, height)
	}
	if _, err := data.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("weave: %w", err)
	}
	img, err := png.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("weave: %w", err)
	}
	return img, nil
}

// isProduct reports whether size is the product of the factors. It cannot overflow.
func isProduct(size int, factors ...int) bool {
	for _, factor := range factors {
		if factor < 1 || size%factor != 0 {
			return false
		}
		size /= factor
	}
	return size == 1
}
