"""Floor 6. `opd convert`: published weights into our folder, and back."""

import argparse
import sys
import time
from pathlib import Path

from opd_jax.commands import console, flags

HELP = 'a published model folder into ours, or ours into a published one; SRC decides'
EPILOG = """\
  opd convert Qwen/Qwen3-0.6B models/qwen3-0.6b                published weights into our folder
  opd convert models/qwen3-0.6b exported --dtype bfloat16      and back, for transformers
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'src',
    metavar='SRC',
    help='folder of safetensors, hub id, or one of our folders',
  )
  parser.add_argument('dst', metavar='DST', help='folder to make')
  flags.add_stored_dtype(parser)


def run(args: argparse.Namespace) -> None:
  convert(args.src, Path(args.dst), dtype=args.dtype)


def convert(source_name: str, destination: Path, *, dtype: str | None) -> None:
  """Writes the model that `source_name` holds to `destination`, in the other of the two formats."""
  import jax

  # A model need not fit an accelerator to be converted.
  jax.config.update('jax_platforms', 'cpu')
  from opd_jax.sharding import mesh_layout
  from opd_jax.storage import hub, huggingface, orbax_folder

  layout, started = mesh_layout(), time.monotonic()
  if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
    raise ValueError(
      f'{destination} exists and is not an empty folder. Choose another DST or remove it.'
    )
  source = hub.folder_of(source_name)
  is_ours = orbax_folder.is_native(source)
  if is_ours:
    config, params = orbax_folder.load(source, layout)
    with console.progress_bar('writing') as progress:
      huggingface.save(
        destination,
        config,
        layout,
        params,
        companions=source,
        dtype=dtype,
        progress=progress,
      )
  else:
    with console.progress_bar('reading') as progress:
      config, params = huggingface.load(source, layout, param_dtype=dtype, progress=progress)
    print('writing …', file=sys.stderr)
    orbax_folder.save(destination, config, params, companions=source)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  print(
    f'{destination}: {config.family}, {count:,} parameters in {dtype or config.param_dtype}, '
    f'{"a folder for transformers" if is_ours else "our folder"}, {time.monotonic() - started:.1f} s'
  )
