"""Floor 6. Studies: what is compared, the runs of it, and what they tell."""
