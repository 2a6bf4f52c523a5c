"""Logits of ours against those of `transformers` (torch, float32), over the whole grid. Needs torch.

python benchmarks/parity.py            the table
python benchmarks/parity.py --write    renews tests/golden/parity.npz
"""

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / 'tests'))
import parity_cases

from opd_jax.sharding import mesh_layout

if __name__ == '__main__':
  if importlib.util.find_spec('torch') is None:
    sys.exit(print("skipped: torch is not installed (pip install -e '.[parity]')"))
  if '--write' in sys.argv:
    parity_cases.write_golden()
  print(f'{"model":26} max |difference| / max |logit|   (bound {parity_cases.TOLERANCE})')
  worst = 0.0
  for case in parity_cases.CASES:
    raw, _ = parity_cases.read_golden(case)
    gap = parity_cases.gap(
      parity_cases.our_logits(raw, mesh_layout(), case.length), parity_cases.torch_logits(case)
    )
    worst = max(worst, gap)
    print(f'{case!s:26} {gap:.2e}')
  print(f'{"worst":26} {worst:.2e}')
  sys.exit(worst > parity_cases.TOLERANCE)
