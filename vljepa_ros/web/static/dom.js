// Small helpers: elements, times, numbers. Text is only ever set as text, never as markup.

export const find = (id) => document.getElementById(id);

// A new element: its class, its text or children.
export function make(tag, name = "", ...content) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...content);
  return element;
}

const CALENDAR = 1e9; // stamps below are of a simulation's clock, or places in a video

// A stamp in seconds, by the rule of vljepa_ros/stamps.py (`clock`), with fewer digits: the time of day, the date before
// it where that is not today; seconds where it comes from no calendar.
export function clock(stamp, digits = 0, dated = true) {
  if (stamp === null || stamp === undefined) return "–";
  const cut = Math.floor(stamp * 10 ** digits + 1e-3) / 10 ** digits; // of 0.1, a float, and not of 0.0999
  if (stamp < CALENDAR) return `${cut.toFixed(digits)} s`;
  const two = (n) => String(n).padStart(2, "0");
  const time = new Date(cut * 1000);
  const part = digits ? (cut % 1).toFixed(digits).slice(1) : "";
  const hour = `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}${part}`;
  if (!dated || time.toDateString() === new Date().toDateString()) return hour;
  return `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())} ${hour}`;
}

export const fixed = (value, digits = 2) => (Number.isFinite(value) ? value.toFixed(digits) : "–");

// Show a list of [text, share of 1, cosine] as bars; the best one stands out, weak ones are marked. One alone has no share.
export function bars(list, rows) {
  while (list.children.length > rows.length) list.lastChild.remove();
  while (list.children.length < rows.length) {
    list.append(make("li", "", make("span"), make("span"), make("span", "bar")));
  }
  const best = Math.max(...rows.map((row) => row[1] ?? 0));
  rows.forEach(([text, share, cosine], i) => {
    const row = list.children[i];
    const [name, number, bar] = row.children;
    name.textContent = text;
    const figures = [rows.length > 1 ? `${(100 * share).toFixed(0)} %` : "", fixed(cosine), weak(cosine) ? "weak" : ""];
    number.textContent = Number.isFinite(share) ? figures.filter(Boolean).join(" · ") : "–";
    number.title = `cosine ${fixed(cosine)}; below ${fixed(enough)} a match is weak`;
    bar.style.width = `${100 * Math.max(0, share ?? 0)}%`;
    row.classList.toggle("best", share === best);
    row.classList.toggle("weak", weak(cosine));
  });
}

let known = -1; // the familiarity from which on the model knows what it sees; -1: it cannot tell
let enough = null; // the cosine below which a match is weak; null: not told yet

// What `model_info` says.
export function knows(info) {
  known = info.familiarity_threshold ?? -1;
  enough = info.watch_threshold;
  document.body.classList.toggle("tells", known >= 0); // what only such a model can fill is shown
}

export const weak = (cosine) => Number.isFinite(cosine) && enough !== null && cosine < enough;

// "1 moment", "2 moments".
export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

export const unfamiliar = (familiarity) => familiarity >= 0 && familiarity < known;

// A familiarity, beside a score; empty where the model cannot tell.
export const familiar = (familiarity) => (familiarity >= 0 ? `familiar ${fixed(familiarity)}` : "");

// What is there of some parts, with dots between.
export const joined = (...parts) => parts.filter(Boolean).join(" · ");

// Say something beneath a form.
export function note(element, text, bad = false) {
  element.textContent = text;
  element.classList.toggle("bad", bad);
}
