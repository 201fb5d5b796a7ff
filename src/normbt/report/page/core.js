// What every part uses: making elements, reading the data blocks, formatting numbers, the tooltip, the theme.
// Text from result files only ever becomes a text node: nothing here parses it as HTML.

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const SVG = 'http://www.w3.org/2000/svg';

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'text') node.textContent = value;
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function bytesOf(base64) {
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

async function unpack(id) {
  const stream = new Blob([bytesOf($(`#${id}`).textContent.trim())]).stream();
  return new Response(stream.pipeThrough(new DecompressionStream('gzip'))).text();
}

function formatNumber(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e7) return value.toExponential(digits - 2);
  if (Number.isInteger(value)) return value.toLocaleString('en');
  return value.toLocaleString('en', { maximumSignificantDigits: digits });
}
const formatPercent = (value, digits = 1) =>
  value === null || value === undefined ? '–' : `${(100 * value).toFixed(digits)} %`;
const formatOn = (axis) => (axis.percent ? formatPercent : formatNumber);
const count = (value) => value.toLocaleString('en');

const tooltip = {
  show(x, y, ...lines) {
    const node = $('#tooltip');
    node.replaceChildren(...lines.map((line) => (line instanceof Node ? line : h('div', { text: line }))));
    node.hidden = false;
    const box = node.getBoundingClientRect();
    node.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - box.width - 8))}px`;
    node.style.top = `${y + 18 + box.height > innerHeight ? Math.max(8, y - box.height - 12) : y + 18}px`;
  },
  hide() {
    $('#tooltip').hidden = true;
  },
};

const theme = {
  order: ['auto', 'light', 'dark'],
  read() {
    try {
      return localStorage.getItem('normbt-theme') || 'auto';
    } catch {
      return 'auto'; // storage is closed to files in some browsers: the choice then lasts as long as the page
    }
  },
  set(name) {
    if (name === 'auto') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    for (const button of $$('[data-set-theme]')) {
      button.setAttribute('aria-pressed', String(button.dataset.setTheme === name));
    }
    try {
      localStorage.setItem('normbt-theme', name);
    } catch {
      // as above
    }
    document.dispatchEvent(new Event('themechange'));
  },
};

const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
