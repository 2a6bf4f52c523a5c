"""Floor 5. What a run is made of: the one record that gin fills and everything else reads."""

import dataclasses

from opd_jax.models.config import ModelConfig
from opd_jax.sharding import Layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A run, complete and without defaults of its own: `experiments/base.gin` holds those.

  Args:
    model: the student.
    layout: where its parameters lie during training.
  """

  model: ModelConfig
  layout: Layout
