#!/bin/sh
# The same network in TensorFlow Serving, which knows nothing of resfit. Clients need not change: names, signatures and
# answers are those of `resfit serve`.
#
#   resfit export flowers.resfit -o exported --format tf_saved_model
#   deploy/tensorflow-serving.sh exported/flowers flowers
set -eu
folder=${1:?the folder NAME that holds NAME/1/}
name=${2:?the name of the model}
exec docker run --rm --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --user 10001:10001 \
    -p 127.0.0.1:8501:8501 -v "$(realpath "$folder"):/models/$name:ro" -e "MODEL_NAME=$name" tensorflow/serving
