// Small helpers: elements, times, numbers. Text is only ever set as text, never as markup.

export const find = (id) => document.getElementById(id);

// A new element: its class, its text or children.
export function make(tag, name = "", ...content) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...content);
  return element;
}

const EPOCH = 1e8; // stamps below are of a simulated clock, which begins at zero

// A stamp in seconds as the time of day, or as minutes and seconds of a simulated clock.
export function clock(stamp, digits = 0) {
  if (stamp === null || stamp === undefined) return "–";
  const part = digits ? (stamp % 1).toFixed(digits).slice(1) : "";
  const whole = Math.floor(stamp);
  const two = (n) => String(n).padStart(2, "0");
  if (stamp < EPOCH) return `${two(Math.floor(whole / 60))}:${two(whole % 60)}${part}`;
  const time = new Date(whole * 1000);
  return `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}${part}`;
}

export const fixed = (value, digits = 2) => (Number.isFinite(value) ? value.toFixed(digits) : "–");

// Show a list of [text, share of 1] as bars; the best one stands out.
export function bars(list, rows) {
  while (list.children.length > rows.length) list.lastChild.remove();
  while (list.children.length < rows.length) {
    list.append(make("li", "", make("span"), make("span"), make("span", "bar")));
  }
  const best = Math.max(...rows.map((row) => row[1] ?? 0));
  rows.forEach(([text, share], i) => {
    const row = list.children[i];
    const [name, number, bar] = row.children;
    name.textContent = text;
    number.textContent = Number.isFinite(share) ? `${(100 * share).toFixed(0)} %` : "–";
    bar.style.width = `${100 * (share ?? 0)}%`;
    row.classList.toggle("best", share === best);
  });
}

let known = -1; // the familiarity from which on the model knows what it sees; -1: it cannot tell

export function knows(threshold) {
  known = threshold ?? -1;
}

export const unfamiliar = (familiarity) => familiarity >= 0 && familiarity < known;

// Say something beneath a form.
export function note(element, text, bad = false) {
  element.textContent = text;
  element.classList.toggle("bad", bad);
}
