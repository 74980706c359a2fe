export class Operations {
  constructor(element) { this.element = element; }
}
