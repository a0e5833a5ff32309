// Subscribes to every endpoint in turn; the client uploads the pictures that stand in the inputs as Blobs.
import { readFile } from "node:fs/promises";
import { fal } from "@fal-ai/client";
import { picture } from "./pictures.mjs";

const inputs = JSON.parse(await readFile(new URL("../inputs.json", import.meta.url)));

async function filled(value) {
  if (Array.isArray(value)) return Promise.all(value.map(filled));
  return value.endsWith(".png") ? picture(value) : value;
}

const seen = {};
for (const [endpointId, names] of Object.entries(inputs)) {
  const input = { seed: 9 };
  for (const [field, value] of Object.entries(names)) input[field] = await filled(value);
  const updates = [];
  const result = await fal.subscribe(endpointId, {
    input,
    logs: true,
    onQueueUpdate: (update) => updates.push(update),
  });
  seen[endpointId] = { result, updates };
}

console.log(JSON.stringify(seen));
