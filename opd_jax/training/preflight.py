"""Floor 5. What is looked at before step 0: cheap to check now, silent and expensive later.

Tokenizers and stop sets agree · prompts of all roles are shown · a teacher says the same twice · teacher = student
would say exactly what the student says · every program runs once.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from opd_jax.data import tokenizers
from opd_jax.data.prompts import unpadded
from opd_jax.data.tokenizers import HubTokenizer
from opd_jax.inference import scorer
from opd_jax.processes import to_host
from opd_jax.storage import huggingface
from opd_jax.training.bench import Bench, shown
from opd_jax.training.checkpoints import RunPosition
from opd_jax.training.step import State

SHOWN = 600  # characters of a prompt
PLAIN, WHOLE = scorer.Needs(), scorer.Needs(hidden=True)


def check(bench: Bench, state: State, place: RunPosition, say: Callable[[str], None]) -> State:
  """Raises with what is wrong; says what was seen. The state goes through the dry step and comes back as it was."""
  _vocabularies(bench)
  before = bench.stream.state()
  problems = bench.stream.take(bench.stage.prompts)
  bench.stream.restore(before)  # the run itself begins with the same problems
  question = bench.stage.template.render(bench.tokenizer, problems[0].messages)
  say(f'the student reads: {_text(bench, question)!r}')
  bench.look_at(state)
  written = bench.sample(place, problems)
  say(f'and writes:        {written.texts[0][:SHOWN]!r}')
  for name, seats in bench.seats.items():
    for _, seat in seats:
      prompts = shown(seat, written)
      known = next((prompt for prompt in prompts if prompt is not None), None)
      say(
        f'{name} reads:{"":{max(11 - len(name), 0)}}{_text(bench, known)!r}'
        if known
        else f'{name} judges nothing here'
      )
      live = dataclasses.replace(seat, judge=dataclasses.replace(seat.judge, cache=None))
      once, again = (
        to_host(live.score(prompts, written.rollout, None, PLAIN)[0].logp) for _ in range(2)
      )
      if not np.array_equal(once, again, equal_nan=True):
        raise ValueError(
          f'preflight: the judge {name} gave two answers to one question; its numbers cannot be trusted.'
        )
  evidence = bench.score(place, written)
  _same_model_says_the_same(bench, evidence)
  batch, _ = bench.weigh(evidence)
  state, told = bench.update(state, batch, dry=True)
  say(f'dry step:          loss {told["loss"]:.4g}, gradient norm {told["grad_norm"]:.4g}')
  return state


def _text(bench: Bench, tokens: list[int]) -> str:
  """With the special tokens, which is where templates go wrong."""
  strings = bench.tokenizer.strings()
  if isinstance(bench.tokenizer, HubTokenizer):
    special = set(bench.tokenizer.specials().values())
    return ''.join(
      str(strings[t]) if t in special else bench.tokenizer.decode([t]) for t in tokens
    )[:SHOWN]
  return ''.join(str(strings[token]) for token in tokens)[:SHOWN]


def _vocabularies(bench: Bench) -> None:
  for name, seats in bench.seats.items():
    for _, seat in seats:
      if seat.config.vocab_size != bench.config.vocab_size:
        raise ValueError(
          f'preflight: the judge {name} has {seat.config.vocab_size} entries in its vocabulary, the student '
          f'{bench.config.vocab_size}. Position by position they can only be compared over one vocabulary.'
        )
      if seat.judge.weights is None or '/' not in seat.judge.weights:
        continue
      folder = huggingface.folder_of(seat.judge.weights)
      if isinstance(bench.tokenizer, HubTokenizer) and (folder / 'tokenizer.json').is_file():
        tokenizers.compare(
          bench.tokenizer, HubTokenizer(folder), student_rows=bench.config.vocab_size,
          teacher_rows=seat.config.vocab_size,
        ).check()  # fmt: skip


def _same_model_says_the_same(bench: Bench, evidence) -> None:
  """A judge with the student's weights and prompt agrees with the student to rounding: nothing is off by one."""
  rollout = evidence.rollout
  prompts = unpadded(rollout.prompt)
  once, again = (
    np.asarray(to_host(bench.mine.score(prompts, rollout, None, needs)[0].logp))
    for needs in (PLAIN, WHOLE)
  )
  worst = float(np.abs(again - once)[np.asarray(rollout.mask)].max(initial=0.0))
  drawn = np.asarray(rollout.by_student) & np.asarray(rollout.mask)
  written = np.abs(np.asarray(rollout.logp) - once)[drawn]
  bound = bench.experiment.bounds.gap
  close = 1e-4 if bench.config.dtype == 'float32' else 0.1
  if worst > close or (written.size and bound is not None and written.mean() > bound):
    raise ValueError(
      f'preflight: the student disagrees with itself: two scorings by {worst:.3g} nats, sampler and scorer by '
      f'{written.mean() if written.size else 0:.3g} on average.'
    )
