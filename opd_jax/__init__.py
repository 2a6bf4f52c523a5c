"""On-policy distillation of language models in JAX. Users import modules, not names from here."""

__version__ = '0.1.0'
