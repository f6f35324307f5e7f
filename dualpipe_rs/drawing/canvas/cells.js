// The cells of a rank's row. Where they would be too narrow to be told apart, each column of pixels shows their mean
// colour, so that the work of a frame is bounded by the pixels and by one pass over the slots in view.

const FONT = "11px Helvetica, Arial, 'DejaVu Sans', sans-serif";
// Pixels a cell, in the mean, below which cells become columns; with more cells in view than MANY, those too in which
// no number could be read.
const NARROWEST = 2.5, NARROW = 12, MANY = 4000;

/** Draws a row. What it draws from, and where, the classes below say. */
class Cells {
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
}
