"""Floor 6. What passes of a model compute and read, from shapes alone, and how long a device takes for that.

FLOPs of matrix products and of attention, two for a multiplication with its addition. Left out: norms, softmax, the
optimiser, and what the parts of a mesh send each other.
"""

from typing import NamedTuple

from opd_jax.models.config import ModelConfig
from opd_jax.models.delta_net import CHUNK


class Chip(NamedTuple):
  """A device, as its maker describes it."""

  flops: float  # a second, dense, bfloat16
  bandwidth: float  # bytes a second
  memory: float = float('inf')  # bytes
  network: float = float('inf')  # bytes a second that it can send to its neighbours
  outside: float = float('inf')  # bytes a second that its share of a host sends to other slices


CHIPS = {
  'h100': Chip(989e12, 3.35e12, 80e9, 450e9),
  'h200': Chip(989e12, 4.8e12, 141e9, 450e9),
  'v5e': Chip(197e12, 0.819e12, 16 * 2**30, 200e9, 3.125e9),
  'v5p': Chip(459e12, 2.765e12, 95 * 2**30, 600e9, 6.25e9),
  'v6e': Chip(918e12, 1.64e12, 32 * 2**30, 448e9, 12.5e9),
}
OF_BANDWIDTH = 0.65  # what decoding reaches of it; measured on an H200: 65 to 68 %
MLP = ('gate', 'up', 'down')
BYTES = {'float32': 4, 'bfloat16': 2, 'float16': 2}


def chip_of(name: str, mfu: float) -> Chip:
  """A device by its name, where it and the share of its peak can be reckoned with."""
  if name not in CHIPS or not 0 < mfu <= 1:
    raise ValueError(
      f'--chip is one of {", ".join(CHIPS)} and --mfu above 0 and at most 1, got {name} and {mfu}.'
    )
  return CHIPS[name]


class Hours(NamedTuple):
  """Of one device, however many share the work."""

  train: float
  score: float
  sample: float
  sampling_bound: str  # what sampling waits for

  @property
  def total(self) -> float:
    return self.train + self.score + self.sample


class Cost(NamedTuple):
  """What passes compute, and what sampling reads."""

  train: float = (
    0.0  # FLOPs: forward, backward, and the forward again where activations are not kept
  )
  score: float = 0.0  # FLOPs of the judges, and of the student before it is updated
  sample: float = 0.0  # FLOPs of whoever writes
  read: float = 0.0  # bytes of weights and cache that decode steps read
  tokens: float = 0.0  # of responses that are trained on
  sampled: float = 0.0  # tokens that are written, those of evaluations included

  def plus(self, other: 'Cost', times: float | int = 1) -> 'Cost':
    return Cost(*(one + times * more for one, more in zip(self, other, strict=True)))

  @property
  def flops(self) -> float:
    return self.train + self.score + self.sample

  def hours(self, chip: Chip, mfu: float) -> Hours:
    """Passes at `mfu` of the chip's peak, decoding no faster than it reads.

    Passes of 2e15 FLOPs and decoding of 1e15 take 4,000 and 2,000 s; reading 6.5e13 bytes for it would take 10,000 s:

    >>> round(Cost(train=2e15, sample=1e15, read=6.5e13).hours(Chip(1e12, 1e10), mfu=0.5).total * 3600)
    14000
    """
    computed = lambda flops: flops / (mfu * chip.flops) / 3600
    writing, reading = computed(self.sample), self.read / (OF_BANDWIDTH * chip.bandwidth) / 3600
    bound = 'reading weights and cache' if reading > writing else 'computing'
    return Hours(computed(self.train), computed(self.score), max(writing, reading), bound)


def weights_of(config: ModelConfig, *, active: bool = True) -> int:
  """Entries of the matrices that a token is multiplied with; `active=False` counts experts that it does not meet, too.

  Two layers of q 4,096, k and v 4,096, o 4,096, MLP 24,576, and a head of 20,480:

  >>> from opd_jax.models import presets
  >>> weights_of(presets.tiny())
  94208
  """
  total, experts = config.width * config.vocab_size, config.experts
  count = 1 if experts is None else experts.per_token if active else experts.count
  for stack, layers in config.stacks().items():
    sides = config.sides(stack).items()
    entries = sum(rows * columns * (count if name in MLP else 1) for name, (rows, columns) in sides)
    router = config.width * experts.count if experts else 0
    heads = config.delta.value_heads if config.delta and stack == 'delta_blocks' else 0
    total += len(layers) * (entries + router + 2 * config.width * heads)
  return total


def forward(config: ModelConfig, tokens: int) -> float:
  """FLOPs for one response: 2 for each weight and token; token t attends to t tokens, 4 for each entry of a head.

  2 x 94,208 x 3, and 4 x 2 layers x 4 heads x 16 x (1 + 2 + 3):

  >>> from opd_jax.models import presets
  >>> forward(presets.tiny(), 3)
  568320.0
  """
  stacks = config.stacks()
  entries = len(stacks['blocks']) * config.num_heads * config.head_dim
  # A chunk asks the memory for two things and writes one; within it, tokens meet each other in pairs.
  pairs = 0
  if (delta := config.delta) is not None:
    a_head = 6 * delta.key_dim * delta.value_dim + CHUNK * (5 * delta.key_dim + 3 * delta.value_dim)
    pairs = len(stacks['delta_blocks']) * delta.value_heads * a_head
  return (2.0 * weights_of(config) + pairs) * tokens + 4.0 * entries * _attended(tokens)


def adapters_of(config: ModelConfig) -> int:
  """Entries of the adapters that a token is multiplied with; rank · (inputs + outputs) for each adapted map.

  Two layers of q and v with rank 4: 4 x (64 + 64) and 4 x (64 + 32) each:

  >>> from opd_jax.models import lora, presets
  >>> adapters_of(presets.tiny(lora=lora.Lora(rank=4, targets=('q_proj', 'v_proj'))))
  1792
  """
  if config.lora is None:
    return 0
  met = lambda name: config.experts.per_token if config.experts and name in MLP else 1
  return sum(
    len(layers) * met(name) * config.lora.rank * sum(sides)
    for stack, layers in config.stacks().items()
    for name, sides in config.sides(stack).items()
    if config.lora.adapts(name)
  )


def training(config: ModelConfig, rows: float | int, tokens: int) -> Cost:
  """An update on some rows: the backward pass is two forwards, and where `remat` keeps inputs of layers only, three.

  Frozen weights have no gradient of their own: with LoRA they cost a third less.
  """
  passes = 4 if config.remat in ('full', 'offload') else 3
  row = passes * (forward(config, tokens) + 2.0 * adapters_of(config) * tokens)
  if config.lora is not None:
    row -= 2.0 * weights_of(config) * tokens
  return Cost(train=rows * row, tokens=rows * tokens)


def scoring(config: ModelConfig, rows: float | int, tokens: int) -> Cost:
  """A forward pass over some rows."""
  return Cost(score=rows * forward(config, tokens))


def writing(config: ModelConfig, rows: float | int, tokens: int, *, slots: int) -> Cost:
  """Sampling of some rows: a decode step reads all weights once for the rows in flight, and the cache of each of them.

  Rows in flight are those of all devices: where groups of devices hold the weights several times, more is read.

  Two rows of 3 tokens, both in flight: three steps of 94,208 weights, and 2 x 2 layers x 2 heads x 16 of cache for each
  of 2 x (1 + 2 + 3) tokens, in float32:

  >>> from opd_jax.models import presets
  >>> writing(presets.tiny(), 2, 3, slots=64).read == 4 * (3 * 94208 + 12 * 128)
  True
  """
  if not rows:
    return Cost()
  steps = rows * tokens / min(slots, rows)
  weights = BYTES[config.dtype] * steps * weights_of(config, active=False)
  return Cost(
    sample=rows * forward(config, tokens),
    read=weights + cache_read(config, rows, tokens),
    sampled=rows * tokens,
  )


def cache_read(config: ModelConfig, rows: float | int, tokens: int) -> float:
  """Bytes of the cache that decoding of some rows reads; a state is written back, too.

  >>> from opd_jax.models import presets
  >>> cache_read(presets.tiny(), 2, 3) == 4 * 12 * 128
  True
  """
  return rows * (key_bytes(config) * _attended(tokens) + 2 * state_bytes(config) * tokens)


def key_bytes(config: ModelConfig) -> int:
  """Bytes of keys and values of one token."""
  layers = len(config.stacks()['blocks'])
  return 2 * layers * config.num_kv_heads * config.head_dim * BYTES[config.dtype]


def state_bytes(config: ModelConfig) -> int:
  """Bytes that layers without keys keep of a row, however long it is: matrices in float32, and the last tokens."""
  if (delta := config.delta) is None:
    return 0
  recent = (delta.kernel - 1) * delta.mixed * BYTES[config.dtype]
  memory = 4 * delta.value_heads * delta.key_dim * delta.value_dim
  return len(config.stacks()['delta_blocks']) * (recent + memory)


def _attended(tokens: int) -> float:
  return tokens * (tokens + 1) / 2
