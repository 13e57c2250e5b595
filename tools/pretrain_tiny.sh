#!/bin/bash
# Trains ecaresnet14d_tiny on Tiny ImageNet, for resfit/weights: about 16 hours on two idle cores, most of it resumable.
#
#     TINY_DATA=FOLDER TINY_RUNS=FOLDER bash tools/pretrain_tiny.sh
#
# TINY_DATA holds tiny-imagenet-train.tar.gz, tiny-imagenet-val.tar.gz and tiny-imagenet-classes.json; TINY_RUNS receives
# a folder a stage. A stage whose model.safetensors is there is skipped; an interrupted one goes on at its checkpoint.
set -euo pipefail
: "${TINY_DATA:?folder of the archives}" "${TINY_RUNS:?folder of the runs}"
common=(
  "$TINY_DATA/tiny-imagenet-train.tar.gz" --validation "$TINY_DATA/tiny-imagenet-val.tar.gz"
  --labels "$TINY_DATA/tiny-imagenet-classes.json" --model ecaresnet14d_tiny --size 64 --no-tensorboard
  --batch-size 128 --learning-rate 0.2 --weight-decay 4e-4 --crop-scale 0.25 --colour 0.3
  --sizes 0:40,0.35:48,0.7:56,0.9:64
)

stage() { # name, then the arguments of resfit pretrain
  local output="$TINY_RUNS/$1"
  shift
  if [ -f "$output/model.safetensors" ]; then
    echo "$output is finished"
    return
  fi
  mkdir -p "$output"
  resfit pretrain "${common[@]}" -o "$output" "$@"
}

# 1: from the labels alone
stage 1-labels --epochs 60 --mixup 0.2 --cutmix 1.0
