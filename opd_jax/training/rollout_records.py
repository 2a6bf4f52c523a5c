"""Floor 5. What rollouts.jsonl keeps of a batch: some responses token by token, with what everybody thought of them.

A line is one response. `shown` says what judges with a context read in place of the prompt. Lists of numbers have one
entry a token, null where nobody knows; `pieces` says what an id reads like. Numbers keep four digits: they are looked
at, not computed with.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from opd_jax.data.tokenizers import Tokenizer
from opd_jax.method import Evidence, WeightedTerms
from opd_jax.processes import to_host
from opd_jax.responses import Responses
from opd_jax.static import static
from opd_jax.types import ENDINGS, NOBODY, WRITERS, Scores, TopK


@static
class RolloutRecords:
  """Which rollouts are kept token by token, for the viewer of `opd report`.

  Args:
    every: steps between two records; the first step has one, too.
    rows: the most responses of a record: the first of the batch, so that samples of one question stay together.
    context: the most characters kept of what a judge with a context read.
    top_k: the most entries kept of a list of likeliest tokens; lists are there where a judge was asked for
      them, the student's also where `Sampling.recording` says so.
    mib: the most that the file may grow to; what does not fit is left out, and said once. A token with two lists of 8
      takes about 150 bytes.
  """

  every: int = 50
  rows: int = 32
  context: int = 2000
  top_k: int = 8
  mib: int = 64

  def __post_init__(self):
    for name, least in (('every', 1), ('rows', 1), ('context', 0), ('top_k', 0), ('mib', 1)):
      value = getattr(self, name)
      if not isinstance(value, int) or value < least:
        raise ValueError(
          f'RolloutRecords: {name} must be a whole number of at least {least}, got {value!r}. To keep no rollouts, '
          'bind Experiment.rollouts = None.'
        )

  def is_due(self, step: int) -> bool:
    """Whether the batch of a step is kept."""
    return step == 1 or step % self.every == 0


def record_of(
  responses: Responses,
  evidence: Evidence,
  terms: WeightedTerms,
  tokenizer: Tokenizer,
  settings: RolloutRecords,
  *,
  step: int,
  stage: str,
  shown: Sequence[Mapping[str, str | None]] | None = None,
) -> list[dict[str, Any]]:
  """One object for each kept response; every process calls it, since arrays may lie in several.

  Args:
    shown: what judges with a context read of each row.
  """
  count = min(settings.rows, len(responses.problems))
  rows = _rows_of(responses, evidence, terms, count, settings.top_k)
  names = tokenizer.strings()
  pieces: dict[int, str] = {}
  return [
    {
      'step': step,
      'stage': stage,
      'row': row,
      'problem': responses.problems[row].id,
      'prompt': responses.problems[row].messages[-1]['content'],
      **({} if shown is None or not shown[row] else {'shown': dict(shown[row])}),
      'reward': _short([responses.rollout.reward[row]])[0],
      'length': int(length),
      'ended_by': ENDINGS[int(responses.rollout.ended_by[row])],
      **_tokens_of(rows, row, int(length), tokenizer, names, pieces),
    }
    for row, length in enumerate(responses.rollout.lengths[:count].tolist())
  ]


def _rows_of(
  responses: Responses, evidence: Evidence, terms: WeightedTerms, count: int, top_k: int
) -> dict[str, Any]:
  """Arrays of the kept rows in the memory of the host; cut before they travel."""
  best = lambda top: jax.tree.map(lambda x: x[:count, :, :top_k], top) if top_k else None
  rollout = responses.rollout
  scores = dict(evidence.scores)
  student = scores['student']  # what nobody scored, the sampler may have noted
  scores['student'] = student._replace(
    entropy=rollout.entropy if student.entropy is None else student.entropy,
    top_k=rollout.top_k if student.top_k is None else student.top_k,
  )
  kept = {
    'response': rollout.response[:count],
    'mask': rollout.mask[:count],
    'writer': rollout.writer[:count],
    'logp': {name: _known(each, each.logp, count) for name, each in scores.items()},
    'entropy': {
      name: _known(each, each.entropy, count)
      for name, each in scores.items()
      if each.entropy is not None
    },
    'coefficients': {name: value[:count] for name, value in _coefficients(terms)},
    'top_k': {name: best(top) for name, top in _lists(scores) if top is not None and top_k},
  }
  return to_host(kept)


def _known(scores: Scores, values: Any, count: int) -> Any:
  """Values of the kept rows, and where they mean something."""
  return values[:count], scores.known[:count]


def _lists(scores: Mapping[str, Scores]) -> Iterable[tuple[str, TopK | None]]:
  for name, each in scores.items():
    yield name, each.top_k
    yield f"{name}, at the student's best", each.at_ids


def _coefficients(terms: WeightedTerms) -> Iterable[tuple[str, Any]]:
  """The coefficient of every term by its name; a term of a ratio carries its advantage apart."""
  seen: Counter[str] = Counter()
  for term, coefficient, inputs in terms:
    name = term.name.removesuffix('()')
    seen[name] += 1
    name += f' ({seen[name]})' if seen[name] > 1 else ''
    yield name, coefficient
    if 'advantage' in inputs:
      yield f'{name}, its advantage', inputs['advantage']


def _tokens_of(
  rows: Mapping[str, Any],
  row: int,
  length: int,
  tokenizer: Tokenizer,
  names: Sequence[str | None],
  pieces: dict[int, str],
) -> dict[str, Any]:
  """The part of a record that has an entry for each token."""
  ids = rows['response'][row, :length].tolist()
  known = lambda pair: _short(np.where(pair[1], pair[0], np.nan)[row, :length])
  lists = {
    name: {
      'ids': top.ids[row, :length].tolist(),
      'logp': [_short(each) for each in top.logp[row, :length]],
    }
    for name, top in rows['top_k'].items()
  }
  shown = {*ids, *(each for top in lists.values() for entries in top['ids'] for each in entries)}
  for token in shown - pieces.keys():
    pieces[token] = piece_of(token, tokenizer, names)
  initial = [' ' if who == NOBODY else WRITERS[who][0] for who in rows['writer'][row, :length]]
  return {
    'ids': ids,
    'pieces': {str(token): pieces[token] for token in sorted(shown)},
    'writer': ''.join(initial),
    'counts': ''.join('01'[int(counts)] for counts in rows['mask'][row, :length]),
    'logp': {name: known(pair) for name, pair in rows['logp'].items()},
    'entropy': {name: known(pair) for name, pair in rows['entropy'].items()},
    'coefficients': {name: _short(x[row, :length]) for name, x in rows['coefficients'].items()},
    'top_k': lists,
  }


def piece_of(token: int, tokenizer: Tokenizer, names: Sequence[str | None]) -> str:
  """What a token reads like alone; its name where that is no whole character, or stands for structure."""
  name = names[token] if 0 <= token < len(names) else None
  if name is None:
    return f'<{token}>'
  text = tokenizer.decode([token])
  if not text or '\ufffd' in text:
    return name
  drops_space = name.startswith('▁') and not text.startswith(' ')  # SentencePiece, at the beginning
  return f' {text}' if drops_space else text


def _short(values: Any) -> list[float | None]:
  """Numbers with four digits; null where they are not finite."""
  return [
    float(f'{value:.4g}') if math.isfinite(value) else None
    for value in np.asarray(values, np.float64).tolist()
  ]
