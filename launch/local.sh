#!/usr/bin/env bash
# Trains in one process on this machine, with all of its devices.
#
#     launch/local.sh [OPTION...] -- --config=configs/NAME.py --workdir=DIR [--config.KEY=VALUE...]
#
# What follows -- is for `python -m bagssl_jax.main`. Options:
#   --gpus=0,1     of the GPUs, these
#   --restarts=N   after a crash, start again and go on from the newest checkpoint; at most N times
#                  in a row, where it crashed within half an hour (0)
#   --dry-run      print what would be done
#
# No crash are 0: done, 2: something given is wrong, and 130 and 143: stopped by Ctrl-C or SIGTERM,
# which save first. The exit status is that of the last start. Compiled programs are kept in
# JAX_COMPILATION_CACHE_DIR (~/.cache/bagssl_jax); PYTHON (python) is what is started. To go on when
# the terminal is closed: nohup launch/local.sh ... >FILE 2>&1 &
set -euo pipefail

fail() {
    echo "error: $1" >&2
    exit 2
}

gpus='' restarts=0 dry=''
while (($#)); do
    case $1 in
        -h | --help) sed -n '2,/^set -/s/^# \{0,1\}//p' "$0" && exit ;;
        --gpus=*) gpus=${1#*=} ;;
        --restarts=*) restarts=${1#*=} ;;
        --dry-run) dry=1 ;;
        --) break ;;
        *) fail "'$1' is no option (--help lists them); what is for the training follows --" ;;
    esac
    shift
done
[[ -z $gpus || $gpus =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "--gpus=$gpus: give numbers such as 0,1"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts=$restarts: give a whole number"
(($# > 1)) || fail 'nothing to train: give -- --config=FILE --workdir=DIR'
shift

command=(env "JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/bagssl_jax}")
[[ -z $gpus ]] || command+=("CUDA_VISIBLE_DEVICES=$gpus")
command+=("${PYTHON:-python}" -m bagssl_jax.main "$@")
if [[ $dry ]]; then
    printf '%q ' "${command[@]}"
    printf '\n'
    ((restarts == 0)) || echo "# and again after a crash, $restarts times in a row at most"
    exit
fi
((restarts)) || exec "${command[@]}"

# With job control the training is in a process group of its own and does not ignore SIGINT; what
# stops this script is passed on to it.
set -m
child='' stopping='' interrupted=''
stop() {
    stopping=$1 interrupted=1
    [[ ! $child ]] || kill -s "$1" "$child" 2>/dev/null || true
}
trap 'stop INT' INT
trap 'stop TERM' TERM
for ((left = restarts; ; left--)); do
    started=$SECONDS
    "${command[@]}" &
    child=$!
    [[ ! $stopping ]] || kill -s "$stopping" "$child"
    while :; do # a signal ends wait, and not yet the training
        interrupted='' status=0
        wait "$child" || status=$?
        [[ $interrupted ]] || break
    done
    child=''
    case $status in 0 | 2 | 130 | 143) exit "$status" ;; esac
    ((SECONDS - started < 1800)) || left=$restarts
    [[ ! $stopping ]] && ((left > 0)) || exit "$status"
    echo "ended with status $status; starting again in 20 s ($left left)" >&2
    sleep 20 &
    wait "$!" || true
    [[ ! $stopping ]] || exit "$status"
done
