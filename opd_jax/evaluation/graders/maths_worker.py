"""Floor 4. The process behind `maths`: reads [answer, response] a line, prints what math-verify says of it."""

import importlib
import json
import logging
import resource
import sys

BYTES = 4 * 2**30  # of address space: 9^9^9^9 is an answer, too


def outcome(answer: str, response: str) -> str:
  """Without math-verify's own clock: whoever asks kills this process."""
  from math_verify import parse, verify

  gold = parse(f'\\boxed{{{answer}}}', parsing_timeout=0)
  if not gold:
    return 'no answer'
  try:
    found = parse(response, parsing_timeout=0)
    if not found:
      return 'unparsed'
    return 'correct' if verify(gold, found, timeout_seconds=0) else 'wrong'
  except (RecursionError, MemoryError):
    return 'unparsed'


def main() -> None:
  logging.disable(logging.CRITICAL)
  resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
  importlib.import_module('math_verify')  # takes a second: before the first question's clock runs
  print('"ready"', flush=True)
  for line in sys.stdin:
    print(json.dumps(outcome(*json.loads(line))), flush=True)


if __name__ == '__main__':
  main()
