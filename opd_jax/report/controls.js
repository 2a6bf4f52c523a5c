// What a pointer and keys do to tokens, the controls of the viewer, and the beginning of it all.

// --- what a pointer does ----------------------------------------------------------------------------

let pinned = null;
function unpin() {
  pinned?.classList.remove('pinned');
  pinned = null;
  hideTip();
}
function tell(token) {
  const row = owners.get(token.parentElement);
  const box = token.getBoundingClientRect();
  showTip(tipOf(row, Number(token.dataset.at), kindsOf([row])), box.left, box.bottom - 12);
}

function startPointer() {
  const tokenAt = (event) => event.target.closest?.('.tokens span');
  byId('responses').addEventListener('pointerover', (event) => {
    const token = tokenAt(event);
    if (pinned) return;
    if (token) tell(token);
    else hideTip();
  });
  byId('responses').addEventListener('pointerleave', () => pinned || hideTip());
  document.addEventListener('click', (event) => {
    const token = tokenAt(event);
    const before = pinned;
    unpin();
    if (token && token !== before) pin(token);
  });
  addEventListener('scroll', follows, { passive: true });
}

function pin(token) {
  unpin();
  pinned = token;
  token.classList.add('pinned');
  tell(token);
}

// A token that keys have chosen is kept while it scrolls into view; what a pointer chose is let go.
function follows() {
  const box = pinned?.getBoundingClientRect();
  const isSeen = box && box.bottom > 0 && box.top < innerHeight;
  if (isSeen && pinned.parentElement === document.activeElement) tell(pinned);
  else unpin();
}

// --- what keys do: tab goes from response to response, arrows from token to token --------------------

function startKeys() {
  byId('responses').addEventListener('focusin', ({ target }) => {
    const isNew = target.matches('.tokens:focus-visible') && pinned?.parentElement !== target;
    if (isNew && target.firstChild) pin(target.firstChild);
  });
  byId('responses').addEventListener('focusout', ({ target }) => {
    if (pinned?.parentElement === target) unpin();
  });
  addEventListener('keydown', (event) => {
    if (event.key === 'Escape') unpin();
    const box = event.target.closest?.('.tokens');
    const token = box?.firstChild && keyed(box, event.key);
    if (!token) return;
    event.preventDefault();
    token.scrollIntoView({ block: 'nearest' });
    pin(token);
  });
}

// The token that a key leads to; at the edge of a response it stays where it is.
function keyed(box, key) {
  const here = pinned?.parentElement === box ? pinned : null;
  if (key === 'Home') return box.firstChild;
  if (key === 'End') return box.lastChild;
  if (!/^Arrow/.test(key)) return null;
  if (!here) return box.firstChild;
  if (key === 'ArrowRight') return here.nextSibling ?? here;
  if (key === 'ArrowLeft') return here.previousSibling ?? here;
  return onNextLine(here, key === 'ArrowDown' ? 'nextSibling' : 'previousSibling');
}

// Of the line below or above, the token that begins nearest.
function onNextLine(here, next) {
  let line = null;
  let best = here;
  const apart = (token) => Math.abs(token.offsetLeft - here.offsetLeft);
  for (let token = here[next]; token; token = token[next]) {
    if (token.offsetTop === here.offsetTop) continue;
    line ??= token.offsetTop;
    if (token.offsetTop !== line) break;
    if (best === here || apart(token) < apart(best)) best = token;
  }
  return best;
}

// --- controls ---------------------------------------------------------------------------------------

function slider() {
  const recorded = runs[Number(byId('run').value)].recorded;
  byId('step').max = recorded.length - 1;
  const before = Number(view.get('step') ?? recorded.at(-1)[0]);
  byId('step').value = Math.max(
    0,
    recorded.findLastIndex(([step]) => step <= before),
  );
}

function startViewer() {
  const known = runs
    .map((run, number) => ({ run, number }))
    .filter(({ run }) => run.recorded.length);
  if (!known.length) {
    byId('responses').replaceChildren(
      el(
        'p',
        { class: 'empty' },
        'None of the runs kept rollouts: bind experiment.Experiment.rollouts.',
      ),
    );
    return;
  }
  const options = known.map(({ run, number }) => el('option', { value: number }, run.name));
  byId('run').replaceChildren(...options);
  byId('against').replaceChildren(
    el('option', { value: '' }, 'nothing'),
    ...options.map((option) => option.cloneNode(true)),
  );
  for (const id of ['run', 'against', 'sort', 'search', ...BOUNDS]) {
    if (
      view.has(id) &&
      (byId(id).tagName !== 'SELECT' ||
        [...byId(id).options].some((each) => each.value === view.get(id)))
    )
      byId(id).value = view.get(id);
  }
  slider();
  const on = (id, event, act) =>
    byId(id).addEventListener(event, () => {
      remember(id, byId(id).value);
      act();
    });
  on('run', 'change', () => {
    slider();
    load();
  });
  on('against', 'change', load);
  on('colour', 'change', recolour);
  for (const id of ['search', ...BOUNDS]) on(id, 'input', list);
  on('sort', 'change', list);
  byId('step').addEventListener('input', () => {
    remember('step', runs[Number(byId('run').value)].recorded[Number(byId('step').value)][0]);
    load();
  });
  startPointer();
  startKeys();
  load();
}

// --- the beginning ----------------------------------------------------------------------------------

unpack('index').then((index) => {
  if (index.length) {
    startCurves(index);
    let began = false;
    opened.set('tokens', () => {
      if (!began) startViewer();
      began = true;
    });
  }
  const tabs = [...byId('tabs').children].map((link) => link.dataset.tab);
  open(tabs.includes(view.get('tab')) ? view.get('tab') : tabs[0]);
});
