package weave

import (
	"os"
	"path/filepath"
	"strconv"
)

const systemSocketPath = "/run/weave/weave.sock"

// DefaultSocketPath is $WEAVE_SOCKET, else the user's daemon's, else, where only that one is there, the system's.
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
