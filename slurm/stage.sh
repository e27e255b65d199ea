# Sourced by the sbatch files: starts the ranks of a job, and sends the job back to the queue when it was stopped with a checkpoint written.
# shellcheck shell=bash
[ -r "${SLURM_SUBMIT_DIR:?this file is for sbatch}/slurm/env.sh" ] || {
  echo "uqa: SLURM_SUBMIT_DIR = $SLURM_SUBMIT_DIR has no slurm/env.sh; call sbatch from the source directory" >&2
  exit 2
}
# shellcheck source=slurm/env.sh
source "$SLURM_SUBMIT_DIR/slurm/env.sh"

# requeue_or_exit CODE: 75 means "saved, run me again"; every other code is the job's own.
requeue_or_exit() {
  if [ "$1" = 75 ]; then
    local job=$SLURM_JOB_ID
    [ -n "${SLURM_ARRAY_JOB_ID:-}" ] && job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    echo "uqa: saved before the limit; job $job goes back to the queue"
    scontrol requeue "$job" && exit 0
  fi
  exit "$1"
}

# run_stage WORDS...: the words go to `uqa` as they are; only env.sh's own settings are split at blanks.
run_stage() {
  # shellcheck disable=SC2086
  $UQA_LAUNCH $UQA_WRAPPER "$UQA" "$@"
  requeue_or_exit $?
}
