#!/usr/bin/env bash
# Run make TARGET... as an ordinary user with the system's Python: a user and a clone of this tree, both gone afterwards.
# What is changed here and not committed goes along, but for new files that git does not know yet.
set -euo pipefail
[ "$(id -u)" -eq 0 ] || { echo "needs root, to make a user; as an ordinary user yourself: make test" >&2; exit 1; }
name=weave-user-$$
place=$(mktemp -d "/var/tmp/$name-XXXXXX")

remove() {
    # Whatever it has left running would keep it.
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
# Without --no-hardlinks the objects would be the same files, whose owner is changed below.
git clone --quiet --no-hardlinks "$PWD" "$place/home/tree"
git diff --binary HEAD | git -C "$place/home/tree" apply --allow-empty
chown -R "$name:" "$place/home/tree"

# Where packages come from is the machine's to say; the rest of root's environment is not for this user.
passed=()
for variable in $(compgen -e | grep -E '^(PIP_|SSL_CERT_|REQUESTS_CA_BUNDLE$|[a-zA-Z]+_(proxy|PROXY)$)'); do
    passed+=("$variable=${!variable}")
done
cd "$place/home/tree"
setpriv --reuid "$name" --regid "$name" --init-groups --inh-caps=-all --reset-env \
    env "${passed[@]}" make PYTHON=/usr/bin/python3 "$@"
