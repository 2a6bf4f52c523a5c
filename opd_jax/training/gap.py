"""Floor 5. The gap between a student and its teacher before anything is trained: in accuracy, and token by token.

What a teacher that sees more is worth is measured by letting it answer. The student answers first, since a context may
show what it wrote or what was said of that; then the teacher answers once, behind its own prompt, for each of these.

    gap = accuracy of the teacher behind its prompts - accuracy of the student

is the reading of arXiv:2605.30070: weights before training, problems of the validation set, rules of decoding of
*training*. The paper leaves three things open. A row of which the context shows nothing, or whose prompt fills the
position table, is answered behind the plain question; `shown` is the share of the others. The teacher draws with random
streams of its own, so that a context that shows nothing at all gives the noise of the meter instead of exactly zero.
The divergences are exact over the vocabulary at the positions of the student's own text: KL(p ‖ q) and KL(q ‖ p) of the
student p and the teacher q, a mean over the tokens of rows that the context shows something of.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from opd_jax import responses as batches
from opd_jax.data.problems import Problem, Task
from opd_jax.data.prompts import left_padded, unpadded
from opd_jax.evaluation.pass_at_k import interval
from opd_jax.inference import sampler
from opd_jax.inference.buckets import bucket
from opd_jax.inference.sampler import Model
from opd_jax.judges.protocol import WorkingJudge
from opd_jax.judges.scenes import Scene
from opd_jax.losses.divergences import ForwardKL, ReverseKL
from opd_jax.losses.supports import Full, Support
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.losses.vocab_shard import Target
from opd_jax.responses import PromptBatch, Responses
from opd_jax.training import gradient, writers
from opd_jax.training.gradient import Batch
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.state import RunPosition, State
from opd_jax.types import AnyArray, Prompts, ScoreRequest

STREAM = 2**31 - 5  # of the stage's key: no row has this number
KLS = {
  'reverse_kl': DivergenceTerm(divergence=ReverseKL(), support=Support(entries=Full())),
  'forward_kl': DivergenceTerm(divergence=ForwardKL(), support=Support(entries=Full())),
}


class Gap(NamedTuple):
  """A student and its teacher on some problems."""

  student: float  # accuracy
  teacher: float
  gap: float
  low: float  # 95 % interval of the gap, over problems; NaN for a single one
  high: float
  reverse_kl: float  # nats a token; NaN where the context shows nothing at all
  forward_kl: float
  shown: float  # share of the rows of which the context shows something
  problems: int
  samples: int


class _Part(NamedTuple):
  """What some problems tell."""

  student: Float[AnyArray, ' N']  # accuracy of each problem
  teacher: Float[AnyArray, ' N']
  sums: dict[str, float]  # of divergences over tokens, and `tokens`
  shown: int  # rows


def measure(
  runtime: StageRuntime, state: State, task: Task, problems: Sequence[Problem], *, samples: int
) -> Gap:
  """Measures a stage's student against its teacher.

  Args:
    runtime: the stage; its decoding, budget and templates are used.
    state: whose weights.
    task: whose verifier says what is correct.
    problems: as many as are to be asked; a batch of the stage is asked at a time.
    samples: of each problem by either of the two.
  """
  step = runtime.stage.prompts
  parts = [
    _measured(runtime, state, task, problems[begin : begin + step], begin * samples, samples)
    for begin in range(0, len(problems), step)
  ]
  student, teacher = (
    np.concatenate([getattr(part, name) for part in parts]) for name in ('student', 'teacher')
  )
  total = lambda name: sum(part.sums[name] for part in parts)
  tokens = total('tokens')
  kls = {name: total(name) / tokens if tokens else float('nan') for name in KLS}
  low, high = interval(teacher - student)
  return Gap(
    student=float(student.mean()),
    teacher=float(teacher.mean()),
    gap=float((teacher - student).mean()),
    low=low,
    high=high,
    shown=sum(part.shown for part in parts) / (len(problems) * samples),
    problems=len(problems),
    samples=samples,
    **kls,
  )


def _measured(
  runtime: StageRuntime,
  state: State,
  task: Task,
  problems: Sequence[Problem],
  first_row: int,
  samples: int,
) -> _Part:
  template, tokenizer = runtime.stage.template, runtime.tokenizer
  batch = batches.prompt_batch(problems, samples, template, tokenizer, first_row=first_row)
  keys = jax.random.split(jax.random.fold_in(runtime.key, STREAM))
  model = writers.student_model(runtime, state.weights)
  written = _answers(runtime, model, batch, batch.prompts, task, keys[0])
  written = written._replace(rollout=batches.trimmed(written.rollout))
  judge, scenes = runtime.judges['teacher'], runtime.scenes(written, RunPosition())
  sums = _divergences(runtime, state, judge, scenes, written)  # refuses rows without room
  teacher = judge.model(state.weights)
  room = teacher.config.max_positions
  prompts = [
    None if prompt is None or len(prompt) >= room else prompt for prompt in judge.prompts(scenes)
  ]
  own = _own_prompts(runtime, batch, prompts)
  taught = _answers(runtime, teacher, batch, own, task, keys[1])
  return _Part(
    student=_correct(written, samples),
    teacher=_correct(taught, samples),
    sums=sums,
    shown=sum(prompt is not None for prompt in prompts),
  )


def _answers(
  runtime: StageRuntime,
  model: Model,
  batch: PromptBatch,
  prompts: Prompts,
  task: Task,
  key: PRNGKeyArray,
) -> Responses:
  """Verified responses by one of the two, as the stage samples at its first step."""
  rollout = sampler.generate(model, prompts, key, sampling=runtime.sampling)
  stops = runtime.sampling.decoding.stop_tokens
  return batches.verified(batch.problems, rollout, runtime.tokenizer, task, stops=stops)


def _own_prompts(
  runtime: StageRuntime, batch: PromptBatch, prompts: Sequence[list[int] | None]
) -> Prompts:
  """What the teacher reads; the student's prompt where its context shows nothing."""
  plain = unpadded(batch.prompts)
  tokens = [each if each is not None else mine for each, mine in zip(prompts, plain, strict=True)]
  width = bucket(max(map(len, tokens)), minimum=8, maximum=1 << 30)
  own = left_padded(tokens, width=width, pad=runtime.tokenizer.pad)
  return own._replace(row=batch.prompts.row, group=batch.prompts.group)


def _correct(responses: Responses, samples: int) -> Float[AnyArray, ' N']:
  """The share of correct responses to each problem."""
  correct = np.array([outcome == 'correct' for outcome in responses.outcomes], np.float64)
  return correct.reshape(-1, samples).mean(axis=1)


def _divergences(
  runtime: StageRuntime,
  state: State,
  judge: WorkingJudge,
  scenes: Sequence[Scene],
  written: Responses,
) -> dict[str, float]:
  """Sums over the tokens that the student wrote and the teacher knows."""
  weights, rollout = state.weights, written.rollout
  scores = judge.score(weights, scenes, rollout, None, ScoreRequest(hidden=True))
  target: Any = Target(hidden=scores.hidden, head=judge.head(weights))
  mask = np.asarray(rollout.mask) & np.asarray(scores.known)
  found = gradient.measured(
    weights.student,
    Batch(rollout, mask, {'teacher': target}, ()),
    KLS,
    config=runtime.config,
    layout=runtime.layout,
    microbatches=runtime.stage.microbatches,
  )
  sums = {name: float(values[mask].sum(dtype=np.float64)) for name, values in found.items()}
  return {**sums, 'tokens': float(mask.sum())}
