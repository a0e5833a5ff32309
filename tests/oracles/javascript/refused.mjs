// Asks for a character without a reference.
import { fal } from "@fal-ai/client";

const error = await fal
  .subscribe("fal-ai/ideogram/character", { input: { prompt: "x" } })
  .catch((error) => error);

console.log(JSON.stringify({ error: error.name, code: error.status, fields: error.fieldErrors }));
