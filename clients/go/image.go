package weave

import (
	"bytes"
	"fmt"
	"image"
	"image/png"
	"io"
	"os"
)

// Image is a finished picture. One that came as a memfd holds a descriptor until it is closed; an image that is
// dropped without that loses its descriptor when it is collected.
type Image struct {
	Index         int    // from 0; what the other events call Image
	Seed          uint64 // that draws this picture again
	Format        Format
	Deliver       Delivery
	Width, Height int   // pixels
	Channels      int   // 3: RGB
	Size          int64 // bytes, as it came

	data []byte
	file *os.File
}

// File is the sealed memfd of an image that came with FD, else nil. It belongs to the image, which Close closes.
func (i *Image) File() *os.File { return i.file }

// Bytes are the PNG or the raw pixels, as they came; of a memfd a copy. It fails for a memfd that is closed.
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

// Decode is the picture as an image.Image. It fails where the bytes are not what the daemon said they are.
func (i *Image) Decode() (image.Image, error) {
	data, err := i.Bytes()
	if err != nil {
		return nil, err
	}
	if i.Format == PNG {
		return decodePNG(bytes.NewReader(data), i.Width, i.Height)
	}
	if i.Channels != 3 || !isProduct(len(data), i.Width, i.Height, i.Channels) {
		return nil, fmt.Errorf("weave: %d bytes are no raw image of %dx%dx%d", len(data), i.Width, i.Height, i.Channels)
	}
	picture := image.NewRGBA(image.Rect(0, 0, i.Width, i.Height))
	for pixel := 0; pixel < i.Width*i.Height; pixel++ {
		copy(picture.Pix[4*pixel:], data[3*pixel:3*pixel+3])
		picture.Pix[4*pixel+3] = 0xff
	}
	return picture, nil
}

// Close closes the memfd, if there is one. Closing twice is no error.
func (i *Image) Close() error {
	if i.file != nil {
		i.file.Close()
	}
	return nil
}

// decodePNG looks at the size before it makes room for the pixels.
func decodePNG(data io.ReadSeeker, width, height int) (image.Image, error) {
	config, err := png.DecodeConfig(data)
	if err != nil {
		return nil, fmt.Errorf("weave: %w", err)
	}
	if config.Width != width || config.Height != height {
		return nil, fmt.Errorf("weave: a PNG of %dx%d, not %dx%d", config.Width, config.Height, width, height)
	}
	if _, err := data.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("weave: %w", err)
	}
	picture, err := png.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("weave: %w", err)
	}
	return picture, nil
}

// isProduct says whether size is the product of the factors, which may be too large to multiply.
func isProduct(size int, factors ...int) bool {
	for _, factor := range factors {
		if factor < 1 || size%factor != 0 {
			return false
		}
		size /= factor
	}
	return size == 1
}
