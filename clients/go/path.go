package weave

import (
	"os"
	"path/filepath"
	"strconv"
)

const systemSocketPath = "/run/weave/weave.sock"

// DefaultSocketPath returns $WEAVE_SOCKET if it is set, otherwise the path of the user's daemon, unless only the
// system's daemon has a socket.
func DefaultSocketPath() string {
	if path := os.Getenv("WEAVE_SOCKET"); path != "" {
		return path
	}
	runtime := os.Getenv("XDG_RUNTIME_DIR")
	if runtime == "" {
		runtime = filepath.Join("/run/user", strconv.Itoa(os.Getuid()))
	}
	own := filepath.Join(runtime, "weave", "weave.sock")
	if !exists(own) && exists(systemSocketPath) {
		return systemSocketPath
	}
	return own
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
