#!/usr/bin/env bash
# The embedded default model, from photographs to weights:
#   PHOTOS=hr MASKS=masks HELDOUT=heldout FEATURES=vgg.safetensors runs/default.sh OUTPUT
# PHOTOS: folder of images; MASKS: <stem>.json of each, as segment-anything's amg.py --convert-to-rle writes them; HELDOUT: photographs that are
# not in PHOTOS, for scores on the way; FEATURES: a VGG16's first three stages for the feature loss.
# Paths count from the root of the repository. Interrupted, the same command goes on. Needs: pip install -c constraints.txt -e '.[train]'
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:?the folder to write}
: "${PHOTOS:?folder of photographs}" "${MASKS:?folder of masks}" "${HELDOUT:?folder of photographs for validation}"
: "${FEATURES:?weights of the feature loss}"
# Keep freed memory instead of returning it to the system: training is 2x faster with it (docs/log.md).
export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=200000000

common=(--resume --set photos="$output/data" --set diffusion.loss.features_file="$FEATURES"
    --set validation.photos="$HELDOUT" --set validation.images=28 --set validation.side=256 --set validation.distance=true)

samdiffsr prepare -i "$PHOTOS" --masks "$MASKS" -o "$output/data" --workers 2
samdiffsr train light-cpu "${common[@]}" --set output="$output"
# Then against a discriminator, which sees the checkerboard that the feature loss alone paints (docs/log.md).
samdiffsr train light-cpu --stage diffusion "${common[@]}" --set output="$output/finish" \
    --set diffusion.encoder="$output/encoder/weights" --set diffusion.start="$output/model" \
    --set diffusion.loss.features_weight=0.3 --set diffusion.loss.adversarial_weight=0.02 \
    --set diffusion.loss.adversarial_start=100 --set diffusion.last_step_share=0.5 \
    --set diffusion.optim.optimizer=adamw --set diffusion.optim.updates=1800 --set diffusion.optim.warmup=50 \
    --set diffusion.optim.learning_rate=2.0e-4 --set diffusion.optim.beta2=0.99 --set diffusion.optim.ema_decay=0.998 \
    --set diffusion.steps=2 --set diffusion.detail=0.7 --set seed=1
python runs/ship.py "$output/finish/model" src/samdiffsr/weights/default
python runs/seal.py  # what `samdiffsr doctor` compares with
