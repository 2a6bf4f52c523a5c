"""What tests of served teachers share: our server in this process, and a proxy in front of it that misbehaves."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import numpy as np

from opd_jax.cli import parser
from opd_jax.commands import serve
from opd_jax.judges import wire

Change = Callable[[str, Any, Any], tuple[int, Any]]  # path, body, reply -> status, reply


@contextmanager
def listening(server: Any) -> Iterator[Any]:
  thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def served(model: str, *words: str, port: int = 0) -> Iterator[Any]:
  """`opd serve MODEL` in this process."""
  args = parser().parse_args(['serve', model, '--port', str(port), *words])
  server = serve.started(args)
  with listening(server):
    yield server
  server.passes.close()


class Proxy(ThreadingHTTPServer):
  """Hands requests on to a server and changes what comes back.

  Args:
    behind: the address of the server.
    change: makes status and reply of a POST; None leaves them.
    models: changes the list of models.
  """

  daemon_threads = True

  def __init__(self, behind: str, change: Change | None = None, models: Callable | None = None):
    self.change, self.models = change, models
    self.http = httpx2.Client(base_url=behind, timeout=60, trust_env=False)
    self.asked: list[tuple[str, Any]] = []
    super().__init__(('127.0.0.1', 0), Handler)

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self.server_address[1]}'


class Handler(BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  disable_nagle_algorithm = True
  server: Any

  def do_GET(self):
    reply = self.server.http.get(self.path)
    told = reply.json()
    if self.server.models is not None and self.path == '/v1/models':
      told = self.server.models(told)
    self._send(reply.status_code, json.dumps(told).encode())

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    self.server.asked.append((self.path, body))
    reply = self.server.http.post(self.path, json=body)
    status, told = reply.status_code, reply.json()
    if self.server.change is not None:
      status, told = self.server.change(self.path, body, told)
    if status == 0:  # the line goes dead
      self.close_connection = True
      return
    self._send(status, told if isinstance(told, bytes) else json.dumps(told).encode())

  def _send(self, status: int, content: bytes) -> None:
    try:
      self.send_response(status)
      self.send_header('Content-Length', str(len(content)))
      self.end_headers()
      self.wfile.write(content)
    except OSError:
      self.close_connection = True

  def log_message(self, format, *args):
    pass


@contextmanager
def proxied(behind: str, change: Change | None = None, **more: Any) -> Iterator[Proxy]:
  with listening(Proxy(behind, change, **more)) as proxy:
    yield proxy


def like_vllm(cap: int | None = None) -> dict[str, Any]:
  """How vLLM differs from `opd serve`: another owner, no list of what it can, its words where too much is asked."""

  def models(told: Any) -> Any:
    keep = ('id', 'object', 'root', 'max_model_len')
    entries = [{**{name: each[name] for name in keep}, 'owned_by': 'vllm'} for each in told['data']]
    return {**told, 'data': entries}

  def change(path: str, body: Any, reply: Any) -> tuple[int, Any]:
    known = {'prompt_logprobs_from', 'prompt_logprob_ids'} & {*body}
    assert not known and body.get('max_tokens') != 0, body
    asked = body.get('prompt_logprobs')
    if cap is not None and asked is not None and asked > cap:
      text = f'Requested prompt logprobs of {asked}, which is greater than max allowed: {cap}'
      return 400, {'object': 'error', 'message': text, 'code': 400}
    return (400 if 'error' in reply else 200), reply

  return {'models': models, 'change': change}


class Faults:
  """Some tries of a request fail, in one of many ways: decided by what is asked and how often, so always alike.

  Args:
    share: of the tries that fail.
  """

  def __init__(self, share: float):
    self.share, self.tries, self.hits, self.lock = share, {}, {}, threading.Lock()
    self.hit_at_most = 0

  def __call__(self, path: str, body: Any, reply: Any) -> tuple[int, Any]:
    asked = {
      name: value for name, value in body.items() if name != 'model'
    }  # a folder of this test
    key = hashlib.sha256(json.dumps([path, asked], sort_keys=True).encode()).hexdigest()
    with self.lock:
      self.tries[key] = tried = self.tries.get(key, 0) + 1
    draw = int(hashlib.sha256(f'{key} {tried}'.encode()).hexdigest(), 16)
    kinds = (
      lambda: (500, {'error': {'message': 'out of memory'}}),
      lambda: (503, {'error': 'busy'}),
      lambda: (0, None),
      lambda: (200, b'{"choices": [{"prompt_log'),
      lambda: (200, shorter(reply)),
      lambda: (200, with_nan(reply)),
    )
    if tried <= 3:
      self.hit_at_most += 1
    if tried > 3 or draw % 1000 >= 1000 * self.share:
      return (400 if 'error' in reply else 200), reply
    kind = draw // 1000 % len(kinds)
    with self.lock:
      self.hits[kind] = self.hits.get(kind, 0) + 1
    return kinds[kind]()


def entries_of(reply: Any) -> list[dict[str, Any]]:
  return [each for each in reply['choices'][0]['prompt_logprobs'] or () if each is not None]


def shorter(reply: Any) -> Any:
  """One token is missing."""

  def cut(choice: Any) -> None:
    if 'prompt_logprobs_packed' in choice:
      told = choice['prompt_logprobs_packed']
      numbers = np.frombuffer(base64.b64decode(told['logp']), '<f4')
      told['logp'] = wire.packed(numbers[:-1], '<f4')
    else:
      choice['prompt_logprobs'] = (choice['prompt_logprobs'] or [])[:-1]

  return changed(reply, cut)


def with_nan(reply: Any) -> Any:
  """One number is none."""

  def spoil(choice: Any) -> None:
    if 'prompt_logprobs_packed' in choice:
      told = choice['prompt_logprobs_packed']
      numbers = np.frombuffer(base64.b64decode(told['logp']), '<f4').copy()
      numbers[-1:] = np.nan
      told['logp'] = wire.packed(numbers, '<f4')
    for entry in [each for each in choice['prompt_logprobs'] or () if each][-1:]:
      next(iter(entry.values()))['logprob'] = float('nan')

  return changed(reply, spoil)


def changed(reply: Any, change: Callable[[Any], None]) -> Any:
  reply = json.loads(json.dumps(reply))
  for choice in reply.get('choices', ()):
    change(choice)
  return reply


def slow(seconds: float) -> Change:
  def change(path: str, body: Any, reply: Any) -> tuple[int, Any]:
    time.sleep(seconds)
    return 200, reply

  return change
