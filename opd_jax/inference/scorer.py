"""Floor 2. Teacher-forced scoring: the log-probability of every token of a response under a model.

Here is the one shift by one of the library: the state at column c predicts the token at column c + 1, so the
state that predicts response[:, r] is one column before it. Everything that this file returns is indexed by
response position.

The vocabulary axis exists for a tile of tokens at a time; `[B, R, V]` never does. Over a mesh devices
share the columns of the head (`losses/vocab_group.py`), so none holds it whole.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from opd_jax.losses.vocab_group import VocabGroup
from opd_jax.models import context, transformer
from opd_jax.models.config import SAME_ROUNDING, ModelConfig
from opd_jax.sharding import Layout
from opd_jax.types import AnyArray, Params, ScoreRequest, Scores, TopK

TILE_BYTES = 64 * 2**20  # of float32 logits in one tile; a few such buffers live at once
MIN_COLUMNS = 64
ABSENT = -50.0  # logit of an entry that a model's table lacks: its probability is negligible


def check_request(request: ScoreRequest, config: ModelConfig) -> None:
  """Refuses a request that this model cannot answer."""
  if request.top_k > config.vocab_size:
    raise ValueError(f'scorer: top_k={request.top_k} of a vocabulary of {config.vocab_size}.')
  if bad := [layer for layer in request.layers if not 0 <= layer < config.num_layers]:
    raise ValueError(
      f'scorer: layers {bad} do not exist; the model has layers 0 to {config.num_layers - 1}.'
    )


def tile_of(vocabulary: int, tokens: int) -> int:
  """Tokens of one tile, from the size of the vocabulary."""
  return max(1, min(tokens, TILE_BYTES // (4 * vocabulary)))


@functools.partial(
  jax.jit,
  static_argnames=('config', 'layout', 'request', 'columns'),
  compiler_options=SAME_ROUNDING,
)
def score(
  params: Params,
  prompt: Int[AnyArray, 'B P'],
  length: Int[AnyArray, ' B'],
  response: Int[AnyArray, 'B R'],
  ids: Int[AnyArray, 'B R C'] | None = None,
  *,
  config: ModelConfig,
  layout: Layout,
  request: ScoreRequest = ScoreRequest(),
  columns: int | None = None,
) -> Scores:
  """Scores one batch under any prompt. Entries behind a response's end are finite but meaningless.

  Args:
    prompt: left-padded; need not be the prompt that the writer saw.
    length: tokens of each prompt, at least one.
    response: right-padded.
    ids: tokens whose log-probabilities are wanted at each position.
    config, layout: of the judge.
    request: which scores to return.
    columns: entries of the vocabulary that is compared; None takes the model's own. See `fitted`.
  """
  check_request(request, config)
  model = transformer.bind(config, layout, params)
  states, tapped = states_of(model, prompt, length, response, layers=request.layers)
  states, head = fitted(states, model.head(), columns or config.vocab_size)
  scores = _read(states, head, response, ids, request, layout)
  return scores._replace(layers=jnp.stack(tapped, axis=2) if tapped else None)


@functools.partial(jax.jit, static_argnames=('request', 'layout'), compiler_options=SAME_ROUNDING)
def read(
  states: Float[AnyArray, 'B R D'],
  head: Float[AnyArray, 'D V'],
  response: Int[AnyArray, 'B R'],
  ids: Int[AnyArray, 'B R C'] | None = None,
  *,
  layout: Layout,
  request: ScoreRequest = ScoreRequest(),
) -> Scores:
  """Scores from given hidden states, e.g. the sum of several models' states."""
  return _read(states, head, response, ids, request, layout)


def fitted(
  states: Float[Array, 'B R D'], head: Float[Array, 'D V'], columns: int
) -> tuple[Float[Array, 'B R E'], Float[Array, 'E W']]:
  """Fits states and a head to `columns` entries of the vocabulary: two models may pad their tables differently.

  Surplus columns are dropped. Missing ones get the logit `ABSENT` through one more state, whose value is always one.
  """
  width, size = head.shape
  if size >= columns:
    return states, head[:, :columns]
  head = jnp.pad(head, ((0, 1), (0, columns - size)))
  head = head.at[width].set(jnp.where(jnp.arange(columns) < size, 0.0, ABSENT).astype(head.dtype))
  return jnp.pad(states, ((0, 0), (0, 0), (0, 1)), constant_values=1.0), head


def states_of(
  model: transformer.Transformer,
  prompt: Int[AnyArray, 'B P'],
  length: Int[AnyArray, ' B'],
  response: Int[AnyArray, 'B R'],
  *,
  layers: tuple[int, ...] = (),
) -> tuple[Float[Array, 'B R D'], tuple[Float[Array, 'B R D'], ...]]:
  """The states that predict each token of the response: after the last norm, and as they leave `layers`."""
  width = prompt.shape[1]
  tokens = jnp.concatenate([prompt, response], axis=1)
  # Rows begin at column 0, padding goes to the end: causality then hides it, and attention needs no mask.
  columns = (jnp.arange(tokens.shape[1]) + width - length[:, None]) % tokens.shape[1]
  # Columns beyond max_positions hold only padding; P + R may exceed it although no row does.
  tokens = jnp.take_along_axis(tokens, columns, axis=1)[:, : model.config.max_positions]
  layout, size = model.layout, tokens.shape[1]
  tokens = jnp.pad(tokens, ((0, 0), (0, -size % context.multiple(layout, size))))
  states, tapped = model.trace(tokens, layers=layers)
  before = length[:, None] - 1 + jnp.arange(response.shape[1])  # the shift by one
  before = jnp.minimum(before, tokens.shape[1] - 1)
  at_response = lambda layer: context.response_states(layer, before, layout)
  return at_response(states), tuple(map(at_response, tapped))


def _read(states, head, response, ids, request: ScoreRequest, layout: Layout) -> Scores:
  """Log-probabilities and the other scores of the request."""
  tokens = -(-response.size // (layout.size('batch') * layout.size('length')))
  width, vocabulary = head.shape
  group = VocabGroup.of(layout, width=width, vocabulary=vocabulary, tokens=tokens)
  read = functools.partial(_read_tiles, request=request, group=group, width=width)
  given = states, response, ids
  if not layout.is_single:
    read = jax.shard_map(
      read,
      mesh=group.mesh,
      in_specs=(group.stored, *(group.tokens,) * 3),
      out_specs=group.tokens,
      check_vma=False,
    )
    given, head = group.long(given), group.wide(head)
  with jax.named_scope('head'):
    found = read(head, *given)
  cut = lambda x: layout.constrain(x[:, : response.shape[1]], 'batch', *[None] * (x.ndim - 1))
  logp, entropy, top_k, at_ids = jax.tree.map(cut, found)
  hidden = states if request.hidden else None
  return Scores(logp, jnp.ones(response.shape, bool), entropy, top_k, at_ids, hidden)


def _read_tiles(
  head, states, response, ids, *, request: ScoreRequest, group: VocabGroup, width: int
):
  """The same on one device, tile by tile."""
  rows, columns = response.shape, group.columns
  size = rows[0] * rows[1]
  head = group.head(head, width, states.dtype)
  tile = max(tile_of(head.shape[1], size * group.share) // group.share, 1)
  flat = lambda x: None if x is None else x.reshape(size, *x.shape[2:])
  pieces = jax.tree.map(
    lambda x: jnp.pad(x, ((0, -size % tile), *((0, 0),) * (x.ndim - 1))).reshape(
      -1, tile, *x.shape[1:]
    ),
    (flat(states), flat(response), flat(ids)),
  )

  def one(piece):
    state, token, judged = group.together(piece)
    logits = transformer.logits_of(state, head)
    if request.temperature != 1.0:
      logits = logits / request.temperature
    total = columns.logsumexp(logits)
    pick = lambda which: columns.pick(logits, which) - total
    gap = total - logits
    entropy = None
    if request.entropy:
      entropy = columns.total(jnp.where(jnp.isinf(gap), 0.0, jnp.exp(-gap) * gap))
    best = columns.top_k(logits, request.top_k) if request.top_k else None
    top_k = None if best is None else best._replace(logp=best.logp - total)
    at_ids = None if judged is None else TopK(ids=judged, logp=pick(judged))
    return group.own((pick(token[:, None])[:, 0], entropy, top_k, at_ids))

  return jax.tree.map(
    lambda x: x.reshape(-1, *x.shape[2:])[:size].reshape(*rows, *x.shape[2:]),
    jax.lax.map(one, pieces),
  )


def score_rows(
  params: Params,
  prompts: Sequence[Sequence[int]],
  responses: Sequence[Sequence[int]],
  *,
  config: ModelConfig,
  layout: Layout,
  request: ScoreRequest = ScoreRequest(),
  rows: int = 8,
  ids: Sequence[np.ndarray] | None = None,
) -> list[Scores]:
  """Scores of rows of any length, as numpy arrays of each row's own length [R, …].

  Every batch has as many rows, filled up where there are fewer: what is said of a row does not depend on the others.

  Rows of similar length share a batch, in buckets of columns that are powers of two: at most one program per bucket.

  Args:
    prompts, responses: tokens of each row; neither prompt nor response is padded.
    rows: rows per batch.
    ids: of each row, tokens [R, C] whose log-probabilities are wanted; C is the same for all.
  """
  if rows < 1:
    raise ValueError(f'scorer: rows per batch must be at least 1, got {rows}.')
  pieces = layout.size('batch')
  rows = -(-rows // pieces) * pieces
  for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
    check_row(prompt, response, name=f'scorer: row {number}', config=config)
  by_row: list[Scores | None] = [None] * len(prompts)
  by_bucket: dict[tuple[int, int], list[int]] = {}
  for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
    by_bucket.setdefault(
      _buckets(len(prompt), max(len(response), 1), config.max_positions), []
    ).append(number)
  for (left, right), members in sorted(by_bucket.items()):
    for begin in range(0, len(members), rows):
      part = members[begin : begin + rows]
      batch = _padded([prompts[i] for i in part], [responses[i] for i in part], rows, left, right)
      judged = None if ids is None else _padded_ids([ids[i] for i in part], rows, batch[2].shape[1])
      scores = jax.device_get(
        score(params, *batch, judged, config=config, layout=layout, request=request)
      )
      for row, number in enumerate(part):
        by_row[number] = _row(scores, row, len(responses[number]))
  return [scores for scores in by_row if scores is not None]


def check_row(
  prompt: Sequence[int], response: Sequence[int], *, name: str, config: ModelConfig
) -> None:
  """Refuses a row that cannot be scored, by its name."""
  total = len(prompt) + len(response)
  if not prompt or total > config.max_positions:
    raise ValueError(
      f'{name} has a prompt of {len(prompt)} tokens and {total} in all; a prompt needs at least one token, and '
      f'prompt and response together at most {config.max_positions} (the position table).'
    )
  if not (min(*prompt, *response, 0) >= 0 and max(*prompt, *response, 0) < config.vocab_size):
    raise ValueError(f'{name} holds token ids outside 0 to {config.vocab_size - 1}.')


def _buckets(prompt: int, response: int, table: int) -> tuple[int, int]:
  """Columns for prompt and response: powers of two while they fit the position table together."""
  left, right = (max(MIN_COLUMNS, 1 << (size - 1).bit_length()) for size in (prompt, response))
  if left + right <= table:
    return left, right
  left = max(prompt, min(left, table - min(right, table - prompt)))
  return left, max(response, min(right, table - left))


def _padded(prompts, responses, rows: int, left: int, right: int):
  prompt, response = np.zeros((rows, left), np.int32), np.zeros((rows, right), np.int32)
  length = np.ones(rows, np.int32)
  for row, (before, after) in enumerate(zip(prompts, responses, strict=True)):
    prompt[row, left - len(before) :], response[row, : len(after)], length[row] = (
      before,
      after,
      len(before),
    )
  return prompt, length, response


def _padded_ids(ids: Sequence[np.ndarray], rows: int, right: int) -> np.ndarray:
  padded = np.zeros((rows, right, ids[0].shape[1]), np.int32)
  for row, each in enumerate(ids):
    padded[row, : len(each)] = each
  return padded


def _row(scores: Scores, row: int, length: int) -> Scores:
  return jax.tree.map(lambda x: x[row, :length], scores)
