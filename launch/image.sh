#!/usr/bin/env bash
# Builds a container image of the committed code, with pinned versions.
#
#     launch/image.sh --tag=REGISTRY/bagssl:NAME --platform=cpu|cuda|tpu [--commit=REVISION] [--push]
#         [--dry-run]
#
# The image starts `python -m bagssl_jax.main`. --commit: of the code (HEAD). --push: to the
# registry, where a cluster finds it. --dry-run: print the commands that would be run.
set -euo pipefail

fail() { # MESSAGE [STATUS]
    echo "error: $1" >&2
    exit "${2:-2}"
}

tag='' platform='' commit=HEAD push='' dry=''
while (($#)); do
    case $1 in
        -h | --help) sed -n '2,/^set -/s/^# \{0,1\}//p' "$0" && exit ;;
        --tag=*) tag=${1#*=} ;;
        --platform=*) platform=${1#*=} ;;
        --commit=*) commit=${1#*=} ;;
        --push) push=1 ;;
        --dry-run) dry=1 ;;
        *) fail "'$1' is no option (--help lists them)" ;;
    esac
    shift
done
[[ $tag =~ ^[A-Za-z0-9][A-Za-z0-9._/:-]*$ ]] || fail "--tag=$tag: give a name such as host/bagssl:1"
[[ $platform =~ ^(cpu|cuda|tpu)$ ]] || fail "--platform=$platform: give cpu, cuda or tpu"
root=$(cd "$(dirname "$0")/.." && pwd)
revision=$(git -C "$root" rev-parse --verify -q "$commit^{commit}") ||
    fail "--commit=$commit is not in $root"

act() {
    if [[ $dry ]]; then echo "$1"; else eval "$1" || fail "this failed: $1" 1; fi
}

act "git -C $(printf %q "$root") archive $revision | docker build --build-arg=PLATFORM=$platform --tag=$tag --file=launch/Dockerfile -"
[[ ! $push ]] || act "docker push $tag"
