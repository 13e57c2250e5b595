"use strict";

// Shows /openapi.json without a library: what can be asked, with what, and how with curl.

function element(kind, text, ...inner) {
  const node = document.createElement(kind);
  if (text) node.textContent = text;
  node.append(...inner);
  return node;
}

function curl(method, path, operation) {
  const url = `${location.origin}${path}`;
  if (method !== "post") return `curl '${url}'`;
  const content = Object.entries(operation.requestBody?.content || {});
  const [kind, body] = content[0] || ["", {}];
  if (kind === "application/json") return `curl '${url}' -d '${JSON.stringify(body.example ?? {})}'`;
  return `curl '${url}' -F file=@photo.jpg`;
}

function described(method, path, operation) {
  const section = element("section", "", element("h3", `${method.toUpperCase()} ${path}`), element("p", operation.description));
  const parameters = operation.parameters || [];
  if (parameters.length) {
    const table = element("table");
    for (const one of parameters) {
      const head = element("th", `${one.name} (${one.in})`);
      head.scope = "row";
      const choice = one.schema.enum ? ` One of ${one.schema.enum.join(", ")}.` : "";
      table.append(element("tr", "", head, element("td", (one.description || "") + choice)));
    }
    section.append(table);
  }
  section.append(element("pre", curl(method, path, operation)));
  const answers = Object.entries(operation.responses).map(([status, one]) => element("li", `${status}: ${one.description}`));
  section.append(element("details", "", element("summary", "Answers"), element("ul", "", ...answers)));
  return section;
}

async function start() {
  const schema = await (await fetch("openapi.json")).json();
  document.getElementById("summary").textContent = schema.info.description;
  const groups = new Map();
  for (const [path, operations] of Object.entries(schema.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const name = (operation.tags || ["Other"])[0];
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(described(method, path, operation));
    }
  }
  for (const [name, sections] of groups) {
    document.getElementById("operations").append(element("h2", name), ...sections);
  }
}

start();
