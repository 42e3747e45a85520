#!/usr/bin/env bash
# Start the daemon with the demo model, generate one image, stop the daemon. The argument is the folder of its commands.
set -euo pipefail
bin=$(cd "$1" && pwd)
image=$PWD/demo.png
export XDG_RUNTIME_DIR XDG_CONFIG_HOME
# A temporary folder: the user's daemon and config are not touched.
XDG_RUNTIME_DIR=$(mktemp -d)
XDG_CONFIG_HOME=$XDG_RUNTIME_DIR
"$bin/weave-compute" 2>"$XDG_RUNTIME_DIR/log" &
daemon=$!
stop() {
    kill "$daemon" 2>/dev/null && wait "$daemon" || true
    rm -rf "$XDG_RUNTIME_DIR"
}
trap stop EXIT
for _ in $(seq 100); do
    [ -S "$XDG_RUNTIME_DIR/weave/weave.sock" ] && break
    kill -0 "$daemon" 2>/dev/null || break
    sleep 0.1
done
"$bin/weavectl" generate "a red circle on a blue background" --model shapes --output "$image" --force ||
    { cat "$XDG_RUNTIME_DIR/log" >&2; exit 1; }
echo "The image is $image"
