#!/usr/bin/env bash
# Trains on a Cloud TPU VM or pod slice, as a queued resource.
#
#     launch/tpu.sh COMMAND NAME --zone=ZONE [OPTION...] [-- --config=configs/NAME.py ...]
#
# Commands:
#   create   asks for the slice; when it is there it sets itself up and, where -- is given, trains
#   watch    trains until the run is done, whatever is preempted: creates the slice where there is
#            none, deletes and creates it again where it was suspended or has failed, and deletes it
#            at the end. Without -- the run is the one that create or run has left in the workdir
#   setup    installs the code on all workers of a slice that is there
#   run      that, and starts a training there
#   status   the slice's state, how the run ended, the newest checkpoint, the last lines of the log
#   logs     what a worker printed, from the bucket (a minute late); --follow: from the worker
#   ssh      a shell on a worker, or what follows -- on it
#   stop     ends the training, which saves; the slice stays (and costs). End a watch first
#   delete   deletes the slice, whatever it does
#
# What follows -- is for `python -m bagssl_jax.main`, which gets --workdir as well. Options:
#   --workdir=gs://BUCKET/PATH  of the run (for all but ssh, stop, delete and logs --follow)
#   --type=v5litepod-16         accelerator type (create, watch)
#   --runtime=VERSION           software of the VMs (the usual one of the type)
#   --spot                      cheaper, and preempted at any time
#   --data=gs://BUCKET/PATH     mounted on the workers, where it is data.dir
#   --cache=gs://BUCKET/PATH    of compiled programs, mounted likewise (`cache` beside the workdir)
#   --commit=REVISION           of the code, which is committed here (HEAD) ...
#   --repository=URL            ... or elsewhere; needs --commit
#   --project=PROJECT           (gcloud's own)
#   --gcloud=FLAG               a further flag for `gcloud ... queued-resources create`; repeatable
#   --worker=N                  of ssh, also `all`, and of logs (0)
#   --every=SECONDS             between two looks of watch (60)
#   --keep                      watch leaves the slice at the end
#   --dry-run                   print the commands that would be run
set -euo pipefail

fail() { # MESSAGE [STATUS]
    echo "error: $1" >&2
    exit "${2:-2}"
}

say() { echo "$(date -u +%H:%M:%S) $1" >&2; }

# Words as a shell would have to be given them.
quoted() {
    local word line='' quote="'\\''"
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9@%+=:,./_-]+$ ]] || word="'${word//"'"/$quote}'"
        line+=${line:+ }$word
    done
    printf '%s' "$line"
}

# Runs a line of shell, or prints it.
attempt() {
    if [[ $dry ]]; then printf '%s\n' "$1"; else eval "$1"; fi
}

act() { attempt "$1" || fail "this failed: $1" 1; }

command='' name='' zone='' type='' runtime='' workdir='' data='' cache='' commit='' repository=''
project='' worker=0 every=60 spot='' keep='' follow='' dry='' more=() arguments=() given=''
for word in "$@"; do
    [[ $word != -- ]] || break
    case $word in -h | --help) sed -n '2,/^set -/s/^# \{0,1\}//p' "$0" && exit ;; esac
done
command=${1:-}
case $command in
    create | watch | setup | run | status | logs | ssh | stop | delete) ;;
    *) fail "'$command' is no command: give create, watch, setup, run, status, logs, ssh, stop or delete" ;;
esac
name=${2:-}
[[ $name =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] ||
    fail "'$name' cannot name a slice: after $command, give small letters, digits and dashes"
shift 2
while (($#)); do
    case $1 in
        --zone=?* | --type=?* | --runtime=?* | --workdir=?* | --data=?* | --cache=?* | --commit=?* | \
            --repository=?* | --project=?* | --worker=?* | --every=?*)
            key=${1%%=*}
            printf -v "${key#--}" %s "${1#*=}"
            ;;
        --gcloud=--?*) more+=("${1#*=}") ;;
        --spot) spot=1 ;;
        --keep) keep=1 ;;
        --follow) follow=1 ;;
        --dry-run) dry=1 ;;
        --)
            given=1
            shift
            arguments=("$@")
            break
            ;;
        *) fail "'$1' is no option (--help lists them); what is for the training follows --" ;;
    esac
    shift
done
[[ $zone ]] || fail '--zone=ZONE is missing'
if [[ $command$follow != logs1 && $command != ssh && $command != stop && $command != delete ]]; then
    [[ $workdir ]] || fail '--workdir=gs://BUCKET/PATH is missing'
fi
for key in workdir data cache; do
    [[ -z ${!key} || ${!key} =~ ^gs://[a-z0-9][a-z0-9._-]*(/[A-Za-z0-9._=-]+)*$ ]] ||
        fail "--$key=${!key}: give gs://BUCKET/PATH, of letters, digits and ._=- alone"
done
[[ -z $workdir || $workdir == gs://*/* ]] || fail "--workdir=$workdir: give a path in the bucket"
[[ $worker =~ ^[0-9]+$ || $command$given$worker == ssh1all ]] ||
    fail "--worker=$worker: give a number; ssh with a command behind -- also takes all"
[[ $every =~ ^[1-9][0-9]*$ ]] || fail "--every=$every: give a number of seconds"
[[ -z $repository || $commit ]] || fail '--repository needs --commit=REVISION'
[[ ! $given || ${#arguments[@]} -gt 0 ]] || fail 'nothing follows --'
[[ $command != run || $given ]] || fail 'nothing to train: give -- --config=FILE'
case $command in
    create | watch | run | ssh) ;;
    *) [[ -z $given ]] || fail "$command takes nothing behind --" ;;
esac
if [[ $command == create || $command == watch ]]; then
    [[ $type ]] || fail '--type=TYPE is missing, such as v5litepod-16'
    if [[ -z $runtime ]]; then
        # https://cloud.google.com/tpu/docs/runtimes
        case $type in
            v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
            v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
            v5p-*) runtime=v2-alpha-tpuv5 ;;
            v6e-*) runtime=v2-alpha-tpuv6e ;;
            *) fail "--type=$type: give its --runtime=VERSION too" ;;
        esac
    fi
fi

root=$(cd "$(dirname "$0")/.." && pwd)
if [[ -z $repository && $command$given =~ ^(create1?|setup|run1|watch1)$ ]]; then
    revision=${commit:-HEAD}
    commit=$(git -C "$root" rev-parse --verify -q "$revision^{commit}") ||
        fail "--commit=$revision is not in $root: commit it, or give --repository=URL"
fi
launch=$workdir/launch
cache=${cache:-${workdir%/*}/cache}
where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")
# Of what is trained, so that the end of something else in the workdir is not taken for its end.
run=''
[[ -z $given ]] || run=$(printf '%s\n' "${arguments[@]}" | cksum | cut -d ' ' -f 1)

tpus() { quoted gcloud compute tpus "$@" "${where[@]}"; }

# Leaves in the workdir what the workers need: this code, tpu_worker.sh and the settings.
send() {
    local code settings
    if [[ $repository ]]; then
        code=$repository@$commit
    else
        [[ -z $(git -C "$root" status --porcelain) ]] ||
            say "note: what is not committed stays here; the workers get $commit"
        code=$launch/code-$commit.tar.gz
        act "$(quoted git -C "$root" archive --format=tar.gz "$commit") | $(quoted gcloud storage cp - "$code")"
    fi
    act "$(quoted gcloud storage cp "$root/launch/tpu_worker.sh" "$launch/worker.sh")"
    settings=("CODE=$(quoted "$code")" "DATA=$(quoted "$data")" "CACHE=$(quoted "$cache")" "RUN=$run"
        "ARGUMENTS=(${arguments[@]+$(quoted "${arguments[@]}")})")
    act "$(quoted printf '%s\n' "${settings[@]}") | $(quoted gcloud storage cp - "$launch/settings")"
}

forget_end() { act "$(quoted gcloud storage rm "$launch/ended-*") 2>/dev/null || true"; }

create() {
    local flags=("--accelerator-type=$type" "--runtime-version=$runtime")
    [[ -z $spot ]] || flags+=(--spot)
    flags+=("--metadata=bagssl-workdir=$workdir"
        "--metadata-from-file=startup-script=$root/launch/tpu_worker.sh" ${more[@]+"${more[@]}"})
    attempt "$(tpus queued-resources create "$name" "--node-id=$name" "${flags[@]}")"
}

delete() { attempt "$(tpus queued-resources delete "$name" --force --quiet)"; }

on_worker() { tpus tpu-vm ssh "$name" "--worker=$worker" "$@"; }

# Up to three times, as a connection fails now and then.
on_all_workers() {
    local try line
    line=$(tpus tpu-vm ssh "$name" --worker=all --quiet "--command=$1")
    for try in 1 2 3; do
        if attempt "$line"; then return; fi
        ((try == 3)) || { say "again in $((try * 10)) s" && sleep $((try * 10)); }
    done
    fail "not every worker of $name did it: see above, and launch/tpu.sh status" 1
}

# Sets the workers up, and starts the run if there is one.
boot() {
    local script=/opt/bagssl/sent.sh
    on_all_workers "sudo mkdir -p /opt/bagssl && sudo gcloud storage cp $launch/worker.sh $script && sudo bash $script boot $workdir"
}

# How the run ended: nothing, `finished`, or `failed STATUS WORKER LAST-LINE`.
ended() {
    local number status rest
    gcloud storage cat "$launch/ended-*" 2>/dev/null | while read -r number status rest; do
        [[ $number == "$run" ]] || continue
        if ((status == 0)); then echo finished; else echo "failed $status $rest"; fi
    done | sort -r | head -n 1 || true
}

# The queued resource's state and why, its node's where that is gone, NONE or UNKNOWN.
state() {
    local said format='value(state.state,state.failedData.error.message)'
    if ! said=$(describe queued-resources "--format=$format" 2>&1); then
        [[ $said == *NOT_FOUND* ]] && echo NONE && return
        echo "$said" >&2
        echo UNKNOWN
        return
    fi
    said=$(grep -E '^[A-Z_]+([[:space:]]|$)' <<<"$said" | head -n 1)
    if [[ $said == ACTIVE* ]]; then
        said=$(describe tpu-vm '--format=value(state)' 2>/dev/null |
            grep -xE 'PREEMPTED|TERMINATED|STOPPED' || echo ACTIVE)
    fi
    echo "${said:-UNKNOWN}"
}

describe() { eval "$(tpus "$1" describe "$name" "$2")"; }

# renew STATE: deletes what there is, and creates it; 1 where that may succeed later.
renew() {
    local said
    [[ $1 == NONE ]] || delete || return 1
    if said=$(create 2>&1); then return; fi
    echo "$said" >&2
    grep -qiE 'RESOURCE_EXHAUSTED|quota|capacity|UNAVAILABLE|ALREADY_EXISTS|DEADLINE|INTERNAL' \
        <<<"$said" || fail "$name cannot be created: see above" 1
    return 1
}

watch() {
    local found now seen='' wait=$every lost=0 failed=0
    if [[ $given ]]; then
        send
    elif [[ ! $dry ]]; then
        run=$(gcloud storage cat "$launch/settings" | sed -n 's/^RUN=//p') && [[ $run ]] ||
            fail "nothing was launched in $workdir yet: say what, -- --config=FILE"
    fi
    if [[ $dry ]]; then
        watch_dry
        return
    fi
    # The end of an earlier try, after which something was put right.
    [[ $(ended) == finished ]] || forget_end
    while :; do
        found=$(ended)
        case $found in
            finished | 'failed 2 '*) break ;; # the latter would come to the same again
            '') now=$(state) ;;
            *)
                say "$found"
                ((++lost < 4)) || break
                forget_end
                now=LOST
                ;;
        esac
        [[ $now == "$seen" ]] || say "$name: $now"
        seen=$now
        case $now in
            ACTIVE) wait=$every failed=0 ;;
            SUSPENDED* | FAILED* | LOST | PREEMPTED | TERMINATED | STOPPED | NONE)
                [[ $now != FAILED* ]] || ((++failed < 10)) || break
                if renew "$now"; then say "$name: asked for again"; fi
                wait=$((wait * 2))
                ;;
            UNKNOWN) wait=$((wait * 2)) ;;
        esac
        ((wait < 900)) || wait=900
        sleep "$wait"
    done
    say "the run has ended: ${found:-$now}"
    [[ $keep ]] || delete || fail "$name could not be deleted, and costs" 1
    [[ $found == finished ]] || fail "${found:-$now}; what the workers printed: $launch/logs" 1
}

watch_dry() {
    echo "# every $every s, until worker 0 has ended with status 0:"
    echo "$(quoted gcloud storage cat "$launch/ended-*") 2>/dev/null"
    printf '%s\n' "$(tpus queued-resources describe "$name" '--format=value(state.state)')" \
        "$(tpus tpu-vm describe "$name" '--format=value(state)')"
    echo '# where it is SUSPENDED or FAILED, or the node PREEMPTED, TERMINATED or STOPPED:'
    delete
    echo '# then, and where there is none:'
    create
    [[ $keep ]] || { echo '# at the end:' && delete; }
}

case $command in
    create)
        forget_end
        send
        create || fail "$name was not created: see above; launch/tpu.sh watch would try again" 1
        ;;
    watch) watch ;;
    delete) delete || fail "$name was not deleted, and costs if it is there" 1 ;;
    setup | run)
        forget_end
        send
        boot
        ;;
    stop) on_all_workers 'if systemctl is-active -q bagssl; then sudo systemctl stop bagssl; fi' ;;
    status)
        attempt "$(tpus queued-resources describe "$name" '--format=value(state.state)')" ||
            say "$name: there is none, or no answer"
        act "$(quoted gcloud storage cat "$launch/ended-*") 2>/dev/null || echo 'the run has not ended'"
        act "$(quoted gcloud storage ls "$workdir/checkpoints/") 2>/dev/null | sort -V | tail -n 1 || echo 'no checkpoint yet'"
        act "$(quoted gcloud storage cat --range=-2000 "$launch/logs/worker-$worker.log") 2>/dev/null | tail -n 3 || echo 'no log yet'"
        ;;
    logs)
        if [[ $follow ]]; then
            act "$(on_worker '--command=tail -n 100 -F /opt/bagssl/run.log')"
        else
            act "$(quoted gcloud storage cat "$launch/logs/worker-$worker.log")"
        fi
        ;;
    ssh)
        if [[ $given ]]; then act "$(on_worker "--command=${arguments[*]}")"; else act "$(on_worker)"; fi
        ;;
esac
