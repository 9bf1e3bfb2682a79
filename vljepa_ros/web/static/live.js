// What is seen now: the picture with the newest words, the numbers, the standing labels, what was said.

import { bars, clock, find, fixed, make, unfamiliar } from "./dom.js";

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

  numbers(camera, step) {
    find("rate-in").textContent = camera ? `${fixed(camera.rate_in, 1)} Hz` : "–";
    find("rate-out").textContent = camera ? `${fixed(camera.rate_out, 1)} Hz` : "–";
    find("dropped").textContent = camera ? fixed(camera.dropped, 0) : "–";
    if (step?.latency !== undefined) find("latency").textContent = `${fixed(1000 * step.latency, 0)} ms`;
    find("score").textContent = fixed(step?.score);
    find("familiar").textContent = step?.familiarity >= 0 ? fixed(step.familiarity) : "–";
  }

  said(stream, step) {
    const words = unfamiliar(step?.familiarity) ? undefined : stream.words.at(-1);
    const stands = words !== undefined && words.segment === step?.segment;
    find("now").textContent = words?.text ?? "";
    find("now-about").textContent = unfamiliar(step?.familiarity) ? "the model does not know what it sees" : words ? `${stands ? "since " : ""}${clock(words.start)} · ${fixed(words.confidence)}${words.source ? ` · ${words.source}` : ""}` : "";
    const lines = stream.words.slice(-SAID).reverse().map((said) =>
      make("li", "", make("time", "", clock(said.start)), make("span", "", said.text),
        make("span", "confidence", fixed(said.confidence))));
    find("said").replaceChildren(...lines);
  }

  takeLabels(event) {
    if (event.type === "labels") this.labels = event;
    else this.scores.set(event.camera, event);
  }

  showLabels(camera) {
    const { labels, version } = this.labels;
    const scores = this.scores.get(camera);
    const fits = scores?.version === version && scores.scores.length === labels.length;
    find("no-labels").hidden = labels.length > 0;
    bars(find("labels"), labels.map((label, i) => [label, fits ? scores.scores[i] : null]));
  }
}
