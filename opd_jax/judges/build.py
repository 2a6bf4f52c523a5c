"""Floor 3. From what an experiment says of a judge to one at work; what cannot judge this student is refused here."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opd_jax.data import vocabularies
from opd_jax.data.alignment import Pair
from opd_jax.data.templates import Template
from opd_jax.data.tokenizers import Tokenizer
from opd_jax.inference import scorer
from opd_jax.judges import introductions, served_spec
from opd_jax.judges.cached import CachedJudge
from opd_jax.judges.combining import CombinedJudge, Part
from opd_jax.judges.introduction import Introduction
from opd_jax.judges.local import LocalJudge
from opd_jax.judges.protocol import WorkingJudge
from opd_jax.judges.remote import ServedJudge
from opd_jax.judges.retokenising import ForeignJudge
from opd_jax.judges.routing import RoutedJudge
from opd_jax.judges.spec import (
  AnyJudge,
  Combined,
  Judge,
  Routed,
  Served,
  Single,
  members_of,
  named_parts,
)
from opd_jax.models import transformer
from opd_jax.models.config import ModelConfig
from opd_jax.sharding import Layout
from opd_jax.storage import load
from opd_jax.storage.hub_tokenizer import Published
from opd_jax.types import ScoreRequest, Weights

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Builder:
  """What judges are built with.

  Args:
    config, layout: of the student.
    tokenizer, template: of the student.
    rows: per pass of a judge.
    seed: of the run; a preset gets random weights of the next one, so that it is not the student.
    say: told what is being loaded.
    shape_of: tells the shape of named weights. Where it is given, nothing is loaded: judges have shapes for weights.
  """

  config: ModelConfig
  layout: Layout
  tokenizer: Tokenizer
  template: Template
  rows: int
  seed: int = 0
  say: Say = lambda text: None
  shape_of: Callable[[str], ModelConfig] | None = None

  def build(self, name: str, judge: AnyJudge) -> WorkingJudge:
    """A judge at work, with its weights loaded."""
    if isinstance(judge, Routed):
      table = {route: self._single(f'{name}/{route}', part) for route, part in judge.table}
      return RoutedJudge(name=name, table=table, pieces=self.layout.size('batch'))
    if isinstance(judge, Combined):
      return self._combined(name, judge)
    return self._single(name, judge)

  def _combined(self, name: str, judge: Combined) -> CombinedJudge:
    """Members that differ only in what they read are one model, loaded once."""
    models = [self.local(f'{name}/{number}', part) for number, part in enumerate(judge.models)]

    def at_work(member: Judge) -> LocalJudge:
      model = next(each for each in models if each.spec.shares_model(member))
      return dataclasses.replace(model, spec=member, template=member.template or self.template)

    return CombinedJudge(
      name=name,
      parts=tuple(
        Part(number, tuple(map(at_work, members_of(each)))) for number, each in judge.parts
      ),
    )

  def _single(
    self, name: str, judge: Single
  ) -> LocalJudge | ForeignJudge | ServedJudge | CachedJudge:
    if isinstance(judge, Served):
      return self._served(name, judge)
    local = self.local(name, judge)
    if judge.tokenizer is not None:
      local = self._foreign(local, judge)
    if judge.cache is None or self.shape_of is not None:
      return local
    identity = local.identity(Weights(student={}, snapshots={}))
    return CachedJudge(inner=local, folder=Path(judge.cache), identity=identity)

  def _foreign(self, local: LocalJudge, judge: Judge) -> ForeignJudge:
    teacher = tokenizer_of(local.name, judge, self.tokenizer)
    end = teacher.turn_end if local.template.chat else min(teacher.stop_tokens)
    pair = Pair(self.tokenizer, teacher, end, judge.longest_chunk)
    return ForeignJudge(
      inner=dataclasses.replace(local, tokenizer=pair.teacher, columns=local.config.vocab_size),
      pair=pair,
      columns=self.config.vocab_size,
      open_ends=judge.open_ends,
    )

  def _served(self, name: str, judge: Served) -> ServedJudge | CachedJudge:
    remote = self.remote(name, judge)
    if judge.cache is None or self.shape_of is not None:
      return remote
    folder = Path(judge.cache)
    return CachedJudge(inner=remote, folder=folder, identity=remote.identity(folder))

  def remote(self, name: str, judge: Served) -> ServedJudge:
    """A judge behind a server, which is asked who it is; a plan asks nobody."""
    client, known = None, Introduction(model=judge.model or '')
    if self.shape_of is None:
      client = introductions.client_of(name, judge, self.say)
      known = introductions.introduce(name, judge, client, self.tokenizer)
      self.say(f'{name}: {judge.url} serves {known.shown}')
    return ServedJudge(
      name=name,
      spec=judge,
      client=client,
      known=known,
      tokenizer=self.tokenizer,
      template=judge.template or self.template,
    )

  def local(self, name: str, judge: Judge) -> LocalJudge:
    """A single judge; the student itself has no weights of its own."""
    config, layout, own = self.config, judge.layout or self.layout, None
    if judge.weights is not None and self.shape_of is not None:
      config = dataclasses.replace(self.shape_of(judge.weights), **types_of(judge))
      own = transformer.abstract(config, layout)
    elif judge.weights is not None:
      self.say(f'loading {name}: {judge.weights}')
      if judge.tokenizer is None:
        check_vocabulary(name, judge.weights, self.tokenizer, self.config, self.say)
      loaded = load.model(judge.weights, layout, seed=self.seed + 1, **types_of(judge))
      config, own = loaded.config, loaded.params
    return LocalJudge(
      name=name,
      spec=judge,
      config=config,
      layout=layout,
      home=self.layout,
      columns=self.config.vocab_size,
      tokenizer=self.tokenizer,
      template=judge.template or self.template,
      own=own,
      rows=self.rows,
    )


def types_of(judge: Judge) -> dict[str, Any]:
  """The overrides of a model's config that a judge asks for."""
  types = {} if judge.dtype is None else {'param_dtype': judge.dtype, 'dtype': judge.dtype}
  return {**types, 'int8': True} if judge.int8 else types


def tokenizer_of(name: str, judge: Single, student: Tokenizer) -> Tokenizer:
  """The tokenizer in which a judge reads. Refuses one that is missing, or is not that of the weights."""
  if isinstance(judge, Served) or judge.tokenizer is None:
    return student
  weights, named = str(judge.weights), judge.tokenizer
  found: Any = load.tokenizer_of(weights) if named == 'beside' else named
  found = found.tokenizer if isinstance(found, Published) else found
  if found is None:
    raise ValueError(
      f'judge {name}: no tokenizer lies beside {weights}. Put its tokenizer files into the folder, or bind '
      'judges.foreign.tokenizer.'
    )
  ours, rows, strings = (
    found.strings(),
    load.config_of(weights).vocab_size,
    load.strings_of(weights),
  )
  if len(ours) > rows or strings not in (None, ours):
    known = len(strings) if strings is not None else rows
    raise ValueError(
      f'judge {name}: its tokenizer has {len(ours)} tokens and is not that of {weights}, which has {known}, or others '
      'of that number. Bind judges.foreign.tokenizer to the one that it was trained with.'
    )
  for who, tokenizer in (('the student', student), (f'judge {name}', found)):
    try:
      tokenizer.token_bytes()
    except ValueError as error:
      raise ValueError(f'{who}: {error}') from error
  return found


def check_vocabulary(
  name: str, weights: str, tokenizer: Tokenizer, student: ModelConfig, say: Say = lambda text: None
) -> None:
  """Refuses a judge whose ids stand for other strings. Padded rows of either table are no difference."""
  config = load.config_of(weights)
  strings = load.strings_of(weights)
  if strings is None:
    if config.vocab_size != student.vocab_size:
      raise ValueError(
        f'judge {name}: {weights} has {config.vocab_size} entries in its vocabulary, the student {student.vocab_size}, '
        'and no tokenizer lies beside it that would tell whether the difference is padding. Put its tokenizer files '
        'into the folder; if its tokenizer is another one, take judges.foreign.'
      )
    if not load.is_preset(weights):
      say(
        f'{name}: no tokenizer lies beside {weights}; that its ids mean what ours do is taken on trust'
      )
    return
  vocabularies.check_strings(
    tokenizer.strings(),
    strings,
    name=f'judge {name} ({weights})',
    student_rows=student.vocab_size,
    judge_rows=config.vocab_size,
  )


def check_request(name: str, judge: AnyJudge, request: ScoreRequest, student: ModelConfig) -> None:
  """Refuses a judge that cannot tell what it will be asked for, before a weight of it is loaded."""
  if request.layers and isinstance(judge, Combined):
    raise ValueError(
      f'judge {name}: inner layers are asked for, and several models make this judge. Bind one of them.'
    )
  for part_name, part in named_parts(name, judge):
    if isinstance(part, Served):
      served_spec.check_request(part_name, part, request)
  parts = [
    (part_name, part) for part_name, part in named_parts(name, judge) if isinstance(part, Judge)
  ]
  configs = {part_name: _config_of(part, student) for part_name, part in parts}
  for part_name, part in parts:
    if part.is_foreign and (request.hidden or request.layers):
      raise ValueError(
        f'judge {part_name} ({part.weights}): the method asks for its hidden states, which predict tokens of its own '
        "tokenizer. Take a method that compares written tokens or the teacher's top k: opd, dpca, bpm, or gkd with a "
        'support of TeacherTopK.'
      )
    try:
      scorer.check_request(request, configs[part_name])
    except ValueError as error:
      raise ValueError(
        f'judge {part_name} ({part.source}): {error} Let the method ask for what it has, or '
        'bind another judge.'
      ) from error
  widths = {part_name: config.width for part_name, config in configs.items()}
  if request.layers and len({*widths.values()}) > 1:
    raise ValueError(
      f'judge {name}: inner layers are asked for, and its parts have states of different widths: {widths}. Bind judges '
      'of one width.'
    )


def width_of(judge: AnyJudge, student: ModelConfig) -> int:
  """The width of the hidden states that a judge hands out; those of several models stand beside each other."""
  parts = [part for _, part in named_parts('', judge) if isinstance(part, Judge)]
  return sum(_config_of(part, student).width for part in parts)


def _config_of(judge: Judge, student: ModelConfig) -> ModelConfig:
  return student if judge.weights is None else load.config_of(judge.weights)
