"use strict";
// One question at a time: a key or a touch sends the answer, and the next sample is shown once the
// server has it on its disk. Names, notes and cells are set as text, never as markup.

const $ = (id) => document.getElementById(id);
const LETTERS = "abcdefghijklmnopqrstuvwxyz";
const FILTER_FROM = 36; // classes: more than there are keys
const RETRY_MS = 1000;
const POLL_MS = 4000;
const SMALL = 96; // pixels: smaller images are enlarged without smoothing

let project = null;
let standing = null;
let question = null;
let busy = false;
let changes = 0; // requests that change something: what was asked before one is out of date after it
let guessShown = false;
let chosen = new Set(); // labels of a set
const images = new Map(); // sample -> Image
const recent = []; // times of the last answers
let shownAt = 0;
let hiddenSince = 0;
let awayMs = 0;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name in made && name !== "role") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function say(text) { $("said").textContent = text; }

// What is wrong stays in sight until what failed has come through: "line", "poll" or "change".
let failed = "";

function problem(text, what) {
  failed = what;
  $("problem").textContent = text;
  $("problem").hidden = false;
}

function mended(...kinds) {
  if (kinds.includes(failed)) $("problem").hidden = true;
}

// Every request may reach the server twice, where its answer is lost on the way, and says the same.
async function send(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  for (;;) {
    let response, json, answer;
    try {
      response = await fetch(path, options);
      json = (response.headers.get("content-type") || "").startsWith("application/json");
      answer = json ? await response.json() : await response.text();
    } catch {
      problem("The server does not answer. Start it again with `upslope label serve`, and this " +
              "page goes on by itself; the answer shown is not saved yet.", "line");
      await new Promise((go) => setTimeout(go, RETRY_MS));
      continue;
    }
    mended("line");
    if (!response.ok) throw new Error(json ? answer.error : answer);
    return answer;
  }
}

// Sends a request that changes something, one at a time, and shows what comes back.
async function change(path, body) {
  if (busy) return false;
  busy = true;
  changes += 1;
  try {
    show(await send(path, body));
    mended("poll", "change");
    return true;
  } catch (error) {
    problem(error.message, "change");
    return false;
  } finally {
    busy = false;
  }
}

function seconds() {
  const away = awayMs + (hiddenSince ? performance.now() - hiddenSince : 0);
  return Math.max(0, (performance.now() - shownAt - away) / 1000);
}

function details() {
  return {
    sample: question.sample, corrects: question.corrects, seconds: seconds(),
    note: $("note").value, guess_shown: guessShown,
  };
}

async function answer(part, words) {
  if (!question || busy) return;
  if (await change("/api/answer", { ...details(), ...part })) {
    recent.push(performance.now());
    if (recent.length > 20) recent.shift();
    say(`${words}. ` + (question ? `Next: ${question.id}` : "All samples are answered."));
  }
}

function choose(name) {
  if (!question) return;
  if (project.kind === "class") {
    answer({ label: name }, `Labelled ${name}`);
  } else {
    if (chosen.has(name)) chosen.delete(name); else chosen.add(name);
    showChosen();
    say(`${name} ${chosen.has(name) ? "on" : "off"}`);
  }
}

function saveSet() {
  const names = project.classes.filter((name) => chosen.has(name));
  answer({ labels: names }, `Labelled ${names.join(", ") || "none"}`);
}

const skip = () => answer({ reason: "skip" }, "Skipped");
const cannotTell = () => answer({ reason: "cannot tell" }, "Cannot tell");
async function undo() {
  const newest = standing && standing.history[0];
  if (newest && await change("/api/undo", { sample: newest.sample })) say(question ? `Back to ${question.id}` : "");
}
function keep() { if (question && question.answer) change("/api/leave", { sample: question.sample }); }

async function showGuess() {
  if (!question || guessShown) return;
  const asked = question;
  let guess;
  try { guess = await send(`/api/guess/${asked.sample}`); } catch (error) { problem(error.message, "change"); return; }
  if (!question || question.sample !== asked.sample) return; // answered meanwhile
  const box = $("guess");
  box.replaceChildren();
  if (guess === null) {
    box.append(standing.model.labels
      ? "There is no guess of this sample: the model makes them of what it would ask next."
      : "There is no guess yet: the model needs labels of two classes.");
  } else {
    guessShown = true;
    const list = element("dl");
    for (const [name, p] of guess.classes) {
      const bar = element("div", { class: "meter" }, element("i"));
      bar.firstChild.style.width = `${100 * p}%`;
      list.append(element("dt", {}, name), element("dd", {}, bar), element("dd", {}, `${Math.round(100 * p)}%`));
    }
    box.append(list);
    if (guess.nearest) {
      const label = [guess.nearest.label].flat().join(", ") || "none";
      const figure = element("figure");
      if (project.sample_kind === "image") {
        figure.append(element("img", { src: address(guess.nearest.sample), alt: "" }));
      }
      const words = guess.nearest.cells ? `${cells(guess.nearest)}: ` : "";
      figure.append(element("figcaption", {}, `Most alike among the labelled: ${words}${label}`));
      box.append(figure);
    }
    say(`The model's guess: ${guess.classes.map(([n, p]) => `${n} ${Math.round(100 * p)}%`).join(", ")}`);
  }
  box.hidden = false;
  $("show-guess").setAttribute("aria-expanded", "true");
}

const cells = (sample) => sample.cells.map(([, value]) => value).join(" · ").slice(0, 160);

// Another address after the server was started again: see the server's word on caching.
const address = (sample) => `/image/${sample}?${project.opening}`;

function image(sample) {
  let one = images.get(sample);
  if (!one) {
    one = new Image();
    one.decoding = "async";
    one.src = address(sample);
    one.onload = () => one.classList.toggle("small", Math.max(one.naturalWidth, one.naturalHeight) < SMALL);
    one.onerror = () => loadAgain(one, sample);
    images.set(sample, one);
  }
  return one;
}

// The server may have been away. An image cannot be shown only where the server says so, or where
// the browser cannot decode what it sends.
async function loadAgain(one, sample) {
  while (images.get(sample) === one) {
    try {
      const response = await fetch(address(sample), { cache: "reload" });
      const decoded = response.ok && await createImageBitmap(await response.blob()).catch(() => null);
      if (!decoded) { one.dataset.broken = "1"; if (question && question.sample === sample) draw(); }
      else one.src = address(sample);
      return;
    } catch {
      await new Promise((go) => setTimeout(go, RETRY_MS));
    }
  }
}

function draw() {
  const stage = $("sample");
  stage.replaceChildren();
  $("file").textContent = question ? question.id : "";
  if (!question) {
    const left = standing.progress.remaining;
    stage.append(element("p", { class: "done" }, left
      ? "Others are looking at the samples that are left. Come back in a few minutes."
      : "All samples are answered. Export the labels: upslope label export"));
  } else if (project.sample_kind === "image") {
    const one = image(question.sample);
    one.alt = `Sample ${question.id}`;
    stage.append(one.dataset.broken
      ? element("p", { class: "done" }, "This image cannot be shown. Skip it.") : one);
  } else if (project.sample_kind === "text") {
    stage.append(element("div", { class: "text", tabIndex: 0 }, question.cells[0][1]));
  } else {
    const table = element("table");
    for (const [name, value] of question.cells) {
      table.append(element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)));
    }
    stage.append(element("div", { class: "scroll", tabIndex: 0 }, table));
  }
}

function show(answered) {
  standing = answered;
  const next = standing.questions[0] || null;
  const same = question && next && question.sample === next.sample &&
    JSON.stringify(question.answer) === JSON.stringify(next.answer);
  if (project.sample_kind === "image") preload();
  if (!same || !next) {
    question = next;
    guessShown = false;
    awayMs = 0;
    shownAt = performance.now();
    hiddenSince = document.hidden ? shownAt : 0;
    $("guess").hidden = true;
    $("show-guess").setAttribute("aria-expanded", "false");
    $("note").value = question && question.answer ? question.answer.note : "";
    if ($("filter").value) { $("filter").value = ""; filter(); }
    chosen = new Set(project.kind === "labels" && question && question.answer ? question.answer.label || [] : []);
    draw();
  } else {
    question = next;
  }
  showChosen();
  showProgress();
  showHistory();
}

function preload() {
  const wanted = new Set(standing.questions.map((one) => one.sample));
  for (const sample of [...images.keys()]) if (!wanted.has(sample)) images.delete(sample);
  for (const sample of wanted) image(sample);
}

function showChosen() {
  const before = question && question.answer ? question.answer : null;
  for (const button of $("classes").children) {
    const name = button.dataset.name;
    if (project.kind === "labels") button.setAttribute("aria-pressed", String(chosen.has(name)));
    else button.classList.toggle("before", Boolean(before) && before.label === name);
    button.disabled = !question;
  }
  for (const id of ["skip", "cannot", "save", "show-guess"]) $(id).disabled = !question;
  $("keep").hidden = !before;
  $("undo").disabled = standing.history.length === 0;
}

const sentence = (text) => (text.endsWith(".") ? text : `${text}.`);

function percent(value) { return `${Math.round(100 * value)}%`; }

function pace() {
  if (recent.length < 3) return "";
  const minutes = (recent.at(-1) - recent[0]) / 60000;
  return minutes > 0 ? `${Math.round((recent.length - 1) / minutes)} a minute` : "";
}

function showProgress() {
  const { samples, labelled, passed, remaining } = standing.progress;
  const parts = [`${labelled.toLocaleString()} of ${samples.toLocaleString()} labelled`];
  if (passed) parts.push(`${passed} passed`);
  if (pace()) parts.push(pace());
  $("counts").textContent = parts.join(" · ");
  const bar = $("bar");
  bar.setAttribute("aria-valuemax", samples);
  bar.setAttribute("aria-valuenow", samples - remaining);
  bar.firstElementChild.style.width = `${samples ? (100 * (samples - remaining)) / samples : 0}%`;

  const model = standing.model;
  const place = $("accuracy");
  place.replaceChildren();
  if (model.problem && !model.ready) {
    place.append("no model");
  } else if (model.accuracy) {
    const a = model.accuracy;
    place.append("model ", element("strong", {}, percent(a.value)), ` (${percent(a.low)} to ${percent(a.high)})`);
  } else if (!model.closed) {
    place.append(model.ready ? "no accuracy yet" : "preparing the model");
  }
  showAbout(model);
}

function showAbout(model) {
  const why = $("why");
  why.replaceChildren();
  if (question) why.append(element("strong", {}, "Why this one"), `${question.why}.`);
  why.hidden = !question;
  const counts = $("class-counts");
  counts.replaceChildren();
  for (const [name, count] of Object.entries(standing.progress.classes)) {
    counts.append(element("span", {}, name), element("span", {}, String(count)));
  }
  const words = [];
  if (!model.ready) {
    words.push(model.problem
      ? `Samples are asked at random, since the model cannot be trained: ${sentence(model.problem)}`
      : "Samples are asked at random until the first ranking is there.");
  } else {
    if (model.problem) words.push(`The last ranking is used, and no newer one came: ${sentence(model.problem)}`);
    words.push(`The model is logistic regression on ${model.features}, trained on ${model.labels} labels.`);
    if (model.labels < model.cold_start) {
      words.push(`The first ${model.cold_start} training labels are asked by coverage; then ${project.strategy} chooses.`);
    }
  }
  if (model.accuracy) {
    const a = model.accuracy;
    words.push(`It agrees with ${Math.round(a.value * a.of)} of ${a.of} answers of the control slice: accuracy ` +
      `${percent(a.value)}, ${percent(a.confidence)} interval ${percent(a.low)} to ${percent(a.high)} (${a.method}). ` +
      "No model is trained on the control slice.");
  } else if (model.closed) {
    words.push("The control slice is closed: its answers are trained on, and nothing measures the model.");
  }
  $("model").textContent = words.join(" ");
  const again = { doubtful: "answers that the model doubts", disagreements: "samples whose answers disagree" };
  for (const [what, them] of Object.entries(again)) {
    $(what).hidden = !model[what];
    $(what).textContent = `Ask again: ${model[what]} ${them}`;
  }
  // The verdict stands in sight; its figures are among the details.
  const verdict = model.hardly_pays ? model.advice.at(-1) : "";
  if ($("advice").textContent !== verdict) $("advice").textContent = verdict;
  $("advice").hidden = !verdict;
  const figures = model.hardly_pays ? model.advice.slice(0, -1) : model.advice;
  $("advice-lines").replaceChildren(...figures.map((line) => element("p", {}, line)));
  const { unreadable, imported, copies } = standing.progress;
  const notes = [...project.notes];
  if (unreadable) notes.push(`${unreadable} samples cannot be read and are not asked.`);
  if (copies) notes.push(`${copies} samples are copies of others and are asked once: upslope label status --json names them.`);
  if (imported) notes.push(`${imported} labels were there before.`);
  $("notes").replaceChildren(...notes.map((note) => element("p", {}, note)));
}

function showHistory() {
  const list = standing.history.map((one) => {
    const label = one.reason || [one.label].flat().join(", ") || "none";
    const button = element("button", { type: "button", title: `${one.id}: look at this answer again` });
    button.setAttribute("aria-label", `${one.id}, ${label}: look at this answer again`);
    if (one.cells) button.append(element("div", { class: "words" }, cells(one)));
    else button.append(element("img", { src: address(one.sample), alt: "", loading: "lazy" }));
    button.append(element("span", {}, label));
    button.onclick = () => change("/api/review", { sample: one.sample });
    return button;
  });
  $("history").replaceChildren(...list);
  $("history-box").hidden = list.length === 0;
}

// --- keys ---

// Classes that are single characters have these for keys; others 1 to 9, then letters.
function keysOf(classes) {
  const single = classes.every((name) => /^[0-9a-z]$/i.test(name));
  const lower = classes.map((name) => name.toLowerCase());
  if (single && new Set(lower).size === classes.length) return lower;
  return classes.map((_, i) => (i < 9 ? String(i + 1) : LETTERS[i - 9] || ""));
}

function filter() {
  const wanted = $("filter").value.trim().toLowerCase();
  for (const button of $("classes").children) {
    button.hidden = !button.dataset.name.toLowerCase().includes(wanted);
  }
}

function onKey(event) {
  if (event.isComposing) return; // a key by which letters are put together, as of Japanese
  if (event.ctrlKey || event.metaKey || event.altKey) {
    if ((event.ctrlKey || event.metaKey) && event.key === "z" && !/INPUT/.test(event.target.tagName)) {
      event.preventDefault();
      undo();
    }
    return;
  }
  const typing = event.target.tagName === "INPUT";
  if (event.key === "Escape") {
    if (typing) event.target.blur(); else keep();
    return;
  }
  if (typing) {
    if (event.key !== "Enter") return;
    event.preventDefault();
    if (event.target.id === "note") event.target.blur();
    else {
      const first = [...$("classes").children].find((button) => !button.hidden);
      if (first && $("filter").value.trim()) choose(first.dataset.name);
    }
    return;
  }
  const onButton = event.target.tagName === "BUTTON" || event.target.tagName === "SUMMARY";
  const scrolls = !onButton && event.target !== document.body &&
    event.target.scrollHeight > event.target.clientHeight;
  if (scrolls && /^Arrow(Up|Down)$/.test(event.key)) return; // a long text that somebody reads
  if (event.repeat) return; // a key held down is one answer
  const actions = {
    ArrowLeft: undo, Backspace: undo, ArrowRight: skip, ArrowDown: cannotTell, ArrowUp: showGuess,
    "/": () => $("note").focus(),
    ...(project.kind === "labels" && !onButton ? { Enter: saveSet } : {}),
  };
  const action = actions[event.key];
  if (action) {
    event.preventDefault();
    action();
    return;
  }
  const at = keysOf(project.classes).indexOf(event.key.toLowerCase());
  if (at >= 0 && event.key.length === 1) {
    event.preventDefault();
    choose(project.classes[at]);
  }
}

function build() {
  document.title = `Label ${project.name}`;
  $("name").textContent = project.name;
  const keys = keysOf(project.classes);
  project.classes.forEach((name, i) => {
    const button = element("button", { type: "button" }, element("span", {}, name));
    if (keys[i]) {
      button.setAttribute("aria-keyshortcuts", keys[i]);
      if (keys[i] !== name) {
        button.prepend(element("kbd", { "aria-hidden": "true" }, keys[i].toUpperCase()));
      }
    }
    button.dataset.name = name;
    button.onclick = () => choose(name);
    $("classes").append(button);
  });
  const longest = Math.max(...project.classes.map((name) => name.length));
  $("classes").classList.toggle("short", longest <= 3);
  $("classes").style.setProperty("--letters", Math.min(longest, 24));
  $("save").hidden = project.kind !== "labels";
  $("save").onclick = saveSet;
  $("filter-row").hidden = project.classes.length < FILTER_FROM;
  $("filter").oninput = filter;
  $("undo").onclick = undo;
  $("skip").onclick = skip;
  $("cannot").onclick = cannotTell;
  $("keep").onclick = keep;
  $("show-guess").onclick = showGuess;
  for (const what of ["doubtful", "disagreements"]) {
    $(what).onclick = () => change("/api/again", { what });
  }
  document.addEventListener("keydown", onKey);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) hiddenSince = performance.now();
    else if (hiddenSince) { awayMs += performance.now() - hiddenSince; hiddenSince = 0; }
  });
}

// The first questions; then new rankings and figures, while nobody answers.
async function poll() {
  if (!busy && (!document.hidden || !standing)) {
    const before = changes;
    try {
      const fresh = await send("/api/status");
      mended("poll");
      if (changes === before) show(fresh);
    } catch (error) { problem(error.message, "poll"); }
  }
  setTimeout(poll, POLL_MS);
}

async function start() {
  try {
    project = await send("/api/project");
  } catch (error) {
    problem(error.message, "poll");
    setTimeout(start, POLL_MS);
    return;
  }
  build();
  poll();
}

start();
