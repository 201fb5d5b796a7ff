// Start: unpack the tables, then draw. `normbtReport` is there for tests and for curious readers in the console.

async function start() {
  for (const button of $$('[data-set-theme]')) button.addEventListener('click', () => theme.set(button.dataset.setTheme));
  theme.set(theme.read());
  const report = JSON.parse($('#report').textContent);
  const data = { tables: [], matching: null };
  if (report.tables.length && typeof DecompressionStream === 'undefined') {
    $('#failure').hidden = false;
    $('#failure').textContent = 'This browser cannot unpack the pairs (no DecompressionStream). Any browser from 2023 on can.';
    report.tables = [];
    report.charts = report.charts.map((chart) => (chart.type === 'scatter' ? { ...chart, panels: [] } : chart));
  }
  data.tables = await Promise.all(report.tables.map(async (meta, index) => readTable(meta, JSON.parse(await unpack(`table-${index}`)))));
  mountCharts(report.charts, data);
  mountExplorer(report, data);
  document.documentElement.dataset.ready = 'yes';
  return { report, data };
}

globalThis.normbtReport = { diffWords, formatNumber, linearTicks, logTicks, started: start() };
