// The interactive plot of a leaderboard: a metric against what it costs, drawn from what the API says of it.
// The table and the plots made on the server hold the same numbers; without scripts this section stays hidden.

const section = document.querySelector(".explore");
const SVG = "http://www.w3.org/2000/svg";
const COSTS = {
  fit_seconds: ["time to fit", "s"],
  predict_seconds: ["time to predict", "s"],
  peak_memory_mb: ["peak memory", "MB"],
  peak_gpu_mb: ["peak GPU memory", "MB"],
  parameters: ["learned parameters", ""],
};
const MARKS = {
  helps: "M0,-6 L6,5 H-6 Z",
  hurts: "M0,6 L6,-5 H-6 Z",
  baseline: "M0,-6 L6,0 L0,6 L-6,0 Z",
};
const ROUND = "M-5,0 a5,5 0 1,0 10,0 a5,5 0 1,0 -10,0";
const KIND = { helps: "helps", hurts: "hurts", "needs more seeds": "unsure" };
const RIGHT = 24, TOP = 34, BOTTOM = 46;
let WIDTH = 760, HEIGHT = 420, LEFT = 62; // as much as there is room for, so that text keeps its size

function element(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function short(value) {
  for (const [size, letter] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))}${letter}`;
  }
  return String(Number(value.toPrecision(3)));
}

function ticks(low, high, logarithmic) {
  if (!logarithmic) {
    const rough = (high - low) / 7 || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(Number(at.toPrecision(12)));
    return found;
  }
  const few = Math.log10(high / low) < 3 ? [1, 2, 5] : [1];
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const n of few) {
      const at = n * 10 ** power;
      if (at >= low && at <= high) found.push(at);
    }
  }
  return found;
}

function draw(board, cost, metric) {
  const [title, unit] = COSTS[cost];
  const rows = board.rows.filter((row) => row.values[metric.name] && row.costs[cost] !== undefined);
  const points = rows.map((row) => ({
    row,
    x: row.costs[cost],
    y: row.values[metric.name].mean,
    half: (row.values[metric.name].high ?? row.values[metric.name].mean) - row.values[metric.name].mean,
    kind: row.entry === board.baseline ? "baseline" : row.verdict ?? "needs more seeds",
  }));
  const positive = points.map((point) => point.x).filter((x) => x > 0);
  const logarithmic = positive.length > 0;
  const smallest = logarithmic ? Math.min(...positive) : 0;
  const largest = logarithmic ? Math.max(...positive) : 1;
  const room = logarithmic ? Math.max(1.6, (largest / smallest) ** 0.08) : 1;
  const hasZero = points.some((point) => point.x <= 0);
  const zero = smallest / room ** 2;
  const low = logarithmic ? (hasZero ? zero : smallest) / room : -1;
  const high = logarithmic ? largest * room : 1;
  const means = points.map((point) => point.y);
  const spread = Math.max(...means) - Math.min(...means) || Math.abs(means[0]) * 0.05 || 1;
  const bottom = Math.max(Math.min(...points.map((p) => p.y - p.half)), Math.min(...means) - 2 * spread) - 0.06 * spread;
  const top = Math.min(Math.max(...points.map((p) => p.y + p.half)), Math.max(...means) + 2 * spread) + 0.06 * spread;
  const x = (value) => {
    const at = logarithmic ? Math.log(Math.max(value, zero) / low) / Math.log(high / low) : (value - low) / (high - low);
    return LEFT + at * (WIDTH - LEFT - RIGHT);
  };
  const y = (value) => HEIGHT - BOTTOM - ((Math.min(Math.max(value, bottom), top) - bottom) / (top - bottom)) * (HEIGHT - TOP - BOTTOM);

  const label = `${metric.name} against ${title}; ${points.length} entries. Arrow keys go from entry to entry.`;
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": label });
  for (const at of ticks(bottom, top, false)) {
    svg.append(element("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(at), y2: y(at) }));
    svg.append(element("text", { x: LEFT - 8, y: y(at) + 4, "text-anchor": "end" }, short(at)));
  }
  let last = -Infinity;
  for (const at of [...(hasZero && logarithmic ? [0] : []), ...(logarithmic ? ticks(smallest / Math.sqrt(room), high, true) : [0])]) {
    const place = x(at);
    if (place - last < 46) continue;
    last = place;
    svg.append(element("text", { x: place, y: HEIGHT - BOTTOM + 20, "text-anchor": "middle" }, short(at)));
  }
  const units = metric.unit ? `, ${metric.unit}` : "";
  const direction = metric.higher_is_better ? "higher is better" : "lower is better";
  svg.append(element("text", { x: WIDTH - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, `${title}${unit ? `, ${unit}` : ""}${logarithmic ? ", logarithmic" : ""} →`));
  svg.append(element("text", { x: 0, y: 12 }, `↑ ${metric.name}${units} (${direction})`));

  svg.append(front(points, metric, x, y));
  const drawn = points.sort((a, b) => a.x - b.x).map((point) => mark(point, metric, title, unit, x, y));
  svg.append(...drawn);
  label_all(svg, points, x, y);
  walk(drawn);
  return svg;
}

// The entries that nothing cheaper beats, joined by a line.
function front(points, metric, x, y) {
  const sign = metric.higher_is_better ? 1 : -1;
  let best = -Infinity;
  const on = [...points].sort((a, b) => a.x - b.x || sign * (b.y - a.y)).filter((point) => {
    if (sign * point.y <= best) return false;
    best = sign * point.y;
    return true;
  });
  return element("polyline", { class: "front", points: on.map((point) => `${x(point.x)},${y(point.y)}`).join(" ") });
}

function mark(point, metric, title, unit, x, y) {
  const said = sentence(point, metric, title, unit);
  const made = element("g", { class: `point ${KIND[point.kind] ?? "same"}`, tabindex: "-1", role: "img", "aria-label": said });
  if (point.half) made.append(element("line", { x1: x(point.x), x2: x(point.x), y1: y(point.y - point.half), y2: y(point.y + point.half) }));
  const at = `translate(${x(point.x).toFixed(1)},${y(point.y).toFixed(1)})`;
  made.append(element("path", { d: MARKS[point.kind] ?? ROUND, transform: at }));
  made.append(element("circle", { class: "aim", r: 14, transform: at }), element("title", {}, said));
  const tell = () => { section.querySelector(".said").textContent = said; };
  for (const event of ["focus", "pointerenter", "click"]) made.addEventListener(event, tell);
  return made;
}

function sentence(point, metric, title, unit) {
  const value = `${short(point.y)}${point.half ? ` ± ${short(point.half)}` : ""}${metric.unit ? ` ${metric.unit}` : ""}`;
  return `${point.row.entry}: ${metric.name} ${value}; ${title} ${short(point.x)}${unit ? ` ${unit}` : ""}; ${point.kind}.`;
}

// Names go beside their marks where they cover neither a mark nor another name.
function label_all(svg, points, x, y) {
  const taken = points.map((point) => [x(point.x) - 7, y(point.y) - 7, x(point.x) + 7, y(point.y) + 7]);
  for (const point of points) {
    const name = point.row.entry.length > 26 ? `${point.row.entry.slice(0, 25)}…` : point.row.entry;
    const width = name.length * 7.4;
    for (const [dx, dy] of [[10, 4], [-10 - width, 4], [-width / 2, -12], [-width / 2, 20], [10, -10], [10, 18], [-10 - width, -10], [-10 - width, 18]]) {
      const box = [x(point.x) + dx, y(point.y) + dy - 11, x(point.x) + dx + width, y(point.y) + dy + 3];
      const free = box[0] >= LEFT && box[2] <= WIDTH && box[1] >= 0 && box[3] <= HEIGHT - BOTTOM + 6
        && !taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3]);
      if (!free) continue;
      taken.push(box);
      svg.append(element("text", { class: "name", x: box[0], y: box[3] - 3, "aria-hidden": "true" }, name));
      break;
    }
  }
}

// One stop for the tab key, arrows between entries.
function walk(marks) {
  marks[0]?.setAttribute("tabindex", "0");
  marks.forEach((made, index) => made.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const next = { Home: 0, End: marks.length - 1 }[event.key] ?? (step ? index + step : -1);
    if (!marks[next]) return;
    event.preventDefault();
    made.setAttribute("tabindex", "-1");
    marks[next].setAttribute("tabindex", "0");
    marks[next].focus();
  }));
}

async function start() {
  const answer = await fetch(section.dataset.source);
  if (!answer.ok) return;
  const board = await answer.json();
  const shown = board.rows.filter((row) => row.values[board.ranked_by.name]);
  const costs = Object.keys(COSTS).filter((cost) => shown.some((row) => row.costs[cost] > 0));
  const metrics = board.metrics.filter((metric) => shown.some((row) => row.values[metric.name]));
  if (shown.length < 2 || !costs.length) return;
  const [xs, ys] = [section.querySelector("#x-axis"), section.querySelector("#y-axis")];
  for (const cost of costs) xs.add(new Option(COSTS[cost][0], cost));
  for (const metric of metrics) ys.add(new Option(metric.name, metric.name));
  const stage = section.querySelector(".stage");
  const redraw = () => {
    WIDTH = Math.max(280, Math.min(760, stage.clientWidth));
    [HEIGHT, LEFT] = WIDTH < 500 ? [340, 46] : [420, 62];
    stage.replaceChildren(draw(board, xs.value, metrics.find((metric) => metric.name === ys.value)));
    section.querySelector(".said").textContent = "";
  };
  xs.addEventListener("change", redraw);
  ys.addEventListener("change", redraw);
  section.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  section.hidden = false;
  redraw();
  window.addEventListener("resize", () => {
    if (stage.clientWidth < 760 || WIDTH < 760) redraw();
  });
}

if (section) start();
