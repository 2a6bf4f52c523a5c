// The list of responses, of which only what is near the window is there.

const FIRST = 600; // tokens of a response before somebody asks for all of them
const BOUNDS = ['reward', 'length', 'divergence'].flatMap((name) => [
  `${name}-least`,
  `${name}-most`,
]);
const now = {
  rows: [],
  pairs: null,
  kinds: [],
  kind: null,
  bound: 1,
  whole: new Set(),
  label: '',
  sides: [],
};
let ticket = 0;

// --- what is loaded ---------------------------------------------------------------------------------

async function load() {
  const mine = (ticket += 1);
  const number = Number(byId('run').value);
  const place = Number(byId('step').value);
  const [step, stage] = runs[number].recorded[place];
  byId('step-value').value = `${step} · ${stage}`;
  const rows = await chunk(`rollouts-${number}-${place}`);
  const against = byId('against').value;
  let pairs = null;
  if (against !== '') {
    const recorded = runs[Number(against)].recorded;
    const near = Math.max(
      0,
      recorded.findLastIndex(([other]) => other <= step),
    );
    pairs = paired(rows, await chunk(`rollouts-${against}-${near}`));
    now.label = `${runs[Number(against)].name}, step ${recorded[near][0]}`;
  }
  if (mine !== ticket) return; // the slider has moved on
  rows.forEach((row) => (row.divergence ??= divergenceOf(row)));
  Object.assign(now, {
    rows,
    pairs,
    sides: [number, Number(against)],
    kinds: kindsOf(rows),
    whole: new Set(),
  });
  const chosen = view.get('colour');
  const keys = now.kinds.map((kind) => kind.key);
  byId('colour').replaceChildren(
    ...now.kinds.map((kind) => el('option', { value: kind.key }, kind.label)),
  );
  byId('colour').value = keys.includes(chosen) ? chosen : keys[0];
  scale();
  list();
}

function recolour() {
  scale();
  for (const article of byId('responses').children) if (article.firstChild) fill(article);
}

// The colours of the chosen number, and what they stand for.
function scale() {
  unpin();
  now.kind = now.kinds.find((kind) => kind.key === byId('colour').value);
  now.bound = boundOf(now.rows, now.kind);
  const { isSigned, meaning, key } = now.kind;
  const [low, high] = isSigned
    ? [-now.bound, now.bound]
    : key.startsWith('logp')
      ? [-now.bound, 0]
      : [0, now.bound];
  byId('scale-low').textContent = shown(low);
  byId('scale-high').textContent = shown(high);
  byId('meaning').textContent = meaning;
  const notes = [
    now.rows.some((row) => /[^s]/.test(row.writer)) && 'dotted: not written by the student',
    now.rows.some((row) => row.counts.includes('0')) && 'faint: does not count',
    now.pairs && 'underlined: the other response does not have it',
  ];
  byId('marks').textContent = notes
    .filter(Boolean)
    .map((note) => `· ${note}`)
    .join(' ');
  byId('ramp').replaceChildren(
    ...Array.from({ length: 24 }, (_, at) => {
      const cell = el('i');
      cell.style.backgroundColor = colourOf(
        low + ((high - low) * (at + 0.5)) / 24,
        now.bound,
        isSigned,
      );
      return cell;
    }),
  );
}

// --- the list ---------------------------------------------------------------------------------------

function wanted(row) {
  const text = byId('search').value.toLowerCase();
  const within = (name) => {
    const [least, most] = ['least', 'most'].map((end) => byId(`${name}-${end}`).value);
    if (least === '' && most === '') return true;
    const value = row[name];
    return (
      value !== null &&
      (least === '' || value >= Number(least)) &&
      (most === '' || value <= Number(most))
    );
  };
  row.text ??= row.ids.map((id) => row.pieces[id]).join('');
  return (
    ['reward', 'length', 'divergence'].every(within) &&
    (text === '' ||
      row.prompt.toLowerCase().includes(text) ||
      row.text.toLowerCase().includes(text)) &&
    (now.pairs === null || now.pairs.get(row) !== undefined)
  );
}

const rowOf = new WeakMap(); // an article -> its row
function list() {
  unpin();
  near.disconnect();
  const by = byId('sort').value;
  const rows = now.rows.filter(wanted);
  if (by !== 'row') rows.sort((one, other) => (other[by] ?? -Infinity) - (one[by] ?? -Infinity));
  byId('count').textContent =
    `${rows.length} of ${now.rows.length} responses` + (now.pairs ? `, beside ${now.label}` : '');
  const articles = rows.map((row) => {
    const article = el('article', { class: 'response' });
    // Until it is drawn: as good a guess keeps the list from jumping.
    article.style.minHeight = `${66 + 22 * heightInLines(row)}px`;
    rowOf.set(article, row);
    near.observe(article);
    return article;
  });
  const nothing =
    now.pairs && !now.rows.some((row) => now.pairs.get(row))
      ? 'The two runs have no prompt in common here.'
      : 'No response is like that.';
  byId('responses').replaceChildren(
    ...(articles.length ? articles : [el('p', { class: 'empty' }, nothing)]),
  );
  for (const article of articles) {
    // what is in the window at once: the watcher speaks only after a frame
    const { top, bottom } = article.getBoundingClientRect();
    if (top > innerHeight) break;
    if (bottom > 0) fill(article);
  }
}

// About how many lines a response takes.
function heightInLines(row) {
  const width =
    (byId('responses').clientWidth - 30) / (now.pairs && innerWidth > 700 ? 2 : 1) / 7.6;
  const parts = row.text
    .slice(0, Math.ceil((row.text.length * FIRST) / Math.max(row.length, FIRST)))
    .split('\n');
  return parts.reduce(
    (sum, part) => sum + Math.max(1, Math.ceil(part.length / Math.max(width, 20))),
    0,
  );
}

const near = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting && !target.firstChild) fill(target);
      else if (!isIntersecting && target.firstChild) {
        target.style.minHeight = `${target.offsetHeight}px`;
        target.replaceChildren();
      }
    }
  },
  { rootMargin: '900px 0px' },
);

function fill(article) {
  const row = rowOf.get(article);
  const other = now.pairs?.get(row);
  const limit = now.whole.has(row) ? Infinity : FIRST;
  const settings = { kind: now.kind, bound: now.bound, limit };
  const parts = [];
  if (other) {
    other.divergence ??= divergenceOf(other);
    const texts = [row, other].map((each) => each.ids.map((id) => each.pieces[id]));
    const apart = differences(...texts);
    const columns = [row, other].map((each, side) =>
      el(
        'div',
        {},
        factsOf(each, now.sides[side]),
        tokensOf(each, { ...settings, differs: apart[side] }),
      ),
    );
    parts.push(promptOf(row), el('div', { class: 'pair' }, ...columns));
  } else parts.push(factsOf(row), promptOf(row), tokensOf(row, settings));
  if (Math.max(row.length, other?.length ?? 0) > limit) {
    const more = el('button', { type: 'button' }, `all ${row.length} tokens`);
    more.addEventListener('click', () => {
      now.whole.add(row);
      fill(article);
    });
    parts.push(more);
  }
  article.replaceChildren(...parts);
  article.style.minHeight = '';
}

// The question, and what judges read that see more of it.
const promptOf = (row) =>
  el(
    'div',
    {},
    el('div', { class: 'prompt' }, row.prompt),
    ...Object.entries(row.shown ?? {}).map(([name, text]) =>
      text === null
        ? el('div', { class: 'prompt' }, `${name} is shown nothing of this row`)
        : el('details', { class: 'shown' }, el('summary', {}, `what ${name} reads`), el('div', { class: 'prompt' }, text)),
    ),
  );

// Which response it is, what became of it and, of two, whose it is.
function factsOf(row, side = null) {
  const fact = (name, value, kind = '') =>
    el('span', {}, `${name} `, el('b', { class: kind }, value));
  const mark = row.reward === null ? '' : row.reward > 0 ? 'right' : 'wrong';
  const whose =
    side === null
      ? []
      : [el('span', {}, el('i', { class: `dot c${side % 8}` }), el('b', {}, runs[side].name))];
  return el(
    'div',
    { class: 'facts' },
    ...whose,
    el('span', {}, `${row.row + 1}`, row.problem ? ` · ${row.problem}` : ''),
    fact('reward', shown(row.reward), mark),
    fact('length', shown(row.length)),
    fact('ended by', row.ended_by),
    fact('divergence', shown(row.divergence)),
  );
}
