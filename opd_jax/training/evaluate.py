"""Floor 5. What is measured on the way, on problems that are never trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from opd_jax.data.tasks import Problem, first
from opd_jax.inference import sampler, scorer
from opd_jax.training.bench import Bench, Written, asked, ready, texts_of, verified
from opd_jax.training.experiment import Evaluation
from opd_jax.training.metrics import of_rollout

ROWS = 1 << 28  # row numbers of evaluations: their random streams are never those of training


def problems_of(evaluation: Evaluation) -> list[Problem]:
  found = first(evaluation.task, evaluation.problems)
  if len(found) < evaluation.problems:
    raise ValueError(f'evaluation: {evaluation.problems} problems are asked for, the task has {len(found)}.')
  return found


def evaluate(bench: Bench, evaluation: Evaluation, problems: Sequence[Problem]) -> tuple[Mapping[str, Any], Written]:
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
  written = Written(batch.problems, rollout, texts_of(rollout, bench.tokenizer))
  written = verified(written, evaluation.task.verify)
  told = of_rollout(written.rollout, step=0)
  found = {'eval/length': told['length'], 'eval/truncated': told['truncated']}
  if 'reward' in told:
    found['eval/accuracy'] = told['reward']
  mask = rollout.mask
  found['eval/surprise'] = float(-rollout.logp[mask].mean()) if mask.any() else 0.0  # of its own tokens: the entropy
  if 'teacher' in bench.seats and not bench.seats['teacher'][0][0]:
    seat = bench.seats['teacher'][0][1]
    prompts = [bench.stage.template.render(bench.tokenizer, problem.messages) for problem in batch.problems]
    scores, _ = seat.score(prompts, rollout, None, scorer.Needs())
    gap = rollout.logp - np.asarray(jax.device_get(scores.logp))
    found['eval/reverse_kl'] = float(gap[mask].mean()) if mask.any() else 0.0
  return found, written
