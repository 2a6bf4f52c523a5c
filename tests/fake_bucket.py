"""A bucket of Google Cloud Storage on this machine: whole objects only. Renames, copies and appends are refused, and
remembered.

Real clients talk to it: gcsfs by STORAGE_EMULATOR_HOST, tensorstore by TENSORSTORE_GCS_HTTP_URL.
"""

import base64
import json
import os
import re
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

# gcsfs reads it as it is imported: it would ask a service beside the storage of what kind the bucket is.
os.environ['GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT'] = 'false'

NAME = 'bucket'
ITEM = re.compile(r'^(?:/download)?/storage/v1/b/(\w+)/o/([^/?]+)$')
UPLOAD = re.compile(r'^/(?:resumable/)?upload/storage/v1/b/(\w+)/o$')


class Bucket(ThreadingHTTPServer):
  """The server with its objects: (content, generation) by name."""

  daemon_threads = True

  def __init__(self):
    super().__init__(('127.0.0.1', 0), Handler)
    self.objects: dict[str, tuple[bytes, int]] = {}
    self.uploads: dict[str, tuple[str, bytearray]] = {}
    self.refused: list[str] = []
    self.generation, self.guard = 0, threading.Lock()

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self.server_address[1]}'

  @property
  def environment(self) -> dict[str, str]:
    """What makes clients talk to it."""
    return {
      'STORAGE_EMULATOR_HOST': self.url,
      'TENSORSTORE_GCS_HTTP_URL': self.url,
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'nobody',
      'GOOGLE_CLOUD_PROJECT': 'nowhere',
      'NO_GCE_CHECK': 'true',
    }

  def __enter__(self) -> 'Bucket':
    threading.Thread(target=self.serve_forever, daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    self.shutdown()
    self.server_close()

  def handle_error(self, *_) -> None:
    """A client that was killed, or has heard enough."""

  def put(self, name: str, content: bytes, wanted: str | None) -> dict | None:
    """Stores an object; None where its generation is not the wanted one."""
    with self.guard:
      known = self.objects.get(name, (b'', 0))[1]
      if wanted is not None and int(wanted) != known:
        return None
      self.generation += 1
      self.objects[name] = (content, self.generation)
    return self.described(name)

  def described(self, name: str) -> dict:
    content, generation = self.objects[name]
    sum_ = base64.b64encode(zlib.crc32(content).to_bytes(4, 'big')).decode()
    return {
      'kind': 'storage#object',
      'name': name,
      'bucket': NAME,
      'id': f'{NAME}/{name}/{generation}',
      'generation': str(generation),
      'metageneration': '1',
      'size': str(len(content)),
      'etag': sum_,
      'timeCreated': '2026-01-01T00:00:00.000Z',
      'updated': '2026-01-01T00:00:00.000Z',
      'storageClass': 'STANDARD',
    }

  def listed(self, prefix: str, delimiter: str, begin: str, end: str) -> dict:
    items, folders = [], []
    for name in sorted(self.objects):
      if not name.startswith(prefix) or name < begin or (end and name >= end):
        continue
      rest = name[len(prefix) :]
      if delimiter and delimiter in rest:
        folders.append(prefix + rest.partition(delimiter)[0] + delimiter)
      else:
        items.append(self.described(name))
    return {'kind': 'storage#objects', 'items': items, 'prefixes': [*dict.fromkeys(folders)]}


class Handler(BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  server: Bucket

  def log_message(self, *_) -> None:
    pass

  def answer(self, status: int, content: bytes = b'', kind: str = 'application/json', **more: str):
    self.send_response(status)
    self.send_header('Content-Type', kind)
    self.send_header('Content-Length', str(len(content)))
    for name, value in more.items():
      self.send_header(name.replace('_', '-'), value)
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(content)

  def tell(self, value, status: int = 200, **more: str):
    self.answer(status, json.dumps(value).encode(), **more)

  def absent(self, status: int = 404):
    self.tell({'error': {'code': status, 'message': f'{self.path} {status}'}}, status)

  def asked(self) -> tuple[str, dict[str, str], bytes]:
    parts = urlsplit(self.path)
    size = int(self.headers.get('Content-Length') or 0)
    given = {name: values[0] for name, values in parse_qs(parts.query).items()}
    body = self.rfile.read(size)
    if self.headers.get('Transfer-Encoding') == 'chunked':
      while size := int(self.rfile.readline(), 16):
        body += self.rfile.read(size)
        self.rfile.readline()
      self.rfile.readline()
    return parts.path, given, body

  def do_GET(self):
    path, given, _ = self.asked()
    bucket = self.server
    if item := ITEM.match(path):
      name = unquote(item[2])
      if name not in bucket.objects:
        return self.absent()
      if given.get('alt') != 'media':
        return self.tell(bucket.described(name))
      content, generation = bucket.objects[name]
      stamp = {'x_goog_generation': str(generation)}
      if given.get('ifGenerationNotMatch') == str(generation):
        return self.answer(304, **stamp)
      asked = re.match(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
      if not asked:
        return self.answer(200, content, 'application/octet-stream', **stamp)
      begin = int(asked[1])
      end = min(int(asked[2]) + 1 if asked[2] else len(content), len(content))
      if begin >= len(content):
        return self.absent(416)
      where = f'bytes {begin}-{end - 1}/{len(content)}'
      kind = 'application/octet-stream'
      return self.answer(206, content[begin:end], kind, Content_Range=where, **stamp)
    if path == f'/storage/v1/b/{NAME}':
      return self.tell({'kind': 'storage#bucket', 'name': NAME, 'id': NAME, 'location': 'HERE'})
    if path.rstrip('/') == f'/storage/v1/b/{NAME}/o':
      names = ('prefix', 'delimiter', 'startOffset', 'endOffset')
      return self.tell(bucket.listed(*(given.get(name, '') for name in names)))
    self.absent()

  def do_POST(self):
    path, given, body = self.asked()
    bucket, wanted = self.server, given.get('ifGenerationMatch')
    if path == '/batch/storage/v1':
      return self.batch(body)
    if not UPLOAD.match(path):
      bucket.refused.append(path)
      return self.absent(400)  # 501 is tried again for a minute
    if 'upload_id' in given:
      return self.go_on(given, body)
    if given['uploadType'] == 'resumable':
      name = given.get('name') or json.loads(body)['name']
      key = f'{len(bucket.uploads)}'
      bucket.uploads[key] = (name, bytearray())
      query = f'uploadType=resumable&upload_id={key}'
      query += f'&ifGenerationMatch={wanted}' if wanted is not None else ''
      return self.tell({}, Location=f'{bucket.url}/upload/storage/v1/b/{NAME}/o?{query}')
    if given['uploadType'] == 'multipart':
      kind = self.headers['Content-Type']
      mark = re.search(r"boundary=['\"]?([^'\";]+)", kind)[1].encode()
      _, settings, content, _ = body.split(b'--' + mark)
      inner = lambda part: part.partition(b'\r\n\r\n')[2] or part.partition(b'\n\n')[2]
      name = json.loads(inner(settings))['name']
      content = inner(content)
      content = content.removesuffix(b'\n').removesuffix(b'\r')
    else:
      name, content = given['name'], body
    made = bucket.put(name, content, wanted)
    return self.absent(412) if made is None else self.tell(made)

  def do_PUT(self):
    _, given, body = self.asked()
    self.go_on(given, body)

  def go_on(self, given: dict[str, str], body: bytes):
    """Another part of an upload; the object is there when the last one has come."""
    bucket = self.server
    name, content = bucket.uploads[given['upload_id']]
    content += body
    whole = self.headers.get('Content-Range', '').rpartition('/')[2]
    if whole == '*' or (whole.isdigit() and len(content) < int(whole)):
      return self.answer(308, Range=f'bytes=0-{len(content) - 1}')
    made = bucket.put(name, bytes(content), given.get('ifGenerationMatch'))
    return self.absent(412) if made is None else self.tell(made)

  def do_DELETE(self):
    path, _, _ = self.asked()
    item = ITEM.match(path)
    name = unquote(item[2]) if item else ''
    if name not in self.server.objects:
      return self.absent()
    with self.server.guard:
      self.server.objects.pop(name, None)
    self.answer(204)

  def batch(self, body: bytes):
    """Deletes of many objects in one request."""
    answers = []
    for number, path in enumerate(re.findall(rb'DELETE (?:https?://[^/]+)?(/\S+) ', body)):
      name = unquote(ITEM.match(urlsplit(path.decode()).path)[2])
      with self.server.guard:
        found = self.server.objects.pop(name, None)
      status = '404 Not Found' if found is None else '204 No Content'
      answers.append(
        f'--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{number + 1}>\r\n\r\n'
        f'HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n\r\n'
      )
    text = ''.join(answers) + '--batch--'
    self.answer(200, text.encode(), 'multipart/mixed; boundary=batch')
