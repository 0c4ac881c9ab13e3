// Strategies against each other: matrices of shares, and the critical-difference diagram.

// A matrix of numbers: rows and columns by name. `paint(value)` -> [class, opacity].
function matrix(rowNames, columnNames, values, paint, show, words) {
  const said = h("p", { class: "note said" }), legend = h("p", { class: "note said" });
  const element = figure((width) => {
    const letters = Math.max(4, ...rowNames.map((name) => [...name].length));
    const narrow = width < 560;
    const labels = Math.min(narrow ? 144 : 190, 14 + 6.8 * letters + (narrow ? 18 : 0));
    const heads = columnNames.map((name) => [...shorten(name, 20)].length);
    const upright = !narrow && columnNames.length <= 24 && (width - labels) / columnNames.length >= 20;
    const overhang = upright ? Math.max(0, ...heads.map((n, j) => 4.6 * n - 24 * (columnNames.length - 1 - j))) : 2;
    const cell = Math.min(56, (width - labels - overhang) / columnNames.length);
    const top = upright ? Math.min(120, 18 + 5.6 * Math.max(...heads)) : 20;
    const height = top + Math.min(cell, 36) * rowNames.length + 2;
    const tall = Math.min(cell, 36), numbers = cell >= 26;
    const frame = chart(width, height, { left: labels, right: 0, top, bottom: 0 }, words);
    // Where there is no room for the names of columns, numbers stand for them.
    const numbered = !upright && columnNames.some((name, j) => name !== rowNames[j]);
    legend.textContent = numbered ? `Columns: ${columnNames.map((name, i) => `${i + 1} ${name}`).join(", ")}.` : "";
    columnNames.forEach((name, j) => {
      const x = labels + cell * (j + 0.5);
      frame.root.append(upright
        ? svg("text", { transform: `translate(${x + 3} ${top - 6}) rotate(-50)`, class: "tick" }, shorten(name, 20))
        : svg("text", { x, y: top - 6, class: "tick middle" }, cell >= 13 || j % 2 === 0 ? String(j + 1) : ""));
    });
    rowNames.forEach((name, i) => {
      const y = top + tall * i;
      const text = narrow || !upright ? `${columnNames.length === rowNames.length ? `${i + 1} ` : ""}${name}` : name;
      frame.root.append(svg("text", { x: labels - 8, y: y + tall / 2 + 4, class: "tick end strong" }, shorten(text, narrow ? 19 : 27)));
      columnNames.forEach((other, j) => {
        const value = values[i][j];
        if (!known(value)) return;
        const [colour, opacity] = paint(value);
        const tell = () => { said.textContent = `${name} – ${other}: ${show(value)}`; };
        const box = svg("rect", {
          x: labels + cell * j + 0.5, y: y + 0.5, width: Math.max(1, cell - 1), height: tall - 1, class: `cell ${colour}`, "fill-opacity": opacity.toFixed(3),
          pointerenter: tell, pointerdown: tell,
        }, svg("title", {}, `${name} – ${other}: ${show(value)}`));
        frame.root.append(box);
        if (numbers) frame.root.append(svg("text", { x: labels + cell * (j + 0.5), y: y + tall / 2 + 4, class: "tick middle value" }, show(value)));
      });
    });
    return frame.root;
  });
  return h("div", { class: "matrix" }, element, said, legend);
}

const diverging = (value) => [value >= 0.5 ? "blue" : "orange", 0.06 + Math.abs(value - 0.5) * 1.1];
const sequential = (most) => (value) => ["blue", most > 0 ? 0.04 + 0.56 * (value / most) : 0.04];

function winMatrix(wins) {
  if (!wins) return null;
  return [
    h("h3", {}, "Who beats whom"),
    matrix(wins.names, wins.names, wins.shares, diverging, (v) => percent(v, 0), "How often each strategy beats each other, in percent"),
    note("Percent of pairs of seed and budget in which the strategy of the row is above that of the column; ties count half. Budgets at which all share one model are left out. Blue: more than half."),
  ];
}

// Groups of neighbours in rank whose ranks differ by less than the critical difference.
function groups(sorted, difference) {
  const result = [];
  sorted.forEach((rank, i) => {
    let j = i;
    while (j + 1 < sorted.length && sorted[j + 1] - rank < difference) j++;
    if (j > i && (!result.length || j > result[result.length - 1][1])) result.push([i, j]);
  });
  return result;
}

function rankDiagram(ranks, state) {
  if (!ranks) return null;
  const order = ranks.names.map((name, i) => ({ name, rank: ranks.ranks[i] })).sort((a, b) => a.rank - b.rank);
  const k = order.length, bars = groups(order.map((one) => one.rank), ranks.difference);
  const words = `Mean ranks: ${order.map((one) => `${one.name} ${one.rank.toFixed(2)}`).join(", ")}`;
  const ruler = (root, x, y) => root.append(
    svg("line", { x1: x(1), x2: x(1) + x(2) * ranks.difference - x(1) * ranks.difference, y1: y, y2: y, class: "ruler" }),
    svg("text", { x: x(1), y: y - 6, class: "tick" }, `critical difference ${ranks.difference.toFixed(2)}`));
  const wide = (width) => {
    const half = Math.ceil(k / 2), height = 96 + 14 * bars.length + 22 * half;
    const frame = chart(width, height, { left: 190, right: 190, top: 60, bottom: 10 }, words);
    const x = linear(1, k, frame.left, frame.right), line = 62;
    ruler(frame.root, x, 22);
    frame.root.append(svg("line", { x1: frame.left, x2: frame.right, y1: line, y2: line, class: "rule" }));
    for (let rank = 1; rank <= k; rank++) frame.root.append(
      svg("line", { x1: x(rank), x2: x(rank), y1: line - 5, y2: line, class: "rule" }),
      svg("text", { x: x(rank), y: line - 9, class: "tick middle" }, k <= 12 || rank % 2 ? rank : ""));
    bars.forEach(([i, j], n) => frame.root.append(svg("line", { x1: x(order[i].rank) - 4, x2: x(order[j].rank) + 4, y1: line + 11 + 12 * n, y2: line + 11 + 12 * n, class: "clique" })));
    order.forEach((one, i) => {
      const left = i < half, row = left ? i : k - 1 - i;
      const y = line + 26 + 14 * bars.length + 22 * row, edge = left ? frame.left - 14 : frame.right + 14;
      const style = look(state.slots.get(one.name));
      frame.root.append(svg("g", { class: style.colour },
        svg("path", { d: `M${x(one.rank)} ${line}V${y}H${edge}`, class: "elbow" }),
        svg("text", { x: left ? edge - 6 : edge + 6, y: y + 4, class: `name ${left ? "end" : ""}` }, `${shorten(one.name, 18)} ${one.rank.toFixed(1)}`)));
    });
    return frame.root;
  };
  const narrow = (width) => {
    const letters = Math.max(...order.map((one) => [...one.name].length));
    const margin = { left: Math.min(150, 16 + 6.8 * letters), right: 18 + 9 * bars.length, top: 56, bottom: 6 };
    const frame = chart(width, 62 + 24 * k, margin, words);
    const x = linear(1, k, frame.left + 4, frame.right - 4);
    ruler(frame.root, x, 18);
    const step = Math.ceil(k / Math.max(2, Math.floor((frame.right - frame.left) / 28)));
    for (let rank = 1; rank <= k; rank += step) frame.root.append(
      svg("line", { x1: x(rank), x2: x(rank), y1: 46, y2: 56 + 24 * k, class: "grid" }),
      svg("text", { x: x(rank), y: 40, class: "tick middle" }, rank));
    order.forEach((one, i) => {
      const y = 66 + 24 * i, style = look(state.slots.get(one.name));
      frame.root.append(svg("text", { x: frame.left - 8, y: y + 4, class: "tick end strong" }, shorten(one.name, 20)),
        svg("g", { class: style.colour }, mark(style.shape, x(one.rank), y, 5, { class: "dot" })));
    });
    bars.forEach(([i, j], n) => frame.root.append(svg("line", { x1: frame.right + 12 + 9 * n, x2: frame.right + 12 + 9 * n, y1: 60 + 24 * i, y2: 72 + 24 * j, class: "clique" })));
    return frame.root;
  };
  const p = pValue(ranks.p, state.level);
  const shownNot = ranks.p >= state.level ? " That is no difference at this level, so that the bars are not to be read." : "";
  const caution = ranks.blocks === "seeds" ? " Ranks over the seeds of one data set say nothing about other data." : "";
  return [
    h("h3", {}, "Mean ranks"),
    figure((width) => (width >= 640 ? wide(width) : narrow(width)),
      `Mean rank in area over ${count(ranks.count)} ${ranks.blocks}, 1 for the best (Demšar 2006). Bars join strategies that are not shown to differ (Nemenyi's test). Friedman test that any differ: p ${p.startsWith("<") ? p : `= ${p}`}.${shownNot}${caution}`),
  ];
}

// Data sets by strategies: the difference of area to the reference, in points.
function gainMatrix(sets, strategies) {
  const reference = sets[0].reference;
  const columns = strategies.map((one) => one.name).filter((name) => name !== reference);
  if (!reference || !columns.length) return null;
  const rows = sets.map((set) => columns.map((name) => {
    const row = set.rows.find((one) => one.name === name);
    return row && row.comparison ? 100 * row.comparison.area.mean : null;
  }));
  const most = Math.max(1e-9, ...rows.flat().filter(known).map(Math.abs));
  return [
    h("h3", {}, `Difference to ${reference} in each data set`),
    matrix(sets.map((set) => set.name), columns, rows, (v) => [v >= 0 ? "blue" : "orange", 0.05 + 0.55 * Math.abs(v) / most], (v) => signed(v, 1), "Difference of area in points"),
    note("Points of area under the budget curve, mean over seeds. Blue: above the reference. Which of them are shown stands in the table of each data set."),
  ];
}
