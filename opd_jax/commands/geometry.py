"""Floor 6. `opd geometry`: how training moved the weights of a model."""

import argparse
import json

from opd_jax.commands import console, flags

HELP = 'how training moved the weights: how many entries, in how many directions, and which'
EPILOG = """\
  opd geometry runs/sft/student runs/opd/student
  opd geometry Qwen/Qwen3-0.6B runs/opd/student --rank 512 --json > geometry.json

sparsity: entries that bfloat16 does not see move · spectrum: relative change of the singular values · rotation: of the
first singular vectors, in degrees · rank: of the update (stable) · small, principal: of the entries that moved, the
fraction among the smallest half, and among the largest half of the best approximation of that rank; 0.5 is chance.
arXiv:2606.07082 reports a sparsity of 8 % for SFT, 52 % for OPD and 77 % for reinforcement learning.
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('before', metavar='BEFORE', help='a model: folder, hub id or preset')
  parser.add_argument('after', metavar='AFTER', help='the same model, trained')
  parser.add_argument(
    '--rank', type=int, default=64, metavar='K', help='singular vectors compared; default: 64'
  )
  flags.add_json(parser)


def run(args: argparse.Namespace) -> None:
  import jax

  from opd_jax.evaluation import geometry
  from opd_jax.sharding import mesh_layout
  from opd_jax.storage import load

  if args.rank < 1:
    raise ValueError(f'geometry: --rank must be at least 1, got {args.rank}.')
  layout = mesh_layout(devices=(jax.local_devices()[0],))
  before, after = (load.model(name, layout, seed=0) for name in (args.before, args.after))
  shapes = [jax.tree.map(lambda x: x.shape, each.params) for each in (before, after)]
  if shapes[0] != shapes[1]:
    raise ValueError(
      f'geometry: {args.before} and {args.after} are not one model: their weights differ in shape.'
    )
  with console.progress_bar('geometry') as progress:
    changes = geometry.changes(
      after.config, layout, before.params, after.params, progress, rank=args.rank
    )
  means = geometry.summary(changes)
  if args.json:
    named = {name: change._asdict() for name, change in changes.items()}
    print(json.dumps({'mean': means, 'matrices': named}, indent=2))
    return
  names = geometry.Change._fields[1:]
  shown = lambda value: '' if value is None else f'{value:.4g}'
  rows = [
    (name, *(shown(getattr(change, each)) for each in names)) for name, change in changes.items()
  ]
  console.table(('matrix', *names), [*rows, ('mean', *(shown(means.get(each)) for each in names))])
