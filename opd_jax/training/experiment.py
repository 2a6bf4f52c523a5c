"""Floor 5. What a run is made of: the records that gin fills and everything else reads."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import optax

from opd_jax.data.problems import Task
from opd_jax.data.templates import Template
from opd_jax.data.tokenizers import Tokenizer
from opd_jax.inference.decoding import Decoding
from opd_jax.inference.sampler import Sampling
from opd_jax.method import Method
from opd_jax.models.config import ModelConfig
from opd_jax.sharding import Layout
from opd_jax.teachers import Judge, Routed
from opd_jax.training.metrics import Bounds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """Problems that are never trained on, and how often they are asked.

  Args:
    task: whose first problems are taken.
    problems: how many of them.
    samples: responses to each; accuracy is the mean over all of them.
    every: steps between two evaluations; there is one before the first step and one after the last.
    decoding: rules of these responses; None takes those of the stage.
  """

  task: Task
  problems: int = 64
  samples: int = 1
  every: int = 50
  decoding: Decoding | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One part of a run: a method on a task, with an optimiser of its own.

  Args:
    name: in metrics and messages.
    method: what a judgement is made into.
    task: what is asked.
    steps: batches of rollouts.
    prompts: problems of a batch.
    samples: responses to each problem.
    optimiser: fresh at the beginning of the stage.
    sampling: budget, slots and rules; stop tokens are those of the tokenizer unless it names others.
    judges: by name: 'teacher', and what the method needs besides ('reference' …).
    template: how the student is addressed.
    microbatches: passes of an update; the result does not depend on it.
    updates: of one batch of rollouts; the method is weighed once, before the first.
    whole_diagnosis: ask the teacher for its whole distribution even where the method does not: exact KLs in every row
      of the metrics, for the price of its head.
    rows: per pass of a judge.
  """

  name: str = 'train'
  method: Method
  task: Task
  steps: int
  prompts: int = 32
  samples: int = 1
  optimiser: optax.GradientTransformation
  sampling: Sampling = dataclasses.field(default_factory=Sampling)
  judges: Mapping[str, Judge | Routed] = dataclasses.field(default_factory=dict)
  template: Template = dataclasses.field(default_factory=Template)
  microbatches: int = 1
  updates: int = 1
  whole_diagnosis: bool = False
  rows: int = 64

  def __post_init__(self):
    _kinds(self, method=Method, task=Task, sampling=Sampling, template=Template)
    for name in ('steps', 'prompts', 'samples', 'microbatches', 'updates', 'rows'):
      if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
        raise ValueError(
          f'Stage {self.name}: {name} must be a whole number above 0, got {getattr(self, name)!r}.'
        )
    if not isinstance(self.optimiser, optax.GradientTransformation):
      raise ValueError(
        f'Stage {self.name}: optimiser must be one of optax, e.g. @optimisers.adamw().'
      )
    missing = [name for name in self.method.needs.others if name not in self.judges]
    if missing:
      raise ValueError(
        f'Stage {self.name}: the method needs the judges {missing}; name them, e.g. '
        f"judges = {{'{missing[0]}': @teachers.itself()}} for the student as it was when the stage began."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A run.

  Args:
    model: the student.
    layout: where its parameters lie during training.
    stages: one after the other, on the same weights.
    weights: where these come from: a folder, a hub id, or None for random ones.
    tokenizer: text <-> tokens, of the student and its judges.
    sampling_layout: where the student lies while it writes; None: where it is trained.
    evaluation: what is measured on the way; None measures nothing.
    seed: of everything random.
    bounds: what stops a run.
    checkpoint_every, checkpoints_kept: steps between two checkpoints, and how many stay.
    samples_every: steps between two looks at texts in samples.jsonl.
    wandb: project of W&B; None leaves it out.
  """

  model: ModelConfig
  layout: Layout
  stages: Sequence[Stage] = ()
  weights: str | None = None
  tokenizer: Tokenizer | None = None
  sampling_layout: Layout | None = None
  evaluation: Evaluation | None = None
  seed: int = 0
  bounds: Bounds = dataclasses.field(default_factory=Bounds)
  checkpoint_every: int = 50
  checkpoints_kept: int = 2
  samples_every: int = 50
  wandb: str | None = None

  def __post_init__(self):
    _kinds(self, model=ModelConfig, layout=Layout)
    object.__setattr__(self, 'stages', tuple(self.stages))
    for stage in self.stages:
      if not isinstance(stage, Stage):
        raise ValueError(
          f'Experiment: stages must be made by experiment.Stage, got {str(stage)[:80]}.'
        )
    if len({stage.name for stage in self.stages}) < len(self.stages):
      raise ValueError(
        f'Experiment: stages need names of their own, got {[stage.name for stage in self.stages]}.'
      )

  @property
  def steps(self) -> int:
    return sum(stage.steps for stage in self.stages)


def _kinds(record: Any, **kinds: type) -> None:
  for name, kind in kinds.items():
    if not isinstance(getattr(record, name), kind):
      raise ValueError(
        f'{type(record).__name__}: {name} must be a {kind.__name__}, got {str(getattr(record, name))[:80]}. In gin, '
        'call what makes one, with its parentheses: @presets.tiny(), @sharding.mesh_layout(), @opd.opd().'
      )
