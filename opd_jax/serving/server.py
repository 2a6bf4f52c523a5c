"""Floor 3. The server: paths, statuses and JSON, from the standard library. It asks for no key: docs/served.md."""

import contextlib
import json
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opd_jax.judges import wire
from opd_jax.serving import completions, replies
from opd_jax.serving.completions import NoSuchModel, Served
from opd_jax.serving.passes import Draft, Passes

LARGEST = 64 * 2**20  # bytes of a request


class Server(ThreadingHTTPServer):
  """One model behind an address.

  Args:
    address: host and port; port 0 takes a free one.
    served: what is served.
    passes: the model at work.
  """

  daemon_threads = True
  request_queue_size = 256

  def __init__(self, address: tuple[str, int], served: Served, passes: Passes):
    self.served, self.passes, self.began = served, passes, int(time.time())
    self.connections: set[socket.socket] = set()
    super().__init__(address, Handler)

  def handle_error(self, request: Any, client_address: Any) -> None:
    """A client that went away in the middle of a request is no error of ours."""
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)

  def server_close(self) -> None:
    """Also ends connections that wait for their next request: who holds one then knows that the server is away."""
    super().server_close()
    for connection in [*self.connections]:
      with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)

  @property
  def url(self) -> str:
    host, port = str(self.server_address[0]), self.server_address[1]
    return f'http://{"127.0.0.1" if host in ("0.0.0.0", "") else host}:{port}'


class Handler(BaseHTTPRequestHandler):
  """Answers one connection."""

  protocol_version = 'HTTP/1.1'  # connections are kept
  disable_nagle_algorithm = True
  server: Any

  def setup(self) -> None:
    super().setup()
    self.server.connections.add(self.connection)

  def finish(self) -> None:
    self.server.connections.discard(self.connection)
    super().finish()

  def do_GET(self) -> None:
    paths = {
      '/health': lambda: {'status': 'ok'},
      '/v1/models': self._models,
      '/v1/vocabulary': lambda: {'strings': self.server.served.strings},
    }
    self._answered(paths.get(self.path.partition('?')[0]))

  def do_POST(self) -> None:
    paths: dict[str, Callable[[Mapping[str, Any]], Any]] = {
      '/v1/completions': self._completions,
      '/v1/chat/completions': self._chat,
      '/tokenize': self._tokenize,
      '/detokenize': self._detokenize,
    }
    body = self._body()
    if body is None:
      return
    answer = paths.get(self.path.partition('?')[0])
    self._answered(None if answer is None else lambda: answer(json.loads(body)))

  def log_message(self, format: str, *args: Any) -> None:
    """A server under load would write a line a row."""

  def _body(self) -> bytes | None:
    size = self.headers.get('Content-Length', '')
    if size.isdigit() and int(size) <= LARGEST:
      return self.rfile.read(int(size))
    self.close_connection = True
    self._send(413 if size.isdigit() else 411, _error(f'a body of at most {LARGEST} bytes is read'))
    return None

  def _answered(self, answer: Callable[[], Any] | None) -> None:
    try:
      if answer is None:
        status, told = 404, _error(f'there is no {self.path} here')
      else:
        status, told = 200, answer()
    except NoSuchModel as error:
      status, told = 404, _error(str(error))
    except (ValueError, TypeError, KeyError, IndexError) as error:
      status, told = 400, _error(str(error))
    except Exception as error:  # whoever asked is told, and the server goes on
      traceback.print_exc()
      status, told = 500, _error(f'{type(error).__name__}: {str(error)[:200]}')
    self._send(status, told)

  def _send(self, status: int, told: Any) -> None:
    content = json.dumps(told).encode()
    try:
      self.send_response(status)
      self.send_header('Content-Type', 'application/json')
      self.send_header('Content-Length', str(len(content)))
      self.end_headers()
      self.wfile.write(content)
    except OSError:  # nobody listens any more
      self.close_connection = True

  def _models(self) -> Any:
    served: Served = self.server.served
    entry = {
      'id': served.name,
      'object': 'model',
      'created': self.server.began,
      'owned_by': wire.OWNER,
      'root': served.name,
      'max_model_len': served.config.max_positions,
      'max_top_k': served.top_k,
      'vocab_size': served.config.vocab_size,
      'system_fingerprint': served.digest,
    }
    return {'object': 'list', 'data': [entry]}

  def _completions(self, body: Mapping[str, Any]) -> Any:
    served, passes = self.server.served, self.server.passes
    request = completions.understood(body, served)
    waiting = [
      [passes.ask(each) for each in asked]
      for asked in (completions.rows_of(request), completions.drafts_of(request))
    ]
    scores, written = ([each.result() for each in part] for part in waiting)
    none = [None] * len(request.prompts)
    choices = [
      replies.choice(number, request, served, score, text)
      for number, (score, text) in enumerate(zip(scores or none, written or none, strict=True))
    ]
    count = sum(map(len, request.prompts)), sum(len(each.tokens) for each in written)
    return {'object': 'text_completion', 'choices': choices, **self._told(*count)}

  def _chat(self, body: Mapping[str, Any]) -> Any:
    served = self.server.served
    completions.check_model(body, served)
    if served.tokenizer is None:
      raise ValueError(f'{served.name} has no tokenizer files, so it cannot chat.')
    prompt = served.tokenizer.chat(body['messages'])
    budget = body.get('max_tokens') or body.get('max_completion_tokens') or completions.BUDGET
    request = completions.understood(
      {**body, 'prompt': prompt, 'max_tokens': budget, 'logprobs': None}, served
    )
    [draft] = completions.drafts_of(request)
    assert isinstance(draft, Draft)
    written = self.server.passes.ask(draft).result()
    stops = {served.tokenizer.turn_end, *request.decoding.stop_tokens}
    tokens = [token for token in written.tokens if token not in stops]
    message = {'role': 'assistant', 'content': served.tokenizer.decode(tokens)}
    choice = {'index': 0, 'message': message, 'finish_reason': replies.finish_of(written)}
    count = len(prompt), len(written.tokens)
    return {'object': 'chat.completion', 'choices': [choice], **self._told(*count)}

  def _told(self, prompt: int, written: int) -> dict[str, Any]:
    served = self.server.served
    usage = {
      'prompt_tokens': prompt,
      'completion_tokens': written,
      'total_tokens': prompt + written,
    }
    return {'model': served.name, 'system_fingerprint': served.digest, 'usage': usage}

  def _tokenize(self, body: Mapping[str, Any]) -> Any:
    served = self.server.served
    completions.check_model(body, served)
    begin = bool(body.get('add_special_tokens', True))
    tokens = completions.encoded(str(body['prompt']), served, begin=begin)
    return {'tokens': tokens, 'count': len(tokens), 'max_model_len': served.config.max_positions}

  def _detokenize(self, body: Mapping[str, Any]) -> Any:
    served = self.server.served
    if served.tokenizer is None:
      raise ValueError(f'{served.name} has no tokenizer files.')
    return {'prompt': served.tokenizer.decode([int(token) for token in body['tokens']])}


def _error(text: str) -> dict[str, Any]:
  return {'error': {'message': text, 'type': 'invalid_request_error'}}
