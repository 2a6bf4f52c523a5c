// The grid of charts: which metrics there are, and which of them are near the window.

const GROUPS = [
  ['evaluations', (name) => name.startsWith('eval/')],
  ['along the response, first and last recorded step', (name) => name.startsWith('curve/')],
  ['time', (name) => name.startsWith('time/')],
  ['judges', (name) => name.includes('/')],
  ['training', () => true],
];
const ORDER = [
  'evaluations',
  'training',
  'judges',
  'along the response, first and last recorded step',
  'time',
];

const seen = new Set(); // charts near the window
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) {
        seen.add(target);
        draw(target);
      } else seen.delete(target);
    }
  },
  { rootMargin: '300px' },
);
const redraw = () => seen.forEach((card) => card.isConnected && draw(card));

function arrange() {
  const wanted = byId('curve-filter').value.toLowerCase().split(/\s+/);
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.metrics)))];
  const groups = new Map(ORDER.map((title) => [title, []]));
  for (const name of names.sort()) {
    if (wanted.every((word) => name.toLowerCase().includes(word)))
      groups.get(GROUPS.find(([, test]) => test(name))[0]).push(name);
  }
  watcher.disconnect();
  seen.clear();
  const parts = [...groups]
    .filter(([, members]) => members.length)
    .map(([title, members]) => {
      const cards = members.map((name) => el('div', { class: 'chart', 'data-name': name }));
      cards.forEach((card) => watcher.observe(card));
      const part = el(
        'details',
        { class: 'group' },
        el('summary', {}, `${title} · ${members.length}`),
        el('div', { class: 'charts' }, ...cards),
      );
      part.open = title !== 'time' || wanted.some(Boolean);
      return part;
    });
  byId('charts').replaceChildren(
    ...(parts.length ? parts : [el('p', { class: 'empty' }, 'No metric has such a name.')]),
  );
  drawFirst();
}

// What is in the window at once: the watcher speaks only after a frame.
function drawFirst() {
  for (const card of document.querySelectorAll('.chart')) {
    if (card.clientWidth && card.getBoundingClientRect().top < innerHeight) {
      seen.add(card);
      draw(card);
    }
  }
}

function startCurves(index) {
  runs = index;
  byId('run-legend').replaceChildren(
    ...runs.map((run, number) => {
      const button = el(
        'button',
        { type: 'button', 'aria-pressed': 'true' },
        el('i', { class: `dot c${number % 8}` }),
        run.name,
      );
      button.addEventListener('click', () => {
        if (!off.delete(number)) off.add(number);
        button.setAttribute('aria-pressed', String(!off.has(number)));
        redraw();
      });
      return button;
    }),
  );
  const smoothing = byId('smoothing');
  smoothing.value = view.get('smoothing') ?? '0';
  byId('curve-filter').value = view.get('metrics') ?? '';
  byId('logarithmic').checked = view.get('log') === '1';
  const label = () => (byId('smoothing-value').value = smoothing.value);
  smoothing.addEventListener('input', () => {
    label();
    remember('smoothing', smoothing.value === '0' ? '' : smoothing.value);
    redraw();
  });
  byId('curve-filter').addEventListener('input', (event) => {
    remember('metrics', event.target.value);
    arrange();
  });
  byId('logarithmic').addEventListener('change', (event) => {
    remember('log', event.target.checked ? '1' : '');
    redraw();
  });
  if (byId('seeds')) {
    byId('seeds').checked = view.get('seeds') === '1';
    byId('seeds').addEventListener('change', (event) => {
      remember('seeds', event.target.checked ? '1' : '');
      redraw();
    });
  }
  addEventListener('resize', redraw);
  label();
  opened.set('curves', drawFirst);
  arrange();
}
