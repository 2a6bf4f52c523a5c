"""Floor 2. Speculative sampling: a draft model proposes tokens, the target reads them in one pass and keeps some.

The text has the target's distribution, whatever the draft proposes (arXiv:2211.17192, arXiv:2302.01318). Here the draft
is p, as a student is, and the target q, as a teacher is.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int, PRNGKeyArray

from opd_jax.inference import sampler, speculative_programs
from opd_jax.inference.decode_programs import Record, Slots
from opd_jax.inference.sampler import Model, Sampling
from opd_jax.types import Prompts, Rollout


class Speculated(NamedTuple):
  """What was written, and how far the draft helped: counts of each row."""

  rollout: Rollout
  accepted: Int[np.ndarray, ' B']  # proposals that were kept
  judged: Int[np.ndarray, ' B']  # proposals up to the first that was not kept
  passes: Int[np.ndarray, ' B']  # of the target; reading the prompt is none of them

  @property
  def acceptance(self) -> float:
    """The part of the judged proposals that was kept, which estimates Σ_v min(p, q); NaN where none was judged."""
    return _ratio(self.accepted, self.judged)

  @property
  def block_efficiency(self) -> float:
    """Tokens per pass of the target, from 1 to the number of proposals and one; NaN where nothing was written."""
    return _ratio(self.rollout.lengths, self.passes)


def _ratio(part: np.ndarray, whole: np.ndarray) -> float:
  return float(part.sum() / whole.sum()) if whole.sum() else float('nan')


def _takes_back(model: Model) -> None:
  """Refuses a model that cannot forget a token: a proposal that is refused must leave no trace."""
  if model.config.delta is not None:
    raise ValueError(
      f'speculative: layers of {model.config.family} keep a state that cannot take tokens back, which proposals need. '
      'Write without a draft, or take a model whose layers are all attention.'
    )


def check(target: Model, draft: Model, *, sampling: Sampling, proposals: int, longest: int) -> None:
  """Refuses a draft that cannot propose to this target, and rules that do not fit.

  Args:
    target, draft: the models.
    sampling: of the target.
    proposals: tokens that the draft proposes before the target reads them.
    longest: tokens of the longest prompt.
  """
  if isinstance(proposals, bool) or not isinstance(proposals, int) or proposals < 1:
    raise ValueError(
      f'speculative: the draft proposes a whole number of at least 1 token, got {proposals!r}.'
    )
  for model in (target, draft):
    _takes_back(model)
  sizes = target.config.vocab_size, draft.config.vocab_size
  if sizes[0] != sizes[1]:
    raise ValueError(
      f'speculative: the target has {sizes[0]} rows in its vocabulary, the draft {sizes[1]}. Token numbers must mean '
      'the same in both; take a draft with the vocabulary of the target.'
    )
  if target.layout.mesh != draft.layout.mesh:
    raise ValueError(
      'speculative: target and draft run in one program, and they lie on different meshes. Give both the same layout.'
    )
  needed = min(longest + sampling.budget, target.config.max_positions)
  if draft.config.max_positions < needed:
    raise ValueError(
      f'speculative: rows may have {needed} positions and the draft has a table of {draft.config.max_positions}. Take '
      'a draft with a longer one, a smaller budget, or shorter prompts.'
    )
  for rule in sampling.decoding.rules:
    if rule.beside:
      raise ValueError(
        f'speculative: the rule {type(rule).__name__} mixes the writer with a second model, and a draft is no model to '
        'be mixed in. Leave the rule out, or sample without a draft.'
      )


def generate(
  target: Model,
  draft: Model,
  prompts: Prompts,
  key: PRNGKeyArray,
  *,
  sampling: Sampling,
  proposals: int = 4,
  budgets: Sequence[int] | None = None,
  version: int = 0,
  numbers: tuple[np.float32, ...] | None = None,
) -> Speculated:
  """One response of the target for every row of `prompts`; see `sampler.generate`.

  The text has the distribution of `sampler.generate`, and with `Greedy` it is that text but for rounding; with other
  rules the same key draws another text.

  Args:
    target: the writer.
    draft: proposes; the rules apply to it too, so that it proposes what the target might write.
    prompts, key, sampling, budgets, version, numbers: as there.
    proposals: tokens that the draft proposes before the target reads them.
  """
  run = Run(
    target,
    draft,
    prompts,
    key,
    sampling=sampling,
    proposals=proposals,
    budgets=budgets,
    version=version,
    numbers=numbers,
  )
  return sampler.completed(run, lambda: run.speculated)


class Run(sampler.Run):
  """One speculative sampling of one batch; see `sampler.Run`."""

  def __init__(
    self,
    target: Model,
    draft: Model,
    prompts: Prompts,
    key: PRNGKeyArray,
    *,
    sampling: Sampling,
    proposals: int = 4,
    budgets: Sequence[int] | None = None,
    version: int = 0,
    numbers: tuple[np.float32, ...] | None = None,
  ):
    longest = int(np.max(prompts.length, initial=0))
    check(target, draft, sampling=sampling, proposals=proposals, longest=longest)
    self.beyond = proposals
    # Proposals behind the last position are read and thrown away. A rotary table has no end.
    room = target.config.max_positions + proposals
    models = [
      each._replace(config=dataclasses.replace(each.config, max_positions=room))
      for each in map(sampler.unrolled, (target, draft))
    ]
    super().__init__(
      models[0],
      prompts,
      key,
      sampling=sampling,
      others=models[1:],
      budgets=budgets,
      version=version,
      numbers=numbers,
    )
    self.proposals = proposals
    self.rounds = max(sampling.segment // (proposals + 1), 1)
    self.reach = self.rounds * (proposals + 1)
    self.accepted, self.judged, self.passes = np.zeros((3, len(self.rows)), np.int64)
    self.unkept: speculative_programs.Fate | None = None

  @property
  def speculated(self) -> Speculated:
    """What has been written so far."""
    return Speculated(self.rollout, self.accepted, self.judged, self.passes)

  def _advance(
    self, slots: Slots, held: np.ndarray, free_slots: np.int32
  ) -> tuple[Slots, Record, jax.Array]:
    """Runs the rounds of one segment."""
    last = np.array([self._last(row) for row in held.tolist()], np.int32)
    slots, record, self.unkept, count = speculative_programs.speculate(
      self.params, slots, last, free_slots, self.numbers, specs=self.specs,
      decoding=self.sampling.decoding, recording=self.sampling.recording,
      rounds=self.rounds, proposals=self.proposals,
    )  # fmt: skip
    return slots, record, count

  def _last(self, row: int) -> int:
    """The last token of a row: of its response, or of its prompt."""
    if row < 0:
      return 0
    written = self.written[row]
    return int(self.rollout.response[row, written - 1]) if written else self.prompts[row][-1]

  def _keep(self, record: Record, count: int, held: np.ndarray) -> None:
    super()._keep(record, count, held)
    here, fate = held >= 0, jax.device_get(self.unkept)
    for total, flags in zip((self.accepted, self.judged, self.passes), fate, strict=True):
      total[held[here]] += np.asarray(flags[:count]).sum(axis=0)[here]
