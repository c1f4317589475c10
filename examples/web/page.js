// The page: a file and a picture are dropped or chosen, and the variant is moved by a slider.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import { checkProbe, prepare, probabilities, readRecord, run } from "./recal.js";

// the WebAssembly lies beside the module that is imported above, so that nothing is fetched elsewhere
ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;

const get = (id) => document.getElementById(id);
const state = { session: null, record: null, picture: null, outputs: null };
window.recal = state; // for the test

function say(id, text, kind) {
  get(id).textContent = text;
  get(id).className = kind;
}

const failed = (id, name) => (error) => say(id, `${name}: ${error.message ?? error}`, "bad");

// tasks wait for each other: a session runs one input at a time
let last = Promise.resolve();
function inTurn(id, name, task) {
  last = last.then(task).catch(failed(id, name));
  return last;
}

async function openModel(file) {
  state.session = state.outputs = null;
  for (const id of ["variants", "pictures", "result"]) get(id).hidden = true;
  say("model-status", `Loading ${file.name} ...`, "dim");
  const bytes = new Uint8Array(await file.arrayBuffer());
  state.record = readRecord(bytes);
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  const probe = await checkProbe(ort, session, state.record);
  const difference = `largest difference ${probe.difference.toExponential(1)} of the largest output`;
  if (!probe.same) {
    throw new Error(`computes otherwise in this browser: ${difference}: ${probe.place}.`);
  }
  state.session = session;
  const { variants, form, model } = state.record;
  const names = variants.map(({ name }) => name).join(", ");
  say("model-status", `${file.name}: ${names} (${form}, ${model.arch}). Recorded outputs confirmed: ${difference}.`, "good");
  get("variants").hidden = variants.length < 2;
  get("variant").max = variants.length - 1;
  get("variant").value = 0;
  get("pictures").hidden = false;
  say("picture-status", "", "");
  await classify().catch(failed("picture-status", state.picture?.name));
}

async function openPicture(file) {
  state.picture = null;
  get("result").hidden = true;
  let bitmap;
  try {
    // as recal decodes: no colour profile, no rotation
    const raw = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "none" };
    bitmap = await createImageBitmap(file, raw);
  } catch {
    throw new Error("expected a picture that this browser can decode, got another file.");
  }
  const { width, height } = bitmap;
  const context = Object.assign(get("shown"), { width, height }).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  state.picture = { width, height, data: data.filter((_, i) => i % 4 !== 3), name: file.name };
  await classify();
}

async function classify() {
  const { session, record, picture } = state;
  const variant = Number(get("variant").value);
  get("variant-name").textContent = record.variants[variant].name;
  if (!session || !picture) return;
  [get("result").hidden, state.variant] = [true, null];
  const { data, shape } = prepare(picture, record);
  const began = performance.now();
  const output = await run(ort, session, record, data, shape, variant);
  const time = performance.now() - began;
  [state.outputs, state.variant] = [Array.from(output.data), variant];
  const rows = probabilities(output, record)
    .map((share, i) => ({ share, name: record.classes?.[i] ?? `class ${i}` }))
    .sort((a, b) => b.share - a.share)
    .slice(0, 5)
    .map(({ share, name }) => {
      const row = document.createElement("tr");
      const bar = document.createElement("div");
      bar.style.width = `${100 * share}%`;
      for (const cell of [name, bar, `${(100 * share).toFixed(1)} %`]) row.insertCell().append(cell);
      return row;
    });
  get("classes").replaceChildren(...rows);
  get("result").hidden = false;
  say("picture-status", `${picture.name}: ${time.toFixed(0)} ms`, "dim");
}

for (const [name, open] of [["model", openModel], ["picture", openPicture]]) {
  const [input, target, status] = [get(name), get(`${name}-drop`), `${name}-status`];
  const take = (file) => file && inTurn(status, file.name, () => open(file));
  input.addEventListener("change", () => take(input.files[0]));
  target.addEventListener("dragleave", () => target.classList.remove("over"));
  target.addEventListener("dragover", (event) => {
    event.preventDefault();
    target.classList.add("over");
  });
  target.addEventListener("drop", (event) => {
    event.preventDefault();
    target.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
}
get("variant").addEventListener("input", () => inTurn("picture-status", state.picture?.name ?? "", classify));
