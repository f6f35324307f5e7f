// What is under the pointer: its words, and arrows along the hops to it and from it.

class Pointer extends Plot {
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
