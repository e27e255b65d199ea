# The one file that a site edits: what must be loaded before `uqa` runs. Sourced by every sbatch file here.
# module load gcc openmpi hdf5            # for example
UQA=${UQA:-$SLURM_SUBMIT_DIR/build/release/uqa}
export OMPI_MCA_odls_base_sigkill_timeout=120
