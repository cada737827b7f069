"use strict";
// Computations of the explorers: plain functions of numbers, without elements, tested against the results of Python.
// A matrix is a Float32Array of n * n scores, row by row; NaN for a pair without a score.

const TYPES = { uint8: Uint8Array, uint16: Uint16Array, int32: Int32Array, float32: Float32Array };

/** A packed array, in base64 or as a DataView, as {shape, values, at(i, j, ...)}; `at` returns the part with these leading indices. */
function unpack({ dtype, shape, base64, bytes }) {
  const raw = bytes === undefined
    ? Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))
    : new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength).slice(); // a copy, which is aligned for numbers
  const values = new TYPES[dtype](raw.buffer);
  const at = (...indices) => {
    let size = values.length, start = 0;
    indices.forEach((index, axis) => { size /= shape[axis]; start += index * size; });
    return values.subarray(start, start + size);
  };
  return { shape, values, at };
}

const TABLES = new Map(); // levels -> score of each code

/** Scores in [0, 1] from codes: the code `levels` means 1, `levels` + 1 means no score. */
function decoded(codes, levels) {
  if (!TABLES.has(levels)) TABLES.set(levels, Float32Array.from({ length: levels + 2 }, (_, code) => (code > levels ? NaN : code / levels)));
  const table = TABLES.get(levels), scores = new Float32Array(codes.length);
  for (let i = 0; i < codes.length; i++) scores[i] = table[codes[i]];
  return scores;
}

function difference(scores, others) {
  const result = new Float32Array(scores.length);
  for (let i = 0; i < scores.length; i++) result[i] = scores[i] - others[i];
  return result;
}

/** The rows and columns `order` of a matrix of n classes, in that order; the same matrix if nothing changes. */
function ordered(matrix, n, order) {
  const m = order.length, places = Int32Array.from(order), result = new Float32Array(m * m);
  if (m === n && places.every((place, i) => place === i)) return matrix;
  for (let i = 0, k = 0; i < m; i++) {
    const row = places[i] * n;
    for (let j = 0; j < m; j++, k++) result[k] = matrix[row + places[j]];
  }
  return result;
}

/** A copy of a matrix of n rows with NaN for all pairs unless `kept` is true for row and column; `kept` (n). */
function within(matrix, n, kept) {
  const result = new Float32Array(n * n).fill(NaN);
  for (let i = 0; i < n; i++) {
    for (let j = 0; kept[i] && j < n; j++) if (kept[j]) result[i * n + j] = matrix[i * n + j];
  }
  return result;
}

/** `positions`, sorted, or if there are more than `most`, the first few of every class, at least two, of as many classes as fit. */
function balanced(positions, labels, most) {
  if (positions.length <= most) return positions;
  const members = new Map();
  positions.forEach((p) => members.set(labels[p], [...(members.get(labels[p]) ?? []), p]));
  const each = Math.max(2, Math.floor(most / members.size));
  const classes = [...members.keys()].sort((a, b) => a - b);
  return classes.flatMap((c) => members.get(c).slice(0, each)).slice(0, most).sort((a, b) => a - b);
}

/** Mean scores {within, between} of pairs of the same and of different `groups` (n); NaN if there are none. */
function groupMeans(matrix, groups) {
  const n = groups.length, group = Int32Array.from(groups);
  let same = 0, sames = 0, all = 0, count = 0;
  for (let i = 0, k = 0; i < n; i++) {
    for (let j = 0; j < n; j++, k++) {
      const s = matrix[k];
      if (s !== s) continue;
      all += s;
      count += 1;
      if (group[i] === group[j]) { same += s; sames += 1; }
    }
  }
  return { within: same / sames, between: (all - same) / (count - sames) };
}

/** Difference of each score from the one expected from its row and column: score - row mean - column mean + mean, without the diagonal. */
function surprise(matrix, n) {
  const row = new Float64Array(n), column = new Float64Array(n), inRow = new Int32Array(n), inColumn = new Int32Array(n);
  let sum = 0, count = 0;
  for (let i = 0, k = 0; i < n; i++) {
    for (let j = 0; j < n; j++, k++) {
      const s = matrix[k];
      if (i === j || s !== s) continue;
      row[i] += s; inRow[i] += 1; column[j] += s; inColumn[j] += 1; sum += s; count += 1;
    }
  }
  const result = new Float32Array(n * n).fill(NaN), mean = sum / count;
  for (let i = 0; i < n; i++) { row[i] /= inRow[i]; column[i] /= inColumn[i]; }
  for (let i = 0, k = 0; i < n; i++) {
    for (let j = 0; j < n; j++, k++) if (i !== j) result[k] = matrix[k] - row[i] - column[j] + mean;
  }
  return result;
}

/** The `count` pairs of different rows with the highest values, or with `signed` the largest absolute values: [{row, column, value}]. */
function topPairs(values, n, count, signed = false) {
  const size = signed ? Math.abs : (v) => v;
  const best = [];
  let least = -Infinity; // value that a pair must exceed
  for (let row = 0, k = 0; row < n; row++) {
    for (let column = 0; column < n; column++, k++) {
      const v = values[k], s = size(v);
      if (!(s > least) || row === column) continue;
      let place = best.length;
      while (place > 0 && size(best[place - 1].value) < s) place -= 1;
      best.splice(place, 0, { row, column, value: v });
      if (best.length > count) best.pop();
      if (best.length === count) least = size(best[count - 1].value);
    }
  }
  return best;
}

/** Lowest and highest of some values, without NaN; [0, 1] if there are none. */
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) {
    if (v < low) low = v;
    if (v > high) high = v;
  }
  return low > high ? [0, 1] : [low, high];
}

/** Lowest and highest score of pairs of different rows; [0, 1] if there are none. */
function extentOff(matrix, n) {
  let low = Infinity, high = -Infinity;
  for (let i = 0, k = 0; i < n; i++) {
    for (let j = 0; j < n; j++, k++) {
      const v = matrix[k];
      if (i === j) continue;
      if (v < low) low = v;
      if (v > high) high = v;
    }
  }
  return low > high ? [0, 1] : [low, high];
}

/** Colour range of scores: 0 to 1, or with `fitted` the range of the scores off the diagonal. */
function colourRange(matrix, n, fitted, isDifference) {
  const [low, high] = fitted ? extentOff(matrix, n) : [0, 1];
  if (!isDifference) return fitted && high > low ? [low, high] : [0, 1];
  const most = fitted ? Math.max(Math.abs(low), Math.abs(high)) || 0.5 : 0.5;
  return [-most, most];
}

/** Runs of equal neighbours: [{group, from, to}], `to` not included. */
function spans(groups) {
  const found = [];
  Array.from(groups).forEach((group, i) => {
    const last = found[found.length - 1];
    if (last && last.group === group) last.to = i + 1;
    else found.push({ group, from: i, to: i + 1 });
  });
  return found;
}

/** The entry of `numbers` that is nearest to `wanted`; of two equally near ones the first. */
function nearest(numbers, wanted) {
  return numbers.reduce((best, x) => (Math.abs(x - wanted) < Math.abs(best - wanted) ? x : best), numbers[0]);
}

/** Round numbers between `low` and `high`, about `count` of them. */
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw || 1));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999) ?? power;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(+(k * step).toPrecision(12));
  return found;
}

/** Whether point (x, y) is inside the polygon of [x, y] corners. */
function inside(x, y, corners) {
  let odd = false;
  for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
    const [ax, ay] = corners[i], [bx, by] = corners[j];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
  }
  return odd;
}

/** Indices of the classes that a search text matches: the class with that name, else all whose names contain it. */
function found(names, text) {
  const wanted = text.trim().toLowerCase(), low = names.map((name) => name.toLowerCase());
  if (!wanted) return [];
  const same = low.flatMap((name, c) => (name === wanted ? [c] : []));
  return same.length ? same : low.flatMap((name, c) => (name.includes(wanted) ? [c] : []));
}
