"""Floor 1. What a decoder is made of: one frozen record, and nothing that depends on a device."""

import dataclasses
from typing import Any, Literal

from opd_jax.models.lora import Lora

DType = Literal['float32', 'bfloat16', 'float16']
# Compiler options of every program whose log-probabilities are compared with another's. By default XLA keeps a
# bfloat16 value in float32 inside a fusion, and fusions differ between programs: sampler and scorer of one model were
# 1.3e-2 nats apart, and are 6e-3 where each value is rounded as it is written in the source.
SAME_ROUNDING = {'xla_allow_excess_precision': False}

Family = Literal['qwen3', 'qwen3_moe', 'qwen3_5_text', 'qwen2', 'llama']
Remat = Literal['none', 'dots', 'full', 'offload']


def _positive(record: Any, *, whole: tuple[str, ...] = (), real: tuple[str, ...] = ()) -> None:
  """Refuses a field that is not a positive number of its kind: a checkpoint's config.json may hold anything."""
  for names, kinds, what in ((whole, int, 'a whole number'), (real, (int, float), 'a number')):
    for name in names:
      value = getattr(record, name)
      if isinstance(value, bool) or not isinstance(value, kinds) or not value > 0:
        raise ValueError(f'{type(record).__name__}: {name} must be {what} above 0, got {value!r}.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
  """Llama 3's stretching of the slow rotary frequencies."""

  factor: float
  low_frequency_factor: float
  high_frequency_factor: float
  original_max_positions: int

  def __post_init__(self):
    real = ('factor', 'low_frequency_factor', 'high_frequency_factor')
    _positive(self, whole=('original_max_positions',), real=real)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
  """A mixture-of-experts MLP: the router sends each token to `per_token` of `count` experts."""

  count: int
  per_token: int
  width: int
  normalise: bool  # whether the chosen router probabilities are rescaled to sum to one

  def __post_init__(self):
    _positive(self, whole=('count', 'per_token', 'width'))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delta:
  """Layers that keep a state instead of keys and values (`delta_net.py`): all but every `period`-th.

  Args:
    period: the last layer of each period is attention.
    key_heads, value_heads: each key head serves value_heads / key_heads neighbouring value heads.
    key_dim, value_dim: entries of a head; its state is a matrix of both.
    kernel: tokens that the convolution before it sees.
  """

  period: int
  key_heads: int
  value_heads: int
  key_dim: int
  value_dim: int
  kernel: int

  def __post_init__(self):
    _positive(self, whole=('key_heads', 'value_heads', 'key_dim', 'value_dim', 'kernel', 'period'))
    if self.period < 2 or self.value_heads % self.key_heads:
      raise ValueError(
        f'Delta: period must be 2 or more and value_heads a multiple of key_heads, got {self.period}, '
        f'{self.value_heads} and {self.key_heads}.'
      )

  @property
  def mixed(self) -> int:
    """Channels of queries, keys and values together."""
    return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """One decoder. Families differ in these fields only, never in code.

  Args:
    family: the published format of its checkpoints (`storage/huggingface.py`); the computation never reads it.
    width, mlp_width, head_dim: D, F and H.
    max_positions: length of the position table; longer inputs are refused.
    qk_norm: RMS norm over each query and key head (Qwen3).
    qkv_bias: biases on query, key and value (Qwen2).
    tied: the output head is the embedding table.
    experts: None for a dense MLP.
    delta: which layers are no attention; None where all are.
    gated: attention has a gate of each head's output, from its own half of the query's projection.
    rotary_share: of a head's entries that are rotated, from the first on.
    centred_norm: scales of norms are stored as their distance from one.
    begin_token, end_tokens, pad_token: the special tokens that the checkpoint declares; the computation never
      reads them.
    param_dtype: how parameters are stored; a router is always float32.
    dtype: how activations are computed; norms, softmax, router and logits are always float32.
    remat: what the backward pass keeps of a layer: 'none' recomputes nothing, 'dots' keeps matrix
      products with weights (of experts, too), 'full' keeps only each layer's input, 'offload' keeps that in the
      memory of the host.
    unroll: each layer has parameters of its own instead of a slice of a stack, and programs repeat the layer
      instead of looping: they compile slower and decode twice as fast (`transformer.unrolled`).
    int8: its matrices lie in memory as int8 (`int8.py`): for models that are not trained.
    lora: adapters beside its linear maps, which are then frozen; `Experiment.lora` sets it for the student.
  """

  family: Family
  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_width: int
  max_positions: int
  rope_theta: float
  rope_scaling: RopeScaling | None = None
  norm_epsilon: float = 1e-6
  qk_norm: bool = False
  qkv_bias: bool = False
  tied: bool = False
  experts: Experts | None = None
  # Not shown: stored scores of a model carry the text of its config in their name (`judges/local.py` adds these).
  delta: Delta | None = dataclasses.field(default=None, repr=False)
  gated: bool = dataclasses.field(default=False, repr=False)
  rotary_share: float = dataclasses.field(default=1.0, repr=False)
  centred_norm: bool = dataclasses.field(default=False, repr=False)
  begin_token: int | None = None
  end_tokens: tuple[int, ...] = ()
  pad_token: int | None = None
  param_dtype: DType = 'float32'
  dtype: DType = 'float32'
  remat: Remat = 'none'
  unroll: bool = False
  # Not shown: stored scores of a model carry the text of its config in their name.
  int8: bool = dataclasses.field(default=False, repr=False)
  lora: Lora | None = dataclasses.field(default=None, repr=False)

  def __post_init__(self):
    sizes = (
      'vocab_size',
      'width',
      'num_layers',
      'num_heads',
      'num_kv_heads',
      'head_dim',
      'mlp_width',
      'max_positions',
    )
    _positive(self, whole=sizes, real=('rope_theta', 'norm_epsilon'))
    for field, kind in (
      ('rope_scaling', RopeScaling),
      ('experts', Experts),
      ('delta', Delta),
      ('lora', Lora),
    ):
      if not isinstance(getattr(self, field), kind | None):
        raise ValueError(
          f'ModelConfig: {field} must be a {kind.__name__} or None, got {getattr(self, field)!r}.'
        )
    self._check_shapes()
    for field, choices in (
      ('param_dtype', DType),
      ('dtype', DType),
      ('remat', Remat),
      ('family', Family),
    ):
      if getattr(self, field) not in choices.__args__:
        raise ValueError(
          f'ModelConfig: {field}={getattr(self, field)!r}; choose one of {choices.__args__}.'
        )

  def _check_shapes(self) -> None:
    """Refuses numbers that are sound one by one and make no model together."""
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'ModelConfig: {self.num_heads} query heads cannot be shared by {self.num_kv_heads} key-value '
        'heads; num_heads must be a multiple of num_kv_heads.'
      )
    if self.rotary_dim % 2 or not 0 < self.rotary_share <= 1:
      raise ValueError(
        f'ModelConfig: rotary embeddings pair the entries of a head; of head_dim={self.head_dim} and '
        f'rotary_share={self.rotary_share} remain {self.rotary_dim}.'
      )
    if self.delta is not None and self.num_layers % self.delta.period:
      raise ValueError(
        f'ModelConfig: {self.num_layers} layers are no multiple of the period of {self.delta.period} after which one '
        'is attention.'
      )
    if self.experts is not None and self.experts.per_token > self.experts.count:
      raise ValueError(
        f'ModelConfig: {self.experts.per_token} experts per token out of {self.experts.count}; '
        'per_token must not exceed count.'
      )
    if self.lora is not None:
      sides = [self.sides(stack) for stack in self.stacks()]
      self.lora.check_there({name for each in sides for name in each})
      for each in sides:
        self.lora.check_sides(each)

  @property
  def rotary_dim(self) -> int:
    """Entries of a head that are rotated."""
    return int(self.head_dim * self.rotary_share)

  def stacks(self) -> dict[str, tuple[int, ...]]:
    """The layers whose parameters lie in each stack of the tree, in order."""
    layers = range(self.num_layers)
    if self.delta is None:
      return {'blocks': tuple(layers)}
    period = self.delta.period
    attends = lambda layer: layer % period == period - 1
    return {
      'blocks': tuple(filter(attends, layers)),
      'delta_blocks': tuple(layer for layer in layers if not attends(layer)),
    }

  def place(self, layer: int) -> tuple[str, int]:
    """The stack in which the parameters of a layer lie, and its number there."""
    return next(
      (stack, layers.index(layer)) for stack, layers in self.stacks().items() if layer in layers
    )

  def sides(self, stack: str = 'blocks') -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every linear map of a layer of a stack that adapters may stand beside."""
    if stack == 'blocks':
      queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
      mixing = {
        'query': (self.width, 2 * queries if self.gated else queries),
        'key': (self.width, keys),
        'value': (self.width, keys),
        'output': (queries, self.width),
      }
    else:
      assert self.delta is not None
      values = self.delta.value_heads * self.delta.value_dim
      mixing = {
        'qkv': (self.width, self.delta.mixed),
        'z': (self.width, values),
        'out': (values, self.width),
      }
    wide = self.experts.width if self.experts else self.mlp_width
    return {
      **mixing,
      'gate': (self.width, wide),
      'up': (self.width, wide),
      'down': (wide, self.width),
    }

  def check_length(self, length: int, *, who: str) -> None:
    """Refuses sequences beyond the position table."""
    if length > self.max_positions:
      raise ValueError(
        f'{who}: a sequence of {length} positions is longer than the position table '
        f'(max_positions={self.max_positions}). Shorten prompt or response, or use a model with a longer table.'
      )
