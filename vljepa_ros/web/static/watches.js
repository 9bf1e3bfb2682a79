// Watches: conditions in words, their scores against the threshold, and when they came true.

import { clock, familiar, find, fixed, joined, make, note, unfamiliar } from "./dom.js";

export class Watches {
  constructor(connection, camera) {
    this.connection = connection;
    this.list = find("watches");
    this.rows = []; // of Row, the newest first
    this.threshold = 0; // the bundle's
    this.byNumber = new Map(); // those that run, by the server's number
    find("watch").addEventListener("submit", (event) => {
      event.preventDefault();
      this.add(camera(), find("condition").value, Number(find("threshold").value) || 0);
    });
  }

  // The bundle's threshold, for conditions that were given none.
  calibrated(threshold) {
    for (const row of this.rows) row.calibrated(threshold);
    this.threshold = threshold;
  }

  limit(limits) {
    find("condition").maxLength = limits.text;
  }

  async add(camera, text, threshold) {
    const row = new Row(camera, text, threshold, () => this.end(row));
    row.calibrated(this.threshold);
    try {
      await this.start(row);
    } catch (error) {
      note(find("watch-note"), error.message, true);
      return;
    }
    note(find("watch-note"), "");
    find("watch").reset();
    this.rows.unshift(row);
    this.list.prepend(row.element);
  }

  async start(row) {
    const { camera, text, threshold } = row;
    const answer = await this.connection.request("watch", { camera, text, threshold });
    row.number = answer.watch;
    this.byNumber.set(answer.watch, row);
  }

  // The button: cancel one that runs, remove one that has ended.
  async end(row) {
    if (!row.runs) {
      this.rows = this.rows.filter((one) => one !== row);
      row.element.remove();
      return;
    }
    try {
      row.cancelled = true;
      await this.connection.request("unwatch", { watch: row.number });
    } catch (error) {
      note(find("watch-note"), error.message, true);
    }
  }

  take(event) {
    const row = this.byNumber.get(event.watch);
    if (event.type === "watch") {
      row?.score(event);
    } else {
      this.byNumber.delete(event.watch);
      row?.ended(event);
    }
  }

  lost() {
    this.byNumber.clear();
    for (const row of this.rows) if (row.runs) row.say("waits for the connection");
  }

  // The connection is there again: so are the watches that had not ended.
  async resume() {
    for (const row of this.rows.filter((one) => one.runs)) {
      try {
        await this.start(row);
      } catch (error) {
        row.ended({ fired: false, message: error.message });
      }
    }
  }
}

class Row {
  constructor(camera, text, threshold, onButton) {
    Object.assign(this, { camera, text, threshold, runs: true, cancelled: false });
    this.value = make("span", "value", "–");
    this.button = make("button", "plain", "Cancel");
    this.button.type = "button";
    this.button.setAttribute("aria-label", `Cancel the watch for: ${text}`);
    this.button.addEventListener("click", onButton);
    this.level = make("span", "level");
    this.mark = make("span", "mark");
    this.meter = make("div", "meter", this.level, this.mark);
    this.meter.setAttribute("role", "meter");
    this.meter.setAttribute("aria-label", `Score of: ${text}`);
    this.meter.setAttribute("aria-valuemin", "0");
    this.meter.setAttribute("aria-valuemax", "1");
    this.about = make("p", "about");
    this.element = make("li", "", make("span", "text", text), this.value, this.button, this.meter, this.about);
    this.say("begins");
  }

  calibrated(threshold) {
    this.wanted = this.threshold || threshold;
    this.mark.style.left = `${100 * this.wanted}%`;
  }

  say(text) {
    this.about.textContent = joined(this.camera, text);
  }

  score({ score, stamp }) {
    this.value.textContent = fixed(score);
    this.level.style.width = `${100 * Math.max(0, score ?? 0)}%`;
    this.meter.setAttribute("aria-valuenow", fixed(score));
    this.say(`watching · ${clock(stamp)} · cosine, true from ${fixed(this.wanted)}`);
  }

  ended(event) {
    this.runs = false;
    this.element.className = event.fired ? "fired" : this.cancelled ? "ended" : "failed";
    const strange = unfamiliar(event.familiarity) ? ", in what the model does not know" : "";
    const came = `came true at ${clock(event.end, 1)} with ${fixed(event.score)}${strange}`;
    if (event.fired) this.say(joined(came, familiar(event.familiarity)));
    else this.say(this.cancelled ? "cancelled" : event.message);
    this.button.textContent = "Remove";
    this.button.setAttribute("aria-label", `Remove the watch for: ${this.text}`);
  }
}
