// The overview's brush and the two number fields beside it set which part of the text the charts below show.
function show(setting, from, to, by) {
  const zoom = [...document.querySelectorAll(".zoom")].find((one) => one.dataset.setting === setting);
  zoom.querySelector(".from").value = Math.round(from);
  zoom.querySelector(".to").value = Math.round(to);
  const whole = from <= 0 && to >= +zoom.querySelector(".to").max;
  state.zoom.set(setting, [from, whole ? to * 1.01 : to]); // the last point is not cut in half
  for (const [place, view] of views) {
    if (view && place.dataset.setting === setting && !place.classList.contains("overview")) update(place, view);
  }
  const place = zoom.querySelector(".overview");
  const view = views.get(place);
  if (by === "brush" || !view) return;
  const scale = view.scale("x");
  place.moved = true; // what follows is our own doing, not the reader's brush
  view.signal("brush_x", whole ? [] : [scale(from), scale(to)]).runAsync().then(() => (place.moved = false));
}

function connect(place, view) {
  const zoom = place.closest(".zoom");
  const { setting } = place.dataset;
  place.whole = view.scale("x").domain();
  const [from, to] = [zoom.querySelector(".from"), zoom.querySelector(".to")];
  [from.value, to.value] = place.whole;
  for (const field of [from, to]) field.max = place.whole[1];
  view.addSignalListener("brush", (name, value) => {
    if (place.moved) return;
    const span = value.position ? [...value.position].sort((a, b) => a - b) : place.whole;
    show(setting, ...(span[1] > span[0] ? span : place.whole), "brush");
  });
  const typed = () => {
    const span = [Math.max(+from.value, place.whole[0]), Math.min(+to.value, place.whole[1])];
    if (span[1] > span[0]) show(setting, ...span, "fields");
  };
  from.addEventListener("change", typed);
  to.addEventListener("change", typed);
  zoom.querySelector(".reset").addEventListener("click", () => show(setting, ...place.whole, "button"));
}
