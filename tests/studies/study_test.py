"""Records of studies: what is refused, and how."""

import pytest

from opd_jax.studies import folder
from opd_jax.studies.study import (
  Cell,
  Contrast,
  Measure,
  Printed,
  Study,
  chosen_among,
  read_study,
)

MEASURE = Measure(name='accuracy', key='eval/sums/avg@1')


def cell(name, **changes):
  return Cell(name=name, files=('experiments/models/small.gin',), **changes)


def after(name, *others, **changes):
  return cell(name, after=others, bindings=tuple(f'X = "{{{o}}}"' for o in others), **changes)


def study(*cells, **changes):
  return Study(**{'paper': 'a', 'cells': cells, 'seeds': (1, 2), 'measures': (MEASURE,)} | changes)


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: cell('a/b'), "Cell 'a/b': a name is letters"),
    (lambda: Cell(name='a', files=()), 'Cell a: files is empty; name the gin files'),
    (lambda: cell('a', after=('b',)), 'no binding takes its student. Write e.g.'),
    (lambda: cell('a', rates=(1.0, 1.0)), 'rates must be above 0 and differ'),
    (lambda: study(after('a', 'b')), 'a comes after b, which is no cell above it'),
    (lambda: study(cell('a'), after('b', 'a', seed=0)), 'b serves all seeds and comes after a'),
    (lambda: study(cell('a', rates=(0.1, 0.2))), 'a has several rates, which needs tuning_seeds'),
    (lambda: study(cell('a'), cell('a')), 'cells must all differ, and a comes twice'),
    (lambda: study(cell('a'), tuning_seeds=(2,)), 'must all differ, and 2 comes twice'),
    (lambda: study(), 'cells is empty'),
    (lambda: Contrast(claim='x', order=('a',)), 'order must name two different cells or more'),
    (lambda: Contrast(claim='x', order=('a', 'b'), within=0.0), 'within must be above 0'),
    (
      lambda: study(cell('a'), contrasts=(Contrast(claim='x', order=('a', 'b')),)),
      r"contrast 'x' names \['b'\]",
    ),
    (
      lambda: study(cell('a'), cell('b'), contrasts=(Contrast(claim='x', order=('a', 'b'), measure='m'),)),
      "contrast 'x' names 'm'; measures are",
    ),
    (lambda: Measure(name='m', key='k', last=0), 'Measure m: last and smallest must be above 0'),
    (
      lambda: Printed(cell='a', measure='m', value=101.0, metric='', problems=1, samples=1, scale='', source=''),
      'value is a percentage of problems x samples',
    ),
  ],
)  # fmt: skip
def test_a_mistake_is_refused_by_name(make, words):
  with pytest.raises(ValueError, match=words):
    make()


def test_the_best_rate_follows_the_direction_of_the_measure():
  values = [(0.1, 3.0), (0.2, 5.0), (0.4, 4.0)]
  assert chosen_among(values, MEASURE) == 0.2
  assert chosen_among(values, Measure(name='kl', key='k', lower_is_better=True)) == 0.1


@pytest.mark.parametrize(
  'text, words',
  [
    ('X = 1', 'sets no STUDY'),
    ('STUDY = Study()', 'NameError'),
    ('STUDY = (', 'SyntaxError'),
    ('raise ValueError("a cell is wrong")', 'a cell is wrong'),
  ],
)
def test_a_file_that_is_no_study_is_refused(tmp_path, text, words):
  (tmp_path / 'x.py').write_text(text)
  with pytest.raises(ValueError, match=words):
    read_study(tmp_path / 'x.py')


def test_a_folder_takes_more_of_its_study_and_no_other(tmp_path):
  file, root = tmp_path / 'x.py', tmp_path / 'root'
  root.mkdir()
  before = study(cell('a', rates=(0.1,)))
  folder.claim(before, file, root)
  done = root / 'runs' / 'a' / '0.1' / '1'
  done.mkdir(parents=True)
  (done / 'done.json').write_text('{}')
  more = study(cell('a', rates=(0.1, 0.2)), cell('b'), seeds=(1, 2, 3), tuning_seeds=(9,))
  folder.claim(more, file, root)
  folder.claim(more, file, root)
  for other, words in (
    (before, r'seeds \[3\] are gone; tuning_seeds \[9\] are gone; rates \[0.2\] of a are gone'),
    (study(cell('c'), seeds=(1, 2, 3), tuning_seeds=(9,)), 'it has a cell a; it has a cell b'),
    (
      study(
        cell('a', rates=(0.1, 0.2), bindings=('X = 1',)),
        cell('b'),
        seeds=(1, 2, 3),
        tuning_seeds=(9,),
      ),
      'a has other fields',
    ),
    (
      study(cell('a', rates=(0.1, 0.2)), cell('b'), seeds=(1, 2, 3), tuning_seeds=(9,), paper='b'),
      "its paper is 'a', not 'b'",
    ),
  ):
    with pytest.raises(ValueError, match=f'holds another study: .*{words}'):
      folder.claim(other, file, root)


def test_an_included_gin_file_that_was_edited_is_another_study(tmp_path):
  (tmp_path / 'base.gin').write_text('X = 1\n')
  (tmp_path / 'top.gin').write_text("include 'base.gin'\nY = 1\n")
  known = study(Cell(name='a', files=('top.gin',)))
  folder.claim(known, tmp_path / 'x.py', tmp_path)
  done = tmp_path / 'runs' / 'a' / 'default' / '1'
  done.mkdir(parents=True)
  (done / 'done.json').write_text('{}')
  (tmp_path / 'base.gin').write_text('# A comment changes nothing.\nX = 1\n')
  folder.check(known, tmp_path / 'x.py', tmp_path)
  (tmp_path / 'base.gin').write_text('X = 2\n')
  with pytest.raises(ValueError, match='a has other files'):
    folder.claim(known, tmp_path / 'x.py', tmp_path)


def test_a_cell_that_nothing_is_done_of_may_be_mended(tmp_path):
  folder.claim(study(cell('a', bindings=('X = 0',))), tmp_path / 'x.py', tmp_path)
  folder.claim(study(cell('a', bindings=('X = 1',))), tmp_path / 'x.py', tmp_path)
  with pytest.raises(ValueError, match='it has a cell a'):
    folder.claim(study(cell('b')), tmp_path / 'x.py', tmp_path)


def test_a_printed_difference_has_the_error_of_its_answers():
  printed = Printed(
    cell='a', measure='m', value=53.4, metric='Pass@1', problems=90, samples=16, scale='', source=''
  )
  assert printed.standard_error == pytest.approx(100 * (0.534 * 0.466 / 1440) ** 0.5, rel=1e-12)
