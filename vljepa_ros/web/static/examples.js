// What the fields name as examples: what the bundle that runs knows, and nothing where that is not known.

import { find } from "./dom.js";

const MOST = 3; // answers that are named

// Of the bundles that ship, by the name in their model_id.
export const SHIPPED = {
  tabletop: {
    question: "What colour is the cube?",
    candidates: ["red", "blue", "yellow"],
    condition: "the gripper picks up the blue cube",
    search: "a hand passes over the table",
  },
  everyday: {
    candidates: ["a person", "a chair", "a bottle"],
    condition: "a person",
    search: "a person",
  },
};

// `said(count)`: what the stream has said lately; a bundle has words for that.
export function showExamples(info, said) {
  const words = said(MOST);
  const known = SHIPPED[/^(.+)-[^-]*#/.exec(info?.model_id ?? "")?.[1]] ?? { candidates: words, condition: words[0], search: words[0] };
  const { question = info?.queries[0], candidates, condition, search } = known;
  show("question", question);
  show("candidates", candidates.join(", "));
  show("condition", condition);
  show("search", search);
}

function show(id, example) {
  const text = example ? `e.g. ${example}` : "";
  if (find(id).placeholder !== text) find(id).placeholder = text;
}

// Whether the bundle is asked nothing: possible answers are then compared with what is seen.
export const unasked = (info) => info?.queries.length === 1 && info.queries[0] === "";
