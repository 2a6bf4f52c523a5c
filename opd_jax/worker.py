"""Floor 7. A process that makes one run after the other: what is imported and compiled for one, the next finds there.

It reads tasks from its input, one JSON line each, and answers every one with the exit status of its run. It ends with
its input, so also when whoever gave the tasks was killed; the run under way is finished before.
"""

import gc
import json
import os
import sys
import traceback

from opd_jax import cli, host


def main() -> None:
  """One task after the other, to the end of the input."""
  answers = os.fdopen(os.dup(1), 'w')
  try:
    for line in sys.stdin:
      task = json.loads(line)
      with open(task['log'], 'a') as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
      print(_status(task['words']), file=answers, flush=True)
      host.make_room()
      gc.collect()
  except (KeyboardInterrupt, BrokenPipeError):
    os._exit(1)  # nobody listens any more


def _status(words: list[str]) -> int:
  """The exit status of `opd` with these words, whatever happens in it."""
  sys.argv = ['opd', *words]
  try:
    return cli.main(words)
  except SystemExit as ended:
    return ended.code if isinstance(ended.code, int) else 1
  except Exception:
    traceback.print_exc()
    return 1
  finally:
    sys.stdout.flush()
    sys.stderr.flush()


if __name__ == '__main__':
  main()
