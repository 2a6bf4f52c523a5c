"""The page in a real Chromium: tokens are drawn, controls work, and hostile text stays text."""

import html
import json
import queue
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import report_runs

from opd_jax.report import folders, page

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)  # fmt: skip
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no chromium is installed')
FLAGS = (
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
  '--disable-background-networking', '--disable-component-update', '--window-size=1200,900',
)  # fmt: skip
# Waits for the first tokens, acts, and tells the test what it saw.
DRIVER = """
<script>
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const change = async (id, value, event) => {
  byId(id).value = value;
  byId(id).dispatchEvent(new Event(event, { bubbles: true }));
  await pause(300);
};
const tokens = () => [...document.querySelectorAll('.tokens span')];
const colours = () => tokens().slice(0, 4).map((each) => each.style.backgroundColor);
const press = (key) => {
  const event = new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true });
  document.activeElement.dispatchEvent(event);
};
const cards = () => [...document.querySelectorAll('.response')];
(async () => {
  while (!tokens().length) await pause(50);
  const seen = await (async () => { ACT })();
  await fetch('/', { method: 'POST', body: JSON.stringify(seen) });
})();
</script>
"""


def chromium(profile: Path, *arguments: str) -> list[str]:
  """The command that starts a browser which nobody sees."""
  assert CHROMIUM is not None
  return [CHROMIUM, *FLAGS, f'--user-data-dir={profile}', *arguments]


def browse(file: Path, view: str) -> str:
  """The document after its script has run."""
  address = f'file://{file}#{view}'
  command = chromium(file.parent / 'profile', '--virtual-time-budget=20000', '--dump-dom', address)
  done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
  assert '</html>' in done.stdout, done.stderr[-2000:]
  return done.stdout


def drive(file: Path, view: str, act: str):
  """What a script sees that acts on the page, in real time; it is let in by taking the page's policy out."""
  text, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', '', file.read_text())
  assert count == 1
  driven = text.replace('</body>', DRIVER.replace('ACT', act) + '</body>').encode()
  told: queue.Queue[str] = queue.Queue()

  class Page(BaseHTTPRequestHandler):
    def do_GET(self):
      if self.path != '/':  # an icon
        self.send_error(404)
        return
      self.send_response(200)
      self.send_header('Content-Type', 'text/html; charset=utf-8')
      self.end_headers()
      self.wfile.write(driven)

    def do_POST(self):
      told.put(self.rfile.read(int(self.headers['Content-Length'])).decode())
      self.send_response(204)
      self.end_headers()

    def log_message(self, format, *args):
      pass

  with ThreadingHTTPServer(('127.0.0.1', 0), Page) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{server.server_port}/#{view}'
    browser = subprocess.Popen(
      chromium(file.parent / 'driven', address), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
      return json.loads(told.get(timeout=60))
    except queue.Empty:
      pytest.fail('the page did not come so far')
    finally:
      browser.terminate()
      browser.communicate(timeout=20)
      server.shutdown()


@pytest.fixture(scope='module')
def report(tmp_path_factory):
  """A page of two runs that answered the same prompts, the first of them with hostile text."""
  folder = tmp_path_factory.mktemp('report')
  options = {'rows': 4, 'steps': (1, 5, 9)}
  given = [
    report_runs.write_run(folder / 'one', **options, text=report_runs.HOSTILE, prompt=report_runs.HOSTILE),
    report_runs.write_run(folder / 'two', **options, prompt=report_runs.HOSTILE),
  ]  # fmt: skip
  file = folder / 'report.html'
  file.write_text(page.page(*folders.read(given), title=report_runs.HOSTILE))
  return file


def test_the_policy_lets_the_page_draw_and_hostile_text_stays_text(report):
  document = browse(report, 'tab=tokens')
  shown = re.findall(r'<span data-at="\d+"[^>]*>(.*?)</span>', document, re.DOTALL)
  assert len(shown) == 4 * 6 and html.unescape(shown[0]) == report_runs.HOSTILE
  assert '<img' not in document and '<b>bold' not in document
  assert document.count('what teacher reads') == 2  # of the other two rows it was shown nothing
  assert document.count('teacher is shown nothing of this row') == 2
  assert document.count(html.escape(f'{report_runs.HOSTILE} and its solution', quote=False)) == 2
  assert 'owned' not in re.findall(r'<title>(.*?)</title>', document)[0].replace(
    "title='owned'", ''
  )


def test_hostile_text_is_not_run_even_without_the_policy(report):
  seen = drive(report, 'tab=tokens&against=1', """
    tell(tokens()[0]);
    await pause(300);
    return [document.title, document.querySelectorAll('img').length, byId('tip').textContent.includes('onerror')];
  """)  # fmt: skip
  assert seen == [report_runs.HOSTILE, 0, True]


def test_curves_are_drawn_and_filtered(report):
  document = browse(report, 'tab=curves&metrics=loss')
  assert re.findall(r'class="chart" data-name="(.*?)"', document) == ['loss']
  assert len(re.findall(r'<path class="c[01]"', document)) == 2
  band = browse(report, 'tab=curves&metrics=avg')
  assert band.count('class="band c') == 2


def test_the_selector_colours_tokens_anew(report):
  before, entropy, options = drive(report, 'tab=tokens', """
    const before = colours();
    await change('colour', 'entropy student', 'change');
    return [before, colours(), [...byId('colour').options].map((each) => each.value)];
  """)  # fmt: skip
  assert options == [
    'gap',
    'logp student',
    'logp teacher',
    'entropy student',
    'coefficient PolicyGradient',
  ]
  blue, orange = before[:2]
  assert blue.startswith('rgba(59, 111, 212') and orange.startswith('rgba(214, 96, 20')
  assert len(set(entropy)) == 1 and entropy[0].startswith('rgba(150, 72, 176')


def test_the_slider_goes_through_the_recorded_steps(report):
  seen = drive(report, 'tab=tokens&step=5', """
    const label = () => byId('step-value').value;
    const first = label();
    await change('step', '0', 'input');
    return [first, label(), byId('step').max, location.hash.includes('step=1'), tokens().length];
  """)  # fmt: skip
  assert seen == ['5 · train', '1 · train', '2', True, 24]


def test_filters_sorting_and_search(report):
  seen = drive(report, 'tab=tokens', """
    const rows = () => cards().map((card) => rowOf.get(card).row);
    const all = rows();
    await change('reward-least', '1', 'input');
    const right = rows();
    await change('reward-least', '', 'input');
    await change('divergence-most', '-0.05', 'input');
    const low = rows();
    await change('divergence-most', '', 'input');
    await change('length-least', '7', 'input');
    const none = [rows(), byId('responses').textContent];
    await change('length-least', '', 'input');
    await change('sort', 'divergence', 'change');
    const sorted = rows();
    await change('search', 'no such text', 'input');
    return [all, right, low, none, sorted, rows(), byId('count').textContent];
  """)  # fmt: skip
  # Five tokens count; of their gaps ± ¼ (1 + row), three are positive: divergence is -(1 + row) / 20.
  assert seen[:3] == [[0, 1, 2, 3], [1, 3], [0, 1, 2, 3]]
  assert seen[3] == [[], 'No response is like that.']
  assert seen[4:] == [[0, 1, 2, 3], [], '0 of 4 responses']


def test_two_runs_lie_side_by_side_and_what_differs_is_marked(report):
  columns, marked, label = drive(report, 'tab=tokens&against=1', """
    const columns = [...document.querySelector('.pair').children];
    const [one, other] = columns.map((each) => [...each.querySelectorAll('.tokens span')]);
    const differs = (each) => each.classList.contains('differs');
    return [[one.length, other.length], one.map(differs), byId('count').textContent];
  """)  # fmt: skip
  assert columns == [6, 6] and marked == [True, False, False, True, False, False]
  assert label == '4 of 4 responses, beside two, step 9'


def test_the_tip_shows_numbers_and_lists(report):
  text = drive(report, 'tab=tokens&run=1', """
    tokens()[1].dispatchEvent(new PointerEvent('pointerover', { bubbles: true }));
    return byId('tip').hidden ? '' : byId('tip').textContent;
  """)  # fmt: skip
  for words in (
    'token 2, 2 of 6',
    'gap to the teacher−0.25',
    'log-prob, student−0.6  (54.9 %)',
    'entropy, student0.5',
    'coefficient of PolicyGradient−0.0025',
    'best of the student',
    'best of the teacher',
    '60.7 %',
  ):
    assert words in text, (words, text)


def test_keys_go_through_responses_and_tokens(report):
  seen = drive(report, 'tab=tokens', """
    const boxes = [...document.querySelectorAll('.tokens')];
    const told = () => (byId('tip').hidden ? null : byId('tip').textContent.match(/, (\\d+) of/)[1]);
    const says = (box) => box.getAttribute('aria-label').includes('arrow keys');
    const reachable = boxes.every((box) => box.tabIndex === 0 && says(box));
    boxes[1].focus({ focusVisible: true });
    const first = told();
    const keys = ['ArrowRight', 'ArrowRight', 'ArrowLeft', 'End', 'ArrowRight', 'Home', 'ArrowLeft', 'x'];
    const went = keys.map((key) => {
      press(key);
      return told();
    });
    press('ArrowDown');
    const below = document.querySelectorAll('.pinned').length;
    scrollBy(0, 1);
    await pause(200);
    const kept = told() !== null;
    press('Escape');
    const gone = told();
    press('ArrowRight');
    boxes[2].focus({ focusVisible: true });
    return [reachable, first, went, below, kept, gone, pinned.parentElement === boxes[2]];
  """)  # fmt: skip
  assert seen == [True, '1', ['2', '3', '2', '6', '6', '1', '1', '1'], 1, True, None, True]


def test_an_arrow_goes_to_the_token_that_stands_below(tmp_path):
  folder = report_runs.write_run(tmp_path / 'run', rows=1, steps=(1,), tokens=400)
  file = tmp_path / 'report.html'
  file.write_text(page.page(*folders.read([folder]), title='lines'))
  down, apart, back = drive(file, 'tab=tokens', """
    document.querySelector('.tokens').focus({ focusVisible: true });
    for (let i = 0; i < 5; i += 1) press('ArrowRight');
    const before = pinned;
    press('ArrowDown');
    const below = pinned;
    press('ArrowUp');
    const apart = Math.abs(below.offsetLeft - before.offsetLeft);
    return [below.offsetTop > before.offsetTop, apart, pinned.offsetTop === before.offsetTop];
  """)  # fmt: skip
  assert down and apart < 60 and back


def test_seeds_of_a_cell_are_one_line_with_a_band(tmp_path):
  given = [report_runs.write_run(tmp_path / name) for name in ('opd/1', 'opd/2', 'alone')]
  metrics = given[1] / 'metrics.jsonl'
  metrics.write_text(
    ''.join(json.dumps({'step': step, 'loss': 3 / step}) + '\n' for step in (1, 2))
  )
  file = tmp_path / 'report.html'
  file.write_text(page.page(*folders.read(given), title='seeds'))
  seen = drive(file, 'tab=tokens', """
    const lines = () => linesOf('loss').map(({ label, x, raw, band }) => [label, x, raw, band ?? null]);
    const before = lines().map(([label]) => label);
    byId('seeds').click();
    return [before, lines(), location.hash.includes('seeds=1')];
  """)  # fmt: skip
  assert len(seen[0]) == 3 and seen[2]
  alone, cell = seen[1]
  assert alone[0] == 'alone' and alone[1] == [1, 2, 3]
  name = f'{tmp_path.name}/opd, 2 seeds'  # the first seed's loss is 1 / step; step 3 only one of them has
  assert cell == [name, [1, 2], [2, 1], [[1, 1, 3], [2, 0.5, 1.5]]]


def test_of_a_thousand_responses_only_those_near_the_window_are_there(tmp_path):
  folder = report_runs.write_run(tmp_path / 'run', rows=1000, steps=(1,), tokens=100)
  file = tmp_path / 'report.html'
  file.write_text(page.page(*folders.read([folder]), title='many'))
  cards, filled, later, last = drive(file, 'tab=tokens', """
    const filled = () => cards().filter((card) => card.firstChild).length;
    await pause(500);
    const first = filled();
    cards().at(-1).scrollIntoView();
    for (let i = 0; i < 40 && !cards().at(-1).firstChild; i += 1) await new Promise(requestAnimationFrame);
    await pause(100);
    return [cards().length, first, filled(), cards().at(-1).textContent.includes('problem 999')];
  """)  # fmt: skip
  assert cards == 1000 and 0 < filled < 60 and later < 60 and last
