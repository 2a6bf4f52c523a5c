"""Floor 3. A judge whose scores are cached on disk: one file a row, by judge, tokenizer, request and tokens."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from opd_jax.data.templates import Template
from opd_jax.inference.sampler import Model
from opd_jax.judges.local import LocalJudge
from opd_jax.judges.remote import ServedJudge
from opd_jax.judges.retokenising import ForeignJudge
from opd_jax.judges.scenes import Scene
from opd_jax.processes import any_process_each, to_host
from opd_jax.types import Rollout, ScoreRequest, Scores, TopK, Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachedJudge:
  """See `protocol.WorkingJudge`. Reads scores from `folder` where it has them; computes and stores the others."""

  inner: LocalJudge | ForeignJudge | ServedJudge
  folder: Path
  identity: str

  @property
  def name(self) -> str:
    return self.inner.name

  def prompts(self, scenes: Sequence[Scene]) -> list[list[int] | None]:
    return self.inner.prompts(scenes)

  def head(self, weights: Weights) -> Array:
    return self.inner.head(weights)

  def model(self, weights: Weights) -> Model:
    return self.inner.model(weights)

  def of_evaluations(self, template: Template) -> 'CachedJudge':
    return dataclasses.replace(self, inner=self.inner.of_evaluations(template))

  def score(
    self,
    weights: Weights,
    scenes: Sequence[Scene],
    rollout: Rollout,
    ids: Any,
    request: ScoreRequest,
  ) -> Scores:
    prompts = self.inner.fitting(self.inner.prompts(scenes), scenes, rollout)
    length, size = rollout.lengths.tolist(), rollout.response.shape[1]
    files = [
      self._file(prompt, rollout.response[row][: length[row]], _row(ids, row, length[row]), request)
      for row, prompt in enumerate(prompts)
    ]
    absent = np.array([not file.is_file() for file in files])
    # Hosts score together, but each may have a folder of its own.
    missing = np.flatnonzero(any_process_each(absent))
    if len(missing):
      rows = np.resize(missing, len(files))  # one program, however many are missing
      part = jax.tree.map(lambda x: np.asarray(x)[rows], rollout)
      part_ids = None if ids is None else np.asarray(ids)[rows]
      scores = self.inner.score_prompts(
        weights, [prompts[row] for row in rows], part, part_ids, request
      )
      scores = to_host(scores)
      for number, row in enumerate(missing):
        cut = lambda x, number=number, n=length[row]: x[number, :n]
        _store(files[row], jax.tree.map(cut, scores))
    return jax.tree.map(lambda *rows: np.stack(rows), *[_load(file, size) for file in files])

  def _file(self, prompt: list[int] | None, response, ids, request: ScoreRequest) -> Path:
    tokens = [prompt or [], response.tolist(), [] if ids is None else ids.tolist()]
    inputs = repr((self.identity, request, prompt is None, tokens))
    key = hashlib.sha256(inputs.encode()).hexdigest()
    return self.folder / key[:2] / f'{key}.npz'


def _row(ids: Any, row: int, length: int) -> np.ndarray | None:
  return None if ids is None else np.asarray(ids[row])[:length]


def _store(file: Path, scores: Scores) -> None:
  """Writes one row, of its own length; npz has no bfloat16, so hidden states are stored as bytes."""
  flat = {'logp': scores.logp, 'known': scores.known, 'entropy': scores.entropy}
  flat |= {'chunk': scores.chunk}
  for name, top in (('top', scores.top_k), ('at', scores.at_ids)):
    if top is not None:
      flat |= {f'{name}_ids': top.ids, f'{name}_logp': top.logp}
  for name, states in (('hidden', scores.hidden), ('layers', scores.layers)):
    if states is not None:
      states = np.ascontiguousarray(states)
      flat |= {name: states.view(np.uint8), f'{name}_type': np.array(states.dtype.name)}
  file.parent.mkdir(parents=True, exist_ok=True)
  part = file.with_suffix(f'.{jax.process_index()}.{os.getpid()}.part')
  with open(part, 'wb') as stream:
    kept = {name: value for name, value in flat.items() if value is not None}
    np.savez(stream, allow_pickle=False, **kept)
  part.rename(file)  # no process reads half a file


def _load(file: Path, size: int) -> Scores:
  """Reads one row, padded to the positions of the batch."""
  with np.load(file) as stored:
    flat: dict[str, np.ndarray] = dict(stored)
  for name in {'hidden', 'layers'} & flat.keys():
    flat[name] = flat[name].view(jnp.dtype(str(flat.pop(f'{name}_type'))))
  padded = lambda x: np.pad(x, ((0, size - len(x)), *((0, 0),) * (x.ndim - 1)))
  flat = {name: padded(x) for name, x in flat.items()}
  top = lambda name: (
    TopK(ids=flat[f'{name}_ids'], logp=flat[f'{name}_logp']) if f'{name}_ids' in flat else None
  )
  return Scores(
    logp=flat['logp'],
    known=flat['known'],
    entropy=flat.get('entropy'),
    top_k=top('top'),
    at_ids=top('at'),
    hidden=flat.get('hidden'),
    layers=flat.get('layers'),
    chunk=flat.get('chunk'),
  )
