#!/bin/bash
# Trains ecaresnet14d_tiny on Tiny ImageNet, for resfit/weights: about 16 hours on two idle cores.
#
#     TINY_DATA=FOLDER TINY_RUNS=FOLDER bash tools/pretrain_tiny.sh
#
# TINY_DATA holds tiny-imagenet-train.tar.gz, tiny-imagenet-val.tar.gz and tiny-imagenet-classes.json; TINY_RUNS receives
# a folder a stage. A stage whose model.safetensors is there is skipped; an interrupted one goes on at its checkpoint.
#
# Afterwards, with the best stage's file as FILE:
#     python benchmarks/tiny_imagenet.py $TINY_DATA/tiny-imagenet-val.tar.gz --model FILE --sizes 64,80,96,128
#     python benchmarks/cifar_probe.py cifar10-jpeg.tar.gz --model FILE
# and, if it is to be in the package: src/resfit/weights/ecaresnet14d_tiny.safetensors and .md, and a row in
# src/resfit/checkpoints/registry.csv like that of resnet10_tiny.
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

# 2: the same network anew, with the first as its teacher (born-again networks, Furlanello et al. 2018, arXiv:1805.04770)
stage 2-distilled --epochs 80 --mixup 0.2 --cutmix 1.0 --label-smoothing 0 \
  --teacher "$TINY_RUNS/1-labels/model.safetensors" --distillation 0.7 --temperature 2 --teacher-views 16
