"""Floor 5. Before a stage, with weights loaded: cheap to look at now, silent and expensive later.

Prompts of all roles are shown, a judge says the same twice, the student agrees with itself, and the programs of a step
run once. What can be seen without weights was looked at before step 0: see `inspection`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.data.curriculum import Curriculum
from opd_jax.data.prompts import unpadded
from opd_jax.data.stream import Stream
from opd_jax.data.tokenizers import Tokenizer
from opd_jax.judges import int8_error
from opd_jax.judges.cached import CachedJudge
from opd_jax.judges.local import LocalJudge
from opd_jax.judges.protocol import WorkingJudge
from opd_jax.judges.reading import readers_of, remote_of, text_of
from opd_jax.judges.routing import RoutedJudge
from opd_jax.judges.scenes import Scene
from opd_jax.method import Evidence
from opd_jax.processes import to_host
from opd_jax.responses import Responses
from opd_jax.training import verbs
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.shapes import Example
from opd_jax.training.state import RunPosition, State
from opd_jax.types import Rollout, ScoreRequest, Scores
from opd_jax.units import memory

SHOWN = 600  # characters of a prompt
COMPARED = 8  # rows that an int8 judge is measured on
PLAIN, WHOLE = ScoreRequest(), ScoreRequest(hidden=True)
Say = Callable[[str], None]


def check(
  runtime: StageRuntime, stream: Stream | Curriculum, state: State, position: RunPosition, say: Say
) -> tuple[State, Example]:
  """Raises with what is wrong; says what was seen. The state goes through the dry step and comes back as it was."""
  try:
    return _rehearsed(runtime, stream, state, position, say)
  except ValueError as error:
    _blame_weights(runtime, state, error)
    raise


def _rehearsed(
  runtime: StageRuntime, stream: Stream | Curriculum, state: State, position: RunPosition, say: Say
) -> tuple[State, Example]:
  before = stream.state()
  problems = runtime.take(stream, position)
  stream.restore(before)  # the run itself begins with the same problems
  question = runtime.stage.template.render(runtime.tokenizer, problems[0].messages)
  say(f'the student reads: {text_of(runtime.tokenizer, question, most=SHOWN)!r}')
  responses = verbs.sample(runtime, state.weights, problems, position)
  say(f'and writes:        {responses.texts[0][:SHOWN]!r}')
  scenes = runtime.scenes(responses, position)
  for name, judge in runtime.judges.items():
    _shows_something(name, judge, scenes, runtime.tokenizer, say)
    _says_the_same(name, judge, scenes, responses.rollout, state, say)
    _rounded(name, judge, scenes, responses.rollout, say)
  evidence = verbs.score(runtime, state.weights, responses, position, state.memory)
  _finite(evidence)
  _aligned(evidence, responses, say)
  _same_model_says_the_same(runtime, state, evidence)
  batch, _ = verbs.weigh(runtime, state.weights, evidence)
  part = None  # forks stay with the whole batch
  if runtime.stage.method.forks is None:
    part = np.arange(len(problems) * runtime.stage.samples // runtime.stage.minibatches)
  state, row = verbs.update(runtime, state, batch, rows=part, dry=True)
  say(f'dry step:          loss {row["loss"]:.4g}, gradient norm {row["grad_norm"]:.4g}')
  if not np.isfinite([row['loss'], row['grad_norm']]).all():
    error = ValueError(
      f'preflight: loss {row["loss"]} and gradient norm {row["grad_norm"]} of the dry step are not finite, though '
      f'every judge told numbers: it is the method ({runtime.stage.method.paper}) or the update of stage '
      f'{runtime.stage.name}. Check coefficients that divide.'
    )
    _blame_weights(runtime, state, error)
    raise error
  return state, Example(responses, evidence, batch)


def _shows_something(
  name: str, judge: WorkingJudge, scenes: Sequence[Scene], tokenizer: Tokenizer, say: Say
) -> None:
  """Says what each model of a judge reads, and refuses a judge that is shown nothing of any row."""
  unknown = True
  for reader in readers_of(name, judge, scenes):
    prompts = reader.judge.prompts([scenes[row] for row in reader.rows])
    known = next((prompt for prompt in prompts if prompt is not None), None)
    unknown = unknown and known is None
    missing = sum(prompt is None for prompt in prompts)
    few = f' (nothing in {missing} of {len(prompts)} rows)' if missing else ''
    read = 'is shown nothing'
    if known is not None:
      read = f'reads: {reader.text_of(tokenizer, known, most=SHOWN)!r}'
    say(f'{reader.name} {read}{few}')
  if unknown:
    raise ValueError(
      f'preflight: the context of the judge {name} shows nothing for any of the {len(scenes)} rows of the first batch, '
      'so nothing would be learnt from it. Check that the data has what it shows; a context of successes needs a '
      'student that answers some questions right, more samples of each, or more prompts.'
    )


def _says_the_same(
  name: str,
  judge: WorkingJudge,
  scenes: Sequence[Scene],
  rollout: Rollout,
  state: State,
  say: Say,
) -> None:
  """Asks twice: a judge in this process says the same bits, a served one the same within its tolerance."""
  here = np.ones(len(scenes), bool)
  for reader in readers_of(name, judge, scenes):
    if (remote := remote_of(reader.judge)) is not None:
      here[list(reader.rows)] = False
      part = jax.tree.map(lambda x, rows=reader.rows: np.asarray(x)[list(rows)], rollout)
      say(remote.steadiness([scenes[row] for row in reader.rows], part))
  if not here.any():
    return
  ask = lambda: np.asarray(
    to_host(live(judge).score(state.weights, scenes, rollout, None, PLAIN).logp)
  )
  if not np.array_equal(ask()[here], ask()[here], equal_nan=True):
    raise ValueError(
      f'preflight: the judge {name} gave two answers to one question; its numbers cannot be trusted.'
    )


def _rounded(
  name: str, judge: WorkingJudge, scenes: Sequence[Scene], rollout: Rollout, say: Say
) -> None:
  """Says how far judges with int8 weights are from the published ones, on some rows of the first batch."""
  for reader in readers_of(name, judge, scenes):
    local = reader.model
    if not isinstance(local, LocalJudge) or not local.config.int8:
      continue
    numbers = [*reader.rows][:COMPARED]
    prompts = reader.judge.prompts([scenes[row] for row in numbers])
    texts: list[list[int]] = [[] for _ in numbers]
    if not local.spec.is_foreign:  # else the response is in other tokens
      lengths, response = np.asarray(rollout.lengths), np.asarray(rollout.response)
      texts = [response[row, : lengths[row]].tolist() for row in numbers]
    rows = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True) if prompt]
    if not rows:
      continue  # what it reads was said before: nothing
    if (error := int8_error.measured(local, rows)) is None:
      say(f'{reader.name} as int8: not compared, its weights are random')
      continue
    say(
      f'{reader.name} as int8: KL to {local.config.param_dtype} {error.mean:.2g} nats a token, at most '
      f'{error.most:.2g} ({error.tokens} tokens); {memory(error.stored)} in place of {memory(error.whole)}'
    )


def live(judge: WorkingJudge) -> WorkingJudge:
  """The judge without what it remembers."""
  if isinstance(judge, CachedJudge):
    return judge.inner
  if isinstance(judge, RoutedJudge):
    return dataclasses.replace(
      judge, table={name: live(part) for name, part in judge.table.items()}
    )
  return judge


def _aligned(evidence: Evidence, responses: Responses, say: Say) -> None:
  """Names what a judge with another tokenizer cannot judge, and refuses one that can judge nothing."""
  counted = np.asarray(evidence.rollout.mask)[: len(responses.problems)]
  for name, scores in evidence.scores.items():
    if scores.chunk is None:
      continue
    stray = counted & (to_host(scores.chunk)[: len(counted)] < 0)
    if not stray.any():
      continue
    rows = stray.any(axis=1)
    row = int(rows.argmax())
    some, whole = int(stray[row].sum()), int(counted[row].sum())
    where = f'{some} of {whole} tokens of {responses.problems[row].name or f"row {row}"}'
    if (stray == counted).all():
      raise ValueError(
        f'preflight: the judge {name} can judge no token of the first batch: its tokenizer writes other text than the '
        f"student's ({where}). Take a teacher whose tokenizer keeps every text as it is."
      )
    say(
      f'warning: {name} does not judge {stray.sum() / counted.sum():.1%} of the tokens, in {int(rows.sum())} of '
      f'{len(rows)} rows: its tokenizer writes them otherwise, or they are no text (first {where})'
    )


def _finite(evidence: Evidence) -> None:
  """Names the role whose numbers are not finite where it has an opinion."""
  counted = np.asarray(evidence.rollout.mask)
  for name, scores in evidence.scores.items():
    scores: Scores = to_host(scores)
    where = counted & np.asarray(scores.known)
    fields = (scores.logp, scores.entropy, scores.hidden, scores.layers)
    tops = (top.logp for top in (scores.top_k, scores.at_ids) if top is not None)
    for field in [field for field in (*fields, *tops) if field is not None]:
      sound = ~np.isnan(np.asarray(field, np.float32)).reshape(*where.shape, -1).any(axis=-1)
      bad = where & ~sound
      if not bad.any():
        continue
      row, at = np.argwhere(bad)[0].tolist()
      raise ValueError(
        f'preflight: the {name} gives nan at token {at} of row {row}. '
        f'Check its weights and its type: numbers of the {name} are not finite before anything was trained.'
      )


def _blame_weights(runtime: StageRuntime, state: State, cause: Exception) -> None:
  """Names the role whose weights are not finite, where there is one: everything else follows from that."""
  roles: dict[str, Any] = {'student': state.weights.student}
  for name, judge in runtime.judges.items():
    for reader in readers_of(name, judge, []):
      roles[reader.name] = getattr(live(reader.judge), 'own', None)
  for role, params in roles.items():
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
      if leaf.is_deleted() or bool(to_host(jnp.isfinite(leaf).all())):
        continue
      raise ValueError(
        f'preflight: weights of the {role} are not finite, e.g. in {jax.tree_util.keystr(path)}. Nothing can be '
        f'learnt with them: take the {role} from where it came from again, or from an earlier checkpoint.'
      ) from cause


def _same_model_says_the_same(runtime: StageRuntime, state: State, evidence: Evidence) -> None:
  """A judge with the student's weights and prompt agrees with the student to rounding: nothing is off by one."""
  rollout = evidence.rollout
  prompts = unpadded(rollout.prompt)
  ask: Any = lambda request: np.asarray(
    to_host(runtime.student.score_prompts(state.weights, prompts, rollout, None, request).logp)
  )
  once, again = ask(PLAIN), ask(WHOLE)
  worst = float(np.abs(again - once)[np.asarray(rollout.mask)].max(initial=0.0))
  drawn = rollout.by_student & np.asarray(rollout.mask) & np.isfinite(rollout.logp)
  written = np.abs(np.asarray(rollout.logp) - once)[drawn]
  bound = runtime.experiment.bounds.gap
  close = 1e-4 if runtime.config.dtype == 'float32' else 0.1
  if not worst <= close or (written.size and bound is not None and not written.mean() <= bound):
    raise ValueError(
      f'preflight: the student disagrees with itself: two scorings by {worst:.3g} nats, sampler and scorer by '
      f'{written.mean() if written.size else 0:.3g} on average.'
    )
