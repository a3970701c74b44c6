// The explorer of patches: a picture under its grid, and the words of one patch at every layer.
"use strict";

async function startExplorer(entries, pictures) {
  const byId = (name) => document.getElementById(`explorer-${name}`);
  const [choice, slider, onPatches, grid] = ["picture", "layer", "words", "grid"].map(byId);
  const packed = document.querySelectorAll("script.words");
  const state = { words: null, token: 0, layer: 0, held: false, cells: [], tokenAt: new Map() };

  function element(name, text, ...classes) {
    const made = document.createElement(name);
    made.textContent = text;
    made.classList.add(...classes.filter(Boolean));
    return made;
  }

  function piecesOf(layer, token) {
    const { ids, logits, pieces, matches } = state.words;
    return ids[layer][token].map((id, rank) => ({
      text: pieces[id],
      match: Boolean(matches[id]),
      logit: logits[layer][token][rank],
    }));
  }

  function nameOf(token) {
    const [row, col] = state.words.cells[token];
    return state.words.placed ? `patch row ${row + 1}, column ${col + 1}` : `image token ${token + 1}`;
  }

  /** Colour and label the patches by what they say at the layer. */
  function showLayer() {
    state.cells.forEach((cell, token) => {
      const best = piecesOf(state.layer, token);
      cell.classList.toggle("match", best[0].match);
      cell.textContent = onPatches.checked ? best[0].text : "";
      cell.setAttribute("aria-label", `${nameOf(token)}: ${best[0].text}`);
    });
    slider.value = state.layer;
    const name = `${state.words.layers[state.layer]}`;
    slider.setAttribute("aria-valuetext", `layer ${name}`);
    byId("layer-name").textContent = `${name} of ${state.words.layers.at(-1)}`;
    [...byId("table").tBodies[0].rows].forEach((row, layer) => row.classList.toggle("current", layer === state.layer));
  }

  /** Fill the table with the patch's words at every layer. */
  function showToken() {
    state.cells.forEach((cell, token) => cell.setAttribute("aria-selected", String(token === state.token)));
    grid.setAttribute("aria-activedescendant", state.cells[state.token].id);
    const body = byId("table").tBodies[0];
    body.replaceChildren(
      ...state.words.layers.map((layer, place) => {
        const row = document.createElement("tr");
        row.append(element("th", String(layer)));
        row.firstChild.scope = "row";
        for (const { text, match, logit } of piecesOf(place, state.token)) {
          const cell = document.createElement("td");
          cell.append(element(match ? "mark" : "span", text), " ", element("small", logit.toFixed(2)));
          row.append(cell);
        }
        row.classList.toggle("current", place === state.layer);
        return row;
      })
    );
    byId("where").textContent = `Best pieces and logits of ${nameOf(state.token)}${state.held ? " (held)" : ""}`;
  }

  function announce() {
    const said = piecesOf(state.layer, state.token).map(
      ({ text, match, logit }) => `${text} ${logit.toFixed(1)}${match ? ", in the captions" : ""}`
    );
    byId("status").textContent = `${nameOf(state.token)}, layer ${state.words.layers[state.layer]}: ${said.join("; ")}`;
  }

  function choose(token) {
    state.token = token;
    showToken();
  }

  function setLayer(layer) {
    state.layer = Math.min(Math.max(layer, 0), state.words.layers.length - 1);
    showLayer();
  }

  function move(rows, cols) {
    const [row, col] = state.words.cells[state.token];
    const token = state.tokenAt.get(`${row + rows},${col + cols}`);
    if (token !== undefined) choose(token);
  }

  /** Lay the grid over its picture; patches may reach over the picture's edge, which is then white. */
  function place(href) {
    const { box, aspect, rows, cols, placed } = state.words;
    const [left, top] = [Math.min(0, box[0]), Math.min(0, box[1])];
    const [width, height] = [Math.max(1, box[0] + box[2]) - left, Math.max(1, box[1] + box[3]) - top];
    const inside = (target, [x, y, w, h]) =>
      Object.assign(target.style, {
        left: `${(100 * (x - left)) / width}%`,
        top: `${(100 * (y - top)) / height}%`,
        width: `${(100 * w) / width}%`,
        height: `${(100 * h) / height}%`,
      });
    const picture = byId("image");
    picture.hidden = href === null || !placed;
    if (!picture.hidden) picture.src = href;
    inside(picture, [0, 0, 1, 1]);
    inside(grid, box);
    byId("frame").style.aspectRatio = placed ? String((aspect * width) / height) : String(cols / rows);
    byId("frame").classList.toggle("bare", picture.hidden);
    grid.style.gridTemplate = `repeat(${rows}, 1fr) / repeat(${cols}, 1fr)`;
  }

  async function show(number) {
    state.words = await strata.unpack(packed[number].textContent);
    state.token = state.layer = 0;
    state.held = false;
    const { words } = state;
    place(pictures[entries[number].picture].href);
    state.tokenAt = new Map(words.cells.map((cell, token) => [cell.join(), token]));
    state.cells = words.cells.map(([row, col], token) => {
      const cell = element("div", "", "patch");
      cell.id = `explorer-patch-${token}`;
      cell.setAttribute("role", "gridcell");
      cell.style.gridArea = `${row + 1} / ${col + 1}`;
      cell.dataset.token = token;
      return cell;
    });
    grid.replaceChildren(...state.cells);
    onPatches.checked = words.cols <= 12 && grid.clientWidth / words.cols > 34;
    byId("captions").replaceChildren(...words.captions.map((caption) => element("li", caption)));
    byId("image").alt = words.captions[0] ? `Picture: ${words.captions[0]}` : `Picture ${entries[number].label}`;
    const head = document.createElement("tr");
    head.append(element("th", "layer"), ...words.ids[0][0].map((_, rank) => element("th", `${rank + 1}`)));
    head.querySelectorAll("th").forEach((cell) => (cell.scope = "col"));
    byId("table").tHead.replaceChildren(head);
    slider.max = words.layers.length - 1;
    choose(state.tokenAt.get(`${Math.floor(words.rows / 2)},${Math.floor(words.cols / 2)}`) ?? 0);
    setLayer(Math.floor(0.7 * (words.layers.length - 1)));
  }

  const keys = {
    ArrowUp: () => move(-1, 0),
    ArrowDown: () => move(1, 0),
    ArrowLeft: () => move(0, -1),
    ArrowRight: () => move(0, 1),
    PageUp: () => setLayer(state.layer + 1),
    PageDown: () => setLayer(state.layer - 1),
    Enter: () => hold(state.token),
    " ": () => hold(state.token),
  };

  function hold(token) {
    state.held = !(state.held && token === state.token);
    choose(token);
  }

  function tokenUnder(event) {
    const cell = event.target.closest(".patch");
    return cell ? Number(cell.dataset.token) : undefined;
  }

  const labels = [...new Set(entries.map((entry) => entry.store))];
  for (const label of labels) {
    const group = document.createElement("optgroup");
    group.label = label;
    entries.forEach((entry, number) => {
      if (entry.store === label) group.append(new Option(entry.label, number));
    });
    choice.append(group);
  }
  choice.addEventListener("change", () => show(Number(choice.value)));
  slider.addEventListener("input", () => {
    setLayer(Number(slider.value));
    announce();
  });
  onPatches.addEventListener("change", showLayer);
  grid.addEventListener("pointerover", (event) => {
    const token = tokenUnder(event);
    if (token !== undefined && !state.held) choose(token);
  });
  grid.addEventListener("click", (event) => {
    const token = tokenUnder(event);
    if (token !== undefined) hold(token);
  });
  grid.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
    announce();
  });
  await show(0);
}
