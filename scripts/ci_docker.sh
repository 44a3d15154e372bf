#!/usr/bin/env bash
# Run a command with a Docker engine: the one that answers, or else one of our own that ends with the command.
#
#   scripts/ci_docker.sh [--or-without] make test
#
# An engine of our own needs root and, where dockerd is missing, a Debian whose apt-get works. Its containers
# have no network (no bridge, no iptables rules: a CI machine often may have neither), and all that it writes
# lies in one temporary folder, removed at the end. Where no engine can be had this fails; with --or-without it
# says why and runs the command all the same: tests that need an engine then skip.
set -euo pipefail
without=no
if [ "${1:-}" = --or-without ]; then
    without=yes
    shift
fi
[ $# -gt 0 ] || { echo "usage: $0 [--or-without] COMMAND [ARGUMENT...]" >&2; exit 2; }
wanted=("$@")

answers() { timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }  # without an engine it fails

# What stood in the way of an engine: the end, or the command without one.
no_engine() {
    echo "$0: no Docker engine: $1" >&2
    [ "$without" = yes ] || exit 1
    echo "$0: goes on without one: what needs it is skipped" >&2
    unset DOCKER_HOST
    status=0
    "${wanted[@]}" || status=$?
    exit "$status"
}

if answers; then
    exec "$@"
fi
[ "$(id -u)" = 0 ] || no_engine "none answers, and starting one needs root"

install() {
    command -v apt-get >/dev/null || { echo "apt-get is missing"; return 1; }
    export DEBIAN_FRONTEND=noninteractive
    timeout 120 apt-get update -qq && timeout 240 apt-get install -y -qq --no-install-recommends docker.io iptables
}

folder=$(mktemp -d -t turncredit-docker.XXXXXX)

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

if ! command -v dockerd >/dev/null && ! install >"$folder/log" 2>&1; then
    no_engine "none answers, and dockerd could not be installed ($(tail -n 1 "$folder/log"))"
fi

export DOCKER_HOST=unix://$folder/docker.sock
dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/pid" --host "$DOCKER_HOST" \
    --storage-driver overlay2 --iptables=false --ip6tables=false --bridge none >"$folder/log" 2>&1 &
engine=$!
for _ in $(seq 300); do
    answers && break
    kill -0 "$engine" 2>/dev/null || break
    sleep 0.1
done
answers || no_engine "one of our own did not start ($(tail -n 1 "$folder/log"))"

"$@" &
command=$!  # in the background, so that a signal to this script is acted upon while it runs
trap 'kill -TERM "$command" 2>/dev/null; exit 143' TERM
wait "$command"
