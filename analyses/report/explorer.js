// The explorer of patches: a picture under its grid, and the words of one patch at every layer.
"use strict";

function make(name, text, ...classes) {
  const made = document.createElement(name);
  made.textContent = text;
  made.classList.add(...classes);
  return made;
}

class Explorer {
  /**
   * entries: label, store and place among the pictures of each choice; pictures: rows with an href, or null for none.
   * The words of each choice stand packed in the page and are unpacked when it is chosen.
   */
  constructor(entries, pictures) {
    this.entries = entries;
    this.pictures = pictures;
    this.packed = document.querySelectorAll("script.words");
    for (const name of ["picture", "layer", "words", "grid", "frame", "image", "captions", "table", "where", "status"]) {
      this[name] = document.getElementById(`explorer-${name}`);
    }
    this.layerName = document.getElementById("explorer-layer-name");
    this.fillChoice();
    this.listen();
  }

  fillChoice() {
    for (const label of new Set(this.entries.map((entry) => entry.store))) {
      const group = document.createElement("optgroup");
      group.label = label;
      this.entries.forEach((entry, number) => {
        if (entry.store === label) group.append(new Option(entry.label, number));
      });
      this.picture.append(group);
    }
  }

  listen() {
    this.picture.addEventListener("change", () => this.show(Number(this.picture.value)));
    this.words.addEventListener("change", () => this.showLayer());
    this.layer.addEventListener("input", () => {
      this.setLayer(Number(this.layer.value));
      this.announce();
    });
    this.grid.addEventListener("pointerover", (event) => {
      const token = this.tokenUnder(event);
      if (token !== undefined && !this.held) this.choose(token);
    });
    this.grid.addEventListener("click", (event) => {
      const token = this.tokenUnder(event);
      if (token !== undefined) this.hold(token);
    });
    const keys = {
      ArrowUp: () => this.move(-1, 0),
      ArrowDown: () => this.move(1, 0),
      ArrowLeft: () => this.move(0, -1),
      ArrowRight: () => this.move(0, 1),
      PageUp: () => this.setLayer(this.at + 1),
      PageDown: () => this.setLayer(this.at - 1),
      Enter: () => this.hold(this.token),
      " ": () => this.hold(this.token),
    };
    this.grid.addEventListener("keydown", (event) => {
      if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      keys[event.key]();
      this.announce();
    });
  }

  /** Unpack a choice and show it, unless another was made meanwhile. */
  async show(number) {
    const said = await unpack(this.packed[number].textContent);
    if (Number(this.picture.value) !== number) return;
    this.said = said;
    this.held = false;
    this.place(this.pictures[this.entries[number].picture].href);
    this.makePatches();
    this.makeHead();
    this.captions.replaceChildren(...said.captions.map((caption) => make("li", caption)));
    this.image.alt = said.captions[0] ? `Picture: ${said.captions[0]}` : `Picture ${this.entries[number].label}`;
    this.words.checked = said.cols <= 12 && this.grid.clientWidth / said.cols > 34;
    this.layer.max = said.layers.length - 1;
    this.at = Math.floor(0.7 * (said.layers.length - 1));
    this.choose(this.tokenAt.get(`${Math.floor(said.rows / 2)},${Math.floor(said.cols / 2)}`) ?? 0);
    this.showLayer();
    this.grid.dataset.picture = number;
  }

  /** Lay the grid over its picture; patches may reach over the picture's edge, which is then white. */
  place(href) {
    const { box, aspect, rows, cols, placed } = this.said;
    const [left, top] = [Math.min(0, box[0]), Math.min(0, box[1])];
    const [width, height] = [Math.max(1, box[0] + box[2]) - left, Math.max(1, box[1] + box[3]) - top];
    const put = (target, [x, y, w, h]) =>
      Object.assign(target.style, {
        left: `${(100 * (x - left)) / width}%`,
        top: `${(100 * (y - top)) / height}%`,
        width: `${(100 * w) / width}%`,
        height: `${(100 * h) / height}%`,
      });
    this.image.hidden = href === null || !placed;
    if (!this.image.hidden) this.image.src = href;
    put(this.image, [0, 0, 1, 1]);
    put(this.grid, box);
    this.frame.style.aspectRatio = placed ? String((aspect * width) / height) : String(cols / rows);
    this.frame.classList.toggle("bare", this.image.hidden);
    this.grid.style.gridTemplate = `repeat(${rows}, 1fr) / repeat(${cols}, 1fr)`;
  }

  makePatches() {
    this.tokenAt = new Map(this.said.cells.map((cell, token) => [cell.join(), token]));
    this.patches = this.said.cells.map(([row, col], token) => {
      const patch = make("div", "", "patch");
      patch.id = `explorer-patch-${token}`;
      patch.setAttribute("role", "gridcell");
      patch.style.gridArea = `${row + 1} / ${col + 1}`;
      patch.dataset.token = token;
      return patch;
    });
    this.grid.replaceChildren(...this.patches);
  }

  makeHead() {
    const head = document.createElement("tr");
    head.append(make("th", "layer"), ...this.said.ids[0][0].map((_, rank) => make("th", `${rank + 1}`)));
    for (const cell of head.cells) cell.scope = "col";
    this.table.tHead.replaceChildren(head);
  }

  piecesOf(layer, token) {
    const { ids, logits, pieces, matches } = this.said;
    return ids[layer][token].map((id, rank) => ({
      text: pieces[id],
      match: Boolean(matches[id]),
      logit: logits[layer][token][rank],
    }));
  }

  nameOf(token) {
    const [row, col] = this.said.cells[token];
    return this.said.placed ? `patch row ${row + 1}, column ${col + 1}` : `image token ${token + 1}`;
  }

  /** Mark and label the patches by what they say at the layer. */
  showLayer() {
    this.patches.forEach((patch, token) => {
      const [best] = this.piecesOf(this.at, token);
      patch.classList.toggle("match", best.match);
      patch.textContent = this.words.checked ? best.text : "";
      patch.setAttribute("aria-label", `${this.nameOf(token)}: ${best.text}`);
    });
    const layer = this.said.layers[this.at];
    this.layer.value = this.at;
    this.layer.setAttribute("aria-valuetext", `layer ${layer}`);
    this.layerName.textContent = `${layer} of ${this.said.layers.at(-1)}`;
    [...this.table.tBodies[0].rows].forEach((row, place) => row.classList.toggle("current", place === this.at));
  }

  /** Choose a patch and list its words at every layer. */
  choose(token) {
    this.token = token;
    this.patches.forEach((patch, other) => patch.setAttribute("aria-selected", String(other === token)));
    this.grid.setAttribute("aria-activedescendant", this.patches[token].id);
    this.table.tBodies[0].replaceChildren(...this.said.layers.map((layer, place) => this.makeRow(layer, place)));
    this.where.textContent = `Best pieces and logits of ${this.nameOf(token)}${this.held ? " (held)" : ""}`;
  }

  makeRow(layer, place) {
    const row = document.createElement("tr");
    row.append(make("th", String(layer)));
    row.firstChild.scope = "row";
    for (const { text, match, logit } of this.piecesOf(place, this.token)) {
      const cell = document.createElement("td");
      cell.append(make(match ? "mark" : "span", text), " ", make("small", logit.toFixed(2)));
      row.append(cell);
    }
    row.classList.toggle("current", place === this.at);
    return row;
  }

  /** Say for screen readers what is chosen. */
  announce() {
    const words = this.piecesOf(this.at, this.token).map(
      ({ text, match, logit }) => `${text} ${logit.toFixed(1)}${match ? ", in the captions" : ""}`
    );
    this.status.textContent = `${this.nameOf(this.token)}, layer ${this.said.layers[this.at]}: ${words.join("; ")}`;
  }

  setLayer(place) {
    this.at = Math.min(Math.max(place, 0), this.said.layers.length - 1);
    this.showLayer();
  }

  move(rows, cols) {
    const [row, col] = this.said.cells[this.token];
    const token = this.tokenAt.get(`${row + rows},${col + cols}`);
    if (token !== undefined) this.choose(token);
  }

  hold(token) {
    this.held = !(this.held && token === this.token);
    this.choose(token);
  }

  tokenUnder(event) {
    const patch = event.target.closest(".patch");
    return patch ? Number(patch.dataset.token) : undefined;
  }
}
