// The timeline on a canvas, in a notebook (an anywidget) and in a page of its own: the same file serves both. Here are
// the elements, the buttons below, and how one moves about. It loads nothing and asks nobody.

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

export class View extends Pointer {
  /** `wheel`: whether the wheel zooms without a key held or a click before. */
  constructor(element, { wheel = false } = {}) {
    super();
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
