// Uploads a named file, a Blob without a name, and a file too large for one piece (more than 90 MB).
import { fal } from "@fal-ai/client";
import { picture } from "./pictures.mjs";

const named = await picture("person.png");
const unnamed = new Blob([named], { type: "image/png" });
const large = new File([new Uint8Array(90 * 1024 * 1024), named], "large.bin");

const urls = [];
for (const file of [named, unnamed, large]) urls.push(await fal.storage.upload(file));

console.log(JSON.stringify(urls));
