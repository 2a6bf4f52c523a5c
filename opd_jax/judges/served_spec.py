"""Floor 3. What an experiment says about a judge behind a server; nobody is asked here."""

import dataclasses
import re
from typing import Any, Literal

from opd_jax import kinds
from opd_jax.data.templates import Template
from opd_jax.forks import Forking
from opd_jax.inference.decoding import Decoding, Forbid, Greedy, MinP, Temperature, TopK, TopP
from opd_jax.judges.scenes import Context
from opd_jax.rollouts.mix import RolloutMix
from opd_jax.types import ScoreRequest

ADVICE = (
  "the likeliest tokens of the teacher are what it sends: set the method's `support` to supports.Support with "
  'entries = @supports.TeacherTopK() and rest = @rest_rules.Tail() (experiments/recipes/top32_gkd.gin does), or take a '
  'method that reads the written token only, e.g. experiments/methods/opd.gin'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
  """A model behind a server, which tells log-probabilities of written tokens and of its likeliest ones.

  Args:
    url: of the server, e.g. 'http://host:8000'.
    model: its name at the server; None takes the only one that is there.
    protocol: 'completions' for vLLM, tpu-inference and `opd serve`; 'sglang' for SGLang's own /generate.
    template, context, too_long: as of other judges.
    cache: folder that stores its scores, by model, tokenizer and tokens.
    tokenizer: a folder whose tokenizer is compared with the student's; None asks the server.
    writes: what it is asked for where the teacher writes: 'tokens' of the student's vocabulary, or 'text', which is
      read with the student's tokenizer, so any chat API will do.
    concurrency: requests in flight.
    timeout: seconds of one request.
    patience: seconds that the server may be away in the middle of a run.
    tolerance: nats by which two scorings of the same rows may differ on average.
    key_of: the environment variable that holds the key of the API.
  """

  url: str
  model: str | None = None
  protocol: Literal['completions', 'sglang'] = 'completions'
  template: Template | None = None
  context: Context | None = None
  too_long: Literal['refuse', 'unknown'] = 'refuse'
  cache: str | None = None
  tokenizer: str | None = None
  writes: Literal['tokens', 'text'] = 'tokens'
  concurrency: int = 32
  timeout: float = 120.0
  patience: float = 600.0
  tolerance: float = 0.02
  key_of: str | None = None

  def __post_init__(self):
    if not isinstance(self.url, str) or not re.fullmatch(r'https?://[^\s/]+(/\S*)?', self.url):
      raise ValueError(
        f"Served: url is the address of a server, 'http://host:8000', got {self.url!r}."
      )
    port = self.url.split('/')[2].rpartition(':')[2]
    if port.isdigit() and not 0 < int(port) < 2**16:
      raise ValueError(f'Served: {self.url} names port {port}; ports are numbers from 1 to 65,535.')
    object.__setattr__(self, 'url', self.url.rstrip('/').removesuffix('/v1'))
    for name, allowed in (
      ('protocol', ('completions', 'sglang')),
      ('writes', ('tokens', 'text')),
      ('too_long', ('refuse', 'unknown')),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f'Served: {name} is {" or ".join(map(repr, allowed))}, got {getattr(self, name)!r}.'
        )
    for name in ('concurrency', 'timeout', 'patience', 'tolerance'):
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f'Served: {name} must be a number above 0, got {value!r}.')
    if not isinstance(self.concurrency, int):
      raise ValueError(f'Served: concurrency must be a whole number, got {self.concurrency!r}.')

  @property
  def is_foreign(self) -> bool:
    """Whether it has a tokenizer of its own; its ids are the student's."""
    return False

  @property
  def source(self) -> str:
    """What it is called in lists of judges."""
    return f'{self.model or "the model"} at {self.url}'


def served(url: str, **options: Any) -> Served:
  """A model behind a server that runs elsewhere: vLLM, SGLang, or `opd serve`."""
  kinds.check_options(Served, options)
  return Served(url=url, **options)


def check_request(name: str, judge: Served, request: ScoreRequest) -> None:
  """Refuses what no server sends, before one is asked."""
  wanted = [
    what
    for asked, what in (
      (request.hidden, 'hidden states, i.e. the whole vocabulary'),
      (request.layers, 'the states of inner layers'),
      (request.entropy, 'its entropy, i.e. the whole vocabulary'),
      (request.temperature != 1.0, f'a distribution at temperature {request.temperature:g}'),
    )
    if asked
  ]
  if wanted:
    raise ValueError(
      f'judge {name} ({judge.source}): the method asks for {" and ".join(wanted)}, which a server does not send; '
      f'{ADVICE}. A judge with weights of its own (judges.frozen) gives all.'
    )


def sampling_of(decoding: Decoding) -> dict[str, Any]:
  """Rules of decoding as servers name them; refuses what they do not have."""
  asked: dict[str, Any] = {'temperature': 1.0, 'top_p': 1.0, 'min_p': 0.0}
  for rule in decoding.rules:
    if isinstance(rule, Temperature) and isinstance(rule.value, int | float):
      asked['temperature'] = float(rule.value)
    elif isinstance(rule, Greedy):
      asked['temperature'] = 0.0
    elif isinstance(rule, Forbid):  # rows of a table that no text is made of
      asked['logit_bias'] = {str(token): -100.0 for token in rule.tokens}
    elif isinstance(rule, TopK):
      asked['top_k'] = rule.k
    elif isinstance(rule, TopP):
      asked['top_p'] = rule.p
    elif isinstance(rule, MinP):
      asked['min_p'] = rule.fraction
    else:
      raise ValueError(
        f'the teacher is to write behind a server, which has no rule {rule}; it takes Temperature, Greedy, TopK, TopP '
        'and MinP with fixed numbers.'
      )
  if decoding.repetition is not None:
    raise ValueError(
      'the teacher is to write behind a server, which knows no repetition stop. Leave it out.'
    )
  return asked


def check_writes(judge: Served, mix: RolloutMix, decoding: Decoding, forks: Forking | None) -> None:
  """Refuses text that a server cannot write."""
  pieces = mix.prefix is not None or mix.beside is not None or forks is not None
  if pieces or mix.proposals:
    raise ValueError(
      f'the teacher is to write a prefix, a fork, beside the student, or from its proposals, and {judge.source} writes '
      'whole rows only. Bind a judge with weights: judges.frozen.'
    )
  sampling_of(decoding)
