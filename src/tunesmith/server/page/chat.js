// The chat page: one conversation in memory, streamed from /v1/chat/completions. Nothing is stored.

import { codeBlock, renderMarkdown } from "./markdown.js";

const ui = Object.fromEntries(
  ["model", "state", "settings", "toggle", "fresh", "system", "temperature", "temperature-value", "max-tokens", "key-field", "key", "log", "welcome", "composer", "input", "send", "stop"]
    .map((id) => [id, document.getElementById(id)]),
);
let messages = [];
let model = null;
let running = null; // AbortController of the answer being written

function headers() {
  const key = ui.key.value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function showState(text, kind) {
  ui.state.textContent = text;
  ui.state.className = kind;
}

async function connect() {
  try {
    const health = await fetch("health");
    if (!health.ok) {
      const body = await health.json();
      showState(body.error.message, health.status === 503 ? "" : "wrong");
      setTimeout(connect, 1500);
      return;
    }
    const answer = await fetch("v1/models", { headers: headers() });
    if (answer.status === 401) {
      askForKey();
      return;
    }
    const served = (await answer.json()).data[0];
    model = served.id;
    ui.model.textContent = model;
    document.title = `${model} · tunesmith`;
    showState(`ready, ${served.max_model_len.toLocaleString("en")} tokens of context`, "ready");
  } catch {
    showState("the server does not answer", "wrong");
    setTimeout(connect, 3000);
  }
}

function askForKey() {
  showState("needs an API key", "wrong");
  ui["key-field"].hidden = false;
  openSettings(true);
  ui.key.focus();
}

function openSettings(open) {
  ui.settings.hidden = !open;
  ui.toggle.setAttribute("aria-expanded", String(open));
  ui.log.scrollTop = ui.log.scrollHeight;
}

function addTurn(role, text) {
  ui.welcome.hidden = true;
  const turn = document.createElement("div");
  turn.className = `turn ${role}`;
  const body = document.createElement("div");
  body.className = "text";
  body.textContent = text;
  turn.append(body);
  ui.log.append(turn);
  ui.log.scrollTop = ui.log.scrollHeight;
  return turn;
}

function paint(turn, text, whole) {
  const nearEnd = ui.log.scrollHeight - ui.log.scrollTop - ui.log.clientHeight < 80;
  turn.querySelector(".text").replaceChildren(...(asJson(text, whole) ?? renderMarkdown(text)));
  if (nearEnd) ui.log.scrollTop = ui.log.scrollHeight;
}

// An answer that is a JSON object or array is shown as one, indented once it is whole.
function asJson(text, whole) {
  if (!/^\s*[[{]/.test(text)) return null;
  if (!whole) return [codeBlock(text)];
  try {
    return [codeBlock(JSON.stringify(JSON.parse(text), null, 2))];
  } catch {
    return null;
  }
}

async function ask(text) {
  addTurn("user", text);
  messages.push({ role: "user", content: text });
  const turn = addTurn("assistant writing", "");
  running = new AbortController();
  setBusy(true);
  const started = performance.now();
  let answer = "";
  let usage = null;
  let reason = null;
  let painted = 0;
  try {
    for await (const chunk of stream(running.signal)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) usage = chunk.usage;
      const choice = chunk.choices[0];
      if (!choice) continue;
      answer += choice.delta.content ?? "";
      reason = choice.finish_reason ?? reason;
      if (performance.now() - painted > 40) {
        paint(turn, answer, false);
        painted = performance.now();
      }
    }
    finish(turn, answer, note(usage, reason, performance.now() - started));
  } catch (fault) {
    if (fault.name === "AbortError") finish(turn, answer, "stopped");
    else fail(turn, answer, fault.message);
  } finally {
    running = null;
    setBusy(false);
  }
}

async function* stream(signal) {
  const system = ui.system.value.trim();
  const limit = Number.parseInt(ui["max-tokens"].value, 10);
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: headers(),
    signal,
    body: JSON.stringify({
      model,
      messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
      temperature: Number(ui.temperature.value),
      ...(limit > 0 ? { max_tokens: limit } : {}),
      stream: true,
      stream_options: { include_usage: true },
    }),
  });
  if (!response.ok) {
    if (response.status === 401) askForKey();
    const body = await response.json().catch(() => null);
    throw new Error(body?.error?.message ?? `the server answered ${response.status}`);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection was lost");
    buffer += value;
    const events = buffer.split("\n\n");
    buffer = events.pop();
    for (const event of events) {
      const data = event.startsWith("data: ") ? event.slice(6) : null;
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

function finish(turn, answer, text) {
  turn.classList.remove("writing");
  paint(turn, answer, true);
  const line = document.createElement("div");
  line.className = "note";
  const words = document.createElement("span");
  words.textContent = text;
  line.append(words);
  if (answer) {
    messages.push({ role: "assistant", content: answer });
    line.append(copyButton(answer));
  } else {
    messages.pop(); // a question without an answer does not go into the next request
  }
  turn.append(line);
}

function fail(turn, answer, message) {
  finish(turn, answer, "");
  const wrong = addTurn("wrong", message);
  wrong.setAttribute("role", "alert");
}

function note(usage, reason, milliseconds) {
  const parts = [];
  if (usage) {
    const rate = usage.completion_tokens / Math.max(milliseconds / 1000, 0.001);
    parts.push(`${usage.completion_tokens} tokens`, `${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`);
  }
  if (reason === "length") parts.push("cut at the longest answer");
  return parts.join(" · ");
}

function copyButton(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed here";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return button;
}

function setBusy(busy) {
  ui.send.hidden = busy;
  ui.stop.hidden = !busy;
  ui.fresh.disabled = busy;
  updateSend();
  if (!busy) ui.input.focus();
}

function updateSend() {
  ui.send.disabled = !ui.input.value.trim() || Boolean(running);
  ui.input.style.height = "auto";
  ui.input.style.height = `${ui.input.scrollHeight}px`;
}

ui.composer.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = ui.input.value.trim();
  if (!text || running) return;
  if (!model) {
    await connect();
    if (!model) return;
  }
  ui.input.value = "";
  updateSend();
  ask(text);
});
ui.input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ui.composer.requestSubmit();
  }
});
ui.input.addEventListener("input", updateSend);
ui.stop.addEventListener("click", () => running?.abort());
ui.toggle.addEventListener("click", () => openSettings(ui.settings.hidden));
ui.fresh.addEventListener("click", () => {
  messages = [];
  ui.log.replaceChildren(ui.welcome);
  ui.welcome.hidden = false;
  ui.input.focus();
});
ui.key.addEventListener("change", connect);
ui.temperature.addEventListener("input", showTemperature);

function showTemperature() {
  ui["temperature-value"].textContent = Number(ui.temperature.value).toFixed(1);
}

showTemperature();
updateSend();
connect();
ui.input.focus();
