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

/**
 * What pixels that are not kept become if each is its neighbours' mean, 1/6 beside and 1/12
 * diagonally: ROAD's fill (Rong et al. 2022) without its noise. RGB, of all pixels.
 */
function inpainted(pixels, kept, height, width) {
  const n = height * width;
  const found = Float32Array.from({ length: 3 * n }, (_, k) => pixels[4 * Math.floor(k / 3) + (k % 3)]);
  if (kept.every((one) => !one)) return flat(found);
  guess(found, kept, height, width);
  const total = ofNeighbours(new Float64Array(n).fill(1), height, width);
  const unknown = kept.map((one) => !one);
  for (const c of [0, 1, 2]) {
    const values = Float64Array.from({ length: n }, (_, at) => found[3 * at + c]);
    solve(values, unknown, total, height, width);
    values.forEach((value, at) => (found[3 * at + c] = value));
  }
  return found;
}

/** Σ w v over the eight neighbours of each pixel, w 2 beside and 1 diagonally. */
function ofNeighbours(values, height, width) {
  const n = height * width;
  const [rows, found] = [new Float64Array(n), new Float64Array(n)];
  for (let at = 0; at < n; at++) {
    rows[at] = 2 * values[at] + (at >= width ? values[at - width] : 0) + (at + width < n ? values[at + width] : 0);
  }
  for (let at = 0; at < n; at++) {
    const x = at % width;
    found[at] = 2 * rows[at] + (x > 0 ? rows[at - 1] : 0) + (x + 1 < width ? rows[at + 1] : 0) - 4 * values[at];
  }
  return found;
}

/** Make unknown values the means of their neighbours: conjugate gradients. */
function solve(values, unknown, total, height, width) {
  const beyond = (of) => { // the mean: what A does to `of`, at unknown pixels
    const around = ofNeighbours(of, height, width);
    return of.map((value, at) => (unknown[at] ? total[at] * value - around[at] : 0));
  };
  const dot = (a, b) => a.reduce((sum, value, at) => sum + value * b[at], 0);
  const left = beyond(values).map((value) => -value);
  const direction = left.slice();
  let power = dot(left, left);
  const enough = 1e-10 * power;
  for (let k = 0; k < 2000 && power > enough; k++) {
    const along = beyond(direction);
    const step = power / dot(direction, along);
    for (let at = 0; at < values.length; at++) {
      values[at] += step * direction[at];
      left[at] -= step * along[at];
    }
    const before = power;
    power = dot(left, left);
    for (let at = 0; at < values.length; at++) direction[at] = left[at] + (power / before) * direction[at];
  }
}

/** The mean colour everywhere, where nothing tells more. */
function flat(colours) {
  const sums = [0, 0, 0];
  colours.forEach((value, k) => (sums[k % 3] += value));
  return colours.map((_, k) => (3 * sums[k % 3]) / colours.length);
}

/** Set pixels that are not known to the mean of the known ones in the smallest block that has any. */
function guess(colours, known, height, width) {
  const [h, w] = [Math.ceil(height / 2), Math.ceil(width / 2)];
  const [means, counts] = [new Float32Array(3 * h * w), new Float32Array(h * w)];
  const block = (at) => Math.floor(Math.floor(at / width) / 2) * w + Math.floor((at % width) / 2);
  for (let at = 0; at < height * width; at++) {
    counts[block(at)] += known[at] ? 1 : 0;
    for (let c = 0; c < 3; c++) means[3 * block(at) + c] += known[at] ? colours[3 * at + c] : 0;
  }
  means.forEach((_, k) => (means[k] /= counts[Math.floor(k / 3)] || 1));
  if (counts.some((one) => !one)) guess(means, counts.map(Math.sign), h, w);
  for (let at = 0; at < height * width; at++) {
    if (!known[at]) for (let c = 0; c < 3; c++) colours[3 * at + c] = means[3 * block(at) + c];
  }
}

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
      const [r, g, b] = colour(i, row + Math.floor(x / model.side));
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
      if (!slider.dataset.set) slider.value = turned(model.ps, model.ps.indexOf(nearestToHalf(model.ps)));
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
    const at = turned(model.ps, form.p.value);
    const p = model.ps[at];
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
    const isKept = (square) => (levels[square] > at) === (mode === "keep");
    const stays = new Uint8Array(model.size[0] * model.size[1]);
    draw("mask", model, (at, square) => {
      stays[at] = isKept(square);
      return stays[at] ? [255, 255, 255] : [40, 40, 40];
    });
    const kept = stays.reduce((sum, one) => sum + one, 0);
    const area = (100 * kept / (model.size[0] * model.size[1])).toFixed(0);
    say("mask", `mask, white stays\n${area} % of the area left`);
    const ofMask = becomes === undefined && inpainted(pixels, stays, ...model.size);
    draw("masked", model, (at) => {
      if (stays[at]) return of(pixels, at);
      return ofMask ? ofMask.subarray(3 * at, 3 * at + 3) : filling ? of(filling, at) : becomes;
    });
    const condition = model.said.find(
      (one) => one.mode === mode && one.fill === fill && one.mask === mask && one.p === p);
    const [answer, isRight] = this.answer(condition, i);
    const noiseless = ofMask ? "\nwithout the noise of this fill, which igmask export adds" : "";
    const which = mask === "selection" ? "" : `, squares: ${mask}`;
    say("masked", `${mode} the top ${p} %${which}\n${answer}${noiseless}`, isRight);
    document.getElementById("gallery").dataset.shown = [form.model.value, i, mode, fill, mask, p].join(" ");
  }
}

/** From a place among the values of p to the slider's, and back: those fall, and a slider rises. */
const turned = (ps, place) => ps.length - 1 - place;

const nearestToHalf = (ps) =>
  ps.reduce((best, p) => (Math.abs(p - 50) < Math.abs(best - 50) ? p : best), ps[0]);

// -- plots -------------------------------------------------------------------------------------

const isDark = matchMedia("(prefers-color-scheme: dark)");

async function plot(name) {
  const place = document.getElementById(name);
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, line] = ["--ink", "--soft", "--line"].map((one) => style.getPropertyValue(one).trim());
  const coloured = (key, value) => (key === "range" && Array.isArray(value) ? value.map((one) => (one === "TEXT" ? ink : one)) : value);
  const spec = JSON.parse(JSON.stringify(DATA.plots[name]), coloured);
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

/** The number that a text begins with; a name with digits in it is none. */
const number = (text) => parseFloat(text.trim().replace("−", "-"));

/** Compare numbers as numbers, what is none after them, and texts as texts: resnet18 before resnet50. */
function compared(a, b) {
  const [x, y] = [number(a), number(b)];
  if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  return Number.isNaN(x) - Number.isNaN(y) || a.localeCompare(b, "en", { numeric: true });
}

/**
 * By the first row shown of each network, whose rows stay together: quantities are not compared. Of
 * one network alone the rows.
 */
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const blocks = [];
    const rows = [...table.tBodies[0].rows];
    const isOne = rows.every((row) => row.cells[0].textContent === rows[0].cells[0].textContent);
    for (const row of rows) {
      const name = row.cells[0].textContent;
      if (isOne || blocks.at(-1)?.name !== name) blocks.push({ name, rows: [] });
      blocks.at(-1).rows.push(row);
    }
    for (const block of blocks) {
      const first = block.rows.find((row) => !row.hidden) ?? block.rows[0];
      block.text = first.cells[column].textContent;
    }
    blocks.sort((a, b) => (up ? 1 : -1) * compared(a.text, b.text));
    table.tBodies[0].append(...blocks.flatMap((block) => block.rows));
  }));
}

/** A choice of what rows are shown, by the quantity in their second column. */
function choosable(select, table) {
  const rows = [...table.tBodies[0].rows];
  const quantities = [...new Set(rows.map((row) => row.cells[1].textContent))];
  select.append(...quantities.map((text) => new Option(text, text)));
  if (matchMedia("(max-width: 40rem)").matches) select.value = quantities[0];
  const show = () => {
    rows.forEach((row) => (row.hidden = select.value !== "" && row.cells[1].textContent !== select.value));
    table.classList.toggle("one", select.value !== ""); // which the choice says already
  };
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
