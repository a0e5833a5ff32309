// The subscribe snippet of fal's page for Ideogram Character, with a picture and a prompt of our own.
import { fal } from "@fal-ai/client";
import { picture } from "./pictures.mjs";

const referenceImageUrl = await fal.storage.upload(await picture("person.png"));

const result = await fal.subscribe("fal-ai/ideogram/character", {
  input: {
    prompt: "the same woman reading on a train",
    reference_image_urls: [referenceImageUrl],
  },
  logs: true,
  onQueueUpdate: (update) => {
    if (update.status === "IN_PROGRESS") {
      update.logs.map((log) => log.message).forEach(console.log);
    }
  },
});
console.log(result.data);
console.log(result.requestId);

console.log(JSON.stringify(result));
