"""Floor 3. Who answers at a server: its model, what it sends, and whether its numbers can be trusted.

Before a run and at each resume, fixed rows of tokens are scored. What came is the fingerprint of the model; the same
rows in another order must give the same numbers, and a temperature that is asked for must be the only one.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from opd_jax.data.tokenizers import Tokenizer
from opd_jax.judges import served_tokenizer, wire
from opd_jax.judges.client import Away, Client, Refused
from opd_jax.judges.introduction import Introduction, apart
from opd_jax.judges.served_spec import Served
from opd_jax.judges.wire import Answer, BadReply, Question
from opd_jax.processes import agreed, first_does
from opd_jax.types import ScoreRequest

ROWS, LENGTH, SHARED = (
  4,
  64,
  48,
)  # probe rows; they begin alike, so that a prefix cache has something to do
SENT = 5  # likeliest tokens that probes ask for
CAPS = (4096, 1024, 256, 128, 100, 64, 50, 32, 20, 16, 10, 8, 5, 4, 3, 2, 1, 0)


def client_of(name: str, judge: Served, say: Callable[[str], None] = lambda text: None) -> Client:
  return Client(
    name=name,
    url=judge.url,
    concurrency=judge.concurrency,
    timeout=judge.timeout,
    patience=judge.patience,
    key_of=judge.key_of,
    say=say,
  )


def introduce(name: str, judge: Served, client: Client, tokenizer: Tokenizer) -> Introduction:
  """Asks a server who it is and looks at its numbers; every process is told what the first one heard."""

  def asked() -> dict[str, Any]:
    return dataclasses.asdict(_introduce(name, judge, client, tokenizer))

  return Introduction.of(agreed(first_does(asked)))


def positions_of(name: str, judge: Served) -> int | None:
  """Tokens of prompt and response that a server takes; None where it does not tell."""
  return agreed(first_does(lambda: listed(name, judge, client_of(name, judge)).positions))


def listed(name: str, judge: Served, client: Client) -> Introduction:
  """What the list of models says."""
  try:
    models = {str(each['id']): each for each in client.knock('/v1/models')['data']}
  except (KeyError, TypeError, BadReply, Refused) as error:
    raise ValueError(
      f'judge {name}: {judge.url} lists no models at /v1/models ({error}). Is it a server of completions?'
    ) from error
  model = judge.model if judge.model is not None else next(iter(models), '')
  if model not in models or (judge.model is None and len(models) > 1):
    raise ValueError(
      f'judge {name}: {judge.url} has the models {[*models]}, '
      + (f'not {judge.model!r}.' if judge.model is not None else 'name one: judges.served.model.')
    )
  entry = models[model]
  ours, room = entry.get('owned_by') == wire.OWNER, entry.get('max_model_len')
  if room is not None and not ours:
    room = int(room) - 1  # such servers want to write at least one token
  return Introduction(
    model=model,
    root=str(entry.get('root') or ''),
    system=str(entry.get('system_fingerprint') or ''),
    ours=ours,
    positions=room,
    most=entry.get('max_top_k'),
  )


def _introduce(name: str, judge: Served, client: Client, tokenizer: Tokenizer) -> Introduction:
  found = listed(name, judge, client)
  compared = served_tokenizer.compared(name, judge, client, found, tokenizer)
  if judge.writes == 'text':  # it is never asked for log-probabilities
    return dataclasses.replace(found, tokenizer=compared, temperature='it writes text only')
  try:
    if found.most is None and judge.protocol == 'completions':
      found = dataclasses.replace(found, most=_most(judge, client, found))
    return dataclasses.replace(probed(name, judge, client, found, tokenizer), tokenizer=compared)
  except (Away, BadReply, Refused) as error:
    raise ValueError(
      f'judge {name} ({judge.source}): it does not score rows of tokens ({error}). docs/served.md says how servers '
      'are started so that they do.'
    ) from error


# --- what it sends ----------------------------------------------------------------------------------


def asked(judge: Served, client: Client, found: Introduction, question: Question) -> Answer:
  """One row, asked once."""
  options = {'model': found.model, 'protocol': judge.protocol, 'ours': found.ours}
  reply = client.post(wire.PATHS[judge.protocol], wire.body(question, **options))
  answered = reply.get('model', found.model) if isinstance(reply, dict) else found.model
  if answered != found.model:
    raise Refused(f'the model {answered!r} answers, {found.model!r} was asked')
  return wire.read(reply, question, protocol=judge.protocol)


def _most(judge: Served, client: Client, found: Introduction) -> int | None:
  """The most of the likeliest tokens that it sends, from its refusal; None where it sends as many as we try."""
  refusals: dict[int, str] = {}

  def sends(k: int) -> bool:
    question = Question([0, 1], 1, k)
    options = {'model': found.model, 'protocol': judge.protocol, 'ours': found.ours}
    ask = lambda: client.post(wire.PATHS[judge.protocol], wire.body(question, **options))
    try:
      client.persistently(ask, patience=client.patience)
    except Refused as error:
      refusals[k] = str(error)
      return False
    return True

  if sends(CAPS[0]):
    return None
  told = re.findall(r'(?:max|most|limit|allowed)\D{0,40}(\d+)', refusals[CAPS[0]], re.IGNORECASE)
  hinted = [int(number) for number in told if int(number) < CAPS[0]]
  for k in (*hinted, *CAPS[1:]):
    if sends(k):
      return k
  raise Refused(refusals[CAPS[0]])


def check_answers(name: str, judge: Served, found: Introduction, request: ScoreRequest) -> None:
  """Refuses a request that goes beyond what the server sends."""
  if judge.writes == 'text' and request != ScoreRequest():
    raise ValueError(
      f"judge {name}: it writes text (writes = 'text'), so it scores nothing, and the method asks for {request}."
    )
  if found.most is not None and request.top_k > found.most:
    raise ValueError(
      f"judge {name}: the method asks for the teacher's {request.top_k} likeliest tokens, {judge.url} sends "
      f'{found.most} at most. Start it with --max-logprobs {request.top_k} (vLLM) or --max_top_k {request.top_k} (opd '
      f'serve), or bind supports.TeacherTopK.k = {found.most}.'
    )
  if request.at_student_top_k and judge.protocol == 'completions' and not found.ours:
    raise ValueError(
      f"judge {name}: the method asks for log-probabilities of the student's likeliest tokens, and {judge.url} tells "
      "them of its own only. SGLang (protocol = 'sglang') and `opd serve` tell of chosen tokens; or bind "
      'supports.Support.entries = @supports.TeacherTopK().'
    )


# --- its numbers ------------------------------------------------------------------------------------


def probe_rows(tokens: int, room: int | None) -> list[list[int]]:
  """Fixed rows of tokens that begin alike.

  Args:
    tokens: of the tokenizer.
    room: positions of the server.
  """
  length = max(4, min(LENGTH, room or LENGTH))
  rows = np.random.default_rng(0).integers(0, tokens, (ROWS, length))
  rows[:, : length * SHARED // LENGTH] = rows[0, : length * SHARED // LENGTH]
  return rows.tolist()


def probed(
  name: str, judge: Served, client: Client, found: Introduction, tokenizer: Tokenizer
) -> Introduction:
  """With what came of the probe rows: scored twice, in two orders, and once at another temperature."""
  rows = probe_rows(len(tokenizer.strings()), found.positions)
  most = SENT if found.most is None else min(SENT, found.most)
  ask = lambda row, heat=1.0: client.persistently(
    lambda: asked(judge, client, found, Question(row, 1, most, temperature=heat))
  )
  first = [ask(row) for row in rows]
  again = [ask(row) for row in reversed(rows)][::-1]
  worst, mean = apart([each.logp for each in first], [each.logp for each in again])
  check_steady(name, judge, worst, mean)
  return dataclasses.replace(
    found,
    probe=tuple(np.concatenate([each.logp for each in first]).tolist()),
    worst=worst,
    mean=mean,
    temperature=_temperature(name, judge, first[0], ask(rows[0], 0.5)),
  )


def glimpsed(name: str, judge: Served, client: Client, tokenizer: Tokenizer) -> Introduction:
  """Who answers now, after an outage: with the first of the probe rows only."""
  found = listed(name, judge, client)
  row = probe_rows(len(tokenizer.strings()), found.positions)[0]
  ask = lambda: asked(judge, client, found, Question(row, 1, 0))
  return dataclasses.replace(found, probe=tuple(client.persistently(ask).logp.tolist()))


def check_steady(name: str, judge: Served, worst: float, mean: float) -> None:
  """Refuses numbers that differ by more than the tolerance on average."""
  if mean > judge.tolerance:
    raise ValueError(
      f'judge {name} ({judge.source}): two scorings of the same rows, in two orders, differ by {mean:.3g} nats on '
      f'average and {worst:.3g} at most; {judge.tolerance:g} on average are allowed (judges.served.tolerance). Start '
      'the server without prefix caching (vLLM: --no-enable-prefix-caching), and with replicas of one kind.'
    )


def _temperature(name: str, judge: Served, plain: Answer, halved: Answer) -> str:
  """What temperature 0.5 does: nothing, or it doubles the distances between log-probabilities.

  A temperature that is built into the served weights cannot be seen from outside.
  """
  _, mean = apart([plain.logp], [halved.logp])
  if mean <= judge.tolerance:
    return 'temperature does not touch prompts'
  if not plain.top_logp.shape[1] or not halved.top_logp.shape[1]:
    return 'it divides by the temperature, and 1 is asked for'
  gap = lambda answer: answer.top_logp[:, 0] - answer.logp
  far = gap(plain) > 0.1
  ratio = float(np.median(gap(halved)[far] / gap(plain)[far])) if far.any() else 2.0
  if abs(ratio - 2.0) > 0.1:
    raise ValueError(
      f'judge {name} ({judge.source}): at temperature 0.5 its log-probabilities lie {ratio:.3g} times as far apart as '
      'at temperature 1, not twice: it has a temperature or other rules of its own. Start it so that it tells raw '
      'log-probabilities (vLLM: --logprobs-mode raw_logprobs).'
    )
  return 'it divides by the temperature, and 1 is asked for'
