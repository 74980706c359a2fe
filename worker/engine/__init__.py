"""Generation. torch lives here and nowhere else."""
