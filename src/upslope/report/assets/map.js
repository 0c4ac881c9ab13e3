// The pool at the first two principal components, with the picks of some strategies.

function poolMap(set, state) {
  const data = set.gallery && set.gallery.map;
  if (!data) return null;
  const names = set.rows.map((row) => row.name).filter((name) => (data.picks[name] || []).length);
  const on = new Set([...best(set, 1), ...(set.reference ? [set.reference] : [])].filter((name) => names.includes(name)));
  const most = Math.max(...names.map((name) => data.picks[name].length)) - 1;
  let upTo = most;
  const element = figure((width) => {
    const side = Math.min(width, 620), r = side < 420 ? 1.3 : 1.8;
    const height = Math.round(side * Math.min(1, (Math.max(...data.y) - Math.min(...data.y)) / 1000 + 0.06));
    const frame = chart(side, height, { left: 10, right: 10, top: 8, bottom: 8 }, `Map of the pool with the picks of ${[...on].join(", ")}`);
    frame.root.classList.add("map");
    const middle = (Math.max(...data.y) + Math.min(...data.y)) / 2;
    const x = linear(0, 1000, 10, side - 10), y = (v) => height / 2 - (v - middle) / 1000 * (side - 20);
    const dots = data.x.map((v, i) => `M${x(v).toFixed(1)} ${y(data.y[i]).toFixed(1)}h0`).join("");
    frame.root.append(svg("path", { d: dots, class: "pool", "stroke-width": 2 * r }));
    for (const i of data.initial) frame.root.append(svg("circle", { cx: x(data.x[i]), cy: y(data.y[i]), r: 2.2 * r, class: "initial" }));
    for (const name of names.filter((one) => on.has(one))) {
      const style = look(state.slots.get(name)), group = svg("g", { class: style.colour });
      data.picks[name].slice(0, upTo + 1).forEach((cycle, c) => cycle.forEach((i) => group.append(
        mark(style.shape, x(data.x[i]), y(data.y[i]), c === upTo ? 3 * r : 2 * r, { class: c === upTo ? "pick new" : "pick" }))));
      frame.root.append(group);
    }
    return frame.root;
  }, `Grey: ${data.x.length < data.pool ? `${count(data.x.length)} of the ${count(data.pool)} samples of the pool` : `the ${count(data.pool)} samples of the pool`}; rings: the initial set; shapes: picks, the newest larger. First two principal components of ${data.features} (${data.of}, seed ${set.gallery.seed}), which hold ${percent(data.explained, 0)}% of the variance: what is near here need not be near in all dimensions.`);
  const box = h("div", { class: "names", role: "group", "aria-label": "Strategies on the map" }, names.map((name) => {
    const button = h("button", { type: "button", "aria-pressed": String(on.has(name)), click: () => {
      if (on.has(name)) on.delete(name); else on.add(name);
      button.setAttribute("aria-pressed", String(on.has(name)));
      element.redraw();
    } }, swatch(state.slots.get(name)), name);
    return button;
  }));
  return [
    h("h3", {}, "Map of the pool"), box,
    slider("Picks up to cycle", most, upTo, (i) => String(i + 1), (i) => { upTo = i; element.redraw(); }),
    element,
  ];
}
