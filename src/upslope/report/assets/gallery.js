// The picks of one strategy in one cycle: picture or text, score, the network's guess, the label.

// Colours of the classes of a mask; the first class is left transparent, and colours come again.
function maskLegend(classes) {
  return h("p", { class: "note legend" }, classes.map((name, i) => h("span", { class: "named" },
    h("i", { class: i === 0 ? "chip" : `chip mask-${(i - 1) % 7}` }), name)));
}

function gallery(set, state) {
  const data = set.gallery;
  if (!data) return null;
  const names = set.rows.map((row) => row.name).filter((name) => (data.strategies[name] || []).length);
  if (!names.length) return null;
  const ahead = best(set, 1)[0];
  const view = { name: Math.max(0, names.indexOf(ahead)), cycle: 0, mask: "label" };
  const masks = data.samples.some((sample) => sample.mask);
  const texts = data.samples.some((sample) => sample.text !== undefined);
  const grid = h("div", { class: texts ? "gallery texts" : "gallery" }), head = h("p", { class: "note" });
  const cycles = () => data.strategies[names[view.name]];
  const picker = h("span", {});
  const cyclePicker = () => slider("Cycle", cycles().length - 1, view.cycle, (i) => `${i + 1} of ${cycles().length}`, (i) => { view.cycle = i; render(); });

  function card([index, score, guess, confidence, label]) {
    const sample = data.samples[index];
    const truth = label === null ? (sample.label === undefined ? null : sample.label) : label;
    const said = labelText(truth, data.classes), guessed = labelText(guess, data.classes);
    const agree = said !== null && guessed !== null && !Array.isArray(guess) ? (said === guessed ? "right" : "wrong") : "";
    const overlay = view.mask === "label" ? (label && label.mask) || sample.mask : view.mask === "guess" ? guess && guess.mask : null;
    const seen = sample.picture
      ? h("div", { class: `thumb${masks ? " large" : ""}` }, picture(sample.picture, sample.id, "image"), overlay ? picture(overlay, `mask of ${sample.id}`, "mask") : null)
      : sample.text !== undefined ? h("blockquote", {}, sample.text) : null;
    return h("figure", { class: `pick ${agree}` }, seen, h("figcaption", {},
      h("span", { class: "id", title: sample.id }, sample.id),
      score === null ? null : h("span", {}, `score ${scoreText(score)}`),
      guessed === null ? null : h("span", { class: "guess" }, `guess ${guessed}${known(confidence) ? ` ${percent(confidence, 0)}%` : ""}${agree === "right" ? " ✓" : agree === "wrong" ? " ✗" : ""}`),
      said === null ? null : h("span", {}, `label ${said}`)));
  }

  function render() {
    const cycle = cycles()[view.cycle];
    const right = cycle.picks.filter(([index, , guess, , label]) => {
      const truth = label === null ? data.samples[index].label : label;
      return typeof guess === "number" && guess === truth;
    }).length;
    const guesses = cycle.picks.filter((pick) => typeof pick[2] === "number").length;
    head.textContent = `${names[view.name]}, seed ${data.seed}: ${cycle.picks.length < cycle.count ? `the first ${cycle.picks.length} of ` : ""}${plural(cycle.count, "pick")} out of ${plural(cycle.candidates, "candidate")}, with ${count(cycle.labels)} labels before.${guesses ? ` The network guessed ${right} of ${guesses} right.` : ""}`;
    grid.replaceChildren(...cycle.picks.map(card));
  }
  const strategy = choose("Strategy", names, view.name, (i) => {
    view.name = i;
    view.cycle = Math.min(view.cycle, cycles().length - 1);
    picker.replaceChildren(cyclePicker());
    render();
  });
  picker.replaceChildren(cyclePicker());
  const maskPicker = masks ? choose("Mask", ["label", "guess", "none"], 0, (i) => { view.mask = ["label", "guess", "none"][i]; render(); }) : null;
  render();
  return [
    h("h3", {}, "Picks, cycle by cycle"),
    h("div", { class: "controls" }, strategy, picker, maskPicker),
    head, masks ? maskLegend(data.classes) : null, grid,
    data.why ? note(`Without pictures: ${data.why}`) : null,
    note("In order of choice. Guess: what the network that chose the sample predicted for it, with its probability; runs of earlier versions did not record it."),
  ];
}
