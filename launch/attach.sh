#!/usr/bin/env bash
# Runs a command once, detached from the connection, and follows its output until it ends. For tpu_vm.sh, on the TPU VM.
#
# gcloud repeats an ssh command whose connection broke. A repeat of this one attaches to the job that is already
# running; a second job would find the TPU taken. It ends with 0, or with 3 when the command itself failed: gcloud says
# 1 or 255 of a broken connection, and only that is worth another try.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .job && touch .job/log
PATH="$PWD/.venv/bin:$PATH"
export JAXLORA_DISTRIBUTED=1 # every host of a slice runs this; JAX asks the metadata server who the others are

running() { [[ -f .job/pid ]] && kill -0 "$(<.job/pid)" 2>/dev/null; }

if [[ ! -f .job/status ]] && ! running; then # not yet started, or ended by a reboot
  # shellcheck disable=SC2016 # expanded by the detached shell
  nohup bash -c '"$@"; echo $? >.job/status' job "$@" >>.job/log 2>&1 </dev/null &
  echo $! >.job/pid
fi
tail -n 50 -f --pid="$(<.job/pid)" .job/log
[[ -f .job/status && $(<.job/status) == 0 ]] || exit 3
