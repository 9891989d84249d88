// Draws each chart when it comes into view, the rest when the browser is idle, and all of them before printing.
const views = new Map(); // place → its Vega view, null while it is being drawn
const settings = { renderer: "svg", actions: false, ast: true, tooltip: { theme: "custom" } };
const state = { emphasis: null, zoom: new Map() }; // the series singled out; setting → [from, to] in tokens

const config = JSON.parse(document.getElementById("look").textContent);

function draw(place) {
  if (views.has(place) || !place.offsetParent) return; // a hidden place has no width to draw in
  views.set(place, null);
  const spec = { ...JSON.parse(document.getElementById(place.dataset.spec).textContent), config };
  vegaEmbed(place, spec, settings).then(({ view }) => {
    views.set(place, view);
    place.series = spec.layer.map((layer) => layer.encoding.color?.scale?.domain).find(Boolean) ?? [];
    place.style.minHeight = "";
    if (place.classList.contains("overview")) connect(place, view);
    update(place, view);
  });
}

// Brings one chart to the state of the page: which series is singled out, which part of the text is shown.
function update(place, view) {
  view.signal("emphasis", place.series.includes(state.emphasis) ? state.emphasis : null);
  const zoom = state.zoom.get(place.dataset.setting);
  if (zoom && "zoom_from" in view.getState().signals) view.signal("zoom_from", zoom[0]).signal("zoom_to", zoom[1]);
  view.runAsync();
}

function updateAll() {
  for (const [place, view] of views) if (view) update(place, view);
}

const places = [...document.querySelectorAll("[data-spec]")];
const watcher = new IntersectionObserver(
  (seen) => seen.filter((one) => one.isIntersecting).forEach((one) => draw(one.target)),
  { rootMargin: "300px" },
);
places.forEach((place) => watcher.observe(place));

// Draws what can be reached by scrolling, one chart at a time, so that no reader waits and a print has them all.
// A busy machine may never be idle, so it waits a second at most.
const whenIdle = (work) =>
  window.requestIdleCallback ? requestIdleCallback(work, { timeout: 1000 }) : setTimeout(work, 50);
function drawNext() {
  const next = places.find((place) => !views.has(place) && place.offsetParent);
  if (!next) return;
  draw(next);
  whenIdle(drawNext);
}
addEventListener("load", () => setTimeout(() => whenIdle(drawNext), 300));

addEventListener("beforeprint", () => {
  document.body.classList.add("printing");
  places.forEach(draw);
});
addEventListener("afterprint", () => document.body.classList.remove("printing"));
