// Where everything is, and the frame around the cells: titles, ranks, the curve of what they hold, the axis of time.

const TITLE_FONT = "13px Helvetica, Arial, 'DejaVu Sans', sans-serif";
const TITLE = 24, AXIS = 22, CURVE = 64, LINE = 16, MARGIN = 12;

/** Draws panels. Its view holds the picture, the options, the interval of time in view and the canvas. */
class Plot extends Cells {
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
      // Curves that count alike have one scale.
      for (const other of this.picture.panels) {
        if (other.bytes === panel.bytes) place.most = other.held.reduce((most, held) => Math.max(most, held), place.most);
      }
      if (this.options.memory && place.most > 0) {
        place.curve = y + 6;
        y += CURVE + 6;
      }
      place.notes = y;
      y += LINE * panel.lines.length;
      const next = this.picture.panels[number + 1];
      const isBroken = panel.marks.length + panel.notes.length > 0; // its slots have no times
      if (!isBroken && (!next || this.options.fit || next.unit !== panel.unit)) {
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
    const height = (held) => (held / place.most) * (CURVE - 16);
    const line = (rank, colour, width) => {
      const [lo, hi] = [panel.held_firsts[rank], panel.held_firsts[rank + 1]];
      let at = first(lo, hi, (level) => panel.held_time[level] > scale.from);
      const end = first(at, hi, (level) => panel.held_time[level] > scale.to);
      let held = at > lo ? panel.held[at - 1] : 0;
      g.beginPath();
      g.moveTo(this.plot.left, base - height(held));
      while (at < end) {
        // Of the changes within one column of pixels, the lowest and the highest.
        const x = Math.floor(scale.x(panel.held_time[at]));
        g.lineTo(x, base - height(held));
        let [low, high] = [held, held];
        for (; at < end && Math.floor(scale.x(panel.held_time[at])) === x; at++) {
          held = panel.held[at];
          [low, high] = [Math.min(low, held), Math.max(high, held)];
        }
        g.lineTo(x, base - height(high));
        g.lineTo(x, base - height(low));
        g.lineTo(x, base - height(held));
      }
      g.lineTo(scale.x(Math.min(scale.to, panel.length)), base - height(held));
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
}
