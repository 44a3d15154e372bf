#!/usr/bin/env bash
# Run a command with a Docker engine: the one that answers, or else one of our own that ends with the command.
#
#   scripts/ci_docker.sh make test
#
# An engine of our own needs root and, where dockerd is missing, a Debian whose apt-get works. Its containers
# have no network (no bridge, no iptables rules: a CI machine often may have neither), and all that it writes
# lies in one temporary folder, removed at the end.
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: $0 COMMAND [ARGUMENT...]" >&2; exit 2; }

answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }  # without an engine it fails

if answers; then
    exec "$@"
fi
[ "$(id -u)" = 0 ] || { echo "$0: no Docker engine answers, and starting one needs root" >&2; exit 1; }

if ! command -v dockerd >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends docker.io iptables >/dev/null
fi

folder=$(mktemp -d -t turncredit-docker.XXXXXX)
export DOCKER_HOST=unix://$folder/docker.sock

stop() {
    status=$?
    trap - EXIT
    if [ -n "${engine:-}" ]; then
        kill "$engine" 2>/dev/null || true  # containers end with their engine
        wait "$engine" || true
    fi
    awk -v folder="$folder/" 'index($2, folder) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount -l
    rm -rf "$folder"
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/pid" --host "$DOCKER_HOST" \
    --storage-driver overlay2 --iptables=false --ip6tables=false --bridge none >"$folder/log" 2>&1 &
engine=$!
for _ in $(seq 300); do
    answers && break
    kill -0 "$engine" 2>/dev/null || break
    sleep 0.1
done
answers || { echo "$0: the Docker engine did not start:" >&2; tail -20 "$folder/log" >&2; exit 1; }

"$@" &
command=$!  # in the background, so that a signal to this script is acted upon while it runs
trap 'kill -TERM "$command" 2>/dev/null; exit 143' TERM
wait "$command"
