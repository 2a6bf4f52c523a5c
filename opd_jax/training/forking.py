"""Floor 5. Forks of a batch: written from inside its responses, scored, joined to its evidence as further rows."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from opd_jax import responses as batches
from opd_jax.data.prompts import left_padded, unpadded
from opd_jax.data.templates import TaughtTokens
from opd_jax.forks import Forks, check_places
from opd_jax.inference import sampler
from opd_jax.inference.buckets import bucket
from opd_jax.judges.scenes import Scene
from opd_jax.method import Evidence, WeightedTerms
from opd_jax.processes import to_host
from opd_jax.responses import PromptBatch, Responses
from opd_jax.rollouts import writing
from opd_jax.training import gradient, moving, scoring, writers
from opd_jax.training.gradient import Batch
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.scoring import Moment
from opd_jax.types import ENDINGS, NOBODY, STUDENT, TEACHER, Rollout, Weights

FORKED = 2**31 - 4  # folded into the key of what forks write: no row has this number


def forked(
  runtime: StageRuntime,
  weights: Weights,
  responses: Responses,
  scenes: Sequence[Scene],
  evidence: Evidence,
  moment: Moment,
) -> Evidence:
  """Evidence of a batch and, behind its rows, of the forks that the method plans on it."""
  forks = Forks(*map(np.asarray, to_host(runtime.plan_forks(evidence))))
  stopped = np.asarray(responses.rollout.ended_by) == ENDINGS.index('stop')
  where = f'stage {runtime.stage.name}: the method ({runtime.stage.method.paper})'
  check_places(forks, responses.rollout.lengths, stopped, where=where)
  rollout = write(runtime, weights, responses, scenes, forks, moment)
  parents = [scenes[row] for row in np.maximum(forks.row, 0).tolist()]
  scores = scoring.scores_of(runtime, weights, rollout, parents)
  width = max(rollout.response.shape[1], responses.rollout.response.shape[1])
  prompt = jax.tree.map(lambda x: np.concatenate([x, x[forks.row]]), responses.rollout.prompt)
  rows = _joined(*(_wider(_bare(each), width) for each in (responses.rollout, rollout)))
  together = {
    name: _joined(_wider(each, width), _wider(scores[name], width))
    for name, each in evidence.scores.items()
  }
  rows = rows._replace(prompt=prompt)
  return scoring.evidence_of(runtime, weights, rows, together, moment, forks, evidence.measures)


def taught(runtime: StageRuntime, batch: Batch, forks: Forks | None) -> Batch:
  """A weighed batch without forks that no term weighs: they would go through the update for nothing.

  Some of them stay where numbers of rows are rounded up, so that few programs are compiled.
  """
  if forks is None:
    return batch
  layout, count = runtime.layout, runtime.stage.microbatches
  weighs = to_host(_weighs(batch.terms))
  own, most = len(weighs) - len(forks.row), len(forks.row)
  wanted = int(weighs[own:].sum())
  least = bucket(wanted, minimum=1, maximum=most) if wanted else 0
  fits = lambda kept: gradient.dealable(own + kept, count, devices=layout.size('batch'))
  kept = next(filter(fits, range(least, most)), most)
  if kept == most:
    return batch
  chosen = np.sort(np.argsort(~weighs[own:], kind='stable')[:kept])
  rows = np.concatenate([np.arange(own), own + chosen])
  rollout = jax.tree.map(lambda x: np.asarray(x)[rows], batch.rollout)
  size, columns = rollout.response.shape[1], rollout.prompt.tokens.shape[1]
  cut = gradient.part(batch, rows, width=size, columns=columns, layout=layout)
  return cut._replace(rollout=rollout)


@jax.jit
def _weighs(terms: WeightedTerms) -> Bool[Array, ' B']:
  """The rows in which some term has a coefficient."""
  return functools.reduce(jnp.logical_or, [(each.coefficient != 0).any(axis=1) for each in terms])


def write(
  runtime: StageRuntime,
  weights: Weights,
  responses: Responses,
  scenes: Sequence[Scene],
  forks: Forks,
  moment: Moment,
) -> Rollout:
  """The rows of the forks: the tokens that they share with the row they leave, and what was written behind."""
  forking, rollout, position = runtime.stage.method.forks, responses.rollout, moment.position
  assert forking is not None
  leaves = zip(*(np.asarray(each).tolist() for each in forks[:3]), strict=True)
  shared = [
    [*rollout.response[row, :at].tolist(), *([first] if first >= 0 else [])] if row >= 0 else []
    for row, at, first in leaves
  ]
  sampling = dataclasses.replace(runtime.sampling, budget=forking.tokens)
  numbers = sampling.decoding.numbers_at(position.stage_step, moving.decisions(position.moving))
  goes_on = (forks.row >= 0) & ~np.isin(forks.first, sampling.decoding.stop_tokens)
  ahead = np.array([len(front) for front in shared])
  room = runtime.config.max_positions - np.asarray(rollout.prompt.length)[forks.row] - ahead
  budgets = np.where(goes_on, np.clip(room, 0, forking.tokens), 0)  # within the student's table
  parts = []
  for writer in (STUDENT, TEACHER):
    here = np.asarray(forks.writer) == writer
    if not here.any():
      continue
    model, prompts = _writer(runtime, weights, responses, scenes, forks.row[here], writer)
    longer = [
      prompt + front for prompt, front in zip(unpadded(prompts), _pick(shared, here), strict=True)
    ]
    shown = left_padded(
      longer, width=bucket(max(map(len, longer)), minimum=8, maximum=1 << 30), pad=0
    )
    order = np.flatnonzero(here).astype(np.int32)
    written = sampler.generate(
      model,
      shown._replace(row=order),
      jax.random.fold_in(jax.random.fold_in(runtime.key, FORKED), position.step),
      sampling=writing.within(sampling, model, runtime.config.vocab_size),
      budgets=budgets[here].tolist(),
      version=position.step,
      numbers=numbers,
    )
    own = writing.chosen(rollout.prompt, forks.row[here])  # of one width, whoever writes
    parts.append(written._replace(prompt=own._replace(row=order)))
  return _behind(
    rollout, forks, shared, writing.joined(parts), stopped=np.asarray(forks.row >= 0) & ~goes_on
  )


def _pick(values: list[Any], here: np.ndarray) -> list[Any]:
  return [value for value, wanted in zip(values, here, strict=True) if wanted]


def _writer(runtime, weights: Weights, responses: Responses, scenes, rows, writer: int):
  """A model, and its own prompts of some rows of a batch."""
  prompts = responses.rollout.prompt
  if writer == STUDENT:
    return writers.student_model(runtime, weights), writing.chosen(prompts, rows)
  wanted = np.zeros(len(prompts.row), bool)
  wanted[rows[rows >= 0]] = True
  batch = PromptBatch(responses.problems, prompts)
  teacher = writers.teacher_writer(runtime, weights, batch, scenes, wanted)  # as forks are judged
  assert isinstance(teacher, writing.Writer)  # forks of a served teacher are refused
  return teacher.model, writing.chosen(teacher.prompts, rows)


def _behind(
  rollout: Rollout, forks: Forks, shared: list[list[int]], written: Rollout, stopped: np.ndarray
) -> Rollout:
  """Rows of forks: what is shared is read and does not count; from where they leave on, they do."""
  width = rollout.response.shape[1] + 1 + written.response.shape[1]
  fronts = [
    TaughtTokens(front, [column >= at for column in range(len(front))])
    for front, at in zip(shared, np.asarray(forks.at).tolist(), strict=True)
  ]
  prefix = writing.given(writing.chosen(rollout.prompt, forks.row), fronts, width=width)
  rows = writing.behind(prefix, _wider(_bare(written), width), stopped, counts=True)
  writer = np.where(rows.writer != NOBODY, np.asarray(forks.writer)[:, None], NOBODY)
  return batches.trimmed(rows._replace(writer=writer.astype(np.int32)))


def _bare(rollout: Rollout) -> Rollout:
  """Without its prompt, and without what not all writers recorded."""
  return rollout._replace(prompt=None, entropy=None, top_k=None)


def _wider(tree: Any, width: int) -> Any:
  """Arrays [B, R, …] with further columns of nothing."""

  def one(x):
    room = [(0, 0), (0, width - x.shape[1]), *[(0, 0)] * (x.ndim - 2)] if x.ndim >= 2 else None
    return x if room is None else _home(x).pad(x, room)

  return jax.tree.map(one, tree)


def _joined(one: Any, other: Any) -> Any:
  return jax.tree.map(lambda a, b: _home(a).concatenate([a, b]), one, other)


def _home(x: Any) -> Any:
  """Who works with an array where it is: rollouts are in host memory, scores on devices."""
  return np if isinstance(x, np.ndarray) else jnp
