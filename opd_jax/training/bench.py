"""Floor 5. What a stage works with: its stream of problems, its judges, and the four verbs over them."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import rollouts, teachers
from opd_jax.data.problems import Problem, Verifier
from opd_jax.data.prompts import left_padded, unpadded
from opd_jax.data.stream import Stream
from opd_jax.data.tokenizers import Tokenizer
from opd_jax.inference import decoding, sampler, scorer
from opd_jax.inference.sampler import Model, Sampling
from opd_jax.method import Evidence, WeightedTerms, target_of
from opd_jax.models import transformer
from opd_jax.processes import to_host
from opd_jax.storage import load
from opd_jax.teachers import Judge, Refresh, Routed, Seat
from opd_jax.training import metrics, step
from opd_jax.training.checkpoints import RunPosition
from opd_jax.training.experiment import Experiment, Stage
from opd_jax.training.step import Batch, State
from opd_jax.types import Prompts, Rollout, Scores

DIAGNOSED = 8  # entries of the teacher's top k that are asked for where a method asks for none


class PromptBatch(NamedTuple):
  """The rows of a batch before anybody has answered."""

  problems: list[Problem]
  prompts: Prompts


class Responses(NamedTuple):
  """A batch of responses, with their texts."""

  problems: list[Problem]
  rollout: Rollout
  texts: list[str]


def tokenizer_of(experiment: Experiment) -> Tokenizer:
  if experiment.tokenizer is None:
    raise ValueError(
      'Experiment: training needs a tokenizer. Bind TOKENIZER, e.g. @tokenizers.HubTokenizer() with its folder.'
    )
  return experiment.tokenizer


def ready(sampling: Sampling, tokenizer: Tokenizer, vocabulary: int) -> Sampling:
  """With the tokenizer's stop tokens, and without the rows of the table that stand for nothing."""
  rules = sampling.decoding
  if not rules.stop_tokens:
    ends = sorted(tokenizer.stop_tokens | {tokenizer.turn_end})
    rules = dataclasses.replace(rules, stop_tokens=tuple(ends))
  if padding := tuple(range(len(tokenizer.strings()), vocabulary)):
    rules = dataclasses.replace(rules, rules=(decoding.forbid(padding), *rules.rules))
  return dataclasses.replace(sampling, decoding=rules)


def asked(
  problems: Sequence[Problem], samples: int, template, tokenizer: Tokenizer, *, first_row: int
) -> PromptBatch:
  """Every problem so many times, as left-padded prompts whose row numbers go on from `first_row`."""
  rows = rollouts.rows_of(len(problems), samples)
  tokens = [template.render(tokenizer, problem.messages) for problem in problems]
  each = [tokens[row] for row in rows]
  width = sampler.bucket(max(map(len, each)), least=8, most=1 << 30)
  prompts = left_padded(each, width=width, pad=tokenizer.pad, groups=rows.tolist())
  return PromptBatch(
    [problems[row] for row in rows],
    prompts._replace(row=np.arange(len(rows), dtype=np.int32) + first_row),
  )


def texts_of(rollout: Rollout, tokenizer: Tokenizer) -> list[str]:
  """The written texts, without the token that ended them."""
  stop = {tokenizer.turn_end, *tokenizer.stop_tokens}
  length = rollouts.lengths(rollout)
  rows = [row[:n].tolist() for row, n in zip(np.asarray(rollout.response), length, strict=True)]
  return [tokenizer.decode(row[:-1] if row and row[-1] in stop else row) for row in rows]


def shown(seat: Seat, written: Responses) -> list:
  """What a judge reads before each response; None where it does not judge."""
  rollout = written.rollout
  return seat.prompts(
    written.problems, written.texts, rollout.reward.tolist(), np.asarray(rollout.prompt.group)
  )


def verified(written: Responses, verify: Verifier | None) -> Responses:
  """With the verifier's outcome as reward."""
  if verify is None:
    return written
  reward = [
    verify(problem, text) for problem, text in zip(written.problems, written.texts, strict=True)
  ]
  return written._replace(rollout=written.rollout._replace(reward=np.array(reward, np.float32)))


def selves_of(stage: Stage) -> dict[str, Refresh]:
  """Judges that are earlier selves of the student, and how they follow it."""
  judges = {
    f'{name}/{route}' if route else name: judge
    for name in asked_of(stage)
    for route, judge in seats_of(stage.judges[name])
  }
  return {
    name: judge.refresh
    for name, judge in judges.items()
    if judge.weights is None and not judge.refresh.is_live
  }


def asked_of(stage: Stage) -> list[str]:
  """The judges that are asked anything."""
  return [name for name in stage.judges if name in ('teacher', *stage.method.needs.others)]


def seats_of(judge: Judge | Routed) -> tuple[tuple[str, Judge], ...]:
  """A judge as those that share its work, each with the route it answers for ('' for all)."""
  return judge.table if isinstance(judge, Routed) else (('', judge),)


def begin(experiment: Experiment, stage: Stage, params: Any) -> State:
  """The state at the beginning of a stage: a fresh optimiser, and selves that are the student."""
  optimiser = step.optimiser_state(stage.optimiser, params, experiment.model, experiment.layout)
  return State(
    params, optimiser, selves={name: jax.tree.map(jnp.copy, params) for name in selves_of(stage)}
  )


def abstract(experiment: Experiment, stage: Stage) -> State:
  """Its shapes and shardings, without a byte of it."""
  leaves = transformer.abstract(experiment.model, experiment.layout)
  optimiser = step.abstract_state(stage.optimiser, experiment.model, experiment.layout)
  return State(leaves, optimiser, selves=dict.fromkeys(selves_of(stage), leaves))


class Bench:
  """A stage at work. Everything that moves is handed in; nothing here is changed by a step but the stream."""

  def __init__(
    self, experiment: Experiment, stage: Stage, say: Callable[[str], None] = lambda text: None
  ):
    self.experiment, self.stage, self.tokenizer = experiment, stage, tokenizer_of(experiment)
    self.config, self.layout = experiment.model, experiment.layout
    self.stream = Stream(stage.task, seed=experiment.seed, fits=self._fits)
    self.sampling = ready(stage.sampling, self.tokenizer, self.config.vocab_size)
    self.key = jax.random.fold_in(jax.random.key(experiment.seed), experiment.stages.index(stage))
    self._selves: dict[str, Any] = {}
    self._params: Any = None
    self._weigh = jax.jit(stage.method.weigh)
    self._reads: bool | None = None
    self.seats: dict[str, list[tuple[str, Seat]]] = {
      name: [
        (route, self._seat(f'{name}/{route}' if route else name, judge, say))
        for route, judge in seats_of(stage.judges[name])
      ]
      for name in asked_of(stage)
    }
    self.mine = self._seat('student', Judge(refresh=teachers.live()))

  def _seat(self, name: str, judge: Judge, say: Callable[[str], None] = lambda text: None) -> Seat:
    config, layout = self.config, judge.layout or self.layout
    if judge.weights is None:
      params = lambda: self._params if judge.refresh.is_live else self._selves[name]
    else:
      say(f'loading {name}: {judge.weights}')
      types: dict[str, Any] = (
        {} if judge.dtype is None else {'param_dtype': judge.dtype, 'dtype': judge.dtype}
      )
      loaded = load.model(judge.weights, layout, seed=self.experiment.seed, **types)
      config, weights = loaded.config, loaded.params
      params = lambda: weights
    return Seat(
      judge=judge, config=config, layout=layout, tokenizer=self.tokenizer,
      template=judge.template or self.stage.template, params=params, rows=self.stage.rows,
    )  # fmt: skip

  def _fits(self, problem: Problem) -> None:
    """Refuses a row that has no room; it is looked at ahead of time, while the devices are busy."""
    template, most = self.stage.template, self.config.max_positions
    response = 1
    if self.stage.method.rollout.dataset and problem.demonstration is not None:
      response = len(
        template.response(self.tokenizer, problem.demonstration, problem.messages).tokens
      )
      if response > self.sampling.budget:
        raise ValueError(
          f'the response has {response} tokens, the budget of the stage is {self.sampling.budget}'
        )
    if (whole := len(template.render(self.tokenizer, problem.messages)) + response) > most:
      raise ValueError(
        f'prompt and response have {whole} tokens, the position table of the student has {most}'
      )

  def look_at(self, state: State) -> None:
    """From now on judges and writers read the weights of this state."""
    self._params, self._selves = state.params, state.selves

  # --- the verbs ----------------------------------------------------------------------------------

  def sample(self, place: RunPosition, problems: Sequence[Problem]) -> Responses:
    """Responses to problems, by whoever the method wants."""
    batch = asked(
      problems, self.stage.samples, self.stage.template, self.tokenizer, first_row=place.rows
    )
    writers, render = self.stage.method.rollout, self.stage.template.response
    demonstrations = [
      render(self.tokenizer, problem.demonstration, problem.messages)
      if writers.dataset and problem.demonstration is not None
      else None
      for problem in batch.problems
    ]
    rollout = rollouts.write(
      writers, batch.prompts, demonstrations, self.key, student=self.writer, teacher=self._teacher_model,
      sampling=self.sampling, step=place.stage_step, version=place.step,
    )  # fmt: skip
    rollout = rollouts.trimmed(rollout)
    whole = rollouts.lengths(rollout) + rollout.prompt.length
    if (most := int(whole.max())) > self.config.max_positions:
      raise ValueError(
        f'stage {self.stage.name}: {batch.problems[int(whole.argmax())].name} has {most} tokens with its response, the '
        f'position table of the student {self.config.max_positions}. Leave such rows out, or take a longer table.'
      )
    return verified(
      Responses(batch.problems, rollout, texts_of(rollout, self.tokenizer)), self.stage.task.verify
    )

  def writer(self) -> Model:
    return sampler.unrolled(
      Model(self.config, self.experiment.sampling_layout or self.layout, self._params)
    )

  def _teacher_model(self) -> Model:
    seats = self.seats.get('teacher', [])
    if len(seats) != 1:
      raise ValueError(
        f'stage {self.stage.name}: the method wants text by the teacher, and there are {len(seats)}. Bind one: '
        "experiment.Stage.judges = {'teacher': @teachers.frozen()}."
      )
    seat = seats[0][1]
    return sampler.unrolled(Model(seat.config, seat.layout, seat.params()))

  def score(self, place: RunPosition, written: Responses) -> Evidence:
    """What the student and the judges think of it."""
    needs, rollout = self.stage.method.needs, written.rollout
    student = None
    if needs.student != scorer.Needs():
      student = self._student(rollout)
    ids = (
      student.top_k.ids
      if needs.at_student_top_k and student is not None and student.top_k is not None
      else None
    )
    ids = None if ids is None else to_host(ids)  # a judge may lie elsewhere
    teacher, judged = None, np.ones(len(written.problems), bool)
    if 'teacher' in self.seats:
      teacher, judged = self.judged('teacher', written, ids, self._asked_of_teacher())
    others = {}
    for name in needs.others:
      others[name], also = self.judged(name, written)
      judged = judged & also
    evidence = Evidence(
      rollout=rollout._replace(mask=rollout.mask & judged[:, None]),
      student=student or Scores(rollout.logp, entropy=None, top_k=None, at_ids=None, hidden=None, layers=None),
      teacher=teacher, others=others, step=np.asarray(place.stage_step, np.int32),
      key=jax.random.fold_in(jax.random.fold_in(self.key, 7), place.step),
    )  # fmt: skip
    if student is None and self._reads_student(evidence):
      evidence = evidence._replace(student=self._student(rollout))
    return evidence

  def _student(self, rollout: Rollout) -> Scores:
    """What the student, as it is trained, thinks of a rollout."""
    return self.mine.score(
      unpadded(rollout.prompt), rollout, None, self.stage.method.needs.student
    )[0]

  def _reads_student(self, evidence: Evidence) -> bool:
    """Whether the method looks at the student's scores at all; where it does not, a forward pass is saved."""
    if self._reads is None:
      with self._explained(evidence):
        program = jax.make_jaxpr(self.stage.method.weigh)(evidence).jaxpr
      used = {id(var) for equation in program.eqns for var in equation.invars} | {
        id(var) for var in program.outvars
      }
      blank = jax.tree.map(lambda leaf: False, evidence)
      of_student = jax.tree.leaves(
        blank._replace(student=jax.tree.map(lambda leaf: True, evidence.student))
      )
      self._reads = any(
        mine and id(var) in used for mine, var in zip(of_student, program.invars, strict=True)
      )
    return self._reads

  @contextmanager
  def _explained(self, evidence: Evidence) -> Iterator[None]:
    """A method that reads a teacher that is not there gets an error one can act on."""
    try:
      yield
    except AttributeError as error:
      if evidence.teacher is not None or "'NoneType'" not in str(error):
        raise
      raise ValueError(
        f"stage {self.stage.name}: the method reads the teacher's scores and there is no judge called 'teacher'. "
        "Bind experiment.Stage.judges = {'teacher': @teachers.frozen()}."
      ) from error

  def _asked_of_teacher(self) -> scorer.Needs:
    needs = self.stage.method.needs.teacher
    if self.stage.whole_diagnosis:
      needs = dataclasses.replace(needs, hidden=True)
    if needs.hidden:
      return needs  # who has the whole distribution need not be asked for its best
    return dataclasses.replace(
      needs, top_k=max(needs.top_k, min(DIAGNOSED, self.config.vocab_size))
    )

  def judged(
    self, name: str, written: Responses, ids: Any = None, needs: scorer.Needs = scorer.Needs()
  ) -> tuple[Scores, np.ndarray]:
    """What a judge, or the one of several that a row's route names, thinks of every row; and which rows it judged."""
    seats = self.seats[name]
    routes = [route for route, _ in seats]
    which = np.zeros(len(written.problems), np.int32)
    if routes != ['']:
      for row, problem in enumerate(written.problems):
        if problem.route not in routes:
          raise ValueError(
            f'judge {name}: {problem.name} has the route {problem.route!r}, the table has {routes}. Every row needs '
            'a judge.'
          )
        which[row] = routes.index(problem.route)
    found = []
    for _, seat in seats:
      scores, judged = seat.score(shown(seat, written), written.rollout, ids, needs)
      found.append((self._home(scores, seat), judged))
    if len(found) == 1:
      return found[0]
    judged = np.stack([each for _, each in found])[which, np.arange(len(which))]
    return teachers.merged([scores for scores, _ in found], jnp.asarray(which)), judged

  def _home(self, scores: Scores, seat: Seat) -> Scores:
    """Onto the devices of the training layout: cut by rows, or whole on each where they cannot be dealt evenly."""
    if seat.layout.mesh == self.layout.mesh:
      return scores
    rows = None if len(scores.logp) % self.layout.size('batch') else 'batch'
    return jax.tree.map(
      lambda x: jax.device_put(x, self.layout.sharding(rows, *[None] * (x.ndim - 1))), scores
    )

  def weigh(self, evidence: Evidence) -> tuple[Batch, dict[str, Any]]:
    """The method's weighted_terms, and what can be said of them."""
    with self._explained(evidence):
      weighted_terms: WeightedTerms = self._weigh(evidence)
    head = None
    if evidence.teacher is not None and evidence.teacher.hidden is not None:
      seat = self.seats['teacher'][0][1]
      head = seat.head()
      if seat.layout.mesh != self.layout.mesh:
        head = jax.device_put(head, self.layout.sharding(None, 'vocab'))
    target = target_of(evidence, head) if evidence.teacher is not None else step.Target()
    return Batch(evidence.rollout, target, weighted_terms), metrics.of_evidence(
      evidence, weighted_terms
    )

  def update(
    self, state: State, batch: Batch, *, dry: bool = False
  ) -> tuple[State, dict[str, Any]]:
    """One step of the optimiser; judges that are the student follow it afterwards. A dry one changes nothing."""
    total, _ = step.gradient(
      state.params,
      batch,
      config=self.config,
      layout=self.layout,
      microbatches=self.stage.microbatches,
      diagnose=True,
    )
    params, optimiser, told = step.apply(
      state.params, state.optimiser, jnp.full_like(total.loss, jnp.nan) if dry else total.loss, total.slope,
      optimiser=self.stage.optimiser, config=self.config, layout=self.layout,
    )  # fmt: skip
    told = jax.device_get({**told, 'loss': total.loss})
    return state._replace(params=params, optimiser=optimiser), {
      **{name: float(value) for name, value in told.items()},
      **metrics.of_tally(jax.device_get(total.tally)),
    }

  def follow(self, state: State, number: int) -> State:
    """Judges that are the student take their step behind it."""
    rules = selves_of(self.stage)
    moved = {
      name: teachers.refreshed(phi, state.params, jnp.float32(rules[name].rate))
      if rules[name].is_due(number)
      else phi
      for name, phi in state.selves.items()
    }
    return state._replace(selves=moved)
