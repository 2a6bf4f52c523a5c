"""What several tests of training share: a tiny run of two stages, made in a second and seeded."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from opd_jax import judges
from opd_jax.data.tiny_worlds import sums
from opd_jax.evaluation.evaluator import Evaluation
from opd_jax.inference.sampler import Sampling
from opd_jax.methods import aopd, sft
from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.storage import orbax_folder
from opd_jax.storage.fingerprint import digest
from opd_jax.training import loop, optimisers, recorder
from opd_jax.training.experiment import Experiment, Stage
from opd_jax.training.runtime import StageRuntime, build_runtime
from opd_jax.training.state import State, initial_state

CONFIG = presets.tiny(width=32, num_layers=1, vocab_size=24)
QUIET = loop.Listener(say=lambda text: None)
# Short chains: every width of a response is a program of its own, and 16 tokens need three of them.
WORLD = {'least': 2, 'most': 3, 'largest': 4}
BUDGET = 16


def teacher_folder(folder: Path, seed: int = 5, *, strings=None, **overrides) -> str:
  """A folder with a random teacher that speaks the tokenizer of *sums*."""
  config = dataclasses.replace(CONFIG, **overrides)
  if not (folder / 'teacher').exists():
    params = transformer.init(config, mesh_layout(), jax.random.key(seed))
    strings = sums.tokenizer().strings() if strings is None else strings
    orbax_folder.save(folder / 'teacher', config, params, strings=strings)
  return str(folder / 'teacher')


def experiment(
  folder: Path, *, distil: dict[str, Any] | None = None, prompts: int = 4, **changes: Any
) -> Experiment:
  """Three steps on given text, then three of AOPD, with an evaluation and checkpoints on the way."""
  warm = Stage(
    name='warm',
    method=sft.sft(),
    steps=3,
    task=sums.sums(**WORLD),
    prompts=prompts,
    rows=2 * prompts,
    optimiser=optimisers.adamw(rate=1e-3),
    sampling=Sampling(budget=BUDGET, slots=prompts),
  )
  teacher = {'teacher': judges.frozen(teacher_folder(folder))}
  second = dataclasses.replace(
    warm, name='distil', method=aopd.aopd(k=4), samples=2, judges=teacher
  )
  heldout = Evaluation(
    task=sums.sums(split='heldout', **WORLD),
    problems=prompts,
    every=2,
    budget=BUDGET,
    slots=prompts,
  )
  known = Experiment(
    model=CONFIG,
    layout=mesh_layout(),
    tokenizer=sums.tokenizer(),
    stages=(warm, dataclasses.replace(second, **(distil or {}))),
    evaluations=(heldout,),
    checkpoint_every=2,
    samples_every=2,
  )
  return dataclasses.replace(known, **changes)


def with_teacher_apart(folder: Path, way: str, devices) -> Experiment:
  """The same with a teacher on devices of its own: the last two of four, or every second one."""
  ranges = {'disjoint': (devices[:2], devices[2:4]), 'halves': (devices[:4:2], devices[1:4:2])}
  own, apart = (tuple(each) for each in ranges[way])
  layout = mesh_layout(tensor=2, devices=apart)
  teacher = {'teacher': judges.frozen(teacher_folder(folder), layout=layout)}
  return experiment(
    folder,
    distil={'judges': teacher, 'staleness': 1},
    layout=mesh_layout(fsdp=2, devices=own),
  )


def run(experiment: Experiment, workdir: Path, **options) -> loop.Outcome:
  listener = options.pop('listener', QUIET)
  return loop.train(experiment, workdir, listener=listener, **{'skip_preflight': True, **options})


def at_work(folder: Path, judges_by_name, **changes) -> tuple[StageRuntime, State]:
  """A single stage of OPD at work, with the state that it begins with."""
  from opd_jax.methods import opd

  known = experiment(folder)
  changes = {'method': opd.opd(), **changes}
  layout = changes.pop('layout', known.layout)
  stage = dataclasses.replace(known.stages[1], judges=judges_by_name, **changes)
  known = dataclasses.replace(known, stages=(stage,), layout=layout)
  params = transformer.init(CONFIG, layout, jax.random.key(0))
  return build_runtime(known, 0), initial_state(known, stage, params)


def metrics_of(workdir: Path) -> list[dict]:
  """The metrics of a run without what belongs to the machine."""
  return rows_of((workdir / 'metrics.jsonl').read_text())


def rows_of(text: str) -> list[dict]:
  """The objects of a file of a run, the same way."""
  rows = map(json.loads, text.splitlines())
  known = lambda name: not name.startswith(recorder.NOT_THE_RUN)
  return [{name: value for name, value in row.items() if known(name)} for row in rows]


def digest_of(outcome: loop.Outcome) -> str:
  return digest(outcome.state)


def closeness(one, other) -> float:
  """Largest difference of two trees, relative to the largest entry."""
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return max(
    float(np.abs(np.asarray(a) - np.asarray(b)).max() / max(np.abs(np.asarray(b)).max(), 1e-6))
    for a, b in pairs
  )
