// Recall: search the memory in words; moments as cards, the best first.

import { clock, counted, familiar, find, fixed, joined, make, note, unfamiliar, weak } from "./dom.js";

const LIMIT = 12;

export class Recall {
  constructor(connection, camera) {
    this.busy = false;
    find("recall").addEventListener("submit", (event) => {
      event.preventDefault();
      this.recall(connection, find("here").checked ? camera() : "");
    });
  }

  limit(limits) {
    find("search").maxLength = limits.text;
  }

  hint(services) {
    if (this.busy || find("moments").children.length || find("recall-note").classList.contains("bad")) return;
    note(find("recall-note"), services.recall ? "" : "The memory node is not running: nothing is remembered.");
  }

  async recall(connection, camera) {
    if (this.busy) return;
    this.busy = true;
    note(find("recall-note"), "Searching …");
    try {
      const answer = await connection.request("recall", { text: find("search").value, camera, limit: LIMIT });
      const count = answer.moments.length;
      const took = `${Math.round(1000 * answer.seconds)} ms`;
      note(find("recall-note"), count ? `${counted(count, "moment")}, best first, with their cosines · ${took}` : `Nothing is remembered that fits · ${took}`);
      const several = new Set(answer.moments.map((moment) => moment.robot)).size > 1;
      find("moments").replaceChildren(...answer.moments.map((moment) => card(moment, several ? moment.robot : "")));
    } catch (error) {
      find("moments").replaceChildren();
      note(find("recall-note"), error.message, true);
    } finally {
      this.busy = false;
    }
  }
}

// `robot`: empty where all moments are of one.
function card(moment, robot) {
  const picture = make("img", "thumbnail");
  if (moment.thumbnail) picture.src = `data:image/jpeg;base64,${moment.thumbnail}`;
  picture.alt = moment.text || "a moment without words";
  const when = make("p", "about", make("span", "", clock(moment.start)), make("span", "score", `${fixed(moment.score)}${weak(moment.score) ? " · weak" : ""}`));
  const about = [robot, moment.camera, `${fixed(moment.end - moment.start, 1)} s`, moment.pinned ? "pinned" : "",
    unfamiliar(moment.familiarity) ? "not known to the model" : "", familiar(moment.familiarity)];
  return make("li", "", moment.thumbnail ? picture : make("div", "thumbnail"), when, make("p", "text", moment.text || "–"),
    make("p", "about", joined(...about)));
}
