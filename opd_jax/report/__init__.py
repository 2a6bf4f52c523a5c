"""Floor 6. A page of runs and studies: one HTML file that needs nothing else."""
