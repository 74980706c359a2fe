// Elements, made by hand. Law: text is set as text, and nothing here or in any other module reads markup from a string.

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  set(element, attributes);
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  set(element, attributes);
  element.append(...children);
  return element;
}

// A function is a listener: `onclick` is set as a property. null and false leave an attribute out.
function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element[name] = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
}

export const byId = (id) => document.getElementById(id);

// A live region is read again when its text is set again, the same or not.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Whether a key in a field of several lines sends it. Where there is no keyboard but on the glass, Enter is the only way to
// begin a line.
export function isSent(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && !matchMedia("(pointer: coarse)").matches;
}
