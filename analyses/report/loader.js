// Hands every drawing of the page to the charting library. What is chosen it reads from the page's controls itself, as
// specifications say, and tells them what is chosen in a drawing; but it writes no number beside a slider, and its own
// menu saves a drawing at a press of the mouse, never of a key.
"use strict";

/** Unpack a JSON value from deflated base64. */
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
}

/** Let the number beside each slider follow it, be it moved by hand or by a drawing. */
function nameSliders() {
  for (const output of document.querySelectorAll(".panel output")) {
    const slider = document.getElementById(output.htmlFor.value);
    slider.addEventListener("input", () => (output.value = `${slider.value} of ${slider.max}`));
  }
}

addEventListener("DOMContentLoaded", async () => {
  document.getElementById("old-browser").hidden = typeof DecompressionStream !== "undefined";
  nameSliders();
  const { charts, rows, entries } = await unpack(document.getElementById("payload").textContent);
  for (const { name, spec } of charts) {
    const { view } = await vegaEmbed(`#plot-${name}`, { ...spec, datasets: rows });
    document.getElementById(`save-${name}`).onclick = async () =>
      Object.assign(document.createElement("a"), { href: await view.toImageURL("svg"), download: `${name}.svg` }).click();
  }
  if (entries.length) await new Explorer(entries, rows.pictures).show(0);
  document.documentElement.dataset.ready = "true";
});
