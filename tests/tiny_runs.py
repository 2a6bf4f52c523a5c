"""What several tests of training share: a tiny run of two stages, made in a second and seeded."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from opd_jax import teachers
from opd_jax.data.tiny_worlds import sums
from opd_jax.inference.sampler import Sampling
from opd_jax.methods import aopd, sft
from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.storage import orbax_folder
from opd_jax.storage.fingerprint import digest
from opd_jax.training import loop, metrics, optimisers
from opd_jax.training.experiment import Evaluation, Experiment, Stage

CONFIG = presets.tiny(width=32, num_layers=1, vocab_size=24)
QUIET = loop.Listener(say=lambda text: None)


def teacher_folder(folder: Path, seed: int = 5, **overrides) -> str:
  config = dataclasses.replace(CONFIG, **overrides)
  if not (folder / 'teacher').exists():
    orbax_folder.save(
      folder / 'teacher', config, transformer.init(config, mesh_layout(), jax.random.key(seed))
    )
  return str(folder / 'teacher')


def experiment(
  folder: Path, *, distil: dict[str, Any] | None = None, prompts: int = 4, **changes: Any
) -> Experiment:
  """Three steps on given text, then three of AOPD, with an evaluation and checkpoints on the way."""
  warm = Stage(
    name='warm', method=sft.sft(), steps=3, task=sums.sums(), prompts=prompts, rows=2 * prompts,
    optimiser=optimisers.adamw(rate=1e-3), sampling=Sampling(budget=40, slots=prompts),
  )  # fmt: skip
  judges = {'teacher': teachers.frozen(teacher_folder(folder))}
  second = dataclasses.replace(warm, name='distil', method=aopd.aopd(k=4), samples=2, judges=judges)
  known = Experiment(
    model=CONFIG,
    layout=mesh_layout(),
    tokenizer=sums.tokenizer(),
    stages=(warm, dataclasses.replace(second, **(distil or {}))),
    evaluation=Evaluation(task=sums.sums(split='heldout'), problems=prompts, every=2),
    checkpoint_every=2,
    samples_every=2,
  )
  return dataclasses.replace(known, **changes)


def run(experiment: Experiment, workdir: Path, **options) -> loop.Outcome:
  return loop.train(
    experiment, workdir, ears=options.pop('ears', QUIET), **{'skip_preflight': True, **options}
  )


def told(workdir: Path) -> list[dict]:
  """The metrics of a run without what belongs to the machine."""
  return [
    {name: value for name, value in row.items() if not name.startswith(metrics.NOT_THE_RUN)}
    for row in metrics.read(workdir)
  ]


def digest_of(outcome: loop.Outcome) -> str:
  return digest(outcome.state)


def closeness(one, other) -> float:
  """Largest difference of two trees, relative to the largest entry."""
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return max(
    float(np.abs(np.asarray(a) - np.asarray(b)).max() / max(np.abs(np.asarray(b)).max(), 1e-6))
    for a, b in pairs
  )
