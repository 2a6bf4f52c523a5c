"""Floor 3. A judge behind a server, at work: one request a row, and scores by response position as of other judges."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from opd_jax.data.templates import Template
from opd_jax.data.tokenizers import Message, Tokenizer
from opd_jax.inference.sampler import Model
from opd_jax.judges import introductions, prompting
from opd_jax.judges.client import Client
from opd_jax.judges.introduction import Introduction, apart, differences
from opd_jax.judges.scenes import Scene
from opd_jax.judges.served_spec import Served, check_request
from opd_jax.judges.wire import Answer, Question
from opd_jax.processes import agreed, first_does
from opd_jax.storage.places import write_whole
from opd_jax.types import Rollout, ScoreRequest, Scores, TopK, Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedJudge:
  """See `protocol.WorkingJudge`. The first of several processes asks, and tells the others.

  Args:
    name: its name in messages.
    spec: its settings in the experiment.
    client: asks its server; None in a plan, which asks nobody.
    known: what the server said of itself.
    tokenizer, template: render its prompts.
  """

  name: str
  spec: Served
  client: Client | None
  known: Introduction
  tokenizer: Tokenizer
  template: Template

  def messages(self, scene: Scene) -> Sequence[Message] | None:
    """What it is shown of a row; None where its context shows nothing."""
    return prompting.messages_of(self.spec.context, scene, judge=self.name)

  def prompts(self, scenes: Sequence[Scene]) -> list[list[int] | None]:
    return prompting.rendered(
      scenes,
      context=self.spec.context,
      template=self.template,
      tokenizer=self.tokenizer,
      judge=self.name,
    )

  def fitting(
    self, prompts: Sequence[list[int] | None], scenes: Sequence[Scene], rollout: Rollout
  ) -> list[list[int] | None]:
    """Keeps prompts that leave room for their response; refuses or drops the others, as `spec.too_long` says."""
    room = self.known.positions
    if room is None:
      return [*prompts]
    return prompting.with_room(
      prompts,
      scenes,
      rollout.lengths.tolist(),
      room=room,
      too_long=self.spec.too_long,
      judge=self.name,
      remedy=f'{self.spec.url} takes {room} together. Start the server with room for more (vLLM: --max-model-len), '
      'shorten its context',
    )

  def score(
    self,
    weights: Weights,
    scenes: Sequence[Scene],
    rollout: Rollout,
    ids: Any,
    request: ScoreRequest,
  ) -> Scores:
    prompts = self.fitting(self.prompts(scenes), scenes, rollout)
    return self.score_prompts(weights, prompts, rollout, ids, request)

  def score_prompts(
    self,
    weights: Weights,
    prompts: Sequence[list[int] | None],
    rollout: Rollout,
    ids: Any,
    request: ScoreRequest,
  ) -> Scores:
    """Scores responses behind given prompts; a row whose prompt is None is not known. Equal rows are asked once."""
    check_request(self.name, self.spec, request)
    questions = self._questions(prompts, rollout, ids, request)
    response = np.asarray(rollout.response)
    blank = _blank(response.shape, ids, request)
    made = first_does(lambda: _filled(blank, questions, self._answers(questions)))
    if jax.process_count() > 1:
      made = multihost_utils.broadcast_one_to_all(blank if made is None else made)
      made = jax.tree.map(np.asarray, made)
    assert made is not None
    known = np.array([prompt is not None for prompt in prompts])
    return made._replace(known=np.broadcast_to(known[:, None], response.shape).copy())

  def _questions(
    self, prompts: Sequence[list[int] | None], rollout: Rollout, ids: Any, request: ScoreRequest
  ) -> list[Question | None]:
    """One a row; None where there is nothing to ask."""
    lengths, response = rollout.lengths.tolist(), np.asarray(rollout.response)
    return [
      None
      if prompt is None or not size
      else Question(
        [*prompt, *response[row][:size].tolist()],
        len(prompt),
        request.top_k,
        None if ids is None else np.asarray(ids[row])[:size],
      )
      for row, (prompt, size) in enumerate(zip(prompts, lengths, strict=True))
    ]

  def _answers(self, questions: Sequence[Question | None]) -> list[Answer | None]:
    client = self.client
    assert client is not None
    keys = [None if each is None else _key(each) for each in questions]
    rows = {key: row for row, key in reversed([*enumerate(keys)]) if key is not None}
    ask = lambda question: introductions.asked(self.spec, client, self.known, question)
    asks: list[Callable[[], Answer]] = [
      functools.partial(ask, questions[row]) for row in rows.values()
    ]
    numbers, before = [*rows.values()], client.outages
    found = dict(zip(rows, client.each(asks, lambda place: f'row {numbers[place]}'), strict=True))
    if client.outages > before:  # whoever came back may be somebody else
      now = introductions.glimpsed(self.name, self.spec, client, self.tokenizer)
      self.check_same(now, before=self._cut(len(now.probe)))
    return [None if key is None else found[key] for key in keys]

  def _cut(self, tokens: int) -> Introduction:
    """What it was known by, with so many tokens of the probe."""
    return dataclasses.replace(self.known, probe=self.known.probe[:tokens])

  def check_same(self, now: Introduction, *, before: Introduction) -> None:
    """Refuses another model than the one that was introduced before."""
    lines = differences(before, now, self.spec.tolerance)
    if lines:
      raise ValueError(
        f'judge {self.name}: another model answers at {self.spec.url} than before:\n'
        + '\n'.join(lines)
        + '\nServe the one that the run began with, or choose another --workdir.'
      )

  def steadiness(self, scenes: Sequence[Scene], rollout: Rollout) -> str:
    """Scores rows of a run twice, in two orders; refuses numbers that differ too much, and says by how much they do."""
    request, prompts = ScoreRequest(), self.fitting(self.prompts(scenes), scenes, rollout)

    def asked() -> list[float]:
      questions = self._questions(prompts, rollout, None, request)
      first = self._answers(questions)
      again = self._answers(questions[::-1])[::-1]
      pick = lambda answers: [each.logp for each in answers if each is not None]
      return [*apart(pick(first), pick(again))]

    worst, mean = agreed(first_does(asked))
    introductions.check_steady(self.name, self.spec, worst, mean)
    doubt = ''
    if worst > 10 * self.spec.tolerance:
      doubt = '; warning: single tokens differ by more than ten times the tolerance'
    return (
      f'{self.name}: {len(prompts)} rows scored twice, in two orders: {worst:.3g} nats apart at most, {mean:.3g} on '
      f'average (allowed: {self.spec.tolerance:g} on average){doubt}'
    )

  def head(self, weights: Weights) -> Array:
    raise ValueError(
      f'judge {self.name}: {self.spec.source} has no head here; a server sends log-probabilities.'
    )

  def model(self, weights: Weights) -> Model:
    raise ValueError(
      f'judge {self.name}: {self.spec.source} has no weights here, and a model is wanted that decodes beside the '
      'student or in its place. Bind a judge with weights: judges.frozen.'
    )

  def of_evaluations(self, template: Template) -> 'ServedJudge':
    return dataclasses.replace(
      self,
      spec=dataclasses.replace(self.spec, too_long='unknown'),
      template=self.spec.template or template,
    )

  def identity(self, folder: Path) -> str:
    """What its scores are stored under: the first of the models in a cache whose fingerprint is its own."""
    now = dataclasses.asdict(self.known)

    def chosen() -> int:
      file = folder / 'served.json'
      models = json.loads(file.read_text()) if file.is_file() else []
      for number, old in enumerate(models):
        if not differences(Introduction.of(old), self.known, self.spec.tolerance):
          return number
      folder.mkdir(parents=True, exist_ok=True)
      write_whole(file, json.dumps([*models, now]))
      return len(models)

    settings = repr((self.tokenizer.strings(), self.known.model, agreed(first_does(chosen))))
    return f'served-{hashlib.sha256(settings.encode()).hexdigest()[:16]}'


def _key(question: Question) -> Any:
  ids = None if question.ids is None else question.ids.tobytes()
  return tuple(question.tokens), question.start, question.top_k, ids


def _blank(shape: tuple[int, ...], ids: Any, request: ScoreRequest) -> Scores:
  """Scores of nothing, of the shapes that every process expects."""
  top = at = None
  if request.top_k:
    sized = (*shape, request.top_k)
    top = TopK(np.zeros(sized, np.int32), np.zeros(sized, np.float32))
  if ids is not None:
    given = np.asarray(ids, np.int32)
    at = TopK(given, np.zeros(given.shape, np.float32))
  return Scores(logp=np.zeros(shape, np.float32), known=np.zeros(shape, bool), top_k=top, at_ids=at)


def _filled(
  blank: Scores, questions: Sequence[Question | None], answers: Sequence[Answer | None]
) -> Scores:
  for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
    if question is None or answer is None:
      continue
    size = len(question.response)
    blank.logp[row, :size] = answer.logp
    if blank.top_k is not None:
      blank.top_k.ids[row, :size], blank.top_k.logp[row, :size] = answer.top_ids, answer.top_logp
      blank.top_k.ids[row, size:] = np.arange(question.top_k)  # distinct, as a model's are
    if blank.at_ids is not None and answer.at_logp is not None:
      blank.at_ids.logp[row, :size] = answer.at_logp
  return blank
