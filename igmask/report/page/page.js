"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);

// -- images ------------------------------------------------------------------------------------

/** Bytes that were deflated (zlib) and put into base64. */
async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The pixels of a picture, RGBA. */
async function pixelsOf(place) {
  const image = new Image();
  image.src = DATA.galleries.pictures[place];
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, image.width, image.height).data;
}

const once = (make) => {
  const made = new Map();
  return (key) => made.get(key) ?? made.set(key, make(key)).get(key);
};
const inflate = once(inflated);
const picture = once(pixelsOf);

/** Draw on a canvas what `colour` says of each pixel: index, square → [r, g, b]. */
function draw(id, model, colour) {
  const [height, width] = model.size;
  const canvas = document.getElementById(id);
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const found = context.createImageData(width, height);
  for (let y = 0; y < height; y++) {
    const row = Math.floor(y / model.side) * model.grid[1];
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      const [r, g, b] = colour(i, row + Math.floor(x / model.side), x, y);
      found.data.set([r, g, b, 255], 4 * i);
    }
  }
  context.putImageData(found, 0, 0);
}

/** Say what a canvas shows, beneath it and to who cannot see it. */
function say(id, text, verdict = "") {
  const canvas = document.getElementById(id);
  canvas.setAttribute("aria-label", text);
  const caption = canvas.parentElement.querySelector("figcaption");
  caption.textContent = text;
  caption.className = verdict;
}

const heat = (value) => {
  const end = value < 0 ? [33, 102, 172] : [178, 24, 43];
  const share = Math.abs(value) / 127;
  return end.map((c) => Math.round(255 + share * (c - 255)));
};

class Gallery {
  constructor(form) {
    this.form = form;
    this.fill("model", DATA.galleries.models.map((one) => one.model));
    form.addEventListener("input", (event) => this.changed(event.target.name));
    form.addEventListener("submit", (event) => event.preventDefault());
    for (const [name, by] of [["back", -1], ["next", 1]]) {
      form[name].addEventListener("click", () => this.move(by));
    }
    this.changed("model");
  }

  get model() {
    return DATA.galleries.models[this.form.model.selectedIndex];
  }

  /** The options of a choice; what was chosen stays, if it is still there. */
  fill(name, options) {
    const select = this.form[name];
    const before = select.value;
    select.replaceChildren(...options.map((text, i) => new Option(text, name === "image" || name === "model" ? i : text)));
    if ([...select.options].some((one) => one.value === before)) select.value = before;
    select.closest("label").hidden = options.length < 2 && name !== "image";
  }

  move(by) {
    const select = this.form.image;
    select.selectedIndex = (select.selectedIndex + by + select.options.length) % select.options.length;
    this.show();
  }

  changed(name) {
    const model = this.model;
    if (name === "model") {
      const masked = model.said.filter((one) => one.mode !== "original");
      const distinct = (key) => [...new Set(masked.map((one) => one[key]))];
      this.fill("image", model.images.map((one) => one.label === null ? one.name : `${one.label}, ${one.name}`));
      for (const key of ["mode", "fill", "mask"]) this.fill(key, distinct(key));
      const slider = this.form.p;
      slider.max = Math.max(model.ps.length - 1, 0);
      if (!slider.dataset.set) slider.value = model.ps.indexOf(nearestToHalf(model.ps));
      slider.dataset.set = "yes";
      document.getElementById("about-pictures").textContent = model.exact ? "" :
        "The pictures are compressed here, and the networks saw them as they are; igmask export writes those.";
    }
    this.show();
  }

  answer(condition, i) {
    const [place, percent, right] = condition?.answers[i] ?? [];
    if (place === undefined) return ["no answer: there is no ranking of this image", ""];
    return [`${right ? "✓" : "✗"} ${this.model.classes[place]}, ${percent} %`, right ? "right" : "wrong"];
  }

  async show() {
    const shown = (this.latest = (this.latest ?? 0) + 1);
    const { model, form } = this;
    const i = form.image.selectedIndex;
    const n = model.grid[0] * model.grid[1];
    const [mode, fill, mask] = ["mode", "fill", "mask"].map((name) => form[name].value);
    const p = model.ps[form.p.value];
    form["shown-p"].value = p;
    form.p.setAttribute("aria-valuetext", `${p} %`);
    const part = async (text) => (await inflate(text)).subarray(i * n, (i + 1) * n);
    const [pixels, values] = await Promise.all([picture(model.pictures[i]), part(model.attribution)]);
    const levels = model.levels[mask] && await part(model.levels[mask]);
    const becomes = (model.fills[fill] ?? [])[i];
    const filling = typeof becomes === "number" ? await picture(becomes) : null;
    if (shown !== this.latest) return; // another choice came between

    const of = (data, at) => data.subarray(4 * at, 4 * at + 3);
    const signed = new Int8Array(values.buffer, values.byteOffset, n);
    draw("original", model, (at) => of(pixels, at));
    const original = model.said.find((one) => one.mode === "original");
    const [says, verdict] = this.answer(original, i);
    const { label, target, name } = model.images[i];
    say("original", `original${label === null ? ` ${name}` : `, ${label}`}\n${says}`, verdict);
    draw("attribution", model, (_, square) => heat(signed[square]));
    say("attribution", `attribution, for ${target}`);
    if (!levels) return;
    const isKept = (square) => (levels[square] > form.p.value) === (mode === "keep");
    let kept = 0;
    draw("mask", model, (_, square) => {
      const stays = isKept(square);
      kept += stays;
      return stays ? [255, 255, 255] : [40, 40, 40];
    });
    const area = (100 * kept / (model.size[0] * model.size[1])).toFixed(0);
    say("mask", `mask, white stays\n${area} % of the area left`);
    const stripes = (x, y) => (Math.floor((x + y) / 4) % 2 ? [150, 150, 150] : [190, 190, 190]);
    draw("masked", model, (at, square, x, y) => {
      if (isKept(square)) return of(pixels, at);
      return filling ? of(filling, at) : becomes ?? stripes(x, y);
    });
    const condition = model.said.find(
      (one) => one.mode === mode && one.fill === fill && one.mask === mask && one.p === p);
    const [answer, isRight] = this.answer(condition, i);
    const striped = becomes === undefined ? "\nstriped: its values depend on the mask, igmask export writes them" : "";
    const which = mask === "selection" ? "" : `, squares: ${mask}`;
    say("masked", `${mode} the top ${p} %${which}\n${answer}${striped}`, isRight);
    document.getElementById("gallery").dataset.shown = [form.model.value, i, mode, fill, mask, p].join(" ");
  }
}

const nearestToHalf = (ps) =>
  ps.reduce((best, p) => (Math.abs(p - 50) < Math.abs(best - 50) ? p : best), ps[0]);

// -- plots -------------------------------------------------------------------------------------

const isDark = matchMedia("(prefers-color-scheme: dark)");

async function plot(name) {
  const place = document.getElementById(name);
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, line] = ["--ink", "--soft", "--line"].map((one) => style.getPropertyValue(one).trim());
  const spec = JSON.parse(JSON.stringify(DATA.plots[name]).replaceAll('"TEXT"', JSON.stringify(ink)));
  const wide = place.clientWidth > 720;
  spec.columns = wide ? 2 : 1;
  const room = place.clientWidth - (wide ? 290 : 75); // what legends and axes take
  spec.spec.width = Math.max(180, Math.min(380, room / spec.columns));
  const text = { labelColor: soft, titleColor: ink, labelFont: "system-ui", titleFont: "system-ui" };
  spec.config = {
    background: null,
    view: { stroke: null },
    axis: { ...text, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: 400 },
    legend: { ...text, orient: wide ? "right" : "bottom", columns: wide ? 1 : 2 },
    header: text,
  };
  // Vega's expressions are interpreted, since the page allows no code from texts.
  const how = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, tooltip: { theme: isDark.matches ? "dark" : "light" } };
  await vegaEmbed(place, spec, how);
  const svg = place.querySelector("svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", spec.description);
  place.dataset.drawn = "yes";
}

const plotAll = () => Promise.all(Object.keys(DATA.plots).map(plot));

// -- tables ------------------------------------------------------------------------------------

const number = (text) => parseFloat(text.replace(/^[^\d.+-]*/, "").replace("−", "-"));

/** Compare numbers as numbers, what is none after them, and texts as texts. */
function compared(a, b) {
  const [x, y] = [number(a), number(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a.localeCompare(b);
  return x - y;
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const text = (row) => row.cells[column].textContent;
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => (up ? 1 : -1) * compared(text(a), text(b)));
    table.tBodies[0].append(...rows);
  }));
}

/** A choice of what rows are shown, by the quantity in their second column. */
function choosable(select, table) {
  const rows = [...table.tBodies[0].rows];
  const quantities = [...new Set(rows.map((row) => row.cells[1].textContent))];
  select.append(...quantities.map((text) => new Option(text, text)));
  const show = () => rows.forEach((row) => {
    row.hidden = select.value !== "" && row.cells[1].textContent !== select.value;
  });
  select.addEventListener("input", show);
  show();
}

for (const place of document.querySelectorAll(".table")) {
  sortable(place.querySelector("table"));
  choosable(place.querySelector("select"), place.querySelector("table"));
}
if (DATA.galleries.models.length) new Gallery(document.querySelector(".choices"));
plotAll();
isDark.addEventListener("change", plotAll);
let resized;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(plotAll, 200);
});
