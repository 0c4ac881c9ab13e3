// Class balance and overlap: what the picks of strategies have in common, without looking at any.

function balance(set, state) {
  const data = set.balance;
  if (!data) return null;
  const names = set.rows.map((row) => row.name).filter((name) => name in data.counts);
  let at = set.budgets.length - 1;
  const box = h("div", {});
  const render = () => {
    const rows = names.map((name) => {
      const counts = data.counts[name][at], total = counts.reduce((a, b) => a + b, 0);
      return counts.map((n) => (total > 0 ? n / total : null));
    });
    const most = Math.max(...rows.flat().filter(known));
    box.replaceChildren(matrix(names, data.classes, rows, sequential(most), (v) => percent(v, 0), "Share of each class among the labels, in percent"));
  };
  render();
  return [
    h("h3", {}, "Class balance of the labels"),
    slider("Labels", set.budgets.length - 1, at, (i) => count(set.budgets[i]), (i) => { at = i; render(); }),
    box,
    note("Percent of the labelled samples that have each class, the initial set included; mean over seeds."),
  ];
}

function overlap(set) {
  if (!set.overlap || set.overlap.names.length < 2) return null;
  const { names, shares } = set.overlap;
  const most = Math.max(...shares.flat().filter(known));
  return [
    h("h3", {}, "Overlap of the picks"),
    matrix(names, names, shares, sequential(most), (v) => percent(v, 0), "Share of picks in common, in percent"),
    note("Percent of the samples picked by either strategy that both picked, within the seed, over the whole run and without the initial set; mean over seeds."),
  ];
}
