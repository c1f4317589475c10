// Check the probes of ONNX files in ONNX Runtime Web under Node: node verify.mjs FILE ...
// Prints a line of JSON for each file, and exits with 4 if outputs differ.

import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";
import { checkProbe, readRecord } from "./recal.js";

ort.env.wasm.numThreads = 1;
for (const file of process.argv.slice(2)) {
  let found;
  try {
    const bytes = await readFile(file);
    const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    found = await checkProbe(ort, session, readRecord(bytes));
    if (!found.same) found.error = `${found.difference.toExponential(1)}: ${found.place}`;
  } catch (error) {
    found = { same: false, error: String(error.message ?? error).split("\n")[0] };
  }
  if (!found.same) process.exitCode = 4;
  console.log(JSON.stringify({ file, ...found }));
}
