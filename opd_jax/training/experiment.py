"""Floor 5. What a run is made of: the one record that gin fills and everything else reads."""

import dataclasses

from opd_jax.method import Method
from opd_jax.models.config import ModelConfig
from opd_jax.sharding import Layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A run, complete and without defaults of its own: `experiments/base.gin` holds those.

  Args:
    model: the student.
    layout: where its parameters lie during training.
    method: what a judgement is made into.
  """

  model: ModelConfig
  layout: Layout
  method: Method

  def __post_init__(self):
    for name, kind in (('model', ModelConfig), ('layout', Layout), ('method', Method)):
      if not isinstance(getattr(self, name), kind):
        raise ValueError(
          f'Experiment: {name} must be a {kind.__name__}, got {str(getattr(self, name))[:80]}. In gin, call what makes '
          f'one, with its parentheses: {name.upper()} = @presets.tiny(), @sharding.mesh_layout() or @opd.opd().'
        )
