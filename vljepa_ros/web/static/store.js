// The last minutes of every stream: steps, changes and words of one camera and one standing question.

const SECONDS = 600;

class Stream {
  steps = []; // {stamp, score, segment, reused, familiarity}
  changes = []; // {segment, start, score, stamp}
  words = []; // {segment, start, text, confidence, source, stamp, familiarity}

  add(kind, event) {
    const last = this.steps.at(-1);
    if (kind === "steps" && last && event.stamp < last.stamp) this.rewind(event.stamp);
    this[kind].push(event);
    const oldest = (this.steps.at(-1) ?? event).stamp - SECONDS;
    for (const list of [this.steps, this.changes, this.words]) {
      while (list.length && list[0].stamp < oldest) list.shift();
    }
  }

  // Time jumped back.
  rewind(stamp) {
    for (const list of [this.steps, this.changes, this.words]) {
      while (list.length && list.at(-1).stamp > stamp) list.pop();
    }
  }

  // Stretches of one segment among the steps: {segment, start, end, words}.
  segments() {
    const starts = new Map(this.changes.map((change) => [change.segment, change.start]));
    const words = new Map(this.words.map((said) => [said.segment, said]));
    const found = [];
    for (const step of this.steps) {
      const last = found.at(-1);
      if (last?.segment === step.segment) {
        last.end = step.stamp;
      } else {
        const start = starts.get(step.segment) ?? step.stamp;
        if (last && start < last.end) last.end = Math.max(last.start, start);
        found.push({ segment: step.segment, start, end: step.stamp, words: words.get(step.segment) });
      }
    }
    return found;
  }
}

export class Store {
  streams = new Map();

  // The stream of a camera and question; made where it is new.
  of(camera, query) {
    const key = JSON.stringify([camera, query]);
    if (!this.streams.has(key)) this.streams.set(key, new Stream());
    return this.streams.get(key);
  }

  take(event) {
    if (event.type === "history") {
      this.streams.delete(JSON.stringify([event.camera, event.query]));
      const stream = this.of(event.camera, event.query);
      stream.steps = event.steps.map(([stamp, score, segment, reused, familiarity]) =>
        ({ stamp, score, segment, reused, familiarity }));
      stream.changes = event.changes;
      stream.words = event.words;
      return;
    }
    const kind = { step: "steps", change: "changes", words: "words" }[event.type];
    this.of(event.camera, event.query).add(kind, event);
  }

  // The latest different things that were said, of any stream; the newest first.
  said(count) {
    const words = [...this.streams.values()].flatMap((stream) => stream.words);
    words.sort((a, b) => b.stamp - a.stamp);
    return [...new Set(words.map((said) => said.text))].slice(0, count);
  }

  cameras() {
    return [...new Set([...this.streams.keys()].map((key) => JSON.parse(key)[0]))];
  }
}
