#!/usr/bin/env bash
# Stage 2 on one node: `bash scripts/stage2_ab_server_train.sh config=FILE server_gpus=0,1,2 train_gpus=3 key=value …`
set -euo pipefail
PATH="$(dirname "$0")/../.venv/bin:$PATH" exec boxloop up "$@"
