// Draws the charts, and makes the tables of prompts that can be searched, filtered and sorted.

const PAGE = 25;

const config = JSON.parse(document.getElementById("config").textContent);

// ---- charts

const specs = JSON.parse(document.getElementById("specs").textContent);

// Vega's tooltip would bring light and dark themes of its own; the page has one, in its style sheet.
const options = { actions: false, renderer: "svg", ast: true, config, defaultStyle: false, tooltip: { disableDefaultStyle: true } };

async function draw(element) {
  if (element.dataset.drawn) return;
  element.dataset.drawn = "yes";
  const spec = { ...specs[element.dataset.spec], autosize: { type: "fit-x", contains: "padding" } };
  await vegaEmbed(element, spec, options);
}

function drawAll(elements) {
  return Promise.all([...elements].map(draw));
}

for (const details of document.querySelectorAll("details")) {
  details.addEventListener("toggle", () => details.open && drawAll(details.querySelectorAll(".chart")));
}

// ---- tables of prompts

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function select(label, values, chosen, change) {
  const box = make("select", { ariaLabel: label }, ...values.map(([value, text]) => make("option", { value, textContent: text })));
  box.value = chosen;
  box.addEventListener("change", () => change(box.value));
  return box;
}

// Each word's letters but the first.
const mask = (text) => text.replace(/([\p{L}\p{N}_])([\p{L}\p{N}_]+)/gu, (_, first, rest) => first + "*".repeat(rest.length));
const number = (value) => (value == null ? "–" : Number(value.toPrecision(4)).toString());
const signed = (value) => (value > 0 ? "+" : "") + number(value);
const pretty = (name) => name.replaceAll("_", " ");

function browse(element) {
  const data = JSON.parse(element.querySelector("script").textContent);
  const names = [...new Set(data.rows.flatMap(([, answers]) => Object.keys(answers)))];
  const alone = data.before === data.after;
  const state = {
    search: "", filter: "all", order: "file", page: 0, hidden: data.masked,
    before: data.before, after: data.after, score: data.scores[0],
  };

  const scoreOf = (answers, name) => answers[name]?.[1][state.score] ?? null;
  function gainOf([, answers]) {
    const [a, b] = [scoreOf(answers, state.before), scoreOf(answers, state.after)];
    return alone ? b : a == null || b == null ? null : b - a;
  }

  function found() {
    const words = state.search.toLowerCase();
    const good = data.lower ? -1 : 1;
    let rows = data.rows.filter((row) => {
      const sign = Math.sign(gainOf(row) ?? 0) * good;
      const kept = { all: true, better: sign > 0, worse: sign < 0, equal: sign === 0 }[state.filter];
      const texts = () => [row[0], ...Object.values(row[1]).map(([text]) => text)];
      return kept && (!words || texts().some((text) => text.toLowerCase().includes(words)));
    });
    if (state.order !== "file") {
      const way = (state.order === "most" ? -1 : 1) * good;
      rows = [...rows].sort((one, two) => way * ((gainOf(one) ?? 0) - (gainOf(two) ?? 0)));
    }
    return rows;
  }

  const text = (value) => make("div", { className: "text", textContent: state.hidden ? mask(value) : value });

  function answer(row, name, gain) {
    const [value, scores] = row[1][name] ?? ["", {}];
    const head = make("h4", {}, make("b", { textContent: pretty(name) }));
    for (const [key, score] of Object.entries(scores)) {
      if (data.scores.includes(key) || key === "tokens") head.append(` · ${pretty(key)} ${number(score)}`);
    }
    if (gain != null) {
      const better = gain * (data.lower ? -1 : 1);
      const className = better > 0 ? "better" : better < 0 ? "worse" : "";
      head.append(" · ", make("b", { className, textContent: signed(gain) }));
    }
    return make("div", {}, head, text(value));
  }

  function rowOf(row) {
    const one = make("div", { className: alone ? "row two" : "row" });
    one.append(make("div", {}, make("h4", { textContent: "prompt" }), text(row[0])));
    if (!alone) one.append(answer(row, state.before, null));
    one.append(answer(row, state.after, alone ? null : gainOf(row)));
    one.addEventListener("click", () => String(getSelection()) || one.classList.toggle("open"));
    return one;
  }

  const list = make("div", { className: "rows" });
  const count = make("span", { className: "count" });
  const [back, next] = [["‹ back", -1], ["next ›", 1]].map(([label, step]) => {
    const button = make("button", { type: "button", textContent: label, className: step < 0 ? "back" : "next" });
    button.addEventListener("click", () => { state.page += step; show(); });
    return button;
  });

  function show() {
    const rows = found();
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    state.page = Math.min(Math.max(state.page, 0), pages - 1);
    const start = state.page * PAGE;
    list.replaceChildren(...rows.slice(start, start + PAGE).map(rowOf));
    const spread = data.rows.length < data.total ? `, spread over ${data.total}` : "";
    count.textContent = rows.length ? `${start + 1}–${Math.min(start + PAGE, rows.length)} of ${rows.length}${spread}` : "nothing found";
    [back.disabled, next.disabled] = [state.page === 0, state.page === pages - 1];
  }

  const set = (key) => (value) => { state[key] = value; state.page = 0; show(); };
  const search = make("input", { type: "search", placeholder: "Search prompts and answers", ariaLabel: "search" });
  search.addEventListener("input", () => set("search")(search.value));
  const controls = make("div", { className: "controls" }, search);
  const what = alone ? "score" : "gain";
  if (names.length > 2) {
    const choices = names.map((name) => [name, pretty(name)]);
    controls.append(select("before", choices, state.before, set("before")), "→", select("after", choices, state.after, set("after")));
  }
  if (data.scores.length > 1) {
    controls.append(select("score", data.scores.map((key) => [key, pretty(key)]), state.score, set("score")));
  }
  if (data.scores.length) {
    controls.append(
      select("filter", [["all", "all"], ["better", "better"], ["worse", "worse"], ["equal", "equal"]], "all", set("filter")),
      select("order", [["file", "as in the file"], ["most", `best ${what} first`], ["least", `worst ${what} first`]], "file", set("order")),
    );
  }
  if (data.masked) {
    const box = make("input", { type: "checkbox", className: "unmask" });
    box.addEventListener("change", () => set("hidden")(!box.checked));
    controls.append(make("label", {}, box, " show toxic text"));
  }
  element.append(controls, list, make("div", { className: "controls" }, back, next, count));
  show();
}

document.querySelectorAll(".browser").forEach(browse);
await drawAll(document.querySelectorAll(".chart:not(details .chart)"));
document.body.dataset.ready = "yes";
