"use strict";

const CLASSES_SHOWN = 10;
const FILES_AT_ONCE = 16;
const $ = (id) => document.getElementById(id);

let about = { models: [], max_files: FILES_AT_ONCE };

// --- talking to the server

async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  const token = sessionStorage.getItem("token");
  if (token) headers.set("Authorization", `Bearer ${token}`);
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) {
    $("token-form").hidden = false;
    $("token").focus();
  }
  return response;
}

async function reason(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error || response.statusText;
  } catch {
    return response.statusText || `status ${response.status}`;
  }
}

function modelQuery(more = {}) {
  return new URLSearchParams({ model: $("model").value, ...more }).toString();
}

function current() {
  return about.models.find((model) => model.name === $("model").value);
}

// --- starting

async function start() {
  const response = await ask("about");
  if (!response.ok) {
    $("summary").textContent = await reason(response);
    return;
  }
  about = await response.json();
  if (!about.models.length) {
    $("summary").textContent = "The model is being loaded…";
    setTimeout(start, 1000);
    return;
  }
  $("model").replaceChildren(...about.models.map((model) => new Option(model.name)));
  $("model-choice").hidden = about.models.length < 2;
  summarise();
}

function summarise() {
  const model = current();
  const scores = model.calibrated ? "calibrated probabilities" : "probabilities, not calibrated";
  const said = model.task === "detection" ? `finds ${model.classes.length} classes` : model.task === "regression" ? `predicts ${model.classes.join(", ")}` : `${model.classes.length} classes, ${scores}`;
  $("summary").textContent = `${model.name}, version ${model.version}: ${model.network}, ${said}`;
  if (!$("panel-model").hidden) showModel();
}

// --- tabs

const tabs = [$("tab-images"), $("tab-model")];

function select(tab) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", String(chosen));
    other.tabIndex = chosen ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (tab === $("tab-model")) showModel();
}

for (const [position, tab] of tabs.entries()) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(position + step + tabs.length) % tabs.length];
    select(next);
    next.focus();
  });
}

// --- the model tab

async function showModel() {
  const model = current();
  if (!model) return;
  if (model.has_report) {
    const frame = document.createElement("iframe");
    frame.title = "Evaluation report";
    frame.setAttribute("sandbox", "allow-scripts");
    frame.src = `report?${modelQuery(model.report_link)}`;
    $("evaluation").replaceChildren(frame);
  } else {
    $("evaluation").replaceChildren(figures(model.metrics));
  }
  if (!model.has_card) {
    $("card").replaceChildren(figures({ network: model.network, engine: model.engine, size: model.size.join(" × "), classes: model.classes.join(", ") }));
    return;
  }
  const card = document.createElement("pre");
  const response = await ask(`card?${modelQuery()}`);
  card.textContent = response.ok ? await response.text() : await reason(response);
  $("card").replaceChildren(card);
}

function figures(values) {
  const table = document.createElement("table");
  for (const [name, value] of Object.entries(values)) {
    const inner = value && typeof value === "object" && !Array.isArray(value);
    for (const [key, figure] of inner ? Object.entries(value) : [["", value]]) {
      const row = table.insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = `${name} ${key}`.trim().replaceAll("_", " ");
      row.append(head);
      row.insertCell().textContent = show(figure);
    }
  }
  return table;
}

function show(value) {
  if (Array.isArray(value)) return value.map(show).join(" to ");
  return typeof value === "number" && !Number.isInteger(value) ? value.toFixed(4) : String(value);
}

// --- images

async function classify(files) {
  if (!files.length) return;
  const size = Math.min(FILES_AT_ONCE, about.max_files);
  for (let begin = 0; begin < files.length; begin += size) {
    await classifySome(files.slice(begin, begin + size), begin, files.length);
  }
  $("files").value = "";
}

async function classifySome(files, begin, count) {
  $("status").textContent = `Looking at ${begin + 1} to ${begin + files.length} of ${count}…`;
  const form = new FormData();
  for (const file of files) form.append("file", file, file.name || "image");
  const started = performance.now();
  let answer;
  try {
    // of a detector all boxes, which the slider hides and shows
    const all = current().thresholds ? { threshold: 0 } : {};
    const response = await ask(`predict?${modelQuery(all)}`, { method: "POST", body: form });
    const text = await response.text();
    answer = JSON.parse(text);
  } catch (error) {
    answer = { error: `The server cannot be reached (${error.message}).` };
  }
  const total = performance.now() - started;
  const predictions = answer.predictions || files.map(() => ({ error: answer.error }));
  const cards = predictions.map((prediction, position) => card(files[position], prediction, answer.milliseconds, total));
  $("results").prepend(...cards);
  const bad = predictions.filter((prediction) => prediction.error).length;
  const first = predictions.find((prediction) => !prediction.error);
  const good = predictions.length - bad;
  const boxes = first && first.boxes;
  const said = boxes ? (good === 1 ? `${shownBoxes(first).length} boxes.` : `${good} images done.`) : good === 1 ? `${first.values ? numbers(first).join(", ") : `${first.label || "no label"}, ${percent(first.probability)}`}.` : `${good} images ${first && first.values ? "done" : "classified"}.`;
  $("status").textContent = (good ? said : "") + (bad ? ` ${bad} could not be used.` : "");
}

function card(file, prediction, server, total) {
  const node = $("result").content.cloneNode(true).firstElementChild;
  const name = file.name || "image";
  node.querySelector("h2").textContent = name;
  const photo = node.querySelector(".photo");
  const url = URL.createObjectURL(file);
  photo.src = url;
  const found = prediction.boxes ? "with boxes" : prediction.values ? numbers(prediction).join(", ") : `classified as ${prediction.label || "no label"}`;
  photo.alt = prediction.error ? "" : `${name}, ${found}`;
  photo.addEventListener("error", () => (photo.hidden = true), { once: true });
  if (prediction.error) {
    const error = document.createElement("p");
    error.className = "error";
    error.textContent = prediction.error;
    node.querySelector(".answer").replaceChildren(error);
    node.querySelector("figcaption").remove();
    return node;
  }
  node.querySelector(".unlike").hidden = !prediction.unlike_training;
  if (prediction.boxes) boxed(node, prediction);
  else node.querySelector(".classes").append(...(prediction.values ? lines(numbers(prediction)) : bars(prediction.probabilities)));
  node.querySelector(".latency").textContent = `${server.toFixed(1)} ms in the server, ${total.toFixed(0)} ms in all.`;
  const button = node.querySelector(".explain");
  button.hidden = Boolean(prediction.values || prediction.boxes); // of classes alone
  button.addEventListener("click", () => explain(node, file, button));
  return node;
}

// --- boxes

const COLOURS = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

function startOf(label) {
  return current().thresholds[label];
}

function shownBoxes(prediction, threshold) {
  return prediction.boxes.filter((one) => one.score >= (threshold === undefined ? startOf(one.label) : threshold));
}

function boxed(node, prediction) {
  const svg = node.querySelector(".boxes");
  svg.setAttribute("viewBox", `0 0 ${prediction.width} ${prediction.height}`);
  svg.toggleAttribute("hidden", false);
  const slider = node.querySelector(".threshold input");
  const value = node.querySelector(".threshold output");
  const labels = Object.keys(current().thresholds);
  const usual = labels.map(startOf).sort((one, other) => one - other)[Math.floor(labels.length / 2)];
  slider.value = Math.round(100 * usual);
  const draw = (threshold) => {
    const found = shownBoxes(prediction, threshold);
    value.textContent = threshold === undefined ? "as fitted" : threshold.toFixed(2);
    svg.replaceChildren(...found.slice().reverse().flatMap((one) => rectangle(one, labels.indexOf(one.label), prediction)));
    node.querySelector(".classes").replaceChildren(...lines(found.map((one) => `${one.label} ${one.score.toFixed(2)}`)));
  };
  slider.addEventListener("input", () => draw(slider.value / 100));
  node.querySelector(".threshold").hidden = false;
  draw(undefined);
}

function rectangle(one, number, prediction) {
  const make = (name, values) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(values)) element.setAttribute(key, value);
    return element;
  };
  const [x1, y1, x2, y2] = one.box;
  const colour = COLOURS[number % COLOURS.length];
  const size = Math.min(prediction.width, prediction.height) / 28;
  const frame = make("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, stroke: colour, "stroke-width": size / 6 });
  const text = make("text", { x: x1, y: Math.max(size, y1 - size / 4), "font-size": size, fill: colour });
  text.textContent = `${one.label} ${one.score.toFixed(2)}`;
  return [frame, text];
}

function numbers(prediction) {
  return Object.entries(prediction.values).map(([name, value]) => {
    const ends = prediction.intervals[name];
    const between = ends ? ` (${percent(prediction.coverage)} interval ${ends.map((end) => end.toPrecision(4)).join(" to ")})` : "";
    return `${name} ${value.toPrecision(4)}${between}`;
  });
}

function lines(texts) {
  return texts.map((text) => {
    const row = document.createElement("li");
    row.textContent = text;
    return row;
  });
}

function bars(probabilities) {
  return Object.entries(probabilities).slice(0, CLASSES_SHOWN).map(([label, probability]) => {
    const row = document.createElement("li");
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = label;
    const bar = document.createElement("progress");
    bar.max = 1;
    bar.value = probability;
    bar.setAttribute("aria-label", label);
    const value = document.createElement("span");
    value.className = "value";
    value.textContent = percent(probability);
    row.append(name, bar, value);
    return row;
  });
}

function percent(probability) {
  return `${(100 * probability).toFixed(1)} %`;
}

async function explain(node, file, button) {
  button.disabled = true;
  $("status").textContent = "Explaining…";
  const form = new FormData();
  form.append("file", file, file.name || "image");
  const response = await ask(`explain?${modelQuery({ format: "json" })}`, { method: "POST", body: form });
  if (!response.ok) {
    $("status").textContent = await reason(response);
    button.disabled = false;
    return;
  }
  const found = await response.json();
  const [photo, heat] = [node.querySelector(".photo"), node.querySelector(".heat")];
  const slider = node.querySelector(".opacity input");
  node.querySelector(".layers").classList.add("explained");
  photo.src = found.image;
  heat.src = found.heat;
  heat.alt = `Map of where ${found.label || "the class"} is seen`;
  heat.hidden = false;
  const fade = () => (heat.style.opacity = String(slider.value / 100));
  slider.addEventListener("input", fade);
  fade();
  node.querySelector(".opacity").hidden = false;
  button.remove();
  slider.focus();
  showNearest(node.querySelector(".nearest"), found.nearest);
  $("status").textContent = found.note ? `Explained: ${found.note}.` : "Explained.";
}

function showNearest(place, neighbours) {
  if (!neighbours || !neighbours.length) return;
  place.querySelector("ul").append(...neighbours.map((neighbour) => {
    const item = document.createElement("li");
    if (neighbour.thumbnail) {
      const image = document.createElement("img");
      image.src = neighbour.thumbnail;
      image.alt = "";
      item.append(image);
    }
    item.append(`${neighbour.label}, ${neighbour.similarity.toFixed(2)}`);
    return item;
  }));
  place.hidden = false;
}

// --- choosing, dropping, pasting, taking a picture

$("files").addEventListener("change", (event) => classify([...event.target.files]));

for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") classify([...event.dataTransfer.files]);
  });
}

document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) {
    event.preventDefault();
    classify(files);
  }
});

let stream = null;

$("camera-open").addEventListener("click", async () => {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    $("status").textContent = `There is no camera to use (${error.message}).`;
    return;
  }
  $("video").srcObject = stream;
  await $("video").play();
  $("camera").hidden = false;
  $("camera-take").focus();
});

function closeCamera() {
  for (const track of stream ? stream.getTracks() : []) track.stop();
  stream = null;
  $("camera").hidden = true;
}

$("camera-close").addEventListener("click", closeCamera);
$("camera-take").addEventListener("click", async () => {
  const video = $("video");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  closeCamera();
  const picture = await new Promise((give) => canvas.toBlob(give, "image/png"));
  classify([new File([picture], "camera.png", { type: "image/png" })]);
});

$("model").addEventListener("change", summarise);
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  $("token").value = "";
  $("token-form").hidden = true;
  start();
});

start();
