"""Floor 3. Who writes: `mix` is what gin and methods say, `writing` does it."""

from opd_jax.rollouts.mix import RolloutMix, dataset, mixture, student, teacher

__all__ = ['RolloutMix', 'dataset', 'mixture', 'student', 'teacher']
