// One chart: a metric of all runs over each other, with intervals where they are known.

const HEIGHT = 160;
const PAD = { left: 46, right: 8, top: 8, bottom: 20 };
const off = new Set(); // numbers of runs that are not drawn
let runs = [];

function seriesOf(name) {
  return runs
    .map((run, number) => ({ run, number, points: run.metrics[name] }))
    .filter((each) => each.points && !off.has(each.number));
}

// An exponential average without the pull of its beginning; gaps stay gaps.
function smoothed(values, weight) {
  if (!weight) return values;
  let sum = 0;
  let mass = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

// Ticks at 1, 2 or 5 times a power of ten.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + 1e-9 * step; at += step)
    found.push(Math.abs(at) < step / 1e6 ? 0 : at);
  return found;
}

// What a chart draws: lines of x and y for each run, over steps or, where values are lists, along the response.
function linesOf(name) {
  const weight = Number(byId('smoothing').value);
  const series = seriesOf(name);
  if (!series.some(({ points: [, values] }) => Array.isArray(values[0]))) {
    const isAveraged = byId('seeds')?.checked;
    const alone = series.filter(({ run }) => !isAveraged || run.cell === null);
    const cells = new Set(series.map(({ run }) => run.cell).filter((cell) => isAveraged && cell));
    const lines = alone.map(({ run, number, points: [x, y] }) => ({
      number,
      label: run.name,
      x,
      raw: y,
      band: bandOf(run, name),
    }));
    for (const cell of cells)
      lines.push(averageOf(cell, series.filter(({ run }) => run.cell === cell)));
    return lines.map((line) => ({ ...line, y: smoothed(line.raw, weight) }));
  }
  return series.flatMap(({ run, number, points: [steps, lists] }) =>
    [...new Set([0, lists.length - 1])].map((at, place) => ({
      number,
      label: `${run.name}, step ${steps[at]}`,
      x: lists[at].map((_, bin) => (bin + 0.5) / lists[at].length),
      raw: lists[at],
      y: lists[at],
      faint: place === 0 && lists.length > 1,
    })),
  );
}

// The mean over the seeds of a cell at steps that all of them have, and a band from the lowest to the highest.
function averageOf(cell, series) {
  const tables = series.map(({ points: [x, y] }) => new Map(x.map((step, at) => [step, y[at]])));
  const x = series[0].points[0].filter((step) => tables.every((table) => table.get(step) != null));
  const values = x.map((step) => tables.map((table) => table.get(step)));
  return {
    number: series[0].number,
    label: `${cell}, ${series.length} seeds`,
    x,
    raw: values.map((each) => each.reduce((sum, value) => sum + value, 0) / each.length),
    band: x.map((step, at) => [step, Math.min(...values[at]), Math.max(...values[at])]),
  };
}

function bandOf(run, name) {
  const label = name.match(/^(eval\/.*)\/avg@\d+$/);
  return label ? run.intervals[label[1]] : undefined;
}

function scalesOf(lines, logarithmic, width) {
  const flat = (pick) =>
    lines
      .flatMap(pick)
      .filter((value) => value !== null && Number.isFinite(value) && (!logarithmic || value > 0));
  const xs = lines.flatMap((line) => line.x);
  const ys = [
    ...flat((line) => line.raw),
    ...flat((line) => (line.band ?? []).flatMap(([, low, high]) => [low, high])),
  ];
  if (!ys.length) return null;
  const least = (values) => values.reduce((one, other) => Math.min(one, other), Infinity);
  const most = (values) => values.reduce((one, other) => Math.max(one, other), -Infinity);
  const value = logarithmic ? Math.log10 : (y) => y;
  let [x0, x1, y0, y1] = [least(xs), most(xs), value(least(ys)), value(most(ys))];
  if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
  const room = (y1 - y0) * 0.05 || Math.abs(y1) * 0.1 || 1;
  [y0, y1] = [y0 - room, y1 + room];
  const px = (x) => PAD.left + ((x - x0) / (x1 - x0)) * (width - PAD.left - PAD.right);
  const py = (y) => PAD.top + ((y1 - value(y)) / (y1 - y0)) * (HEIGHT - PAD.top - PAD.bottom);
  const at = (column) => x0 + ((column - PAD.left) / (width - PAD.left - PAD.right)) * (x1 - x0);
  return {
    px,
    py,
    at,
    xTicks: ticks(x0, x1, 4),
    yTicks: ticks(y0, y1, 4).map((y) => (logarithmic ? 10 ** y : y)),
  };
}

// A path through the points; of a crowd in one pixel column, the lowest and the highest.
function pathOf(x, y, { px, py }, logarithmic, width) {
  const stride = Math.max(1, Math.floor(x.length / (2 * width)));
  let path = '';
  let pen = 'M';
  const put = (at) => {
    path += `${pen}${px(x[at]).toFixed(1)} ${py(y[at]).toFixed(1)}`;
    pen = 'L';
  };
  for (let begin = 0; begin < x.length; begin += stride) {
    const all = Array.from({ length: Math.min(stride, x.length - begin) }, (_, at) => begin + at);
    const known = all.filter((at) => y[at] !== null && (!logarithmic || y[at] > 0));
    if (!known.length) pen = 'M';
    else if (known.length === 1) put(known[0]);
    else {
      const low = known.reduce((a, b) => (y[a] <= y[b] ? a : b));
      const high = known.reduce((a, b) => (y[a] >= y[b] ? a : b));
      for (const at of [low, high].sort((a, b) => a - b)) put(at);
    }
  }
  return path;
}

function draw(card) {
  const { name } = card.dataset;
  const logarithmic = byId('logarithmic').checked;
  const lines = linesOf(name);
  const width = Math.max(card.clientWidth - 20, 120);
  const scales = lines.length ? scalesOf(lines, logarithmic, width) : null;
  const picture = svg('svg', { viewBox: `0 0 ${width} ${HEIGHT}` });
  card.replaceChildren(
    el('h3', {}, name, el('span', {}, lines.length === 1 ? shown(lines[0].raw.at(-1)) : '')),
    picture,
  );
  if (!scales) {
    picture.append(
      svg(
        'text',
        { x: PAD.left, y: 40 },
        lines.length ? 'no number can be drawn' : 'no run is shown',
      ),
    );
    return;
  }
  const { px, py, xTicks, yTicks } = scales;
  for (const y of yTicks) {
    picture.append(
      svg('line', { class: 'grid', x1: PAD.left, x2: width - PAD.right, y1: py(y), y2: py(y) }),
    );
    picture.append(
      svg('text', { x: PAD.left - 6, y: py(y) + 3.5, 'text-anchor': 'end' }, shown(y)),
    );
  }
  for (const x of xTicks)
    picture.append(svg('text', { x: px(x), y: HEIGHT - 6, 'text-anchor': 'middle' }, shown(x)));
  for (const line of lines) picture.append(...marksOf(line, scales, logarithmic, width));
  follow(picture, lines, scales);
}

function marksOf(line, scales, logarithmic, width) {
  const { px, py } = scales;
  const colour = `c${line.number % 8}`;
  const marks = [];
  if (line.band) {
    const safe = (y) => (logarithmic ? Math.max(y, 1e-6) : y);
    const up = line.band.map(([x, , high]) => `${px(x)} ${py(safe(high))}`);
    const down = line.band.map(([x, low]) => `${px(x)} ${py(safe(low))}`).reverse();
    marks.push(svg('path', { class: `band ${colour}`, d: `M${[...up, ...down].join('L')}Z` }));
  }
  if (line.y !== line.raw)
    marks.push(
      svg('path', {
        class: `raw ${colour}`,
        d: pathOf(line.x, line.raw, scales, logarithmic, width),
      }),
    );
  marks.push(
    svg('path', {
      class: line.faint ? `raw ${colour}` : colour,
      d: pathOf(line.x, line.y, scales, logarithmic, width),
    }),
  );
  if (line.x.length <= 12) {
    line.y.forEach((y, at) => {
      if (y !== null && (!logarithmic || y > 0))
        marks.push(
          svg('circle', {
            class: colour,
            cx: px(line.x[at]),
            cy: py(y),
            r: line.faint ? 1.5 : 2.4,
          }),
        );
    });
  }
  return marks;
}

// A line under the pointer, and the values there.
function follow(picture, lines, { px, at }) {
  const cross = svg('line', { class: 'cross', y1: PAD.top, y2: HEIGHT - PAD.bottom });
  picture.addEventListener('pointermove', (event) => {
    const box = picture.getBoundingClientRect();
    const wanted = at(event.clientX - box.left);
    const rows = lines.map((line) => {
      const near = line.x.reduce(
        (best, x, here) => (Math.abs(x - wanted) < Math.abs(line.x[best] - wanted) ? here : best),
        0,
      );
      return { line, near };
    });
    const place = rows[0].line.x[rows[0].near];
    cross.setAttribute('x1', px(place));
    cross.setAttribute('x2', px(place));
    picture.append(cross);
    const table = el(
      'table',
      {},
      ...rows.map(({ line, near }) => {
        const band = line.band?.find(([step]) => step === line.x[near]);
        return el(
          'tr',
          {},
          el('td', {}, el('i', { class: `dot c${line.number % 8}` }), line.label),
          el(
            'td',
            { class: 'num' },
            `${Number.isInteger(line.x[near]) ? 'step ' : ''}${shown(line.x[near])}`,
          ),
          el(
            'td',
            { class: 'num' },
            shown(line.raw[near]),
            band ? `  (${shown(band[1])} … ${shown(band[2])})` : '',
          ),
        );
      }),
    );
    showTip(table, event.clientX, event.clientY);
  });
  picture.addEventListener('pointerleave', () => {
    cross.remove();
    hideTip();
  });
}
