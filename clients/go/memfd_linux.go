package weave

import (
	"io"
	"net"
	"os"
	"syscall"
)

// From linux/fcntl.h: the result of fcntl(F_GET_SEALS) for a memfd that cannot be changed any more.
const (
	getSeals = 1034                                                                          // F_GET_SEALS
	allSeals = 0x1 /* F_SEAL_SEAL */ | 0x2 /* F_SEAL_SHRINK */ | 0x4 /* F_SEAL_GROW */ | 0x8 /* F_SEAL_WRITE */
)

// checkSealedMemfd fails unless file is a memfd with every seal and exactly size bytes. It sets the offset to 0.
func checkSealedMemfd(file *os.File, size int64) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return protocolError("a descriptor: %v", err)
	}
	var seals uintptr
	var errno syscall.Errno
	if err := raw.Control(func(descriptor uintptr) {
		seals, _, errno = syscall.Syscall(syscall.SYS_FCNTL, descriptor, getSeals, 0)
	}); err != nil {
		return protocolError("a descriptor: %v", err)
	}
	if errno != 0 { // EINVAL: not a memfd
		return protocolError("a descriptor is not a memfd")
	}
	if seals&allSeals != allSeals {
		return protocolError("a memfd is not sealed")
	}
	found, err := file.Stat()
	if err != nil || found.Size() != size {
		return protocolError("a memfd does not have the announced size")
	}
	// The offset is shared with the sender, which may have moved it.
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return protocolError("a memfd: %v", err)
	}
	return nil
}

// descriptorRoom is the size of the ancillary data of one read. A stream socket never combines the descriptors of two
// writes (unix(7)), and the daemon sends at most one per write.
var descriptorRoom = syscall.CmsgSpace(4 * maxDescriptors)

// readWithDescriptors reads the available data and its descriptors, which the caller must close even if there is an
// error. They are close-on-exec: package net passes MSG_CMSG_CLOEXEC.
func readWithDescriptors(socket *net.UnixConn, buffer, ancillary []byte) (int, []*os.File, error) {
	n, ancillaryBytes, flags, _, err := socket.ReadMsgUnix(buffer, ancillary)
	if err != nil {
		return 0, nil, err
	}
	messages, err := syscall.ParseSocketControlMessage(ancillary[:ancillaryBytes])
	if err != nil {
		return n, nil, protocolError("ancillary data: %v", err)
	}
	var descriptors []*os.File
	for _, message := range messages {
		numbers, err := syscall.ParseUnixRights(&message)
		if err != nil { // ancillary data other than descriptors
			continue
		}
		for _, number := range numbers {
			descriptors = append(descriptors, os.NewFile(uintptr(number), "weave image"))
		}
	}
	if flags&syscall.MSG_CTRUNC != 0 {
		return n, descriptors, protocolError("too many descriptors in one message")
	}
	return n, descriptors, nil
}
