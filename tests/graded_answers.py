r"""Answers by hand: the gold answer, other spellings of it, and answers that are wrong. One LaTeX expression each."""

MATHS = {
  '204': (
    ['204', '204.0', r'204\text{ minutes}', '0204', '+204', r'\text{204}', r'204^\circ'],
    ['203', '-204', '2040', '20.4'],
  ),
  '70': (
    ['70', r'\$70', r'70\%', r'\frac{140}{2}', '7*10', r'7\cdot 10', r'7 \times 10'],
    ['71', '7', r'\frac{7}{10}', '70i'],
  ),
  '-3': (
    ['-3', '- 3', r'-\frac{6}{2}', '-3.0', '1-4'],
    ['3', '-3.1', r'\frac{1}{3}'],
  ),
  r'\frac{1}{2}': (
    ['1/2', '0.5', '.5', r'\frac12', r'\dfrac{1}{2}', r'\tfrac{2}{4}', r'\frac{3}{6}', '2^{-1}'],
    ['2', '0.05', r'\frac{1}{3}', r'-\frac{1}{2}', '0.51'],
  ),
  r'\frac{14}{3}': (
    ['14/3', r'\frac{28}{6}', r'4+\frac{2}{3}', r'\dfrac{14}{3}'],
    [r'\frac{3}{14}', '4.6', r'\frac{15}{3}'],
  ),
  r'\sqrt{2}': (
    [r'\sqrt{2}', r'\sqrt 2', '2^{1/2}', r'\frac{2}{\sqrt{2}}', r'\sqrt{\frac{4}{2}}'],
    ['2', r'\sqrt{3}', r'-\sqrt{2}', '1.41'],
  ),
  r'3\sqrt{13}': (
    [r'3\sqrt{13}', r'\sqrt{117}', r'3 \cdot \sqrt{13}', r'\sqrt{13}\cdot 3'],
    [r'\sqrt{39}', r'13\sqrt{3}', '10.8'],
  ),
  r'\pi': (
    [r'\pi', r'\frac{2\pi}{2}', r'\pi^1'],
    ['3.14', '3', r'2\pi', r'\frac{\pi}{2}'],
  ),
  r'\left( 3, \frac{\pi}{2} \right)': (
    [r'(3, \frac{\pi}{2})', r'\left(3,\frac{\pi}{2}\right)', r'(3,\pi/2)', r'(\frac{6}{2},\frac{\pi}{2})'],
    [r'(\frac{\pi}{2}, 3)', r'(3, \pi)', '3', r'(-3, \frac{\pi}{2})'],
  ),
  '(1, 2)': (
    ['(1,2)', r'\left(1, 2\right)', '(1.0, 2.0)'],
    ['(2,1)', '(1,3)', '1', '(1,2,3)'],
  ),
  r'\{1, 2, 3\}': (
    [r'\{1,2,3\}', r'\{3, 2, 1\}', r'\left\{1,2,3\right\}', '1,2,3'],
    [r'\{1,2\}', r'\{1,2,4\}', r'\{1,2,3,4\}'],
  ),
  '1, -2': (
    ['1, -2', '-2, 1', r'\{1,-2\}'],
    ['1, 2', '1', '-1, 2'],
  ),
  r'(-\infty, 3]': (
    [r'(-\infty,3]', r'\left(-\infty, 3\right]'],
    [r'(-\infty,3)', r'[3,\infty)', '3'],
  ),
  '[0, 1)': (
    ['[0,1)', r'\left[0, 1\right)'],
    ['(0,1)', '[0,1]', '[0,2)'],
  ),
  'x^2 + 2x + 1': (
    ['x^2+2x+1', '(x+1)^2', '1+2x+x^2', '(x+1)(x+1)'],
    ['x^2+1', 'x^2+2x', '(x-1)^2'],
  ),
  '2n + 1': (
    ['2n+1', '1+2n', '2(n+1)-1'],
    ['2n', '2n-1', 'n+1'],
  ),
  r'\frac{x}{y}': (
    [r'\frac{x}{y}', 'x/y', r'\frac{2x}{2y}'],
    [r'\frac{y}{x}', 'xy', 'x'],
  ),
  '10^6': (
    ['10^6', '1000000', '10^{6}', '1{,}000{,}000', '1,000,000'],
    ['10^5', '100000', '6'],
  ),
  '1.5': (
    ['1.5', r'\frac{3}{2}', '3/2', '1.50'],
    ['15', '1.6', r'\frac{2}{3}'],
  ),
  r'\frac{\sqrt{3}}{3}': (
    [r'\frac{1}{\sqrt{3}}', r'\frac{\sqrt 3}{3}', r'\sqrt{\frac{1}{3}}'],
    [r'\sqrt{3}', r'\frac{1}{3}', r'\frac{3}{\sqrt{3}}'],
  ),
  '2^{10}': (
    ['1024', '2^{10}', '4^5', '32^2'],
    ['20', '2^9', '1000'],
  ),
  r'\binom{6}{2}': (
    ['15', r'\binom{6}{2}', r'\binom{6}{4}'],
    ['30', r'\binom{6}{3}', '12'],
  ),
  '3 + 4i': (
    ['3+4i', '4i+3'],
    ['3-4i', '7i', '3', '5'],
  ),
  r'\log_2 3': (
    [r'\log_2 3', r'\log_{2}{3}', r'\frac{\ln 3}{\ln 2}'],
    [r'\log_3 2', '1.58', r'\log 3'],
  ),
  '5!': (
    ['120', '5!', r'5 \cdot 4!'],
    ['60', '24', '5'],
  ),
  r'\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}': (
    [r'\begin{pmatrix}1&2\\3&4\end{pmatrix}', r'\begin{bmatrix}1&2\\3&4\end{bmatrix}'],
    [r'\begin{pmatrix}1&3\\2&4\end{pmatrix}', r'\begin{pmatrix}1&2\end{pmatrix}'],
  ),
  'x = 5': (
    ['x=5', '5', r'x = \frac{10}{2}'],
    ['x=6', '-5'],
  ),
  r'\frac{3}{4}': (
    ['0.75', r'75\%', r'\frac{6}{8}', '3/4'],
    [r'\frac{4}{3}', '0.7', '34'],
  ),
}  # fmt: skip

# Where math-verify 0.9 differs from what a person would say: gold, answer, what it says.
TRAPS = {('70', '70.'): 'wrong'}

INTEGERS = [
  ('42', r'\boxed{42}', 'correct'), ('042', r'\boxed{42}', 'correct'), ('42', r'\boxed{042}', 'correct'),
  ('42', r'\boxed{41}', 'wrong'), ('42', r'\boxed{-42}', 'wrong'), ('-42', r'\boxed{−42}', 'correct'),
  ('1000', r'\boxed{1,000}', 'correct'),
  ('1000', r'\boxed{1{,}000}', 'correct'), ('1000', r'\boxed{1\,000}', 'correct'),
  ('12', r'\boxed{1, 2}', 'unparsed'), ('12', r'\boxed{\frac{12}{1}}', 'unparsed'), ('12', r'\boxed{12.5}', 'unparsed'),
  ('12', r'\boxed{12.0}', 'correct'), ('12', r'\boxed{x=12}', 'correct'), ('12', r'\boxed{\text{12}}', 'correct'),
  ('12', r'\boxed{12^\circ}', 'correct'), ('12', r'\boxed{12\%}', 'correct'), ('12', r'\boxed{\$12}', 'correct'),
  ('12', r'\boxed{11} no, \boxed{12}', 'correct'), ('12', r'\boxed{12} no, \boxed{11}', 'wrong'),
  ('12', r'<think>\boxed{12}</think> \boxed{13}', 'wrong'), ('12', '<think>13</think>12', 'correct'),
  ('12', r'\boxed{12', 'correct'), ('12', r'\boxed{}', 'unparsed'), ('12', '', 'unparsed'),
  ('12', 'twelve', 'unparsed'),
  ('12', 'It is 12.', 'correct'), ('12', 'It is 12, not 13', 'wrong'), ('12', 'x12', 'unparsed'),
  ('5', '12.5', 'unparsed'),
  ('12', r'\fbox{12}', 'correct'), ('12', r'\boxed{\boxed{12}}', 'correct'), ('0', r'\boxed{0}', 'correct'),
  ('0', r'\boxed{-0}', 'correct'), ('12', '１２', 'correct'), ('12', r'\boxed{' + '1' * 1_000_000 + '}', 'unparsed'),
  ('12', '{' * 100_000, 'unparsed'), ('12', r'\boxed{' * 10_000, 'unparsed'),
]  # fmt: skip
