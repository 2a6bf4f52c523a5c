'use strict';
// What all parts of the page share. Text of a run becomes text nodes only: nothing here parses markup.

const byId = (id) => document.getElementById(id);
const SVG = 'http://www.w3.org/2000/svg';

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function svg(tag, attributes = {}, text = '') {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text) node.textContent = text;
  return node;
}

// A number as a person reads it: four digits, no more zeros than needed.
function shown(value) {
  if (value === null || value === undefined) return '–';
  if (typeof value !== 'number') return String(value);
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3)
    return value
      .toExponential(2)
      .replace(/\.?0*e\+?/, 'e')
      .replaceAll('-', '−');
  return String(Number(value.toPrecision(4))).replace('-', '−');
}

async function unpack(id) {
  const text = atob(byId(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < bytes.length; at += 1) bytes[at] = text.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Response(stream).json();
}

// The last few chunks stay unpacked: the slider goes back and forth.
const kept = new Map();
function chunk(id) {
  const found = kept.get(id) ?? unpack(id);
  kept.delete(id);
  kept.set(id, found);
  if (kept.size > 6) kept.delete(kept.keys().next().value);
  return found;
}

// --- what the address says: a view is a link ------------------------------------------------------

const view = new Map(new URLSearchParams(location.hash.slice(1)));
function remember(name, value) {
  if (String(value ?? '') === '') view.delete(name);
  else view.set(name, String(value));
  const address = `#${new URLSearchParams([...view])}`;
  if (address !== location.hash) location.replace(address);
}

// --- light and dark -------------------------------------------------------------------------------

const darkWanted = matchMedia('(prefers-color-scheme: dark)');
function paint() {
  const theme = view.get('theme') ?? (darkWanted.matches ? 'dark' : 'light');
  document.documentElement.dataset.theme = theme;
  return theme;
}
darkWanted.addEventListener('change', paint);
byId('theme').addEventListener('click', () => {
  remember('theme', paint() === 'dark' ? 'light' : 'dark');
  paint();
});
paint();

// --- tabs -----------------------------------------------------------------------------------------

const opened = new Map(); // tab -> what to do when it is shown
function open(tab) {
  for (const part of document.querySelectorAll('section[data-tab]'))
    part.hidden = part.dataset.tab !== tab;
  for (const link of byId('tabs').children) {
    if (link.dataset.tab === tab) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  hideTip();
  opened.get(tab)?.();
}
byId('tabs').addEventListener('click', (event) => {
  const link = event.target.closest('a');
  if (!link) return;
  event.preventDefault();
  remember('tab', link.dataset.tab);
  open(link.dataset.tab);
  scrollTo(0, 0);
});
addEventListener('hashchange', () => {
  const now = new Map(new URLSearchParams(location.hash.slice(1)));
  if (String([...now]) !== String([...view])) location.reload(); // somebody pasted another view
});

// --- the tip ----------------------------------------------------------------------------------------

function showTip(content, x, y) {
  const tip = byId('tip');
  tip.replaceChildren(content);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${y + 18 + height < innerHeight ? y + 18 : Math.max(4, y - height - 12)}px`;
}
function hideTip() {
  byId('tip').hidden = true;
}
