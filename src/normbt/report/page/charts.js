// The four kinds of chart, drawn from the values in the page. SVG takes its colours from the style sheet, so it follows
// the theme; the points of a scatter are on a canvas and are drawn again when the theme changes.

const FONT = 12;

function linearTicks(low, high, wanted) {
  const span = high - low || 1;
  const rough = span / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((candidate) => candidate >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(+(i * step).toPrecision(12));
  return ticks;
}

function logTicks(low, high, wanted) {
  const from = Math.floor(Math.log10(low) + 1e-9);
  const to = Math.ceil(Math.log10(high) - 1e-9);
  for (const digits of [[1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let power = from; power <= to; power++) {
      for (const digit of digits) {
        const tick = +(digit * 10 ** power).toPrecision(3);
        if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
      }
    }
    if (ticks.length <= wanted + 2 || digits.length === 1) {
      const every = Math.ceil(ticks.length / (wanted + 2));
      return ticks.filter((_, index) => index % every === 0);
    }
  }
  return [];
}

// A scale of values onto pixels: place(value), value(place), ticks(wanted).
function makeScale(axis, values, from, to) {
  const usable = values.filter((v) => v !== null && Number.isFinite(v) && (axis.scale !== 'log' || v > 0));
  let low = axis.low ?? Math.min(...usable);
  let high = axis.high ?? Math.max(...usable);
  if (!usable.length) [low, high] = axis.scale === 'log' ? [0.1, 10] : [0, 1];
  if (axis.scale === 'log') {
    const pad = Math.max(Math.log10(high / low) * 0.04, 0.02);
    low /= 10 ** pad;
    high *= 10 ** pad;
  } else {
    const pad = (high - low || Math.abs(high) || 1) * 0.05;
    if (axis.low === null || axis.low === undefined) low -= pad;
    if (axis.high === null || axis.high === undefined) high += pad;
  }
  const f = axis.scale === 'log' ? Math.log : (v) => v;
  const g = axis.scale === 'log' ? Math.exp : (v) => v;
  const [a, b] = [f(low), f(high)];
  return {
    low,
    high,
    place: (value) => from + ((f(value) - a) / (b - a || 1)) * (to - from),
    value: (place) => g(a + ((place - from) / (to - from || 1)) * (b - a)),
    ticks: (wanted) => (axis.scale === 'log' ? logTicks : linearTicks)(low, high, wanted),
  };
}

const tickLabel = (axis, value) =>
  axis.percent ? `${+(100 * value).toFixed(2)} %` : formatNumber(value, 3);

const extent = (values) => {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value === null || !Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low > high ? [] : [low, high];
};
const extentPositive = (values, scale) => extent(scale === 'log' ? values.filter((v) => v > 0) : values);

const text = (x, y, words, options = {}) =>
  s('text', { x, y, 'font-size': FONT, class: 'tick', ...options }, document.createTextNode(words));

let measuring = null;
function widthOf(words, size = FONT) {
  measuring ??= document.createElement('canvas').getContext('2d');
  measuring.font = `${size}px system-ui, sans-serif`;
  return measuring.measureText(words).width;
}

function frame(svg, { x, y, box, xAxis, yAxis, xLabel, yLabel, grid = 'both' }) {
  const wantedX = Math.max(2, Math.floor((box.right - box.left) / 75));
  const wantedY = Math.max(2, Math.floor((box.bottom - box.top) / 45));
  if (x) {
    for (const tick of x.ticks(wantedX)) {
      const place = x.place(tick);
      if (grid !== 'y') svg.append(s('line', { class: 'grid', x1: place, x2: place, y1: box.top, y2: box.bottom }));
      svg.append(text(place, box.bottom + 16, tickLabel(xAxis, tick), { 'text-anchor': 'middle' }));
    }
  }
  if (y) {
    for (const tick of y.ticks(wantedY)) {
      const place = y.place(tick);
      svg.append(s('line', { class: 'grid', x1: box.left, x2: box.right, y1: place, y2: place }));
      svg.append(text(box.left - 7, place + 4, tickLabel(yAxis, tick), { 'text-anchor': 'end' }));
    }
  }
  if (xLabel) {
    svg.append(text((box.left + box.right) / 2, box.bottom + 36, xLabel, { 'text-anchor': 'middle', class: 'axis-label' }));
  }
  if (yLabel) svg.append(text(2, box.top - 9, yLabel, { class: 'axis-label' }));
}

const svgOf = (width, height, label) =>
  s('svg', { viewBox: `0 0 ${width} ${height}`, width, height, role: 'img', 'aria-label': label });

function legend(entries) {
  return h(
    'ul',
    { class: 'legend' },
    entries.map(({ name, tone, shape = 'square' }) =>
      h('li', {}, s('svg', { viewBox: '0 0 16 12', width: 16, height: 12, 'aria-hidden': 'true' }, swatch(tone, shape)), name),
    ),
  );
}
function swatch(tone, shape) {
  if (shape === 'line') return s('line', { x1: 0, x2: 16, y1: 6, y2: 6, class: `line ${tone}` });
  if (shape === 'dashed') return s('line', { x1: 0, x2: 16, y1: 6, y2: 6, class: 'reference' });
  if (shape === 'dot') return s('circle', { cx: 8, cy: 6, r: 4.5, class: `dot ${tone}` });
  return s('rect', { x: 2, y: 0, width: 12, height: 12, rx: 2, class: `bar ${tone}` });
}

function columnsFor(width, panels, most, narrowest) {
  return Math.max(1, Math.min(most, panels, Math.floor(width / narrowest)));
}

// Something the pointer may rest on or the keyboard may reach; with a filter it is a button.
function interactive(node, lines, filter, label) {
  node.addEventListener('pointermove', (event) => tooltip.show(event.clientX, event.clientY, ...lines));
  node.addEventListener('pointerleave', tooltip.hide);
  if (filter) {
    fill(node, { tabindex: 0, role: 'button', 'aria-label': `${label}: show these pairs`, class: 'clickable' }, []);
    const apply = () => {
      tooltip.hide();
      document.dispatchEvent(new CustomEvent('explore', { detail: filter }));
    };
    node.addEventListener('click', apply);
    node.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' || event.key === ' ') {
        event.preventDefault();
        apply();
      }
    });
  }
  return node;
}

const drawBars = (chart, root, width) => {
  const columns = columnsFor(width, chart.panels.length, 2, 420);
  const outer = (width - (columns - 1) * 24) / columns;
  const values = chart.panels.flatMap(([, series]) => series.flatMap((one) => one.marks.map((mark) => mark?.value ?? null)));
  const parts = chart.panels.map(([title, series], panel) => {
    const box = { left: 46, right: outer - 4, top: 26, bottom: 250 };
    const svg = svgOf(outer, 292, `${chart.title} ${title}`);
    const y = makeScale({ ...chart.y, high: Math.max(...extent(values), chart.reference ?? 0) * 1.05 || 1 }, values, box.bottom, box.top);
    frame(svg, { y, box, yAxis: chart.y, yLabel: chart.y.label, xLabel: chart.x_label });
    const slot = (box.right - box.left) / chart.groups.length;
    const bar = Math.min((slot * 0.8) / series.length, 34);
    chart.groups.forEach((group, index) => {
      const centre = box.left + slot * (index + 0.5);
      const filter = chart.filters[panel]?.[index];
      const lines = [`${chart.x_label.replace(/ \(.*/, '')} ${group}`];
      const node = s('g', {}, s('rect', { class: 'hit', x: centre - slot / 2, y: box.top, width: slot, height: box.bottom - box.top }));
      series.forEach((one, place) => {
        const value = one.marks[index]?.value;
        if (value === null || value === undefined) return;
        const top = y.place(value);
        node.append(
          s('rect', {
            class: `bar ${one.tone}`,
            x: centre + (place - series.length / 2) * bar + 0.5,
            y: Math.min(top, y.place(0)),
            width: bar - 1,
            height: Math.max(Math.abs(y.place(0) - top), 0.5),
            rx: 1.5,
          }),
        );
        lines.push(`${one.name}: ${formatOn(chart.y)(value)}`);
      });
      if (filter) {
        const [low, high] = filter.ranges.distance;
        lines.push(`distance ${formatNumber(low)} to ${formatNumber(high)}`);
      }
      svg.append(interactive(node, lines, filter, lines.join(', ')));
      svg.append(text(centre, box.bottom + 16, group, { 'text-anchor': 'middle' }));
    });
    if (chart.reference !== null) {
      const place = y.place(chart.reference);
      svg.append(s('line', { class: 'reference', x1: box.left, x2: box.right, y1: place, y2: place }));
    }
    return h('div', { class: 'panel' }, title ? h('h4', { text: title }) : null, svg);
  });
  const entries = chart.panels[0][1].map(({ name, tone }) => ({ name, tone }));
  if (chart.reference !== null) entries.push({ name: chart.reference_label, shape: 'dashed' });
  root.replaceChildren(legend(entries), grid(columns, parts));
};

const grid = (columns, parts) => h('div', { class: `panels columns-${columns}` }, parts);

const drawSpans = (chart, root, width) => {
  const step = Math.min(9, 22 / chart.series.length + 2);
  const row = Math.max(26, chart.series.length * step + 12);
  const names = chart.groups.map((group) => (group.length > 28 ? `${group.slice(0, 27)}…` : group));
  const left = Math.min(Math.max(...names.map((name) => widthOf(name))) + 14, width * 0.4);
  const box = { left, right: width - 18, top: 8, bottom: 8 + row * chart.groups.length };
  const svg = svgOf(width, box.bottom + 44, chart.title);
  const values = chart.series.flatMap((one) => one.marks.flatMap((m) => (m ? [m.value, m.low, m.high] : [])));
  if (chart.reference !== null) values.push(chart.reference);
  const x = makeScale(chart.x, extentPositive(values, chart.x.scale), box.left, box.right);
  frame(svg, { x, box, xAxis: chart.x, xLabel: chart.x.label, grid: 'x' });
  if (chart.reference !== null) {
    const place = x.place(chart.reference);
    svg.append(s('line', { class: 'reference', x1: place, x2: place, y1: box.top, y2: box.bottom }));
  }
  chart.groups.forEach((group, index) => {
    const top = box.top + row * index;
    const lines = [group];
    const node = s('g', {}, s('rect', { class: 'hit', x: 0, y: top, width, height: row }));
    if (index) node.append(s('line', { class: 'grid faint', x1: 0, x2: box.right, y1: top, y2: top }));
    node.append(text(box.left - 10, top + row / 2 + 4, names[index], { 'text-anchor': 'end', class: 'tick strong' }));
    chart.series.forEach((one, place) => {
      const mark = one.marks[index];
      if (!mark || mark.value === null) return;
      const y = top + row / 2 + (place - (chart.series.length - 1) / 2) * step;
      const span = (from, to, kind) =>
        s('line', { class: `${kind} ${one.tone}`, x1: x.place(from), x2: x.place(to), y1: y, y2: y });
      const shown = (value) => chart.x.scale !== 'log' || value > 0;
      if (mark.low !== null && mark.high !== null && shown(mark.low)) node.append(span(mark.low, mark.high, 'whisker'));
      if (mark.inner_low !== null && shown(mark.inner_low)) node.append(span(mark.inner_low, mark.inner_high, 'inner'));
      if (shown(mark.value)) node.append(s('circle', { class: `dot ${one.tone}`, cx: x.place(mark.value), cy: y, r: 4.5 }));
      const format = formatOn(chart.x);
      const around = mark.low !== null ? ` [${format(mark.low)}, ${format(mark.high)}]` : '';
      lines.push(`${one.name}: ${format(mark.value)}${around}`);
    });
    svg.append(interactive(node, lines, chart.filters[index], lines.join(', ')));
  });
  const entries = chart.series.map(({ name, tone }) => ({ name, tone, shape: 'dot' }));
  if (chart.reference !== null) entries.push({ name: chart.reference_label, shape: 'dashed' });
  root.replaceChildren(entries.length > 1 ? legend(entries) : '', svg);
};

const pathOf = (xs, ys, x, y) => {
  let path = '';
  let pen = 'M';
  xs.forEach((value, index) => {
    if (ys[index] === null) pen = 'M';
    else {
      path += `${pen}${x.place(value).toFixed(1)} ${y.place(ys[index]).toFixed(1)}`;
      pen = 'L';
    }
  });
  return path;
};

const drawLines = (chart, root, width) => {
  const columns = columnsFor(width, chart.panels.length, 3, 280);
  const outer = (width - (columns - 1) * 24) / columns;
  const entries = new Map();
  const parts = chart.panels.map(([title, axis, lines]) => {
    const box = { left: 48, right: outer - 8, top: 22, bottom: 160 };
    const svg = svgOf(outer, 202, `${chart.title}: ${title}`);
    const all = (names) => lines.flatMap((line) => names.flatMap((name) => [...line[name]]));
    const x = makeScale({ scale: 'linear', low: extent(all(['x']))[0], high: extent(all(['x']))[1] }, all(['x']), box.left, box.right);
    const y = makeScale(axis, extent(all(['y', 'faint', 'low', 'high'])), box.bottom, box.top);
    frame(svg, { x, y, box, xAxis: {}, yAxis: axis, xLabel: chart.x_label, yLabel: axis.label, grid: 'y' });
    for (const line of lines) {
      if (line.points) {
        line.x.forEach((value, index) => {
          if (line.y[index] !== null) svg.append(s('circle', { class: `dot ${line.tone}`, cx: x.place(value), cy: y.place(line.y[index]), r: 4 }));
        });
        continue;
      }
      if (line.low.length) {
        const there = line.x.map((_, i) => i).filter((i) => line.low[i] !== null && line.high[i] !== null);
        const upper = there.map((i) => `${x.place(line.x[i]).toFixed(1)} ${y.place(line.high[i]).toFixed(1)}`);
        const lower = there.toReversed().map((i) => `${x.place(line.x[i]).toFixed(1)} ${y.place(line.low[i]).toFixed(1)}`);
        svg.append(s('path', { class: `band ${line.tone}`, d: `M${[...upper, ...lower].join('L')}Z` }));
      }
      if (line.faint.length) svg.append(s('path', { class: `line faint ${line.tone}`, d: pathOf(line.x, line.faint, x, y) }));
      svg.append(s('path', { class: `line ${line.tone}${line.dashed ? ' dashed' : ''}`, d: pathOf(line.x, line.y, x, y) }));
      if (!line.dashed) entries.set(line.name, { name: line.name, tone: line.tone, shape: 'line' });
    }
    const cursor = s('line', { class: 'cursor', y1: box.top, y2: box.bottom, visibility: 'hidden' });
    svg.append(cursor);
    svg.addEventListener('pointermove', (event) => {
      const scale = outer / svg.getBoundingClientRect().width;
      const at = x.value((event.clientX - svg.getBoundingClientRect().left) * scale);
      const found = lines
        .map((line) => {
          let nearest = 0;
          line.x.forEach((value, index) => {
            if (Math.abs(value - at) < Math.abs(line.x[nearest] - at)) nearest = index;
          });
          return { line, nearest };
        })
        .filter(({ line }) => line.x.length);
      const step = found.filter(({ line }) => !line.points).map(({ line, nearest }) => line.x[nearest])[0] ?? found[0]?.line.x[found[0].nearest];
      if (step === undefined) return;
      fill(cursor, { x1: x.place(step), x2: x.place(step), visibility: 'visible' }, []);
      tooltip.show(event.clientX, event.clientY, `${chart.x_label} ${formatNumber(step)}`,
        ...found.map(({ line, nearest }) => `${line.name}: ${formatOn(axis)(line.y[nearest])}${line.points ? ` at ${line.x[nearest]}` : ''}`));
    });
    svg.addEventListener('pointerleave', () => {
      tooltip.hide();
      cursor.setAttribute('visibility', 'hidden');
    });
    return h('div', { class: 'panel' }, h('h4', { text: title }), svg);
  });
  root.replaceChildren(entries.size > 1 ? legend([...entries.values()]) : '', grid(columns, parts));
};

// Colour of an error: away from one half in either direction, as far as `reach`.
function errorRamp(reach) {
  const stops = ['error-low', 'error-mid', 'error-high'].map((name) => {
    const value = colourOf(name);
    return [1, 3, 5].map((place) => parseInt(value.slice(place, place + 2), 16));
  });
  const mix = (a, b, t) => a.map((channel, index) => Math.round(channel + (b[index] - channel) * t));
  const colours = Array.from({ length: 65 }, (_, index) => {
    const t = index / 32 - 1;
    return `rgb(${(t < 0 ? mix(stops[1], stops[0], -t) : mix(stops[1], stops[2], t)).join(',')})`;
  });
  return (error) => colours[Math.round((Math.max(-1, Math.min(1, (error - 0.5) / reach)) + 1) * 32)];
}

function errorLegend(reach) {
  const steps = 24;
  const bar = s('svg', { viewBox: `0 0 ${steps * 5} 10`, width: steps * 5, height: 10, 'aria-hidden': 'true' });
  const ramp = errorRamp(reach);
  for (let i = 0; i < steps; i++) {
    bar.append(s('rect', { x: i * 5, y: 0, width: 5.5, height: 10, fill: ramp(0.5 - reach + ((i + 0.5) / steps) * 2 * reach) }));
  }
  const end = (value) => formatNumber(Math.max(0, Math.min(1, value)), 2);
  return h('div', { class: 'legend ramp' }, 'prediction error', h('span', { text: end(0.5 - reach) }), bar, h('span', { text: end(0.5 + reach) }));
}

// Rows of a panel: those drawn at random, and of these the ones in its range. The page holds five digits of a number.
function panelRows(panel, table) {
  const rows = Array.from({ length: table.sampled }, (_, row) => row);
  if (!panel.where) return rows;
  const [name, low, high] = panel.where;
  return rows.filter((row) => {
    const value = table.numbers[name][row];
    return value !== null && value >= low * (1 - 1e-5) && value <= high * (1 + 1e-5);
  });
}

const drawScatter = (chart, root, width, data) => {
  const columns = columnsFor(width, chart.panels.length, chart.panels.length > 2 ? 5 : 2, chart.panels.length > 2 ? 190 : 400);
  const outer = (width - (columns - 1) * 24) / columns;
  const height = chart.panels.length > 2 ? 240 : Math.min(460, Math.max(320, outer * 0.55));
  const column = (table, name) => data.tables[table].numbers[name];
  const rowsOf = new Map(chart.panels.map((panel) => [panel, panelRows(panel, data.tables[panel.table])]));
  const everything = (name) => chart.panels.flatMap((panel) => rowsOf.get(panel).map((row) => column(panel.table, name)[row]));
  const parts = chart.panels.map((panel) => {
    const box = { left: outer < 260 ? 38 : 54, right: outer - 10, top: 24, bottom: height - 46 };
    const x = makeScale(chart.x, extentPositive(everything(chart.x_column), chart.x.scale), box.left, box.right);
    const y = makeScale(chart.y, extentPositive(everything(chart.y_column), chart.y.scale), box.bottom, box.top);
    const svg = svgOf(outer, height, `${chart.title} ${panel.title}: ${panel.note}`);
    frame(svg, { x, y, box, xAxis: chart.x, yAxis: chart.y, xLabel: chart.x.label, yLabel: chart.y.label });
    const canvas = h('canvas', { 'aria-hidden': 'true' });
    const ratio = Math.min(devicePixelRatio || 1, 2);
    canvas.width = Math.round(outer * ratio);
    canvas.height = Math.round(height * ratio);
    const [xs, ys] = [column(panel.table, chart.x_column), column(panel.table, chart.y_column)];
    const places = rowsOf.get(panel)
      .filter((row) => Number.isFinite(xs[row]) && Number.isFinite(ys[row]) && (chart.x.scale !== 'log' || xs[row] > 0) && (chart.y.scale !== 'log' || ys[row] > 0))
      .map((row) => [row, x.place(xs[row]), y.place(ys[row])]);
    const many = places.length > 1500;
    const radius = many ? 1.9 : 2.8;
    const paint = (matching) => {
      const pen = canvas.getContext('2d');
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(0, 0, outer, height);
      const ramp = chart.colour ? errorRamp(chart.reach) : null;
      const single = colourOf('data');
      const errors = chart.colour ? column(panel.table, chart.colour) : null;
      const layer = (inside, alpha) => {
        pen.globalAlpha = alpha;
        for (const [row, px, py] of places) {
          if (matching && matching.has(row) !== inside) continue;
          pen.fillStyle = ramp ? ramp(errors[row]) : single;
          pen.beginPath();
          pen.arc(px, py, radius, 0, 6.2832);
          pen.fill();
        }
      };
      if (matching) layer(false, 0.07);
      layer(true, many ? 0.6 : 0.8);
    };
    paint(data.matching?.(panel.table));
    const overlay = svgOf(outer, height, '');
    overlay.setAttribute('aria-hidden', 'true');
    if (panel.line) {
      const [[x1, x2], [y1, y2]] = panel.line;
      overlay.append(s('line', { class: 'fit', x1: x.place(x1), x2: x.place(x2), y1: y.place(y1), y2: y.place(y2) }));
    }
    const ring = s('circle', { class: 'ring', r: 6, visibility: 'hidden' });
    const brush = s('rect', { class: 'brush', visibility: 'hidden' });
    overlay.append(ring, brush);
    const stack = h('div', { class: 'stack' }, svg, canvas, overlay);
    scatterPointer({ stack, overlay, places, x, y, ring, brush, box, outer, chart, panel, data });
    stack.repaint = paint;
    stack.table = panel.table;
    const heading = panel.title || panel.note ? h('h4', {}, panel.title, panel.note ? h('small', { text: panel.note }) : null) : null;
    return h('div', { class: 'panel' }, heading, stack);
  });
  root.replaceChildren(chart.colour ? errorLegend(chart.reach) : '', grid(columns, parts));
};

function scatterPointer({ stack, overlay, places, x, y, ring, brush, box, outer, chart, panel, data }) {
  let start = null;
  const at = (event) => {
    const bounds = overlay.getBoundingClientRect();
    const scale = outer / bounds.width;
    return [(event.clientX - bounds.left) * scale, (event.clientY - bounds.top) * scale];
  };
  const nearest = ([px, py]) => {
    let [found, best] = [null, 14 ** 2];
    const matching = data.matching?.(panel.table);
    for (const place of places) {
      const away = (place[1] - px) ** 2 + (place[2] - py) ** 2;
      if (away < best && (!matching || matching.has(place[0]))) [found, best] = [place, away];
    }
    return found;
  };
  stack.addEventListener('pointermove', (event) => {
    const here = at(event);
    if (start) {
      const [left, right] = [start[0], here[0]].sort((a, b) => a - b);
      const [top, bottom] = [start[1], here[1]].sort((a, b) => a - b);
      fill(brush, { x: left, y: top, width: right - left, height: bottom - top, visibility: 'visible' }, []);
      tooltip.hide();
      return;
    }
    const found = nearest(here);
    ring.setAttribute('visibility', found ? 'visible' : 'hidden');
    if (!found) return tooltip.hide();
    fill(ring, { cx: found[1], cy: found[2] }, []);
    const table = data.tables[panel.table];
    tooltip.show(event.clientX, event.clientY, h('strong', { dir: 'auto', text: table.ids[found[0]] }),
      ...[chart.x_column, chart.y_column, 'error', 'category']
        .filter((name) => table.column[name])
        .map((name) => `${table.column[name].label}: ${table.shown(name, found[0])}`));
  });
  stack.addEventListener('pointerleave', () => {
    ring.setAttribute('visibility', 'hidden');
    if (!start) tooltip.hide();
  });
  stack.addEventListener('pointerdown', (event) => {
    if (event.pointerType !== 'mouse' || event.button !== 0) return;
    start = at(event);
    stack.setPointerCapture(event.pointerId);
  });
  const finish = (event) => {
    const here = at(event);
    const from = start;
    start = null;
    brush.setAttribute('visibility', 'hidden');
    if (from && Math.hypot(here[0] - from[0], here[1] - from[1]) > 8) {
      const range = (scale, a, b) => [scale.value(a), scale.value(b)].sort((p, q) => p - q);
      const ranges = { [chart.x_column]: range(x, from[0], here[0]), [chart.y_column]: range(y, from[1], here[1]) };
      if (panel.where) ranges[panel.where[0]] = [panel.where[1], panel.where[2]];
      document.dispatchEvent(new CustomEvent('explore', { detail: { run: panel.table, ranges, stay: true } }));
      return;
    }
    const found = nearest(here);
    if (found) document.dispatchEvent(new CustomEvent('openpair', { detail: { run: panel.table, row: found[0] } }));
  };
  stack.addEventListener('pointerup', (event) => {
    if (start || event.pointerType !== 'mouse') finish(event);
  });
  stack.addEventListener('pointercancel', () => {
    start = null;
    brush.setAttribute('visibility', 'hidden');
  });
}

const DRAW = { bars: drawBars, spans: drawSpans, lines: drawLines, scatter: drawScatter };

// The numbers of a chart as a table, for those who cannot see it, and for copying.
function numbersOf(chart) {
  const rows = [];
  const format = (axis, mark) => {
    if (!mark || mark.value === null) return '–';
    const shown = formatOn(axis);
    return mark.low !== null ? `${shown(mark.value)} [${shown(mark.low)}, ${shown(mark.high)}]` : shown(mark.value);
  };
  if (chart.type === 'spans') {
    rows.push(['', ...chart.series.map((one) => one.name)]);
    chart.groups.forEach((group, i) => rows.push([group, ...chart.series.map((one) => format(chart.x, one.marks[i]))]));
  } else {
    const series = chart.panels.flatMap(([title, ones]) => ones.map((one) => ({ ...one, name: title ? `${title}: ${one.name}` : one.name })));
    rows.push([chart.x_label, ...series.map((one) => one.name)]);
    chart.groups.forEach((group, i) => rows.push([group, ...series.map((one) => format(chart.y, one.marks[i]))]));
  }
  const [head, ...body] = rows;
  return h('table', { class: 'numbers' },
    h('thead', {}, h('tr', {}, head.map((cell) => h('th', { scope: 'col', text: cell })))),
    h('tbody', {}, body.map(([first, ...cells]) => h('tr', {}, h('th', { scope: 'row', text: first }), cells.map((cell) => h('td', { text: cell }))))));
}

function mountCharts(charts, data) {
  const drawAll = () => {
    for (const root of $$('[data-chart]')) {
      const chart = charts[root.dataset.chart];
      const width = Math.floor(root.clientWidth);
      if (width > 0) DRAW[chart.type](chart, root, width, data);
    }
  };
  for (const details of $$('[data-numbers]')) {
    details.append(h('div', { class: 'scroll' }, numbersOf(charts[details.dataset.numbers])));
  }
  drawAll();
  let [last, waiting] = [document.documentElement.clientWidth, 0];
  addEventListener('resize', () => {
    if (document.documentElement.clientWidth === last) return;
    last = document.documentElement.clientWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 80);
  });
  const repaint = () => $$('.stack').forEach((stack) => stack.repaint(data.matching?.(stack.table)));
  document.addEventListener('themechange', drawAll);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawAll);
  document.addEventListener('matcheschange', repaint);
}
