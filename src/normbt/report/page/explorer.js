// The pairs: filters, the table in pages, and the dialog with one pair.

const PAGE_ROWS = 50;
const SHOW = [
  ['all', 'All'],
  ['misranked', 'Misranked'],
  ['correct', 'Correct'],
  ['tie', 'Ties'],
  ['quiet', 'Quiet mistakes'],
];

// A table as the page holds it: columns by name, numbers as they are, choices as indices into names.
function readTable(meta, packed) {
  const column = Object.fromEntries(meta.columns.map((one) => [one.name, one]));
  const names = {};
  const numbers = {};
  for (const one of meta.columns) {
    const cells = packed.columns[one.name];
    if (one.kind === 'choice') {
      names[one.name] = cells.names;
      numbers[one.name] = cells.of;
    } else numbers[one.name] = cells;
  }
  const shown = (name, row) => {
    const value = numbers[name][row];
    if (value === null) return '–';
    if (column[name].kind === 'choice') return names[name][value];
    if (column[name].kind === 'flag') return value ? 'yes' : 'no';
    return formatNumber(value);
  };
  return { ...meta, ids: packed.ids, lines: packed.lines, column, names, numbers, shown };
}

function mountExplorer(report, data) {
  const root = $('#explorer');
  if (!root || !data.tables.length) return;
  const state = { run: 0, search: '', show: 'all', choices: {}, ranges: {}, sort: null, page: 0, order: [], open: null };
  const table = () => data.tables[state.run];
  const visible = new Set(data.tables.flatMap((one) => one.columns.filter((c) => c.shown).map((c) => c.name)));
  let texts = null; // Promise of [prompt, chosen, rejected] by record
  let searchable = null;
  const loadTexts = () =>
    (texts ??= report.texts.kept
      ? unpack('texts').then((lines) => lines.split('\n').filter(Boolean).map((line) => JSON.parse(line)))
      : Promise.resolve([]));

  // ---- filters -------------------------------------------------------------------------------------------------
  const controls = h('form', { class: 'filters', role: 'search', onsubmit: (event) => event.preventDefault() });
  const chips = h('div', { class: 'chips' });
  const status = h('p', { class: 'status', role: 'status', 'aria-live': 'polite' });
  const body = h('div', { class: 'table-scroll' });
  const pager = h('nav', { class: 'pager', 'aria-label': 'Pages of the table' });
  root.replaceChildren(controls, chips, status, body, pager);

  const debounce = (action, wait) => {
    let timer = 0;
    return (...args) => {
      clearTimeout(timer);
      timer = setTimeout(() => action(...args), wait);
    };
  };
  const changed = () => {
    state.page = 0;
    refresh();
  };
  const typed = debounce(changed, 160);

  function buildControls() {
    const one = table();
    const label = (words, control, kind = '') => h('label', { class: `field ${kind}` }, h('span', { text: words }), control);
    const option = (value, words, selected) => h('option', { value, selected, text: words });
    const parts = [];
    if (data.tables.length > 1) {
      parts.push(
        label('Run', h('select', { id: 'run', onchange: (event) => switchRun(+event.target.value) },
          data.tables.map((each, index) => option(index, each.run, index === state.run)))),
      );
    }
    parts.push(
      label('Search', h('input', {
        id: 'search', type: 'search', placeholder: report.texts.kept ? 'prompt, answers or id' : 'id', value: state.search, autocomplete: 'off',
        oninput: (event) => {
          state.search = event.target.value;
          typed();
        },
      }), 'wide'),
    );
    for (const column of one.columns.filter((c) => c.kind === 'choice' && c.filter && one.names[c.name].length > 1)) {
      const counts = new Map();
      one.numbers[column.name].forEach((value) => counts.set(value, (counts.get(value) || 0) + 1));
      const names = one.names[column.name].map((name, index) => [name, counts.get(index)]).sort((a, b) => a[0].localeCompare(b[0]));
      parts.push(
        label(column.label, h('select', {
          id: `choice-${column.name}`,
          onchange: (event) => {
            if (event.target.value === '') delete state.choices[column.name];
            else state.choices[column.name] = event.target.selectedOptions[0].dataset.name;
            changed();
          },
        }, option('', 'all', !state.choices[column.name]),
          names.map(([name, total]) => {
            const node = option(name, `${name} (${count(total)})`, state.choices[column.name] === name);
            node.dataset.name = name;
            return node;
          }))),
      );
    }
    const show = SHOW.filter(([name]) => name === 'all' || name === 'correct' || one.column[name]);
    parts.push(
      h('fieldset', { class: 'field show' }, h('legend', { text: 'Show' }),
        h('div', { class: 'segments' }, show.map(([name, words]) =>
          h('label', {}, h('input', { type: 'radio', name: 'show', value: name, checked: state.show === name, onchange: () => {
            state.show = name;
            changed();
          } }), h('span', { text: words }))))),
    );
    for (const column of one.columns.filter((c) => c.kind === 'number' && c.filter)) {
      const [low, high] = extent(one.numbers[column.name]);
      const range = state.ranges[column.name] || [null, null];
      const input = (end) =>
        h('input', {
          type: 'number', step: 'any', id: `${column.name}-${end ? 'max' : 'min'}`, placeholder: end ? 'max' : 'min',
          value: range[end] === null ? null : +range[end].toPrecision(5), 'aria-label': `${column.label} ${end ? 'at most' : 'at least'}`,
          oninput: (event) => {
            const next = [...(state.ranges[column.name] || [null, null])];
            next[end] = event.target.value === '' ? null : +event.target.value;
            if (next[0] === null && next[1] === null) delete state.ranges[column.name];
            else state.ranges[column.name] = next;
            typed();
          },
        });
      parts.push(h('fieldset', { class: 'field range' }, h('legend', {}, column.label, h('small', { text: low === undefined ? '' : ` ${formatNumber(low, 2)} to ${formatNumber(high, 2)}` })),
        input(0), h('span', { 'aria-hidden': 'true', text: 'to' }), input(1)));
    }
    parts.push(
      h('div', { class: 'field sort-field' }, label('Sort by', h('select', {
        id: 'sort',
        onchange: (event) => {
          state.sort = event.target.value ? { name: event.target.value, down: true } : null;
          changed();
        },
      }, option('', 'order of the file', !state.sort), option('id', 'Pair', state.sort?.name === 'id'),
        one.columns.map((c) => option(c.name, c.label, state.sort?.name === c.name)))),
      h('button', { type: 'button', id: 'direction', class: 'quiet-button', 'aria-label': 'Reverse the order', title: 'Reverse the order', onclick: () => {
        if (state.sort) state.sort.down = !state.sort.down;
        changed();
      }, text: '⇅' })),
    );
    parts.push(
      h('details', { class: 'columns' }, h('summary', { text: 'Columns' }),
        h('div', {}, one.columns.map((c) =>
          h('label', { title: c.help }, h('input', { type: 'checkbox', value: c.name, checked: visible.has(c.name), onchange: (event) => {
            if (event.target.checked) visible.add(c.name);
            else visible.delete(c.name);
            renderTable();
          } }), ` ${c.label}`, h('small', { text: ` ${c.help}` }))))),
    );
    controls.replaceChildren(...parts);
  }

  function switchRun(index) {
    state.run = index;
    for (const name of Object.keys(state.choices)) if (!table().column[name]) delete state.choices[name];
    for (const name of Object.keys(state.ranges)) if (!table().column[name]) delete state.ranges[name];
    if (state.sort && state.sort.name !== 'id' && !table().column[state.sort.name]) state.sort = null;
    buildControls();
    changed();
  }

  const filtering = () =>
    Boolean(state.search.trim()) || state.show !== 'all' || Object.keys(state.choices).length > 0 || Object.keys(state.ranges).length > 0;

  async function refresh() {
    const one = table();
    const wanted = state.search.trim().toLowerCase();
    if (wanted && !searchable) {
      status.textContent = 'Unpacking the texts…';
      searchable = (await loadTexts()).map((parts) => parts.filter((part) => part !== null).join('\n').toLowerCase());
      if (state.search.trim().toLowerCase() !== wanted) return;
    }
    const tests = [];
    for (const [name, value] of Object.entries(state.choices)) {
      const index = one.names[name].indexOf(value);
      tests.push((row) => one.numbers[name][row] === index);
    }
    for (const [name, [low, high]] of Object.entries(state.ranges)) {
      const cells = one.numbers[name];
      // The page holds five digits of every number, so an end that came from elsewhere is met to five digits.
      const slack = (value) => Math.abs(value) * 1e-5;
      tests.push((row) => cells[row] !== null && (low === null || cells[row] >= low - slack(low)) && (high === null || cells[row] <= high + slack(high)));
    }
    if (state.show === 'correct') tests.push((row) => one.numbers.misranked[row] === 0);
    else if (state.show !== 'all') tests.push((row) => one.numbers[state.show][row] === 1);
    if (wanted) {
      tests.push((row) => one.ids[row].toLowerCase().includes(wanted) || (one.record[row] >= 0 && searchable[one.record[row]].includes(wanted)));
    }
    state.order = [];
    for (let row = 0; row < one.ids.length; row++) if (tests.every((test) => test(row))) state.order.push(row);
    sortRows(one);
    data.matching = filtering() ? ((set) => (index) => (index === state.run ? set : null))(new Set(state.order)) : null;
    document.dispatchEvent(new Event('matcheschange'));
    renderChips();
    renderTable();
  }

  function sortRows(one) {
    if (!state.sort) return;
    const { name, down } = state.sort;
    const sign = down ? -1 : 1;
    if (name === 'id') state.order.sort((a, b) => sign * one.ids[a].localeCompare(one.ids[b], 'en', { numeric: true }));
    else if (one.column[name].kind === 'choice') {
      const words = (row) => (one.numbers[name][row] === null ? null : one.names[name][one.numbers[name][row]]);
      state.order.sort((a, b) => lastIfNull(words(a), words(b), (p, q) => sign * p.localeCompare(q)));
    } else {
      const cells = one.numbers[name];
      state.order.sort((a, b) => lastIfNull(cells[a], cells[b], (p, q) => sign * (p - q)));
    }
  }
  const lastIfNull = (a, b, compare) => (a === null ? (b === null ? 0 : 1) : b === null ? -1 : compare(a, b));

  function renderChips() {
    const chip = (words, remove) =>
      h('button', { type: 'button', class: 'chip', 'aria-label': `Remove the filter ${words}`, onclick: () => {
        remove();
        buildControls();
        changed();
      } }, words, h('span', { 'aria-hidden': 'true', text: ' ×' }));
    const one = table();
    const parts = [
      ...Object.entries(state.choices).map(([name, value]) => chip(`${one.column[name].label}: ${value}`, () => delete state.choices[name])),
      ...Object.entries(state.ranges).map(([name, [low, high]]) =>
        chip(`${one.column[name].label} ${low === null ? '' : `≥ ${formatNumber(low, 3)}`} ${high === null ? '' : `≤ ${formatNumber(high, 3)}`}`, () => delete state.ranges[name])),
    ];
    if (state.show !== 'all') parts.push(chip(SHOW.find(([name]) => name === state.show)[1], () => (state.show = 'all')));
    if (state.search.trim()) parts.push(chip(`contains “${state.search.trim()}”`, () => (state.search = '')));
    if (parts.length > 1) {
      parts.push(h('button', { type: 'button', class: 'chip clear', text: 'Clear all', onclick: () => {
        Object.assign(state, { search: '', show: 'all', choices: {}, ranges: {} });
        buildControls();
        changed();
      } }));
    }
    chips.replaceChildren(...parts);
  }

  function renderTable() {
    const one = table();
    const pages = Math.max(1, Math.ceil(state.order.length / PAGE_ROWS));
    state.page = Math.min(state.page, pages - 1);
    const rows = state.order.slice(state.page * PAGE_ROWS, (state.page + 1) * PAGE_ROWS);
    const columns = one.columns.filter((c) => visible.has(c.name));
    const heading = (name, label, help) => {
      const active = state.sort?.name === name;
      return h('th', { scope: 'col', 'aria-sort': active ? (state.sort.down ? 'descending' : 'ascending') : null, class: one.column[name]?.kind === 'number' ? 'number' : null },
        h('button', { type: 'button', title: help, 'data-sort': name, onclick: () => {
          state.sort = active && !state.sort.down ? null : { name, down: !active };
          const select = $('#sort');
          if (select) select.value = state.sort?.name ?? '';
          changed();
          $(`[data-sort="${name}"]`)?.focus();
        } }, label, active ? h('span', { 'aria-hidden': 'true', text: state.sort.down ? '\u00a0↓' : '\u00a0↑' }) : null));
    };
    const cell = (column, row) => {
      const value = one.numbers[column.name][row];
      const attributes = { 'data-label': column.label, class: column.kind === 'number' ? 'number' : null };
      if (column.kind === 'flag') return h('td', attributes, value ? h('span', { class: `badge ${column.name}`, text: column.label.toLowerCase() }) : '');
      return h('td', { ...attributes, dir: column.kind === 'choice' ? 'auto' : null, text: one.shown(column.name, row) });
    };
    body.replaceChildren(
      h('table', { class: 'pairs' },
        h('caption', { class: 'visually-hidden', text: `Pairs of ${one.run}; open one to read it` }),
        h('thead', {}, h('tr', {}, heading('id', 'Pair', 'id of the pair'), columns.map((c) => heading(c.name, c.label, c.help)))),
        h('tbody', {}, rows.map((row) =>
          h('tr', { 'data-row': row, onclick: (event) => {
            if (!event.target.closest('button') && !getSelection().toString()) openPair(row);
          } },
            h('th', { scope: 'row' },
              h('button', { type: 'button', class: 'open', dir: 'auto', onclick: () => openPair(row), text: one.ids[row] }),
              h('span', { class: 'excerpt', dir: 'auto', 'data-record': one.record[row] })),
            columns.map((column) => cell(column, row)))))),
    );
    const shownOf = state.order.length === one.ids.length ? `${count(one.ids.length)} pairs` : `${count(state.order.length)} of ${count(one.ids.length)} pairs`;
    status.textContent = state.order.length ? shownOf : 'No pair fits these filters. Remove one above.';
    const first = state.page * PAGE_ROWS;
    const go = (page, words, name) => h('button', { type: 'button', id: name, class: 'quiet-button', disabled: page < 0 || page >= pages, onclick: () => {
      state.page = page;
      renderTable();
      $(`#${name}`)?.focus();
      if ($('table.pairs').getBoundingClientRect().top < 0) root.scrollIntoView({ block: 'start' });
    }, text: words });
    pager.replaceChildren(
      ...(pages > 1
        ? [go(0, '« First', 'page-first'), go(state.page - 1, '‹ Previous', 'page-previous'),
            h('span', { text: `${count(first + 1)}–${count(Math.min(first + PAGE_ROWS, state.order.length))} of ${count(state.order.length)}` }),
            go(state.page + 1, 'Next ›', 'page-next'), go(pages - 1, 'Last »', 'page-last')]
        : []),
    );
    if (report.texts.kept) loadTexts().then((all) => {
      for (const node of $$('.excerpt', body)) {
        const record = all[node.dataset.record];
        if (record) node.textContent = excerpt(record[0] ?? record[1]);
      }
    });
  }

  const excerpt = (words) => {
    const line = words.slice(0, 400).replace(/\s+/g, ' ').trim();
    return line.length > 110 ? `${line.slice(0, 109)}…` : line;
  };

  // ---- one pair ------------------------------------------------------------------------------------------------
  const dialog = $('#pair');
  let view = 'side';

  const rank = (one, name, row) => {
    const value = one.numbers[name][row];
    if (value === null || !one.sampled) return null;
    let below = 0;
    let all = 0;
    for (let other = 0; other < one.sampled; other++) {
      const cell = one.numbers[name][other];
      if (cell === null) continue;
      all++;
      if (cell < value) below++;
    }
    return all ? below / all : null;
  };

  async function openPair(row) {
    const one = table();
    state.open = row;
    const place = state.order.indexOf(row);
    const step = (by) => {
      const next = state.order[place + by];
      if (next !== undefined) openPair(next);
    };
    const badges = one.columns.filter((c) => c.kind === 'flag' && c.name !== 'correct' && one.numbers[c.name][row]).map((c) => h('span', { class: `badge ${c.name}`, text: c.label.toLowerCase() }));
    const kinds = one.columns.filter((c) => c.kind === 'choice' && one.numbers[c.name][row] !== null).map((c) => h('span', { class: 'kind', title: c.label, dir: 'auto', text: one.shown(c.name, row) }));
    const focused = dialog.contains(document.activeElement) ? document.activeElement.id : '';
    const main = h('div', { class: 'pair-texts' }, h('p', { class: 'quiet', text: 'Unpacking the texts…' }));
    const link = `#${new URLSearchParams({ run: one.run, pair: one.ids[row] })}`;
    dialog.replaceChildren(
      h('header', {},
        h('div', {}, h('h2', { id: 'pair-title', dir: 'auto', text: one.ids[row] }), h('p', { class: 'kinds' }, kinds, badges)),
        h('div', { class: 'tools' },
          h('button', { type: 'button', id: 'pair-previous', class: 'quiet-button', disabled: place <= 0, 'aria-label': 'Previous pair', title: 'Previous pair (←)', onclick: () => step(-1), text: '‹' }),
          h('span', { class: 'quiet', text: place >= 0 ? `${count(place + 1)} of ${count(state.order.length)}` : '' }),
          h('button', { type: 'button', id: 'pair-next', class: 'quiet-button', disabled: place < 0 || place + 1 >= state.order.length, 'aria-label': 'Next pair', title: 'Next pair (→)', onclick: () => step(1), text: '›' }),
          h('button', { type: 'button', id: 'pair-link', class: 'quiet-button', text: 'Copy link', onclick: async (event) => {
            try {
              await navigator.clipboard.writeText(location.href.split('#')[0] + link);
              event.target.textContent = 'Copied';
            } catch {
              event.target.textContent = 'The link is in the address bar';
            }
          } }),
          h('button', { type: 'button', id: 'pair-close', class: 'quiet-button', 'aria-label': 'Close', title: 'Close (Esc)', onclick: () => dialog.close(), text: '×' }))),
      h('div', { class: 'pair-body' }, numbersTable(row), main));
    history.replaceState(null, '', link);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    // What was pressed is a new element now; keys go on to work where it can still be pressed.
    ((focused && $(`#${focused}:enabled`, dialog)) || $('#pair-close')).focus();
    const record = one.record[row] >= 0 ? (await loadTexts())[one.record[row]] : null;
    if (state.open !== row) return;
    main.replaceChildren(...(record ? pairTexts(record) : [missing(one, row)]));
  }

  const missing = (one, row) =>
    h('p', { class: 'quiet', id: 'no-texts', text: one.hasTexts
      ? `This report holds the texts of ${count(report.texts.kept)} of the ${count(report.texts.wanted)} pairs it shows, and not of this one. It is line ${count(one.lines[row] + 1)} of ${one.path}.`
      : `The result file holds no texts; this pair is line ${count(one.lines[row] + 1)} of ${one.path}. A diagnosis holds them.` });

  // Every number of the pair; the same pair in other runs stands beside it.
  function numbersTable(row) {
    const id = table().ids[row];
    const columns = data.tables
      .map((one, index) => ({ one, row: index === state.run ? row : one.ids.indexOf(id) }))
      .filter(({ one, row: found }) => found >= 0 && one.columns.some((c) => table().column[c.name]));
    const several = columns.length > 1;
    const line = (c) =>
      h('tr', {}, h('th', { scope: 'row', title: c.help, text: c.label }),
        columns.map(({ one, row: found }) => {
          if (!one.column[c.name]) return h('td', { text: '–' });
          const share = c.kind === 'number' ? rank(one, c.name, found) : null;
          return h('td', {}, h('span', { text: one.shown(c.name, found) }),
            h('small', { title: 'share of pairs with a smaller value', text: share === null ? '' : `above ${Math.floor(100 * share)} %` }));
        }));
    const all = table().columns.filter((c) => c.kind !== 'choice');
    const [key, rest] = [all.filter((c) => c.kind === 'number' && c.shown), all.filter((c) => !(c.kind === 'number' && c.shown))];
    const head = several ? h('thead', {}, h('tr', {}, h('td', {}), columns.map(({ one }) => h('th', { scope: 'col', text: one.run })))) : null;
    return h('div', { class: 'pair-numbers' },
      h('table', {}, head, h('tbody', {}, key.map(line))),
      h('details', { open: several ? null : innerWidth > 900 }, h('summary', { text: 'More numbers' }), h('table', {}, head?.cloneNode(true) ?? null, h('tbody', {}, rest.map(line)))));
  }

  function pairTexts([prompt, chosen, rejected]) {
    const answers = h('div', { class: 'answers' });
    const note = h('p', { class: 'quiet', role: 'note' });
    const runs = (parts, kind) => parts.map((part) => (part.same ? document.createTextNode(part.text) : h('mark', { class: kind, text: part.text })));
    const answer = (name, kind, children) =>
      h('article', { class: `answer ${kind}` }, h('h3', { text: name }), h('div', { class: 'text', dir: 'auto' }, children));
    const draw = () => {
      const different = view === 'side' ? diffWords(chosen, rejected) : null;
      note.textContent = !different ? '' : chosen === rejected ? 'The two answers are equal.' : different.whole
        ? 'The answers differ in more than 3,000 words: everything between what they begin and end with is marked.'
        : 'Marked words are in one answer only.';
      answers.replaceChildren(
        answer('Chosen', 'chosen', different ? runs(different.left, 'only-chosen') : [chosen]),
        answer('Rejected', 'rejected', different ? runs(different.right, 'only-rejected') : [rejected]));
    };
    const choose = h('label', { class: 'toggle' }, h('input', { type: 'checkbox', id: 'show-diff', checked: view === 'side', onchange: (event) => {
      view = event.target.checked ? 'side' : 'plain';
      draw();
    } }), ' Mark what differs');
    draw();
    return [
      prompt === null ? null : h('article', { class: 'prompt' }, h('h3', { text: 'Prompt' }), h('div', { class: 'text', dir: 'auto', text: prompt })),
      h('div', { class: 'diff-bar' }, choose, note),
      answers,
    ].filter(Boolean);
  }

  dialog.addEventListener('close', () => {
    if (dialog.open) return; // another pair was opened before this event came
    const row = state.open;
    state.open = null;
    history.replaceState(null, '', location.pathname + location.search);
    $(`tr[data-row="${row}"] .open`, body)?.focus();
  });
  dialog.addEventListener('click', (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener('keydown', (event) => {
    if (event.target.matches('input, select, textarea')) return;
    if (event.key === 'ArrowRight') $('#pair-next').click();
    if (event.key === 'ArrowLeft') $('#pair-previous').click();
  });

  // ---- what others ask for -------------------------------------------------------------------------------------
  document.addEventListener('explore', ({ detail }) => {
    Object.assign(state, { search: '', show: 'all', choices: { ...detail.choices }, ranges: { ...detail.ranges } });
    if (detail.run !== undefined) state.run = detail.run;
    switchRun(state.run);
    if (!detail.stay) root.closest('section').scrollIntoView({ block: 'start' });
  });
  document.addEventListener('openpair', ({ detail }) => {
    if (detail.run !== state.run) switchRun(detail.run);
    openPair(detail.row);
  });
  document.addEventListener('keydown', (event) => {
    if (event.key !== '/' || dialog.open || event.target.matches('input, select, textarea')) return;
    event.preventDefault();
    $('#search').focus();
  });

  const fromAddress = async () => {
    const wanted = new URLSearchParams(location.hash.slice(1));
    if (!wanted.has('pair')) return;
    const runs = data.tables.map((one, index) => index).filter((index) => !wanted.has('run') || data.tables[index].run === wanted.get('run'));
    for (const index of runs) {
      const row = data.tables[index].ids.indexOf(wanted.get('pair'));
      if (row < 0) continue;
      if (index !== state.run) switchRun(index);
      return openPair(row);
    }
    status.textContent = `The pair ${wanted.get('pair')} is not among those this report shows.`;
  };
  buildControls();
  refresh().then(fromAddress);
  addEventListener('hashchange', fromAddress);
}
