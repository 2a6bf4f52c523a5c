"""Floor 3. What judges read: the single models of a judge, the rows of each, and prompts as a person reads them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from opd_jax.data.tokenizers import HubTokenizer, Tokenizer
from opd_jax.judges.cached import CachedJudge
from opd_jax.judges.combining import CombinedJudge
from opd_jax.judges.local import LocalJudge
from opd_jax.judges.protocol import WorkingJudge
from opd_jax.judges.remote import ServedJudge
from opd_jax.judges.retokenising import ForeignJudge
from opd_jax.judges.routing import RoutedJudge
from opd_jax.judges.scenes import Scene


class Reader(NamedTuple):
  """A single model with a prompt of its own."""

  name: str
  judge: WorkingJudge
  rows: Sequence[int]  # of the batch, that it reads

  @property
  def sees_more(self) -> bool:
    """Whether a context builds its prompt."""
    judge = self.model or remote_of(self.judge)
    return judge is not None and judge.spec.context is not None

  @property
  def model(self) -> LocalJudge | ServedJudge | None:
    """Its model as a judge of its own tokens."""
    judge = self.judge.inner if isinstance(self.judge, CachedJudge) else self.judge
    judge = judge.inner if isinstance(judge, ForeignJudge) else judge
    return judge if isinstance(judge, LocalJudge | ServedJudge) else None

  def text_of(self, tokenizer: Tokenizer, prompt: Sequence[int], *, most: int) -> str:
    """A prompt of it as a person reads it; `tokenizer` is the student's, which is its own unless it has another."""
    own = tokenizer if self.model is None else self.model.tokenizer
    return text_of(own, prompt, most=most)


def readers_of(name: str, judge: WorkingJudge, scenes: Sequence[Scene]) -> Iterator[Reader]:
  """The single models of a judge, each with the rows that it reads."""
  if isinstance(judge, RoutedJudge):
    for route, rows in judge.rows_of(scenes).items():
      yield Reader(f'{name}/{route}', judge.table[route], rows.tolist())
  elif isinstance(judge, CombinedJudge):
    for number, (_, members) in enumerate(judge.parts):
      for place, member in enumerate(members):
        part = f'{name}/{number}' + (f'.{place}' if len(members) > 1 else '')
        yield Reader(part, member, range(len(scenes)))
  else:
    yield Reader(name, judge, range(len(scenes)))


def remote_of(judge: WorkingJudge) -> ServedJudge | None:
  """The served judge, where a single judge is one."""
  judge = judge.inner if isinstance(judge, CachedJudge) else judge
  return judge if isinstance(judge, ServedJudge) else None


def served_of(judge: WorkingJudge) -> list[ServedJudge]:
  """The served judges among those of a judge."""
  parts = judge.table.values() if isinstance(judge, RoutedJudge) else [judge]
  return [remote for part in parts if (remote := remote_of(part)) is not None]


def texts_shown(
  name: str, judge: WorkingJudge, scenes: Sequence[Scene], tokenizer: Tokenizer, *, most: int
) -> list[dict[str, str | None]]:
  """For every row what each model of a judge with a context reads; None where it is shown nothing.

  Args:
    name, judge: whose.
    scenes: of the rows.
    tokenizer: of the prompts.
    most: characters of each.
  """
  shown: list[dict[str, str | None]] = [{} for _ in scenes]
  for reader in readers_of(name, judge, scenes):
    if not reader.sees_more:
      continue
    prompts = reader.judge.prompts([scenes[row] for row in reader.rows])
    for row, prompt in zip(reader.rows, prompts, strict=True):
      shown[row][reader.name] = (
        None if prompt is None else reader.text_of(tokenizer, prompt, most=most)
      )
  return shown


def text_of(tokenizer: Tokenizer, tokens: Sequence[int], *, most: int) -> str:
  """With the special tokens, which is where templates go wrong; at most so many characters, and … where it is cut."""
  strings = tokenizer.strings()
  if isinstance(tokenizer, HubTokenizer):
    special = set(tokenizer.specials().values())
    text = ''.join(str(strings[t]) if t in special else tokenizer.decode([t]) for t in tokens)
  else:
    text = ''.join(str(strings[token]) for token in tokens)
  return text if len(text) <= most else text[:most] + '…'
