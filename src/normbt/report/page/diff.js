// What differs between two texts, word by word: Myers' greedy algorithm on words, after what both begin and end with has
// been set aside. E. W. Myers, "An O(ND) Difference Algorithm and Its Variations", Algorithmica 1986.

const MOST_EDITS = 3000;

// Words, runs of spaces, and every other sign alone; Han, Kana and Thai have no spaces, so each character is a word.
const WORDS = /\s+|[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]\p{M}*|[\p{L}\p{N}\p{M}_'’]+|[^\s\p{L}\p{N}\p{M}_]/gu;
const words = (text) => text.match(WORDS) || [];

// Returns {left, right, whole}: runs {text, same} of each side; `whole` says that the texts are too different to compare.
function diffWords(leftText, rightText) {
  const [a, b] = [words(leftText), words(rightText)];
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const steps = edits(a.slice(start, a.length - end), b.slice(start, b.length - end));
  const [left, right] = [[], []];
  const push = (runs, word, same) => {
    if (runs.length && runs.at(-1).same === same) runs.at(-1).text += word;
    else runs.push({ text: word, same });
  };
  const both = (word) => {
    push(left, word, true);
    push(right, word, true);
  };
  a.slice(0, start).forEach(both);
  for (const [kind, word] of steps || []) {
    if (kind === '=') both(word);
    else push(kind === '-' ? left : right, word, false);
  }
  if (!steps) {
    a.slice(start, a.length - end).forEach((word) => push(left, word, false));
    b.slice(start, b.length - end).forEach((word) => push(right, word, false));
  }
  a.slice(a.length - end).forEach(both);
  return { left: mended(left), right: mended(right), whole: !steps };
}

// A space between two changed words belongs to the change: one mark, not two with a gap.
function mended(runs) {
  const out = [];
  runs.forEach((run, index) => {
    const between = run.same && index > 0 && index < runs.length - 1 && /^\s+$/.test(run.text) && !run.text.includes('\n');
    const same = run.same && !between;
    if (out.length && out.at(-1).same === same) out.at(-1).text += run.text;
    else out.push({ text: run.text, same });
  });
  return out;
}

// The shortest script that makes `b` of `a`: [kind, word] with kind '=', '-' or '+'; null beyond MOST_EDITS.
function edits(a, b) {
  const [n, m] = [a.length, b.length];
  const limit = Math.min(n + m, MOST_EDITS);
  const offset = limit + 1;
  const furthest = new Int32Array(2 * limit + 3);
  const trace = [];
  for (let d = 0; d <= limit; d++) {
    trace.push(furthest.slice(offset - d - 1, offset + d + 2));
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && furthest[offset + k - 1] < furthest[offset + k + 1]);
      let x = down ? furthest[offset + k + 1] : furthest[offset + k - 1] + 1;
      let y = x - k;
      while (x < n && y < m && a[x] === b[y]) {
        x++;
        y++;
      }
      furthest[offset + k] = x;
      if (x >= n && y >= m) return walkBack(a, b, trace, d);
    }
  }
  return null;
}

function walkBack(a, b, trace, last) {
  const steps = [];
  let [x, y] = [a.length, b.length];
  for (let d = last; d >= 0; d--) {
    const at = (k) => trace[d][k + d + 1];
    const k = x - y;
    const down = k === -d || (k !== d && at(k - 1) < at(k + 1));
    const before = down ? k + 1 : k - 1;
    const fromX = d === 0 ? 0 : at(before);
    const fromY = d === 0 ? 0 : fromX - before;
    while (x > fromX && y > fromY && a[x - 1] === b[y - 1]) {
      steps.push(['=', a[x - 1]]);
      x--;
      y--;
    }
    if (d > 0) {
      if (down) steps.push(['+', b[--y]]);
      else steps.push(['-', a[--x]]);
    }
  }
  return steps.reverse();
}
