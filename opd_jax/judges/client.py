"""Floor 3. Requests to a server: many at a time, again where one fails, and in words where it cannot be helped."""

import importlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from opd_jax import host
from opd_jax.judges.wire import BadReply

T = TypeVar('T')
Say = Callable[[str], None]
BAD_REPLIES = 6  # to one request, before it is given up
FIRST_WAIT, LONGEST_WAIT = 0.2, 15.0  # seconds between two tries; doubled each time, and jittered
AGAIN = (408, 425, 429, 500, 502, 503, 504)
KNOCKING = 3.0  # seconds that a server may take to be there when a run begins


class Away(Exception):
  """Nobody answers, or with an error that may pass."""


class Ended(ValueError):
  """Somebody asked this process to end while it waited."""


class Refused(ValueError):
  """The server understood, and says no."""


def httpx() -> Any:
  """The library, which only those need who ask a server."""
  try:
    return importlib.import_module('httpx2')
  except ImportError as error:
    raise ValueError(
      'judges.served asks a server with httpx2, and it is not installed: pip install "opd_jax[served]"'
    ) from error


class Client:
  """What asks one server.

  Args:
    name: of the judge, in messages.
    url: of the server.
    concurrency: requests in flight.
    timeout: seconds of one request.
    patience: seconds that the server may be away while a run is under way.
    key_of: the environment variable that holds the key of the API; None: no key is sent.
    say: told when the server is away, and when it is back.
  """

  def __init__(
    self,
    *,
    name: str,
    url: str,
    concurrency: int,
    timeout: float,
    patience: float,
    key_of: str | None = None,
    say: Say = lambda text: None,
  ):
    library = httpx()
    headers = {}
    if key_of is not None:
      if not os.environ.get(key_of):
        raise ValueError(f'judge {name}: the environment has no {key_of}, where its key should be.')
      headers['Authorization'] = f'Bearer {os.environ[key_of]}'
    limits = library.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    self.name, self.url, self.concurrency, self.patience = name, url, concurrency, patience
    self.outages = 0  # times that nobody answered
    self._say, self._lock, self._away = say, threading.Lock(), False
    self._errors = library.HTTPError, library.InvalidURL
    try:
      self._http = library.Client(
        base_url=url, timeout=timeout, limits=limits, headers=headers, trust_env=False
      )
    except self._errors as error:
      raise ValueError(f'judge {name}: {url!r} is no address of a server ({error}).') from error

  def get(self, path: str) -> Any:
    return self._sent('GET', path, None)

  def post(self, path: str, body: Any) -> Any:
    return self._sent('POST', path, body)

  def _sent(self, method: str, path: str, body: Any) -> Any:
    try:
      response = self._http.request(method, path, json=body)
      status, content = response.status_code, response.content
    except self._errors as error:
      raise Away(f'{type(error).__name__}: {error}') from error
    if status >= 400:
      text = f'HTTP {status}: {_message(content)}'
      raise Away(text) if status in AGAIN else Refused(text)
    try:
      return json.loads(content)
    except ValueError as error:
      raise BadReply(f'its reply is not JSON ({error})') from error

  def knock(self, path: str) -> Any:
    """The first question of a run: a server that is away is refused within seconds."""
    try:
      return self.persistently(lambda: self.get(path), patience=min(KNOCKING, self.patience))
    except Away as error:
      remedy = 'Start it, or bind the url of one that runs.'
      if self.url.startswith('https:') and 'SSL' in str(error):
        remedy = f'It may speak http: bind {self.url.replace("https:", "http:", 1)}.'
      raise ValueError(
        f'judge {self.name}: no server answers at {self.url} ({error}). {remedy}'
      ) from error

  def persistently(
    self,
    ask: Callable[[], T],
    *,
    patience: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
  ) -> T:
    """What `ask` returns, asked again while the server is away, and a few times where its replies are bad."""
    patience = self.patience if patience is None else patience
    over = lambda: stopped() or host.ENDING.is_set()
    began, bad, wait = None, 0, FIRST_WAIT
    while True:
      try:
        answer = ask()
        self._is_back()
        return answer
      except Away as error:
        began = began or time.monotonic()
        if time.monotonic() - began >= patience or over():
          raise
        self._is_away(error, patience)
      except BadReply:
        bad += 1
        if bad == BAD_REPLIES or over():
          raise
      host.ENDING.wait(wait * random.uniform(0.5, 1.5))
      wait = min(2 * wait, LONGEST_WAIT)

  def each(self, asks: Sequence[Callable[[], T]], named: Callable[[int], str]) -> list[T]:
    """What each of these returns, many at a time. Where one fails for good, the others end, and its row is named.

    Args:
      asks: one for each row.
      named: what a row is called.
    """
    failed: dict[int, Exception] = {}

    def one(number: int) -> T | None:
      if failed:
        return None
      try:
        return self.persistently(asks[number], stopped=lambda: bool(failed))
      except (Away, BadReply, Refused) as error:
        failed[number] = error
        return None

    with ThreadPoolExecutor(self.concurrency) as pool:
      answers: list[Any] = [*pool.map(one, range(len(asks)))]
    if failed:
      number = min(failed)
      error = failed[number]
      waited = f' for {self.patience:g} s' if isinstance(error, Away) else ''
      waits = host.ENDING.is_set() and isinstance(error, Away | BadReply)
      raise (Ended if waits else ValueError)(
        f'judge {self.name}: {self.url} has not scored {named(number)}{waited}: {error}. Nothing of the step is lost: '
        'see to the server, then run the same command again.'
      ) from error
    return answers

  def _is_away(self, error: Away, patience: float) -> None:
    with self._lock:
      self.outages += 1
      told, self._away = self._away, True
    if not told:
      self._say(f'judge {self.name}: {self.url} fails ({error}); asked again for {patience:g} s')

  def _is_back(self) -> None:
    with self._lock:
      self._away = False


def _message(content: bytes) -> str:
  """What a server says about an error, in one line."""
  text = content.decode(errors='replace')
  try:
    told = json.loads(text)
    inner = told.get('error', told)
    text = str(inner.get('message', inner) if isinstance(inner, dict) else inner)
  except (ValueError, AttributeError):
    pass
  return ' '.join(text.split())[:300]
