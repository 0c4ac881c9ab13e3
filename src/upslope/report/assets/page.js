// The page: what stands where, and what is switched on.

const data = JSON.parse(document.getElementById("data").textContent);
const state = {
  slots: new Map(data.strategies.map((one) => [one.name, one.slot])),
  hidden: new Set(), listeners: [], costs: { ...data.costs }, costListeners: [],
  intervalSeeds: data.intervalSeeds, level: data.level,
  toggle(names, on) {
    for (const name of names) if (on) state.hidden.delete(name); else state.hidden.add(name);
    for (const listener of state.listeners) listener();
  },
  only(names) {
    state.hidden = new Set();
    for (const one of data.strategies) if (!names.includes(one.name)) state.hidden.add(one.name);
    for (const listener of state.listeners) listener();
  },
};
Object.freeze(data);

// So many curves can still be told apart; of more, the best are shown at first, and all on demand.
const MANY = 9, SHOWN_OF_MANY = 6;

const VERDICTS = { better: "better", worse: "worse", "no difference shown": "no difference shown", "not tested": "not tested" };

function figuresTable(set) {
  const most = 8, n = set.budgets.length;
  const shown = [...new Set(n <= most ? set.budgets.keys() : Array.from({ length: most }, (_, i) => Math.round(i * (n - 1) / (most - 1))))];
  const against = set.reference ? [`vs ${set.reference}`, "p (Holm)"] : [];
  const head = ["strategy", ...shown.map((i) => count(set.budgets[i])), "area", ...against, "selecting", "training", "seeds"];
  const rows = set.rows.map((row) => ({ cells: [
    named(row.name, state.slots.get(row.name)),
    ...shown.map((i) => withHalf({ mean: row.curve.mean[i], high: row.curve.high[i] }, 100, (v) => fixed(v, 1))),
    withHalf(row.area, 100, (v) => fixed(v, 1)),
    ...(set.reference ? [row.comparison ? withHalf(row.comparison.area, 100, (v) => signed(v, 2)) : "", row.comparison ? pValue(row.comparison.holm, data.level) : ""] : []),
    seconds(row.selecting), seconds(row.training), String(row.seeds.length),
  ] }));
  return [table(head, rows, "Figures at each number of labels"), n > most ? note(`${most} of ${n} budgets; all of them stand in curves.csv.`) : null, set.notes.map((text) => note(text))];
}

function testsTable(set) {
  const rows = set.rows.filter((row) => row.comparison);
  if (!rows.length) return null;
  const point = percent(data.margin, 0);
  if (rows.every((row) => row.comparison.verdict === "not tested")) return null;
  const head = ["strategy", "difference", "seeds better", "p, paired t", "p, Holm", "p, sign flip", `p, equal within ${point} point`, "p, not worse", `chance within ${point} point`, "verdict"];
  const floor = set.signFlipFloor;
  return section("Paired tests",
    table(head, rows.map((row) => {
      const c = row.comparison;
      return { kind: c.verdict === "better" ? "better" : c.verdict === "worse" ? "worse" : null, cells: [
        named(row.name, state.slots.get(row.name)), withHalf(c.area, 100, (v) => signed(v, 2)), `${c.wins} of ${c.seeds.length}`,
        pValue(c.p, data.level), pValue(c.holm, data.level), pValue(c.signFlip, data.level), pValue(c.equal, data.level), pValue(c.notWorse, data.level), probability(c.rope[1]), VERDICTS[c.verdict] || "",
      ] };
    }), "Paired tests"),
    note(`The verdict is by Holm's p below ${data.level}. Differences are points of area under the budget curve, within the seed. A difference that is not shown is not a difference shown to be zero: that is what "equal within ${point} point" tests (two one-sided tests), "not worse" its lower half, and the chance within ${point} point is the probability that the mean lies there under the reference prior; none of these three is corrected for the number of strategies. The sign-flip test assumes nothing about the shape of the differences, but with these seeds its p cannot fall below ${Number(floor.toPrecision(2))}${floor >= data.level ? ", so that it cannot confirm any difference at that level" : ""}.`));
}

function protocol(set) {
  return section("Protocol and machine",
    h("p", {}, "The test set is read by evaluation alone; no strategy and no choice of a checkpoint sees it."),
    set.config ? h("details", {}, h("summary", {}, "Resolved configuration"), h("pre", {}, set.config)) : note("The runs carry no configuration."),
    set.environment.length ? h("dl", {}, set.environment.map(([name, text]) => [h("dt", {}, name), h("dd", {}, text)])) : note("The machine is not recorded."));
}

function showSet(set) {
  state.listeners = []; state.costListeners = [];
  state.hidden = new Set(set.rows.length > MANY ? set.rows.map((row) => row.name).filter((name) => !best(set, SHOWN_OF_MANY).includes(name)) : []);
  const matrices = [winMatrix(set.wins), rankDiagram(set.ranks, state)];
  const choices = [gallery(set, state), balance(set, state), overlap(set), poolMap(set, state), histograms(set, state)].filter(Boolean);
  return [
    section("Curves", curves(set, state)),
    savingsTable(set, state),
    section("Table", figuresTable(set)),
    testsTable(set),
    matrices.some(Boolean) ? section("Against each other", matrices) : null,
    costChart(set, state),
    choices.length ? section("What each strategy chose", choices) : null,
    protocol(set),
  ].filter(Boolean);
}

function lead(set) {
  const seeds = set.rows.map((row) => row.seeds.length);
  const few = Math.min(...seeds), many = Math.max(...seeds);
  const pairs = few === many ? plural(few, "paired seed") : `${few} to ${many} paired seeds`;
  const last = set.budgets[set.budgets.length - 1];
  return `${set.name}: ${plural(set.rows.length, "strategy")}, ${pairs}, ${plural(set.budgets.length, "budget")} from ${count(set.budgets[0])} to ${plural(last, "label")}${set.pool ? ` of ${count(set.pool)}` : ""}.`;
}

function start() {
  const page = document.getElementById("page");
  const several = data.sets.length > 1;
  const body = h("div", {}), about = h("div", {});
  const show = (i) => {
    const set = data.sets[i];
    about.replaceChildren(several ? h("p", { class: "verdict" }, set.verdict) : "", h("p", { class: "lead" }, lead(set)));
    body.replaceChildren(...showSet(set));
  };
  page.replaceChildren(...[
    h("h1", {}, data.title),
    h("p", { class: "verdict first" }, data.verdict),
    several ? section("All data sets", gainMatrix(data.sets, data.strategies), rankDiagram(data.overall.ranks, state), winMatrix(data.overall.wins)) : null,
    several ? h("div", { class: "bar-of-sets" }, choose("Data set", data.sets.map((set) => set.name), 0, show)) : null,
    about, body,
  ].filter(Boolean));
  show(0);
}

start();
