package weave

import "os"

// maxDescriptors limits the descriptors that wait for the end of the frame that they arrived with.
const maxDescriptors = 8

// answer is one event of one request; request 0 is the connection.
type answer struct {
	request uint32
	event   any
}

// decoder turns the data read from the socket, in pieces of any size, into answers. It allocates no more for a payload
// than has arrived, and no more than the limits of the header and the announcement.
type decoder struct {
	head        []byte  // an incomplete header
	current     *header // of the payload that is being received
	payload     []byte
	announced   *answer // an image or preview whose bytes are the next frame
	size        int64   // of the announced bytes
	descriptors []*os.File
}

// feed calls deliver with each answer that is complete, and returns deliver's error or its own. It takes ownership of
// the descriptors, which arrived with the data. After an error the decoder must not be used again.
func (d *decoder) feed(data []byte, descriptors []*os.File, deliver func(answer) error) error {
	d.descriptors = append(d.descriptors, descriptors...)
	for len(data) > 0 {
		var err error
		if d.current == nil {
			data, err = d.takeHeader(data)
		} else {
			data, err = d.takePayload(data, deliver)
		}
		if err != nil {
			return err
		}
	}
	between := d.current == nil && len(d.head) == 0
	if len(d.descriptors) > maxDescriptors || len(d.descriptors) > 0 && between {
		return protocolError("a descriptor without an image")
	}
	return nil
}

// close closes the descriptors that no image has taken.
func (d *decoder) close() {
	for _, descriptor := range d.descriptors {
		descriptor.Close()
	}
	d.descriptors = nil
}

// takeHeader returns the rest of data.
func (d *decoder) takeHeader(data []byte) ([]byte, error) {
	taken := min(len(data), headerBytes-len(d.head))
	d.head = append(d.head, data[:taken]...)
	if len(d.head) < headerBytes {
		return nil, nil
	}
	parsed, err := parseHeader(d.head)
	if err != nil {
		return nil, err
	}
	if err := d.expect(parsed); err != nil {
		return nil, err
	}
	d.head = d.head[:0]
	d.current = &parsed
	return data[taken:], nil
}

// expect returns an error if this frame is not allowed now. It is called before any of the payload is stored.
func (d *decoder) expect(coming header) error {
	switch {
	case d.announced == nil && coming.kind == kindImage:
		return protocolError("an image that was not announced")
	case d.announced == nil:
		return nil
	case coming.kind != kindImage || coming.request != d.announced.request:
		return protocolError("an image was announced, but another frame followed")
	case int64(coming.length) != d.size:
		return protocolError("an image of %d bytes was announced, but %d bytes followed", d.size, coming.length)
	}
	return nil
}

// takePayload returns the rest of data.
func (d *decoder) takePayload(data []byte, deliver func(answer) error) ([]byte, error) {
	taken := min(len(data), int(d.current.length)-len(d.payload))
	d.payload = append(d.payload, data[:taken]...)
	if len(d.payload) < int(d.current.length) {
		return nil, nil
	}
	frame, payload := *d.current, d.payload
	d.current, d.payload = nil, nil
	if frame.kind == kindImage {
		return data[taken:], deliver(d.fulfil(payload))
	}
	event, size, err := decodeEvent(payload)
	if err != nil {
		return nil, err
	}
	if event == nil {
		return data[taken:], nil
	}
	return data[taken:], d.take(answer{frame.request, event}, size, deliver)
}

// take delivers an answer, or keeps it until its bytes have arrived.
func (d *decoder) take(whole answer, size int64, deliver func(answer) error) error {
	image, isImage := whole.event.(*Image)
	_, isPreview := whole.event.(Preview)
	switch {
	case isImage && image.Deliver == FD:
		if len(d.descriptors) == 0 {
			return protocolError("an image without its memfd")
		}
		memfd := d.descriptors[0]
		if err := checkSealedMemfd(memfd, size); err != nil {
			return err
		}
		d.descriptors = d.descriptors[1:]
		image.file = memfd
	case isImage || isPreview:
		d.announced, d.size = &whole, size
		return nil
	}
	return deliver(whole)
}

// fulfil returns the announced answer with its bytes.
func (d *decoder) fulfil(data []byte) answer {
	whole := *d.announced
	d.announced = nil
	switch event := whole.event.(type) {
	case *Image:
		event.data = data
	case Preview:
		event.PNG = data
		whole.event = event
	}
	return whole
}
