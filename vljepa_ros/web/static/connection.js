// The WebSocket: events in, requests out with their answers as promises, and connecting again.

const FIRST = 0.5; // seconds until the first new try; each one after waits twice as long
const LONGEST = 8;

export class Connection {
  // on.open(), on.event(event), on.picture(head, blob), on.lost(sentence, seconds until the next try)
  constructor(on) {
    this.on = on;
    this.waiting = new Map();
    this.next = 1;
    this.delay = FIRST;
    this.connect();
    addEventListener("online", () => this.again());
    document.addEventListener("visibilitychange", () => document.hidden || this.again());
  }

  get open() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  connect() {
    clearTimeout(this.timer);
    this.timer = null;
    const address = new URL("ws", location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    address.search = "";
    const socket = new WebSocket(address);
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.on.open();
    };
    socket.onmessage = ({ data }) => (typeof data === "string" ? this.take(JSON.parse(data)) : this.show(data));
    socket.onclose = (event) => this.lost(event, opened);
  }

  // Try at once, where a try is waited for.
  again() {
    if (this.timer) this.connect();
  }

  async lost(event, opened) {
    for (const { reject } of this.waiting.values()) reject(new Error("The connection was lost."));
    this.waiting.clear();
    const seconds = this.delay;
    this.delay = Math.min(LONGEST, 2 * this.delay);
    this.timer = setTimeout(() => this.connect(), 1000 * seconds);
    this.on.lost(event.reason || "Connection lost.", seconds);
    const refused = opened ? "" : await refusal();
    if (refused && !this.open) this.on.lost(refused, seconds);
  }

  take(event) {
    if (event.type === "hello") this.delay = FIRST;
    if (event.type !== "answer") {
      this.on.event(event);
      return;
    }
    const asked = this.waiting.get(event.id);
    this.waiting.delete(event.id);
    if (event.ok) asked?.resolve(event);
    else asked?.reject(new Error(event.error));
  }

  show(data) {
    const size = new DataView(data).getUint32(0);
    const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, size)));
    this.on.picture(head, new Blob([new Uint8Array(data, 4 + size)], { type: "image/jpeg" }));
  }

  // Ask for something; a promise of the answer, or of an Error with a sentence.
  request(type, fields = {}) {
    if (!this.open) return Promise.reject(new Error("There is no connection; it is being tried again."));
    const id = this.next++;
    this.socket.send(JSON.stringify({ id, type, ...fields }));
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }
}

// Why the server lets nobody in; empty where it does not say, or is not there.
async function refusal() {
  try {
    const response = await fetch("style.css", { method: "HEAD" });
    return response.status === 401 ? "The token has changed: open the address that the web node has logged." : "";
  } catch {
    return "";
  }
}
