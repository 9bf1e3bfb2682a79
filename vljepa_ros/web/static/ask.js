// The ask box: a question, possible answers or none, and the answer with its scores.

import { bars, clock, familiar, find, joined, note } from "./dom.js";

export class Ask {
  constructor(connection, camera) {
    this.busy = false;
    find("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask(connection, camera());
    });
  }

  limit(limits) {
    find("question").maxLength = limits.text;
    this.most = limits.candidates;
  }

  // Whether the bundle is asked nothing, and only answers can be given.
  unasked(unasked) {
    find("question-field").hidden = unasked;
    find("question").required = !unasked;
    find("candidates-what").textContent = unasked ? "What may be seen" : "Possible answers";
  }

  // services: what there is in the graph.
  hint(services) {
    if (this.busy || find("answer").textContent || find("ask-note").classList.contains("bad")) return;
    const open = services.decode ? "" : "The decoder node is not running: give possible answers.";
    note(find("ask-note"), services.ask ? open : "The perception node does not answer questions yet.");
  }

  async ask(connection, camera) {
    if (this.busy) return;
    const candidates = find("candidates").value.split(",").map((text) => text.trim()).filter(Boolean);
    this.busy = true;
    note(find("ask-note"), "Asking …");
    find("answer").textContent = "";
    find("answer-note").textContent = "";
    find("answers").replaceChildren();
    try {
      const answer = await connection.request("ask", { camera, question: find("question").required ? find("question").value : "", candidates });
      note(find("ask-note"), joined(`seen at ${clock(answer.stamp)}`, familiar(answer.familiarity), `${Math.round(1000 * answer.seconds)} ms`));
      find("answer-note").textContent = answer.note;
      find("answer").textContent = answer.answer;
      const rows = candidates.map((text, i) => [text, answer.scores[i], answer.cosines[i]]);
      bars(find("answers"), rows.sort((a, b) => b[1] - a[1]));
    } catch (error) {
      note(find("ask-note"), error.message, true);
    } finally {
      this.busy = false;
    }
  }
}
