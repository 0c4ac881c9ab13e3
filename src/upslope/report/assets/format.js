// Numbers and labels as a reader sees them.

const DASH = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);
const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

const count = (value) => (known(value) ? grouped.format(value) : DASH);
const fixed = (value, digits) => (known(value) ? value.toFixed(digits).replace("-", "−") : DASH);
const percent = (share, digits = 1) => fixed(known(share) ? 100 * share : null, digits);

function signed(value, digits = 2) {
  if (!known(value)) return DASH;
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? text : (value < 0 ? "−" : "+") + text;
}

function withHalf(interval, scale, show) {
  const mean = show(scale * interval.mean);
  if (!known(interval.high)) return mean;
  const digits = mean.includes(".") ? mean.split(".")[1].length : 0;
  return h("span", {}, mean, " ", h("small", {}, "±" + fixed(scale * (interval.high - interval.mean), digits)));
}

// A p below the level of the verdict does not round up to it.
function pValue(p, level) {
  if (!known(p)) return DASH;
  if (p < 0.001) return "<0.001";
  const text = p.toFixed(3);
  return p < level && Number(text) >= level ? `<${level}` : text;
}

// In whole percent; no probability is quite 0 or 1.
function probability(p) {
  if (!known(p)) return DASH;
  if (p < 0.01) return "<1%";
  return p > 0.99 ? ">99%" : `${percent(p, 0)}%`;
}

function plural(n, word) {
  if (n === 1) return `1 ${word}`;
  return `${count(n)} ${word.endsWith("y") ? word.slice(0, -1) + "ies" : word + "s"}`;
}

function seconds(value) {
  if (!known(value)) return DASH;
  if (value >= 7200) return `${(value / 3600).toFixed(1)} h`;
  if (value >= 120) return `${(value / 60).toFixed(1)} min`;
  return `${value >= 10 ? value.toFixed(0) : value >= 0.1 ? value.toFixed(1) : value.toFixed(2)} s`;
}

function scoreText(value) {
  if (!known(value)) return null;
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 10000) ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}

// A label as the ledger holds it: a class, a label set, numbers; masks are pictures and have no words.
function labelText(label, classes) {
  if (label === null || label === undefined || typeof label === "object" && !Array.isArray(label)) return null;
  if (typeof label === "number" && Number.isInteger(label) && classes.length > 1) {
    return label in classes ? classes[label] : String(label);
  }
  if (Array.isArray(label)) {
    const set = label.length === classes.length && label.length > 1 && label.every((x) => x === 0 || x === 1);
    if (set) return classes.filter((_, i) => label[i]).join(", ") || "none";
    return label.map(scoreText).join(", ");
  }
  return typeof label === "number" ? scoreText(label) : String(label);
}

function shorten(text, most) {
  const letters = [...text];
  return letters.length > most ? letters.slice(0, Math.max(1, most - 1)).join("") + "…" : text;
}
