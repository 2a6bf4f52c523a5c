"""Floor 4. One evaluation: fixed problems, its own budget, template, rules and random streams."""

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from opd_jax import kinds
from opd_jax import responses as batches
from opd_jax.data.problems import Problem, Task
from opd_jax.data.stream import first
from opd_jax.data.templates import Template
from opd_jax.data.tokenizers import Tokenizer
from opd_jax.evaluation import summary
from opd_jax.inference import sampler, speculative
from opd_jax.inference.decoding import Decoding
from opd_jax.inference.sampler import Model, Sampling
from opd_jax.judges.protocol import WorkingJudge
from opd_jax.judges.routing import RoutedJudge
from opd_jax.judges.scenes import scenes_of
from opd_jax.processes import to_host
from opd_jax.ramps import NO_DECISIONS
from opd_jax.responses import Responses, trimmed
from opd_jax.types import ENDINGS, ScoreRequest, Weights

STREAM = 2**31 - 1  # of the experiment's key: no stage has this number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """Problems that are never trained on, and how they are asked.

  Args:
    task: whose first problems are taken.
    name: in metrics, `eval/<name>/…`; None takes the task's.
    problems: how many of them.
    samples: responses to each; avg@k is the share of correct ones among all of them.
    ks: which pass@k are reported; None takes 4, 8, 16, … and all samples.
    every: steps between two evaluations; there is one before the first step, and one after each stage. 0: no others.
    budget: most tokens of a response.
    decoding: rules of the responses; the default draws from the model itself.
    template: how the model is addressed; a judge that names no template of its own is addressed so, too.
    slots: rows in flight.
    draft_of_teacher: proposals at a time, where the student is measured as a draft of the teacher too; 0: it is not.
  """

  task: Task
  name: str | None = None
  problems: int = 64
  samples: int = 1
  ks: Sequence[int] | None = None
  every: int = 50
  budget: int = 256
  decoding: Decoding = Decoding()
  template: Template = dataclasses.field(default_factory=Template)
  slots: int = 64
  draft_of_teacher: int = 0

  def __post_init__(self):
    for field, least in (
      ('problems', 1),
      ('samples', 1),
      ('every', 0),
      ('budget', 1),
      ('slots', 1),
      ('draft_of_teacher', 0),
    ):
      kinds.check_whole(f'Evaluation {self.label}: {field}', getattr(self, field), least=least)
    if self.draft_of_teacher and (beside := [r for r in self.decoding.rules if r.beside]):
      raise ValueError(
        f'Evaluation {self.label}: draft_of_teacher lets the teacher write from proposals, and the rule '
        f'{type(beside[0]).__name__} mixes two models. Take out one or the other.'
      )
    for k in self.counts:
      if not isinstance(k, int) or not 1 <= k <= self.samples:
        raise ValueError(
          f'Evaluation {self.label}: ks are whole numbers from 1 to its {self.samples} samples, got {k!r}.'
        )

  @property
  def counts(self) -> tuple[int, ...]:
    """The k of its pass@k."""
    return summary.counts_of(self.samples) if self.ks is None else tuple(self.ks)

  @property
  def label(self) -> str:
    return self.name or self.task.name

  @property
  def reported(self) -> tuple[str, ...]:
    """The measures that it may report, without those that compare with a judge."""
    verified = (f'avg@{self.samples}', *(f'pass@{k}' for k in self.counts), *summary.OF_VERIFIED)
    return (
      *(verified if self.task.verify is not None else ()),
      *summary.OF_ALL,
      *(() if self.decoding.rules else ('entropy',)),
    )

  @functools.cached_property
  def chosen(self) -> list[Problem]:
    """Its problems, all that it asks for."""
    problems = first(self.task, self.problems)
    if len(problems) < self.problems:
      raise ValueError(
        f'evaluation {self.label}: {self.problems} problems are asked for, the task has {len(problems)}.'
      )
    return problems

  def check_room(self, tokenizer: Tokenizer, positions: int) -> int:
    """The tokens of its longest prompt. Refuses, by its name, one that is longer than a model's position table."""
    longest = 0
    for problem in self.chosen:
      length = len(self.template.render(tokenizer, problem.messages))
      longest = max(longest, length)
      if length > positions:
        raise ValueError(
          f'evaluation {self.label}: the prompt of {problem.name} has {length} tokens, the model has {positions} '
          'positions. Take a model with more of them, or leave the problem out of the file.'
        )
    return longest

  def sampling(self, tokenizer: Tokenizer, columns: int) -> Sampling:
    """How its responses are drawn from a model with so many entries in its vocabulary."""
    known = Sampling(decoding=self.decoding, budget=self.budget, slots=self.slots)
    return batches.complete_sampling(known, tokenizer, columns)

  def is_due(self, step: int) -> bool:
    """Whether it takes place after this step, not being the last of a stage."""
    return self.every > 0 and step % self.every == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
  """What `opd evaluate` asks a model.

  Args:
    evaluations: one or several.
  """

  evaluations: Sequence[Evaluation]


class Outcome(NamedTuple):
  """What an evaluation found."""

  metrics: Mapping[str, Any]
  responses: Responses


class Evaluator:
  """An evaluation with its problems at hand."""

  def __init__(self, evaluation: Evaluation, tokenizer: Tokenizer, key: PRNGKeyArray):
    self.evaluation, self.tokenizer = evaluation, tokenizer
    name = zlib.crc32(evaluation.label.encode())  # evaluations do not share their random streams
    self.key = jax.random.fold_in(jax.random.fold_in(key, STREAM), name)
    self.problems = evaluation.chosen

  def run(self, model: Model) -> Outcome:
    """Samples, verifies, and counts."""
    responses = self.sample(model, 0, len(self.problems))
    return Outcome(self._metrics(responses), responses)

  def sample(self, model: Model, begin: int, end: int) -> Responses:
    """Verified responses to some of the problems. A row's random stream does not depend on which others are asked."""
    known = self.evaluation
    sampling = known.sampling(self.tokenizer, model.config.vocab_size)
    batch = self._asked(begin, end)
    rollout = sampler.generate(model, batch.prompts, self.key, sampling=sampling)
    stops = sampling.decoding.stop_tokens
    return batches.verified(batch.problems, rollout, self.tokenizer, known.task, stops=stops)

  def _asked(self, begin: int, end: int) -> batches.PromptBatch:
    known = self.evaluation
    return batches.prompt_batch(
      self.problems[begin:end],
      known.samples,
      known.template,
      self.tokenizer,
      first_row=begin * known.samples,
    )

  def drafting(self, student: Model, teacher: Model) -> dict[str, float]:
    """How far the student helps its teacher as the draft of speculative sampling; both read the student's prompts."""
    known, prefix = self.evaluation, f'eval/{self.evaluation.label}'
    told = speculative.generate(
      teacher,
      student,
      self._asked(0, len(self.problems)).prompts,
      self.key,
      sampling=known.sampling(self.tokenizer, student.config.vocab_size),
      proposals=known.draft_of_teacher,
    )
    return {
      f'{prefix}/acceptance': told.acceptance,
      f'{prefix}/block_efficiency': told.block_efficiency,
    }

  def _metrics(self, responses: Responses) -> dict[str, Any]:
    known, rollout, prefix = self.evaluation, responses.rollout, f'eval/{self.evaluation.label}'
    rows = self.outcomes(responses, step=0, seed=0)
    means = summary.by_problem(rows, samples=known.samples, ks=known.counts)
    metrics = {f'{prefix}/{name}': float(values.mean()) for name, values in means.items()}
    metrics |= {f'{prefix}/{name}': value for name, value in summary.shares(rows).items()}
    if not known.decoding.rules and rollout.mask.any():
      # Of text drawn from the model itself, -log p averages to its entropy.
      metrics[f'{prefix}/entropy'] = float(-rollout.logp[rollout.mask].mean())
    return metrics

  def reverse_kl(
    self,
    judge: WorkingJudge,
    weights: Weights,
    outcome: Outcome,
    *,
    step: int,
    seed: int,
    decisions: Mapping[str, float] = NO_DECISIONS,
  ) -> dict[str, float]:
    """The mean of log p / q over tokens that the model drew itself; nothing where that would not be the reverse KL.

    Rows that the judge does not know, e.g. for want of room, are left out; `unknown` is their share.

    Args:
      judge: whose q it is.
      weights: for judges that are the student.
      outcome: of `run`.
      step, seed, decisions: for contexts that use them.
    """
    responses = outcome.responses
    if self.evaluation.decoding.rules or not responses.rollout.mask.any():
      return {}
    if isinstance(judge, RoutedJudge) and not judge.table.keys() >= {
      problem.route for problem in responses.problems
    }:
      return {}
    rollout = trimmed(responses.rollout)
    responses = responses._replace(rollout=rollout)
    scenes = scenes_of(responses, seed=seed, step=step, decisions=decisions)
    judge = judge.of_evaluations(self.evaluation.template)
    scores = to_host(judge.score(weights, scenes, rollout, None, ScoreRequest()))
    counted = rollout.mask & np.asarray(scores.known)
    prefix = f'eval/{self.evaluation.label}'
    metrics = {f'{prefix}/unknown': float(1 - counted.any(axis=1).mean())}
    if counted.any():
      gap = rollout.logp - np.asarray(scores.logp)
      metrics[f'{prefix}/reverse_kl'] = float(gap[counted].mean())
    return metrics

  def outcomes(self, responses: Responses, *, step: int, seed: int) -> list[dict[str, Any]]:
    """A record for each response, which paired statistics read."""
    samples = self.evaluation.samples
    rollout = responses.rollout
    return [
      {
        'step': step,
        'evaluation': self.evaluation.label,
        'problem': problem.id,
        'sample': row % samples,
        'outcome': responses.outcomes[row],
        **({'second': responses.second[row]} if responses.second[row] else {}),
        'reward': float(rollout.reward[row]),
        'length': int(rollout.lengths[row]),
        'ended_by': ENDINGS[int(rollout.ended_by[row])],
        'seed': seed,
      }
      for row, problem in enumerate(responses.problems)
    ]
