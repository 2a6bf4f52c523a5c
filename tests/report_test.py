"""What a report reads, and the page that it writes: no markup of a run, no request, no other file."""

import html
import json
import re
from html.parser import HTMLParser

import pytest
import report_runs

from opd_jax import cli
from opd_jax.report import folders, page


@pytest.fixture
def opd(capfd):
  """Runs `opd report`: (status, stdout, stderr)."""

  def run(*arguments):
    status = cli.main(['report', *map(str, arguments)])
    captured = capfd.readouterr()
    return status, captured.out, captured.err

  return run


def text_of(*given, title='a title') -> str:
  return page.page(*folders.read(list(given)), title=title)


# --- reading ----------------------------------------------------------------------------------------


def test_a_run_that_goes_on_is_read_as_far_as_it_is(tmp_path):
  run = folders.read_run(report_runs.write_run(tmp_path / 'run'), 'run')
  assert not run.is_finished and run.step == 3
  assert run.metrics['loss'] == [(1, 1.0), (2, 0.5), (3, 1.0 / 3)]
  assert [(each.step, each.rows) for each in run.recorded] == [(1, 4), (2, 4)]


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('')
  assert 'no rollouts were kept' in text_of(tmp_path)


def test_intervals_count_problems_and_not_samples(tmp_path):
  run = folders.read_run(report_runs.write_run(tmp_path / 'run'), 'run')
  # Problems with means 1 and 0: a quarter of the draws has both of one kind. Four fresh answers would give less.
  assert run.intervals['eval/sums'] == [(2, 0.0, 1.0)]


def test_a_method_comes_with_its_formula():
  opd, gkd = folders.methods_of('METHOD = @opd.opd()\nOTHER = @methods.gkd.gkd()\nX = @sums.sums()')
  assert (opd.name, gkd.name, gkd.paper) == ('opd', 'gkd', 'arXiv:2306.13649')
  formulas = [text for is_formula, text in opd.parts if is_formula]
  assert len(formulas) == 1 and formulas[0].startswith('A_t = coefficient')
  assert opd.parts[0] == (False, 'The sampled reverse KL as an advantage, token by token.')


def test_a_study_is_read_with_rows_that_know_nothing(tmp_path):
  study = folders.read_study(report_runs.write_study(tmp_path))
  assert study.title == 'a study' and study.claims[0].high == 0.2 and study.claims[1].p is None


def test_numbers_of_a_study_that_are_not_finite_are_left_out(tmp_path):
  row = {'claim': 'a', 'verdict': 'cannot tell', 'difference': float('nan'), 'low': 0, 'high': 1,
         'detectable': float('inf')}  # fmt: skip
  text = text_of(report_runs.write_study(tmp_path, rows=[row]))
  assert 'nan' not in text.partition('<tbody>')[2].partition('</tbody>')[0]
  assert folders.read_study(tmp_path).claims[0].detectable is None


def test_a_study_without_verdicts_says_so(tmp_path):
  (tmp_path / 'study.json').write_text('{"paper": "a paper", "cells": {}}')
  text = text_of(tmp_path)
  assert '<h2>a paper</h2>' in text and 'No verdicts so far.' in text


@pytest.mark.parametrize(
  'name, text',
  [
    ('study.json', '{'),
    ('study.json', '[]'),
    ('verdicts.json', '[1]'),
    ('verdicts.json', '[{"claim": "a", "verdict": "b", "low": "x"}]'),
  ],
)
def test_a_study_that_cannot_be_read_is_named(tmp_path, name, text):
  (report_runs.write_study(tmp_path) / name).write_text(text)
  with pytest.raises(ValueError, match=rf'{name} is not what `opd study` writes'):
    folders.read_study(tmp_path)


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda folder: folder.mkdir(), 'has neither metrics.jsonl nor study.json'),
    (lambda folder: None, 'is no folder'),
  ],
)
def test_a_folder_without_metrics_is_refused_in_one_line(opd, tmp_path, make, words):
  make(tmp_path / 'x')
  status, out, err = opd(tmp_path / 'x')
  assert (status, out) == (2, '') and err.count('\n') == 1 and words in err


def test_a_folder_that_is_named_twice_is_refused(opd, tmp_path):
  folder = report_runs.write_run(tmp_path / 'run')
  status, _, err = opd(folder, folder)
  assert status == 2 and 'named twice' in err


def test_names_of_runs_are_as_long_as_they_must_be(tmp_path):
  given = [report_runs.write_run(tmp_path / name / 'run') for name in ('one', 'two')]
  assert [run.name for run in folders.read(given)[0]] == ['one/run', 'two/run']


# --- the page ---------------------------------------------------------------------------------------


def test_the_command_says_what_it_wrote(opd, tmp_path):
  folder = report_runs.write_study(report_runs.write_run(tmp_path / 'run'))
  status, out, _ = opd(folder)
  assert status == 0 and re.search(r'report\.html: 1 runs, 1 studies, 8 responses, 0\.\d MB', out)
  assert '<title>a study, run</title>' in (folder / 'report.html').read_text()


class Elements(HTMLParser):
  """Tags with their attributes."""

  def __init__(self, text: str):
    super().__init__()
    self.found: list[tuple[str, dict[str, str | None]]] = []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.found.append((tag, dict(attrs)))


def test_nothing_of_a_run_is_markup(tmp_path):
  hostile = report_runs.HOSTILE
  folder = report_runs.write_run(
    tmp_path / '<img src=x onerror=alert(1)>', config=hostile, text=hostile
  )
  report_runs.write_study(folder, title=hostile)
  text = text_of(folder, title=hostile)
  elements = Elements(text).found
  assert not {'img', 'b', 'iframe'} & {tag for tag, _ in elements}
  assert not [name for _, attributes in elements for name in attributes if name.startswith('on')]
  scripts = [attributes for tag, attributes in elements if tag == 'script']
  assert [each for each in scripts if each.get('type') != 'text/plain'] == [{}]
  assert html.escape(hostile, quote=False).split('"')[0] in text


def test_the_page_names_no_other_file_and_allows_no_request(tmp_path):
  text = text_of(report_runs.write_study(report_runs.write_run(tmp_path / 'run')))
  for _, attributes in Elements(text).found:
    assert 'src' not in attributes and (attributes.get('href') or '#').startswith('#')
  style, script = (re.search(rf'<{tag}>(.*?)</{tag}>', text, re.DOTALL) for tag in ('style', 'script'))  # fmt: skip
  assert style and script and '@import' not in style[1] and 'url(' not in style[1]
  assert not re.search(
    r'innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|fetch\(', script[1]
  )
  assert "default-src 'none'" in text


def test_intervals_of_a_study_lie_on_one_scale_with_zero_inside(tmp_path):
  _, studies = folders.read([report_runs.write_study(tmp_path)])
  text = page.page([], studies, title='x')
  zero, low, high = (
    float(re.search(pattern, text)[1])
    for pattern in (r'class="zero" x1="([\d.]+)"', r'interval" x1="([\d.]+)"', r'interval".* x2="([\d.]+)"')
  )  # fmt: skip
  assert (low, high) == (4, 96) and zero == pytest.approx(4 + 92 / 3, abs=0.01)
  assert text.count('class="interval"') == 1 and '−0.1 … 0.2' in text


def test_the_index_holds_what_curves_read(tmp_path):
  runs, _ = folders.read([report_runs.write_run(tmp_path / 'run')])
  (run,) = json.loads(json.dumps(page.index_of(runs)))
  assert run['metrics']['loss'][0] == [1, 2, 3] and run['metrics']['gap'] == [[2], [None]]
  assert run['recorded'] == [[1, 'train', 4], [2, 'train', 4]]


def test_the_same_runs_make_the_same_page(tmp_path):
  folder = report_runs.write_run(tmp_path / 'run')
  assert text_of(folder) == text_of(folder)


# --- plans ------------------------------------------------------------------------------------------


def test_a_plan_in_the_folder_of_a_run_is_on_its_page(tmp_path, capfd, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  run = report_runs.write_run(tmp_path / 'run')
  assert 'class="plan"' not in text_of(run)
  files = ('models/small', 'data/sums', 'methods/sft')
  words = [f'--gin_file=experiments/{name}.gin' for name in files]
  words += ['--compile', '--chip', 'h100', '--prompt', '32', '--workdir', str(run)]
  assert cli.main(['plan', *words]) == 0
  assert f'and {run / "plan.json"}' in capfd.readouterr().out
  [stage] = json.loads((run / 'plan.json').read_text())['compiled']
  [found] = folders.read_run(run, 'run').plan.stages
  assert [each[:2] for each in found.programs] == [
    (each['verb'], each['name']) for each in stage['programs']
  ]
  text = text_of(run)
  assert 'class="plan"' in text and 'fits, 74.5 GiB a device' in text
  assert all(f'<td>{each["name"]}</td>' in text for each in stage['programs'])
  assert 'bound by computing' in text


def test_a_plan_of_shapes_only_and_one_that_does_not_fit_are_told(tmp_path):
  run = report_runs.write_run(tmp_path / 'run')
  plan = {'topology': 'v5e:4x4', 'slices': 2, 'mesh': 'fsdp=32 on 32 tpu devices', 'compiled': []}
  plan['stages'] = {'train': {'parameters': 2**30, 'cache': 0}}
  (run / 'plan.json').write_text(json.dumps(plan))
  text = text_of(run)
  assert '2 x v5e:4x4 fsdp=32' in text
  assert 'Each device holds parameters 1.0 GiB, and activations.' in text
  stage = {'stage': 'train', 'programs': [], 'least_seconds': None, 'memory': 2**34, 'fits': False}
  stage['failed'] = [{'verb': 'update', 'name': 'gradient', 'refused': '<b>40G of 16G</b>'}]
  (run / 'plan.json').write_text(json.dumps({**plan, 'compiled': [stage]}))
  text = text_of(run)
  assert 'does not fit, 16.0 GiB a device' in text
  assert 'does not fit: &lt;b&gt;40G of 16G&lt;/b&gt;' in text


@pytest.mark.parametrize('text', ['', '[]', '{}', '{"stages": {}, "compiled": [1], "mesh": ""}'])
def test_what_is_no_plan_is_refused_by_name(opd, tmp_path, text):
  run = report_runs.write_run(tmp_path / 'run')
  (run / 'plan.json').write_text(text)
  status, _, err = opd(run, '--out', tmp_path / 'page.html')
  assert status == 2 and 'plan.json is not what `opd plan --workdir` writes' in err
