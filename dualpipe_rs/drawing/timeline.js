// The timeline on a canvas, in a notebook (an anywidget) and in a page of its own: the same file serves both.
//
// It draws what Python hands over as one block of bytes: a header in JSON, then arrays. Where cells would be too
// narrow to be told apart, each column of pixels shows their mean colour, so that the work of a frame is bounded by
// the pixels and by one pass over the slots in view. It loads nothing and asks nobody.

const FONT = "11px Helvetica, Arial, 'DejaVu Sans', sans-serif";
const TITLE_FONT = "13px Helvetica, Arial, 'DejaVu Sans', sans-serif";
const TITLE = 24, AXIS = 22, CURVE = 64, LINE = 16, MARGIN = 12;
const NOTES = 8; // at most so many lines of what is wrong
// Pixels a cell, in the mean, below which cells become columns; with more cells in view than MANY, those too in which
// no number could be read.
const NARROWEST = 2.5, NARROW = 12, MANY = 4000;
const NONE = 255; // the kind of an action that is not there
const TYPES = { u1: Uint8Array, u4: Uint32Array, f8: Float64Array };

const STYLE = `
.dualpipe-rs { position: relative; font: ${FONT}; width: 100%; outline: none; }
.dualpipe-rs canvas { display: block; width: 100%; cursor: grab; touch-action: pan-y; }
.dualpipe-rs canvas.dragged { cursor: grabbing; }
.dualpipe-rs:focus-visible canvas { outline: 1px solid #6aa2d8; }
.dualpipe-rs .bar { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: center; padding: 2px 12px 6px; }
.dualpipe-rs .bar span { display: inline-flex; gap: 4px; align-items: center; }
.dualpipe-rs .bar i { display: inline-block; width: 12px; height: 12px; margin-right: -4px; }
.dualpipe-rs .bar i:last-of-type { margin-right: 0; }
.dualpipe-rs .bar button { font: inherit; color: inherit; background: transparent; border: 1px solid currentColor;
  border-radius: 4px; padding: 1px 7px; cursor: pointer; opacity: .75; }
.dualpipe-rs .bar button[aria-pressed=true] { opacity: 1; box-shadow: inset 0 0 0 1px currentColor; }
.dualpipe-rs .tip { position: absolute; display: none; pointer-events: none; z-index: 9; white-space: pre-line;
  padding: 5px 8px; border-radius: 4px; max-width: 320px; box-shadow: 0 1px 6px rgba(0,0,0,.35); }
`;

/** Reads the block: u32 length of the header, the header, the arrays it lists. */
export function parse(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const picture = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  for (const panel of picture.panels) {
    for (const [name, [type, offset, count]] of Object.entries(panel.columns)) {
      panel[name] = new TYPES[type](buffer, offset, count);
    }
    panel.ranks = panel.stages.length;
    panel.chunk = panel.stages.map((stages) => new Map(stages.map((stage, place) => [stage, place])));
    panel.rgb = panel.colours.map((places) => places.map((kinds) => kinds.map(rgb)));
    const wrong = [...panel.marks.map(([rank, , words]) => `rank ${rank}: ${words}`), ...panel.notes];
    panel.lines = wrong.slice(0, NOTES);
    if (wrong.length > NOTES) panel.lines.push(`and ${wrong.length - NOTES} more`);
    if (!(panel.length > 0)) panel.lines.push("no slot takes any time");
    panel.marked = new Map();
    for (const [rank, slot, words] of panel.marks) {
      const number = panel.slot_firsts[rank] + slot;
      panel.marked.set(number, [...(panel.marked.get(number) ?? []), words]);
    }
  }
  return picture;
}

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/** The first of [from, to) for which `holds` is true of all that follow. */
function first(from, to, holds) {
  while (from < to) {
    const middle = (from + to) >>> 1;
    if (holds(middle)) to = middle;
    else from = middle + 1;
  }
  return from;
}

function short(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(3);
  return String(Number(size >= 1000 ? value.toFixed(size >= 10000 ? 0 : 1) : value.toPrecision(4)));
}

function time(value, unit) {
  if (unit !== "s") return short(value);
  if (value >= 1 || value <= 0) return `${short(value)} s`;
  return value >= 1e-3 ? `${short(value * 1e3)} ms` : `${short(value * 1e6)} µs`;
}

function amount(held, bytes) {
  if (!bytes) return `${short(held)} activations`;
  const [size, unit] = [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([s]) => held >= s) ?? [1, "bytes"];
  return `${short(held / size)} ${unit}`;
}

function ticks(from, to, wanted) {
  const rough = (to - from) / Math.max(wanted, 2);
  if (!(rough > 0) || !Number.isFinite(rough)) return [from];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((size) => size >= rough) ?? rough;
  const marks = [];
  for (let n = Math.ceil(from / step - 1e-9); n * step <= to + step * 1e-9 && marks.length < 1000; n++) {
    marks.push(n * step);
  }
  return marks;
}

export class View {
  /** `wheel`: whether the wheel zooms without a key held or a click before. */
  constructor(element, { wheel = false } = {}) {
    this.root = document.createElement("div");
    this.root.className = "dualpipe-rs";
    this.root.tabIndex = 0;
    this.root.view = this;
    const style = document.createElement("style");
    style.textContent = STYLE;
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("role", "img");
    this.bar = document.createElement("div");
    this.bar.className = "bar";
    this.tip = document.createElement("div");
    this.tip.className = "tip";
    this.root.append(style, this.canvas, this.bar, this.tip);
    element.append(this.root);
    this.wheel = wheel;
    this.options = { causes: false, critical_path: false, memory: true, fit: false, theme: "auto" };
    this.strip = document.createElement("canvas");
    this.listen();
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.root);
  }

  close() {
    this.resized.disconnect();
    this.root.remove();
  }

  /** Shows another picture, at the same place of the axis where it has it. */
  set(buffer) {
    const before = this.length;
    this.picture = parse(buffer);
    this.length = Math.max(...this.picture.panels.map((panel) => panel.length), 0);
    const whole = before === undefined || (this.from === 0 && this.to === before) || this.from >= this.length;
    this.from = whole ? 0 : this.from;
    this.to = whole ? this.length : Math.min(this.to, Math.max(this.length, this.from));
    if (!(this.to > this.from)) [this.from, this.to] = [0, this.length];
    this.over = undefined;
    this.tip.style.display = "none";
    this.canvas.setAttribute("aria-label", this.picture.panels.map((panel) => panel.title).join("; "));
    this.legend();
    this.draw();
  }

  setOptions(options) {
    Object.assign(this.options, options);
    if (this.picture) this.legend();
    this.draw();
  }

  get isDark() {
    if (this.options.theme !== "auto") return this.options.theme === "dark";
    const jupyter = document.body.dataset.jpThemeLight;
    if (jupyter) return jupyter === "false";
    if (document.body.classList.contains("vscode-dark")) return true;
    if (document.body.classList.contains("vscode-light")) return false;
    return matchMedia("(prefers-color-scheme: dark)").matches;
  }

  get colours() {
    return this.picture.colours[this.isDark ? "dark" : "light"];
  }

  // --- The bar below: legend and buttons.

  legend() {
    const { panels, kinds, causes } = this.picture;
    const colours = this.colours;
    this.bar.replaceChildren();
    this.root.style.color = colours.text;
    this.root.style.background = colours.paper;
    const entry = (swatches, words) => {
      const span = document.createElement("span");
      for (const swatch of swatches) {
        const box = document.createElement("i");
        Object.assign(box.style, swatch);
        span.append(box);
      }
      span.append(words);
      this.bar.append(span);
    };
    const has = (kind) => panels.some((panel) => panel.kind.includes(kind) || panel.kind2.includes(kind));
    const places = panels.map((panel) => panel.colours.at(-1)).reduce((a, b) => (b.length > a.length ? b : a));
    kinds.forEach((words, kind) => {
      if (!has(kind)) return;
      entry(places.slice(0, 8).map((of) => ({ background: of[kind] })), words);
    });
    if (panels.some((panel) => panel.kind2.some((kind) => kind !== NONE))) {
      entry([{ border: `1.5px solid ${colours.border}`, boxSizing: "border-box" }], "fused pair");
    }
    if (panels.some((panel) => panel.closing.length)) entry([{ background: colours.optimizer }], "optimizer");
    if (this.options.causes) {
      causes.forEach(([name, words], cause) => {
        if (!panels.some((panel) => panel.wait_cause.includes(cause))) return;
        entry([{ background: colours[`c-${name}`] }], `idle: ${words}`);
      });
    }
    this.buttons();
  }

  buttons() {
    const button = (words, title, act, pressed) => {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = words;
      made.title = title;
      if (pressed !== undefined) made.setAttribute("aria-pressed", pressed);
      made.addEventListener("click", act);
      group.append(made);
    };
    const group = document.createElement("span");
    const toggle = (name, words, title) => {
      const turn = () => this.setOptions({ [name]: !this.options[name] });
      button(words, title, turn, this.options[name]);
    };
    toggle("causes", "causes", "shade idle time by what was waited for");
    toggle("critical_path", "critical path", "mark the slots that decide when the step ends");
    toggle("memory", "memory", "what the ranks hold");
    if (this.picture.panels.length > 1) toggle("fit", "fit", "each as wide as its own makespan");
    button(this.isDark ? "light" : "dark", "turn the theme", () => {
      this.setOptions({ theme: this.isDark ? "light" : "dark" });
    });
    button("−", "zoom out (−)", () => this.zoom(1.6));
    button("+", "zoom in (+)", () => this.zoom(1 / 1.6));
    button("all", "show the whole step (0, or a double click)", () => this.reset());
    this.bar.append(group);
  }

  // --- Moving about.

  /** Makes the interval in view `factor` times as long, with one time held in place. */
  zoom(factor, around = (this.from + this.to) / 2) {
    if (!(this.length > 0)) return;
    const shortest = this.length * 1e-7;
    const span = Math.min(Math.max((this.to - this.from) * factor, shortest), this.length);
    const share = (around - this.from) / (this.to - this.from);
    this.move(around - share * span, span);
  }

  pan(by) {
    this.move(this.from + by, this.to - this.from);
  }

  move(from, span) {
    this.from = Math.min(Math.max(from, 0), this.length - span);
    this.to = this.from + span;
    this.draw();
  }

  reset() {
    this.move(0, this.length);
  }

  listen() {
    const { canvas, root } = this;
    let drag;
    canvas.addEventListener("pointerdown", (event) => {
      root.focus({ preventScroll: true });
      drag = { x: event.clientX, from: this.from };
      canvas.setPointerCapture(event.pointerId);
      canvas.classList.add("dragged");
    });
    canvas.addEventListener("pointermove", (event) => {
      if (drag) {
        const by = ((drag.x - event.clientX) / this.plot.width) * (this.to - this.from);
        this.move(drag.from + by, this.to - this.from);
      }
      this.hover(event);
    });
    const drop = () => {
      drag = undefined;
      canvas.classList.remove("dragged");
    };
    canvas.addEventListener("pointerup", drop);
    canvas.addEventListener("pointercancel", drop);
    canvas.addEventListener("pointerleave", () => this.leave());
    canvas.addEventListener("dblclick", () => this.reset());
    canvas.addEventListener("wheel", (event) => this.turned(event), { passive: false });
    root.addEventListener("keydown", (event) => this.pressed(event));
  }

  turned(event) {
    const span = this.to - this.from;
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      const by = event.deltaX || event.deltaY;
      this.pan((by / this.plot.width) * span);
    } else if (this.wheel || event.ctrlKey || event.metaKey || document.activeElement === this.root) {
      event.preventDefault();
      this.zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY / 300))), this.timeAt(event.offsetX));
    }
  }

  pressed(event) {
    const step = (this.to - this.from) / 8;
    const acts = {
      ArrowLeft: () => this.pan(-step),
      ArrowRight: () => this.pan(step),
      "+": () => this.zoom(1 / 1.6),
      "=": () => this.zoom(1 / 1.6),
      "-": () => this.zoom(1.6),
      0: () => this.reset(),
      Home: () => this.reset(),
      Escape: () => this.root.blur(),
    };
    if (event.target !== this.root || !acts[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation(); // a notebook has keys of its own
    acts[event.key]();
  }

  // --- Where things are.

  /** Lays the panels out for the present width: the height of the whole, and where each rank's row is. */
  place() {
    const width = this.root.clientWidth || 800;
    const ranks = Math.max(...this.picture.panels.map((panel) => panel.ranks));
    const left = MARGIN + 6.4 * `rank ${ranks - 1}`.length + 6;
    this.plot = { left, width: Math.max(width - left - MARGIN, 10) };
    let y = 6;
    this.places = this.picture.panels.map((panel, number) => {
      const height = Math.min(Math.max(Math.floor(640 / panel.ranks), 3), 26);
      const place = { title: y, rows: y + TITLE, height, most: 0 };
      y = place.rows + panel.ranks * height;
      for (const held of panel.held) place.most = Math.max(place.most, held);
      if (this.options.memory && place.most > 0) {
        place.curve = y + 6;
        y += CURVE + 6;
      }
      place.notes = y;
      y += LINE * panel.lines.length;
      const next = this.picture.panels[number + 1];
      if (!next || this.options.fit || next.unit !== panel.unit) {
        place.axis = y;
        y += AXIS;
      }
      y += 6;
      return place;
    });
    return { width, height: y };
  }

  /** Times in view of a panel: its own where each is as wide as its makespan. */
  range(panel) {
    const share = this.options.fit && this.length > 0 ? panel.length / this.length : 1;
    return [this.from * share, this.to * share];
  }

  scale(panel) {
    const [from, to] = this.range(panel);
    const factor = to > from ? this.plot.width / (to - from) : 0;
    return { from, to, factor, x: (at) => this.plot.left + (at - from) * factor };
  }

  timeAt(x) {
    return this.from + ((x - this.plot.left) / this.plot.width) * (this.to - this.from);
  }

  // --- Drawing.

  draw() {
    if (!this.picture || this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = undefined;
      this.drawNow();
    });
  }

  drawNow() {
    const { width, height } = this.place();
    const ratio = window.devicePixelRatio || 1;
    const { canvas } = this;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.height = `${height}px`;
    }
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.fillStyle = this.colours.paper;
    g.fillRect(0, 0, width, height);
    this.picture.panels.forEach((panel, number) => this.drawPanel(g, panel, this.places[number]));
    if (this.over) this.drawHops(g);
    this.drawn = (this.drawn ?? 0) + 1;
  }

  drawPanel(g, panel, place) {
    const colours = this.colours;
    g.font = TITLE_FONT;
    g.textAlign = "left";
    g.fillStyle = colours.text;
    g.fillText(panel.title, MARGIN, place.title + TITLE - 9);
    g.font = FONT;
    const every = Math.max(Math.ceil(12 / place.height), 1);
    g.textAlign = "right";
    for (let rank = 0; rank < panel.ranks; rank += every) {
      const y = place.rows + rank * place.height + Math.min(place.height, 26) / 2 + 4;
      g.fillText(`rank ${rank}`, this.plot.left - 6, y);
    }
    g.save();
    g.beginPath();
    g.rect(this.plot.left, 0, this.plot.width, 1e5);
    g.clip();
    const scale = this.scale(panel);
    const rows = Array.from({ length: panel.ranks }, (_, rank) => this.inView(panel, rank, scale));
    const cells = rows.reduce((sum, [from, to]) => sum + to - from, 0);
    const narrowest = cells > MANY ? NARROW : NARROWEST;
    rows.forEach((slots, rank) => this.drawRow(g, panel, rank, slots, narrowest, place, scale));
    if (place.curve !== undefined) this.drawCurve(g, panel, place, scale);
    g.restore();
    if (place.curve !== undefined) this.curveWords(g, panel, place);
    g.textAlign = "left";
    g.fillStyle = panel.marks.length + panel.notes.length ? colours.wrong : colours.faint;
    panel.lines.forEach((line, number) => g.fillText(line, MARGIN, place.notes + LINE * (number + 1) - 3));
    if (place.axis !== undefined) this.drawAxis(g, panel, place.axis, scale);
  }

  /** The slots of a rank that can be seen, [from, to). */
  inView(panel, rank, scale) {
    const [lo, hi] = [panel.slot_firsts[rank], panel.slot_firsts[rank + 1]];
    const from = first(lo, hi, (slot) => panel.end[slot] >= scale.from);
    return [from, first(from, hi, (slot) => panel.start[slot] > scale.to)];
  }

  drawRow(g, panel, rank, [from, to], narrowest, place, scale) {
    const gap = place.height >= 10 ? 2 : 0;
    const area = { y: place.rows + rank * place.height, height: place.height - gap };
    g.fillStyle = this.colours.idle;
    g.fillRect(this.plot.left, area.y, this.plot.width, area.height);
    if (this.options.causes) this.drawCauses(g, panel, rank, area, scale);
    if (panel.closing.length) this.drawClosing(g, panel, rank, area, scale);
    if (to <= from) return;
    let busy = 0;
    for (let slot = from; slot < to; slot++) busy += panel.end[slot] - panel.start[slot];
    if (busy * scale.factor < narrowest * (to - from)) this.drawColumns(g, panel, rank, from, to, area, scale);
    else this.drawCells(g, panel, rank, from, to, area, scale);
    if (this.options.critical_path) this.drawCritical(g, panel, from, to, area, scale);
    for (const number of panel.marked.keys()) {
      if (number < from || number >= to) continue;
      g.strokeStyle = this.colours.wrong;
      g.lineWidth = 2.5;
      const x = scale.x(panel.start[number]);
      g.strokeRect(x, area.y, scale.x(panel.end[number]) - x, area.height);
    }
  }

  colour(panel, rank, stage, kind) {
    const places = panel.colours[panel.stages[rank].length];
    return places[panel.chunk[rank].get(stage) ?? 0][kind];
  }

  drawCells(g, panel, rank, from, to, area, scale) {
    g.textAlign = "center";
    for (let slot = from; slot < to; slot++) {
      const x = scale.x(panel.start[slot]);
      const width = scale.x(panel.end[slot]) - x;
      const line = width >= 6 ? 0.5 : 0;
      if (panel.kind2[slot] === NONE) {
        this.fill(g, panel, rank, panel.stage[slot], panel.kind[slot], panel.microbatch[slot], x, width - line, area);
        continue;
      }
      // A frame is what is left of a filled cell around smaller ones: a stroke takes ten times as long.
      const edge = width >= 6 && area.height >= 6 ? 1.5 : 0;
      if (edge) {
        g.fillStyle = this.colours.border;
        g.fillRect(x, area.y, width - line, area.height);
      }
      const inside = { y: area.y + edge, height: area.height - 2 * edge };
      const cut = x + width / 3;
      const second = [panel.stage2[slot], panel.kind2[slot], panel.microbatch2[slot]];
      const [left, right] = [x + edge, x + width - line - edge];
      this.fill(g, panel, rank, panel.stage[slot], panel.kind[slot], panel.microbatch[slot], left, cut - left, inside);
      this.fill(g, panel, rank, ...second, cut, right - cut, inside);
    }
  }

  fill(g, panel, rank, stage, kind, microbatch, x, width, area) {
    const colour = this.colour(panel, rank, stage, kind);
    g.fillStyle = colour;
    g.fillRect(x, area.y, width, area.height);
    if (width < 8 || area.height < 9) return; // no room for a number
    const text = String(microbatch);
    const size = Math.min(11, area.height, (width - 1) / (0.58 * text.length));
    if (size < 7) return;
    g.font = FONT.replace("11px", `${size}px`);
    g.fillStyle = this.picture.on[colour];
    g.fillText(text, x + width / 2, area.y + area.height / 2 + 0.35 * size);
    g.font = FONT;
  }

  /** The mean colour of what runs in each column of pixels, as opaque as the rank is busy. */
  drawColumns(g, panel, rank, from, to, area, scale) {
    const count = Math.ceil(this.plot.width);
    if (this.sums?.length !== 4 * count) this.sums = new Float32Array(4 * count);
    const sums = this.sums.fill(0);
    const places = panel.rgb[panel.stages[rank].length];
    const chunk = panel.chunk[rank];
    const add = (column, share, [r, g, b]) => {
      const at = 4 * column;
      sums[at] += share * r;
      sums[at + 1] += share * g;
      sums[at + 2] += share * b;
      sums[at + 3] += share;
    };
    const cover = (start, end, colour, weight) => {
      const a = Math.max((start - scale.from) * scale.factor, 0);
      const b = Math.min((end - scale.from) * scale.factor, count);
      for (let column = Math.floor(a); column < b; column++) {
        add(column, weight * (Math.min(b, column + 1) - Math.max(a, column)), colour);
      }
    };
    for (let slot = from; slot < to; slot++) {
      const [start, end] = [panel.start[slot], panel.end[slot]];
      const colour = places[chunk.get(panel.stage[slot]) ?? 0][panel.kind[slot]];
      if (panel.kind2[slot] === NONE) {
        cover(start, end, colour, 1);
      } else {
        cover(start, end, colour, 1 / 3);
        cover(start, end, places[chunk.get(panel.stage2[slot]) ?? 0][panel.kind2[slot]], 2 / 3);
      }
    }
    const pixels = new ImageData(count, 1);
    for (let at = 0; at < 4 * count; at += 4) {
      const covered = sums[at + 3];
      if (covered <= 0) continue;
      for (let part = 0; part < 3; part++) pixels.data[at + part] = sums[at + part] / covered;
      pixels.data[at + 3] = 255 * Math.min(covered, 1);
    }
    if (this.strip.width !== count) [this.strip.width, this.strip.height] = [count, 1];
    this.strip.getContext("2d").putImageData(pixels, 0, 0);
    g.imageSmoothingEnabled = false;
    g.drawImage(this.strip, 0, 0, count, 1, this.plot.left, area.y, count, area.height);
  }

  drawCauses(g, panel, rank, area, scale) {
    const [lo, hi] = [panel.wait_firsts[rank], panel.wait_firsts[rank + 1]];
    const from = first(lo, hi, (wait) => panel.wait_end[wait] >= scale.from);
    for (let wait = from; wait < hi && panel.wait_start[wait] <= scale.to; wait++) {
      const x = scale.x(panel.wait_start[wait]);
      const width = scale.x(panel.wait_end[wait]) - x;
      if (width < 0.2) continue;
      g.fillStyle = this.colours[`c-${this.picture.causes[panel.wait_cause[wait]][0]}`];
      g.fillRect(x, area.y, width, area.height);
    }
  }

  drawClosing(g, panel, rank, area, scale) {
    const [exchanged, end] = [panel.closing[2 * rank], panel.closing[2 * rank + 1]];
    g.fillStyle = this.colours.optimizer;
    g.fillRect(scale.x(exchanged), area.y, (end - exchanged) * scale.factor, area.height);
  }

  drawCritical(g, panel, from, to, area, scale) {
    g.fillStyle = this.colours.critical;
    for (let slot = from; slot < to; slot++) {
      if (!panel.critical[slot]) continue;
      const x = scale.x(panel.start[slot]);
      g.fillRect(x, area.y + area.height - 2, Math.max(scale.x(panel.end[slot]) - x, 0.5), 3);
    }
  }

  fullest(panel) {
    if (panel.fullest === undefined) {
      panel.fullest = 0;
      let most = -1;
      for (let rank = 0; rank < panel.ranks; rank++) {
        const held = panel.held.subarray(panel.held_firsts[rank], panel.held_firsts[rank + 1]);
        const peak = held.reduce((a, b) => Math.max(a, b), 0);
        if (peak > most) [most, panel.fullest] = [peak, rank];
      }
    }
    return panel.fullest;
  }

  drawCurve(g, panel, place, scale) {
    const base = place.curve + CURVE - 2;
    const height = (CURVE - 16) / place.most;
    const line = (rank, colour, width) => {
      const [lo, hi] = [panel.held_firsts[rank], panel.held_firsts[rank + 1]];
      let at = first(lo, hi, (level) => panel.held_time[level] > scale.from);
      const end = first(at, hi, (level) => panel.held_time[level] > scale.to);
      let held = at > lo ? panel.held[at - 1] : 0;
      g.beginPath();
      g.moveTo(this.plot.left, base - held * height);
      while (at < end) {
        // Of the changes within one column of pixels, the lowest and the highest.
        const x = Math.floor(scale.x(panel.held_time[at]));
        g.lineTo(x, base - held * height);
        let [low, high] = [held, held];
        for (; at < end && Math.floor(scale.x(panel.held_time[at])) === x; at++) {
          held = panel.held[at];
          [low, high] = [Math.min(low, held), Math.max(high, held)];
        }
        g.lineTo(x, base - high * height);
        g.lineTo(x, base - low * height);
        g.lineTo(x, base - held * height);
      }
      g.lineTo(scale.x(Math.min(scale.to, panel.length)), base - held * height);
      g.strokeStyle = colour;
      g.lineWidth = width;
      g.stroke();
    };
    g.fillStyle = this.colours.rule;
    g.fillRect(this.plot.left, base, this.plot.width, 1);
    const chosen = this.chosen(panel);
    if (panel.ranks <= 16) {
      for (let rank = 0; rank < panel.ranks; rank++) if (rank !== chosen) line(rank, this.colours.rule, 1);
    }
    line(chosen, this.colours.held, 1.5);
  }

  /** The rank whose curve is in front: the one under the pointer, else the fullest. */
  chosen(panel) {
    return this.over?.panel === panel ? this.over.rank : this.fullest(panel);
  }

  curveWords(g, panel, place) {
    const rank = this.chosen(panel);
    const held = panel.held.subarray(panel.held_firsts[rank], panel.held_firsts[rank + 1]);
    const peak = held.reduce((a, b) => Math.max(a, b), 0);
    g.textAlign = "right";
    g.fillStyle = this.colours.held;
    const words = `rank ${rank} holds at most ${amount(peak, panel.bytes)}`;
    g.fillText(words, this.plot.left + this.plot.width, place.curve + 9);
  }

  drawAxis(g, panel, y, scale) {
    const right = this.plot.left + this.plot.width;
    g.fillStyle = this.colours.faint;
    g.fillRect(this.plot.left, y + 3, this.plot.width, 1);
    for (const tick of ticks(scale.from, scale.to, this.plot.width / 90)) {
      const x = scale.x(tick);
      g.fillRect(x, y + 3, 1, 4);
      const text = time(tick, panel.unit);
      g.textAlign = x + 3 * text.length > right + MARGIN ? "right" : "center";
      g.fillText(text, x, y + 18);
    }
  }

  // --- What is under the pointer.

  hover(event) {
    if (!this.picture || !this.places) return;
    const over = this.find(event.offsetX, event.offsetY);
    const same = over && this.over && over.slot === this.over.slot && over.rank === this.over.rank &&
      over.panel === this.over.panel;
    const words = over && this.words(over);
    this.over = over;
    if (!same) this.draw();
    if (!words) {
      this.tip.style.display = "none";
      return;
    }
    this.tip.textContent = words;
    Object.assign(this.tip.style, {
      display: "block", background: this.colours.text, color: this.colours.paper,
      left: `${Math.max(Math.min(event.offsetX + 14, this.root.clientWidth - this.tip.offsetWidth - 4), 0)}px`,
      top: `${event.offsetY + 16}px`,
    });
  }

  leave() {
    this.over = undefined;
    this.tip.style.display = "none";
    this.draw();
  }

  /** The rank, and the slot or wait, at a point. */
  find(x, y) {
    if (x < this.plot.left || x > this.plot.left + this.plot.width) return undefined;
    for (const [number, place] of this.places.entries()) {
      const panel = this.picture.panels[number];
      const rank = Math.floor((y - place.rows) / place.height);
      if (rank < 0 || rank >= panel.ranks) continue;
      const scale = this.scale(panel);
      if (!(scale.factor > 0)) return undefined;
      const at = scale.from + (x - this.plot.left) / scale.factor;
      const hi = panel.slot_firsts[rank + 1];
      const slot = first(panel.slot_firsts[rank], hi, (slot) => panel.end[slot] > at);
      if (slot < hi && panel.start[slot] <= at) return { panel, rank, slot };
      const end = panel.wait_firsts[rank + 1];
      const wait = first(panel.wait_firsts[rank], end, (wait) => panel.wait_end[wait] > at);
      if (wait < end && panel.wait_start[wait] <= at) return { panel, rank, wait };
      return { panel, rank };
    }
    return undefined;
  }

  action(kind, stage, microbatch) {
    return `${this.picture.kinds[kind]} of microbatch ${microbatch}, stage ${stage}`;
  }

  words({ panel, rank, slot, wait }) {
    if (slot !== undefined) return this.slotWords(panel, rank, slot);
    if (wait !== undefined) return `rank ${rank} is idle\n${this.waitWords(panel, wait)}`;
    return undefined;
  }

  slotWords(panel, rank, slot) {
    const lines = [this.action(panel.kind[slot], panel.stage[slot], panel.microbatch[slot])];
    if (panel.kind2[slot] !== NONE) {
      lines[0] = `a fused pair: ${lines[0]}`;
      lines.push(`& ${this.action(panel.kind2[slot], panel.stage2[slot], panel.microbatch2[slot])}`);
    }
    const [start, end] = [panel.start[slot], panel.end[slot]];
    lines.push(`rank ${rank}, slot ${slot - panel.slot_firsts[rank]}`);
    lines.push(`${time(start, panel.unit)} to ${time(end, panel.unit)} (${time(end - start, panel.unit)})`);
    const [lo, hi] = [panel.wait_firsts[rank], panel.wait_firsts[rank + 1]];
    let before = first(lo, hi, (wait) => panel.wait_end[wait] > start) - 1;
    const waits = [];
    const previous = slot > panel.slot_firsts[rank] ? panel.end[slot - 1] : -Infinity;
    for (; before >= lo && panel.wait_start[before] >= previous; before--) waits.unshift(before);
    for (const wait of waits) lines.push(`before it: ${this.waitWords(panel, wait)}`);
    if (panel.critical[slot]) lines.push("on the critical path");
    lines.push(...(panel.marked.get(slot) ?? []));
    return lines.join("\n");
  }

  waitWords(panel, wait) {
    const length = time(panel.wait_end[wait] - panel.wait_start[wait], panel.unit);
    const kind = panel.wait_kind[wait];
    const what = kind === NONE ? "" : ` of the ${this.action(kind, panel.wait_stage[wait], panel.wait_microbatch[wait])}`;
    return `${this.picture.causes[panel.wait_cause[wait]][1]}${what}, ${length}`;
  }

  /** Arrows along the hops to and from the slot under the pointer. */
  drawHops(g) {
    const { panel, rank, slot } = this.over;
    if (slot === undefined) return;
    const place = this.places[this.picture.panels.indexOf(panel)];
    const scale = this.scale(panel);
    const row = (of) => first(0, panel.ranks, (r) => panel.slot_firsts[r + 1] > of);
    const middle = (of) => place.rows + (of + 0.5) * place.height - 1;
    g.save();
    g.beginPath();
    g.rect(this.plot.left, 0, this.plot.width, 1e5);
    g.clip();
    g.strokeStyle = g.fillStyle = this.colours.critical;
    g.lineWidth = 1.5;
    for (let hop = 0; hop < panel.hop_from.length; hop++) {
      const [from, to] = [panel.hop_from[hop], panel.hop_to[hop]];
      if (from !== slot && to !== slot) continue;
      const [a, b] = [from === slot ? rank : row(from), to === slot ? rank : row(to)];
      arrow(g, scale.x(panel.end[from]), middle(a), scale.x(panel.hop_end[hop]), middle(b));
    }
    g.strokeRect(scale.x(panel.start[slot]), middle(rank) - place.height / 2 + 1,
      (panel.end[slot] - panel.start[slot]) * scale.factor, place.height - 2);
    g.restore();
  }
}

function arrow(g, x, y, toX, toY) {
  const angle = Math.atan2(toY - y, toX - x);
  g.beginPath();
  g.moveTo(x, y);
  g.lineTo(toX, toY);
  g.stroke();
  g.beginPath();
  g.moveTo(toX, toY);
  for (const side of [-0.4, 0.4]) g.lineTo(toX - 8 * Math.cos(angle + side), toY - 8 * Math.sin(angle + side));
  g.fill();
}

/** The picture of a page, from its base64: packed by gzip. */
export async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

const OPTIONS = ["causes", "critical_path", "memory", "fit", "theme"];

/** In a notebook. */
function render({ model, el }) {
  const view = new View(el);
  const options = () => Object.fromEntries(OPTIONS.map((name) => [name, model.get(name)]));
  const picture = () => {
    const { buffer, byteOffset, byteLength } = model.get("_picture");
    view.set(buffer.slice(byteOffset, byteOffset + byteLength));
  };
  const turned = () => view.setOptions(options());
  view.setOptions(options());
  picture();
  model.on("change:_picture", picture);
  for (const name of OPTIONS) model.on(`change:${name}`, turned);
  return () => {
    model.off("change:_picture", picture);
    for (const name of OPTIONS) model.off(`change:${name}`, turned);
    view.close();
  };
}

export default { render };
