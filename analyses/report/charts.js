// Hands the page's charts to Vega-Lite, keeps their common choices in step, and saves drawings and numbers.
"use strict";

const strata = {
  /** Unpack a JSON value from deflated base64. */
  async unpack(text) {
    const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).json();
  },

  /** Save a text as a file. */
  save(name, kind, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: kind }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  },

  /** Write rows as CSV (RFC 4180); what one row has, all have. */
  csv(rows) {
    const columns = [...new Set(rows.flatMap(Object.keys))];
    const cell = (value) => {
      const text = value === null || value === undefined ? "" : String(value);
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [columns, ...rows.map((row) => columns.map((column) => row[column]))]
      .map((cells) => cells.map(cell).join(",") + "\r\n")
      .join("");
  },

  /** Draw every chart; returns their views by name. */
  async draw(page) {
    const views = {};
    for (const { name, figure, spec } of page.charts) {
      const wanted = new Set(JSON.stringify(spec).match(/"data":\{"name":"[^"]*"/g).map((text) => text.split('"')[5]));
      const datasets = Object.fromEntries([...wanted].map((data) => [data, page.rows[data]]));
      // Vega empties what it puts inputs into, and buttons of one name belong together within a form: one per chart.
      const bind = document.querySelector(`#figure-${figure} .choices`).appendChild(document.createElement("form"));
      const options = { renderer: "svg", ast: true, actions: false, bind, tooltip: { theme: "custom" } };
      const { view } = await vegaEmbed(document.getElementById(`plot-${name}`), { ...spec, datasets }, options);
      views[name] = view;
    }
    return views;
  },

  /** Let a choice that is made in one chart hold in all that share it. */
  share(charts, views) {
    for (const { name, shared } of charts) {
      for (const signal of shared) {
        const others = charts.filter((other) => other.name !== name && other.shared.includes(signal));
        views[name].addSignalListener(signal, (_, value) => {
          for (const other of others) {
            if (views[other.name].signal(signal) !== value) views[other.name].signal(signal, value).runAsync();
          }
        });
      }
    }
  },

  async start() {
    if (typeof DecompressionStream === "undefined") {
      document.getElementById("old-browser").hidden = false;
      return;
    }
    const page = await strata.unpack(document.getElementById("payload").textContent);
    const views = (strata.views = await strata.draw(page));
    strata.share(page.charts, views);
    for (const button of document.querySelectorAll("[data-svg]")) {
      const name = button.dataset.svg;
      button.addEventListener("click", async () => strata.save(`${name}.svg`, "image/svg+xml", await views[name].toSVG()));
    }
    for (const button of document.querySelectorAll("[data-csv]")) {
      const name = button.dataset.csv;
      button.addEventListener("click", () => strata.save(`${name}.csv`, "text/csv", strata.csv(page.rows[name])));
    }
    if (page.entries.length) await new Explorer(page.entries, page.rows.pictures).show(0);
    document.documentElement.dataset.ready = "true";
  },
};

document.addEventListener("DOMContentLoaded", strata.start);
