"""Floor 4. What a model can do, on problems that are never trained on: it takes a model, and needs no stage."""
