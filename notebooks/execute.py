"""Executes notebooks in a temporary directory. `make notebooks` writes their outputs in place."""

import argparse
import tempfile
import time
from pathlib import Path

import nbclient
import nbformat

FOLDER = Path(__file__).parent
TIMEOUT = 600  # seconds for one cell


def executed(path: Path) -> nbformat.NotebookNode:
  """The notebook with fresh outputs. A cell that fails raises."""
  notebook = nbformat.read(path, as_version=4)
  with tempfile.TemporaryDirectory() as folder:
    client = nbclient.NotebookClient(
      notebook,
      timeout=TIMEOUT,
      kernel_name='python3',
      record_timing=False,
      resources={'metadata': {'path': folder}},
    )
    return client.execute()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('names', nargs='*', help='parts of file names; all notebooks without any')
  args = parser.parse_args()
  for path in sorted(FOLDER.glob('*.ipynb')):
    if args.names and not any(name in path.name for name in args.names):
      continue
    began = time.monotonic()
    nbformat.write(executed(path), path)
    print(f'{path.name}: {time.monotonic() - began:.0f} s', flush=True)


if __name__ == '__main__':
  main()
