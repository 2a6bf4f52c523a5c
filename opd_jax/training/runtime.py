"""Floor 5. What a stage works with: its tokenizer, its judges at work, its layouts; no state that training changes."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from opd_jax.data.curriculum import Curriculum, stream_of
from opd_jax.data.problems import Problem
from opd_jax.data.stream import Stream
from opd_jax.data.tokenizers import Tokenizer
from opd_jax.forks import Forks
from opd_jax.inference.sampler import Sampling
from opd_jax.judges import refresh, scenes, spec
from opd_jax.judges.build import Builder
from opd_jax.judges.introductions import check_answers
from opd_jax.judges.local import LocalJudge
from opd_jax.judges.protocol import WorkingJudge
from opd_jax.judges.reading import served_of
from opd_jax.judges.remote import ServedJudge
from opd_jax.judges.scenes import Scene, columns_of
from opd_jax.method import Evidence, as_asked
from opd_jax.method_reads import rollout_read
from opd_jax.models.config import ModelConfig
from opd_jax.ramps import Watching
from opd_jax.responses import Responses, complete_sampling
from opd_jax.sharding import Layout
from opd_jax.training import moving
from opd_jax.training.apart import apart_judges
from opd_jax.training.asking import check_stage
from opd_jax.training.clock import Clock
from opd_jax.training.experiment import Experiment, Stage
from opd_jax.training.state import RunPosition
from opd_jax.types import ScoreRequest

DIAGNOSED = 8  # entries of the teacher's top k that are asked for where a method asks for fewer


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRuntime:
  """A stage at work. The verbs take it with the weights of the moment.

  Args:
    experiment, stage: what it was made of.
    number: of the stage in the experiment.
    tokenizer: of the student and its judges.
    sampling: of the stage, with stop tokens and without padded rows.
    judges: those that are asked anything, by name.
    student: the student as a judge of itself.
    reads: the judges whose scores `weigh` looks at.
    moving: numbers of the stage that look at metrics.
    author: a served teacher that only writes text.
  """

  experiment: Experiment
  stage: Stage
  number: int
  tokenizer: Tokenizer
  sampling: Sampling
  judges: Mapping[str, WorkingJudge]
  student: LocalJudge
  reads: frozenset[str]
  moving: tuple[Watching, ...]
  author: ServedJudge | None = None

  @property
  def config(self) -> ModelConfig:
    return self.experiment.student

  @property
  def layout(self) -> Layout:
    return self.experiment.layout

  @functools.cached_property
  def key(self) -> PRNGKeyArray:
    """Of everything random in this stage."""
    return jax.random.fold_in(jax.random.key(self.experiment.seed), self.number)

  @functools.cached_property
  def weigh_key(self) -> PRNGKeyArray:
    """Of what methods draw: rows never have this number."""
    return jax.random.fold_in(self.key, 2**31 - 3)

  @functools.cached_property
  def requests(self) -> dict[str, ScoreRequest]:
    """What each judge is asked: what the method needs, and for the teacher what the metrics show."""
    requests = {name: self.stage.method.needs.judges[name] for name in self.judges}
    if 'teacher' in requests and not spec.is_foreign(self.stage.judges['teacher']):
      requests['teacher'] = self._diagnosed(requests['teacher'])
    return requests

  def _diagnosed(self, request: ScoreRequest) -> ScoreRequest:
    hidden = request.hidden or self.stage.whole_diagnosis
    if hidden:  # who has the whole distribution need not be asked for its best
      return dataclasses.replace(request, hidden=True)
    caps = [each.known.most for each in served_of(self.judges['teacher'])]
    shown = min([DIAGNOSED, self.config.vocab_size, *(cap for cap in caps if cap is not None)])
    return dataclasses.replace(request, top_k=max(request.top_k, shown))

  @property
  def scores_student(self) -> bool:
    """Whether the student is scored before it is weighed; where nobody looks, a forward pass is saved."""
    return self.stage.method.needs.of_student != ScoreRequest() or 'student' in self.reads

  @functools.cached_property
  def clock(self) -> Clock:
    """When judges on devices of their own were at work."""
    watched = jax.process_count() == 1 or not self.stage.staleness  # else nobody waits for them
    return Clock(self.apart, watched=watched)

  @functools.cached_property
  def apart(self) -> frozenset[str]:
    """The judges on devices of their own, which can score while the student writes."""
    return apart_judges(self.experiment, self.stage)

  @functools.cached_property
  def corrects_age(self) -> bool:
    """Whether the method looks at how likely the text was when it was drawn; then older weights may have written it."""
    return 'behaviour_logp' in rollout_read(self.stage.method)

  @functools.cached_property
  def weigh(self) -> Callable[[Evidence], Any]:
    """The method's function as one program, on evidence as it asked for it."""
    method = self.stage.method

    def weigh(evidence: Evidence) -> Any:  # by this name in a trace
      return method.weigh(as_asked(evidence, method.needs))

    return jax.jit(weigh)

  @functools.cached_property
  def plan_forks(self) -> Callable[[Evidence], Forks]:
    """Where the method forks its rows, as one program."""
    method = self.stage.method
    assert method.forks is not None
    plan = method.forks.plan
    return jax.jit(lambda evidence: plan(as_asked(evidence, method.needs)))

  @functools.cached_property
  def remember(self) -> Callable[[Evidence], Any]:
    """What the method keeps for the next batch, as one program."""
    method = self.stage.method
    if method.remember is None:
      return lambda evidence: evidence.memory
    remember = method.remember
    return jax.jit(lambda evidence: remember(as_asked(evidence, method.needs)))

  def stream(self) -> Stream | Curriculum:
    """The problems of the stage; every stage has an order of its own."""
    seed = self.experiment.seed
    if self.number:
      seed = int(np.random.SeedSequence([seed, self.number]).generate_state(1)[0] >> 1)
    return stream_of(self.stage.task, seed=seed, fits=room(self.experiment, self.stage))

  def take(self, stream: Stream | Curriculum, position: RunPosition) -> list[Problem]:
    """The problems of a step."""
    decisions = moving.decisions(position.moving)
    return stream.take(self.stage.prompts, step=position.stage_step, decisions=decisions)

  def scenes(self, responses: Responses, position: RunPosition) -> list[Scene]:
    """What contexts may look at, a row each."""
    seed, decisions = self.experiment.seed, moving.decisions(position.moving)
    return scenes.scenes_of(responses, seed=seed, step=position.stage_step, decisions=decisions)


def room(experiment: Experiment, stage: Stage) -> Callable[[Problem], int]:
  """The tokens of a row's prompt. Refuses a row that a stage cannot use: what it shows is missing, or has no room."""
  tokenizer, table = experiment.known_tokenizer, experiment.model.max_positions
  columns = _columns_shown(stage)

  def fits(problem: Problem) -> int:
    for name, route, column in columns:
      if route in (None, problem.route) and column not in problem.extra:
        raise ValueError(
          f'it has no column {column}, which the context of the judge {name} shows; it has {sorted(problem.extra)}. '
          f'Let the reader take it along, e.g. problems.from_columns(extra=({column!r},))'
        )
    response = 1
    if stage.mix.needs_data:
      if problem.demonstration is None:
        raise ValueError('it has no response, and the stage learns from responses of the data set')
      taught = stage.template.response(tokenizer, problem.demonstration, problem.messages)
      response = len(taught.tokens)
      if response > stage.sampling.budget:
        raise ValueError(
          f'the response has {response} tokens, the budget of the stage is {stage.sampling.budget}'
        )
    prompt = len(stage.template.render(tokenizer, problem.messages))
    if prompt + response > table:
      raise ValueError(
        f'prompt and response have {prompt + response} tokens, the position table of the student has {table}'
      )
    return prompt

  return fits


def _columns_shown(stage: Stage) -> list[tuple[str, str | None, str]]:
  """Columns that contexts show, with the judge and the route of the rows that must have them."""
  return [
    (name, route, column)
    for name in stage.asked
    for route, judge in spec.readers(stage.judges[name])
    for column in columns_of(judge.context)
  ]


def build_runtime(
  experiment: Experiment,
  number: int,
  say: Callable[[str], None] = lambda text: None,
  *,
  shape_of: Callable[[str], ModelConfig] | None = None,
) -> StageRuntime:
  """A stage with its judges loaded.

  Args:
    experiment: the run.
    number: of the stage.
    say: told what is being loaded.
    shape_of: see `Builder`: judges without weights, for plans.
  """
  stage, tokenizer = experiment.stages[number], experiment.known_tokenizer
  reads = check_stage(stage, experiment.model)
  builder = Builder(
    config=experiment.student,
    layout=experiment.layout,
    tokenizer=tokenizer,
    template=stage.template,
    rows=stage.rows,
    seed=experiment.seed,
    say=say,
    shape_of=shape_of,
  )
  judges = {name: builder.build(name, stage.judges[name]) for name in stage.asked}
  if shape_of is None:
    for name, judge in judges.items():
      for each in served_of(judge):
        check_answers(each.name, each.spec, each.known, stage.method.needs.judges[name])
  return StageRuntime(
    experiment=experiment,
    stage=stage,
    number=number,
    tokenizer=tokenizer,
    sampling=complete_sampling(stage.sampling, tokenizer, experiment.model.vocab_size),
    judges=judges,
    student=builder.local('student', spec.itself(refresh=refresh.live())),
    reads=reads,
    moving=moving.numbers_of(stage, experiment.evaluations),
    author=None if stage.author is None else builder.remote('teacher', stage.author),
  )
