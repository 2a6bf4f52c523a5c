"""Floor 6. How `opd study --commands` prints what a study would run: a script for a shell, costs as comments."""

import shlex
from pathlib import Path
from typing import Any

WHOLE = 'the whole study'
STATED = '# Costs are what the study says of its runs.'
BOUNDS = """\
# Costs are upper bounds from shapes: every response is as long as its budget; prompts come on top.
# Hours are those of one {chip}, however many share a run: {peak:.0f} TFLOP/s at an MFU of {mfu:g}; decoding takes as
# long as it computes, or as it reads weights and cache at {share:.0%} of {bandwidth:.2f} TB/s, whichever is longer."""


def show(ledger: Any, file: Path, *, chip: str, mfu: float) -> None:
  """Every run with its command and cost, then the cells, then the whole study."""
  from opd_jax.planning.flops import chip_of
  from opd_jax.studies import bill

  prices = bill.prices(ledger, file, chip=chip_of(chip, mfu), mfu=mfu)
  counted = any(price.counted for price in prices.values())
  print(_head(ledger.study.paper, chip, mfu, counted=counted))
  for order in bill.orders(ledger, file):
    print(f'\n# {order.name}: {_price(prices[order.run.cell.name])}')
    print(shlex.join(order.words))
  total = ledger.total()
  width = max(map(len, [*total, WHOLE]))
  print(f'\n# {"cell":<{width}}  runs  together')
  for name, runs in total.items():
    print(f'# {name:<{width}}  {runs:4}  {_sum([(prices[name], runs)])}')
  whole = [(prices[name], runs) for name, runs in total.items()]
  print(f'# {WHOLE:<{width}}  {sum(total.values()):4}  {_sum(whole)}')


def _head(paper: str, chip: str, mfu: float, *, counted: bool) -> str:
  from opd_jax.planning.flops import CHIPS, OF_BANDWIDTH

  known = CHIPS[chip]
  numbers = {'peak': known.flops / 1e12, 'bandwidth': known.bandwidth / 1e12}
  numbers |= {'share': OF_BANDWIDTH, 'mfu': mfu}
  costs = BOUNDS.format(chip=chip.upper(), **numbers) if counted else STATED
  return f'# {paper}: what would be run. Nothing has been.\n{costs}'


def _price(price: Any) -> str:
  if price.hours is None:
    return f'nobody knows ({price.why})'
  if price.counted is None:
    return f'{_hours(price.hours)}, as the study says'
  cost = price.counted
  parts = {'training': cost.train, 'sampling': cost.sample, 'scoring': cost.score}
  told = ', '.join(f'{name} {part:.2e}' for name, part in parts.items() if part)
  return (
    f'{cost.flops:.2e} FLOP ({told}), {cost.tokens:.2e} tokens trained on, {_hours(price.hours)}'
  )


def _sum(prices: list[tuple[Any, int]]) -> str:
  known = [(price, runs) for price, runs in prices if price.hours is not None]
  flops = sum(price.counted.flops * runs for price, runs in known if price.counted)
  hours = _hours(sum((price.hours * runs for price, runs in known), 0.0))
  unknown = sum(runs for price, runs in prices if price.hours is None)
  rest = f', and {unknown} runs of unknown cost' if unknown else ''
  return (f'{flops:.2e} FLOP, ' if flops else '') + hours + rest


def _hours(hours: float) -> str:
  return f'{hours * 3600:.0f} s' if hours < 0.1 else f'{hours:,.1f} device-hours'
