// The scores of a strategy, cycle by cycle: all candidates in grey, the picks in front of them.

function histograms(set, state) {
  const data = set.gallery;
  if (!data) return null;
  const names = set.rows.map((row) => row.name).filter((name) => (data.strategies[name] || []).some((cycle) => cycle.scores));
  if (!names.length) return null;
  const ahead = best(set, set.rows.length).find((name) => names.includes(name)) || names[0];
  let chosen = names.indexOf(ahead);
  const element = figure((width) => {
    const cycles = data.strategies[names[chosen]].filter((cycle) => cycle.scores);
    const low = Math.min(...cycles.map((cycle) => cycle.histogram ? cycle.histogram.low : cycle.scores[0]));
    const high = Math.max(...cycles.map((cycle) => cycle.histogram ? cycle.histogram.high : cycle.scores[cycle.scores.length - 1]));
    const ends = cycles.map((cycle) => cycle.histogram ? [cycle.histogram.low, cycle.histogram.high] : [cycle.scores[0], cycle.scores[cycle.scores.length - 1]]);
    // Scores that shrink from cycle to cycle would all stand in one bar of a common axis.
    const apart_ = ends.some(([a, b]) => b - a < 0.1 * (high - low));
    const tall = apart_ ? 56 : 42, frame = chart(width, 34 + tall * cycles.length + 44, { left: 92, right: 10, top: 12, bottom: 44 }, `Scores of ${names[chosen]} over cycles`);
    const bins = 24;
    const style = look(state.slots.get(names[chosen]));
    const scale = (from, to) => linear(from, to > from ? to : from + 1, frame.left, frame.right);
    if (!apart_) xAxis(frame, ticks(low, high, width < 500 ? 3 : 6), scale(low, high), (v) => String(scoreText(v)), "score");
    cycles.forEach((cycle, i) => {
      const [from, to] = apart_ ? ends[i] : [low, high], x = scale(from, to), step = (to - from || 1) / bins;
      if (apart_) frame.root.append(
        svg("text", { x: frame.left, y: frame.top + tall * (i + 1) + 22, class: "tick" }, scoreText(from)),
        svg("text", { x: frame.right, y: frame.top + tall * (i + 1) + 22, class: "tick end" }, scoreText(to)));
      const base = frame.top + tall * (i + 1) + 8;
      frame.root.append(svg("text", { x: frame.left - 10, y: base - 6, class: "tick end" }, `${count(cycle.labels)} labels`),
        svg("line", { x1: frame.left, x2: frame.right, y1: base, y2: base, class: "grid" }));
      if (cycle.histogram) {
        const { counts } = cycle.histogram, first = cycle.histogram.low, each = (cycle.histogram.high - first) / counts.length || step;
        const most = Math.max(...counts);
        counts.forEach((n, b) => n && frame.root.append(svg("rect", {
          x: x(first + b * each), width: Math.max(1, x(first + each) - x(first) - 0.5), y: base - 32 * n / most, height: 32 * n / most, class: "bar",
        })));
      }
      const counts = new Array(bins).fill(0);
      for (const score of cycle.scores) counts[Math.max(0, Math.min(bins - 1, Math.floor((score - from) / step)))]++;
      const most = Math.max(...counts);
      const group = svg("g", { class: style.colour });
      counts.forEach((n, b) => n && group.append(svg("rect", {
        x: x(from + b * step), width: Math.max(1, x(from + step) - x(from) - 0.5), y: base - (30 - 10) * n / most, height: (30 - 10) * n / most, class: "bar picked",
      })));
      frame.root.append(group);
    });
    return frame.root;
  }, `In colour: the picks; grey: all candidates, where the run recorded them. Each is drawn to its own height, so that forms compare and not counts; where scores change much from cycle to cycle, on its own scale too. Seed ${data.seed}.`);
  return [
    h("h3", {}, "Scores over the cycles"),
    choose("Strategy", names, chosen, (i) => { chosen = i; element.redraw(); }),
    element,
  ];
}
