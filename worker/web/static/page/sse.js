// Server-Sent Events from text in any pieces. Pure.
//
// `push(text)` returns the events that have become whole: { id, data }. A comment (`: ping`) is no event. Of the server
// only `id:` and single `data:` lines come, and line feeds end them.

export class EventParser {
  #rest = "";
  #id = null;
  #data = null;

  push(text) {
    const events = [];
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (this.#data !== null) events.push({ id: this.#id, data: this.#data });
        this.#id = this.#data = null;
      } else if (line.startsWith("id: ")) {
        this.#id = Number(line.slice(4));
      } else if (line.startsWith("data: ")) {
        this.#data = line.slice(6);
      }
    }
    return events;
  }
}
