// Learning curves: lines with bands, switched by their names, read off by pointer or arrow keys.

// Runs of positions that have a value: a band ends where seeds do not differ, and has no interval there.
function stretches(values) {
  const runs = [];
  values.forEach((value, i) => {
    if (!known(value)) return;
    if (i > 0 && known(values[i - 1])) runs[runs.length - 1].push(i);
    else runs.push([i]);
  });
  return runs;
}

function curves(set, state) {
  const view = { bands: true, difference: false, at: null, near: null };
  const readout = h("div", { class: "readout", "aria-live": "polite" });


  const shown = () => set.rows.filter((row) => !state.hidden.has(row.name) && (!view.difference || row.comparison || row.name === set.reference));
  const series = (row) => {
    if (!view.difference) return { ...row.curve, dots: row.dots };
    if (row.comparison) return { ...row.comparison.curve, dots: row.comparison.dots };
    const zero = set.budgets.map(() => 0);
    return { mean: zero, low: zero.map(() => null), high: zero.map(() => null), dots: null };
  };
  const bounds = () => (view.difference ? [null, null] : set.bounds);
  const clip = (value) => {
    const [low, high] = bounds();
    return Math.min(high === null ? Infinity : high, Math.max(low === null ? -Infinity : low, value));
  };

  function draw(width) {
    const wide = width >= 640, rows = shown();
    const height = wide ? Math.max(400, 60 + 19 * rows.length) : 320;
    const letters = Math.max(6, ...rows.map((row) => [...row.name].length));
    const margin = { left: 46, right: wide ? Math.min(190, 18 + 7.4 * letters) : 12, top: 26, bottom: 46 };
    const unit = view.difference ? `Difference to ${set.reference} (points)` : `${set.metric} on the test set (%)`;
    const frame = chart(width, height, margin, `${unit} over labels, for ${rows.map((row) => row.name).join(", ")}`);
    if (!rows.length) {
      frame.root.append(svg("text", { x: width / 2, y: height / 2, class: "axis middle" }, "No strategy is switched on."));
      return frame.root;
    }
    const values = [];
    for (const row of rows) {
      const line = series(row);
      values.push(...line.mean, ...(line.dots || []).flat());
      if (view.bands) values.push(...line.low.filter(known).map(clip), ...line.high.filter(known).map(clip));
    }
    if (!view.difference && known(set.ceiling)) values.push(set.ceiling);
    if (view.difference) values.push(0);
    let low = Math.min(...values), high = Math.max(...values);
    const room = (high - low || 0.01) * 0.05;
    low = clip(low - room); high = clip(high + room);
    const budgets = set.budgets, first = budgets[0], last = budgets[budgets.length - 1];
    const x = linear(first, last === first ? first + 1 : last, frame.left + 6, frame.right - 6);
    const y = linear(100 * low, 100 * high, frame.bottom, frame.top);
    yAxis(frame, 100 * low, 100 * high, y, fixed, unit);
    xAxis(frame, budgets, x, count, set.pool ? `Labels, of a pool of ${count(set.pool)}` : "Labels");
    if (!view.difference && known(set.ceiling)) {
      const at = y(100 * set.ceiling);
      frame.root.append(svg("line", { x1: frame.left, x2: frame.right, y1: at, y2: at, class: "ceiling" }),
        svg("text", { x: frame.left + 6, y: at - 5, class: "tick" }, `all labels: ${percent(set.ceiling)}%`));
    }
    const lines = svg("g", {});
    for (const row of rows) {
      const style = look(state.slots.get(row.name)), line = series(row);
      const group = svg("g", { class: style.colour });
      if (view.bands) for (const part of stretches(line.high)) {
        const up = part.map((i) => `${x(budgets[i])} ${y(100 * clip(line.high[i]))}`);
        const down = part.map((i) => `${x(budgets[i])} ${y(100 * clip(line.low[i]))}`).reverse();
        group.append(svg("path", { d: `M${[...up, ...down].join("L")}Z`, class: "band" }));
      }
      for (const dots of line.dots || []) for (const [i, value] of dots.entries()) {
        group.append(svg("circle", { cx: x(budgets[i]), cy: y(100 * value), r: 3, class: "faint" }));
      }
      group.append(svg("path", {
        d: `M${line.mean.map((v, i) => `${x(budgets[i])} ${y(100 * v)}`).join("L")}`, class: "line", "stroke-dasharray": style.dash,
      }));
      if (budgets.length <= 15) line.mean.forEach((v, i) => group.append(mark(style.shape, x(budgets[i]), y(100 * v), 3, { class: "dot" })));
      group.row = row;
      lines.append(group);
    }
    if (!view.difference) for (const run of set.unfinished) {
      if (!run.scores.length || state.hidden.has(run.strategy)) continue;
      lines.append(svg("path", { d: `M${run.scores.map((v, i) => `${x(run.budgets[i])} ${y(100 * v)}`).join("L")}`, class: "unfinished" }));
    }
    frame.root.append(lines);
    if (wide) {
      const ends = apart(rows.map((row) => y(100 * series(row).mean[budgets.length - 1])), 17, frame.top + 4, frame.bottom);
      rows.forEach((row, i) => frame.root.append(svg("text", {
        x: frame.right + 6, y: ends[i] + 4, class: `name ${look(state.slots.get(row.name)).colour}`,
      }, shorten(row.name, 20))));
    }
    const cross = svg("line", { y1: frame.top, y2: frame.bottom, class: "cross", visibility: "hidden" });
    frame.root.append(cross);
    const point = (index, height_) => {
      view.at = index;
      if (index === null) {
        cross.setAttribute("visibility", "hidden");
        for (const group of lines.children) group.classList.remove("dim");
        tell(budgets.length - 1, null);
        return;
      }
      const at = x(budgets[index]);
      cross.setAttribute("x1", at); cross.setAttribute("x2", at);
      cross.setAttribute("visibility", "visible");
      let near = null;
      if (height_ !== null) {
        near = [...rows].sort((a, b) => Math.abs(y(100 * series(a).mean[index]) - height_) - Math.abs(y(100 * series(b).mean[index]) - height_))[0];
        if (Math.abs(y(100 * series(near).mean[index]) - height_) > 24) near = null;
      }
      for (const group of lines.children) group.classList.toggle("dim", near !== null && group.row !== near);
      tell(index, near);
    };
    const tell = (index, near) => {
      const order = [...rows].sort((a, b) => series(b).mean[index] - series(a).mean[index]);
      readout.replaceChildren(h("p", { class: "head" }, `${count(budgets[index])} labels`), h("ul", {}, order.map((row) => {
        const line = series(row);
        const value = view.difference ? signed(100 * line.mean[index]) : percent(line.mean[index]);
        const half = line.high[index] - line.low[index] > 1e-12 ? ` ±${(100 * (line.high[index] - line.mean[index])).toFixed(view.difference ? 2 : 1)}` : "";
        return h("li", { class: row === near ? "near" : null }, named(row.name, state.slots.get(row.name)), h("span", {}, value, h("small", {}, half)));
      })), note("Point at the curves, or use the arrow keys on them, for other budgets."));
    };
    const closest = (event) => {
      const box = frame.root.getBoundingClientRect(), scale = width / box.width;
      const px = (event.clientX - box.left) * scale, py = (event.clientY - box.top) * scale;
      let best = 0;
      budgets.forEach((b, i) => { if (Math.abs(x(b) - px) < Math.abs(x(budgets[best]) - px)) best = i; });
      point(best, py);
    };
    fill(frame.root, {
      tabindex: 0, pointermove: closest, pointerdown: closest, pointerleave: () => point(null, null),
      keydown: (event) => {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!step) return;
        event.preventDefault();
        const from = view.at === null ? (step > 0 ? -1 : budgets.length) : view.at;
        point(Math.max(0, Math.min(budgets.length - 1, from + step)), null);
      },
    }, []);
    point(null, null);
    return frame.root;
  }

  const element = figure(draw, captionOf(set));
  const redraw = () => element.redraw();
  state.listeners.push(redraw);
  const toggle = (name, key) => {
    const button = h("button", { type: "button", "aria-pressed": String(view[key]), click: () => {
      view[key] = !view[key];
      button.setAttribute("aria-pressed", String(view[key]));
      redraw();
    } }, name);
    return button;
  };
  const controls = h("div", { class: "controls" },
    toggle("Bands", "bands"), set.reference && set.rows.some((row) => row.comparison) ? toggle(`Difference to ${set.reference}`, "difference") : null);
  return [controls, names(set, state), h("div", { class: "with-readout" }, element, readout)];
}

function captionOf(set) {
  const fewest = Math.min(...set.rows.map((row) => row.seeds.length));
  const spread = fewest >= state.intervalSeeds
    ? " Bands: 95% confidence interval of the mean (Student t), cut where the figure can go no further."
    : fewest > 1 ? " Faint dots: the seeds; there are too few for an interval." : "";
  const ceiling = known(set.ceiling) ? " Dashed across: trained on every label of the pool." : "";
  const half = set.unfinished.length ? " Dotted: runs that are not finished, which nothing counts." : "";
  return `Lines: mean over seeds.${spread}${ceiling}${half} Differences are taken within the seed, as runs of one seed share the initial set, the initial weights and the data order.`;
}

// The names of the strategies: each switches its curve everywhere on the page.
function names(set, state) {
  const box = h("div", { class: "names", role: "group", "aria-label": "Strategies shown" });
  const render = () => box.replaceChildren(
    ...(state.hidden.size ? [h("span", { class: "note" }, `${set.rows.filter((row) => !state.hidden.has(row.name)).length} of ${set.rows.length} shown`)] : []),
    ...set.rows.map((row) => h("button", {
      type: "button", "aria-pressed": String(!state.hidden.has(row.name)),
      click: () => { state.toggle([row.name], state.hidden.has(row.name)); },
    }, swatch(state.slots.get(row.name)), row.name)),
    ...(set.rows.length > 4 ? [
      h("button", { type: "button", class: "quiet", click: () => state.only(set.rows.map((row) => row.name)) }, "all"),
      h("button", { type: "button", class: "quiet", click: () => state.only(best(set, 4)) }, "best four"),
    ] : []));
  render();
  state.listeners.push(render);
  return box;
}

// The strategies of largest mean area, and the reference.
function best(set, n) {
  const order = [...set.rows].filter((row) => row.name !== set.reference).sort((a, b) => b.area.mean - a.area.mean);
  return [...order.slice(0, n).map((row) => row.name), ...(set.reference ? [set.reference] : [])];
}
