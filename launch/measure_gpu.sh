#!/usr/bin/env bash
# Measures everything on a machine with one accelerator, and writes one JSON file.
#
#     DATA_DIR=DIR launch/measure_gpu.sh OUT.json [--dry-run]
#
# DIR holds CIFAR-10 as `python -m bagssl_jax.prepare cifar10` leaves it. In turns, ROUNDS times:
# the training step at EMP-SSL's sizes here and in PyTorch (torch.compile, autocast, channels_last),
# and the same for ResNet-50 on patches of 64x64; on equal work, without augmentation. Then once:
# the recipe's step and its pipeline, embedding, the pipeline alone, and the recipe for some epochs
# with its probe. OUT.json has the card, versions, commit, every line that was printed, and the
# ratios. What fails is in it too, as its last line of standard error, and does not stop the rest.
# --dry-run prints the commands.
#
# In the environment, with what they are if not given:
#   PYTHON (python), TORCH_PYTHON (PYTHON): of an environment with bagssl_jax, and with PyTorch
#   ROUNDS (3), STEPS (50) measured a round, EPOCHS (1) of the recipe
#   IMAGES (100), PATCHES (20), WIDTH (64), PROJECTOR (4096,4096,1024), DTYPE (bfloat16)
#   IMAGES50 (IMAGES): of the ResNet-50, where its step needs too much memory
#   TORCH_COMPILE (1): 0 goes without
#   PROBE_PATCHES (1,16,64,128), PROBE_SPACES (h,hidden1): of the recipe's probe
#   MORE: overrides of other keys, for every command of this project
set -euo pipefail

OUT=${1:?OUT.json is missing: launch/measure_gpu.sh OUT.json}
case $OUT in /*) ;; *) OUT=$PWD/$OUT ;; esac
DRY_RUN=${2:-}
DATA_DIR=${DATA_DIR:?DATA_DIR=DIR is missing: the directory of the prepared CIFAR-10}
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python} TORCH_PYTHON=${TORCH_PYTHON:-${PYTHON:-python}}
ROUNDS=${ROUNDS:-3} STEPS=${STEPS:-50} EPOCHS=${EPOCHS:-1}
IMAGES=${IMAGES:-100} PATCHES=${PATCHES:-20} WIDTH=${WIDTH:-64}
PROJECTOR=${PROJECTOR:-4096,4096,1024} DTYPE=${DTYPE:-bfloat16} IMAGES50=${IMAGES50:-$IMAGES}
TORCH_COMPILE=${TORCH_COMPILE:-1}
PROBE_PATCHES=${PROBE_PATCHES:-1,16,64,128} PROBE_SPACES=${PROBE_SPACES:-h,hidden1}
read -ra MORE <<<"${MORE:-}"

PARTS=$OUT.parts
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PARTS/cache}
# Else this project would use every GPU, and PyTorch one.
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}

RECIPE=(--config=configs/cifar10.py:tcr "--config.data.dir=$DATA_DIR"
    "--config.data.batch_size=$IMAGES" "--config.patches.count=$PATCHES"
    "--config.encoder.width=$WIDTH" "--config.projector.widths=$PROJECTOR"
    "--config.encoder.dtype=$DTYPE" --config.encoder.remat=none
    --config.data.crop_on=device "--config.benchmark.train.steps=$STEPS")
PLAIN=(--config.augment.flip=0 --config.augment.jitter=0 --config.augment.grey=0
    --config.augment.blur=0 --config.augment.solarize=0 --config.benchmark.train.stages=step)
RESNET50=(--config.encoder.name=resnet50 --config.encoder.stem=imagenet
    --config.patches.resize=64 "--config.data.batch_size=$IMAGES50")
TORCH=("--patches=$PATCHES" "--width=$WIDTH" "--projector=$PROJECTOR" "--dtype=$DTYPE"
    "--steps=$STEPS")
[[ $TORCH_COMPILE == 0 ]] || TORCH+=(--compile)

# run NAME COMMAND...: what it prints goes to NAME.jsonl, and what went wrong to NAME.err.
run() {
    local name=$1 start=$SECONDS status=0
    shift
    if [[ $DRY_RUN == --dry-run ]]; then
        printf '%q ' "$@"
        printf '\n'
        return
    fi
    echo "$name" >&2
    "$@" >"$PARTS/$name.jsonl" 2>"$PARTS/$name.err" || status=$?
    echo "$status $((SECONDS - start))" >"$PARTS/$name.status"
}

benchmark() {
    run "$2" "$PYTHON" -m bagssl_jax.benchmark "$1" "${RECIPE[@]}" "${@:3}" "${MORE[@]}"
}

[[ $DRY_RUN == --dry-run ]] || { rm -rf "$PARTS" && mkdir -p "$PARTS"; }
for ((round = 1; round <= ROUNDS; round++)); do
    benchmark train "resnet18.ours.$round" "${PLAIN[@]}"
    run "resnet18.torch.$round" "$TORCH_PYTHON" launch/torch_step.py --arch=resnet18 \
        --stem=cifar --size=32 "--images=$IMAGES" "${TORCH[@]}"
    benchmark train "resnet50.ours.$round" "${PLAIN[@]}" "${RESNET50[@]}"
    run "resnet50.torch.$round" "$TORCH_PYTHON" launch/torch_step.py --arch=resnet50 \
        --stem=imagenet --size=64 "--images=$IMAGES50" "${TORCH[@]}"
done
benchmark train train
benchmark embed embed
benchmark data data
run recipe "$PYTHON" -m bagssl_jax.main "${RECIPE[@]}" "--workdir=$PARTS/run" \
    "--config.train.epochs=$EPOCHS" "--config.probe.patches=$PROBE_PATCHES" \
    "--config.probe.spaces=$PROBE_SPACES" "${MORE[@]}"
run collect "$PYTHON" launch/collect_measures.py "$PARTS" "$OUT"
[[ $DRY_RUN == --dry-run ]] || { cat "$PARTS/collect.err" >&2 && cat "$PARTS/collect.jsonl"; }
