// A response as coloured tokens: which numbers there are, what colour a number has, what the tip says.

const WRITER = { s: 'student', t: 'teacher', d: 'data set', ' ': 'nobody' };
const UP = [59, 111, 212]; // above zero
const DOWN = [214, 96, 20]; // below zero
const PLAIN = [150, 72, 176]; // numbers of one sign

// --- the numbers of a token -------------------------------------------------------------------------

const minus = (one, other) =>
  one === null || other === null || one === undefined || other === undefined ? null : one - other;
const gap = (row, at, judge = 'teacher') => minus(row.logp[judge]?.[at], row.logp.student?.[at]);

// Everything that tokens of these rows can be coloured by.
function kindsOf(rows) {
  const names = (part) => [...new Set(rows.flatMap((row) => Object.keys(row[part])))];
  const judges = names('logp').sort((one, other) => (other === 'student') - (one === 'student'));
  return [
    ...judges
      .filter((name) => name !== 'student')
      .map((name) => ({
        key: name === 'teacher' ? 'gap' : `gap ${name}`,
        label: `gap to the ${name}`,
        isSigned: true,
        value: (row, at) => gap(row, at, name),
        meaning: `log-prob of the ${name} minus the student's, in nats; blue: the ${name} likes it better`,
      })),
    ...judges.map((name) => ({
      key: `logp ${name}`,
      label: `log-prob, ${name}`,
      isSigned: false,
      value: (row, at) => row.logp[name]?.[at] ?? null,
      meaning: `of the written token, in nats; dark: unlikely`,
    })),
    ...names('entropy').map((name) => ({
      key: `entropy ${name}`,
      label: `entropy, ${name}`,
      isSigned: false,
      value: (row, at) => row.entropy[name]?.[at] ?? null,
      meaning: `of the whole distribution, in nats; dark: unsure`,
    })),
    ...names('coefficients').map((name) => ({
      key: `coefficient ${name}`,
      label: `coefficient of ${name}`,
      isSigned: true,
      value: (row, at) => row.coefficients[name]?.[at] ?? null,
      meaning: `what the term is multiplied by at this token`,
    })),
  ];
}

// Mean log p - log q over the tokens that count: the sampled reverse KL.
function divergenceOf(row) {
  let sum = 0;
  let count = 0;
  for (let at = 0; at < row.length; at += 1) {
    const found = row.counts[at] === '1' ? gap(row, at) : null;
    if (found !== null) {
      sum -= found;
      count += 1;
    }
  }
  return count ? sum / count : null;
}

// The size at which a colour is full: two in a hundred tokens are beyond it.
function boundOf(rows, kind) {
  const sizes = [];
  const stride = Math.ceil(rows.reduce((sum, row) => sum + row.length, 0) / 50000);
  let number = 0;
  for (const row of rows) {
    for (let at = 0; at < row.length; at += 1) {
      number += 1;
      const value = number % stride ? null : kind.value(row, at);
      if (value) sizes.push(Math.abs(value)); // zeros say nothing about a scale
    }
  }
  sizes.sort((one, other) => one - other);
  return sizes.length ? sizes[Math.floor(0.98 * (sizes.length - 1))] : 1;
}

function colourOf(value, bound, isSigned) {
  if (value === null || value === 0) return '';
  const share = Math.min(1, Math.abs(value) / bound) ** 0.75;
  const [red, green, blue] = !isSigned ? PLAIN : value > 0 ? UP : DOWN;
  return `rgb(${red} ${green} ${blue} / ${(0.62 * share).toFixed(3)})`;
}

// --- the tokens -------------------------------------------------------------------------------------

const owners = new WeakMap(); // an element with tokens -> the row
const visible = (piece) => piece.replaceAll('\n', '↵\n').replaceAll('\t', '⇥');

function tokensOf(row, { kind, bound, limit, differs }) {
  const label = `response ${row.row + 1}; arrow keys go through its tokens`;
  const box = el('div', { class: 'tokens', tabindex: 0, role: 'group', 'aria-label': label });
  owners.set(box, row);
  for (let at = 0; at < Math.min(row.length, limit); at += 1) {
    const piece = row.pieces[row.ids[at]] ?? `<${row.ids[at]}>`;
    const token = el('span', { 'data-at': at }, visible(piece));
    token.style.backgroundColor = colourOf(kind.value(row, at), bound, kind.isSigned);
    if (/^<.+>$/.test(piece)) token.classList.add('mark');
    if (row.counts[at] === '0') token.classList.add('uncounted');
    if (row.writer[at] !== 's') token.classList.add('foreign');
    if (differs?.has(at)) token.classList.add('differs');
    box.append(token);
  }
  return box;
}

function tipOf(row, at, kinds) {
  const known = kinds.filter((kind) => kind.value(row, at) !== null);
  const line = (name, ...values) =>
    el('tr', {}, el('td', { class: 'name' }, name), el('td', { class: 'num' }, ...values));
  const numbers = known.map((kind) => {
    const value = kind.value(row, at);
    const isLogp = kind.key.startsWith('logp');
    return line(kind.label, shown(value), isLogp ? `  (${percent(value)})` : '');
  });
  const piece = row.pieces[row.ids[at]] ?? '';
  const notes = [`token ${row.ids[at]}, ${at + 1} of ${row.length}`];
  if (row.writer[at] !== 's') notes.push(`by ${WRITER[row.writer[at]]}`);
  if (row.counts[at] === '0') notes.push('does not count');
  const content = el(
    'div',
    {},
    el(
      'div',
      {},
      el('b', { class: 'piece' }, visible(piece).trimEnd() || JSON.stringify(piece)),
      `  ${notes.join(', ')}`,
    ),
    el('table', {}, ...numbers),
  );
  const lists = Object.entries(row.top_k).map(([name, top]) =>
    listOf(name, top.ids[at], top.logp[at], row, at),
  );
  if (lists.length) content.append(el('div', { class: 'lists' }, ...lists));
  return content;
}

const percent = (logp) => {
  const share = 100 * Math.exp(logp);
  return share >= 0.1
    ? `${share.toFixed(1)} %`
    : share >= 0.001
      ? `${share.toFixed(3)} %`
      : '< 0.001 %';
};

function listOf(name, ids, logps, row, at) {
  const lines = ids.map((id, rank) => {
    const meter = el('i', { class: 'meter' }, el('i'));
    meter.firstChild.style.width = `${logps[rank] === null ? 0 : 100 * Math.exp(logps[rank])}%`;
    const piece = el(
      'td',
      { class: 'piece' },
      visible(row.pieces[id] ?? `<${id}>`)
        .replaceAll(' ', '␣')
        .trimEnd(),
    );
    return el(
      'tr',
      id === row.ids[at] ? { class: 'drawn' } : {},
      piece,
      el('td', {}, meter),
      el('td', { class: 'num' }, logps[rank] === null ? '–' : percent(logps[rank])),
    );
  });
  return el('div', {}, el('h3', {}, `best of the ${name}`), el('table', {}, ...lines));
}
