# The one file that a site edits: what must be loaded before `uqa` runs, and how it is started. Sourced by every sbatch file here.
# README.md has examples for environment modules, Spack and containers.
# module load gcc openmpi hdf5

# The program, and words before it (a container's, for example: "apptainer exec --nv uqa.sif").
UQA=${UQA:-$SLURM_SUBMIT_DIR/build/release/uqa}
UQA_WRAPPER=${UQA_WRAPPER:-}
# How ranks are started inside a job.
UQA_LAUNCH=${UQA_LAUNCH:-srun --mpi=pmix}
# One thread of computation for each core of a task; srun does not pass --cpus-per-task on by itself.
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
