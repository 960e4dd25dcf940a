#!/usr/bin/env bash
# Does structure modulation help? Pairs of small denoisers that differ in nothing but the shift of the noise:
#   DATA=data ENCODER=run/encoder/weights HELDOUT=hr runs/control.sh OUTPUT
# DATA: a prepared folder; ENCODER: a trained light encoder; HELDOUT: HR photographs that are not in DATA.
# Same weights to start from, same crops, times and noise in each pair; another seed is another pair. Paths count from the root of the repository.
# Interrupted, the same command goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:?the folder to write}
: "${DATA:?prepared folder}" "${ENCODER:?folder of a trained encoder}" "${HELDOUT:?folder of photographs}"
: "${UPDATES:=800}" "${SEEDS:=0 1}" "${SHIFTS:=none released}"
export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=200000000  # runs/default.sh

models=()
for seed in $SEEDS; do
    for shift in $SHIFTS; do
        folder=$output/$shift-$seed
        samdiffsr train light-cpu --stage diffusion --resume \
            --set photos="$DATA" --set output="$folder" --set seed="$seed" --set diffusion.shift="$shift" --set diffusion.encoder="$ENCODER" \
            --set diffusion.network.width=64 --set diffusion.network.blocks=4 --set diffusion.optim.updates="$UPDATES" \
            --set diffusion.loss.features_weight=0
        for steps in 1 2 4; do models+=(-m "$folder/model@steps=$steps"); done
    done
done
samdiffsr evaluate --hr "$HELDOUT" "${models[@]}" -o "$output/report" --overwrite "${@:2}"
