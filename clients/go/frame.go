package weave

import (
	"encoding/binary"
	"fmt"
)

// The limits on sent and received payloads, in bytes.
const (
	// MaxControlBytes is the largest payload of a control frame, in either direction.
	MaxControlBytes = 64 * 1024
	// MaxImageBytes is the largest image or preview accepted from a daemon.
	MaxImageBytes = 256 * 1024 * 1024
)

const (
	magic           = "WEVE"
	protocolVersion = 2
	headerBytes     = 16
)

// kind is the kind of a frame's payload.
type kind uint16

const (
	kindControl kind = 0x0010 // a JSON message
	kindImage   kind = 0x0011 // an image's bytes, announced by a control frame before it
)

// header is the 16 bytes before every payload, big-endian: magic, version, kind, length, request.
type header struct {
	kind    kind
	length  uint32 // bytes of payload
	request uint32 // chosen by the client, repeated in every answer
}

// controlFrame returns a complete control frame.
func controlFrame(request uint32, payload []byte) []byte {
	return append(frameHeader(kindControl, request, len(payload)), payload...)
}

// frameHeader returns the header of a payload, with room for it if it is short.
func frameHeader(kind kind, request uint32, length int) []byte {
	frame := make([]byte, 0, headerBytes+min(length, MaxControlBytes))
	frame = append(frame, magic...)
	frame = binary.BigEndian.AppendUint16(frame, protocolVersion)
	frame = binary.BigEndian.AppendUint16(frame, uint16(kind))
	frame = binary.BigEndian.AppendUint32(frame, uint32(length))
	return binary.BigEndian.AppendUint32(frame, request)
}

// parseHeader parses and checks the 16 bytes of a daemon's header.
func parseHeader(data []byte) (header, error) {
	parsed := header{
		kind:    kind(binary.BigEndian.Uint16(data[6:])),
		length:  binary.BigEndian.Uint32(data[8:]),
		request: binary.BigEndian.Uint32(data[12:]),
	}
	if string(data[:4]) != magic {
		return header{}, protocolError("bad magic 0x%x", data[:4])
	}
	if version := binary.BigEndian.Uint16(data[4:]); version != protocolVersion {
		return header{}, protocolError("version %d; this client supports only %d", version, protocolVersion)
	}
	limit := uint32(MaxControlBytes)
	switch parsed.kind {
	case kindControl:
	case kindImage:
		limit = MaxImageBytes
	default:
		return header{}, protocolError("unknown kind 0x%04x", uint16(parsed.kind))
	}
	if parsed.length < 1 || parsed.length > limit {
		return header{}, protocolError("length is %d, expected 1 to %d", parsed.length, limit)
	}
	return parsed, nil
}

func protocolError(format string, values ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, values...))
}
