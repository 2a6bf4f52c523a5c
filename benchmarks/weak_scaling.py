"""Weak scaling on paper: the plan of one experiment on 16 to 1,024 chips that are not here; rows grow with chips.

    python benchmarks/weak_scaling.py v5e    8B teaches 1.7B, 4 rows of 512 + 8,192 tokens a chip; slices of 256
    python benchmarks/weak_scaling.py v5p    32B teaches 8B, 8 rows of 1,024 + 16,384 tokens a chip; one slice
    python benchmarks/weak_scaling.py v5e --chips 16 64 --python /other/bin/python
    python benchmarks/weak_scaling.py v5e --fast 1024            of 1,024 chips shapes only, marked by ~

Prints one table and draws benchmarks/pictures/weak_scaling_v5e.png (with matplotlib, the extra `plot`). `--python` is
an interpreter with libtpu, where this one has none. Every plan is `opd plan --topology`, which keeps what it compiled,
so a second call takes as long as lowering. "Least" is a bound: the longest of computing, reading and sending, verb by
verb; several slices are cut by `data`, and what crosses them has a bound of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
PICTURE = 'benchmarks/pictures/weak_scaling_{}.png'
GIB = 2**30


class Family(NamedTuple):
  """An experiment that grows with its chips."""

  recipe: str
  preset: str
  teacher: str
  rows: int  # of a chip
  budget: int
  prompt: int
  topologies: dict[int, tuple[str, int]]  # by chips: a slice, and how many


FAMILIES = {
  'v5e': Family(
    'qwen3_1p7b_from_8b', 'qwen3_1p7b', 'qwen3_8b', 4, 8192, 512,
    {16: ('v5e:4x4', 1), 64: ('v5e:8x8', 1), 256: ('v5e:16x16', 1), 1024: ('v5e:16x16', 4)},
  ),
  'v5p': Family(
    'qwen3_8b_from_32b', 'qwen3_8b', 'qwen3_32b', 8, 16384, 1024,
    {16: ('v5p:2x2x4', 1), 64: ('v5p:4x4x4', 1), 256: ('v5p:4x8x8', 1), 1024: ('v5p:8x8x16', 1)},
  ),
}  # fmt: skip


class Point(NamedTuple):
  """A row of the table; None is not known."""

  chips: int
  rows: int
  exact: bool  # compiled, not from shapes alone
  peak: float | None  # GiB a chip
  fullest: str
  step: float | None  # seconds
  tokens: float | None  # a second and chip
  bound: str
  verbs: dict[str, tuple[float, str]]
  sent: dict[str, float]  # GiB of a chip and step, by verb
  far: dict[str, float]  # of these, to other slices
  compiling: float  # seconds, when it was compiled
  asking: float  # seconds of this plan
  remark: str


def words(family: Family, chips: int) -> list[str]:
  """Of `opd plan`: a pass takes one row a chip, and no parameter is gathered from another slice."""
  samples = family.rows
  settings = {
    'TOKENIZER': '@tokenizers.ByteTokenizer()',
    'MODEL': f'@presets.{family.preset}()',
    'TEACHER': f"'{family.teacher}'",
    'PROMPTS': chips,
    'SAMPLES': samples,
    'BUDGET': family.budget,
    'SLOTS': chips * samples,
    'experiment.Stage.microbatches': samples,
    'experiment.Stage.rows': chips,
    'sharding.mesh_layout.data': family.topologies[chips][1],
  }
  imports = ['from opd_jax.data import tokenizers', 'from opd_jax import sharding']
  bindings = [*imports, *(f'{k} = {v}' for k, v in settings.items())]
  files = (f'recipes/{family.recipe}', 'layouts/pod')
  return [
    *(f'--gin_file={ROOT}/experiments/{name}.gin' for name in files),
    *(f'--gin_bindings={each}' for each in bindings),
    f'--prompt={family.prompt}',
    '--json',
  ]


def asked(python: str, command: Sequence[str]) -> tuple[dict[str, Any] | None, str, float]:
  """The plan, or why there is none, and the seconds that it took."""
  environment = {**os.environ, 'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
  environment['PYTHONPATH'] = str(ROOT)
  begun = time.monotonic()
  done = subprocess.run(
    [python, '-m', 'opd_jax.cli', 'plan', *command],
    capture_output=True,
    env=environment,
    text=True,
  )
  took = time.monotonic() - begun
  if done.returncode not in (0, 1) or not done.stdout.startswith('{'):
    return None, (done.stderr.strip().splitlines() or ['no output'])[-1], took
  return json.loads(done.stdout), '', took


def compiled(name: str, chips: int, python: str) -> Point:
  family = FAMILIES[name]
  topology, slices = family.topologies[chips]
  command = [*words(family, chips), f'--topology={topology}', f'--slices={slices}']
  plan, why, took = asked(python, command)
  rows = chips * family.rows
  nothing = Point(chips, rows, True, None, '', None, None, '', {}, {}, {}, 0.0, took, why)
  if plan is None:
    return nothing
  [stage] = plan['compiled']
  everything = [*stage['programs'], *stage['failed']]
  seconds = sum(each['seconds'] for each in everything)
  if stage['failed']:
    first = stage['failed'][0]
    why = f'{first["name"]}: {first["refused"]}'
    return nothing._replace(compiling=seconds, remark=why)
  fullest = max(stage['programs'], key=lambda each: each['total'])
  verbs = stage['least_seconds']
  step = sum(least for least, _ in verbs.values())
  verb = max(verbs, key=lambda each: verbs[each][0])
  return nothing._replace(
    peak=fullest['total'] / GIB,
    fullest=fullest['name'],
    step=step,
    tokens=rows * family.budget / step / chips,
    bound=f'{verb}: {verbs[verb][1]}',
    verbs=verbs,
    sent=sent_of(stage, ''),
    far=sent_of(stage, 'between slices'),
    compiling=seconds,
    remark='' if stage['fits'] else 'does not fit',
  )


def sent_of(stage: dict[str, Any], kind: str) -> dict[str, float]:
  """GiB that a chip sends in a step, by verb; evaluations are no part of one. An empty kind is all of them."""
  found: dict[str, float] = {}
  for each in stage['programs']:
    called = sum(size for name, size in each['sent'].items() if kind in name)
    size = called * each['loop'] * each['times'] / GIB
    found[each['verb']] = found.get(each['verb'], 0.0) + size
  return {verb: found.get(verb, 0.0) for verb in stage['least_seconds']}


def from_shapes(name: str, chips: int, python: str) -> Point:
  """Memory without activations, of so many devices of any kind."""
  family = FAMILIES[name]
  plan, why, took = asked(python, [*words(family, chips), f'--devices={chips}'])
  peak = sum(plan['stages']['train'].values()) / GIB if plan else None
  rows = chips * family.rows
  return Point(
    chips, rows, False, peak, 'all that lies there', None, None, '', {}, {}, {}, 0.0, took, why
  )


def show(points: Sequence[Point]) -> None:
  head = ('chips', 'rows', 'GiB a chip', 'fullest', 'least step, s', 'tokens/s a chip', 'bound by', 'sent, GiB',
          'compiling, s', 'this plan, s')  # fmt: skip
  known = lambda value, form: '-' if value is None else format(value, form)
  rows: list[tuple[str, ...]] = [head]
  for point in points:
    peak = known(point.peak, '.2f') if point.exact else f'~{known(point.peak, ".2f")}'
    cells = (point.fullest, known(point.step, '.4g'), known(point.tokens, ',.0f'), point.bound)
    cells = (*cells, f'{sum(point.sent.values()):.1f}' if point.sent else '-')
    times = (f'{point.compiling:.0f}', f'{point.asking:.0f}')
    rows.append((f'{point.chips:,}', f'{point.rows:,}', peak, *cells, *times))
  widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
  for row in rows:
    print('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
  for point in points:
    for verb, (least, bound) in point.verbs.items():
      size, far = point.sent[verb], point.far[verb]
      print(
        f'{point.chips:5,} chips  {verb:8} at least {least:.4g} s, bound by {bound}; sends {size:.1f} GiB'
        + (f', {far:.2f} to other slices' if far else '')
      )
    if point.remark:
      print(f'{point.chips:5,} chips  {point.remark}')


def draw(name: str, points: Sequence[Point]) -> None:
  """Seconds of a step by verb, and memory of a chip, over chips."""
  try:
    import matplotlib
  except ImportError:
    print("no picture: pip install 'opd_jax[plot]'")
    return
  matplotlib.use('Agg')
  from matplotlib import pyplot

  timed = [point for point in points if point.step is not None]
  figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout='constrained')
  left, middle, right = axes
  bottom = [0.0] * len(timed)
  for verb in timed[0].verbs if timed else ():
    took = [point.verbs[verb][0] for point in timed]
    left.bar([f'{point.chips:,}' for point in timed], took, bottom=bottom, label=verb)
    bottom = [below + more for below, more in zip(bottom, took, strict=True)]
  left.set(title='least step', xlabel=f'{name} chips', ylabel='seconds')
  for verb in timed[0].sent if timed else ():
    middle.plot(
      [point.chips for point in timed], [point.sent[verb] for point in timed], 'o-', label=verb
    )
  middle.set(title='sent by a chip in a step', xlabel=f'{name} chips', ylabel='GiB', xscale='log')
  middle.set(ylim=(0, None))
  if timed:
    left.margins(y=0.2)
    left.legend(frameon=False, loc='upper center', ncols=3)
    middle.legend(frameon=False)
  for exact, label in ((True, 'compiled'), (False, 'from shapes, no activations')):
    at = [point for point in points if point.exact == exact and point.peak is not None]
    if at:
      style = 'o-' if exact else 's--'
      right.plot([point.chips for point in at], [point.peak for point in at], style, label=label)
  right.set(
    title='memory of a chip', xlabel=f'{name} chips', ylabel='GiB', xscale='log', ylim=(0, None)
  )
  for axis in (middle, right):
    axis.set_xticks([point.chips for point in points], [f'{point.chips:,}' for point in points])
    axis.minorticks_off()
  right.legend(frameon=False)
  file = ROOT / PICTURE.format(name)
  figure.savefig(file, dpi=130)
  print(f'wrote {file.relative_to(ROOT)}')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('family', choices=FAMILIES)
  parser.add_argument('--chips', type=int, nargs='+', help='of the table; all')
  parser.add_argument(
    '--fast', type=int, nargs='+', default=[], help='chips to plan by shapes only'
  )
  parser.add_argument('--python', default=sys.executable, help='an interpreter with libtpu')
  args = parser.parse_args()
  known = FAMILIES[args.family].topologies
  chosen = args.chips or [*known]
  if unknown := {*chosen, *args.fast} - {*known}:
    parser.error(f'--chips and --fast are of {", ".join(map(str, known))}, got {sorted(unknown)}')
  points = []
  for chips in sorted({*chosen, *args.fast}):
    plan = from_shapes if chips in args.fast else compiled
    points.append(plan(args.family, chips, args.python))
    print(f'planned {chips:,} chips in {points[-1].asking:.0f} s', file=sys.stderr, flush=True)
  show(points)
  draw(args.family, points)


if __name__ == '__main__':
  main()
