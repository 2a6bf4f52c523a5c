"""Floor 6. What `opd sample --draft` adds: a second model that proposes, and what came of its proposals."""

import argparse
import time
from collections.abc import Callable
from typing import Any


def add_draft_flags(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    '--draft',
    metavar='SRC',
    help='a small model that proposes tokens; the text stays that of --model',
  )
  add('--proposals', type=int, metavar='N', help='tokens that it proposes at a time; default: 4')
  add(
    '--compare',
    action='store_true',
    help='sample again with and without the draft, compiled, and print the speed-up',
  )


def draft_of(args: argparse.Namespace, tokenizer: Any) -> Any:
  """The draft as a `sampler.Model`, None where none is asked for; refuses one that cuts text differently."""
  if args.draft is None:
    given = {'--proposals': args.proposals is not None, '--compare': args.compare}
    for flag in (flag for flag, here in given.items() if here):
      raise ValueError(
        f'sample: {flag} is about a draft, and there is none. Name one: --draft SRC.'
      )
    return None
  from opd_jax.commands.loading import with_tokenizer
  from opd_jax.inference import sampler

  loaded, own, layout = with_tokenizer(args.draft, seed=args.seed, dtype=args.dtype)
  if tokenizer is not None and own is not None and tokenizer.strings() != own.strings():
    raise ValueError(
      f'sample: {args.draft} has another tokenizer than {args.model}, so its proposals would be other texts. Take a '
      'draft with the same vocabulary.'
    )
  return sampler.unrolled(sampler.Model(loaded.config, layout, loaded.params))


def proposals_of(args: argparse.Namespace) -> int:
  return 4 if args.proposals is None else args.proposals


def summary(run: Any) -> str:
  """What became of the proposals of a speculative run."""
  told = run.speculated
  return (
    f'draft: {told.acceptance:.1%} of the judged proposals were kept, {told.block_efficiency:.2f} tokens per pass of '
    f'the model (at most {run.proposals + 1})'
  )


def compared(begin: Callable[[Any], Any], draft: Any) -> str:
  """Tokens per second with and without the draft, each the better of two runs behind one that compiles."""
  speeds = []
  for proposer in (draft, None):
    best = 0.0
    for number in range(3):
      run, started, tokens = begin(proposer), time.monotonic(), 0
      for progress in run.stream():
        tokens = progress.tokens
      if number:
        best = max(best, tokens / (time.monotonic() - started))
    speeds.append(best)
  with_draft, without = speeds
  ratio = with_draft / without if without else float('nan')
  return f'speed-up {ratio:.2f} x: {with_draft:,.0f} tokens/s with the draft, {without:,.0f} without, compiled'
