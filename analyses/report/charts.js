// What the charting library leaves to a page: it reads no packed data, keeps no two charts in step, and its own menu
// saves a drawing at a press of the mouse, never of a key. All else that charts do is said in their specifications.
"use strict";

const views = {};

/** Unpack a JSON value from deflated base64. */
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
}

/** Draw every chart, and let a choice that is made in one hold in all that share it. */
async function draw({ charts, rows }) {
  for (const { name, spec } of charts) {
    const { view } = await vegaEmbed(`#plot-${name}`, { ...spec, datasets: rows });
    views[name] = view;
    document.getElementById(`save-${name}`).onclick = async () =>
      Object.assign(document.createElement("a"), { href: await view.toImageURL("svg"), download: `${name}.svg` }).click();
  }
  for (const { name, shared } of charts)
    for (const other of charts.filter((one) => one.name !== name))
      for (const signal of shared.filter((one) => other.shared.includes(one)))
        views[name].addSignalListener(signal, (_, value) => {
          const view = views[other.name];
          if (view.signal(signal) !== value) view.signal(signal, value).runAsync();
        });
}

addEventListener("DOMContentLoaded", async () => {
  document.getElementById("old-browser").hidden = typeof DecompressionStream !== "undefined";
  const page = await unpack(document.getElementById("payload").textContent);
  await draw(page);
  if (page.entries.length) await new Explorer(page.entries, page.rows.pictures).show(0);
  document.documentElement.dataset.ready = "true";
});
