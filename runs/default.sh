#!/usr/bin/env bash
# The embedded default model, from photographs to weights:
#   PHOTOS=hr MASKS=masks FONTS=/usr/share/fonts/truetype HELDOUT=heldout TEACHERS=weights FEATURES=vgg.safetensors runs/default.sh OUTPUT
# PHOTOS: folder of images; MASKS: <stem>.json of each, as segment-anything's amg.py --convert-to-rle writes them; FONTS: folder of fonts for
# pictures of text; HELDOUT: photographs that are not in PHOTOS, for scores on the way; TEACHERS: folder with imdn_plus_x4.safetensors and
# lkdn_x4.pth (runs/teachers.py checks their SHA-256); FEATURES: a VGG16's first three stages for the feature loss.
# Paths count from the root of the repository. Interrupted, the same command goes on. Needs: pip install -c constraints.txt -e '.[train]'
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:?the folder to write}
: "${PHOTOS:?folder of photographs}" "${MASKS:?folder of masks}" "${FONTS:?folder of fonts}" "${HELDOUT:?folder of photographs for validation}"
: "${TEACHERS:?folder of the weights of teachers}" "${FEATURES:?weights of the feature loss}"
# Keep freed memory instead of returning it to the system: training is 2x faster with it (docs/log.md).
export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=200000000

common=(--resume --set photos="$output/data" --set diffusion.loss.features_file="$FEATURES"
    --set validation.photos="$HELDOUT" --set validation.images=28 --set validation.side=256 --set validation.distance=true)
learn=(--stage encoder "${common[@]}" --set 'encoder.loss.targets={hr: 0.15, lkdn: 0.85}')

# The photographs with 64 pictures of text among them, which have no regions, and what a teacher makes of each.
mkdir -p "$output/pictures"
ln -sf "$(realpath "$PHOTOS")"/* "$output/pictures"
python runs/text_pictures.py "$PHOTOS" "$FONTS" "$output/pictures" --count 64
python runs/teachers.py lkdn "$TEACHERS/lkdn_x4.pth" "$output/pictures" "$output/lkdn"
samdiffsr prepare -i "$output/pictures" --masks "$MASKS" --missing-masks zero --targets lkdn="$output/lkdn" -o "$output/data" --workers 2

# The encoder: block by block from another teacher; as a whole on clean pictures; with the level of degradation as an input, on small crops and
# on larger ones; at last mostly on clean pictures again.
small=(--set encoder.data.crop_lr=32 --set encoder.data.batch=8)
python runs/blocks.py "$output/data" "$TEACHERS/imdn_plus_x4.safetensors" "$output/blocks" --updates 4000
samdiffsr train light-cpu "${learn[@]}" "${small[@]}" --set output="$output/clean" --set encoder.start="$output/blocks" \
    --set encoder.network.level=false --set encoder.data.degrade=none --set encoder.optim.schedule=constant --set encoder.optim.updates=6800
samdiffsr train light-cpu "${learn[@]}" "${small[@]}" --set output="$output/level" --set encoder.start="$output/clean/encoder/weights" \
    --set encoder.data.clean_share=0.3333 --set encoder.optim.updates=7500
samdiffsr train light-cpu "${learn[@]}" --set output="$output/large" --set encoder.start="$output/level/encoder/weights" --set seed=3
samdiffsr train light-cpu "${learn[@]}" --set output="$output/fine" --set encoder.start="$output/large/encoder/weights" --set seed=4 \
    --set encoder.data.clean_share=0.85 --set encoder.optim.updates=5000 --set encoder.optim.learning_rate=5.0e-4
samdiffsr train light-cpu "${learn[@]}" --set output="$output/finer" --set encoder.start="$output/fine/encoder/weights" --set seed=6 \
    --set encoder.data.clean_share=0.8 --set encoder.optim.updates=9000 --set encoder.optim.learning_rate=5.0e-4 --set encoder.optim.ema_decay=0.999
# Then mostly from the photographs at a half and a third of their size, which it does not know by heart.
python runs/sizes.py "$output/data" "$PHOTOS" "$TEACHERS/lkdn_x4.pth" "$output/finer/encoder/weights" "$output/encoder/weights"
python runs/level_head.py "$output/data" "$output/encoder/weights"

# The denoiser sees the photographs at two other sizes too, with their regions.
python runs/reduced.py "$PHOTOS" "$MASKS" "$output/reduced"
ln -sf "$(realpath "$output/pictures")"/* "$output/reduced/pictures"
ln -sf "$(realpath "$MASKS")"/* "$output/reduced/masks"
samdiffsr prepare -i "$output/reduced/pictures" --masks "$output/reduced/masks" --resize-masks --missing-masks zero -o "$output/sizes" --workers 2
denoise=(--stage diffusion "${common[@]}" --set photos="$output/sizes")

# The denoiser: first without a discriminator, then with one, which sees the checkerboard that the feature loss alone paints (docs/log.md).
samdiffsr train light-cpu "${denoise[@]}" --set output="$output/start" --set diffusion.encoder="$output/encoder/weights" \
    --set diffusion.loss.features_weight=0.2 --set diffusion.loss.efficientnet_weight=0 --set diffusion.loss.adversarial_weight=0 --set diffusion.last_step_share=0 --set diffusion.rollout=0.5 \
    --set diffusion.optim.optimizer=muon --set diffusion.optim.updates=2000 --set diffusion.optim.learning_rate=1.0e-3 --set diffusion.optim.warmup=100
samdiffsr train light-cpu "${denoise[@]}" --set output="$output" --set diffusion.start="$output/start/model" --set seed=1
python runs/ship.py "$output/model" src/samdiffsr/weights/default
python runs/seal.py  # what `samdiffsr doctor` compares with
