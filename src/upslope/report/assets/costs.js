// What is saved in labels, hours and money, and what selecting costs.

function savingsTable(set, state) {
  const rows = set.rows.filter((row) => row.savings.length);
  if (!rows.length) return null;
  const body = h("div", {});
  const half = rows.some((row) => row.savings.some((one) => one.share < 1));
  const costs = state.costs;
  const amount = (value) => `${Math.abs(value) < 100 ? value.toFixed(2) : count(value)} ${costs.currency}`;
  const labels = (one) => {
    if (!one) return DASH;
    if (one.labels === "never") return "not reached";
    const end = (value) => (value === "never" ? "∞" : count(value));
    return h("span", {}, count(one.labels), " ", h("small", {}, one.low === null || one.high === null ? "" : `(${end(one.low)} to ${end(one.high)})`));
  };
  const render = () => {
    const head = ["strategy", ...(half ? [`labels for ${set.reference}'s half`] : []), `labels for ${set.reference}'s last`, "labels saved", "hours saved", "money saved"];
    body.replaceChildren(table(head, rows.map((row) => {
      const last = row.savings.find((one) => one.share === 1);
      const middle = row.savings.find((one) => one.share < 1);
      const saved = last && known(last.labels) ? last.reference - last.labels : null;
      const hours = known(saved) ? saved * costs.seconds / 3600 : null;
      const minus = (text) => text.replace("-", "−");
      return { cells: [
        named(row.name, state.slots.get(row.name)), ...(half ? [labels(middle)] : []), labels(last),
        known(saved) ? minus(`${count(saved)} (${(100 * saved / last.reference).toFixed(0)}%)`) : DASH,
        known(hours) ? minus(hours.toFixed(Math.abs(hours) < 10 ? 2 : 1)) : DASH,
        known(hours) ? minus(amount(hours * costs.wage)) : DASH,
      ] };
    }), "Savings"));
  };
  const number = (label, key, unit) => {
    const input = h("input", { type: "number", min: 0, step: "any", value: costs[key], inputmode: "decimal", input: () => {
      const value = Number(input.value);
      if (input.value !== "" && known(value) && value >= 0) { costs[key] = value; for (const listener of state.costListeners) listener(); }
    } });
    return h("label", { class: "choose" }, h("span", {}, label), input, h("span", {}, unit));
  };
  render();
  state.costListeners.push(render);
  const last = set.budgets[set.budgets.length - 1];
  return section("What it saves",
    h("div", { class: "controls" }, number("A label takes", "seconds", "seconds"), number("An hour costs", "wage", costs.currency)),
    body,
    note(`Labels at which a strategy reaches the figure that ${set.reference} has with ${half ? `half of, and with all, its ${count(last)} labels` : `all its ${count(last)} labels`}, within each seed, read between budgets with straight lines; in brackets the 95% interval, ∞ where its end lies beyond the last budget. Seconds per label and wage are assumptions: type your own. Hours are those of the people who label; the machine's seconds stand in the table.`));
}

function costChart(set, state) {
  const rows = () => set.rows.filter((row) => !state.hidden.has(row.name) && (row.comparison || row.name === set.reference));
  if (!set.reference || !set.rows.some((row) => row.comparison)) return null;
  const LEAST = 0.01;
  const element = figure((width) => {
    const shown = rows(), wide = width >= 640;
    const frame = chart(width, wide ? 380 : 330, { left: 46, right: wide ? 40 : 14, top: 26, bottom: 46 }, "Difference of area over seconds of selecting");
    if (!shown.length) return frame.root;
    const point = (row) => (row.comparison ? row.comparison.area : { mean: 0, low: null, high: null });
    const values = shown.flatMap((row) => [point(row).mean, point(row).low, point(row).high].filter(known)).map((v) => 100 * v);
    let low = Math.min(0, ...values), high = Math.max(0, ...values);
    const room = (high - low || 1) * 0.08;
    low -= room; high += room;
    const time = (row) => Math.log10(Math.max(LEAST, row.selecting));
    const from = Math.max(Math.log10(LEAST), Math.floor(Math.min(...shown.map(time)))), to = Math.max(from + 1, Math.ceil(Math.max(...shown.map(time)) + 0.15));
    const x = linear(from, to, frame.left + 12, frame.right), y = linear(low, high, frame.bottom, frame.top);
    yAxis(frame, low, high, y, signed, `Difference of area to ${set.reference} (points)`);
    const powers = [];
    for (let i = from; i <= to; i++) powers.push(i);
    xAxis(frame, powers, x, (v) => (10 ** v < 0.0101 ? "≤0.01" : String(Number((10 ** v).toPrecision(3)))), "Seconds of selecting per run, all cycles");
    const places = shown.map((row) => ({ row, px: x(time(row)), py: y(100 * point(row).mean) }));
    const names = apart(places.map((one) => one.py), 15, frame.top, frame.bottom - 4), texts = [];
    places.forEach(({ row, px, py }, i) => {
      const style = look(state.slots.get(row.name)), area = point(row);
      const left = px > (frame.left + frame.right) * 0.6;
      frame.root.append(svg("g", { class: style.colour },
        known(area.low) ? svg("line", { x1: px, x2: px, y1: y(100 * area.low), y2: y(100 * area.high), class: "whisker" }) : null,
        mark(style.shape, px, py, 5.5, { class: "dot" }),
        Math.abs(names[i] - py) > 6 ? svg("path", { d: `M${px} ${py}L${px + (left ? -9 : 9)} ${names[i]}`, class: "thin" }) : null));
      // Names lie on top of all marks, since on a telephone one may reach over its neighbour's.
      texts.push(svg("g", { class: style.colour },
        svg("text", { x: px + (left ? -11 : 11), y: names[i] + 4, class: `name ${left ? "end" : ""}` }, shorten(row.name, wide ? 26 : 18))));
    });
    frame.root.append(...texts);
    return frame.root;
  }, "Left and above is better: more area for less computing. Bars: 95% interval of the paired difference. Seconds depend on the machine, which stands below.");
  state.listeners.push(() => element.redraw());
  return section("Cost against gain", element);
}
