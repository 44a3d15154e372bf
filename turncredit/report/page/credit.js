// One trajectory under one model or several, side by side.
const response = (episode) => ({ ...episode, segments: episode.segments.slice(1) }); // the prompt stands below
async function drawModels() {
  const models = await read("models");
  const select = node("select", { name: "measure" });
  select.append(...MEASURES.map(([value, text]) => new Option(text, value)));
  const sides = node("div", { className: "sides" });
  const draw = () => sides.replaceChildren(...models.map((one) => node("div", {},
    node("div", { className: "quiet", textContent: `${one.model} · mean weight ${figure(one.mean)}` }), coloured(response(one.episode), one.words, select.value),
    node("h3", { textContent: "Most credited" }), topTable(mostCredited(one.episode), one.words))));
  select.addEventListener("change", draw);
  draw();
  document.getElementById("heatmaps").append(legend(select), sides);
  document.body.dataset.ready = "all";
}
drawModels();
