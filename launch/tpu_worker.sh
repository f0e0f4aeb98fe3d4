#!/usr/bin/env bash
# What each worker of a Cloud TPU slice does, as root. launch/tpu.sh makes this the slice's start-up
# script, so that a slice that was created again goes on by itself.
#
#     tpu_worker.sh [boot|setup|supervise] [gs://BUCKET/WORKDIR]
#
# setup installs the code and mounts the buckets; boot, which is what it does without arguments, then
# starts the run as the systemd unit `bagssl`, which is supervise. The workdir is the one given, the
# last one, or that of the slice's metadata. WORKDIR/launch holds what launch/tpu.sh has left there:
# `settings`, the code, this script. To it go `logs/worker-N.log`, every minute, and `ended-N`, where
# the run is over: its number, exit status, worker and last line.
set -euo pipefail
export PATH=$PATH:/snap/bin HOME=${HOME:-/root}

ROOT=${BAGSSL_ROOT:-/opt/bagssl}
UV=0.13.9

attribute() {
    curl -fsS --retry 5 -H 'Metadata-Flavor: Google' \
        "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

# Sets WORKDIR, CODE, DATA, CACHE, RUN and ARGUMENTS.
read_settings() {
    local last
    last=$(cat "$ROOT/workdir" 2>/dev/null || attribute bagssl-workdir)
    WORKDIR=${1:-$last}
    [[ $WORKDIR == "$last" ]] || rm -f "$ROOT/run.log"
    echo "$WORKDIR" >"$ROOT/workdir"
    gcloud storage cat "$WORKDIR/launch/settings" >"$ROOT/settings"
    # shellcheck source=/dev/null
    source "$ROOT/settings"
}

# Sets up, in up to three tries, and starts the run.
boot() {
    local try
    if systemctl is-active --quiet bagssl; then
        # launch/tpu.sh asks all workers again where it did not reach one.
        [[ $(cat "$ROOT/running") == "$WORKDIR $RUN $CODE" ]] && return
        echo 'error: another run is under way here: launch/tpu.sh stop ends it' >&2
        return 1
    fi
    # Not over it: a shell reads what it runs bit by bit.
    cp "$0" "$ROOT/worker.sh.new"
    mv "$ROOT/worker.sh.new" "$ROOT/worker.sh"
    for try in 1 2 3; do
        if bash "$ROOT/worker.sh" setup >>"$ROOT/run.log" 2>&1; then
            start
            return
        fi
        ((try == 3)) || sleep 30
    done
    echo "error: the setup failed: $(tail -n 1 "$ROOT/run.log")" | tee -a "$ROOT/run.log" >&2
    tell_end 1
    return 1
}

setup() {
    if [[ $(cat "$ROOT/installed" 2>/dev/null) != "$CODE" ]]; then
        rm -rf "$ROOT/installed" "$ROOT/code" "$ROOT/venv"
        mkdir -p "$ROOT/code"
        case $CODE in
            gs://*) gcloud storage cat "$CODE" | tar -xz -C "$ROOT/code" ;;
            *)
                git clone -q "${CODE%@*}" "$ROOT/code"
                git -C "$ROOT/code" checkout -q "${CODE##*@}"
                ;;
        esac
        # The system's Python is too old on most images; uv brings one.
        python3 -m pip install -q --upgrade --target="$ROOT/tools" "uv==$UV"
        "$ROOT/tools/bin/uv" venv -q --python=3.11 "$ROOT/venv"
        "$ROOT/tools/bin/uv" pip install -q --python="$ROOT/venv" \
            --constraints="$ROOT/code/launch/constraints.txt" "$ROOT/code[tpu,gcs]"
        echo "$CODE" >"$ROOT/installed"
    fi
    # Without the cache a start takes longer; without the data there is none.
    mount_bucket "$CACHE" "$ROOT/cache" rw || echo 'no compilation cache on the bucket' >&2
    [[ -z $DATA ]] || mount_bucket "$DATA" "$ROOT/data" ro
}

# mount_bucket gs://BUCKET[/PATH] DIRECTORY rw|ro
mount_bucket() {
    local bucket=${1#gs://} path='' options=(--implicit-dirs -o "$3")
    [[ $bucket != */* ]] || path=${bucket#*/} bucket=${bucket%%/*}
    [[ -z $path ]] || options+=("--only-dir=$path")
    mkdir -p "$2"
    if mountpoint -q "$2"; then umount "$2"; fi
    command -v gcsfuse >/dev/null || install_gcsfuse || return
    gcsfuse "${options[@]}" "$bucket" "$2"
}

install_gcsfuse() {
    local key=/usr/share/keyrings/cloud.google.asc site=https://packages.cloud.google.com/apt
    curl -fsS "$site/doc/apt-key.gpg" -o "$key" &&
        echo "deb [signed-by=$key] $site gcsfuse-$(lsb_release -cs) main" \
            >/etc/apt/sources.list.d/gcsfuse.list &&
        apt-get -q -o DPkg::Lock::Timeout=300 update &&
        apt-get -yq -o DPkg::Lock::Timeout=300 install gcsfuse
}

start() {
    if ((${#ARGUMENTS[@]} == 0)); then
        echo 'set up; there is no run to start'
        return
    fi
    echo "$WORKDIR $RUN $CODE" >"$ROOT/running"
    # SIGTERM goes to supervise alone, which passes it on; then there is time to save, while the
    # network is still up.
    systemd-run --unit=bagssl --collect --property=KillMode=mixed --property=TimeoutStopSec=120 \
        --property=After=network-online.target /bin/bash "$ROOT/worker.sh" supervise
}

supervise() {
    local status child='' stopping='' interrupted
    local words=("--workdir=$WORKDIR" "${ARGUMENTS[@]}")
    [[ -z $DATA ]] || words+=("--config.data.dir=$ROOT/data")
    cd "$ROOT/code"
    while sleep 60; do upload_log; done &
    local uploads=$!
    trap 'stopping=1 interrupted=1; [[ ! $child ]] || kill "$child" 2>/dev/null || true' TERM
    JAX_COMPILATION_CACHE_DIR=$ROOT/cache PYTHON=$ROOT/venv/bin/python \
        launch/local.sh --restarts=10 -- "${words[@]}" >>"$ROOT/run.log" 2>&1 &
    child=$!
    [[ ! $stopping ]] || kill "$child"
    while :; do # a signal ends wait, and not yet the training
        interrupted='' status=0
        wait "$child" || status=$?
        [[ $interrupted ]] || break
    done
    kill "$uploads"
    # Stopped, it goes on when the slice or the run is started again.
    if [[ $stopping ]]; then upload_log; else tell_end "$status"; fi
    exit "$status"
}

upload_log() {
    gcloud storage cp "$ROOT/run.log" "$WORKDIR/launch/logs/worker-$WORKER.log" || true
}

tell_end() {
    upload_log
    echo "${RUN:--} $1 $WORKER $(tail -n 1 "$ROOT/run.log")" |
        gcloud storage cp - "$WORKDIR/launch/ended-$WORKER"
}

mkdir -p "$ROOT"
read_settings "${2:-}"
WORKER=$(attribute agent-worker-number)
case ${1:-boot} in
    boot | setup | supervise) "${1:-boot}" ;;
    *) echo "error: '$1': give boot, setup or supervise" >&2 && exit 2 ;;
esac
