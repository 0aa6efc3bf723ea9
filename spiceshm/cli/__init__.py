"""The two programs, `server` and `client`: options and output, nothing else."""
