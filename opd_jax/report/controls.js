// What a pointer does to tokens, the controls of the viewer, and the beginning of it all.

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
    if (!token || token === before) return;
    pinned = token;
    token.classList.add('pinned');
    tell(token);
  });
  addEventListener('keydown', (event) => event.key === 'Escape' && unpin());
  addEventListener('scroll', unpin, { passive: true });
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
