package weave

import "os"

// maxDescriptors is how many may wait for the end of the frame that they came with.
const maxDescriptors = 8

// answer is one event of one request; request 0 is the connection.
type answer struct {
	request uint32
	event   any
}

// decoder takes what came over the socket, in any pieces, and gives answers. It never holds more of a payload than
// has arrived, nor more than the header's and the announcement's limits.
type decoder struct {
	head        []byte  // a header that is not whole yet
	current     *header // of the payload that is being gathered
	payload     []byte
	announced   *answer // an image or preview, whose bytes are the next frame
	size        int64   // of what is announced
	descriptors []*os.File
}

// feed calls deliver with each answer that is complete by now, and returns deliver's error or its own. The
// descriptors, which came with the data, are the decoder's from here on; after an error it is good for nothing.
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
		return protocolError("a descriptor came without an image")
	}
	return nil
}

// close closes the descriptors that nobody took.
func (d *decoder) close() {
	for _, descriptor := range d.descriptors {
		descriptor.Close()
	}
	d.descriptors = nil
}

// takeHeader returns what is left of data.
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

// expect says whether a frame may come now. It is asked before a byte of the payload is held.
func (d *decoder) expect(coming header) error {
	switch {
	case d.announced == nil && coming.kind == kindImage:
		return protocolError("an image came that was not announced")
	case d.announced == nil:
		return nil
	case coming.kind != kindImage || coming.request != d.announced.request:
		return protocolError("an image was announced, and something else came")
	case int64(coming.length) != d.size:
		return protocolError("an image of %d bytes was announced, and one of %d came", d.size, coming.length)
	}
	return nil
}

// takePayload returns what is left of data.
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

// take delivers an answer, or keeps it until its bytes are there.
func (d *decoder) take(whole answer, size int64, deliver func(answer) error) error {
	image, isImage := whole.event.(*Image)
	_, isPreview := whole.event.(Preview)
	switch {
	case isImage && image.Deliver == FD:
		if len(d.descriptors) == 0 {
			return protocolError("an image came without its memfd")
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

// fulfil is what was announced, with its bytes.
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
