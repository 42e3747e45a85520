#!/usr/bin/env bash
# Run make TARGET... as an ordinary user with the system's Python. Creates a user and a clone of this tree, and removes both
# afterwards. Uncommitted changes are included, but not untracked files.
set -euo pipefail
[ "$(id -u)" -eq 0 ] || { echo "needs root, to create a user; as an ordinary user, run: make test" >&2; exit 1; }
name=weave-user-$$
place=$(mktemp -d "/var/tmp/$name-XXXXXX")

remove() {
    # userdel fails while the user has processes.
    for _ in $(seq 50); do
        pkill -KILL -U "$name" || break
        sleep 0.1
    done
    userdel "$name"
    rm -rf "$place"
}
trap remove EXIT
trap 'exit 1' HUP INT TERM

useradd --create-home --home-dir "$place/home" --user-group --shell /bin/bash "$name"
chmod 755 "$place"
# With hard links the chown below would change the owner of this tree's objects.
git clone --quiet --no-hardlinks "$PWD" "$place/home/tree"
git diff --binary HEAD | git -C "$place/home/tree" apply --allow-empty
chown -R "$name:" "$place/home/tree"

# Pass on the machine's package index and proxies, but nothing else of root's environment.
passed=()
for variable in $(compgen -e | grep -E '^(PIP_|SSL_CERT_|REQUESTS_CA_BUNDLE$|[a-zA-Z]+_(proxy|PROXY)$)'); do
    passed+=("$variable=${!variable}")
done
cd "$place/home/tree"
setpriv --reuid "$name" --regid "$name" --init-groups --inh-caps=-all --reset-env \
    env "${passed[@]}" make PYTHON=/usr/bin/python3 "$@"
