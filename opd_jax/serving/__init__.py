"""Floor 3. Serves one model over HTTP, `opd serve`: requests are collected into passes of scorer and sampler."""
