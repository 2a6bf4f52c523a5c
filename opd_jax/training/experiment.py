"""Floor 5. What a run is made of: the records that gin fills and everything else reads."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import optax

from opd_jax import kinds, ramps
from opd_jax.data.problems import Task
from opd_jax.data.templates import Template
from opd_jax.data.tokenizers import Tokenizer
from opd_jax.evaluation.evaluator import Evaluation
from opd_jax.inference.sampler import Sampling
from opd_jax.judges.spec import AnyJudge, Judge, Served
from opd_jax.method import Method
from opd_jax.models import adapters
from opd_jax.models.config import ModelConfig
from opd_jax.models.lora import Lora
from opd_jax.rollouts import RolloutMix
from opd_jax.sharding import Layout
from opd_jax.storage.hub_tokenizer import Published
from opd_jax.training.alarms import Bounds
from opd_jax.training.rollout_records import RolloutRecords
from opd_jax.training.stopping import StopWhen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One part of a run: a method on a task, with an optimiser of its own.

  Args:
    name: in metrics and messages.
    method: computes the terms of the loss from what the judges tell.
    task: what is asked.
    steps: batches of rollouts.
    prompts: problems of a batch.
    samples: responses to each problem.
    optimiser: fresh at the beginning of the stage.
    sampling: budget, slots and rules; stop tokens are those of the tokenizer unless it names others.
    rollout: who writes; None leaves it to the method.
    judges: by name: 'teacher', and what the method needs besides ('reference' …).
    template: how the student is addressed.
    microbatches: passes of an update; the result does not depend on it.
    minibatches: steps of the optimiser in one pass over a batch; each sees its part of the problems.
    updates: passes over one batch of rollouts. A method that says `reweigh` is scored and weighed anew before each step
      but the first; others are weighed once, before the first. Where no ratio corrects for the age of the text, a
      warning before step 0 says so.
    staleness: a batch is written by weights that are this many batches older than those that learn from it, so that
      judges on devices of their own score one batch while the next is written. 0: written by the weights that learn.
    whole_diagnosis: ask the teacher for its whole distribution even where the method does not: exact KLs in every row
      of the metrics, for the price of its head.
    rows: per pass of a judge.
    stops: rules that end the stage, or the run, before its last step.
  """

  name: str = 'train'
  method: Method
  task: Task
  steps: int
  prompts: int = 32
  samples: int = 1
  optimiser: optax.GradientTransformation
  sampling: Sampling = dataclasses.field(default_factory=Sampling)
  rollout: RolloutMix | None = None
  judges: Mapping[str, AnyJudge] = dataclasses.field(default_factory=dict)
  template: Template = dataclasses.field(default_factory=Template)
  microbatches: int = 1
  minibatches: int = 1
  updates: int = 1
  staleness: int = 0
  whole_diagnosis: bool = False
  rows: int = 64
  stops: Sequence[StopWhen] = ()

  def __post_init__(self):
    kinds.check_fields(self, 'method', 'task', 'sampling', 'template')
    numbers = ('steps', 'prompts', 'samples', 'microbatches', 'minibatches', 'updates', 'rows')
    for name in numbers:
      kinds.check_whole(f'Stage {self.name}: {name}', getattr(self, name), least=1)
    kinds.check_whole(f'Stage {self.name}: staleness', self.staleness, least=0, most=self.steps - 1)
    if not isinstance(self.name, str) or not self.name:
      raise ValueError(f'Stage: its name is a text that is not empty, got {self.name!r}.')
    if self.prompts % self.minibatches:
      raise ValueError(
        f'Stage {self.name}: {self.prompts} prompts cannot be dealt to {self.minibatches} minibatches; choose numbers '
        'that divide.'
      )
    if self.microbatches > (rows := self.prompts * self.samples):
      raise ValueError(
        f'Stage {self.name}: {self.microbatches} microbatches of {rows} rows; a microbatch has a row at least.'
      )
    if not isinstance(self.optimiser, optax.GradientTransformation):
      raise ValueError(
        f'Stage {self.name}: optimiser must be one of optax, e.g. @optimisers.adamw().'
      )
    missing = [name for name in self.method.needs.others if name not in self.judges]
    if missing:
      raise ValueError(
        f'Stage {self.name}: the method needs the judges {missing}; name them, e.g. '
        f"judges = {{'{missing[0]}': @judges.itself()}} for the student as it was when the stage began."
      )
    self._check_stops()
    self._check_writers()

  def _check_stops(self) -> None:
    """Refuses what is no list of rules, and two rules of one name."""
    rules = self.stops if isinstance(self.stops, list | tuple) else (self.stops,)
    object.__setattr__(self, 'stops', tuple(rules))
    for rule in self.stops:
      if not isinstance(rule, StopWhen):
        raise ValueError(
          f'Stage {self.name}: stops must be made by stopping.StopWhen, got {str(rule)[:80]}. Write '
          '(@stopping.StopWhen(),).'
        )
    if len({rule.name for rule in self.stops}) < len(self.stops):
      raise ValueError(f'Stage {self.name}: two of its stops are {self.stops[0].name}; keep one.')

  def _check_writers(self) -> None:
    """Refuses writers that cannot work together, or that are not there."""
    forks = self.method.forks
    if forks is not None and (self.minibatches > 1 or self.method.reweigh):
      raise ValueError(
        f'Stage {self.name}: the method forks its rows, and forks stay with the whole batch: minibatches must be 1, '
        'and the method cannot reweigh.'
      )
    mix = self.mix
    writes_alone = forks is not None or mix.prefix is not None or ramps.extremes(mix.teacher)[1] > 0
    if mix.beside is not None and writes_alone:
      raise ValueError(
        f"Stage {self.name}: beside='teacher' lets rules read both models while the student writes, so the teacher can "
        'have no rows, no prefix and no forks of its own. Take out one or the other.'
      )
    if self.teacher_writes and 'teacher' not in self.judges:
      raise ValueError(
        f'Stage {self.name}: the teacher is to write, and there is no judge of that name. Bind one: '
        "experiment.Stage.judges = {'teacher': @judges.frozen()}."
      )

  @property
  def teacher_writes(self) -> bool:
    """Whether the teacher has to be able to write: rows, a prefix, beside the student, or forks."""
    forks = self.method.forks
    return self.mix.needs_teacher or (forks is not None and 'teacher' in forks.writers)

  @property
  def mix(self) -> RolloutMix:
    """Who writes."""
    return self.rollout or self.method.rollout

  @property
  def author(self) -> Served | None:
    """A teacher behind a server that only writes text, where there is one."""
    teacher = self.judges.get('teacher')
    return teacher if isinstance(teacher, Served) and teacher.writes == 'text' else None

  @property
  def asked(self) -> list[str]:
    """The judges that are asked anything; a teacher that only writes text tells nothing."""
    wanted = {*self.method.needs.judges, 'teacher'} - {'teacher' if self.author else None}
    return [name for name in self.judges if name in wanted]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A run.

  Args:
    model: the student.
    layout: where its parameters lie during training.
    stages: one after the other, on the same weights.
    weights: where these come from: a folder, a hub id, or None for random ones.
    lora: adapters beside the linear maps of the student, which are frozen then; None trains every parameter.
    tokenizer: text <-> tokens, of the student and its judges; or the name of a published one.
    sampling_layout: where the student lies while it writes; None: where it is trained.
    evaluations: what is measured on the way.
    geometry: whether evaluations also report how far the weights have moved (evaluation/geometry.py); costs singular
      values of every matrix, and a copy of the first weights in the memory of the host.
    seed: of everything random.
    bounds: what stops a run.
    checkpoint_every, checkpoints_kept: steps between two checkpoints, and how many stay.
    samples_every: steps between two records of texts in samples.jsonl.
    rollouts: which responses rollouts.jsonl keeps token by token, for `opd report`; None keeps none.
    wandb: project of W&B; None leaves it out.
  """

  model: ModelConfig
  layout: Layout
  stages: Sequence[Stage] = ()
  weights: str | None = None
  lora: Lora | None = None
  tokenizer: Tokenizer | Published | None = None
  sampling_layout: Layout | None = None
  evaluations: Sequence[Evaluation] = ()
  geometry: bool = False
  seed: int = 0
  bounds: Bounds = dataclasses.field(default_factory=Bounds)
  checkpoint_every: int = 50
  checkpoints_kept: int = 2
  samples_every: int = 50
  rollouts: RolloutRecords | None = RolloutRecords()
  wandb: str | None = None

  def __post_init__(self):
    kinds.check_fields(self, 'model', 'layout', 'sampling_layout', 'rollouts', 'lora')
    for field, kind in (('stages', Stage), ('evaluations', Evaluation)):
      if not isinstance(getattr(self, field), Sequence):
        raise ValueError(
          f'Experiment: {field} is a list, got one {type(getattr(self, field)).__name__}. Write [@…].'
        )
      members = tuple(getattr(self, field))
      object.__setattr__(self, field, members)
      for member in members:
        if not isinstance(member, kind):
          raise ValueError(
            f'Experiment: {field} must be made by experiment.{kind.__name__}, got {str(member)[:80]}.'
          )
    self._check_lora()
    self._check_writing()
    self._check_drafts()
    if self.geometry and not self.evaluations:
      raise ValueError(
        'Experiment: geometry is reported by evaluations, and there are none. Bind Experiment.evaluations.'
      )
    kinds.check_whole('Experiment: seed', self.seed, least=0, most=2**32 - 1)
    labels = [stage.name for stage in self.stages], [each.label for each in self.evaluations]
    for what, names in zip(('stages', 'evaluations'), labels, strict=True):
      if len(set(names)) < len(names):
        raise ValueError(f'Experiment: {what} need names of their own, got {names}.')
    for name in ('checkpoint_every', 'checkpoints_kept', 'samples_every'):
      kinds.check_whole(f'Experiment: {name}', getattr(self, name), least=1)

  def _check_writing(self) -> None:
    """Refuses to write where columns of a row are cut."""
    place = self.writing_layout
    writes = self.evaluations or any(stage.mix.needs_student for stage in self.stages)
    axes = [axis for axis in place.mesh_axes('length') if dict(place.shape)[axis] != 1]
    if writes and axes:
      raise ValueError(
        f'Experiment: responses cannot be written on a layout that cuts the columns of a row ({", ".join(axes)}). Bind '
        'Experiment.sampling_layout, as experiments/layouts/context.gin does.'
      )

  def _check_lora(self) -> None:
    """Refuses adapters that were bound to the wrong place, or that do not fit the model."""
    if self.model.lora is not None or self.model.int8:
      raise ValueError(
        'Experiment: the model has LoRA of its own or is int8. Bind Experiment.lora: a run then knows what it freezes.'
      )
    if self.lora is not None:
      _ = self.student

  def _check_drafts(self) -> None:
    """Refuses evaluations of the student as a draft where no single model is its target."""
    asking = [each.label for each in self.evaluations if each.draft_of_teacher]
    teachers = [stage.judges['teacher'] for stage in self.stages if 'teacher' in stage.judges]
    whole = teachers and all(isinstance(each, Judge) for each in teachers)
    if asking and self.stages and not whole:
      raise ValueError(
        f'Evaluation {asking[0]}: draft_of_teacher measures the student beside a teacher, and no stage has one, or one '
        "of several models. Bind experiment.Stage.judges = {'teacher': @judges.frozen()}, or set it to 0."
      )

  @functools.cached_property
  def student(self) -> ModelConfig:
    """The model as it is trained: with its adapters, beside a base that is stored as it is computed in."""
    if self.lora is None:
      return self.model
    stored = dataclasses.replace(self.model, param_dtype=self.model.dtype)
    return adapters.with_lora(stored, self.lora)

  @property
  def writing_layout(self) -> Layout:
    """Where the student lies while it writes."""
    return self.sampling_layout or self.layout

  @property
  def steps(self) -> int:
    """Of all stages."""
    return sum(stage.steps for stage in self.stages)

  @property
  def known_tokenizer(self) -> Tokenizer:
    """The tokenizer; training cannot do without one."""
    if self.tokenizer is None:
      raise ValueError(
        'Experiment: training needs a tokenizer. Bind TOKENIZER, e.g. @tokenizers.HubTokenizer() with its folder.'
      )
    return self.tokenizer.tokenizer if isinstance(self.tokenizer, Published) else self.tokenizer
