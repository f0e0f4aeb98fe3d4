#!/usr/bin/env bash
# Trains on TPUs or GPUs of a GKE cluster, as a JobSet (launch/gke/tpu.yaml, gpu.yaml).
#
#     launch/gke.sh COMMAND NAME [OPTION...] [-- --config=configs/NAME.py ...]
#
# Commands:
#   create   starts the training; preempted it goes on by itself, after a crash ten times
#   status   the JobSet and its pods
#   logs     what the first process prints, as it comes
#   delete   ends the training, which saves, and frees its nodes; create goes on
#
# What follows -- is for `python -m bagssl_jax.main`, which gets --workdir as well. Options of create:
#   --image=IMAGE               that launch/image.sh has built and pushed
#   --workdir=gs://BUCKET/PATH  of the run; the bucket is mounted as /bucket, for data.dir
#   --accelerator=NAME          of the nodes' label: tpu-v5-lite-podslice, nvidia-h100-80gb, ...
#   --topology=4x8              of a TPU slice
#   --hosts=N                   of GPUs: nodes (1)
#   --devices=N                 chips or GPUs a host (TPU 4, GPU 8)
#   --cache=PATH                in the bucket, of compiled programs (cache)
#   --service-account=NAME      that may read and write the bucket (default)
# and of all:
#   --namespace=NAME            (kubectl's own)
#   --dry-run                   print the commands that would be run
set -euo pipefail

fail() { # MESSAGE [STATUS]
    echo "error: $1" >&2
    exit "${2:-2}"
}

for word in "$@"; do
    [[ $word != -- ]] || break
    case $word in -h | --help) sed -n '2,/^set -/s/^# \{0,1\}//p' "$0" && exit ;; esac
done
command=${1:-} name=${2:-}
[[ $command =~ ^(create|status|logs|delete)$ ]] ||
    fail "'$command' is no command: give create, status, logs or delete"
# The names of the pods, with what is added, must be labels of DNS.
[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
    fail "'$name' cannot name a JobSet: after $command, give up to 40 small letters, digits and dashes"
shift 2
image='' workdir='' accelerator='' topology='' hosts='' devices='' cache=cache
service_account=default namespace='' dry='' arguments=()
while (($#)); do
    case $1 in
        --image=?* | --workdir=?* | --accelerator=?* | --topology=?* | --hosts=?* | --devices=?* | \
            --cache=?* | --service-account=?* | --namespace=?*)
            value=${1#*=}
            [[ $value =~ ^[A-Za-z0-9@:/._=-]+$ ]] || fail "$1: give letters, digits and @:/._=- alone"
            key=${1%%=*} && key=${key#--}
            printf -v "${key//-/_}" %s "$value"
            ;;
        --dry-run) dry=1 ;;
        --)
            shift
            arguments=("$@")
            break
            ;;
        *) fail "'$1' is no option (--help lists them); what is for the training follows --" ;;
    esac
    shift
done

# Else & in an argument would be the word that it takes the place of (bash 5.2).
shopt -u patsub_replacement 2>/dev/null || true
root=$(cd "$(dirname "$0")/.." && pwd)
kubectl=(kubectl)
[[ -z $namespace ]] || kubectl+=("--namespace=$namespace")

# Runs a line of shell, or prints it.
act() {
    if [[ $dry ]]; then printf '%s\n' "$1"; else eval "$1" || fail "$name: kubectl failed, see above" 1; fi
}

manifest() {
    local text word quoted='' kind=gpu
    [[ ! $tpu ]] || kind=tpu
    for word in "--workdir=$workdir" "${arguments[@]}"; do
        word=${word//\\/\\\\}
        quoted+="${quoted:+, }\"${word//\"/\\\"}\"" # as JSON, which is YAML
    done
    text=$(<"$root/launch/gke/$kind.yaml")
    text=${text//ACCELERATOR/$accelerator}
    text=${text//TOPOLOGY/\"$topology\"}
    text=${text//SERVICE_ACCOUNT/$service_account}
    text=${text//IMAGE/$image}
    text=${text//HOSTS/$hosts}
    text=${text//DEVICES/$devices}
    text=${text//BUCKET/$bucket}
    text=${text//\/CACHE/\/$cache}
    text=${text//NAME/$name}
    printf '%s\n' "${text//ARGUMENTS/$quoted}"
}

case $command in
    create)
        for key in image workdir accelerator; do [[ ${!key} ]] || fail "--$key=... is missing"; done
        [[ $workdir == gs://*/* ]] || fail "--workdir=$workdir: give gs://BUCKET/PATH"
        bucket=${workdir#gs://} && bucket=${bucket%%/*}
        ((${#arguments[@]})) || fail 'nothing to train: give -- --config=FILE'
        [[ "${arguments[*]}" != *[$'\n\t']* ]] || fail 'an argument holds a line break or a tab'
        [[ $accelerator == tpu-* ]] && tpu=1 || tpu=''
        devices=${devices:-$((tpu ? 4 : 8))}
        [[ $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices=$devices: give a number"
        if [[ $tpu ]]; then
            [[ $topology =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || fail "--topology=$topology: give one such as 4x8"
            [[ -z $hosts ]] || fail '--hosts is for GPUs: of TPUs it follows from --topology'
            chips=$((${topology//x/*}))
            ((chips % devices == 0)) || fail "--topology=$topology is of $chips chips, not of $devices a host"
            hosts=$((chips / devices))
        else
            [[ -z $topology ]] || fail '--topology is for TPUs, whose accelerators are named tpu-...'
            hosts=${hosts:-1}
            [[ $hosts =~ ^[1-9][0-9]*$ ]] || fail "--hosts=$hosts: give a number"
        fi
        act "${kubectl[*]} apply -f - <<'END'"$'\n'"$(manifest)"$'\nEND'
        ;;
    status)
        act "${kubectl[*]} get jobset $name"
        act "${kubectl[*]} get pods --selector=jobset.sigs.k8s.io/jobset-name=$name"
        ;;
    logs) act "${kubectl[*]} logs --follow --tail=100 --selector=jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0" ;;
    delete) act "${kubectl[*]} delete jobset $name" ;;
esac
