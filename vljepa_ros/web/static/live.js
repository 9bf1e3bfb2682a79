// What is seen now: the picture with the newest words, the numbers, the standing labels, what was said.

import { bars, clock, familiar, find, fixed, joined, make, unfamiliar } from "./dom.js";

const SAID = 40; // lines

export class Live {
  constructor() {
    this.address = ""; // of the picture that is shown
    this.old = []; // of those before it
    this.labels = { version: 0, labels: [] };
    this.scores = new Map(); // by camera
    find("picture").addEventListener("load", () => this.free());
  }

  // Forget the picture, of a camera that is not shown any more, and say why there is none.
  noPicture(why) {
    find("picture").hidden = true;
    find("no-picture").hidden = false;
    find("no-picture").textContent = why;
    this.stale("");
  }

  // The picture that is shown is not what the camera sees now, and why; empty: it is.
  stale(why) {
    find("stale").textContent = why;
    find("stale").hidden = !why;
    find("picture").classList.toggle("old", Boolean(why));
  }

  get hasPicture() {
    return !find("picture").hidden;
  }

  picture(blob) {
    const image = find("picture");
    this.old.push(this.address);
    this.address = URL.createObjectURL(blob);
    image.src = this.address;
    image.hidden = false;
    find("no-picture").hidden = true;
  }

  // The new picture is there: those before it are not needed any more.
  free() {
    for (const address of this.old) URL.revokeObjectURL(address);
    this.old = [];
  }

  // Of a camera's health and its newest step; neither: nobody tells.
  numbers(camera, step) {
    const [rateIn, rateOut] = [camera?.rate_in, camera?.rate_out].map((rate) => fixed(rate, 1));
    find("rate-in").textContent = camera ? `${rateIn} Hz` : "–";
    find("rate-out").textContent = camera ? `${rateOut} Hz` : "–";
    find("dropped").textContent = fixed(camera?.dropped, 0);
    if (!step || step.latency !== undefined) find("latency").textContent = duration(step?.latency);
    find("score").textContent = fixed(step?.score);
    find("familiar").textContent = step?.familiarity >= 0 ? fixed(step.familiarity) : "–";
  }

  said(stream, step) {
    const words = unfamiliar(step?.familiarity) ? undefined : stream.words.at(-1);
    find("now").textContent = words?.text ?? "";
    find("now-about").textContent = unfamiliar(step?.familiarity)
      ? joined("the model does not know what it sees", familiar(step.familiarity))
      : about(words, step);
    const lines = stream.words.slice(-SAID).reverse().map((said) =>
      make("li", "", make("time", "", clock(said.start)), make("span", "", said.text),
        make("span", "number", fixed(said.confidence)),
        make("span", "number familiarity", said.familiarity >= 0 ? fixed(said.familiarity) : "–")));
    find("said").replaceChildren(...lines);
  }

  // Why nothing is said, from the graph's health.
  mute({ nodes, services, words }) {
    const usual = "Nothing yet: words come with a change, and none where the model is unsure.";
    const missing = nodes.perception && !services.decode ? "Nothing: the decoder node is not running." : usual;
    find("said").dataset.why = words?.level ? `Nothing yet: ${words.message}.` : missing;
  }

  takeLabels(event) {
    if (event.type === "labels") this.labels = event;
    else this.scores.set(event.camera, event);
  }

  // Scores that nobody tells anew are not those of what is seen now.
  forgetScores(camera) {
    this.scores.clear();
    this.showLabels(camera);
  }

  showLabels(camera) {
    const { labels, version } = this.labels;
    const scores = this.scores.get(camera);
    const fits = scores?.version === version && scores.scores.length === labels.length;
    find("no-labels").hidden = labels.length > 0;
    bars(find("labels"), labels.map((label, i) => [label, fits ? scores.scores[i] : null, fits ? scores.cosines[i] : null]));
  }
}

function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  return seconds < 1 ? `${fixed(1000 * seconds, 0)} ms` : `${fixed(seconds, 1)} s`;
}

// Since when words stand, and how well they fit; empty where there are none.
function about(words, step) {
  if (!words) return "";
  const stands = words.segment === step?.segment;
  return joined(`${stands ? "since " : ""}${clock(words.start)}`, `cosine ${fixed(words.confidence)}`,
    familiar(words.familiarity), words.source);
}
