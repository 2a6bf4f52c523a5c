"""Floor 5. What is measured on the way, on problems that are never trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opd_jax import rollouts
from opd_jax.data.problems import Problem
from opd_jax.data.stream import first
from opd_jax.inference import sampler
from opd_jax.processes import to_host
from opd_jax.training.bench import Bench, Responses, asked, ready, texts_of, verified
from opd_jax.training.experiment import Evaluation
from opd_jax.training.metrics import of_rollout

ROWS = 1 << 28  # row numbers of evaluations: their random streams are never those of training


def problems_of(evaluation: Evaluation) -> list[Problem]:
  found = first(evaluation.task, evaluation.problems)
  if len(found) < evaluation.problems:
    raise ValueError(
      f'evaluation: {evaluation.problems} problems are asked for, the task has {len(found)}.'
    )
  return found


def evaluate(
  bench: Bench, evaluation: Evaluation, problems: Sequence[Problem]
) -> tuple[Mapping[str, Any], Responses]:
  """Accuracy (the mean over all samples), lengths, and the gap to the teacher where there is one."""
  sampling = bench.sampling
  if evaluation.decoding is not None:
    sampling = ready(
      sampler.Sampling(decoding=evaluation.decoding, budget=sampling.budget, slots=sampling.slots),
      bench.tokenizer,
      bench.config.vocab_size,
    )
  batch = asked(problems, evaluation.samples, bench.stage.template, bench.tokenizer, first_row=ROWS)
  rollout = sampler.generate(bench.writer(), batch.prompts, bench.key, sampling=sampling)
  written = Responses(batch.problems, rollout, texts_of(rollout, bench.tokenizer))
  written = verified(written, evaluation.task.verify)
  told = of_rollout(written.rollout, step=0)
  found = {'eval/length': told['length'], 'eval/truncated': told['truncated']}
  if 'reward' in told:
    found['eval/accuracy'] = told['reward']
  if (
    evaluation.decoding is None and not bench.stage.sampling.decoding.rules
  ):  # of other texts these are no such means
    found |= _of_its_own_text(bench, written)
  return found, written


def _of_its_own_text(bench: Bench, written: Responses) -> dict[str, float]:
  """Means over tokens drawn from the student itself: of -log p its entropy, of log p / q the reverse KL."""
  rollout = rollouts.trimmed(written.rollout)
  mask = rollout.mask
  if not mask.any():
    return {}
  found = {'eval/entropy': float(-rollout.logp[mask].mean())}
  routes = {route for route, _ in bench.seats.get('teacher', [])}
  if routes and (routes == {''} or routes >= {problem.route for problem in written.problems}):
    scores, judged = bench.judged('teacher', written._replace(rollout=rollout))
    gap, counted = rollout.logp - np.asarray(to_host(scores.logp)), mask & judged[:, None]
    found['eval/reverse_kl'] = float(gap[counted].mean()) if counted.any() else 0.0
  return found
