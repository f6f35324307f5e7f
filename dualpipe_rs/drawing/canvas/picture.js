// A picture as Python hands it over: one block of bytes, a header in JSON and then arrays. And how its numbers are
// written. (The files of this folder are parts of one module, joined by ../script.py in the order picture, cells, plot,
// pointer, view; the class of each adds to the one before.)

const NOTES = 8; // at most so many lines of what is wrong
const NONE = 255; // the kind of an action that is not there
const TYPES = { u1: Uint8Array, u4: Uint32Array, f8: Float64Array };

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
    const wrong = [...panel.marks.map(([, , words]) => words), ...panel.notes];
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

/** The picture of a page, from its base64: packed by gzip. */
export async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}
