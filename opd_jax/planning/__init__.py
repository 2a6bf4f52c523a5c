"""Floor 6. What an experiment would take, before anything is allocated."""
