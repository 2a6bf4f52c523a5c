"""Floor 2. Weights in and out: published folders, our folders, one name for any model."""
