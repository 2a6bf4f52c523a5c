#!/usr/bin/env bash
# A run on TPU VMs, without Kubernetes: the same command on every worker of a slice.
#   NAME=opd ZONE=us-east5-a BUCKET=my-bucket launch/tpu_vm.sh create | install | train | stop | delete
# TYPE, IMAGE: of the machine. RESERVED=1 takes a reservation, SPOT=1 what is left over. BRANCH: of the sources.
set -euo pipefail
: "${NAME:?the name of the TPU}" "${ZONE:?its zone}"
TYPE=${TYPE:-v6e-16} IMAGE=${IMAGE:-v2-alpha-tpuv6e}
SOURCE=${SOURCE:-.}

# What comes behind runs on all workers at once.
everywhere() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

case "${1:-}" in
  create)
    gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="$IMAGE" \
      ${RESERVED:+--reserved} ${SPOT:+--spot}
    ;;
  install)
    git -C "$SOURCE" archive --format=tar.gz --output=/tmp/opd_jax.tar.gz HEAD
    gcloud compute tpus tpu-vm scp /tmp/opd_jax.tar.gz "$NAME": --zone="$ZONE" --worker=all
    everywhere 'mkdir -p opd_jax && tar -xzf opd_jax.tar.gz -C opd_jax && python3 -m venv venv &&
      venv/bin/pip install --quiet --editable "opd_jax[tpu,gcs]"'
    ;;
  train)  # the same command goes on where it was cut off
    everywhere "cd opd_jax && exec ../venv/bin/opd train --distributed \
      --gin_file experiments/recipes/qwen3_1p7b_from_8b.gin \
      --gin_file experiments/layouts/pod.gin \
      --workdir gs://${BUCKET:?of the runs}/runs/$NAME"
    ;;
  stop)  # the step under way ends, and the run saves
    everywhere 'pkill -TERM -f "bin/opd train" || true'
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet
    ;;
  *)
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
    ;;
esac
