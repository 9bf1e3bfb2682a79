// The change-score timeline: segments shaded by turns, their words where they begin, the threshold at 1, and a
// mark for each change.

import { clock, familiar, find, fixed, joined, unfamiliar } from "./dom.js";

const ROWS = 4; // of words
const ROW = 16; // pixels
const LEFT = 30; // of the chart: the scale's numbers
const FOOT = 18; // the clock's
const FULL = 2; // score at the top, where none is higher
const SCORES = [0, 1, 4, 9, 25, 100]; // that the scale names; its steps are those of the square root
const GAP = 10; // between words of one row
const SHORTEST = 46; // pixels in which words still say something
const STRIP = 4; // pixels, along the foot, of what the model does not know
const BREAK = 3; // seconds without a step that are a gap in the line

export class Timeline {
  constructor() {
    this.canvas = find("timeline");
    this.details = find("details");
    this.seconds = 120;
    this.stream = null;
    this.at = null; // stamp under the pointer
    this.drawn = false;
    const canvas = this.canvas;
    new ResizeObserver(() => this.redraw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerdown", (event) => this.point(event));
    canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.unpoint());
    canvas.addEventListener("blur", () => this.unpoint());
    canvas.addEventListener("keydown", (event) => this.key(event));
    for (const choice of document.querySelectorAll("input[name=span]")) {
      choice.addEventListener("change", () => {
        this.seconds = Number(choice.value);
        this.redraw();
      });
    }
  }

  show(stream) {
    if (stream !== this.stream) this.at = null;
    this.stream = stream;
    this.redraw();
  }

  // Draw before the next picture of the screen, once for all that has come.
  redraw() {
    if (this.drawn) return;
    this.drawn = true;
    requestAnimationFrame(() => {
      this.drawn = false;
      this.draw();
    });
  }

  // ------------------------------------------------------------ pointing

  point(event) {
    if (!this.scale) return;
    this.at = this.scale.time(event.offsetX);
    this.redraw();
  }

  unpoint() {
    this.at = null;
    this.redraw();
  }

  key(event) {
    const steps = this.stream?.steps ?? [];
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -1e9, End: 1e9 }[event.key];
    if (event.key === "Escape") this.unpoint();
    if (move === undefined || !steps.length) return;
    event.preventDefault();
    const now = this.at === null ? steps.length - 1 : nearest(steps, this.at);
    this.at = steps[Math.max(0, Math.min(steps.length - 1, now + (this.at === null ? 0 : move)))].stamp;
    this.redraw();
  }

  // ------------------------------------------------------------ drawing

  draw() {
    const canvas = this.canvas;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return;
    const ratio = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    }
    const style = getComputedStyle(canvas);
    const pen = canvas.getContext("2d");
    this.colour = (name) => style.getPropertyValue(`--${name}`);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `12px ${style.fontFamily}`;

    const steps = this.stream?.steps ?? [];
    const newest = steps.at(-1)?.stamp ?? 0;
    const oldest = newest - this.seconds;
    const seen = steps.filter((step) => step.stamp >= oldest);
    const top = ROWS * ROW + 6;
    const bottom = height - FOOT;
    const full = Math.max(FULL, ...seen.map((step) => step.score ?? 0));
    this.scale = {
      width, top, bottom, full, oldest, newest,
      x: (stamp) => LEFT + ((stamp - oldest) / this.seconds) * (width - LEFT),
      time: (x) => oldest + ((x - LEFT) / (width - LEFT)) * this.seconds,
      y: (score) => bottom - Math.sqrt(Math.max(0, score) / full) * (bottom - top),
    };
    const segments = (this.stream?.segments() ?? []).filter((segment) => segment.end >= oldest);
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, width - LEFT, height);
    pen.clip();
    this.drawSegments(pen, segments);
    this.drawScore(pen, seen);
    this.drawStrange(pen, seen);
    this.drawChanges(pen, (this.stream?.changes ?? []).filter((change) => change.stamp >= oldest));
    pen.restore();
    this.drawScale(pen, steps.length > 0);
    this.drawWords(pen, segments);
    this.drawPointer(pen, seen, segments);
    canvas.dataset.steps = seen.length;
  }

  drawSegments(pen, segments) {
    const { x, top, bottom, oldest } = this.scale;
    segments.forEach((segment, i) => {
      const from = x(Math.max(segment.start, oldest));
      const to = x(segments[i + 1]?.start ?? segment.end);
      pen.fillStyle = this.colour(segment.segment % 2 ? "shade" : "shade2");
      pen.fillRect(from, top, Math.max(1, to - from), bottom - top);
    });
  }

  drawScore(pen, steps) {
    const { x, y } = this.scale;
    pen.strokeStyle = this.colour("line");
    pen.lineWidth = 1.5;
    pen.lineJoin = "round";
    pen.beginPath();
    let last = null;
    for (const step of steps) {
      if (step.score === null) continue;
      // A gap in the stream is a gap in the line.
      if (last === null || step.stamp - last > BREAK) pen.moveTo(x(step.stamp), y(step.score));
      else pen.lineTo(x(step.stamp), y(step.score));
      last = step.stamp;
    }
    pen.stroke();
  }

  // One mark a change, at the step that told it: the steps after have high scores, too, and are none.
  drawChanges(pen, changes) {
    const { x, y, top } = this.scale;
    pen.fillStyle = this.colour("mark");
    for (const change of changes) {
      pen.beginPath();
      pen.arc(x(change.stamp), Math.max(top, y(change.score ?? 1)), 3.5, 0, 7);
      pen.fill();
    }
    this.canvas.dataset.changes = changes.length;
  }

  drawStrange(pen, steps) {
    const { x, bottom } = this.scale;
    pen.fillStyle = this.colour("bad");
    steps.forEach((step, i) => {
      if (!unfamiliar(step.familiarity)) return;
      const [from, to] = [steps[i - 1]?.stamp ?? step.stamp, step.stamp].map(x);
      pen.fillRect(from, bottom - STRIP, Math.max(1, to - from > x(BREAK) - x(0) ? 1 : to - from), STRIP);
    });
  }

  drawScale(pen, dated) {
    const { x, y, width, bottom, full, oldest, newest } = this.scale;
    pen.fillStyle = this.colour("quiet");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const score of SCORES.filter((one) => one <= full)) pen.fillText(String(score), LEFT - 6, y(score));
    pen.strokeStyle = this.colour("edge");
    pen.lineWidth = 1;
    line(pen, LEFT, bottom + 0.5, width, bottom + 0.5);
    pen.strokeStyle = this.colour("mark");
    pen.setLineDash([4, 3]);
    line(pen, LEFT, y(1), width, y(1));
    pen.setLineDash([]);
    if (!dated) return;
    const tick = [5, 10, 15, 30, 60, 120].find((s) => (s / this.seconds) * (width - LEFT) > 75) ?? 300;
    pen.textAlign = "center";
    pen.textBaseline = "bottom";
    for (let stamp = Math.ceil(oldest / tick) * tick; stamp <= newest; stamp += tick) {
      const at = x(stamp);
      if (stamp >= 0 && at > LEFT + 28 && at < width - 28) pen.fillText(clock(stamp, 0, false), at, this.canvas.clientHeight);
    }
  }

  drawWords(pen, segments) {
    const { bottom } = this.scale;
    const placed = this.placeWords(pen, segments);
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    pen.strokeStyle = this.colour("edge");
    for (const { at, middle } of placed) line(pen, at + 0.5, middle + ROW / 2, at + 0.5, bottom);
    for (const { text, left, middle } of placed) {
      pen.fillStyle = this.colour("panel");
      pen.fillRect(left - 2, middle - ROW / 2, pen.measureText(text).width + 4, ROW);
      pen.fillStyle = this.colour("text");
      pen.fillText(text, left, middle);
    }
  }

  // From the newest words to the oldest, each in the lowest row that has room before the newer ones.
  placeWords(pen, segments) {
    const { x, width, oldest } = this.scale;
    const free = Array(ROWS).fill(width + GAP);
    const placed = [];
    for (const segment of segments.toReversed()) {
      const said = segment.words?.text;
      if (!said || segment.end < oldest) continue;
      const at = Math.max(LEFT, x(segment.start));
      const wide = pen.measureText(said).width;
      const left = Math.max(0, Math.min(at, width - wide));
      let row = free.findLastIndex((limit) => left + wide + GAP <= limit);
      let text = said;
      if (row < 0) {
        row = free.lastIndexOf(Math.max(...free));
        text = shorten(pen, said, free[row] - GAP - at);
        if (!text) continue;
      }
      free[row] = text === said ? left : at;
      placed.push({ text, at, left: free[row], middle: row * ROW + ROW / 2 });
    }
    return placed;
  }

  drawPointer(pen, steps, segments) {
    const { x, y, top, bottom } = this.scale;
    const step = this.at === null ? null : steps[nearest(steps, this.at)];
    if (!step) {
      this.details.textContent = this.stream?.steps.length ? "" : "No scores yet.";
      return;
    }
    pen.strokeStyle = this.colour("quiet");
    line(pen, x(step.stamp), top, x(step.stamp), bottom);
    pen.fillStyle = this.colour("text");
    pen.beginPath();
    pen.arc(x(step.stamp), y(step.score ?? 0), 3, 0, 7);
    pen.fill();
    const segment = segments.findLast((one) => one.start <= step.stamp);
    const words = segment?.words ? `“${segment.words.text}” (cosine ${fixed(segment.words.confidence)})` : "";
    this.details.textContent = joined(clock(step.stamp, 1), `score ${fixed(step.score)}`, `segment ${step.segment}`,
      familiar(step.familiarity), step.reused ? "nothing new" : "", words);
  }
}

function line(pen, fromX, fromY, toX, toY) {
  pen.beginPath();
  pen.moveTo(fromX, fromY);
  pen.lineTo(toX, toY);
  pen.stroke();
}

// The text with an ellipsis in so many pixels; empty where that would say nothing.
function shorten(pen, text, room) {
  if (room < SHORTEST) return "";
  let length = text.length;
  while (length > 1 && pen.measureText(`${text.slice(0, length)}…`).width > room) length -= 1;
  return `${text.slice(0, length).trimEnd()}…`;
}

// Index of the step whose stamp is nearest; -1 where there is none.
function nearest(steps, stamp) {
  let best = -1;
  steps.forEach((step, i) => {
    if (best < 0 || Math.abs(step.stamp - stamp) < Math.abs(steps[best].stamp - stamp)) best = i;
  });
  return best;
}
