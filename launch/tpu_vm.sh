#!/usr/bin/env bash
# Runs one jaxlora command on a new Cloud TPU VM, or on every host of a new slice, and deletes the TPU at the end.
#
#   launch/tpu_vm.sh --name=clinical --zone=us-central1-a --type=v5litepod-8 --spot -- \
#     jaxlora train --config=configs/mine.py --workdir=gs://YOUR_BUCKET/clinical
#
#   --name=NAME --zone=ZONE --type=TYPE   the TPU to create; TYPE is for example v5litepod-8 or v6e-16
#   --version=VERSION                     its runtime (default: the one for JAX on that type)
#   --inputs=gs://BUCKET/FOLDER           copied to inputs/ on every host: the base model, prepared data
#   --project=PROJECT                     default: the project gcloud is set to
#   --spot                                cheaper; when it is preempted, another is created and the command is run again
#   --queued                              wait for capacity in the queue (queued resources)
#   --keep                                do not delete the TPU at the end: it goes on costing money
#   --dry-run                             print the commands, run none
#
# `jaxlora train` resumes from its workdir: run again, it goes on where the preempted run stopped, if that is on gs://.
# Only the files that git tracks travel to the TPU, with their changes: no data/, no runs/.
set -euo pipefail

attempts=10 # TPUs created, one after the other, before giving up
poll_seconds=${POLL_SECONDS:-30}
name="" zone="" type="" version="" inputs="" project="" spot="" queued="" keep="" dry_run=""

say() { echo "tpu_vm: $*" >&2; }
die() { say "error: $2" && exit "$1"; } # STATUS MESSAGE

quote() { # the words as one line that a shell reads back as the same words
  local word line="" apostrophe="'\\''"
  for word in "$@"; do
    case $word in
      *[!A-Za-z0-9_./:=,@%+-]* | "") line+=" '${word//\'/$apostrophe}'" ;;
      *) line+=" $word" ;;
    esac
  done
  echo "${line# }"
}

go() { if [[ $dry_run ]]; then quote "$@"; else quote "$@" >&2 && "$@"; fi; }
tpu() { go gcloud compute tpus "$@" --zone="$zone" ${project:+--project="$project"} --quiet; }
on_workers() { tpu tpu-vm ssh "$name" --worker=all --ssh-flag=-oServerAliveInterval=30 --command="$1"; }

state() { # tpu-vm state | queued-resources state.state
  gcloud compute tpus "$1" describe "$name" --format="value($2)" --zone="$zone" ${project:+--project="$project"} \
    2>/dev/null || echo UNKNOWN
}

create() {
  if [[ ! $queued ]]; then
    tpu tpu-vm create "$name" --accelerator-type="$type" --version="$version" ${spot:+--spot}
    return
  fi
  tpu queued-resources create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$version" \
    ${spot:+--spot} || return
  [[ $dry_run ]] && return
  local now
  while now=$(state queued-resources state.state) && [[ $now != ACTIVE ]]; do # may take days; Ctrl-C leaves the queue
    [[ $now == FAILED || $now == SUSPEND* ]] && return 1
    say "in the queue: $now"
    sleep "$poll_seconds"
  done
}

install() { # the runtimes carry Python 3.10 and jaxlora needs 3.11: uv brings its own
  local fetch="; mkdir -p inputs; gcloud storage rsync --recursive '$inputs' inputs"
  tpu tpu-vm scp "$archive" "$name:jaxlora.tar.gz" --worker=all &&
    on_workers "set -e; mkdir -p jaxlora; tar -xzf jaxlora.tar.gz -C jaxlora; cd jaxlora; \
python3 -m pip install -q --user uv; python3 -m uv venv -q --clear --python 3.12 .venv; \
python3 -m uv pip install -q --python .venv/bin/python '.[tpu]'${inputs:+$fetch}"
}

follow() { # until the command ends; see attach.sh for the status 3
  local status now
  for _ in 1 2 3 4 5; do
    status=0
    on_workers "bash jaxlora/launch/attach.sh $(quote "$@")" || status=$?
    [[ $status == 0 ]] && return
    sleep "$poll_seconds" # a preempted TPU says so a little later
    now=$(state tpu-vm state)
    [[ $status == 3 || ($now != READY && $now != UNKNOWN) ]] && return "$status"
    say "connection lost; attaching again"
  done
  return 1
}

delete() {
  if [[ $queued ]]; then tpu queued-resources delete "$name" --force; else tpu tpu-vm delete "$name"; fi
}

# shellcheck disable=SC2329 # the trap calls it
finish() {
  local status=$?
  trap '' INT TERM HUP
  [[ $dry_run ]] || rm -f "$archive"
  if [[ $keep ]]; then
    say "kept: $name in $zone"
  elif ! delete; then
    say "error: could not delete $name in $zone; if it exists, it costs money"
    status=1
  fi
  exit "$status"
}

while (($#)); do
  flag=${1%%=*} flag=${flag#--}
  case $1 in
    --name=* | --zone=* | --type=* | --version=* | --inputs=* | --project=*) printf -v "$flag" %s "${1#*=}" ;;
    --spot | --queued | --keep | --dry-run) printf -v "${flag//-/_}" yes ;;
    --) shift && break ;;
    *) die 2 "unknown flag, or a flag without its =VALUE: $1" ;;
  esac
  shift
done
for flag in name zone type; do
  [[ ${!flag} ]] || die 2 "missing flag: --$flag=VALUE"
done
[[ ${1:-} == jaxlora ]] || die 2 "missing command: end with -- jaxlora VERB --config=FILE --workdir=gs://BUCKET/FOLDER"
case ${version:-$type} in
  "$version") ;;
  v6e-*) version=v2-alpha-tpuv6e ;;
  v5p-*) version=v2-alpha-tpuv5 ;;
  v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  v[234]-*) version=tpu-ubuntu2204-base ;;
  *) die 2 "no runtime is known for --type=$type: add --version=VERSION" ;;
esac
[[ " $* " == *" --workdir"[=\ ]"gs://"* ]] ||
  say "warning: --workdir is not gs://: the hosts of a slice do not share it, and it is deleted with the TPU"

root=$(cd "$(dirname "$0")/.." && pwd)
commit=$(git -C "$root" stash create) || die 1 "what travels to the TPU is what git tracks, and $root has no commit"
archive=jaxlora.tar.gz
if [[ ! $dry_run ]]; then
  command -v gcloud >/dev/null || die 1 "gcloud is not installed"
  # A TPU of that name is somebody's: it must not be deleted at the end.
  [[ $(state tpu-vm state)$(state queued-resources state.state) == UNKNOWNUNKNOWN ]] ||
    die 1 "$name exists in $zone: choose another --name"
  archive=$(mktemp)
fi
trap finish EXIT
trap 'exit 130' INT TERM HUP
go git -C "$root" archive --format=tar.gz --output="$archive" "${commit:-HEAD}"
for ((attempt = 1; attempt <= attempts; attempt++)); do
  if create && install && follow "$@"; then exit; fi
  [[ $(state tpu-vm state) != READY ]] || die 1 "the command, or its installation, failed on $name; its output is above"
  say "no TPU, or it was taken away (attempt $attempt of $attempts)"
  delete || true
  sleep "$poll_seconds"
done
die 1 "gave up after $attempts attempts"
