"""Floor 4. Verifiers of published benchmarks: correct, wrong, unparsed, or timed out."""
