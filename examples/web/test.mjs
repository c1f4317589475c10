// Use the page in headless Chromium as a person would: node test.mjs ADDRESS CHROMIUM FOLDER
// FOLDER/cases.json lists [{model, pictures: [...]}]; prints the outputs of every variant as JSON.

import { readFile } from "node:fs/promises";
import path from "node:path";
import { chromium } from "playwright-core";

const [address, executablePath, folder] = process.argv.slice(2);
const cases = JSON.parse(await readFile(path.join(folder, "cases.json"), "utf8"));
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 760, height: 820 } });
const faults = [];
page.on("pageerror", (error) => faults.push(String(error)));
await page.route("**/*", (route) => {
  const local = route.request().url().startsWith(address);
  if (!local) faults.push(`asked for ${route.request().url()}`);
  return local ? route.continue() : route.abort();
});
await page.goto(address);

const choose = async (id, file, done) => {
  await page.setInputFiles(`#${id}`, path.join(folder, file));
  await page.waitForFunction(
    ([id, done]) => new RegExp(done).test(document.getElementById(`${id}-status`).textContent),
    [id, done],
  );
  return page.textContent(`#${id}-status`);
};

const found = [];
for (const { model, pictures, message } of cases) {
  if (message) {
    found.push({ model, message: await choose("model", model, message) });
    continue;
  }
  const status = await choose("model", model, `^${model}: .*confirmed|otherwise|expected`);
  const outputs = [];
  for (const picture of pictures) {
    await choose("picture", picture, `^${picture}: \\d`);
    const count = await page.evaluate(() => window.recal.record.variants.length);
    const rows = [];
    for (let variant = 0; variant < count; variant++) {
      if (count > 1) await page.locator("#variant").fill(String(variant));
      await page.waitForFunction(
        (variant) => !document.getElementById("result").hidden && window.recal.variant === variant,
        variant,
      );
      rows.push(await page.evaluate(() => window.recal.outputs));
    }
    outputs.push(rows);
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      await page.screenshot({ path: path.join(folder, `${model}-${colorScheme}.png`) });
    }
  }
  found.push({ model, status, outputs });
}
await browser.close();
console.log(JSON.stringify({ found, faults }));
