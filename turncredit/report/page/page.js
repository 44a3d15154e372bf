// Curves.

async function drawCharts() {
  const charts = await read("charts");
  const box = document.getElementById("charts");
  if (!charts.length) { box.append(node("p", { className: "quiet", textContent: "No step has been recorded yet." })); return; }
  const places = charts.map((chart) => {
    const place = node("div", { className: "plot" });
    box.append(node("div", { className: "chart" }, node("h3", { textContent: chart.title }), place));
    return place;
  });
  const text = await unpack("plotly");
  await painted(); // to evaluate the library takes longer than all the rest: the episodes are there before
  document.head.append(node("script", { textContent: text }));
  const waiting = [];
  const drawNext = async () => {
    while (waiting.length) { drawChart(waiting[0], charts[places.indexOf(waiting[0])]); await painted(); waiting.shift(); }
  };
  const seen = new IntersectionObserver((entries) => {
    const idle = !waiting.length;
    for (const entry of entries.filter((e) => e.isIntersecting)) {
      seen.unobserve(entry.target);
      waiting.push(entry.target);
    }
    if (idle) drawNext();
  }, { rootMargin: "200px" });
  places.forEach((place) => seen.observe(place));
  window.redraw = () => places.forEach((place, i) => place.classList.contains("js-plotly-plot") && drawChart(place, charts[i]));
}
function drawChart(place, chart) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true };
  const layout = { ...chart.layout, height: 270, margin: { l: 50, r: 12, t: 12, b: 40 }, paper_bgcolor: "transparent",
    plot_bgcolor: "transparent", font: { color: css("--ink"), size: 12 }, legend: { orientation: "h", y: 1.12 },
    hovermode: "x unified", hoverlabel: { bgcolor: css("--soft"), font: { color: css("--ink") } },
    xaxis: { ...chart.layout.xaxis, ...axis }, yaxis: { ...chart.layout.yaxis, ...axis } };
  Plotly.react(place, chart.data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
}

// Episodes: the list and its filters.

let index, shown = [], rows = 0;
const PAGE = 100, CHUNK = 64;
const FILTERS = [["run", "run"], ["env", "environment"], ["split", "split"], ["route", "route"], ["stop", "stop reason"]];
const state = {};
async function openBrowser() {
  index = await read("index");
  const form = document.getElementById("filters");
  for (const [name, label] of FILTERS) {
    const values = [...new Set(index.columns[name].filter((v) => v !== null))].sort();
    if (values.length < 2) continue;
    form.append(choice(name, label, values.map((v) => [String(v), name === "run" ? index.runs[v] : v])));
  }
  form.append(choice("reward", "verdict", [["passed", "passed"], ["failed", "failed"], ["unknown", "not judged"]]));
  for (const [name, label] of [["from", "from step"], ["to", "to step"], ["least", "reward ≥"], ["most", "reward ≤"]])
    form.append(field(name, label, "number"));
  form.append(field("task", "task or id", "search"));
  form.addEventListener("input", (event) => { state[event.target.name] = event.target.value; filter(); });
  document.getElementById("list").addEventListener("keydown", step);
  filter();
  shortcuts();
  const wanted = decodeURIComponent(location.hash).match(/^#episode=(\d+)$/);
  if (wanted) open(Number(wanted[1]));
}
function shortcuts() { // one episode that failed and one that passed, the newest with token weights
  const c = index.columns, box = node("p", { className: "shortcuts" }, "Look at an episode token by token: ");
  for (const [passed, label] of [[false, "one that failed"], [true, "one that passed"]]) {
    const of = (weighted) => c.id.findLastIndex((id, i) => id !== null && c.passed[i] === passed && (!weighted || c.credited[i]));
    const found = of(true) >= 0 ? of(true) : of(false);
    if (found >= 0) box.append(node("button", { type: "button", textContent: label, onclick: async () => {
      await open(found);
      document.getElementById("episode").scrollIntoView({ block: "start" });
    } }), " ");
  }
  if (box.querySelector("button")) document.getElementById("overview").after(box);
}
function choice(name, label, options) {
  const select = node("select", { name });
  select.append(new Option("all", ""), ...options.map(([value, text]) => new Option(text, value)));
  return node("label", {}, label + " ", select);
}
const field = (name, label, type) => node("label", {}, label + " ", node("input", { name, type, step: "any" }));
function matches(i) {
  const c = index.columns;
  if (c.id[i] === null) return false;
  for (const [name] of FILTERS) if (state[name] && String(c[name][i]) !== state[name]) return false;
  const reward = c.reward[i], verdict = reward === null ? "unknown" : c.passed[i] ? "passed" : "failed";
  if (state.reward && verdict !== state.reward) return false;
  if (state.from && c.step[i] < Number(state.from)) return false;
  if (state.to && c.step[i] > Number(state.to)) return false;
  if (state.least && !(reward !== null && reward >= Number(state.least))) return false;
  if (state.most && !(reward !== null && reward <= Number(state.most))) return false;
  return !state.task || c.task[i].includes(state.task) || c.id[i].includes(state.task);
}
function filter() {
  shown = [];
  for (let i = 0; i < index.columns.id.length; i++) if (matches(i)) shown.push(i);
  const total = index.columns.id.filter((id) => id !== null).length;
  document.getElementById("count").textContent = `${shown.length.toLocaleString("en")} of ${total.toLocaleString("en")} episodes`;
  const list = document.getElementById("list");
  list.replaceChildren();
  list.scrollTop = 0;
  rows = 0;
  more();
}
function more() {
  const list = document.getElementById("list");
  list.querySelector(".more")?.remove();
  for (const i of shown.slice(rows, rows + PAGE)) list.append(row(i));
  rows += PAGE;
  if (rows < shown.length) list.append(node("button", { className: "more", type: "button", textContent: "show more", onclick: more }));
}
function row(i) {
  const c = index.columns, kind = c.reward[i] === null ? "unknown" : c.passed[i] ? "good" : "bad";
  const made = node("button", { className: "row", type: "button", onclick: () => open(i) },
    node("span", { textContent: c.id[i] }),
    node("span", { className: "reward " + kind, textContent: c.reward[i] === null ? "—" : figure(c.reward[i]) }),
    node("span", { textContent: c.env[i].replace(/^turncredit\//, "") }),
    node("span", { className: "quiet", textContent: c.stop[i] === "finished" ? `${c.turns[i]} turns` : c.stop[i] }));
  made.dataset.index = i;
  return made;
}
function step(event) {
  if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
  event.preventDefault();
  const at = shown.indexOf(Number(document.querySelector(".row[aria-current]")?.dataset.index ?? -1));
  const next = shown[at + (event.key === "ArrowDown" ? 1 : -1)];
  if (next !== undefined) open(next);
}

// One episode.

async function details(i) { return (await read("chunk-" + Math.floor(i / CHUNK)))[i % CHUNK]; }
let wanted = 0;
async function open(i) {
  const mine = ++wanted;
  const run = index.columns.run[i], found = await details(i), words = await read("words-" + run);
  const reference = found.credit?.reference ? indexOf(run, found.credit.reference) : -1;
  const beside = reference < 0 ? null : await details(reference);
  if (mine !== wanted) return; // another was chosen meanwhile
  document.querySelector(".row[aria-current]")?.removeAttribute("aria-current");
  document.querySelector(`.row[data-index="${i}"]`)?.setAttribute("aria-current", "true");
  history.replaceState(null, "", "#episode=" + i);
  const box = document.getElementById("episode");
  box.replaceChildren(...heading(i, found), ...heatmap(found, beside, words), ...conversation(found));
  box.dataset.id = found.id;
}
function indexOf(run, id) { return index.columns.id.findIndex((other, i) => other === id && index.columns.run[i] === run); }
function heading(i, episode) {
  const c = index.columns, reward = c.reward[i], kind = reward === null ? "unknown" : c.passed[i] ? "good" : "bad";
  const box = node("div", { className: "verdict " + kind },
    node("p", { innerHTML: "" }, node("b", { className: kind, textContent: reward === null ? "not judged" : `reward ${figure(reward)} · ${c.passed[i] ? "passed" : "failed"}` })));
  if (episode.verdict?.reason) box.append(node("p", { textContent: "Why: " + episode.verdict.reason }));
  box.append(node("p", { textContent: `Ended: ${c.stop[i]} — ${episode.why}` }));
  if (episode.error) box.append(node("p", { className: "bad", textContent: episode.error }));
  const noted = Object.entries(episode.verdict?.details ?? {});
  if (noted.length && noted.length < 4 && noted.every(([, value]) => String(value).length <= 200 && typeof value !== "object"))
    box.append(...noted.map(([name, value]) => node("p", { textContent: `${name[0].toUpperCase()}${name.slice(1)}: ${value}` })));
  else if (noted.length)
    box.append(node("details", {}, node("summary", { textContent: "what the verifier noted" }), node("pre", { textContent: JSON.stringify(episode.verdict.details, null, 1) })));
  const credit = episode.credit;
  if (credit) box.append(node("p", { textContent: `Credit: advantage ${Array.isArray(credit.advantage) ? "of each token its own" : figure(credit.advantage)}` + (credit.route ? `, route ${credit.route}` : "") +
    (credit.reference ? `, weighted by a teacher that saw episode ${credit.reference}` : credit.weight ? "" : ", every token alike") }));
  return [node("h3", { textContent: `${c.env[i]} · ${c.id[i]}` }),
    node("p", { className: "quiet", textContent: `step ${c.step[i]} · task ${c.task[i]} · split ${c.split[i]} · ${c.turns[i]} turns · ${c.tokens[i]} generated tokens · seed ${episode.seed}` }), box];
}
function conversation(episode) {
  const said = [];
  if (episode.system) said.push(node("details", { className: "say other" }, node("summary", { textContent: "system prompt" }), episode.system));
  said.push(node("div", { className: "say other" }, node("b", { textContent: "task" }), episode.prompt));
  for (const [action, observation, role, valid, reward] of episode.turns) {
    said.push(node("div", { className: "say agent" }, node("b", { textContent: valid ? "agent" : "agent · malformed action" }), action));
    if (observation) said.push(node("div", { className: "say other" }, node("b", { textContent: (role === "tool" ? "tool" : "environment") + (reward ? ` · reward ${figure(reward)}` : "") }), observation));
  }
  return [node("h3", { textContent: "What was said" }), ...said];
}

// The credit heatmap beside its reference.

function heatmap(episode, reference, words) {
  const recorded = Boolean(episode.credit), measures = MEASURES.filter(([name]) => name !== "weight" || recorded);
  const select = node("select", { name: "measure" });
  select.append(...measures.map(([value, text]) => new Option(text, value)));
  const sides = node("div", { className: "sides" });
  const draw = () => {
    sides.replaceChildren(node("div", {}, node("div", { className: "quiet", textContent: "this episode" }), coloured(episode, words, select.value)));
    if (reference) sides.append(node("div", {}, node("div", { className: "quiet", textContent: `the reference that its teacher saw: ${reference.id}` }), coloured(reference, words, select.value)));
  };
  select.addEventListener("change", draw);
  draw();
  const parts = [node("h3", { textContent: "Token by token" }), legend(select), sides];
  if (!recorded) parts.push(node("p", { className: "quiet", textContent: "The run recorded no credit for this episode." }));
  const top = mostCredited(episode);
  if (top.length) parts.push(node("h3", { textContent: "Most credited" }), topTable(top, words));
  return parts;
}
openBrowser().then(() => { document.body.dataset.ready = "episodes"; return drawCharts(); }).then(() => { document.body.dataset.ready = "all"; });
