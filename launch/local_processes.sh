#!/usr/bin/env bash
# Runs a program as N processes on this machine, which share the training of one run:
#
#     launch/local_processes.sh [--dry-run] N -- python -m bagssl_jax.main --config=... --workdir=...
#
# A signal to this script goes to all of them. Where one fails, the others end by themselves within
# a minute, or are killed; the exit status is that of the first that failed. Every process sees all
# devices of the machine: on GPUs, use one process, or give each its own with CUDA_VISIBLE_DEVICES.
set -euo pipefail
set -m # each in a process group of its own: Ctrl-C comes once, from here

fail() {
    echo "error: $1; usage: launch/local_processes.sh [--dry-run] N -- COMMAND..." >&2
    exit 2
}

dry=
if [ "${1-}" = --dry-run ]; then
    dry=1
    shift
fi
[[ "${1-}" =~ ^[1-9][0-9]*$ ]] || fail "N must be a positive number, not '${1-}'"
[ "${2-}" = -- ] || fail "-- is missing behind N"
[ $# -gt 2 ] || fail "there is no command behind --"
count=$1
shift 2

free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
port=PORT
[ -n "$dry" ] || port=$(python3 -c "$free_port")

declare -A running=() # by process id
forward() {
    [ ${#running[@]} -eq 0 ] || kill -s "$1" -- "${!running[@]}" 2>/dev/null || true
}
trap 'forward TERM' TERM
trap 'forward INT' INT
for ((i = 0; i < count; i++)); do
    place=("BAGSSL_COORDINATOR=127.0.0.1:$port" "BAGSSL_PROCESSES=$count" "BAGSSL_PROCESS=$i")
    if [ -n "$dry" ]; then
        echo "${place[*]} $(printf '%q ' "$@")&"
    else
        env "${place[@]}" "$@" &
        running[$!]=$i
    fi
done

status=0
timer=
while [ ${#running[@]} -gt 0 ]; do
    ended=
    code=0
    wait -n -p ended "${!running[@]}" 2>/dev/null || code=$?
    if [ -z "${ended-}" ]; then
        [ "$code" -eq 127 ] || continue # a signal, which was passed on
        # Bash has forgotten for `wait -n` what ended while a signal was passed on, not for `wait`.
        ended=$(for id in "${!running[@]}"; do kill -0 "$id" 2>/dev/null || echo "$id"; done | head -n 1)
        [ -n "$ended" ] || { sleep 0.1 && continue; }
        code=0
        wait "$ended" || code=$?
    fi
    unset "running[$ended]"
    if [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; then
        status=$code
        (
            sleep 60
            forward KILL
        ) &
        timer=$!
        disown "$timer" # or its end would be reported
    fi
done
[ -z "$timer" ] || kill -- "-$timer" 2>/dev/null || true
exit "$status"
