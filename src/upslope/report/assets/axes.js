// Scales, ticks and the frame of a chart.

function ticks(low, high, wanted) {
  if (!(high > low)) return [low];
  const raw = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const result = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) result.push(Number((i * step).toPrecision(12)));
  return result;
}

const linear = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);

// Places nearest to those wanted that keep their order and a gap between them, within two ends.
function apart(wanted, gap, low, high) {
  const order = wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b]);
  const blocks = [];
  order.forEach((i, k) => {
    blocks.push({ sum: wanted[i] - k * gap, size: 1 });
    while (blocks.length > 1) {
      const [a, b] = blocks.slice(-2);
      if (a.sum / a.size <= b.sum / b.size) break;
      blocks.splice(-2, 2, { sum: a.sum + b.sum, size: a.size + b.size });
    }
  });
  const places = new Array(wanted.length);
  let k = 0;
  for (const block of blocks) for (let n = 0; n < block.size; n++, k++) places[order[k]] = block.sum / block.size + k * gap;
  const first = Math.min(...places), last = Math.max(...places);
  const shift = first < low ? low - first : last > high ? Math.max(low - first, high - last) : 0;
  return places.map((place) => place + shift);
}

function chart(width, height, margin, words) {
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words, class: "chart" });
  return { root, left: margin.left, right: width - margin.right, top: margin.top, bottom: height - margin.bottom, width, height };
}

// `show(value, digits)`: digits behind the point that tell two ticks apart.
function yAxis(frame, low, high, scale, show, title) {
  const values = ticks(low, high, Math.max(3, (frame.bottom - frame.top) / 60));
  const step = values.length > 1 ? values[1] - values[0] : 1;
  const digits = [0, 1, 2, 3, 4, 5].find((n) => Math.abs(step - Number(step.toFixed(n))) < step * 1e-6) ?? 6;
  for (const value of values) {
    const y = scale(value);
    frame.root.append(
      svg("line", { x1: frame.left, x2: frame.right, y1: y, y2: y, class: "grid" }),
      svg("text", { x: frame.left - 8, y: y + 4, class: "tick end" }, show(value, digits)));
  }
  if (title) frame.root.append(svg("text", { x: 0, y: 12, class: "axis" }, title));
}

function xAxis(frame, values, scale, show, title) {
  frame.root.append(svg("line", { x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom, class: "rule" }));
  let free = -Infinity;
  for (const value of values) {
    const x = scale(value), text = show(value), half = text.length * 3.6 + 5;
    if (x - half < free) continue;
    free = x + half;
    frame.root.append(
      svg("line", { x1: x, x2: x, y1: frame.bottom, y2: frame.bottom + 4, class: "rule" }),
      svg("text", { x, y: frame.bottom + 18, class: "tick middle" }, text));
  }
  if (title) frame.root.append(svg("text", { x: (frame.left + frame.right) / 2, y: frame.bottom + 38, class: "axis middle" }, title));
}
